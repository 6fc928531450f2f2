"""One exact or damped step: preconditioned conjugate gradients on the normal equations of some modes' weights.

With one mode and no damping this is alternating least squares' exact solve; with all modes and damping it is
Levenberg-Marquardt's. The preconditioner is exact for rows of a category and for modes of few features, where one
iteration therefore suffices; for many features it is (Phi' Phi) x (sum of the others' products), as if the mode's
coordinates were independent of the others'.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowrank_rl.tensor.functional_system import Penalty, System

Solve = Callable[[Tensor], Tensor]


class Linearized:
    """The normal equations of some modes' weights at one point; solved for any damping."""

    def __init__(self, system: System, weights: Sequence[Tensor], penalties: Sequence[Penalty], subset: Sequence[int],
                 grams: dict[int, Tensor]) -> None:
        """``grams`` keeps Phi' Phi between calls."""
        self.system, self.weights, self.penalties, self.subset, self.grams = system, weights, penalties, list(subset), grams
        loss, gradient, self.blocks = system.linearize(weights, self.subset)
        self.loss = loss + sum(p.value(w) for p, w in zip(penalties, weights, strict=True))     # (M,)
        self.gradient = [g + penalties[k].slope(weights[k]) for g, k in zip(gradient, self.subset, strict=True)]

        self.own = [_Block(system, block, weights[k], penalties[k], k, grams)
                    for block, k in zip(self.blocks, self.subset, strict=True)]

    def ridges(self, damping: Tensor) -> list[Tensor]:
        """What ``damping`` (M,) times each mode's mean curvature adds to its diagonal, (M, 1, 1, 1)."""
        return [damping.view(-1, 1, 1, 1) * own.size for own in self.own]

    def solve(self, ridges: list[Tensor] | None = None, *, iterations: int = 30, tolerance: float = 1e-3) -> list[Tensor]:
        """Changes of the weights."""
        ridges = [0.0] * len(self.own) if ridges is None else ridges

        def product(vectors: list[Tensor]) -> list[Tensor]:
            out = self.system.product(self.weights, self.subset, vectors)
            return [o + self.penalties[k].product(v) + ridge * v
                    for o, v, k, ridge in zip(out, vectors, self.subset, ridges, strict=True)]

        solves = [own.solver(ridge) for own, ridge in zip(self.own, ridges, strict=True)]

        def precondition(residual: list[Tensor]) -> list[Tensor]:
            return [solve(r) for solve, r in zip(solves, residual, strict=True)]

        if len(self.own) == 1 and self.own[0].rotation is None:      # the block is the whole matrix
            return precondition([-g for g in self.gradient])
        return _conjugate_gradients(product, [-g for g in self.gradient], precondition, iterations, tolerance)


def _conjugate_gradients(product: Callable[[list[Tensor]], list[Tensor]], right: list[Tensor], precondition: Callable,
                         iterations: int, tolerance: float) -> list[Tensor]:
    """Members are systems of their own; all go on until the last has reduced its residual by ``tolerance``."""
    x = [torch.zeros_like(r) for r in right]
    residual = right
    z = precondition(residual)
    direction, rho = z, _inner(residual, z)
    first = rho
    for _ in range(iterations):
        curved = product(direction)
        alpha = _divide(rho, _inner(direction, curved))
        x = _add(x, alpha, direction)
        residual = _add(residual, -alpha, curved)
        z = precondition(residual)
        before, rho = rho, _inner(residual, z)
        if bool((rho <= tolerance ** 2 * first).all()):
            break
        direction = _add(z, _divide(rho, before), direction)
    return x


def _inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    return sum((x * y).sum((1, 2, 3)) for x, y in zip(a, b, strict=True))


def _add(a: list[Tensor], factor: Tensor, b: list[Tensor]) -> list[Tensor]:
    factor = factor.view(-1, 1, 1, 1)
    return [x + factor * y for x, y in zip(a, b, strict=True)]


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(b > 0, a / b, torch.zeros_like(a))


