"""All modes' weights at once, solved exactly: rows of one category are eliminated, what is left is one dense matrix.

An entry touches one row of a categorical mode, so in the normal equations rows meet other modes' weights only. With the rows'
blocks A, the others' matrix C and what couples them B, the others' changes solve (C - B' A^-1 B) x = c - B' A^-1 a, and the
rows' follow from x. (Bundle adjustment: Triggs, McLauchlan, Hartley, Fitzgibbon, Vision Algorithms 1999, section 6.)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise

import torch
from torch import Tensor

from lowrank_rl.tensor.functional_solve import Linearized, cholesky
from lowrank_rl.tensor.functional_system import Dense, Features, Rows, System, sparse

LARGEST = 4000       # unknowns that are left at most
PAIRED = 100         # features at most of every mode that is left, but the largest
GROUP = 1 << 21      # numbers that couple a group of rows to the rest
KEPT = 1 << 19       # entries whose features in groups are kept
BLOCK = 256          # columns of the matrix at once
MATRICES = 1 << 26   # numbers in the dense matrices of all members


class Elimination:
    """Which mode's rows are eliminated, and their entries in groups of rows; made once per fit."""

    @staticmethod
    def of(line: Linearized) -> Elimination | None:
        """None where conjugate gradients have to do: too many unknowns left, or a mode without its whole normal matrix."""
        rows = [k for k, own in enumerate(line.own) if own.per_row and k != line.system.output_mode]
        mode = max(rows, key=lambda k: line.weights[k].shape[1]) if rows else None
        left = [k for k in range(len(line.weights)) if k != mode]
        sizes = sorted(line.weights[k].shape[1] for k in left)
        unknowns = sum(line.weights[k][0].numel() for k in left)
        if any(line.own[k].rotation is not None for k in left) or max(sizes[:-1], default=0) > PAIRED or unknowns > LARGEST:
            return None
        return Elimination(line, mode, left, max(1, MATRICES // unknowns ** 2))

    def __init__(self, line: Linearized, mode: int | None, left: list[int], members: int) -> None:
        self.mode, self.left, self.members = mode, left, members      # members: how many at once
        self._spans: list[tuple[Tensor, slice]] = []                  # entries of some rows, in the order of their rows
        self._kept: dict[int, _Group] = {}
        if mode is not None:
            self._row = torch.cat([features[mode].index for _, features in line.system.chunks()])
            _, N, _, R = line.weights[mode].shape
            each = max(1, GROUP // (R * sum(line.weights[k][0].numel() for k in left)))
            order, ends = self._row.argsort(stable=True), [0, *torch.bincount(self._row, minlength=N).cumsum(0).tolist()]
            for low in range(0, N, each):
                high = min(low + each, N)
                if ends[high] > ends[low]:
                    self._spans.append((order[ends[low]:ends[high]], slice(low, high)))

    def _groups(self, system: System) -> Iterator[_Group]:
        """Group by group of rows; the first ones are made once only."""
        entries_kept = 0
        for i, (entries, rows) in enumerate(self._spans):
            group = self._kept.get(i) or _Group(system, entries, self._row[entries] - rows.start, rows, self.left)
            entries_kept += len(entries)
            if entries_kept <= KEPT:
                self._kept[i] = group
            yield group

    def solve(self, line: Linearized, ridges: list[Tensor]) -> list[Tensor]:
        """Changes of all modes' weights; ``ridges`` (M, 1, 1, 1) add to each mode's diagonal."""
        everything, right = range(len(line.weights)), [-g for g in line.gradient]
        matrix = self._left(line, ridges)
        changes = [torch.zeros_like(w) for w in line.weights]
        if self.mode is not None:
            E = self.mode
            rows = line.own[E].solver(ridges[E])
            self._eliminate(line, ridges[E], matrix)
            changes[E] = rows(right[E])
            coupled = line.system.product(line.weights, everything, changes)
        flat = torch.cat([_flat(right[k] if self.mode is None else right[k] - coupled[k]) for k in self.left], 1)
        x = torch.cholesky_solve(flat[..., None], cholesky(matrix[:, None])[:, 0])[..., 0]
        start = 0
        for k in self.left:
            M, F, D, R = line.weights[k].shape
            changes[k] = x[:, start:start + D * F * R].view(M, D, F, R).transpose(1, 2)
            start += D * F * R
        if self.mode is not None:
            changes[E] = torch.zeros_like(right[E])
            changes[E] = rows(right[E] - line.system.product(line.weights, everything, changes)[E])
        return changes

    def _left(self, line: Linearized, ridges: list[Tensor]) -> Tensor:
        """The normal matrix of the modes that are left, (M, n, n): unknowns in the order mode, output, feature, term."""
        place, n = {}, 0
        for k in self.left:
            place[k] = n
            n += line.weights[k][0].numel()
        M = len(line.weights[0])
        matrix = line.gradient[0].new_zeros((M, n, n))
        for k in self.left:
            own = line.own[k].whole(ridges[k])
            for start in range(place[k], place[k] + line.weights[k][0].numel(), own.shape[-1]):
                part = slice(start, start + own.shape[-1])
                matrix[:, part, part] = own
        for j, k in combinations(self.left, 2):
            if line.weights[j].shape[1] < line.weights[k].shape[1]:
                j, k = k, j
            cross = self._cross(line, j, k).flatten(4, 6).flatten(1, 3)
            a, b = slice(place[j], place[j] + cross.shape[1]), slice(place[k], place[k] + cross.shape[2])
            matrix[:, a, b], matrix[:, b, a] = cross, cross.mT
        return matrix

    def _cross(self, line: Linearized, j: int, k: int) -> Tensor:
        """What couples two modes' weights, (M, D_j, F_j, R, D_k, F_k, R)."""
        system = line.system
        (M, F, D, R), (_, G, C, _) = line.weights[j].shape, line.weights[k].shape
        out = line.gradient[j].new_zeros((G, M, F, D * C, R * R))
        for rows, features, factors, _ in system.errors(line.weights):
            values = system.weighted(rows, _joint(system, factors, j, k))
            for g, column in enumerate(features[k].dense().movedim(-1, 0)):
                features[j].add_transposed(out[g], values * column[..., None, None])
        return out.view(G, M, F, D, C, R, R).permute(1, 3, 2, 5, 4, 0, 6)

    def _eliminate(self, line: Linearized, ridge: Tensor, matrix: Tensor) -> None:
        """Take B' A^-1 B off the lower triangle of ``matrix``, group by group of rows."""
        system, E = line.system, self.mode
        factor = cholesky(line.own[E].damped(ridge))                                   # (M, N, R, R)
        eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        for group in self._groups(system):
            factors = [f.times(w) for f, w in zip(group.features, line.weights, strict=True)]
            coupling = []
            for k in self.left:
                (M, F, D, R), G = line.weights[k].shape, group.rows.stop - group.rows.start
                values = system.weighted(group.entries, _joint(system, factors, k, E))          # (M, b, D, R R)
                values = group.sums[k](values.flatten(2)).view(M, G, F, D, R, R)
                coupling.append(values.permute(0, 1, 5, 3, 2, 4).reshape(M, G, R, D * F * R))
            reduced = (inverse[:, group.rows] @ torch.cat(coupling, -1)).flatten(1, 2)          # (M, G R, n)
            for low in range(0, matrix.shape[-1], BLOCK):                # the lower triangle is enough
                block = slice(low, low + BLOCK)
                matrix[:, low:, block].baddbmm_(reduced[..., low:].mT, reduced[..., block], alpha=-1)


class _Group:
    """Some rows of the eliminated mode, with the features of their entries and sums over these by row and feature."""

    def __init__(self, system: System, entries: Tensor, row: Tensor, rows: slice, left: list[int]) -> None:
        self.entries, self.rows = entries, rows
        self.features = [make(entries) for make in system.features]
        self.sums = {k: _Sums(row, rows.stop - rows.start, self.features[k]) for k in left}


class _Sums:
    """Sums over entries, each times its features, by row and feature: (M, b, C) -> (M, G, F, C)."""

    def __init__(self, row: Tensor, G: int, features: Features) -> None:
        self.shape, self.dense = (G, features.size), features.features if isinstance(features, Dense) else None
        if self.dense is not None:
            ends = [0, *torch.bincount(row, minlength=G).cumsum(0).tolist()]       # entries come in the order of their rows
            self.spans = [slice(low, high) for low, high in pairwise(ends)]
            return
        one = isinstance(features, Rows)
        index = features.index[:, None] if one else features.index
        value = torch.ones_like(index, dtype=torch.float64) if one else features.value
        key = (row[:, None] * features.size + index).flatten()
        order = key.argsort(stable=True)
        self.places, counts = key[order].unique_consecutive(return_counts=True)
        pointer, entry = torch.cat([counts.new_zeros(1), counts.cumsum(0)]), order // index.shape[1]
        self.matrix = sparse(pointer, entry, value.flatten()[order], (len(self.places), len(row)))

    def __call__(self, values: Tensor) -> Tensor:
        (G, F), (M, b, C) = self.shape, values.shape
        if self.dense is None:
            out = values.new_zeros((G * F, M, C))
            out[self.places] = (self.matrix @ values.transpose(0, 1).reshape(b, M * C)).view(-1, M, C)
            return out.view(G, F, M, C).permute(2, 0, 1, 3)
        out = values.new_zeros((M, G, F, C))
        for row, span in enumerate(self.spans):
            torch.matmul(self.dense[:, span].mT, values[:, span], out=out[:, row])
        return out


def _joint(system: System, factors: list[Tensor], j: int, k: int) -> Tensor:
    """Products of what multiplies the features of modes j and k: (M, b, D, R R), summed over outputs if neither has them."""
    first, second = system.slope(factors, j), system.slope(factors, k)
    if system.output_mode in (j, k):
        return (first[..., :, None] * second[..., None, :]).flatten(3)
    return (first.mT @ second).flatten(2).unsqueeze(2)


def _flat(v: Tensor) -> Tensor:
    """(M, F, D, R) -> (M, D F R)"""
    return v.transpose(1, 2).flatten(1)
