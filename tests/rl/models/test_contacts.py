"""Walls found in data, and simulators that stop at them, against loops and MountainCar's own wall."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from stand_ins import near

from lowrank_rl.rl.behaviour.trained import data_policy
from lowrank_rl.rl.contracts import Discrete, Transitions, fresh_view
from lowrank_rl.rl.data import agents, collect
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.models import contacts, fused, fused_basis
from lowrank_rl.rl.models.contacts import Contacts
from lowrank_rl.rl.models.persim import Exact, PerSim, PerSimConfig, fit_persim
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.rng import stream
from lowrank_rl.tensor import AdamConfig, ALSConfig, Polynomial, Spline, io

NAN = torch.nan


def walls(*rows):
    """Each row: dimension, sign, bound, state after."""
    dimension, sign, bound, after = zip(*rows, strict=True)
    return Contacts(torch.tensor(dimension), *(torch.tensor(x, dtype=torch.float64) for x in (sign, bound, after)))


def listed(found):
    return [(int(d), float(s), float(b), a.tolist()) for d, s, b, a in zip(*vars(found).values(), strict=True)]


def smooth(count=1000, D=2):
    return torch.randn((count, D), generator=stream(0, "contacts", D), dtype=torch.float64)


def cut(state, d, sign, bound):
    """A dimension cut off at a bound."""
    state = state.clone()
    state[:, d] = sign * torch.maximum(sign * state[:, d], torch.tensor(sign * bound).double())
    return state


def by_loop(found, states):
    """One state and one wall at a time, in Python's floats."""
    out = []
    for x in states.double().flatten(0, -2).tolist():
        for d, sign, bound, after in listed(found):
            if sign * (x[d] - bound) <= 0:
                x = [old if np.isnan(new) else new for old, new in zip(x, after, strict=True)]
        out.append(x)
    return torch.tensor(out, dtype=torch.float64).reshape(states.shape)


# ---- finding them


def logged(environment, policy, count, steps=None):
    covariates = agents(environment, count, seed=0)
    return collect(environment, covariates, torch.arange(count), policy(environment, covariates), seed=0, what="contacts",
                   max_steps=steps).transitions()


def test_mountaincars_left_wall_is_found_in_random_data_and_nothing_else():
    data = logged(mountaincar.ENVIRONMENT, lambda environment, covariates: Uniform(environment.actions), 200)
    assert listed(contacts.find(data.next_state)) == [(0, 1.0, mountaincar.LEFT, [mountaincar.LEFT, 0.0])]


def test_cartpole_has_no_walls():
    """Episodes end where the pole is down, but not all at the same angle."""
    data = logged(cartpole.ENVIRONMENT, lambda environment, covariates: Uniform(environment.actions), 200)
    assert listed(contacts.find(data.next_state)) == []


@pytest.mark.parametrize(("d", "sign"), list(product((0, 1), (1.0, -1.0))))
def test_lower_and_upper_walls_of_any_dimension(d, sign):
    """The other dimension goes on as it would: NaN."""
    found = listed(contacts.find(cut(smooth(), d, sign, -1.5 * sign)))
    assert len(found) == 1
    assert found[0][:3] == (d, sign, -1.5 * sign)
    assert found[0][3][d] == -1.5 * sign
    assert np.isnan(found[0][3][1 - d])


def test_several_walls():
    found = contacts.find(cut(cut(smooth(), 0, 1.0, -1.0), 0, -1.0, 1.0))
    assert [row[:3] for row in listed(found)] == [(0, 1.0, -1.0), (0, -1.0, 1.0)]


@pytest.mark.parametrize(("alike", "set_"), [(1.0, True), (0.92, True), (0.8, False)])
def test_what_another_dimension_always_is_there_is_set_too(alike, set_):
    """Now and then a second law moves it, too."""
    state = cut(smooth(2000), 0, 1.0, -1.0)
    there = (state[:, 0] == -1.0).nonzero()[:, 0]
    state[there[:round(alike * len(there))], 1] = 0.25
    after = listed(contacts.find(state))[0][3]
    assert after[1] == 0.25 if set_ else np.isnan(after[1])


@pytest.mark.parametrize("times", [contacts.LEAST - 1, contacts.LEAST])
def test_a_few_equal_values_are_no_wall(times):
    state = smooth()
    state[:times, 0] = -9.0
    assert len(contacts.find(state).bound) == (times == contacts.LEAST)


def test_a_dimension_that_never_moves_has_no_walls():
    state = smooth()
    state[:, 0] = 3.0
    assert listed(contacts.find(state)) == []


