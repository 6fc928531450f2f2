"""An ensemble as one model: at every step all members start from their mean prediction."""

import torch
from torch import Tensor

from lowrank_rl.rl.contracts import DynamicsModel, EpisodeView
from lowrank_rl.rl.unroll import rollout


class EnsembleMean:
    """A DynamicsModel around another. PerSim's code plans HalfCheetah so, where its paper lets each member roll alone."""

    members = 1

    def __init__(self, model: DynamicsModel) -> None:
        self.model, self.past, self.noisy = model, model.past, model.noisy

    def context(self, view: EpisodeView) -> Tensor:
        """The members' contexts side by side, (1, B, M * E), so that rows stay rows."""
        return self.model.context(view).transpose(0, 1).flatten(1)[None]

    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        members = self.model.members
        apart = context[0].unflatten(1, (members, -1)).transpose(0, 1)
        return self.model.predict(apart, state.expand(members, *state.shape[1:]), action, generator).mean(0, keepdim=True)

    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        return rollout(self, context, state, actions, generator)
