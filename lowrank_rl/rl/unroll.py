"""The one loop that steps a model forward."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lowrank_rl.rl.contracts import DynamicsModel


def unroll(model: DynamicsModel, context: Tensor, state: Tensor, actions: Tensor,
           generator: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (state, action, next_state) for each of the H steps. state (M, B, D), actions (B, H, A)."""
    for action in actions.unbind(dim=1):
        next_state = model.predict(context, state, action, generator)
        yield state, action, next_state
        state = next_state


def rollout(model: DynamicsModel, context: Tensor, state: Tensor, actions: Tensor,
            generator: torch.Generator | None = None) -> Tensor:
    """Start and H next states of C plans per row: (M, B, E), (M, B, D), (B, C, H, A) -> (M, B, C, H + 1, D).

    Members stay apart: each trusts its own state.
    """
    B, C = actions.shape[:2]
    context, state = (x.repeat_interleave(C, dim=1) for x in (context, state))
    steps = unroll(model, context, state, actions.flatten(0, 1), generator)
    return torch.stack([state, *(next_state for _, _, next_state in steps)], dim=2).unflatten(1, (B, C))
