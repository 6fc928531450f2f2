"""The least-squares problem of a functional CP in the weights of its modes, each of which is linear in its own.

With mode k's features Phi_k and weights W_k, entry b is  y_bd = sum_r prod_k (Phi_k W_k)_b[d, r],  where one mode carries the
output axis d. Everything here goes over the entries in chunks, so memory does not grow with them, and serves M members at
once. Weights are (M, F_k, D_k, R): D_k is the number of outputs D for the mode that carries them, else 1.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

CHUNK = 1 << 17          # numbers in the factors of the entries that are worked on at once: they stay in the cache
CACHE = 1 << 29          # bytes of features kept between passes; beyond it they are computed anew each time
EXACT = 400              # unknowns per output up to which a mode's normal matrix is formed and factorised as it is;
EXACT_LOCAL = 2500       # more where few features meet at a time, since forming it then costs little


class Rows:
    """A categorical mode's features: entry b picks row index[b]."""

    def __init__(self, index: Tensor, size: int) -> None:
        self.index, self.size = index, size
        self.present, place, counts = index.unique(return_inverse=True, return_counts=True)
        # sums over a row's entries as a sparse product: torch's index_add_ is 20 times slower here
        pointer, ones = torch.cat([counts.new_zeros(1), counts.cumsum(0)]), torch.ones_like(index, dtype=torch.float64)
        self.sums = sparse(pointer, place.argsort(stable=True), ones, (len(self.present), len(index)))

    def times(self, weight: Tensor) -> Tensor:
        return weight.index_select(1, self.index)

    def add_transposed(self, out: Tensor, values: Tensor) -> None:
        out[:, self.present] += _columns(self.sums, values)

    def dense(self) -> Tensor:
        return nn.functional.one_hot(self.index, self.size).double()[None]

    def empty_normal(self, M: int, R: int) -> Tensor:
        return torch.zeros((M, self.size, R, R), dtype=torch.float64, device=self.index.device)

    def add_normal(self, out: Tensor, slope: Tensor) -> None:
        self.add_transposed(out, slope.mT @ slope)


class Dense:
    """Features (B, F) that all members share, or (M, B, F)."""

    def __init__(self, features: Tensor) -> None:
        self.features = features if features.ndim == 3 else features[None]
        self.size = self.features.shape[-1]

    def times(self, weight: Tensor) -> Tensor:
        return (self.features @ weight.flatten(2)).unflatten(-1, weight.shape[2:])

    def add_transposed(self, out: Tensor, values: Tensor) -> None:
        out += (self.features.mT @ values.flatten(2)).view_as(out)

    def dense(self) -> Tensor:
        return self.features

    def empty_normal(self, M: int, R: int) -> Tensor:
        n = self.size * R if self.size * R <= EXACT else R
        return torch.zeros((M, n, n), dtype=torch.float64, device=self.features.device)

    def add_normal(self, out: Tensor, slope: Tensor) -> None:
        if out.shape[-1] != self.size * slope.shape[-1]:
            out += slope.flatten(1, 2).mT @ slope.flatten(1, 2)
            return
        for d in range(slope.shape[2]):
            columns = (self.features[..., None] * slope[:, :, d, None]).flatten(2)
            out += columns.mT @ columns


