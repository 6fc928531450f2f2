"""The three environments behind Gymnasium's door: registration, covariates, checks and pictures."""

import math
import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from lowrank_rl.rl.envs import cartpole, halfcheetah, mountaincar

MODULES = [mountaincar, cartpole, pytest.param(halfcheetah, marks=pytest.mark.mujoco)]
CONTEXT = {"mountaincar": {"gravity": 0.001}, "cartpole": {"force": 5.0, "length": 0.3},
           "halfcheetah": {"mass": 0.5, "damping": 1.5}}
# Speeds have no bound, so neither has the observation; Gymnasium's own CartPole and HalfCheetah get the same words
ARGUED = "A Box observation space m(ini|axi)mum value is -?infinity"


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rollout(env, seed, steps=5, **reset):
    env.action_space.seed(seed)
    path = [env.reset(seed=seed, **reset)[0]]
    return np.array(path + [env.step(env.action_space.sample())[0] for _ in range(steps)])


@pytest.mark.parametrize("module", MODULES)
def test_gymnasium_finds_nothing_wrong(module):
    # HalfCheetah's pictures need OpenGL: below
    env = gymnasium.make(module.ENVIRONMENT.gym_id, render_mode=None if module is halfcheetah else "rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f".*{ARGUED}")
        check_env(env.unwrapped, skip_render_check=module is halfcheetah)


@pytest.mark.parametrize("module", MODULES)
def test_the_papers_caps_truncate(module):
    assert gymnasium.spec(module.ENVIRONMENT.gym_id).max_episode_steps == module.ENVIRONMENT.max_steps
    env = gymnasium.make(module.ENVIRONMENT.gym_id, max_episode_steps=3)
    env.reset(seed=0)
    ends = [env.step(0 if module is not halfcheetah else np.zeros(6))[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_make_finds_an_environment_by_its_module_without_loading_mujoco():
    code = ("import warnings; warnings.simplefilter('error'); import gymnasium, sys\n"
            "env = gymnasium.make('lowrank_rl.rl.envs:lowrank_rl/HeteroCartPole-v0', force=3)\n"
            "print(env.reset(seed=0)[1], 'mujoco' in sys.modules)")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "{'context': {'force': 3.0, 'length': 0.5}} False"
    assert out.stderr == ""


@pytest.mark.parametrize("module", MODULES)
def test_the_context_acts_and_is_told_but_not_observed(module):
    environment, context = module.ENVIRONMENT, CONTEXT[module.ENVIRONMENT.name]
    default = dict(zip(environment.covariate_names, environment.default_agent, strict=True))
    env, other = gymnasium.make(environment.gym_id), gymnasium.make(environment.gym_id, **context)
    assert env.reset(seed=1)[1]["context"] == default
    assert other.reset(seed=1)[1]["context"] == context
    plain, changed = rollout(env, 1), rollout(other, 1)
    assert env.observation_space.shape == (len(environment.state_names),)
    np.testing.assert_array_equal(plain[0], changed[0])
    assert np.abs(plain[-1] - changed[-1]).max() > 1e-6
    np.testing.assert_array_equal(rollout(env, 1, options={"context": context}), changed)
    np.testing.assert_array_equal(rollout(env, 1), changed)               # it stays, for autoreset's sake
    name = environment.covariate_names[0]
    told = env.reset(options={"context": {name: default[name]}})[1]["context"]
    assert told == context | {name: default[name]}                        # one of them can be changed alone


@pytest.mark.parametrize("module", [mountaincar, cartpole])
def test_the_environment_steps_by_the_pure_functions(module):
    environment, context = module.ENVIRONMENT, CONTEXT[module.ENVIRONMENT.name]
    env = gymnasium.make(environment.gym_id, **context)
    state, _ = env.reset(seed=2)
    env.action_space.seed(2)
    terminated = False
    for _ in range(60):
        action = env.action_space.sample()
        row = torch.from_numpy(state)[None], torch.tensor([[int(action)]])
        expected = environment.step(torch.tensor([list(context.values())], dtype=torch.float64), *row)
        state, gained, terminated, _, _ = env.step(action)
        np.testing.assert_array_equal(state, expected[0].numpy())
        assert gained == float(environment.reward(*row, expected)[0])
        assert terminated == bool(environment.ended(expected)[0])
        if terminated:
            break
    assert terminated == (module is cartpole)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None, True])
def test_a_bad_covariate_is_refused(module, value):
    name = module.ENVIRONMENT.covariate_names[0]
    with pytest.raises(ValueError, match=f"{name}: expected a finite number above 0, got .*default agent has"):
        gymnasium.make(module.ENVIRONMENT.gym_id, **{name: value})
    env = gymnasium.make(module.ENVIRONMENT.gym_id)
    with pytest.raises(ValueError, match=f"{name}: expected a finite number above 0"):
        env.reset(options={"context": {name: value}})


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match="unknown covariate 'gravity'; known: force, length"):
        gymnasium.make("lowrank_rl/HeteroCartPole-v0", gravity=9.8)
    env = gymnasium.make("lowrank_rl/HeteroCartPole-v0")
    with pytest.raises(ValueError, match="unknown covariate 'mass'; known: force, length"):
        env.reset(options={"context": {"mass": 1.0}})
    with pytest.raises(ValueError, match="unknown reset option 'low'; known: context"):
        env.reset(options={"low": -1})
    with pytest.raises(ValueError, match="unknown render mode 'human'; known: rgb_array"):
        gymnasium.make("lowrank_rl/HeteroCartPole-v0", render_mode="human")


