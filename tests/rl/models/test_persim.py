"""PerSim against its equation, on data of a known law, and at its doors."""

import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView, Transitions, fresh_view
from lowrank_rl.rl.data import agents, collect
from lowrank_rl.rl.envs import mountaincar
from lowrank_rl.rl.models.multistep import MultiStep
from lowrank_rl.rl.models.persim import ACTION, AGENT, STATE, Exact, PerSim, PerSimConfig, fit_persim
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.rng import stream
from lowrank_rl.tensor import AdamConfig, ALSConfig, Categorical, FunctionalCP, Neural, Polynomial

CAR = mountaincar.ENVIRONMENT
SMALL = PerSimConfig(rank=4, members=2, state_hidden=(7,), action_hidden=(5,), adam=AdamConfig(epochs=2, batch=16))
EXACT = PerSimConfig(rank=3, members=1, exact=Exact(Polynomial(2, 6), ALSConfig(tol=0.01, sweeps=20)))
JOINT = replace(SMALL, joint=True)
DISCRETE, BOX = Discrete(3), Box(-1.0, 1.0, 2)


def data(actions=DISCRETE, count=120, people=4):
    """Transitions of no particular law, far from standardised."""
    draw = stream(0, "persim", "data")
    agent = torch.arange(count) % people
    state = 5 + 3 * torch.randn((count, 2), generator=draw, dtype=torch.float64)
    action = actions.sample((count,), generator=draw)
    change = 2 + (1 + agent[:, None]) * state.sin() * (1 + action.double().sum(1, keepdim=True))
    return Transitions(agent, state, action, state + change)


def fit(steps=None, actions=DISCRETE, config=SMALL, people=4, **options):
    return fit_persim(data(actions) if steps is None else steps, people, actions, config, **{"seed": 0, **options})


def view(agent):
    nothing = torch.zeros((len(agent), 0))
    return EpisodeView(torch.arange(len(agent)), agent, torch.zeros((len(agent), 2)), nothing[..., None], nothing[..., None],
                       nothing.bool())


def predict(model, steps):
    state = steps.state.expand(model.members, *steps.state.shape)
    return model.predict(model.context(view(steps.agent)), state, steps.action)


def numbers(model):
    return {name: value.clone() for name, value in model.module.state_dict().items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(numbers(a).values(), numbers(b).values(), strict=True))


def network(mode, member, x):
    """A multilayer perceptron by hand, float64."""
    *hidden, last = [(layer.weight[member].detach().double().numpy(), layer.bias[member, 0].detach().double().numpy())
                     for layer in mode.layers]
    for weight, bias in hidden:
        x = np.maximum(x @ weight + bias, 0)
    return x @ last[0] + last[1]


# ---- equation 2


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("personal", [True, False])
@pytest.mark.parametrize("actions", [DISCRETE, BOX], ids=["discrete", "box"])
def test_predict_is_equation_2(actions, personal, normalize):
    """next_state - state = sum_l u_l(agent) v_l(state) w_l(action), in the units of the data."""
    model, steps = fit(actions=actions, config=replace(SMALL, normalize=normalize), personal=personal), data(actions)
    module, prediction = model.module, predict(model, steps).numpy()
    center, scale = module.center.double().numpy(), module.scale.double().numpy()
    center_in, scale_in = module.center1.double().numpy(), module.scale1.double().numpy()
    for m in range(2):
        for b in range(0, 120, 7):
            number = int(steps.agent[b]) if personal else 0
            rows = module.modes[AGENT]
            u = (rows.table[m, number] + rows.bias[m, 0]).detach().double().numpy()
            v = network(module.modes[STATE], m, (steps.state[b].numpy() - center_in) / scale_in)       # D blocks of R
            if actions is DISCRETE:
                table = module.modes[ACTION]
                w = (table.table[m, steps.action[b, 0]] + table.bias[m, 0]).detach().double().numpy()
            else:
                spread = module.scale2.double().numpy()
                w = network(module.modes[ACTION], m, (steps.action[b].numpy() - module.center2.double().numpy()) / spread)
            for d in range(2):
                total = 0.0
                for rank in range(4):
                    total += u[rank] * v[4 * d + rank] * w[rank]
                assert prediction[m, b, d] == pytest.approx(float(steps.state[b, d]) + center[d] + scale[d] * total, rel=1e-4)


