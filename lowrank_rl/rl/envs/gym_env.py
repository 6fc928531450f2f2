"""Any Environment as a gymnasium.Env: one agent, chosen by its covariates, which never show in the observation."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Discrete, Environment

Bounds = tuple[Sequence[float], Sequence[float]]


class Simulator(Protocol):
    """Steps one agent; ``HeteroEnv`` draws the start and gives the reward."""

    def start(self, covariates: Tensor, state: Tensor) -> None:
        """An episode begins. covariates (1, E), state (1, D)"""

    def step(self, action: Tensor) -> Tensor:
        """(1, A) -> (1, D)"""

    def image(self) -> np.ndarray:
        """(height, width, 3) uint8"""


class PureSimulator:
    """The pure ``step`` of an Environment, and a picture of (covariates (E,), state (D,))."""

    def __init__(self, environment: Environment, draw: Callable[[Tensor, Tensor], np.ndarray]) -> None:
        self._environment, self._draw = environment, draw
        self._covariates, self._state = torch.zeros(1, 0), torch.zeros(1, 0)

    def start(self, covariates: Tensor, state: Tensor) -> None:
        self._covariates, self._state = covariates, state

    def step(self, action: Tensor) -> Tensor:
        self._state = self._environment.step(self._covariates, self._state, action)
        return self._state

    def image(self) -> np.ndarray:
        return self._draw(self._covariates[0], self._state[0])


class HeteroEnv(gymnasium.Env):
    """``gymnasium.make("lowrank_rl/HeteroMountainCar-v0", gravity=0.001)``; observations are float64 states.

    The covariates are keyword arguments, the default agent's where left out; ``reset(options={"context": {...}})``
    changes them from that episode on, and ``info["context"]`` tells them at each reset. The step limit is Gymnasium's
    (truncation).

    Raises:
        ValueError: an unknown covariate, one that is not a positive number, an action outside the action space, an
            unknown render mode or reset option.
        ResetNeeded: a step before the first reset or after the episode terminated.
    """

    metadata = {"render_modes": ["rgb_array"]}    # noqa: RUF012 (Gymnasium's name)

    def __init__(self, environment: Environment, simulator: Simulator, bounds: Bounds, frames_per_second: int,
                 covariates: dict[str, float], render_mode: str | None) -> None:
        if render_mode is not None:
            check.known("render mode", render_mode, self.metadata["render_modes"])
        self.metadata = {**self.metadata, "render_fps": frames_per_second}
        self.render_mode = render_mode
        self.environment, self._simulator = environment, simulator
        self._context = dict(zip(environment.covariate_names, environment.default_agent, strict=True))
        self._change_context(covariates)
        low, high = (np.array(x, dtype=np.float64) for x in bounds)
        self.observation_space = spaces.Box(low, high, dtype=np.float64)
        actions = environment.actions
        self.action_space = spaces.Discrete(actions.n) if isinstance(actions, Discrete) else \
            spaces.Box(actions.low, actions.high, (actions.size,))
        self._state: Tensor | None = None     # (1, D) while an episode runs

    def reset(self, *, seed: int | None = None,
              options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            check.known("reset option", name, ["context"])
        self._change_context(options.get("context", {}))
        generator = torch.Generator().manual_seed(int(self.np_random.integers(2**62)))
        self._state = self.environment.reset(1, generator=generator)
        self._simulator.start(torch.tensor([list(self._context.values())], dtype=torch.float64), self._state)
        return self._state[0].numpy().copy(), {"context": dict(self._context)}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._state is None:
            raise ResetNeeded("step: expected a running episode, got none; call reset() first")
        row = self._checked(action)
        next_state = self._simulator.step(row)
        reward = float(self.environment.reward(self._state, row, next_state)[0])
        terminated = bool(self.environment.ended(next_state)[0])
        self._state = None if terminated else next_state
        return next_state[0].numpy().copy(), reward, terminated, False, {}

    def render(self) -> np.ndarray | None:
        if self.render_mode is None:
            gymnasium.logger.warn("render: this environment was made without a render mode; make it with "
                                  "render_mode='rgb_array'")
            return None
        return self._simulator.image()

    def _checked(self, action: Any) -> Tensor:
        """The action as one row (1, A)."""
        array, space = np.asarray(action), self.environment.actions
        if isinstance(space, Discrete):
            fits = array.shape == () and array.dtype.kind in "iu" and 0 <= array < space.n
            expected = f"one integer 0..{space.n - 1}"
        else:    # NaN fails the comparison
            fits = array.shape == (space.size,) and array.dtype.kind in "iuf" and \
                bool(((array >= space.low) & (array <= space.high)).all())
            expected = f"{space.size} numbers in [{space.low:g}, {space.high:g}]"
        if not fits:
            raise ValueError(f"action: expected {expected}, got {action!r}; clip or convert it first")
        dtype = torch.int64 if isinstance(space, Discrete) else torch.float64
        return torch.from_numpy(np.array(array, dtype=np.float64)).to(dtype).reshape(1, -1)

    def _change_context(self, covariates: dict[str, float]) -> None:
        for name, value in covariates.items():
            check.known("covariate", name, self.environment.covariate_names)
            if isinstance(value, bool) or not isinstance(value, int | float | np.number) or \
                    not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}: expected a finite number above 0, got {value!r}; "
                                 f"the default agent has {self._context[name]:g}")
        self._context |= {name: float(value) for name, value in covariates.items()}
