"""How a functional CP's predictions change with a continuous coordinate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowrank_rl.tensor.functional import FunctionalCP, check_fitted


def derivative(model: FunctionalCP, X: Sequence[Any], mode: int) -> Any:
    """Derivatives of the members' mean prediction by a continuous mode's coordinate, in raw units: (B, D, inputs).

    Always three axes. A tensor if coordinates are tensors, else NumPy's array. Exact, by automatic differentiation of the
    fitted factors; where these have kinks (networks of relu, splines of degree 1), the derivative to one side.

    Raises:
        ValueError: a model that is not fitted, bad coordinates, no such mode, a Categorical one.
    """
    check_fitted(model)
    module = model.module_
    coordinates = [x.to(module.center.device) for x in model._check_coordinates(X)]
    if isinstance(mode, bool) or mode not in range(len(coordinates)):
        raise ValueError(f"mode: expected 0..{len(coordinates) - 1}, got {mode!r}")
    if module.inputs[mode] == 0:
        continuous = [k for k, inputs in enumerate(module.inputs) if inputs]
        raise ValueError(f"mode: expected a continuous one ({', '.join(map(str, continuous)) or 'this model has none'}), "
                         f"got {mode}, which is Categorical; compare the predictions of its categories instead")
    parts = zip(*(x.split(65536) for x in coordinates), strict=True)      # bounds the memory of hidden layers
    return model._give_back(X, torch.cat([_slopes(module, list(part), mode) for part in parts]))


@torch.enable_grad()
def _slopes(module: torch.nn.Module, coordinates: list[Tensor], mode: int) -> Tensor:
    x = coordinates[mode].requires_grad_()
    mean = module.predict([x if k == mode else c for k, c in enumerate(coordinates)]).mean(0)                  # (B, D)
    sums = mean.sum(0).unbind()              # an entry's prediction depends on its own coordinate only
    return torch.stack([torch.autograd.grad(total, x, retain_graph=True)[0] for total in sums], 1)