@pytest.mark.parametrize("personal", [True, False])
def test_a_joint_mode_predicts_by_agents_and_everything_else(personal):
    """next_state - state = sum_l u_l(agent) v_l(state, action), in the units of the data."""
    model, steps = fit(actions=BOX, config=JOINT, personal=personal), data(BOX)
    module, prediction = model.module, predict(model, steps).numpy()
    center, scale, center_in, scale_in = (
        x.double().numpy() for x in (module.center, module.scale, module.center1, module.scale1))
    together = np.column_stack([steps.state, steps.action])
    for m in range(2):
        for b in range(0, 120, 7):
            rows, number = module.modes[AGENT], int(steps.agent[b]) if personal else 0
            u = (rows.table[m, number] + rows.bias[m, 0]).detach().double().numpy()
            v = network(module.modes[STATE], m, (together[b] - center_in) / scale_in)       # D blocks of R
            for d in range(2):
                expected = float(steps.state[b, d]) + center[d] + scale[d] * (u @ v[4 * d:4 * d + 4])
                assert prediction[m, b, d] == pytest.approx(expected, rel=1e-4)


def test_a_joint_mode_learns_what_no_product_says():
    """A push that turns with the state, faster than few products of a state's and an action's factors can follow."""
    draw = stream(0, "persim", "turning")
    agent = torch.arange(2000) % 4
    state = 4 * torch.rand((2000, 2), generator=draw, dtype=torch.float64)
    action = BOX.sample((2000,), generator=draw)
    push = (2 * state + 3 * action).sin() * (1 + agent[:, None])
    steps = Transitions(agent, state, action, state + push)
    shared = replace(SMALL, rank=2, state_hidden=(64, 64), action_hidden=(64,), activation="silu", members=1,
                     adam=AdamConfig(epochs=30, batch=50, learning_rate=3e-3))

    def unexplained(config):
        error = predict(fit(steps, BOX, config), steps)[0] - steps.next_state
        return float(error.var() / push.var())
    assert unexplained(replace(shared, joint=True)) < 0.2 * unexplained(shared)


def test_units_are_the_spread_of_the_differences():
    steps = data()
    spread = (steps.next_state - steps.state).std(0)
    torch.testing.assert_close(fit().unit.double(), spread, rtol=1e-6, atol=0)
    assert fit(config=replace(SMALL, normalize=False)).unit.tolist() == [1, 1]


def test_members_differ_and_the_seed_decides():
    model = fit()
    assert not torch.equal(model.rows[0], model.rows[1])
    assert model.rows.shape == (2, 4, 4)
    assert same(model, fit())
    assert not same(model, fit(seed=1))


def test_the_action_mode_of_a_box_learns():
    before = fit(actions=BOX, config=replace(SMALL, adam=AdamConfig(epochs=1, batch=120, learning_rate=1e-12)))
    assert not torch.equal(before.module.modes[ACTION].layers[0].weight, fit(actions=BOX).module.modes[ACTION].layers[0].weight)


# ---- the pooled baseline


def test_the_pooled_model_cannot_tell_agents_apart():
    model, steps = fit(personal=False), data()
    context = model.context(view(torch.arange(4)))
    assert (context == context[:, :1]).all()
    assert torch.equal(predict(model, steps), predict(model, replace(steps, agent=3 - steps.agent)))


def test_the_pooled_model_starts_as_the_personal_one_does():
    rows = [fit(config=replace(SMALL, init="linear", adam=AdamConfig(epochs=1, learning_rate=1e-9)), personal=personal).rows
            for personal in (True, False)]
    assert torch.allclose(*rows, atol=1e-6)     # the same draws, so that only the agents' identity is taken away