@pytest.mark.parametrize("action", [-1, 3, 1.0, np.array([1]), math.nan, "1", None, True])
def test_a_bad_discrete_action_is_refused(action):
    env = gymnasium.make("lowrank_rl/HeteroMountainCar-v0").unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: expected one integer 0\.\.2, got"):
        env.step(action)


@pytest.mark.mujoco
@pytest.mark.parametrize("action", [np.full(6, 1.1), np.full(6, math.nan), np.zeros(5), np.zeros((1, 6)), 0, None,
                                    np.zeros(6, dtype=bool), np.zeros(6, dtype=complex), ["0"] * 6])
def test_a_bad_continuous_action_is_refused(action):
    env = gymnasium.make("lowrank_rl/HeteroHalfCheetah-v0").unwrapped
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action: expected 6 numbers in \[-1, 1\], got"):
        env.step(action)


def test_stepping_without_an_episode_is_refused():
    env = gymnasium.make("lowrank_rl/HeteroCartPole-v0").unwrapped
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        env.step(0)
    env.reset(seed=0)
    while not env.step(0)[2]:
        pass
    with pytest.raises(ResetNeeded, match=r"call reset\(\) first"):
        env.step(0)


@pytest.mark.parametrize("module", [mountaincar, cartpole])
def test_pictures_follow_the_state(module):
    env = gymnasium.make(module.ENVIRONMENT.gym_id, render_mode="rgb_array")
    env.reset(seed=0)
    first = env.render()
    assert first.shape == (400, 600, 3)
    assert first.dtype == np.uint8
    for _ in range(8):
        env.step(0)
    assert (env.render() != first).any()


@pytest.mark.mujoco
def test_halfcheetah_gives_pictures_or_one_clear_error():
    """Whatever OpenGL this process has, often none."""
    env = gymnasium.make("lowrank_rl/HeteroHalfCheetah-v0", render_mode="rgb_array")
    env.reset(seed=0)
    try:
        assert env.render().shape == (480, 480, 3)
    except RuntimeError as error:
        assert "set the environment variable MUJOCO_GL=egl" in str(error)    # noqa: PT017 (either is right)


@pytest.mark.mujoco
def test_halfcheetah_is_drawn_without_a_screen(tmp_path):
    code = ("import gymnasium, lowrank_rl.rl.envs\n"
            "env = gymnasium.make('lowrank_rl/HeteroHalfCheetah-v0', render_mode='rgb_array'); env.reset(seed=0)\n"
            "first = env.render(); env.reset(seed=1, options={'context': {'mass': 0.5}}); env.step([0] * 6)\n"
            "image = env.render()\n"
            "print(image.shape, image.dtype, len(set(image.flat)) > 50, (image != first).any())\n")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                         env={**os.environ, "MUJOCO_GL": "egl"})
    if "EGL" in out.stderr or "OpenGL" in out.stderr:
        pytest.skip("this machine has no EGL")
    assert out.stderr == ""
    assert out.stdout.strip() == "(480, 480, 3) uint8 True True"
    assert list(tmp_path.iterdir()) == []
