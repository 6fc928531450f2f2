"""Trajectory sampling (PETS, Chua and others 2018, "TS-infinity"): particles that each follow one member to the end."""

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import DynamicsModel, EpisodeView


class Particles:
    """A DynamicsModel around a probabilistic one. Particle p trusts member p // (count / members) at every step.

    With a generator each particle draws its own next states; without one it follows its member's mean.
    """

    noisy = True

    def __init__(self, model: DynamicsModel, count: int) -> None:
        """Raises ValueError for a model that draws nothing, or a count that is no multiple of its members."""
        check.count("count", count)
        if not model.noisy:
            raise ValueError("model: expected one that draws next states, got one that does not; use it without particles")
        if count % model.members:
            raise ValueError(f"count: expected a multiple of {model.members} (members), got {count}")
        self.model, self.members, self.past = model, count, model.past

    @property
    def unit(self) -> Tensor:
        """The model's, (D,)."""
        return self.model.unit

    def context(self, view: EpisodeView) -> Tensor:
        return self.model.context(view).repeat_interleave(self.members // self.model.members, dim=0)

    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        return self._apart(self.model.predict(*self._rows(context, state, action), generator), len(action))

    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        return self._apart(self.model.rollout(*self._rows(context, state, actions), generator), len(actions))

    def _rows(self, context: Tensor, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A member's particles as more rows of it."""
        each = self.members // self.model.members
        context, state = (x.unflatten(0, (-1, each)).flatten(1, 2) for x in (context, state))
        return context, state, action.repeat(each, *[1] * (action.ndim - 1))

    def _apart(self, out: Tensor, rows: int) -> Tensor:
        """The inverse, (members, particles of each * B, ...) -> (particles, B, ...)"""
        return out.unflatten(1, (self.members // self.model.members, rows)).flatten(0, 1)
