"""Acts uniformly at random: the ``random`` data sets, and the floor that every method must beat."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView


@dataclass(frozen=True)
class Uniform:
    """A Policy without memory."""
    actions: Discrete | Box

    past = 0

    def reset(self, agent: Tensor) -> None:
        pass

    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        return torch.stack([self.actions.sample((), generator=generator) for generator in generators])