@pytest.mark.parametrize("digits", [3, 2, 1, 0])
@pytest.mark.parametrize("shape", ["normal", "uniform"])
def test_rounded_numbers_are_no_walls(digits, shape):
    """Equal extremes say nothing where all values are shared."""
    state = smooth(20_000)
    state = state if shape == "normal" else torch.special.ndtr(state)
    assert listed(contacts.find((state * 10 ** digits).round() / 10 ** digits)) == []


def test_a_wall_in_rounded_numbers_is_found():
    state = (cut(smooth(20_000), 0, 1.0, -1.5) * 1000).round() / 1000
    assert [row[:3] for row in listed(contacts.find(state))] == [(0, 1.0, -1.5)]


def test_flags_and_counts_are_no_walls():
    state = torch.stack([torch.arange(1000) % 2, torch.arange(1000) % 7], dim=1)
    assert listed(contacts.find(state)) == []


def test_finding_does_not_depend_on_order_or_precision():
    state = cut(smooth(), 1, -1.0, 1.25)
    found = listed(contacts.find(state))
    assert str(listed(contacts.find(state.flip(0)))) == str(found)
    assert [row[:3] for row in listed(contacts.find(state.float()))] == [row[:3] for row in found]


# ---- stopping at them

CORNER = walls((0, 1.0, -1.0, [-1.0, 0.0]), (0, -1.0, 0.7, [0.7, NAN]), (1, 1.0, -0.5, [NAN, -0.5]), (1, -1.0, 0.5, [0.1, 0.5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_stop_is_a_loop_over_states_and_walls(dtype):
    """A state beyond two walls meets the second as the first has left it."""
    state = smooth(600).reshape(2, 3, 100, 2).to(dtype)
    before, found = state.clone(), CORNER.stop(state)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), by_loop(CORNER, state), rtol=0, atol=1e-7)
    assert torch.equal(state, before)
    assert (found != state).any(-1).double().mean() > 0.2
    assert CORNER.stop(torch.tensor([-1.2, -0.8], dtype=dtype)).tolist() == [-1.0, 0.0]     # not at the other wall's -0.5
    assert torch.equal(CORNER.stop(found), found)


def test_nan_in_after_leaves_a_dimension_as_predicted():
    found = CORNER.stop(torch.tensor([[0.9, 0.3], [0.2, -0.7]], dtype=torch.float64))
    assert found.tolist() == [[0.7, 0.3], [0.2, -0.5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_the_wall_is_at_the_wall_in_any_precision(dtype):
    """0.7 in float32 is a little less than 0.7."""
    at = torch.tensor([[0.7, 0.0], [-1.0, 0.3], [0.69, 0.0]], dtype=dtype)
    assert CORNER.reached(at).tolist() == [[False, True, False, False], [True, False, False, False], [False] * 4]


def test_no_walls_change_nothing():
    state = smooth()
    assert torch.equal(contacts.none(2).stop(state), state)
    assert contacts.none(2).reached(state).shape == (1000, 0)


def test_a_lost_state_stays_lost():
    state = torch.tensor([[NAN, NAN], [NAN, 0.0]])
    found = CORNER.stop(state)
    assert found[0].isnan().all()
    assert found[1, 0].isnan()


# ---- the compiled loops

M, B, C, H, ACTIONS = 2, 3, 150, 12, 3      # more plans than stand side by side, of which some meet each wall


def moves(D, seed=0):
    """Weights of slow motion between the walls, and plans: of a network, and of a basis."""
    draw = stream(seed, "contacts", "loops", D)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)
    return normal, 0.2 * normal(M, B, D), torch.randint(ACTIONS, (B, C, H), generator=draw)


def stepped(found, state, plans, step):
    """``step(m, b, action, x)`` and the walls, one state at a time."""
    out = torch.empty((M, *plans.shape, state.shape[-1]), dtype=torch.float64)
    for m, b, c in np.ndindex(M, B, C):
        x = state[m, b]
        for h in range(H):
            x = by_loop(found, step(m, b, int(plans[b, c, h]), x)[None])[0]
            out[m, b, c, h] = x
    return out


def wide(found, D):
    """The same walls of two dimensions among D."""
    return replace(found, after=torch.nn.functional.pad(found.after, (0, D - 2), value=NAN))


def met(found, states, D):
    """Each wall is met somewhere, and not everywhere."""
    share = torch.stack([(states[..., d] - bound).abs() < 1e-6 for d, _, bound, _ in listed(found)]).double().flatten(1).mean(1)
    assert (share > 0).all()
    assert (share < 0.9).all()


@pytest.mark.parametrize("D", [2, 3, 4])
def test_the_loop_of_networks_stops_as_a_plain_loop_does(D):
    normal, state, plans = moves(D)
    weight, bias, out_weight, out_bias = normal(M, D, 9), normal(M, 9), 0.1 * normal(M, B, ACTIONS, D, 9), 0.2 * normal(
        M, B, ACTIONS, D)
    found = wide(CORNER, D)

    def step(m, b, a, x):
        return x + out_weight[m, b, a] @ (x @ weight[m] + bias[m]).relu() + out_bias[m, b, a]
    expected = stepped(found, state, plans, step)
    met(found, expected, D)
    out = fused.rollout_network(weight, bias, out_weight.mT, out_bias, found, state, plans)
    torch.testing.assert_close(out[:, :, :, 1:], expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("basis", [fused_basis.SplineBasis((6, 4), 3), fused_basis.PolynomialBasis(2, 3),
                                   fused_basis.PolynomialBasis(3, 2)], ids=repr)
def test_the_loops_of_bases_stop_as_a_plain_loop_does(basis):
    D = len(basis.low)
    normal, state, plans = moves(D)
    basis.prepare(torch.cat([-torch.ones(1, D), torch.ones(1, D)]).double())
    center, scale, shift = 0.1 * normal(D), normal(D).abs() + 0.5, 0.01 * normal(D)
    weight = 0.15 * normal(M, B, ACTIONS, basis.size, D)
    found = wide(CORNER, D)

    def step(m, b, a, x):
        return x + basis(near(basis, (x - center) / scale)[None])[0] @ weight[m, b, a] + shift
    expected = stepped(found, state, plans, step)
    met(found, expected, D)
    out = fused_basis.rollout_basis(basis, center, scale, weight, shift, found, state, plans)[:, :, :, 1:].double()
    same = ((out - expected).abs() <= 1e-4).flatten(3).all(-1)
    assert same.double().mean() > 0.98                            # float32 may meet a wall a step earlier or later


# ---- simulators

EXACT = PerSimConfig(rank=3, members=1, exact=Exact(Spline(2, (32, 4)), ALSConfig(sweeps=30, tol=0.01)))
CAR = mountaincar.ENVIRONMENT


@pytest.fixture(scope="module")
def cars():
    """Simulators with and without walls, of 100 agents; steps of the same agents that they have not seen, and how far beyond
    the wall each would have gone."""
    def log(seed):
        covariates = agents(CAR, 100, seed=0)
        return collect(CAR, covariates, torch.arange(100), data_policy(CAR, covariates, share=0.4), seed=seed, what="contacts")
    data, other = log(0).transitions(), log(1)
    models = [fit_persim(data, 100, CAR.actions, replace(EXACT, walls=look), seed=0) for look in (True, False)]
    position, velocity = other.state.T
    gravity = np.repeat(other.covariates[:, 0], other.lengths)
    velocity = velocity + mountaincar.FORCE * (other.action[:, 0] - 1) - gravity * np.cos(3 * position)
    return models, other.transitions(), torch.from_numpy(mountaincar.LEFT - position - velocity)


def predicted(model, steps):
    context = model.context(fresh_view(steps.agent, steps.state, 1))
    return model.predict(context, steps.state.expand(model.members, *steps.state.shape), steps.action)[0]


def test_a_simulator_hits_the_wall_where_the_car_does(cars):
    (with_walls, without), steps, beyond = cars
    assert listed(with_walls.walls) == [(0, 1.0, -1.2, [-1.2, 0.0])]
    assert listed(without.walls) == []
    hits, clear = steps.next_state[:, 0] == mountaincar.LEFT, beyond.abs() > 0.002
    assert torch.equal(hits, beyond >= 0)
    assert (hits & clear).sum() > 20
    found = predicted(with_walls, steps)
    assert torch.equal((found[:, 0] == mountaincar.LEFT)[clear], hits[clear])
    assert torch.equal(found[hits & clear], steps.next_state[hits & clear])                      # at rest, to the last bit
    blind = predicted(without, steps)
    assert not (blind[:, 0] == mountaincar.LEFT).any()
    assert (blind - steps.next_state)[hits, 1].abs().mean() > 1e-3


def test_a_rollout_meets_the_wall_as_predict_does(cars):
    """The compiled loop, from the car's states just before it hits."""
    (model, _), steps, beyond = cars
    hits = (beyond > 0.002).nonzero()[:20, 0]
    context = model.context(fresh_view(steps.agent[hits], steps.state[hits], 1))
    plans = steps.action[hits][:, None, None].expand(-1, 2, 4, -1).clone()
    plans[:, 1, 1:] = 2
    fast, slow = model.rollout(context, steps.state[hits][None], plans), rollout(model, context, steps.state[hits][None], plans)
    torch.testing.assert_close(fast.double(), slow, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slow[0, :, :, 1], steps.next_state[hits][:, None].expand(-1, 2, -1), atol=0, rtol=0)


def test_walls_come_back_from_a_file(cars, tmp_path):
    (model, without), steps, _ = cars
    for number, each in enumerate((model, without)):
        each.save(tmp_path / str(number))
        back = PerSim.load(tmp_path / str(number))
        assert str(listed(back.walls)) == str(listed(each.walls))
        assert torch.equal(predicted(back, steps), predicted(each, steps))


def slide(speeds, count=40):
    """Agents slide down by their own speed, on one dimension that ends at 0."""
    draw, speed = stream(0, "slide"), torch.tensor(speeds, dtype=torch.float64)
    agent = torch.arange(len(speeds)).repeat_interleave(count)
    state = 0.2 + 2 * torch.rand((len(agent), 1), generator=draw, dtype=torch.float64)
    return Transitions(agent, state, torch.zeros_like(agent)[:, None], (state - speed[agent][:, None]).clamp(min=0))


def test_an_agent_whose_every_step_is_at_a_wall_keeps_its_data():
    """The others' law does not fit it, but to know nothing would be worse."""
    data = slide([0.1, 0.3, 0.5, 9.0])
    stuck = data.agent == 3
    assert (data.next_state[stuck] == 0).all()
    config = PerSimConfig(rank=2, members=1, exact=Exact(Polynomial(1, 1), ALSConfig(sweeps=60)))
    model = fit_persim(data, 4, Discrete(1), config, seed=0)
    found = predicted(model, data)
    torch.testing.assert_close(found[stuck], data.next_state[stuck], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[~stuck], data.next_state[~stuck], atol=1e-3, rtol=0)


def test_steps_at_a_wall_are_left_out_of_the_fit():
    """With them, a straight line that slides by 0.5 cannot be found."""
    data, config = slide([0.5] * 3), PerSimConfig(rank=1, members=1, exact=Exact(Polynomial(1, 0), ALSConfig(sweeps=60)))
    free = data.next_state[:, 0] > 0
    assert 0.1 < (~free).double().mean() < 0.5
    for look, error in ((True, 0.0), (False, None)):
        model = fit_persim(data, 3, Discrete(1), replace(config, walls=look), seed=0)
        found = (predicted(model, data) - data.next_state)[free].abs().max()
        assert found < 1e-6 if error == 0.0 else found > 0.01


def test_a_simulator_of_no_numbers_says_so(cars):
    """NaN in either dimension is NaN out, on the wall's side, too."""
    (model, _), steps, _ = cars
    state = steps.state[:4].clone()
    state[0, 0], state[1, 1], state[2] = NAN, NAN, NAN
    state[1, 0] = -1.3
    lost = replace(steps, agent=steps.agent[:4], state=state, action=steps.action[:4])
    found = predicted(model, lost)
    assert found[:3].isnan().all()
    assert found[3].isfinite().all()
    future = model.rollout(model.context(fresh_view(lost.agent, state, 1)), state[None], lost.action[:, None, None])[0, :, 0, 1]
    assert future[:3].isnan().all()
    assert future[3].isfinite().all()


def test_the_first_number_that_is_none_is_named_in_its_own_row():
    """Although steps at the wall do not count."""
    data = slide([0.5, 0.5])
    still = torch.ones_like(data.state)
    broken = replace(data, state=torch.cat([data.state, still], 1), next_state=torch.cat([data.next_state, still], 1))
    assert (data.next_state[:70] == 0).sum() > contacts.LEAST
    broken.next_state[70, 1] = NAN
    with pytest.raises(ValueError, match=r"next_state: 1 of 160 values are NaN or Inf, the first at \(70, 1\)"):
        fit_persim(broken, 2, Discrete(1), PerSimConfig(members=1, adam=AdamConfig(epochs=1)), seed=0)


def test_a_simulator_from_before_walls_has_none(cars, tmp_path):
    (model, _), _, _ = cars
    tensors, header = model.cp.pack()
    io.save(tmp_path / "old", "PerSim", tensors, {**header, "personal": True})
    assert listed(PerSim.load(tmp_path / "old").walls) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_walls_on_a_gpu():
    data = slide([0.1, 0.3, 0.5])
    there = Transitions(*(x.to("cuda") for x in vars(data).values()))
    config = PerSimConfig(rank=2, members=2, state_hidden=(8,), adam=AdamConfig(epochs=2))
    model = fit_persim(there, 3, Discrete(1), config, seed=0, device="cuda")
    assert listed(model.walls)[0][:3] == (0, 1.0, 0.0)
    context = model.context(fresh_view(there.agent, there.state, 1))
    found = model.predict(context, there.state.expand(2, -1, -1), there.action)
    assert found.device.type == "cuda"
    assert (found >= 0).all()
