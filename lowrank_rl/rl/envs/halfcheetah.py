"""HalfCheetah with its own body mass and joint damping per agent (PerSim, section 5.1 and Table 4), on MuJoCo.

An agent multiplies every body's mass by ``mass`` and every joint's damping by ``damping``. As in PerSim and CaDM
nothing else follows: inertias and MuJoCo's derived constants stay those of the default body.

A state has 18 numbers: the forward speed (x_t - x_(t-1)) / dt, qpos without x (8), qvel (9); metres, radians, seconds.
The world is the same everywhere along x, so the simulator restarts from these 18 alone. A step is 5 substeps of 0.01 s.
A simulation that diverges gives NaN from there on, where MuJoCo by itself would silently start over.
"""

import atexit
import copy
import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import resources

import mujoco
import numpy as np
import torch
from mujoco.rollout import Rollout
from torch import Tensor

from lowrank_rl.rl.contracts import Box, Environment
from lowrank_rl.rl.envs.gym_env import HeteroEnv

SUBSTEPS = 5              # of the simulator per step
SECONDS = 0.05            # per step
CONTROL_COST = 0.1        # reward per squared action. Differs: appendix E prints 0.05, Table 5 and the code have 0.1
NOISE = 0.001             # standard deviation of the first positions and velocities
NQ = NV = 9               # positions and velocities of the simulator
PITCH = 2                 # of the state: how far the body is turned; it grows without end as the cheetah rolls
BOUNDS = (-math.inf,) * 18, (math.inf,) * 18    # of the state

DISTANCE = 3.5            # m, of the camera from the body

_ROWS = 2048              # simulated per call, which bounds the memory of the substeps
_STARTED = 1.0            # s, the clock at the start: MuJoCo restarts a diverged simulation, and its clock, at 0
_LOCK = threading.Lock()  # MuJoCo's warning hook is shared by the process
_LOUD: list = []          # the hooks that those who are quiet now have found, the oldest first


def step(covariates: Tensor, state: Tensor, action: Tensor) -> Tensor:
    """The next state, float64. covariates (B, 2) scales of mass and damping, state (B, 18), action (B, 6) -> (B, 18)"""
    return rollout_states(covariates, state, action[:, None])[:, 0]


def rollout_states(covariates: Tensor, state: Tensor, actions: Tensor) -> Tensor:
    """The H next states of a plan, float64. covariates (B, 2), state (B, 18), actions (B, H, 6) -> (B, H, 18)

    The actuators clamp actions to [-1, 1]. Rows run on ``torch.get_num_threads()`` threads.
    """
    agents, which = covariates.detach().cpu().double().unique(dim=0, return_inverse=True)
    models = [scaled_model(*agent) for agent in agents.tolist()]
    start, control = (x.detach().cpu().double().numpy() for x in (state, actions))
    future = np.empty((*actions.shape[:2], state.shape[1]))
    for first in range(0, len(start), _ROWS):
        rows = slice(first, first + _ROWS)
        future[rows] = _simulate([models[i] for i in which[rows].tolist()], start[rows], control[rows])
    return torch.from_numpy(future).to(state.device)