class Local:
    """Features (B, F) of which few are not 0, as splines have them."""

    def __init__(self, index: Tensor, value: Tensor, size: int) -> None:
        """index, value (B, S): rows whose first feature is the same share all S of them."""
        B, S = index.shape
        self.size, self.index, self.value = size, index, value
        self.matrix = sparse(torch.arange(0, B * S + 1, S, device=index.device), index.flatten(), value.flatten(), (B, size))

    @cached_property
    def transposed(self) -> Tensor:
        """Its transpose, by rows as well."""
        B, S = self.index.shape
        order = self.index.flatten().argsort(stable=True)
        counts = torch.bincount(self.index.flatten(), minlength=self.size)
        pointer = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return sparse(pointer, order // S, self.value.flatten()[order], (self.size, B))

    @cached_property
    def cells(self) -> tuple[Tensor, list[int], Tensor]:
        """Entries ordered by cell, where each cell's end, and the features of each cell (cells, S)."""
        by_cell = self.index[:, 0].argsort(stable=True)
        counts = self.index[:, 0].unique(return_counts=True)[1].cumsum(0)
        return by_cell, counts.tolist(), self.index[by_cell[counts - 1]]

    def times(self, weight: Tensor) -> Tensor:
        return _columns(self.matrix, weight)

    def add_transposed(self, out: Tensor, values: Tensor) -> None:
        out += _columns(self.transposed, values)

    def dense(self) -> Tensor:
        return self.matrix.to_dense()[None]

    def empty_normal(self, M: int, R: int) -> Tensor:
        n = self.size * R if self.size * R <= EXACT_LOCAL else R
        return torch.zeros((M, n, n), dtype=torch.float64, device=self.value.device)

    def add_normal(self, out: Tensor, slope: Tensor) -> None:
        D, R = slope.shape[2:]
        if out.shape[-1] != self.size * R:
            out += slope.flatten(1, 2).mT @ slope.flatten(1, 2)
            return
        by_cell, ends, index = self.cells
        value = self.value[by_cell][:, :, None]                                      # (b, S, 1)
        unknown = (index[..., None] * R + torch.arange(R, device=out.device)).flatten(1)
        for d in range(D):
            columns = (value * slope[:, by_cell, d, None]).flatten(2)                # (M, b, S R)
            start = 0
            for end, place in zip(ends, unknown, strict=True):
                out[:, place[:, None], place] += columns[:, start:end].mT @ columns[:, start:end]
                start = end


def sparse(pointer: Tensor, index: Tensor, value: Tensor, shape: tuple[int, int]) -> Tensor:
    """A matrix in compressed rows, without torch's word to all users that these are new to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(pointer, index, value, shape, check_invariants=False)


def _columns(matrix: Tensor, weight: Tensor) -> Tensor:
    """A sparse matrix times (M, F, D, R) along F."""
    M, F = weight.shape[:2]
    out = matrix @ weight.transpose(0, 1).reshape(F, -1)
    return out.view(len(out), M, *weight.shape[2:]).transpose(0, 1)


Features = Rows | Dense | Local


@dataclass
class Penalty:
    """What a mode's weights cost beside the errors, summed over entries: a quadratic form.

    Rows of a category: sum_n (w_n - mean)' precision (w_n - mean), precision (M, R, R). Features: tr(W' roughness W).
    """
    mean: Tensor | None = None        # (M, 1, 1, R)
    precision: Tensor | None = None   # (M, R, R)
    roughness: Tensor | None = None   # (F, F)

    def slope(self, weight: Tensor) -> Tensor:
        """Half the gradient, like the weight."""
        if self.roughness is not None:
            return torch.einsum("fg,mgdr->mfdr", self.roughness, weight)
        return torch.einsum("mfdr,mrs->mfds", weight - self.mean, self.precision)

    def product(self, vector: Tensor) -> Tensor:
        """The quadratic form's matrix times a vector."""
        if self.roughness is not None:
            return self.slope(vector)
        return torch.einsum("mfdr,mrs->mfds", vector, self.precision)

    def part(self, members: Tensor) -> Penalty:
        """Of some members."""
        if self.roughness is not None:
            return self
        return Penalty(self.mean[members], self.precision[members])

    def rescale(self, size: Tensor) -> None:
        """The same cost for rows divided by ``size`` (M, 1, 1, R)."""
        self.mean = self.mean / size
        self.precision = self.precision * size[:, 0].mT * size[:, 0]

    def value(self, weight: Tensor) -> Tensor:
        """The cost of each member, (M,)"""
        away = weight if self.mean is None else weight - self.mean
        return (away * self.slope(weight)).sum((1, 2, 3))


class _Kept(dict[int, list[Features]]):
    """Features by the first entry of their chunk, shared by all parts of a system."""
    bytes = 0


