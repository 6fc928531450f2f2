"""Unfoldings: the matrices that a complete tensor can be laid out as, and how many independent rows each has.

Rows are indexed by some modes, columns by the others. The singular values of such a matrix tell its rank, as far as rounding
or noise allow: a matrix of noise has singular values too, up to about sigma (sqrt m + sqrt n).

Source: T. G. Kolda, B. W. Bader, "Tensor Decompositions and Applications", SIAM Review 51(3), 2009, sec. 2.4 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lowrank_rl.tensor.observed import numbers, sizes

CONFIDENCE = 0.999   # that noise of the stated sigma raises no rank at all
MOST_MODES = 8       # 2^7 - 1 unfoldings


@dataclass(frozen=True, eq=False)
class Unfolding:
    """The tensor as a matrix m x n: its singular values, and the threshold that rounding or noise stay below."""

    rows: tuple[int, ...]      # the modes that index its rows
    columns: tuple[int, ...]   # the others
    shape: tuple[int, int]     # m, n
    singular: np.ndarray       # (min(m, n),) descending
    threshold: float           # units of singular values

    @property
    def rank(self) -> int:
        """How many singular values are above the threshold."""
        return int((self.singular > self.threshold).sum())

    @property
    def full(self) -> bool:
        """Whether the rank is all that the shape allows, so that a larger tensor might show more."""
        return self.rank == min(self.shape)

    @property
    def gap(self) -> float:
        """The smallest singular value that counts over the largest that does not (or the threshold, if that is larger)."""
        if self.rank == 0:
            return 0.0
        rest = self.singular[self.rank] if not self.full else 0.0
        floor = max(float(rest), self.threshold)
        return float(self.singular[self.rank - 1] / floor) if floor > 0 else math.inf

    def tail(self, rank: int) -> float:
        """No tensor of CP rank ``rank`` is nearer than this, in Frobenius norm (Eckart & Young 1936)."""
        return float(np.sqrt(np.sum(self.singular[rank:] ** 2)))


def unfold(tensor: np.ndarray, rows: Sequence[int]) -> np.ndarray:
    """The matrix whose rows are indexed by the modes ``rows``, in that order, and columns by the others in theirs."""
    rows = tuple(rows)
    columns = tuple(k for k in range(tensor.ndim) if k not in rows)
    m = math.prod(tensor.shape[k] for k in rows)
    return tensor.transpose(rows + columns).reshape(m, -1)


def unfoldings(tensor: Any, *, sigma: float | None = None, bipartitions: bool = True) -> tuple[Unfolding, ...]:
    """Singular values and rank of each unfolding: a mode against the others, then (from four modes on) every other split.

    The ranks of the first K are the multilinear rank (K&B sec. 4). No rank of any of them exceeds the CP rank.

    Args:
        tensor: a complete tensor.
        sigma: standard deviation of independent Gaussian noise in each entry. A singular value then counts when it is
            above what such noise alone exceeds in one of 1000 tensors in any of the unfoldings:
            sigma (sqrt m + sqrt n + sqrt(2 log(unfoldings / 0.001))). By Weyl's inequality the rank is then at most that
            of the tensor without noise. None: entries are exact to rounding, and the threshold is the machine precision
            times max(m, n) times the largest singular value.
        bipartitions: False leaves out all but the K modes.

    Source: sqrt m + sqrt n is the Marchenko-Pastur edge; its excess by K. R. Davidson, S. J. Szarek, "Local operator theory,
    random matrices and Banach spaces", 2001, theorem 2.13.

    Raises:
        ValueError: NaN or Inf, fewer than two modes, more than 8 of them with ``bipartitions``, or sigma not above 0.
    """
    tensor = complete(tensor)
    noise(sigma)
    K = tensor.ndim
    if bipartitions and K > MOST_MODES:
        raise ValueError(f"tensor: expected at most {MOST_MODES} modes for all its bipartitions, got {K}; pass "
                         "bipartitions=False")
    splits = [(k,) for k in range(K)]
    if bipartitions:   # one of each pair of complements: the smaller side, or of halves the one with mode 0
        splits += [rows for size in range(2, K // 2 + 1) for rows in combinations(range(K), size)
                   if 2 * size < K or 0 in rows]
    found = []
    for rows in splits:
        matrix = unfold(tensor, rows)
        singular = np.linalg.svd(matrix, compute_uv=False)
        m, n = matrix.shape
        if sigma is None:
            threshold = np.finfo(float).eps * max(m, n) * float(singular[0])
        else:
            threshold = sigma * (math.sqrt(m) + math.sqrt(n) + math.sqrt(2 * math.log(len(splits) / (1 - CONFIDENCE))))
        columns = tuple(k for k in range(K) if k not in rows)
        found.append(Unfolding(rows, columns, (m, n), singular, threshold))
    return tuple(found)


def estimate_sigma(tensor: Any) -> float:
    """The noise's standard deviation, from the median singular value of the squarest unfolding of single modes.

    Right when far fewer than half of that unfolding's singular values are signal; without noise it gives about 0.

        sigma = median singular value / sqrt(long side * median of the Marchenko-Pastur law)

    Source: M. Gavish, D. L. Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", IEEE Transactions on
    Information Theory 60(8), 2014, sec. III-E.
    """
    tensor = complete(tensor)
    matrix = min((unfold(tensor, (k,)) for k in range(tensor.ndim)), key=lambda x: max(x.shape) / min(x.shape))
    short, long = sorted(matrix.shape)
    middle = float(np.median(np.linalg.svd(matrix, compute_uv=False)))
    return middle / math.sqrt(long * _marchenko_pastur_median(short / long))


def _marchenko_pastur_median(ratio: float) -> float:
    """Median eigenvalue of a Wishart matrix W W' / n of m rows, in the limit of large m and n with m / n = ratio."""
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    angle = (np.arange(4000) + 0.5) * math.pi / 4000   # eigenvalue = middle - half width * cos(angle): smooth at both ends
    value = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    share = np.cumsum(np.sin(angle) ** 2 / value)
    return float(np.interp(0.5, share / share[-1], value))


def complete(tensor: Any) -> np.ndarray:
    """A float64 copy of a tensor without holes."""
    array = numbers("tensor", tensor)
    sizes(array.shape)
    bad = ~np.isfinite(array)
    if bad.any():
        raise ValueError(f"tensor: expected finite entries, got {int(bad.sum())} NaN or Inf, the first at "
                         f"{tuple(np.argwhere(bad)[0].tolist())}; a tensor with holes is "
                         "Observed.from_dense(tensor, missing=np.nan), which rank_report takes")
    return array


def noise(sigma: float | None) -> None:
    """Refuse a standard deviation that is not a finite number above 0."""
    if sigma is not None and (isinstance(sigma, bool | str) or not 0 < sigma < math.inf):
        raise ValueError(f"sigma: expected a standard deviation above 0, or None for entries exact to rounding, got {sigma!r}")
