"""Fits of large splines begin on few cells: what the terms are needs no detail, and steps over all modes cost less there."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lowrank_rl.rng import stream
from lowrank_rl.tensor.bases import Expansion, SplineBasis

FEW = 1200     # unknowns of a spline mode that need no coarser one
CELLS = 4      # of an input that are not halved


def coarser(module: nn.Module) -> nn.Module | None:
    """The same module with larger cells, as few as keep ``FEW`` unknowns per mode; None if it has no more than these."""
    rough = None
    for k, mode in enumerate(module.modes):
        if not (isinstance(mode, Expansion) and isinstance(mode.basis, SplineBasis)):
            continue
        width, basis = mode.weight.shape[-1], mode.basis
        cells = [int(n) for n in basis.cells]
        while _size(cells, basis.degree) * width > FEW and max(cells) > CELLS:
            i = cells.index(max(cells))
            cells[i] = (cells[i] + 1) // 2
        if cells != [int(n) for n in basis.cells]:
            rough = rough or copy.deepcopy(module)
            few = SplineBasis(tuple(cells), basis.degree).to(basis.low.device)
            few.low.copy_(basis.low)
            few.high.copy_(basis.high)
            rough.modes[k] = Expansion(few, module.members, width, generator=stream(0)).to(mode.weight)
    return rough


def refine(rough: nn.Module, module: nn.Module, weights: list[Tensor]) -> list[Tensor]:
    """The rough module's weights, (P, F, D or 1, R) of each mode, as those of the module: the same functions."""
    out = []
    for few, many, weight in zip(rough.modes, module.modes, weights, strict=True):
        if isinstance(many, Expansion) and few.basis.size != many.basis.size:
            weight = torch.einsum("fc,pcdr->pfdr", _prolongation(few.basis, many.basis).to(weight), weight)
        out.append(weight.contiguous())
    return out


def _prolongation(few: SplineBasis, many: SplineBasis) -> Tensor:
    """Coefficients on many cells from those on few, (F, F_few): exact where large cells are split evenly, else the closest."""
    total = torch.ones((1, 1), dtype=torch.float64)
    for a, b in zip(few.cells.tolist(), many.cells.tolist(), strict=True):
        x = torch.linspace(-1, 1, 8 * int(b) + 1, dtype=torch.float64)[:, None]
        line = [SplineBasis((int(n),), few.degree)(x) for n in (a, b)]
        # rounded, because the last bits of LAPACK's answer depend on where in memory it is asked
        total = torch.kron(total, torch.linalg.lstsq(line[1], line[0]).solution.round(decimals=8))
    return total


def _size(cells: list[int], degree: int) -> int:
    size = 1
    for n in cells:
        size *= n + degree
    return size
