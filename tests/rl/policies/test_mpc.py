"""MPC's values against a model whose numbers can be told by hand, and MPC at work in the true MountainCar."""

import math
from functools import partial

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView, Transitions, fresh_view
from lowrank_rl.rl.data import agents
from lowrank_rl.rl.envs import mountaincar
from lowrank_rl.rl.evaluate import returns
from lowrank_rl.rl.models.persim import Exact, PerSimConfig, fit_persim
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.plan import CEMConfig, Plan, ShootingConfig, cem, random_shooting
from lowrank_rl.rl.policies import mpc as module
from lowrank_rl.rl.policies.mpc import MPC
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.score import mountaincar_bonus
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.rng import stream
from lowrank_rl.tensor import AdamConfig, ALSConfig, Polynomial, Spline
from lowrank_rl.threads import torch_threads

CAR = mountaincar.ENVIRONMENT


class Two:
    """Member 0 believes x += action, member 1 believes x += 3 action; the second dimension counts steps in both."""

    members, past, noisy = 2, 0, False

    def context(self, view):
        return torch.tensor([1.0, 3.0], dtype=torch.float64)[:, None, None].expand(2, len(view.agent), 1)

    def predict(self, context, state, action, generator=None):
        return torch.stack([state[..., 0] + context[..., 0] * action[..., 0], state[..., 1] + 1], dim=-1)

    def rollout(self, context, state, actions, generator=None):
        return rollout(self, context, state, actions)


def last_position(states, actions):
    assert states.shape[-2] == actions.shape[-2] + 1
    return states[..., -1, 0]


def view(state, past=0):
    B, D = state.shape
    return EpisodeView(torch.arange(B), torch.arange(B), state, state.new_zeros((B, past, D)), state.new_zeros((B, past, 1)),
                       torch.zeros((B, past), dtype=torch.bool))


def values(policy, state, plans):
    return policy.values(policy.model.context(view(state)), state, plans)


class Wind(Two):
    """The same, and each next position is a draw around it."""

    noisy = True

    def predict(self, context, state, action, generator=None):
        calm = super().predict(context, state, action)
        if generator is None:
            return calm
        return calm + torch.tensor([1.0, 0.0]) * torch.randn(calm.shape, generator=generator, dtype=calm.dtype)

    def rollout(self, context, state, actions, generator=None):
        return rollout(self, context, state, actions, generator)


STATE = torch.tensor([[10.0, 0.0], [20.0, 0.0]], dtype=torch.float64)
PLANS = torch.tensor([[[1, 1], [2, -1], [0, 0]], [[-1, 0], [0, 4], [1, 1]]]).double()[..., None]   # (B, C, H, A) = (2, 3, 2, 1)


def test_a_value_is_the_mean_over_members():
    """From 10 by +1, +1 the members end at 12 and 16."""
    assert values(MPC(Two(), None, last_position), STATE, PLANS).tolist() == [[14, 12, 10], [18, 28, 24]]


def test_members_are_scored_before_they_are_averaged():
    policy = MPC(Two(), None, lambda states, actions: (states[..., -1, 0] > 13).double())
    assert values(policy, STATE, PLANS)[0].tolist() == [0.5, 0, 0]      # 12 and 16; their mean 14 would be 1


def test_the_score_sees_the_real_state_first_and_the_plan():
    def score(states, actions):
        assert states.shape == (2, 2, 3, 3, 2)
        assert actions.shape == (2, 2, 3, 2, 1)
        assert torch.equal(states[..., 0, :], STATE[:, None].expand(2, 2, 3, 2))
        assert torch.equal(actions, PLANS.expand(2, -1, -1, -1, -1))
        return states[..., -1, 1]
    assert (values(MPC(Two(), None, score), STATE, PLANS) == 2).all()


def test_disagreement_is_paid_per_dimension_and_step():
    """After +1 the members are 2 apart, after +1, +1 4: standard deviations sqrt(2) and 2 sqrt(2)."""
    policy = MPC(Two(), None, last_position, price=torch.tensor([0.5, 100.0]))     # the clock is agreed upon
    root = math.sqrt(2)
    expected = torch.tensor([[14 - 0.5 * 3 * root, 12 - 0.5 * (2 + 1) * root, 10],
                             [18 - 0.5 * 2 * root, 28 - 0.5 * 4 * root, 24 - 0.5 * 3 * root]], dtype=torch.float64)
    torch.testing.assert_close(values(policy, STATE, PLANS), expected)