def _gram(system: System, k: int, grams: dict[int, Tensor]) -> Tensor:
    if k not in grams:
        grams[k] = system.gram(k)
    return grams[k]


class _Block:
    """One mode's own normal matrix, or for many features what stands in for it."""

    def __init__(self, system: System, block: Tensor, weight: Tensor, penalty: Penalty, k: int,
                 grams: dict[int, Tensor]) -> None:
        _, F, _, R = self.shape = weight.shape
        self.rotation = None
        if block.ndim == 4:                                     # rows of a category, (M, F, R, R)
            self.matrix = block + penalty.precision[:, None]
        elif block.shape[-1] == F * R:
            same = torch.eye(R, dtype=block.dtype, device=block.device)
            self.matrix = (block + torch.kron(penalty.roughness, same))[:, None]
        else:
            value, self.rotation = torch.linalg.eigh(block / len(system))
            value = value.clamp(min=1e-12 * value.amax(-1, keepdim=True))
            self.matrix = value[..., None, None] * _gram(system, k, grams)[:, None] + penalty.roughness       # (M, R, F, F)
        self.size = self.matrix.diagonal(dim1=-2, dim2=-1).flatten(1).mean(-1).view(-1, 1, 1, 1)   # its mean curvature

    @property
    def per_row(self) -> bool:
        """Whether the matrix stands for the rows of a category, (M, F, R, R)."""
        return self.rotation is None and self.matrix.shape[1] == self.shape[1] and self.matrix.shape[2] == self.shape[3]

    def damped(self, ridge: Tensor | float) -> Tensor:
        """The matrix with ``ridge`` (M, 1, 1, 1), or 0.0, added to its diagonal."""
        if isinstance(ridge, float):
            return self.matrix
        return self.matrix + ridge * torch.eye(self.matrix.shape[-1], dtype=self.matrix.dtype, device=self.matrix.device)

    def whole(self, ridge: Tensor) -> Tensor:
        """The same in full, (M, F R, F R), of an output."""
        matrix = self.damped(ridge)
        if not self.per_row:
            return matrix[:, 0]
        M, F, R, _ = matrix.shape
        out, row = matrix.new_zeros((M, F, R, F, R)), torch.arange(F, device=matrix.device)
        out[:, row, :, row] = matrix.transpose(0, 1)
        return out.view(M, F * R, F * R)

    def solver(self, ridge: Tensor | float) -> Solve:
        """Solves with ``ridge`` (M, 1, 1, 1), or 0.0, added to the diagonal."""
        factor = cholesky(self.damped(ridge))
        return lambda v: self._apply(v, lambda x: torch.cholesky_solve(x, factor))

    def _apply(self, v: Tensor, what: Solve) -> Tensor:
        """what: (M, G, n, n) matrices applied to (M, G, n, D)"""
        M, F, D, R = self.shape
        if self.rotation is not None:
            rotated = torch.einsum("mfdr,mrs->msfd", v, self.rotation)
            return torch.einsum("msfd,mrs->mfdr", what(rotated), self.rotation)
        if self.per_row:
            return what(v.mT).mT
        flat = v.transpose(2, 3).reshape(M, 1, F * R, D)
        return what(flat).view(M, F, R, D).transpose(2, 3)


def cholesky(matrix: Tensor) -> Tensor:
    """Cholesky factors (M, G, n, n); those matrices that rounding left indefinite get a trace more on their diagonal."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    for trace in (1e-14, 1e-12, 1e-10, 1e-8, 1e-6, 1e-3):
        bad = failed > 0
        if not bool(bad.any()):
            return factor
        scale = matrix[bad].diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=torch.finfo(matrix.dtype).tiny)
        factor[bad], failed[bad] = torch.linalg.cholesky_ex(matrix[bad] + (trace * scale[:, None].expand(
            -1, matrix.shape[-1])).diag_embed())
    if not bool(failed.any()):
        return factor
    raise ValueError("normal equations: expected a positive definite matrix, got one that is not even with 1e-3 of its "
                     "size added to its diagonal; check the data's scale or raise regularization")
