"""The values and contracts that the rooms of ``rl`` share.

Letters: N agents, T steps, D state, A action, M members, H horizon, C candidates, K past steps, B rows, E context, G runs.
A discrete action is one int64 column (A = 1); a continuous one is a row of floats.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Discrete:
    """Actions 0..n-1, as int64 tensors with A = 1."""
    n: int

    size = 1

    def check(self, action: Tensor, rows: int) -> None:
        """Refuse what is not ``rows`` actions of this kind."""
        _refuse(action, rows, self.size, 0, self.n - 1, not action.is_floating_point())

    def sample(self, shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
        """Uniform actions, (*shape, 1)."""
        return torch.randint(self.n, (*shape, 1), generator=generator, device=generator.device)


@dataclass(frozen=True)
class Box:
    """Continuous actions, each component between ``low`` and ``high``."""
    low: float
    high: float
    size: int

    def check(self, action: Tensor, rows: int) -> None:
        """Refuse what is not ``rows`` actions of this kind."""
        _refuse(action, rows, self.size, self.low, self.high, True)

    def sample(self, shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
        """Uniform actions, (*shape, A), float64."""
        unit = torch.rand((*shape, self.size), generator=generator, device=generator.device, dtype=torch.float64)
        return self.low + (self.high - self.low) * unit


def _refuse(action: Tensor, rows: int, size: int, low: float, high: float, fits: bool) -> None:
    if action.shape != (rows, size) or not fits or not bool(((action >= low) & (action <= high)).all()):
        values = f" with values {action.min():.4g} to {action.max():.4g}" if action.numel() else ""
        raise ValueError(f"action: expected {size} components in [{low}, {high}] for each of {rows} rows, got "
                         f"{action.dtype} of shape {tuple(action.shape)}{values}")


@dataclass(frozen=True)
class Environment:
    """A family of systems, one per agent: pure batched functions and the facts of the paper's Table 4.

    ``step``: (covariates (B, E), state (B, D), action (B, A)) -> next_state (B, D), float64, without noise.
    ``reset``: (count, generator) -> state (count, D).
    ``reward``: (state, action, next_state), any leading axes -> those axes.
    ``ended``: (state (..., D)) -> bool (...): the episode terminates on reaching this state. Time limits are elsewhere.
    ``rollout``: (covariates (B, E), state (B, D), actions (B, H, A)) -> (B, H, D), where one call beats H steps.
    """
    name: str
    gym_id: str
    state_names: tuple[str, ...]
    actions: Discrete | Box
    covariate_names: tuple[str, ...]
    covariate_low: tuple[float, ...]
    covariate_high: tuple[float, ...]
    test_agents: tuple[tuple[float, ...], ...]              # units 0-4 of every data set
    policy_training_agents: tuple[tuple[float, ...], ...]   # agents whose trained policies log the data
    default_agent: tuple[float, ...]
    max_steps: int                                          # truncation, in steps
    reset: Callable[..., Tensor]
    step: Callable[[Tensor, Tensor, Tensor], Tensor]
    reward: Callable[[Tensor, Tensor, Tensor], Tensor]
    ended: Callable[[Tensor], Tensor]
    rollout: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Transitions:
    """B single steps, all that a simulator learns from."""
    agent: Tensor        # (B,) int64, 0..N-1
    state: Tensor        # (B, D)
    action: Tensor       # (B, A)
    next_state: Tensor   # (B, D)

    def follows(self) -> Tensor:
        """Whether each row but the first goes on where the one before it ended, by the same agent, (B - 1,) bool."""
        return (self.agent[1:] == self.agent[:-1]) & (self.state[1:] == self.next_state[:-1]).all(1)


@dataclass(frozen=True)
class Experience(Transitions):
    """The same with what a policy learns from."""
    reward: Tensor       # (B,)
    terminated: Tensor   # (B,) bool: next_state ended the episode; a time limit does not


@dataclass(frozen=True)
class EpisodeView:
    """All that a policy may see of B running episodes."""
    episode: Tensor      # (B,) which of the episodes of the last reset each row is
    agent: Tensor        # (B,) int64
    state: Tensor        # (B, D)
    past_state: Tensor   # (B, K, D) oldest first
    past_action: Tensor  # (B, K, A)
    past_mask: Tensor    # (B, K) False where the episode is younger than K steps


def fresh_view(agent: Tensor, state: Tensor, action_size: int) -> EpisodeView:
    """Rows (B,) and (B, D) as episodes without a past."""
    B, D = state.shape
    return EpisodeView(torch.arange(B), agent, state, state.new_zeros(B, 0, D), state.new_zeros(B, 0, action_size),
                       torch.zeros((B, 0), dtype=torch.bool))


class DynamicsModel(Protocol):
    """Predicts the next state; planner and evaluator cannot tell a learned one from the true environment."""
    members: int         # M; 1 for a single network and for the true environment
    past: int            # K, how many past steps its context is made from
    noisy: bool          # with a generator, predictions are draws; planners then give it one

    def context(self, view: EpisodeView) -> Tensor:
        """Who each row is, as far as this model can tell: (M, B, E). Once per real step."""

    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        """(M, B, E), (M, B, D), (B, A) -> next state (M, B, D). Without a generator: the mean."""

    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        """(M, B, E), (M, B, D), (B, C, H, A) -> start and next states of each of C plans per row, (M, B, C, H + 1, D).

        ``unroll.rollout`` unless the model has something faster. A row's plans share its context and start, so a
        model can fold what it knows of the agent once. The dtype may be the model's own. Called by several threads at once.
        """


class Policy(Protocol):
    """Acts in B running episodes at once."""
    past: int            # K, how many past steps it wants to see

    def reset(self, agent: Tensor) -> None:
        """New episodes begin for these (B,) agents; forget the old ones."""

    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        """(B, A), inside the action bounds. One generator per row of the view."""


MODEL = ("members", "past", "context", "rollout")      # what is asked of a DynamicsModel that predicts episodes
POLICY = ("past", "reset", "act")                      # and of a Policy


def keeps(name: str, value: object, promised: tuple[str, ...]) -> None:
    """Refuse a model or policy that lacks something its contract promises.

    Raises:
        ValueError: all that is missing.
    """
    missing = [one for one in promised if not hasattr(value, one)]
    if missing:
        kind = f"the class {value.__name__} itself" if isinstance(value, type) else type(value).__name__
        remedy = "past = 0, if it needs no past steps" if missing == ["past"] else "them"
        raise ValueError(f"{name}: expected one with {', '.join(promised)} (contracts.py), got {kind} without "
                         f"{', '.join(missing)}; add {remedy}")