def test_the_pooled_model_learns_without_agents():
    steps = data()
    order = torch.randperm(120, generator=stream(0, "order"))
    shuffled = replace(steps, agent=steps.agent[order])
    assert same(fit(personal=False), fit(shuffled, personal=False))
    assert not same(fit(), fit(shuffled))                       # whereas the personal one does look


# ---- what it learns


def logged(seed, count=30, steps=60):
    covariates = agents(CAR, count, seed=0)
    return collect(CAR, covariates, torch.arange(count), Uniform(CAR.actions), seed=seed, what="persim-test",
                   max_steps=steps).transitions()


@pytest.fixture(scope="module")
def car():
    """A small MountainCar simulator, and the pooled one beside it."""
    config = PerSimConfig(rank=3, members=2, state_hidden=(64,), adam=AdamConfig(epochs=60, batch=64, learning_rate=3e-3))
    return [fit_persim(logged(0), 30, CAR.actions, config, seed=0, personal=personal) for personal in (True, False)]


def unexplained(model, steps):
    """Share of the differences' variance that one-step predictions miss, by dimension."""
    true = steps.next_state - steps.state
    error = predict(model, steps).mean(0) - steps.next_state
    return (error.square().sum(0) / (true - true.mean(0)).square().sum(0)).tolist()


def test_a_small_simulator_predicts_unseen_episodes(car):
    personal, pooled = (unexplained(model, logged(1)) for model in car)
    assert max(personal) < 0.05
    assert max(personal) < 0.8 * max(pooled)                    # knowing who acts pays


def test_the_simulators_know_their_gravity(car):
    """v' falls from the left slope to the right one by gravity (cos 3x - cos 3y): hidden, yet found from 60 steps each."""
    agent = torch.arange(30)
    state = torch.zeros((2, 30, 2), dtype=torch.float64)

    def velocity(position):
        state[..., 0] = position
        return car[0].predict(car[0].context(view(agent)), state, torch.ones((30, 1), dtype=torch.int64)).mean(0)[:, 1]
    found = (velocity(-0.58) - velocity(-0.42)) / (math.cos(-1.26) - math.cos(-1.74))
    true = agents(CAR, 30, seed=0)[:, 0]
    assert np.corrcoef(found, true)[0, 1] > 0.9


# ---- files


@pytest.mark.parametrize("personal", [True, False])
@pytest.mark.parametrize(("actions", "config"), [(DISCRETE, SMALL), (BOX, SMALL), (BOX, JOINT)],
                         ids=["discrete", "box", "joint"])
def test_a_saved_model_comes_back(tmp_path, actions, config, personal):
    model, steps = fit(actions=actions, config=config, personal=personal), data(actions)
    model.save(tmp_path / "model.safetensors")
    back = PerSim.load(tmp_path / "model.safetensors")
    assert same(model, back)
    assert torch.equal(predict(back, steps), predict(model, steps))
    assert back.members == 2
    discrete = actions is DISCRETE
    assert (back.joint, back.discrete, back.action_width) == (config.joint, discrete, 1 if discrete else 2)


def test_what_is_no_simulator_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="model.safetensors"):
        PerSim.load(path)
    fit().save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="model.safetensors"):
        PerSim.load(path)
    for modes in ([Categorical(4), Categorical(3)], [Categorical(4), Categorical(3), Neural(2, hidden=(3,))]):
        X = [np.zeros((5, 2)) if isinstance(mode, Neural) else np.zeros(5, dtype=int) for mode in modes]
        FunctionalCP(modes, rank=2, outputs=2, solver=AdamConfig(epochs=1)).fit(X, np.ones((5, 2))).save(path)
        with pytest.raises(ValueError, match="expected a PerSim of schema 1, got kind 'FunctionalCP'"):
            PerSim.load(path)


# ---- refusals


