"""The pessimistic MDP against hand-made numbers: who halts, what it costs, where episodes begin and how they end."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from lowrank_rl.rl.contracts import Box, Discrete, Environment, Experience
from lowrank_rl.rl.policies.pessimistic import Pessimistic, beginnings, disagreement, threshold
from lowrank_rl.rng import stream

LINE = Environment(
    name="line", gym_id="", state_names=("x",), actions=Discrete(3), covariate_names=("c",), covariate_low=(0.0,),
    covariate_high=(1.0,), test_agents=((1.0,),), policy_training_agents=(), default_agent=(1.0,), max_steps=20,
    reset=lambda count, *, generator: torch.zeros((count, 1), dtype=torch.float64),
    step=lambda covariates, state, action: state + (action - 1),
    reward=lambda state, action, next_state: next_state[..., 0] + 10 * state[..., 0] + 100 * action[..., 0],
    ended=lambda state: state[..., 0] <= -3)


class Walk:
    """x moves by action - 1; beyond x = 2 the second member is off by 1, the third by -2."""

    members, past, noisy = 3, 0, False
    unit = torch.tensor([0.5])

    def context(self, view):
        return view.agent.float().expand(3, -1)[..., None]

    def predict(self, context, state, action, generator=None):
        assert state.shape == (3, len(action), 1) and context.shape == (3, len(action), 1)    # noqa: PT018
        off = torch.tensor([0.0, 1.0, -2.0])[:, None, None]
        return state + (action - 1) + off * (state > 2)


def logs(state=(0.0, 1.0, 2.0), agent=None):
    """Episodes that walk right, each row the start of the next one's."""
    x = torch.tensor(state, dtype=torch.float64)[:, None]
    B = len(x)
    return Experience(torch.zeros(B, dtype=torch.int64) if agent is None else torch.tensor(agent), x,
                      torch.full((B, 1), 2), x + 1, torch.zeros(B), torch.zeros(B, dtype=torch.bool))


def world(data=None, limit=1.0, episodes=3, seed=0, environment=LINE, **options):
    options = {"penalty": -50.0, "horizon": 4, "logged": 0.0, "worth": 1.0, **options}
    return Pessimistic(Walk(), Walk.unit, environment, data or logs(), limit, **options, center=torch.tensor([0.0]),
                       scale=torch.tensor([1.0]), episodes=episodes, generator=stream(seed, "pessimistic test"))


def put(made, *x):
    """Let the episodes be at these places, as the first member sees them."""
    made.reset()
    made.state, made.member = torch.tensor(x, dtype=torch.float32)[:, None], torch.zeros(len(x), dtype=torch.int64)


def test_disagreement_is_the_greatest_distance_in_units():
    predicted = torch.tensor([[[0.0, 0.0], [1.0, 1.0]], [[3.0, 8.0], [1.0, 1.0]], [[0.0, 2.0], [1.0, 1.0]]])
    assert disagreement(predicted, torch.tensor([1.0, 2.0])).tolist() == [5.0, 0.0]
    assert disagreement(predicted[:1], torch.tensor([1.0, 2.0])).tolist() == [0.0, 0.0]


def test_threshold_is_beta_times_the_greatest_disagreement_over_the_logs():
    """Beyond 2 members are 3 apart, 6 units: one step of four."""
    data = logs((0.0, 1.0, 2.0, 3.0))
    for beta in (0.0, 2.0, 3.5):
        assert threshold(Walk(), Walk.unit, data, beta) == pytest.approx(6 * beta, abs=1e-6)


def test_threshold_in_chunks_and_of_evenly_spread_steps(monkeypatch):
    data = logs((0.0, 3.0) * 6)
    whole = threshold(Walk(), Walk.unit, data, 1.0)
    monkeypatch.setattr("lowrank_rl.rl.policies.pessimistic.CHUNK", 5)
    assert threshold(Walk(), Walk.unit, data, 1.0) == pytest.approx(whole)
    monkeypatch.setattr("lowrank_rl.rl.policies.pessimistic.ENOUGH", 6)         # every second: those that agree
    assert threshold(Walk(), Walk.unit, data, 1.0) == 0.0


def test_the_known_pays_the_environments_reward_and_the_unknown_the_penalty_and_ends():
    made = world()
    put(made, 1.0, 3.0, -1.0)
    seen, reward, done, _ = made.step(np.array([2, 2, 1]))
    assert reward.tolist() == [2 + 10 + 200, -50, -1 - 10 + 100]
    assert done.tolist() == [False, True, False]
    assert seen.tolist() == [[2.0], [0.0], [-1.0]]                             # the second begins anew
    assert made.began.tolist() == [False, True, False]


