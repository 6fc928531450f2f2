"""HalfCheetah against plain mj_step on Gymnasium's own body, and against the return known of random torques."""

import copy
import warnings
from pathlib import Path

import gymnasium
import mujoco
import numpy as np
import pytest
import torch

from lowrank_rl.rl.contracts import EpisodeView
from lowrank_rl.rl.envs.halfcheetah import (
    ENVIRONMENT,
    ended,
    quiet,
    reset,
    reward,
    rollout_states,
    scaled_model,
    step,
)
from lowrank_rl.rl.models.true_env import TrueEnv

pytestmark = pytest.mark.mujoco

AGENTS = torch.tensor(ENVIRONMENT.test_agents, dtype=torch.float64)


def physics(model):
    """All numbers of the compiled model that move it, by name: no pictures, no addresses."""
    kinds = ("body_", "dof_", "jnt_", "geom_", "actuator_", "qpos")
    ours = {name for name in dir(model) if name.startswith(kinds) and name not in ("geom_rgba", "geom_user")}
    arrays = {name: np.asarray(getattr(model, name)) for name in ours}
    floats = {name: array for name, array in arrays.items() if array.dtype.kind == "f"}
    assert len(floats) > 30
    return floats | {name: arrays[name] for name in ("geom_contype", "geom_conaffinity", "geom_condim", "jnt_limited")}


@pytest.fixture(scope="module")
def original():
    """Gymnasium's body, whose XML says settotalmass=14."""
    path = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "half_cheetah.xml"
    with quiet():
        return mujoco.MjModel.from_xml_path(str(path))


@pytest.fixture(autouse=True)
def _clean_folder(tmp_path, monkeypatch):
    """Each test runs in an empty folder, where nothing may appear, and no warning may be given."""
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert list(tmp_path.iterdir()) == []


def plain(original, agent, state, actions):
    """The states (H, 18) after each action by mj_step on a scaled copy of the original body; x starts anywhere."""
    model = copy.copy(original)
    model.body_mass[:] = original.body_mass * float(agent[0])
    model.dof_damping[:] = original.dof_damping * float(agent[1])
    data = mujoco.MjData(model)
    data.qpos[0], data.qpos[1:], data.qvel[:] = 7.5, state[1:9], state[9:]
    path = []
    for action in actions:
        x = data.qpos[0]
        data.ctrl[:] = action
        for _ in range(5):
            mujoco.mj_step(model, data)
        path.append([(data.qpos[0] - x) / 0.05, *data.qpos[1:], *data.qvel])
    return torch.tensor(np.array(path))