class System:
    """Passes over the entries: errors, gradients, Gauss-Newton products, normal matrices."""

    def __init__(self, features: Sequence, target: Tensor, output_mode: int, numbers: int,
                 weight: Tensor | None = None) -> None:
        """``features[k](rows)`` gives mode k's features of a slice of entries; ``numbers`` is M D R; target (B, D).

        ``weight`` (M, B) or (B,) says how often an entry counts.
        """
        self.features, self.target, self.output_mode = features, target, output_mode
        self.weight = None if weight is None else weight[None] if weight.ndim == 1 else weight
        self.chunk = max(512, CHUNK // numbers)
        self.robust: Tensor | None = None    # (M, B), counts instead of ``weight`` where given
        self._kept = _Kept()

    def __len__(self) -> int:
        return len(self.target)

    def chunks(self) -> Iterator[tuple[slice, list[Features]]]:
        """Slices of the entries with the features of every mode there."""
        for start in range(0, len(self), self.chunk):
            rows = slice(start, min(start + self.chunk, len(self)))
            found = self._kept.get(start)
            if found is None:
                found = [make(rows) for make in self.features]
                size = sum(_bytes(x) for x in found)
                if start not in self._kept and self._kept.bytes + size <= CACHE:      # or another thread was first
                    self._kept.bytes += size
                    self._kept[start] = found
            yield rows, found

    def part(self, members: Tensor) -> System:
        """The same entries for some members, who share all features."""
        part = copy.copy(self)
        part.weight, part.robust = (None if w is None else w[members] for w in (self.weight, self.robust))
        return part

    def forget(self) -> None:
        """Features have changed: compute them anew."""
        self._kept = _Kept()

    def errors(self, weights: Sequence[Tensor]) -> Iterator[tuple[slice, list[Features], list[Tensor], Tensor]]:
        """Chunk by chunk: (rows, features, factors of each mode (M, b, D_k, R), prediction - target (M, b, D))."""
        for rows, features in self.chunks():
            factors = [f.times(w) for f, w in zip(features, weights, strict=True)]
            product = factors[0]
            for factor in factors[1:]:
                product = product * factor
            yield rows, features, factors, _sum_terms(product) - self.target[rows]

    def weighted(self, rows: slice | Tensor, values: Tensor, *, root: bool = False) -> Tensor:
        """values (M, b, ...) times the entries' weights, or their square roots."""
        weight = self.weight if self.robust is None else self.robust
        if weight is None:
            return values
        weight = weight[:, rows].sqrt() if root else weight[:, rows]
        return values * weight.reshape(len(weight), -1, *[1] * (values.ndim - 2))

    def loss(self, weights: Sequence[Tensor]) -> Tensor:
        """The weighted sum of squared errors of each member, (M,)"""
        return sum(self.weighted(rows, error.square()).sum((1, 2)) for rows, _, _, error in self.errors(weights))

    def linearize(self, weights: Sequence[Tensor], subset: Sequence[int]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Loss (M,), half its gradient, and of each mode of ``subset`` the matrix that preconditions it.

        That is, for rows of a category (M, F, R, R), their normal matrices; for few features (M, F R, F R), the normal
        matrix; for many (M, R, R), the sum over entries of what multiplies the features.
        """
        loss, blocks = 0, None
        gradient = [torch.zeros_like(weights[k]) for k in subset]
        for rows, features, factors, error in self.errors(weights):
            if blocks is None:
                blocks = [features[k].empty_normal(len(weights[k]), weights[k].shape[-1]) for k in subset]
            loss = loss + self.weighted(rows, error.square()).sum((1, 2))
            error = self.weighted(rows, error)
            for g, block, k in zip(gradient, blocks, subset, strict=True):
                slope = self.slope(factors, k)                                   # (M, b, D or 1, R)
                features[k].add_transposed(g, self._collect(slope * error[..., None], k))
                features[k].add_normal(block, self.weighted(rows, slope, root=True))
        return loss, gradient, blocks

    def product(self, weights: Sequence[Tensor], subset: Sequence[int], vectors: Sequence[Tensor]) -> list[Tensor]:
        """J'J times vectors, J the Jacobian of the predictions in the weights of ``subset``'s modes."""
        out = [torch.zeros_like(v) for v in vectors]
        for rows, features in self.chunks():
            factors = [None if subset == [k] else f.times(w)
                       for k, (f, w) in enumerate(zip(features, weights, strict=True))]
            slopes = [self.slope(factors, k) for k in subset]
            change = sum(_sum_terms(slope * features[k].times(v))
                         for slope, k, v in zip(slopes, subset, vectors, strict=True))
            change = self.weighted(rows, change)
            for total, slope, k in zip(out, slopes, subset, strict=True):
                features[k].add_transposed(total, self._collect(slope * change[..., None], k))
        return out

    def slope(self, factors: Sequence[Tensor | None], k: int) -> Tensor:
        """What multiplies mode k's factors: the product of the others, (M, b, D or 1, R)."""
        product: Tensor | None = None
        for j, factor in enumerate(factors):
            if j != k:
                product = factor if product is None else product * factor
        return product

    def _collect(self, values: Tensor, k: int) -> Tensor:
        """values (M, b, D, R) as mode k's weights want them: outputs kept if it carries them, else summed."""
        return values if k == self.output_mode else _sum_outputs(values)

    def gram(self, k: int) -> Tensor:
        """Phi_k' Phi_k, (1, F, F), or (M, F, F) where members have features of their own."""
        total = 0
        for _, features in self.chunks():
            dense = features[k].dense()
            total = total + dense.mT @ dense
        return total


def _sum_terms(values: Tensor) -> Tensor:
    """(M, b, D, R) -> (M, b, D). A product with ones is several times faster than a sum over a short axis."""
    return values @ values.new_ones(values.shape[-1])


def _sum_outputs(values: Tensor) -> Tensor:
    """(M, b, D, R) -> (M, b, 1, R), likewise."""
    D, R = values.shape[2:]
    eye = torch.eye(R, dtype=values.dtype, device=values.device)
    return (values.flatten(2) @ eye.repeat(D, 1)).unsqueeze(2) if D > 1 else values


def _bytes(features: Features) -> int:
    if isinstance(features, Dense):
        return features.features.nbytes
    return 4 * features.index.nbytes if isinstance(features, Rows) else 5 * features.index.nbytes