def test_with_an_infinite_limit_nothing_is_unknown_but_what_is_no_number():
    made = world(limit=math.inf)
    put(made, 3.0, math.nan, math.inf)
    _, reward, done, _ = made.step(np.array([2, 2, 2]))
    assert reward.tolist() == [4 + 30 + 200, -50, -50]
    assert done.tolist() == [False, True, True]


def test_ends_and_time_limits_are_told_apart():
    made = world(horizon=2)
    put(made, -2.0, 0.0, 2.0)
    _, _, done, infos = made.step(np.array([0, 1, 2]))
    assert done.tolist() == [True, False, False]
    assert infos == [{}, {}, {}]                                               # an end is no time limit
    _, reward, done, infos = made.step(np.array([1, 2, 2]))
    assert done.tolist() == [False, True, True]
    assert reward.tolist() == [100, 1 + 200, -50]
    assert infos[1] == {"TimeLimit.truncated": True, "terminal_observation": np.array([1.0])}
    assert infos[0] == infos[2] == {}                                          # the unknown in the last step is an end
    told = made.told()
    assert told["reward"] == pytest.approx(((-3 - 20) + (100 + 201) + (3 + 20 + 200 - 50)) / 3)
    assert told["unknown"] == pytest.approx(1 / 3)
    assert made.told() == {"reward": None, "unknown": None}


def test_policies_see_units_and_rewards_are_divided():
    made = world(worth=4.0)
    made.center, made.scale = torch.tensor([1.0]), torch.tensor([2.0])
    put(made, 1.0, 1.0, 1.0)
    assert made.observed().tolist() == [[0.0]] * 3
    seen, reward, _, _ = made.step(np.array([2, 1, 0]))
    assert seen.flatten().tolist() == [0.5, 0.0, -0.5]
    assert reward.tolist() == [212 / 4, (1 + 10 + 100) / 4, 10 / 4]


def test_each_episode_trusts_one_member_drawn_at_its_start():
    made = world(limit=math.inf, episodes=300, horizon=50)
    made.reset()
    assert torch.bincount(made.member, minlength=3).min() > 60
    member = made.member.clone()
    made.state[:] = 10.0
    seen = made.step(np.full(300, 1))[0]
    assert torch.equal(torch.from_numpy(seen)[:, 0], torch.tensor([10.0, 11.0, 8.0])[member])
    assert torch.equal(made.member, member)


def test_logged_episodes_begin_where_nothing_leads():
    """Two agents; the second's walk is broken once by a jump, once by an end."""
    data = logs((0.0, 1.0, 2.0, 5.0, 9.0, 10.0, 11.0), agent=[0, 0, 1, 1, 1, 1, 1])
    ends = data.terminated.clone()
    ends[5] = True
    assert beginnings(replace(data, terminated=ends)).tolist() == [0, 2, 3, 4, 6]


@pytest.mark.parametrize(("logged", "places"), [(0.0, {0.0, 5.0}), (1.0, {0.0, 1.0, 2.0, 5.0, 6.0}), (0.5, None)])
def test_where_episodes_begin(logged, places):
    made = world(logs((0.0, 1.0, 2.0, 5.0, 6.0), agent=[0, 0, 0, 1, 1]), episodes=400, logged=logged)
    made.reset()
    found = made.state[:, 0]
    if places:
        assert set(found.tolist()) == places
    else:
        assert float(((found == 0) | (found == 5)).double().mean()) == pytest.approx(0.5 + 0.5 * 0.4, abs=0.07)
    assert torch.equal(made.context[0, :, 0], (found >= 5).float())            # the agent of the logged state


def test_continuous_actions():
    made = world(environment=replace(LINE, actions=Box(-1.0, 1.0, 1)))
    put(made, 0.0, 1.0, 3.0)
    _, reward, done, _ = made.step(np.array([[0.5], [1.0], [1.0]], dtype=np.float32))
    assert reward.tolist() == [-0.5 + 50, 1 + 10 + 100, -50]
    assert done.tolist() == [False, False, True]
    assert made.action_space.low.tolist() == [-1.0]


def play(made, steps, seed):
    draw = np.random.default_rng(seed)
    return [np.concatenate([x.flatten() for x in made.step(draw.integers(0, 3, 8))[:3]]) for _ in range(steps)]


def test_the_seed_decides_and_what_was_kept_goes_on():
    first, same, other = (world(episodes=8, logged=1.0, seed=seed) for seed in (0, 0, 1))
    starts = [made.reset() for made in (first, same, other)]
    assert np.array_equal(starts[0], starts[1])
    assert not np.array_equal(starts[0], starts[2])
    play(first, 10, 0)
    kept = {name: value.clone() for name, value in first.kept().items()}
    other.restore(kept)
    ahead = play(first, 20, 1)
    assert np.array_equal(ahead, play(other, 20, 1))
    assert first.told() == other.told()
