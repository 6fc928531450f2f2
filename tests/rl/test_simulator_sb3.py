"""Simulators under Stable-Baselines3: its own vector form is a loop of single episodes, and its learners learn."""

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from simulated import LINE, Walk, logs
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from lowrank_rl.rl.simulator import Simulator
from lowrank_rl.rl.simulator_sb3 import SimulatedVecEnv


@pytest.fixture(autouse=True)
def _global_streams():
    """Stable-Baselines3 has no others; leave them as they were."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()      # noqa: NPY002
    yield
    torch.set_rng_state(before)
    np.random.set_state(numpy_before)      # noqa: NPY002


def world(**options):
    return Simulator(Walk(), LINE, logs(), starts="logged", **options)


def test_its_checker_finds_nothing_wrong():
    check_env(world().env(1))


@pytest.mark.parametrize("options", [{}, {"coverage": 1.0, "pessimism": 0.5}])
def test_its_vector_form_is_a_loop_of_episodes(options):
    made, who = world(**options), [0, 3, 1]
    one, loop = SimulatedVecEnv(made, who), DummyVecEnv([lambda agent=agent: made.env(agent) for agent in who])
    for vec in (one, loop):
        vec.seed(2)
    np.testing.assert_array_equal(one.reset(), loop.reset())
    assert one.reset_infos == loop.reset_infos
    draw, ends = np.random.default_rng(0), 0
    for _ in range(40):
        actions = draw.integers(0, 3, 3)
        (seen, reward, done, infos), other = one.step(actions), loop.step(actions)
        np.testing.assert_allclose(seen, other[0])
        np.testing.assert_allclose(reward, other[1], rtol=1e-6)
        np.testing.assert_array_equal(done, other[2])
        assert one.reset_infos == loop.reset_infos      # of those that began anew, too
        for mine, theirs in zip(infos, other[3], strict=True):
            assert set(mine) == set(theirs)
            for name, value in mine.items():
                np.testing.assert_allclose(value, theirs[name])
        ends += done.sum()
    assert ends >= 30
    with pytest.raises(ValueError, match=r"action: expected integers 0\.\.2 of shape \(3,\)"):
        one.step(np.array([0, 1, 3]))


def test_learners_train_unchanged_and_learn_the_way():
    """Right is worth more: rewards are the place reached, less 10."""
    made = world()
    options = {"n_steps": 16, "batch_size": 32, "n_epochs": 4, "learning_rate": 0.01, "gamma": 0.0, "seed": 0, "device": "cpu"}
    policy = PPO("MlpPolicy", VecMonitor(SimulatedVecEnv(made, [0] * 16)), **options).learn(2048)
    assert policy.predict(np.array([[0.0], [1.0], [1.9], [5.0]]), deterministic=True)[0].tolist() == [2, 2, 2, 2]
    DQN("MlpPolicy", made.env(0), learning_starts=20, train_freq=8, seed=0, device="cpu").learn(60)
    PPO("MlpPolicy", DummyVecEnv([lambda: made.env(0), lambda: made.env(1)]), **options).learn(32)


def test_what_is_asked_of_single_environments_is_answered_for_all():
    vec = SimulatedVecEnv(world(), [0, 3, 1])
    vec.set_attr("mark", 5)
    assert vec.get_attr("mark") == [5, 5, 5]
    assert vec.get_attr("mark", indices=1) == [5]
    assert len(vec.env_method("reset")) == 3
    assert vec.env_is_wrapped(VecMonitor, indices=[0, 2]) == [False, False]
    for ask in (lambda: vec.set_attr("mark", 6, indices=[0]), lambda: vec.env_method("reset", indices=2)):
        with pytest.raises(ValueError, match=r": expected all of 3 episodes, as they are one object, got indices .*; leave"):
            ask()
    assert vec.mark == 5
