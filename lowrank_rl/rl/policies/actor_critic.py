"""What learners of continuous actions share: actions in [-1, 1], stacked critics, noise by run, a step of one optimizer."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Box

BLOCK = 500     # pairs that networks look at in one go: what lies between two layers then stays in a core's cache


def to_unit(action: Tensor, box: Box) -> Tensor:
    """The same in [-1, 1]."""
    return (action - box.low) * (2 / (box.high - box.low)) - 1


def from_unit(action: Tensor, low: float, high: float) -> Tensor:
    """The inverse."""
    return (low + (action + 1) * ((high - low) / 2)).clamp(low, high)


def values(networks: Mlp, state: Tensor, action: Tensor) -> Tensor:
    """All Q of each run, (G, Q, B). networks: G Q members. state: (G, B, D). action: (G, B, A)"""
    pairs, runs = torch.cat([state, action], 2), len(state)
    heads = len(networks.layers[0].weight) // runs
    blocks = pairs.split(BLOCK, dim=1) if pairs.device.type == "cpu" else [pairs]
    return torch.cat([networks(block.repeat_interleave(heads, dim=0)).view(runs, heads, -1) for block in blocks], 2)


def normal(generators: Sequence[torch.Generator], *shape: int) -> Tensor:
    """Standard normal numbers (G, *shape), each run's from its own generator."""
    return torch.stack([torch.randn(shape, generator=generator, device=generator.device) for generator in generators])


def adam(learning_rate: float, *modules: torch.nn.Module) -> torch.optim.Optimizer:
    """For all their parameters."""
    return torch.optim.Adam([p for module in modules for p in module.parameters()], lr=learning_rate, fused=True)


def descend(optimizer: torch.optim.Optimizer, losses: Tensor) -> None:
    """A step of the optimizer's own parameters down the losses (G,) of runs, which do not share any."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, slope in zip(parameters, torch.autograd.grad(losses.sum(), parameters), strict=True):
        parameter.grad = slope
    optimizer.step()