def test_exact_simulators_know_their_gravity():
    """From the same data, without networks: gravity is linear in the rows."""
    model = fit_persim(logged(0), 30, CAR.actions, EXACT, seed=0)
    assert isinstance(model.cp.solver_, ALSConfig)
    rows = np.column_stack([model.rows[0].numpy(), np.ones(30)])
    gravity = agents(CAR, 30, seed=0)[:, 0].numpy()
    residual = gravity - rows @ np.linalg.lstsq(rows, gravity, rcond=None)[0]
    assert 1 - residual.var() / gravity.var() > 0.97
    assert max(unexplained(model, logged(1))) < 0.02


@pytest.mark.parametrize(("actions", "joint"), [(DISCRETE, False), (BOX, False), (BOX, True)])
def test_a_network_that_sees_angles_knows_no_turns(tmp_path, actions, joint):
    """Nor does it once it is saved; a number beyond the data is as good as the nearest of them."""
    steps, config = data(actions), replace(SMALL, joint=joint, angles=(1,), inside=True, activation="silu")
    model = fit(steps, actions, config)
    turned = replace(steps, state=steps.state + torch.tensor([0.0, 4 * math.pi]))
    far, edge = (replace(steps, state=torch.cat([x.expand(len(steps.state), 1), steps.state[:, 1:]], dim=1))
                 for x in (torch.tensor([[1e6]]), steps.state[:, :1].max()))
    model.save(tmp_path / "model")
    for found in (model, PerSim.load(tmp_path / "model")):
        for a, b in ((turned, steps), (far, edge)):
            torch.testing.assert_close(predict(found, a) - a.state, predict(found, b) - b.state, atol=1e-4, rtol=0)
        assert torch.equal(predict(found, steps), predict(model, steps))
    free = fit(steps, actions, replace(config, inside=False, angles=()))
    assert not torch.allclose(predict(free, far) - far.state, predict(free, edge) - edge.state, atol=1)
    assert not torch.allclose(predict(free, turned) - turned.state, predict(free, steps) - steps.state, atol=0.1)


def test_exact_solves_need_discrete_actions():
    with pytest.raises(ValueError, match="exact: expected None where actions are continuous"):
        fit(actions=BOX, config=replace(SMALL, exact=EXACT.exact))


def test_a_joint_mode_needs_continuous_actions():
    with pytest.raises(ValueError, match="joint: expected False where actions are discrete, got True; each of them has a row"):
        fit(config=JOINT)


def test_an_exact_simulator_comes_back(tmp_path):
    model = fit(config=replace(SMALL, exact=EXACT.exact))
    model.save(tmp_path / "model")
    again, steps = PerSim.load(tmp_path / "model"), data()
    assert torch.equal(predict(again, steps), predict(model, steps))


def test_an_agent_without_data_is_refused():
    with pytest.raises(ValueError, match=r"expected data of each of 6 agents, got none of 2 \(first: 4\); drop them and "
                                         r"number the others 0\.\.3"):
        fit(people=6)


