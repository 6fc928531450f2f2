"""Simulated episodes behind Gymnasium's doors: against hand-made numbers, the true environment, and one another."""

import warnings
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from simulated import LINE, Noisy, Walk, logs

import lowrank_rl.rl.envs
from lowrank_rl.rl.contracts import Box, Discrete
from lowrank_rl.rl.data import agents, collect
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.simulator import Simulator
from lowrank_rl.rl.simulator_env import checked_actions

assert lowrank_rl.rl.envs      # imported for the registration of the true ones


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def world(model=None, environment=LINE, **options):
    return Simulator(model or Walk(), environment, logs(environment=environment), **options)


def true_simulator(environment):
    covariates = agents(environment, 5, seed=0)
    logged = collect(environment, covariates, torch.arange(5), Uniform(environment.actions), seed=0, what="simulator test",
                     max_steps=30)
    return Simulator(TrueEnv(environment, covariates), environment, logged), covariates


def put(env, x, member=0):
    """Let a running episode be at x with this member."""
    env.reset(seed=0)
    env._play.state[:], env._play.member[:] = x, member


@pytest.mark.parametrize("options", [{}, {"starts": "logged"}, {"pessimism": 1.0, "coverage": 5.0}])
@pytest.mark.parametrize("model", [Walk(), Noisy()])
def test_gymnasium_finds_nothing_wrong(model, options):
    check_env(world(model, **options).env(2))
    check_env(world(model, replace(LINE, actions=Box(-1.0, 1.0, 1)), **options).env(2, seed=3))


@pytest.mark.parametrize("environment", [mountaincar.ENVIRONMENT, cartpole.ENVIRONMENT])
def test_with_the_true_model_it_is_the_true_environment(environment):
    made, covariates = true_simulator(environment)
    env = made.env(3)
    true = gymnasium.make(environment.gym_id, **dict(zip(environment.covariate_names, covariates[3].tolist(), strict=True)))
    true.reset(seed=0)
    state, info = env.reset(seed=0)
    assert info == {"agent": 3, "member": 0}
    true.unwrapped._state = torch.from_numpy(state)[None]
    true.unwrapped._simulator.start(covariates[3:4], true.unwrapped._state)
    env.action_space.seed(0)
    for _ in range(environment.max_steps):
        action = env.action_space.sample()
        mine, theirs = env.step(action), true.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:4] == theirs[1:4]
        assert mine[4] == {"epistemic_std": 0.0, "outside": False}
        if mine[2] or mine[3]:
            break
    assert mine[2] == (environment is cartpole.ENVIRONMENT)      # the other one met its step limit
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        env.step(action)


def test_reward_disagreement_and_price_by_hand():
    unit = np.std([1, 1, 1, 1.25])
    apart = np.std([0, 1, -2], ddof=1) / unit
    for pessimism in (0.0, 2.0):
        env = world(pessimism=pessimism).env(1)
        put(env, 2.5, member=2)
        seen, reward, terminated, truncated, info = env.step(2)
        assert seen.tolist() == [2.5 + 1 + 0.25 - 2]
        assert info["epistemic_std"] == pytest.approx(apart)
        assert reward == pytest.approx(seen[0] - 10 - pessimism * apart)
        assert (terminated, truncated, info["outside"]) == (False, False, False)
        env.step(0)
        assert env.step(0)[2:4] == (False, False)
        assert env.step(0)[2:4] == (False, True)                       # the fourth of four steps
    put(env, -2.5)
    assert env.step(0)[2:4] == (True, False)