def test_one_member_cannot_disagree():
    model = TrueEnv(CAR, agents(CAR, 5, seed=0))
    state = CAR.reset(5, generator=stream(0, "mpc"))
    plans = CAR.actions.sample((5, 4, 3), generator=stream(1, "mpc"))
    free, priced = (values(MPC(model, None, mountaincar_bonus, price=price), state, plans)
                    for price in (None, torch.tensor([1e6, 1e6])))
    assert torch.equal(free, priced)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("room", "sizes"), [
    (1, [(1, 1)] * 35),                                                 # a plan has 2 * (3 + 1) * 2 = 16 numbers, a row 80
    (47, [(1, 2), (1, 2), (1, 1)] * 7),
    (79, [(1, 3), (1, 2)] * 7),
    (159, [(1, 5)] * 7),
    (250, [(3, 5), (3, 5), (1, 5)]),
    (560, [(7, 5)]),
])
def test_planning_in_pieces_changes_nothing(monkeypatch, room, sizes, threads):
    draw = stream(0, "pieces")
    state, plans = torch.randn((7, 2), generator=draw), torch.randn((7, 5, 3, 1), generator=draw)
    policy = MPC(Two(), None, last_position, price=torch.tensor([0.1, 0.1]))
    whole, found = values(policy, state, plans), []
    monkeypatch.setattr(module, "ON_CPU", room)
    inner = policy._values
    policy._values = lambda context, state, plans, draw: found.append(plans.shape[:2]) or inner(context, state, plans, draw)
    again = policy.values(policy.model.context(view(state)), state, plans, threads)
    assert torch.equal(again, whole)
    assert sorted(found) == sorted(sizes)


def simulators(what):
    """Trained for a moment, and planned in by many pieces."""
    D, actions, config = {
        "network": (2, Discrete(3), {"state_hidden": (24,)}),
        "spline": (2, Discrete(3), {"exact": Exact(Spline(2, (4, 3)), ALSConfig(sweeps=3))}),
        "polynomial": (3, Discrete(2), {"exact": Exact(Polynomial(3, 2), ALSConfig(sweeps=3))}),
        "deep": (4, Box(-1.0, 1.0, 2), {"state_hidden": (16, 16)}),
    }[what]
    draw = stream(0, "simulators", what)
    agent, state = torch.arange(200) % 5, torch.randn((200, D), generator=draw, dtype=torch.float64)
    action = actions.sample((200,), generator=draw)
    change = 0.03 * (1 + agent[:, None]) * state.sin() + 0.1 * action.double().sum(1, keepdim=True)
    model = fit_persim(Transitions(agent, state, action, state + change), 5, actions, seed=0, config=PerSimConfig(
        rank=2, members=2, action_hidden=(8,), adam=AdamConfig(epochs=2, batch=50), **config))
    if isinstance(actions, Box):
        planner = partial(cem, actions=actions, config=CEMConfig(horizon=6, candidates=90, elites=9, rounds=3))
    else:
        planner = partial(random_shooting, actions=actions, config=ShootingConfig(horizon=6, candidates=90))
    return MPC(model, planner, lambda states, actions: -states[..., 0].square().sum(-1)), 0.3 * state[:4]


@pytest.mark.parametrize("what", ["network", "spline", "polynomial", "deep"])
def test_plans_do_not_depend_on_threads_or_on_the_episodes_beside(monkeypatch, what):
    """Bit for bit, where an episode fills whole pieces."""
    policy, state = simulators(what)
    monkeypatch.setattr(module, "ON_CPU", 2000)

    def plans(rows, threads):
        policy.reset(torch.arange(len(rows)))
        shown = fresh_view(torch.tensor(rows), state[rows], 1)
        generators = [stream(0, row) for row in rows]
        with torch_threads(threads):
            first = [policy.act(shown, generators=generators) for _ in range(2)][1]
        return first, policy._memory
    alone, everyone = plans([2], 1), plans([0, 1, 2, 3], 1)
    for found, row in ((plans([2], 2), 0), (everyone, 2), (plans([0, 1, 2, 3], 3), 2), (plans([3, 2], 2), 1)):
        for x, y in zip(found, alone, strict=True):
            assert torch.equal(x[row:row + 1], y)


def test_the_first_action_is_executed_and_the_memory_follows_its_episode():
    seen = []

    def planner(score, *, memory, generators):
        seen.append(memory)
        step, rows = len(seen), len(generators)
        plans = 100.0 * step + torch.arange(rows)[:, None, None] + torch.tensor([0.0, 0.25])[:, None]
        return Plan(plans, plans + 0.5, step)
    policy = MPC(Two(), planner, last_position)
    policy.reset(torch.arange(3))
    shown = view(torch.zeros((3, 2), dtype=torch.float64))
    assert policy.act(shown, generators=[None] * 3).tolist() == [[100], [101], [102]]
    part = EpisodeView(*(x[[0, 2]] for x in vars(shown).values()))      # episode 1 has ended
    assert policy.act(part, generators=[None] * 2).tolist() == [[200], [201]]
    policy.act(part, generators=[None] * 2)
    assert seen[0] is None
    assert seen[1][:, 0, 0].tolist() == [100.5, 102.5]
    assert seen[2][:, 0, 0].tolist() == [200.5, 201.5]
    assert policy.non_finite == 1 + 2 + 3
    policy.reset(torch.arange(1))
    policy.act(EpisodeView(*(x[:1] for x in vars(shown).values())), generators=[None])
    assert seen[3] is None