def reward(state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """Forward speed reached - 0.1 |action|^2. (..., 18), (..., 6), (..., 18) -> (...)

    The action counts as given, not as clamped.
    """
    return next_state[..., 0] - CONTROL_COST * action.square().sum(-1)


def ended(state: Tensor) -> Tensor:
    """Never. (..., 18) -> (...)"""
    return torch.zeros_like(state[..., 0], dtype=torch.bool)


def reset(count: int, *, generator: torch.Generator) -> Tensor:
    """Hanging upright just above the floor, almost at rest, (count, 18)."""
    noise = torch.randn((count, NQ - 1 + NV), generator=generator, device=generator.device, dtype=torch.float64)
    return torch.cat([torch.zeros_like(noise[:, :1]), NOISE * noise], dim=1)


ENVIRONMENT = Environment(
    name="halfcheetah",
    gym_id="lowrank_rl/HeteroHalfCheetah-v0",
    state_names=("speed",
                 "z", "pitch", "bthigh", "bshin", "bfoot", "fthigh", "fshin", "ffoot",
                 "x_dot", "z_dot", "pitch_dot",
                 "bthigh_dot", "bshin_dot", "bfoot_dot", "fthigh_dot", "fshin_dot", "ffoot_dot"),
    actions=Box(-1.0, 1.0, 6),
    covariate_names=("mass", "damping"),
    covariate_low=(0.2, 0.2),
    covariate_high=(1.8, 1.8),
    test_agents=((0.3, 1.7), (1.7, 0.3), (0.3, 0.3), (1.7, 1.7), (1.0, 1.0)),
    policy_training_agents=((0.6, 1.4), (1.4, 0.6), (0.6, 0.6), (1.4, 1.4)),
    default_agent=(1.0, 1.0),
    max_steps=1000,
    reset=reset,
    step=step,
    reward=reward,
    ended=ended,
    rollout=rollout_states,
)


def make(render_mode: str | None = None, **covariates: float) -> HeteroEnv:
    """The Gymnasium environment of the agent with this ``mass`` and ``damping`` scale."""
    return HeteroEnv(ENVIRONMENT, MujocoSimulator(), BOUNDS, round(1 / SECONDS), covariates, render_mode)


class MujocoSimulator:
    """One running simulation, which also remembers where it is and MuJoCo's last contact forces."""

    def __init__(self) -> None:
        self._renderer: mujoco.Renderer | None = None

    def start(self, covariates: Tensor, state: Tensor) -> None:
        self._model = scaled_model(*covariates[0].tolist())
        self._data = mujoco.MjData(self._model)
        self._data.qpos[1:], self._data.qvel[:] = np.split(state[0, 1:].numpy(), [NQ - 1])
        self._data.time = _STARTED
        with quiet():
            mujoco.mj_forward(self._model, self._data)     # puts the body where a picture is taken

    def step(self, action: Tensor) -> Tensor:
        """Raises RuntimeError when the simulation diverges."""
        data = self._data
        before, clock = data.qpos[0], data.time
        data.ctrl[:] = action[0].numpy()
        with quiet():
            mujoco.mj_step(self._model, data, nstep=SUBSTEPS)
        if not abs(data.time - clock - SECONDS) < 0.001:
            raise RuntimeError("HalfCheetah: expected a finite simulation, got one that diverged after "
                               f"{clock - _STARTED:.2f} s; reset it")
        speed = (data.qpos[0] - before) / SECONDS
        return torch.from_numpy(np.concatenate([[speed], data.qpos[1:], data.qvel]))[None]

    def image(self) -> np.ndarray:
        """Raises RuntimeError where OpenGL has no screen to draw to."""
        if self._renderer is None:
            self._renderer = _renderer()
        camera = mujoco.MjvCamera()      # the model's own loses a body that jumps
        camera.lookat[:], camera.distance, camera.azimuth, camera.elevation = self._data.xpos[1], DISTANCE, 90, -8
        self._renderer.update_scene(self._data, camera=camera)
        return self._renderer.render().copy()


@lru_cache(maxsize=2048)     # 32 kB each
def scaled_model(mass: float, damping: float) -> mujoco.MjModel:
    """The agent's body. It is shared: copy it before you change it."""
    model = copy.copy(_default_model())
    model.body_mass[:] *= mass
    model.dof_damping[:] *= damping
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep MuJoCo from printing and from leaving MUJOCO_LOG.TXT in the user's folder; results say what went wrong."""
    with _LOCK:
        _LOUD.append(mujoco.get_mju_user_warning())
        mujoco.set_mju_user_warning(lambda text: None)
    try:
        yield
    finally:
        with _LOCK:
            before = _LOUD.pop()
            if not _LOUD:     # the last to go restores what the first has found
                mujoco.set_mju_user_warning(before)


def _renderer() -> mujoco.Renderer:
    """All agents look alike."""
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")     # GLFW warns of what the error below says
            return mujoco.Renderer(_default_model(), 480, 480)
    except Exception as error:                  # each OpenGL platform has its own
        raise RuntimeError(f"render: expected a working OpenGL, got '{error}'; on a machine without a screen set the "
                           "environment variable MUJOCO_GL=egl (or osmesa) before Python starts") from error


def _simulate(models: list[mujoco.MjModel], start: np.ndarray, control: np.ndarray) -> np.ndarray:
    """start (B, 18), control (B, H, 6) -> (B, H, 18)"""
    B, H, _ = control.shape
    clock = np.full((B, 1), _STARTED)
    physics = np.concatenate([clock, np.zeros_like(clock), start[:, 1:]], axis=1)      # time, qpos with x = 0, qvel
    torque = np.ascontiguousarray(control.repeat(SUBSTEPS, axis=1))
    path = np.empty((B, H * SUBSTEPS, physics.shape[1]))
    with quiet():
        pool, scratch = _pool(os.getpid(), threading.get_ident(), torch.get_num_threads())
        pool.rollout(models, scratch, physics, torque, skip_checks=True, nstep=H * SUBSTEPS, state=path)
    time, x, rest = np.split(path[:, SUBSTEPS - 1::SUBSTEPS], [1, 2], axis=2)
    speed = np.diff(x, axis=1, prepend=0) / SECONDS
    expected = _STARTED + SECONDS * np.arange(1, H + 1)[None]
    # After a warning (a NaN torque is one) MuJoCo's rollout stops the clock; after a restart it runs from 0
    lost = np.abs(time[..., 0] - expected) > 0.001
    return np.where(lost[..., None], np.nan, np.concatenate([speed, rest], axis=2))


@lru_cache(maxsize=1)
def _default_model() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(resources.files(__package__).joinpath("half_cheetah.xml").read_text())


@lru_cache(maxsize=64)
def _pool(process: int, caller: int, threads: int) -> tuple[Rollout, list[mujoco.MjData]]:
    """One per calling thread, because scratch data are written; one per process, because threads do not survive a fork."""
    return Rollout(nthread=threads if threads > 1 else 0), [mujoco.MjData(_default_model()) for _ in range(threads)]


atexit.register(_pool.cache_clear)     # joins the threads while Python still can