def moving_states(count, generator):
    """States in the middle of random motion, feet on the floor, and their agents' covariates."""
    covariates = AGENTS.repeat(-(-count // 5), 1)[:count]
    actions = ENVIRONMENT.actions.sample((count, 25), generator=generator)
    return covariates, rollout_states(covariates, reset(count, generator=generator), actions)[:, -1]


def test_the_body_is_gymnasiums(original):
    ours = scaled_model(1.0, 1.0)
    theirs = physics(original)
    for field, value in physics(ours).items():
        np.testing.assert_allclose(value, theirs[field], rtol=1e-12, atol=1e-14, err_msg=field)
    assert abs(ours.body_mass.sum() - 14) < 1e-12
    assert ours.opt.timestep == original.opt.timestep == 0.01
    assert (ours.opt.integrator, ours.opt.solver, ours.opt.cone) == \
        (original.opt.integrator, original.opt.solver, original.opt.cone)


def test_an_agent_scales_mass_and_damping_and_nothing_else():
    default, scaled = scaled_model(1.0, 1.0), scaled_model(0.3, 1.7)
    np.testing.assert_allclose(scaled.body_mass, 0.3 * default.body_mass)
    np.testing.assert_allclose(scaled.dof_damping, 1.7 * np.array([0, 0, 0, 6, 4.5, 3, 4.5, 3, 1.5]))
    changed = {field for field, value in physics(scaled).items() if (value != physics(default)[field]).any()}
    assert changed == {"body_mass", "dof_damping"}
    assert scaled_model(0.3, 1.7) is scaled


def test_a_step_follows_plain_mj_step_from_anywhere(original):
    generator = torch.Generator().manual_seed(0)
    covariates, state = moving_states(40, generator)
    action = 1.5 * ENVIRONMENT.actions.sample((40,), generator=generator)       # beyond the bounds: clamped
    witness = torch.cat([plain(original, c, s, [a]) for c, s, a in zip(covariates, state, action.numpy(), strict=True)])
    future = step(covariates, state, action)
    assert future.dtype == torch.float64
    assert float((state - future).abs().max()) > 1
    # MuJoCo's contact solver stops at 1e-8, and each simulation's own guess starts it
    torch.testing.assert_close(future, witness, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(step(covariates, state, action.clamp(-1, 1)), future, rtol=0, atol=0)


def test_a_rollout_follows_plain_mj_step_and_the_loop_of_steps(original):
    generator = torch.Generator().manual_seed(1)
    start, actions = reset(5, generator=generator), ENVIRONMENT.actions.sample((5, 12), generator=generator)
    path = rollout_states(AGENTS, start, actions)
    assert path.shape == (5, 12, 18)
    for i in range(5):
        witness = plain(original, AGENTS[i], start[i], actions[i].numpy())
        torch.testing.assert_close(path[i], witness, rtol=1e-6, atol=1e-6)
    state, loop = start, []
    for action in actions.unbind(1):
        state = step(AGENTS, state, action)
        loop.append(state)
    # The simulator goes on with its last contact forces as the solver's first guess; a step starts without
    torch.testing.assert_close(torch.stack(loop, 1), path, rtol=1e-4, atol=1e-4)


def test_the_model_of_the_true_environment_uses_it():
    generator = torch.Generator().manual_seed(2)
    start, actions = reset(2, generator=generator), ENVIRONMENT.actions.sample((2, 3, 4), generator=generator)
    model = TrueEnv(ENVIRONMENT, AGENTS)
    empty = torch.zeros(2, 0)
    context = model.context(EpisodeView(torch.arange(2), torch.tensor([3, 0]), start, empty, empty, empty))
    path = model.rollout(context, start[None], actions)
    assert path.shape == (1, 2, 3, 4 + 1, 18)
    assert torch.equal(path[0, 1, 2, 0], start[1])
    torch.testing.assert_close(path[0, 1, 2, 1:], rollout_states(AGENTS[:1], start[1:], actions[1:, 2])[0], rtol=0, atol=0)


def test_a_batch_is_its_rows_in_any_order_on_any_number_of_threads():
    generator = torch.Generator().manual_seed(3)
    covariates, state = moving_states(15, generator)
    actions = ENVIRONMENT.actions.sample((15, 3), generator=generator)
    path = rollout_states(covariates, state, actions)
    alone = torch.cat([rollout_states(covariates[i:i + 1], state[i:i + 1], actions[i:i + 1]) for i in range(15)])
    assert torch.equal(path, alone)
    order = torch.randperm(15, generator=generator)
    assert torch.equal(rollout_states(covariates[order], state[order], actions[order]), path[order])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(rollout_states(covariates, state, actions), path)
    finally:
        torch.set_num_threads(before)
    assert rollout_states(covariates[:0], state[:0], actions[:0]).shape == (0, 3, 18)


def test_a_diverged_row_is_nan_from_there_on_and_leaves_no_trace(capfd):
    generator = torch.Generator().manual_seed(4)
    covariates, state = moving_states(6, generator)
    actions = ENVIRONMENT.actions.sample((6, 4), generator=generator)
    sane = rollout_states(covariates, state, actions)
    state[1, 12] = torch.nan
    state[2, 12] = 1e8                         # explodes within the step
    state[3, 9:] = 1e11
    actions[4, 2, 0] = torch.nan
    path = rollout_states(covariates, state, actions)
    assert torch.equal(path[[0, 5]], sane[[0, 5]])
    assert path[[1, 2, 3]].isnan().all()
    assert torch.equal(path[4, :2], sane[4, :2])
    assert path[4, 2:].isnan().all()
    assert step(covariates, state, actions[:, 2])[[1, 2, 3, 4]].isnan().all()
    assert reward(state[1], actions[1, 0], path[1, 0]).isnan()
    assert capfd.readouterr() == ("", "")


def test_reward_counts_the_raw_action_and_the_speed_reached():
    state, next_state, action = torch.zeros(2, 3, 18), torch.zeros(2, 3, 18), torch.full((2, 3, 6), 2.0)
    next_state[..., 0] = 5
    torch.testing.assert_close(reward(state, action, next_state), torch.full((2, 3), 5 - 0.1 * 6 * 4.0))
    assert not ended(next_state).any()
    assert ended(next_state).shape == (2, 3)


def test_speed_is_the_way_gone_over_the_step():
    generator = torch.Generator().manual_seed(5)
    covariates, state = moving_states(5, generator)
    path = rollout_states(covariates, state, torch.zeros(5, 1, 6))[:, 0]
    # x_dot (element 9) is the speed of the last instant, the first element the mean over five substeps
    assert not torch.allclose(path[:, 0], path[:, 9])
    assert float((path[:, 0] - (state[:, 9] + path[:, 9]) / 2).abs().max()) < 0.5


def test_reset_is_normal_and_seeded():
    state = reset(4000, generator=torch.Generator().manual_seed(6))
    assert state.shape == (4000, 18)
    assert torch.equal(state, reset(4000, generator=torch.Generator().manual_seed(6)))
    assert not state[:, 0].any()
    assert float((state[:, 1:].std(0) - 0.001).abs().max()) < 0.00006
    assert float(state.mean(0).abs().max()) < 0.00008


def test_random_torques_lose_what_the_paper_says():
    """Table 5's agents trained on random data lose 252 a thousand steps on average; ours of 30 agents: 245 +- 21."""
    generator = torch.Generator().manual_seed(7)
    unit = torch.rand((40, 2), generator=generator, dtype=torch.float64)
    covariates, state = 0.2 + 1.6 * unit, reset(40, generator=generator)
    actions = ENVIRONMENT.actions.sample((40, 1000), generator=generator)
    path = rollout_states(covariates, state, actions)
    assert not path.isnan().any()
    total = reward(path, actions, path).sum(1)
    assert abs(float(total.mean()) + 250) < 50      # three standard errors


def test_the_gymnasium_environment_runs_the_same_simulation(original):
    env = gymnasium.make(ENVIRONMENT.gym_id, mass=0.3, damping=1.7)
    start, _ = env.reset(seed=0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(12)]
    witness = plain(original, (0.3, 1.7), start, actions)
    for action, expected in zip(actions, witness, strict=True):
        state, gained, terminated, truncated, _ = env.step(action)
        torch.testing.assert_close(torch.from_numpy(state), expected, rtol=1e-5, atol=1e-5)
        assert abs(gained - (state[0] - 0.1 * float(action.astype(float) @ action))) < 1e-6
        assert (terminated, truncated) == (False, False)


def test_a_diverged_gymnasium_environment_says_so():
    env = gymnasium.make(ENVIRONMENT.gym_id).unwrapped
    env.reset(seed=0)
    env._simulator._data.qvel[3] = 1e9
    with pytest.raises(RuntimeError, match="expected a finite simulation"):
        env.step(np.zeros(6))