@pytest.mark.parametrize("name", ["state", "next_state"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_state_that_is_no_number_is_refused(name, bad):
    steps = data()
    broken = getattr(steps, name).clone()
    broken[17, 1] = bad
    with pytest.raises(ValueError, match=r"NaN or Inf, the first at \(17, 1\)"):
        fit(replace(steps, **{name: broken}))


@pytest.mark.parametrize(("change", "text"), [
    ({"agent": torch.arange(119) % 4}, "state: axis B is 120, earlier inputs say B=119"),
    ({"next_state": torch.zeros(120, 3)}, "next_state: axis D is 3, earlier inputs say D=2"),
    ({"action": torch.zeros(120, dtype=torch.int64)}, r"action: expected axes \(B A\)"),
    ({"agent": torch.arange(120) % 5}, r"agent: expected integers 0\.\.3, got values 0\.\.4"),
    ({"agent": torch.arange(120) % 4 - 1}, r"agent: expected integers 0\.\.3, got values -1\.\.2"),
    ({"action": torch.full((120, 1), 3)}, r"expected 1 components in \[0, 2\] .* with values 3 to 3"),
])
def test_steps_that_do_not_fit_are_refused(change, text):
    with pytest.raises(ValueError, match=text):
        fit(replace(data(), **change))


@pytest.mark.parametrize(("rows", "adam", "updates", "remedy"), [
    (120, {"epochs": 100, "batch": 64}, 200, "epochs=10000, batch=64"),
    (2000, {"epochs": 100, "batch": 512}, 400, "epochs=1250, batch=128"),
    (600, {"epochs": 100, "batch": 32, "held_out": 0.5}, 1000, "epochs=2000, batch=32"),
    (2000, {"epochs": 500, "batch": 512}, None, None),                    # 2,000 updates
    (5000, {"epochs": 1, "batch": 128}, None, None)])                     # cut short, but not because logs are few
def test_a_handful_of_updates_is_warned_of(recwarn, monkeypatch, rows, adam, updates, remedy):
    """Only told, not trained: fitting begins behind the warning."""
    monkeypatch.setattr(FunctionalCP, "fit", lambda self, *_, **__: self.__dict__.update(module_=None))
    config = replace(SMALL, adam=AdamConfig(**adam))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        fit_persim(data(BOX, rows), 4, BOX, config, seed=0)
    told = [str(one.message) for one in recwarn.list]
    if updates is None:
        assert not told
    else:
        assert len(told) == 1
        assert told[0].startswith(f"adam: expected some 20,000 updates, got {updates} ({adam['epochs']} epochs of ")
        assert f"say AdamConfig({remedy})" in told[0]
        assert recwarn.list[0].filename == __file__


def test_multi_step_updates_count_and_exact_solves_have_none(recwarn, monkeypatch):
    monkeypatch.setattr("lowrank_rl.rl.models.persim.fit_multistep", lambda *_, **__: [])
    state = data(BOX).state
    follows = replace(data(BOX), agent=torch.arange(120) // 30, next_state=torch.cat([state[1:], state[-1:]]))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        fit(follows, BOX, replace(SMALL, multistep=MultiStep(horizon=2, updates=2000)))
        fit(config=EXACT)
    assert not recwarn.list


def test_an_action_that_nobody_took_is_named():
    steps = data(Discrete(2))
    with pytest.warns(UserWarning, match=r"action: expected each of 0\.\.3 among the logged steps, got none with 2, 3; "):
        fit(steps, Discrete(4), EXACT)


def test_actions_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"expected 2 components .*shape \(120, 3\)"):
        fit(replace(data(BOX), action=torch.zeros(120, 3)), actions=BOX)


def test_a_polynomial_simulator_does_not_run_away():
    """A tenth of the data's range beyond them it keeps the step it predicts there, in predict and in the compiled loop."""
    draw = stream(0, "far")
    state = torch.rand((300, 2), generator=draw, dtype=torch.float64) * torch.tensor([2.0, 4.0]) - 1
    action = torch.randint(2, (300, 1), generator=draw)
    data = Transitions(torch.arange(300) % 3, state, action, state + 0.1 * state**3 + 0.05 * (2 * action - 1))
    model = fit_persim(data, 3, Discrete(2), PerSimConfig(rank=2, members=1, exact=Exact(Polynomial(2, 3))), seed=0)
    low, high = state.min(0).values, state.max(0).values
    edge = high + 0.1 * (high - low)
    far = torch.stack([edge, edge + 1, edge + 50])
    context = model.context(fresh_view(torch.zeros(3, dtype=torch.int64), far, 1))
    step = model.predict(context, far[None], torch.ones((3, 1), dtype=torch.int64))[0] - far
    torch.testing.assert_close(step, step[:1].expand(3, -1))
    assert (step[0] > 0.1).all()
    plans = torch.ones((3, 1, 40, 1), dtype=torch.int64)
    fast, slow = model.rollout(context, far[None], plans), rollout(model, context, far[None], plans)
    torch.testing.assert_close(fast.double(), slow, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(slow[0, 2, 0, -1], far[2] + 40 * step[0])      # a straight line, where a cubic law would explode
