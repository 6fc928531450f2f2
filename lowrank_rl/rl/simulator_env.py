"""Episodes in a learned simulator as ``gymnasium.Env`` and ``gymnasium.vector.VectorEnv``.

Both are the same episodes, one or many side by side; an episode's numbers depend on its seed alone (of a model that draws next
states: on who runs beside it, too), up to the rounding of a batched call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Box, Discrete, Environment

try:
    from gymnasium.vector import AutoresetMode
    AUTORESET: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}
except ImportError:     # Gymnasium 1.0 has this mode only, and no name for it
    AUTORESET = {}

if TYPE_CHECKING:
    from lowrank_rl.rl.simulator import Simulator

LARGEST = float(np.finfo(np.float32).max)     # of an observation: learners see it as float32


@dataclass(frozen=True)
class Step:
    """What B episodes met in one step."""
    reward: np.ndarray           # (B,) float64
    terminated: np.ndarray       # (B,) bool: an end, or outside what the logs cover
    truncated: np.ndarray        # (B,) bool: the step limit, without an end
    epistemic_std: np.ndarray    # (B,)
    outside: np.ndarray          # (B,) bool


class Play:
    """B episodes, each with its own agent and member. ``begin`` those rows that are new or over, ``step`` all."""

    def __init__(self, simulator: Simulator, agents: Sequence[int]) -> None:
        if isinstance(agents, str) or not hasattr(agents, "__len__"):
            raise ValueError(f"agents: expected a list of them, got {agents!r}; one alone is [{agents!r}]")
        if len(agents) == 0:
            raise ValueError("agents: expected at least one, got none")
        self.simulator, B = simulator, len(agents)
        self.context = simulator.who(agents)
        self.agent = np.array([int(agent) for agent in agents])
        self.rows = torch.arange(B)
        self.state = torch.zeros((B, len(simulator.environment.state_names)), dtype=torch.float64)
        self.member, self.age = torch.zeros(B, dtype=torch.int64), torch.zeros(B, dtype=torch.int64)
        self._noise = torch.Generator()

    def begin(self, rows: Sequence[int], draws: Sequence[np.random.Generator]) -> None:
        """New episodes in these rows, each drawn from its own generator."""
        simulator, first = self.simulator, self.simulator.first
        for row, draw in zip(rows, draws, strict=True):
            generator = torch.Generator().manual_seed(int(draw.integers(2**62)))
            if simulator.starts == "reset":
                self.state[row] = simulator.environment.reset(1, generator=generator)[0]
            else:
                self.state[row] = first[torch.randint(len(first), (), generator=generator)]
            self.member[row] = torch.randint(simulator.model.members, (), generator=generator)
            self.age[row] = 0
            if simulator.model.noisy and row == 0:
                self._noise = generator

    def observed(self) -> np.ndarray:
        """States, (B, D) float64."""
        return self.state.numpy().copy()

    @torch.no_grad()
    def step(self, action: Tensor, over: np.ndarray | None = None) -> Step:
        """action (B, A), checked. What rows that are ``over`` (B,) do is of no consequence."""
        simulator, model, environment = self.simulator, self.simulator.model, self.simulator.environment
        everyone = self.state.expand(model.members, -1, -1)
        predicted = model.predict(self.context, everyone, action)
        apart = simulator.disagreement(predicted)
        if model.noisy:
            predicted = model.predict(self.context, everyone, action, self._noise)
        next_state = predicted[self.member, self.rows]
        number = (next_state.abs() <= LARGEST).all(1) & apart.isfinite()      # written so that NaN is none
        outside = ~((apart <= simulator.limit) & number)
        self.age += 1
        if over is not None:
            outside &= ~torch.from_numpy(over)
        if np.isinf(simulator.limit) and bool(outside.any()):
            row = int(outside.nonzero()[0])
            raise ValueError(f"agent {self.agent[row]}: expected predictions that are finite numbers, got others after "
                             f"{int(self.age[row])} steps of member {int(self.member[row])}; say coverage=5.0, for instance, "
                             "and episodes end where the logs do")
        reward = environment.reward(self.state, action, next_state) - simulator.pessimism * apart
        left = environment.max_steps - self.age + 1
        penalty = left * simulator.worst if simulator.penalty is None else torch.full_like(reward, simulator.penalty)
        reward = torch.where(outside, penalty.to(reward), reward)
        terminated = outside | environment.ended(next_state)
        truncated = ~terminated & (self.age >= environment.max_steps)
        self.state = torch.where(number[:, None], next_state, self.state)
        return Step(*(x.numpy() for x in (reward.double(), terminated, truncated, apart.double(), outside)))


class SimulatedEnv(gymnasium.Env):
    """``Simulator.env``. Observations are float64 states without bounds of their own, actions those of the environment.

    ``reset`` tells ``info["agent"]`` and the ``info["member"]`` that the episode trusts; ``step`` tells
    ``info["epistemic_std"]`` and whether it was ``info["outside"]``. The step limit is the environment's (truncation).

    Raises:
        ValueError: an action outside the action space, an unknown reset option, a prediction that is no number.
        ResetNeeded: a step before the first reset or after the episode's end.
    """

    metadata = {"render_modes": []}    # noqa: RUF012 (Gymnasium's name)

    def __init__(self, simulator: Simulator, agent: int, seed: int | None = None) -> None:
        self._play, self._running = simulator.play([agent]), False
        environment = simulator.environment
        self.observation_space, self.action_space = spaces_of(environment)
        self.spec = EnvSpec("lowrank_rl/Simulator-v0", entry_point=simulator.env, kwargs={"agent": agent, "seed": seed},
                            max_episode_steps=environment.max_steps)
        if seed is not None:
            super().reset(seed=seed)

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        _no_options(options)
        self._play.begin([0], [self.np_random])
        self._running = True
        return self._play.observed()[0], {"agent": int(self._play.agent[0]), "member": int(self._play.member[0])}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self._running:
            raise ResetNeeded("step: expected a running episode, got none; call reset() first")
        met = self._play.step(checked_actions(self._play.simulator.environment.actions, action, ()))
        terminated, truncated = bool(met.terminated[0]), bool(met.truncated[0])
        self._running = not (terminated or truncated)
        info = {"epistemic_std": float(met.epistemic_std[0]), "outside": bool(met.outside[0])}
        return self._play.observed()[0], float(met.reward[0]), terminated, truncated, info


class SimulatedVectorEnv(VectorEnv):
    """``Simulator.vector_env``. Row i with seed s runs the episodes of ``env(agents[i])`` with seed s + i.

    The step after an episode's end begins the next one, whatever the action (Gymnasium's NEXT_STEP, with reward 0).

    Raises:
        ValueError: actions outside the action space, an unknown reset option, a number of seeds that is not that of rows,
            a prediction that is no number.
        ResetNeeded: a step before the first reset.
    """

    def __init__(self, simulator: Simulator, agents: Sequence[int], seed: int | None = None) -> None:
        self._play = simulator.play(agents)
        environment = simulator.environment
        self.num_envs = len(agents)
        self.metadata = {"render_modes": [], **AUTORESET}
        self.single_observation_space, self.single_action_space = spaces_of(environment)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._draws: list[np.random.Generator] | None = None
        self._over: np.ndarray | None = None         # (B,) whose next step begins an episode; None before the first reset
        self._seed = seed

    def reset(self, *, seed: int | Sequence[int | None] | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        _no_options(options)
        if seed is None and self._draws is None:
            seed = self._seed
        if isinstance(seed, str) or not (seed is None or isinstance(seed, Integral) or hasattr(seed, "__len__")):
            raise ValueError(f"seed: expected a whole number or {self.num_envs}, got {seed!r}")
        seeds = [None if seed is None else int(seed) + i for i in range(self.num_envs)] \
            if seed is None or isinstance(seed, Integral) else list(seed)
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: expected one number or {self.num_envs}, got {len(seeds)}")
        for one in seeds:
            if one is not None:
                check.count("seed", one, 0)
        old = self._draws or [None] * self.num_envs
        self._draws = [draw if draw is not None and one is None else seeding.np_random(None if one is None else int(one))[0]
                       for draw, one in zip(old, seeds, strict=True)]
        self._play.begin(range(self.num_envs), self._draws)
        self._over = np.zeros(self.num_envs, dtype=bool)
        return self._play.observed(), self._told(~self._over, agent=self._play.agent, member=self._play.member.numpy())

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        if self._over is None:
            raise ResetNeeded("step: expected running episodes, got none; call reset() first")
        kind, over = self._play.simulator.environment.actions, self._over
        action = checked_actions(kind, actions, (self.num_envs,))
        met = self._play.step(action, over)
        info = self._told(~over, epistemic_std=met.epistemic_std, outside=met.outside)
        if over.any():
            rows = np.flatnonzero(over).tolist()
            self._play.begin(rows, [self._draws[row] for row in rows])
            info |= self._told(over, agent=self._play.agent, member=self._play.member.numpy())
        terminated, truncated = met.terminated & ~over, met.truncated & ~over
        self._over = terminated | truncated
        return self._play.observed(), np.where(over, 0.0, met.reward), terminated, truncated, info

    @staticmethod
    def _told(whom: np.ndarray, **values: np.ndarray) -> dict[str, Any]:
        """Gymnasium's form: an array for each name, and under _name the rows that it is told of."""
        told: dict[str, Any] = {}
        for name, value in values.items():
            told |= {name: np.where(whom, value, np.zeros_like(value)), f"_{name}": whom.copy()}
        return told