def test_lost_predictions_are_counted_and_avoided():
    class Lost(Two):
        def rollout(self, context, state, actions, generator=None):
            future = super().rollout(context, state, actions)
            future[1, actions[None, ..., 0, 0].squeeze(0) == 2] = torch.nan         # one member, first action 2
            return future
    planner = partial(random_shooting, actions=CAR.actions, config=ShootingConfig(horizon=2, candidates=100))
    policy = MPC(Lost(), planner, last_position)
    policy.reset(torch.arange(4))
    chosen = policy.act(view(torch.zeros((4, 2), dtype=torch.float64)), generators=[stream(0, row) for row in range(4)])
    assert chosen.flatten().tolist() == [1, 1, 1, 1]
    assert 90 < policy.non_finite < 180                                 # a third of 400


def test_planning_a_little_ahead_beats_chance_on_mountaincar():
    """The agent of gravity 0.0001, whose engine climbs straight: the fastest way takes about 45 steps."""
    covariates = agents(CAR, 5, seed=0)
    planner = partial(random_shooting, actions=CAR.actions, config=ShootingConfig(horizon=15, candidates=40, stay=(0.0, 0.9)))
    planned, _ = returns(CAR, MPC(TrueEnv(CAR, covariates), planner, mountaincar_bonus), covariates, [0], episodes=3, seed=0)
    chance, _ = returns(CAR, Uniform(CAR.actions), covariates, [0], episodes=3, seed=0)
    assert planned.min() > -80
    assert chance.max() < -120


def test_continuous_plans_are_planned_with_too():
    """CEM's plans are float64 whatever the model's states are."""
    planner = partial(cem, actions=Box(-1.0, 1.0, 1), config=CEMConfig(horizon=2, candidates=100, elites=5, rounds=15))
    policy = MPC(Two(), planner, lambda states, actions: -(states[..., -1, 0] - 1).square())
    policy.reset(torch.arange(2))
    generators = [stream(0, row) for row in range(2)]
    state = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    policy.act(view(state), generators=generators)
    memory = policy._memory
    # minimise (x + s - 1)^2 + (x + 3 s - 1)^2 over s = the sum of two actions: s = -4 (x - 1) / 10
    assert float(memory[0].sum()) == pytest.approx(0.4, abs=0.05)
    assert float(memory[1].sum()) == pytest.approx(-2, abs=0.05)        # -3.2 is out of bounds


def test_a_noisy_model_draws_from_its_rows_generator(monkeypatch):
    """Equal seeds give equal scores, whoever stands beside and however many threads there are; without generators: the mean."""
    policy, context = MPC(Wind(), None, last_position), Wind().context(view(STATE))

    def scores(rows, seeds, threads=1):
        rows = list(rows)
        return policy.values(context[:, rows], STATE[rows], PLANS[rows], threads, [stream(seed, "wind") for seed in seeds])
    both = scores([0, 1], [5, 6])
    assert torch.equal(policy.values(context, STATE, PLANS), values(MPC(Two(), None, last_position), STATE, PLANS))
    assert not torch.isclose(both, policy.values(context, STATE, PLANS)).any()
    assert torch.equal(scores([1], [6]), both[1:])
    assert torch.equal(scores([1, 0], [6, 5]), both.flip(0))
    assert not torch.isclose(scores([1], [7]), both[1:]).any()
    monkeypatch.setattr(module, "ON_CPU", 16)                   # each plan is a piece
    apart = scores([0, 1], [5, 6])
    assert torch.equal(scores([0, 1], [5, 6], threads=3), apart)
    assert len(apart.unique()) == 6


def test_what_a_noisy_model_draws_is_no_disagreement():
    """With a price, its members are followed along their means, and pay for what sets these apart."""
    policies = [MPC(model, None, last_position, price=torch.tensor([0.5, 100.0])) for model in (Wind(), Two())]
    noisy, calm = (policy.values(policy.model.context(view(STATE)), STATE, PLANS, 1, [stream(0, "wind"), stream(1, "wind")])
                   for policy in policies)
    assert torch.equal(noisy, calm)


def test_one_noisy_member_draws_whatever_the_price():
    class Breeze(Wind):
        members = 1

        def context(self, view):
            return super().context(view)[:1]
    free, priced = (MPC(Breeze(), None, last_position, price=price).values(
        Breeze().context(view(STATE)), STATE, PLANS, 1, [stream(0, "wind"), stream(1, "wind")])
        for price in (None, torch.tensor([0.5, 100.0])))
    assert torch.equal(free, priced)
    assert not torch.isclose(free, values(MPC(Breeze(), None, last_position), STATE, PLANS)).any()
