"""Are the terms of a CP the only ones? Kruskal's condition, what rules uniqueness out, and how far terms can move.

Unique always means essentially unique: up to the order of the terms and the scales inside a term.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np

from lowrank_rl.tensor.cp import CP, unit_columns
from lowrank_rl.tensor.observed import numbers

DEPENDENT = 1e-10     # unit columns are dependent when their smallest singular value is below this
PARALLEL = 1e-7       # the sine of the angle between two columns below which they are parallel
SUBSETS = 100_000     # of columns, looked at for one k-rank
TOLD = 4              # groups of parallel columns that are named
ENTRIES = 4_000_000   # of the Jacobian, looked at for the freedom


@dataclass(frozen=True, eq=False)
class Uniqueness:
    """A verdict on the terms of one CP, and why."""

    verdict: str                # "unique", "not unique", "locally unique" or "undecided"
    reasons: tuple[str, ...]    # sentences
    k_ranks: tuple[int, ...]    # per mode
    kruskal: tuple[int, int]    # the sum of the k-ranks, and what it must reach
    freedom: int | None         # see ``freedom``

    def __str__(self) -> str:
        return f"{self.verdict}: {' '.join(self.reasons)}"


def k_rank(factor: np.ndarray) -> int:
    """The largest k such that every k columns are independent (Kruskal 1977).

    Where more than 100000 sets of columns would have to be looked at, a smaller k that is sure.
    """
    factor = numbers("factor", factor)
    if factor.ndim != 2 or not np.isfinite(factor).all():
        raise ValueError(f"factor: expected a finite matrix, got shape {factor.shape}, with NaN or Inf if that is two axes")
    unit, length = unit_columns(factor)
    unit = unit * (length > 0)
    R = unit.shape[1]
    if _smallest(unit[None]) > DEPENDENT:
        return R
    for k in range(1, R):
        if math.comb(R, k) > SUBSETS:
            return k - 1
        sets = combinations(range(R), k)
        while chunk := list(islice(sets, 4096)):
            if _smallest(np.stack([unit[:, list(s)] for s in chunk])) <= DEPENDENT:
                return k - 1
    return R - 1


def kruskal(cp: CP) -> tuple[tuple[int, ...], int, int]:
    """(k-ranks, their sum, 2 R + K - 1): the terms are unique if the sum reaches that. Sufficient, not necessary.

    Source: J. B. Kruskal, Linear Algebra and its Applications 18, 1977, theorem 4a, for K = 3; N. D. Sidiropoulos, R. Bro,
    "On the uniqueness of multilinear decomposition of N-way arrays", Journal of Chemometrics 14(3), 2000, theorem 3.
    """
    ranks = tuple(k_rank(factor) for factor in cp.factors)
    return ranks, sum(ranks), 2 * cp.rank + len(cp.shape) - 1


def freedom(cp: CP) -> int | None:
    """In how many directions the terms can move, to first order, without changing the tensor; scales do not count.

    0 means that no other terms are arbitrarily near: the terms are locally unique. The Jacobian of all entries by all
    factors has R (sum of the sizes - K + 1) columns that could be independent; this is how many of them are not. None where
    it would have more than 4 million entries. At special points it may exceed the dimension of the set of solutions.
    """
    R, K = cp.rank, len(cp.shape)
    reduced = []   # an orthonormal change of basis in each mode leaves it as it is
    outside = 0    # directions off the columns' span are independent of all others, as far as the terms allow
    for k, factor in enumerate(cp.factors):
        unit, length = unit_columns(factor)
        u, s, _ = np.linalg.svd(unit * (length > 0), full_matrices=False)
        inside = max(1, int((s > DEPENDENT * s[0]).sum()))
        reduced.append(u[:, :inside].T @ unit)
        others = [unit_columns(f)[0] for j, f in enumerate(cp.factors) if j != k]
        outside += (len(factor) - inside) * (R - _rank(_khatri_rao(others)))
    shape = [len(f) for f in reduced]
    if math.prod(shape) * R * sum(shape) > ENTRIES:
        return None
    columns = []
    for k, size in enumerate(shape):
        for i in range(size):
            parts = [np.broadcast_to(np.eye(size)[i][:, None], (size, R)) if j == k else f for j, f in enumerate(reduced)]
            columns.append(_khatri_rao(parts))
    jacobian = np.hstack(columns)
    return R * (sum(shape) - K + 1) - _rank(jacobian) + outside


def uniqueness(cp: CP) -> Uniqueness:
    """Whether these terms are the only ones of this rank, and the reasons in plain words.

    "not unique" is said on a necessary condition that fails, with the terms that can be exchanged; "unique" on Kruskal's
    condition; "locally unique" when no other terms are near by.

    Source of the necessary condition: X. Liu, N. D. Sidiropoulos, "Cramer-Rao lower bounds for low-rank decomposition of
    multidimensional arrays", IEEE Transactions on Signal Processing 49(9), 2001.
    """
    R = cp.rank
    ranks, total, needed = kruskal(cp)
    free = freedom(cp)
    size = cp.normalized().weights
    if (size <= 1e-14 * size[0]).any():
        return Uniqueness("not unique", ("A term is zero, so it can be anything in one mode if it stays zero in another.",),
                          ranks, (total, needed), free)
    if R == 1:
        return Uniqueness("unique", ("A single term always is.",), ranks, (total, needed), free)
    reasons = _why_not(cp)
    moves = f"To first order the terms can move in {free} directions without changing an entry." if free else ""
    if reasons:
        return Uniqueness("not unique", (*reasons, *([moves] if moves else [])), ranks, (total, needed), free)
    sum_of = " + ".join(map(str, ranks))
    if total >= needed:
        return Uniqueness("unique", (f"Kruskal's condition holds: {sum_of} = {total} is at least 2R + K - 1 = {needed}.",),
                          ranks, (total, needed), free)
    fails = f"Kruskal's condition, which would suffice, fails: {sum_of} = {total} is below 2R + K - 1 = {needed}."
    if free == 0:
        return Uniqueness("locally unique", (fails, "No other terms are near by: the Jacobian has all the rank that scales "
                                                    "leave."), ranks, (total, needed), free)
    return Uniqueness("undecided", (fails, *([moves] if moves else [])), ranks, (total, needed), free)


def _why_not(cp: CP) -> list[str]:
    """Necessary conditions that fail."""
    K, R = len(cp.shape), cp.rank
    if K == 2:
        return ["A matrix of rank above 1 has many: any invertible mixture of its terms does as well."]
    units = [unit_columns(f)[0] for f in cp.factors]
    parallel = np.stack([np.sqrt(np.maximum(0, 1 - (u.T @ u) ** 2)) < PARALLEL for u in units])   # (K, R, R)
    for shared, told in ((K - 1, "so they can be merged into one: the rank is lower."),
                         (K - 2, "so together they are a matrix, whose terms can be mixed.")):
        reasons = []
        for modes in combinations(range(K), shared):
            same = parallel[list(modes)].all(axis=0)
            for group in sorted({tuple(np.flatnonzero(row).tolist()) for row in same}):
                if len(group) > 1:
                    reasons.append(f"Terms {_listed(r + 1 for r in group)} have parallel columns in mode{'s' * (shared > 1)} "
                                   f"{_listed(modes)}, {told}")
        if reasons:
            more = len(reasons) - TOLD
            return reasons[:TOLD] + ([f"So have {more} more groups of terms."] if more > 0 else [])
    return [f"The terms without mode {k} are dependent, so the columns of mode {k} are not determined." for k in range(K)
            if _rank(_khatri_rao([u for j, u in enumerate(units) if j != k])) < R]


def _listed(items: Iterable[int]) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def _khatri_rao(factors: list[np.ndarray]) -> np.ndarray:
    """Columns are the outer products of columns: (product of the sizes, R)"""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None, :] * factor).reshape(-1, factor.shape[1])
    return product


def _rank(matrix: np.ndarray) -> int:
    return int((np.linalg.svd(matrix, compute_uv=False) > DEPENDENT * np.linalg.norm(matrix, 2)).sum())


def _smallest(matrices: np.ndarray) -> float:
    """The smallest singular value in a stack of matrices, 0 if they have more columns than rows."""
    if matrices.shape[-1] > matrices.shape[-2]:
        return 0.0
    return float(np.linalg.svd(matrices, compute_uv=False).min())