def checked_actions(kind: Discrete | Box, action: Any, lead: tuple[int, ...] | None) -> Tensor:
    """Actions as rows (B, A). lead: () for those of one episode, (B,) for a batch, None for a plan of any length.

    Discrete actions come without the axis A or, if there are several, with it; a plan of A = 1 may leave it out.

    Raises:
        ValueError: another shape or kind, outside the bounds, NaN, none at all.
    """
    array = action.detach().cpu().numpy() if isinstance(action, Tensor) else np.asarray(action)
    plan, discrete = lead is None, isinstance(kind, Discrete)
    lead = array.shape[:1] or (0,) if plan else lead
    low, high = (0, kind.n - 1) if discrete else np.float32([kind.low, kind.high])     # as the action space has them
    shapes = [lead, *([(*lead, 1)] if lead else [])] if discrete else \
        [(*lead, kind.size), *([lead] if plan and kind.size == 1 else [])]
    fits = array.shape in shapes and array.size > 0 and array.dtype.kind in ("iu" if discrete else "iuf")
    if fits:
        value = array if discrete else array.astype(np.float32)
        fits = bool(((value >= low) & (value <= high)).all())         # NaN fails
    if not fits:
        expected = f"integers 0..{kind.n - 1}" if discrete else f"numbers in [{kind.low:g}, {kind.high:g}]"
        raise ValueError(f"action: expected {expected} of shape {shapes[0]}, got {_short(array)}; clip or convert it first")
    tensor = torch.from_numpy(np.array(array, dtype=np.float64)).reshape(-1, kind.size)
    return tensor.long() if discrete else tensor.clamp(kind.low, kind.high)


def _short(array: np.ndarray) -> str:
    if array.size <= 8 or array.dtype.kind not in "iuf":
        return f"{array.tolist()!r:.60}"
    return f"{array.dtype} of shape {array.shape} with values {array.min():.4g} to {array.max():.4g}"


def spaces_of(environment: Environment) -> tuple[spaces.Box, spaces.Space]:
    """Of one episode's observations and actions. A learned state may lie anywhere; bounds are finite because Gymnasium warns
    of others."""
    actions = environment.actions
    seen = spaces.Box(-LARGEST, LARGEST, (len(environment.state_names),), np.float64)
    return seen, spaces.Discrete(actions.n) if isinstance(actions, Discrete) else \
        spaces.Box(actions.low, actions.high, (actions.size,), np.float32)


def _no_options(options: dict[str, Any] | None) -> None:
    for name in options or {}:
        raise ValueError(f"reset option {name!r}: expected none; starts and members are drawn from the seed")