@pytest.mark.parametrize(("penalty", "expected"), [(None, -9.0), (-7.0, -7.0)])
def test_an_episode_ends_outside_what_the_logs_cover(penalty, expected):
    """The least logged reward is that of the step from 0 to 1; on the second step of four, three are left."""
    data = logs(((0.0, 1.0, 2.0),), (0,))
    env = Simulator(Walk(), LINE, data, coverage=1.0, penalty=penalty).env(0)
    put(env, 1.5)
    assert env.step(2)[2:4] == (False, False)
    _, reward, terminated, truncated, info = env.step(2)
    assert (terminated, truncated, info["outside"]) == (True, False, True)
    assert reward == (3 * expected if penalty is None else expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_what_is_no_number_is_refused_or_outside(bad):
    class Broken(Walk):
        def predict(self, context, state, action, generator=None):
            return torch.where(state > 2, bad, super().predict(context, state, action))
    data = logs(((0.0, 1.0, 2.0),), (0,))
    env = Simulator(Broken(), LINE, data).env(0)
    put(env, 2.5, member=1)
    with pytest.raises(ValueError, match="agent 0: expected predictions that are finite numbers, got others after 1 steps"):
        env.step(2)
    env = Simulator(Broken(), LINE, data, coverage=1.0).env(0)
    put(env, 2.5)
    seen, reward, terminated, _, info = env.step(2)
    assert (seen.tolist(), reward, terminated, info["outside"]) == ([2.5], -36.0, True, True)


def test_starts_and_members_are_drawn_and_repeat():
    for starts, places in (("logged", {0.0, 5.0}), ("reset", None)):
        env = world(starts=starts).env(0, seed=4)
        first = [env.reset() for _ in range(60)]
        assert {info["member"] for _, info in first} == {0, 1, 2}
        found = [float(seen[0]) for seen, _ in first]
        assert set(found) == places if places else (len(set(found)) == 60 and 0 <= min(found) <= max(found) <= 1)
        again = world(starts=starts).env(0)
        other = [again.reset(seed=4), *(again.reset() for _ in range(59))]
        assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("options", [{"starts": "logged"}, {"starts": "logged", "pessimism": 0.3, "coverage": 1.0}])
def test_a_vector_of_episodes_is_a_loop_of_them(options):
    who = [0, 3, 1, 1]
    made = world(**options)
    vector, alone = made.vector_env(who), [made.env(agent) for agent in who]
    seen, info = vector.reset(seed=7)
    first = [env.reset(seed=7 + i) for i, env in enumerate(alone)]
    np.testing.assert_array_equal(seen, [x[0] for x in first])
    assert info["member"].tolist() == [x[1]["member"] for x in first]
    assert info["agent"].tolist() == who
    over, draw, ends, limits = [False] * 4, np.random.default_rng(0), 0, 0
    for _ in range(60):
        actions = draw.integers(0, 3, 4)
        seen, reward, terminated, truncated, info = vector.step(actions)
        assert seen in vector.observation_space
        for i, env in enumerate(alone):
            if over[i]:
                state, told = env.reset()
                step = state, 0.0, False, False, told
            else:
                step = env.step(actions[i])
            np.testing.assert_allclose(seen[i], step[0])
            assert (reward[i], terminated[i], truncated[i]) == pytest.approx(step[1:4])
            assert {name: info[name][i] for name in step[4] if info[f"_{name}"][i]} == pytest.approx(step[4])
            assert all(f"_{name}" not in info or not info[f"_{name}"][i]
                       for name in {"epistemic_std", "outside", "agent", "member"} - set(step[4]))
            over[i] = step[2] or step[3]
            ends, limits = ends + step[2], limits + step[3]
    assert (ends > 0) == ("coverage" in options)
    assert limits > 0


def test_the_vector_says_how_it_begins_again():
    from gymnasium import vector
    made = world().vector_env([0, 1])
    if hasattr(vector, "AutoresetMode"):     # not in Gymnasium 1.0
        assert made.metadata["autoreset_mode"] == vector.AutoresetMode.NEXT_STEP
    recorded = gymnasium.wrappers.vector.RecordEpisodeStatistics(made)
    recorded.reset(seed=0)
    ends = [recorded.step(np.array([2, 2])) for _ in range(9)]
    assert [bool(step[3].any()) for step in ends] == [False, False, False, True, False, False, False, False, True]
    assert ends[3][4]["episode"]["l"].tolist() == [4, 4]


def test_seeds_of_the_vector():
    made = world()
    one = made.vector_env([0, 0, 0]).reset(seed=5)[0]
    assert np.array_equal(made.vector_env([0, 0, 0]).reset(seed=[5, 6, 7])[0], one)
    assert np.array_equal(made.vector_env([0, 0, 0], seed=5).reset()[0], one)
    assert not np.array_equal(made.vector_env([0, 0, 0]).reset()[0], one)
    with pytest.raises(ValueError, match="seed: expected one number or 3, got 2"):
        made.vector_env([0, 0, 0]).reset(seed=[1, 2])
    with pytest.raises(ValueError, match=r"seed: expected a whole number or 2, got 1\.5"):
        made.vector_env([0, 0]).reset(seed=1.5)
    with pytest.raises(ValueError, match=r"seed: expected a whole number >= 0, got 1\.5"):
        made.vector_env([0, 0]).reset(seed=[1, 1.5])
    same = [made.vector_env([0, 1]).reset(seed=seed)[0] for seed in (3, np.int64(3), [np.int64(3), 4])]
    np.testing.assert_array_equal(same[0], same[1])
    np.testing.assert_array_equal(same[0], same[2])
    for wrong in (3, None, "ab"):
        with pytest.raises(ValueError, match="agents: expected a list of them, got"):
            made.vector_env(wrong)


def test_draws_of_a_noisy_model_are_not_disagreement():
    env = world(Noisy()).env(0)
    put(env, 0.0)
    seen, _, _, _, info = env.step(1)
    assert info["epistemic_std"] == 0.0
    assert 0 < abs(seen[0]) < 0.5
    assert env.reset(seed=0)[0] is not None
    again = world(Noisy()).env(0)
    put(again, 0.0)
    assert np.array_equal(again.step(1)[0], seen)


@pytest.mark.parametrize("action", [-1, 3, 1.0, np.array([1]), np.nan, "1", None, True])
def test_a_bad_discrete_action_is_refused(action):
    env, vector = world().env(0), world().vector_env([0, 1])
    env.reset(seed=0)
    vector.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: expected integers 0\.\.2 of shape \(\), got"):
        env.step(action)
    with pytest.raises(ValueError, match=r"action: expected integers 0\.\.2 of shape \(2,\), got"):
        vector.step(action)


@pytest.mark.parametrize("action", [np.full(2, 0.2), np.full(2, np.nan), np.zeros(3), np.zeros((1, 2)), 0, None,
                                    np.zeros(2, dtype=bool)])
def test_a_bad_continuous_action_is_refused(action):
    environment = replace(LINE, actions=Box(-0.1, 0.1, 2))
    with pytest.raises(ValueError, match=r"action: expected 2 comp"):
        Simulator(Walk(), environment, logs())

    class Push(Walk):
        def predict(self, context, state, action, generator=None):
            return super().predict(context, state, action.sum(1, keepdim=True))
    data = logs()
    env = Simulator(Push(), environment, replace(data, action=np.zeros((4, 2)))).env(0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: expected numbers in \[-0.1, 0.1\] of shape \(2,\), got"):
        env.step(action)
    env.step(env.action_space.high)      # float32's tenth is more than a tenth


def test_shapes_of_actions():
    one, two = Box(-1.0, 1.0, 1), Box(-1.0, 1.0, 2)
    for kind, action, lead, rows in ((Discrete(3), 2, (), [[2]]), (Discrete(3), [2, 0], (2,), [[2], [0]]),
                                     (Discrete(3), [[2], [0]], (2,), [[2], [0]]), (Discrete(3), [2, 0], None, [[2], [0]]),
                                     (one, [0.5], (), [[0.5]]), (one, [[0.5]], (1,), [[0.5]]),
                                     (one, [0.5, 0], None, [[0.5], [0]]), (two, [0.5, 0], (), [[0.5, 0]]),
                                     (two, [[0.5, 0]], None, [[0.5, 0]])):
        assert checked_actions(kind, action, lead).tolist() == rows
    for kind, action, lead in ((one, [0.5], (1,)), (two, [0.5, 0], None), (two, [[]], None), (Discrete(3), [[2, 0]], (2,))):
        with pytest.raises(ValueError, match="action: expected"):
            checked_actions(kind, action, lead)


def test_stepping_without_an_episode_and_options_are_refused():
    env, vector = world().env(0), world().vector_env([0])
    for each, action in ((env, 0), (vector, [0])):
        with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
            each.step(action)
        with pytest.raises(ValueError, match="reset option 'low': expected none"):
            each.reset(options={"low": 1})
    with pytest.raises(ValueError, match="agents: expected at least one, got none"):
        world().vector_env([])
