"""The model at the observed entries, and its derivatives for Gauss-Newton: gradient, J'WJ v, J'WJ and its row blocks.

The factors (I_k, R) of all modes are stacked to ``rows`` (S, R), S = sum_k I_k; mode k begins at ``first[k]``. With
d[b, k] = prod_{j != k} A_j[i_j] (R,), the derivative of entry b with respect to row i_k of mode k is d[b, k].
A vector over the parameters is (S, R) too. Every kernel is one pass over the entries, of B K R work except where noted.
"""

import numpy as np

from lowrank_rl.tensor.solvers.compiled import compiled

_SUMS = {"reassoc", "contract", "nsz", "arcp"}   # sums may be reordered, but NaN and Inf stay what they are


@compiled(fastmath=_SUMS)
def predict(index: np.ndarray, first: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """out[b] = model[b]."""
    K, B = index.shape
    R = rows.shape[1]
    for b in range(B):
        total = 0.0
        for r in range(R):
            term = 1.0
            for k in range(K):
                term *= rows[first[k] + index[k, b], r]
            total += term
        out[b] = total


@compiled(fastmath=_SUMS, inline="always")
def _design(index: np.ndarray, first: np.ndarray, rows: np.ndarray, b: int, d: np.ndarray) -> None:
    """d[k] = prod_{j != k} A_j[i_j] without division: the product of those before k, times that of those after."""
    K = len(first)
    for r in range(rows.shape[1]):
        term = 1.0
        for k in range(K):
            d[k, r] = term
            term *= rows[first[k] + index[k, b], r]
        term = 1.0
        for k in range(K - 1, -1, -1):
            d[k, r] *= term
            term *= rows[first[k] + index[k, b], r]


@compiled(fastmath=_SUMS)
def transpose_times(index: np.ndarray, first: np.ndarray, rows: np.ndarray, u: np.ndarray, out: np.ndarray) -> None:
    """out = J' u."""
    K, B = index.shape
    R = rows.shape[1]
    d = np.empty((K, R))
    out[:] = 0.0
    for b in range(B):
        _design(index, first, rows, b, d)
        for k in range(K):
            i = first[k] + index[k, b]
            for r in range(R):
                out[i, r] += u[b] * d[k, r]


@compiled(fastmath=_SUMS)
def gauss_newton_times(index: np.ndarray, first: np.ndarray, rows: np.ndarray, weight: np.ndarray, v: np.ndarray,
                       out: np.ndarray) -> None:
    """out = J' W J v, both halves in one pass."""
    K, B = index.shape
    R = rows.shape[1]
    d = np.empty((K, R))
    out[:] = 0.0
    for b in range(B):
        _design(index, first, rows, b, d)
        total = 0.0
        for k in range(K):
            i = first[k] + index[k, b]
            for r in range(R):
                total += v[i, r] * d[k, r]
        total *= weight[b]
        for k in range(K):
            i = first[k] + index[k, b]
            for r in range(R):
                out[i, r] += total * d[k, r]


@compiled(fastmath=_SUMS)
def row_blocks(index: np.ndarray, first: np.ndarray, rows: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """out (S, R, R): the blocks of J' W J on its diagonal, one per row. B K R^2 work."""
    K, B = index.shape
    R = rows.shape[1]
    d = np.empty((K, R))
    out[:] = 0.0
    for b in range(B):
        _design(index, first, rows, b, d)
        for k in range(K):
            block = out[first[k] + index[k, b]]
            for r in range(R):
                x = weight[b] * d[k, r]
                for s in range(R):
                    block[r, s] += x * d[k, s]


@compiled(fastmath=_SUMS)
def gauss_newton(index: np.ndarray, first: np.ndarray, rows: np.ndarray, weight: np.ndarray, free: np.ndarray,
                 out: np.ndarray) -> None:
    """out (P, P): J' W J of the modes with free[k] >= 0, whose parameters begin at free[k]; the lower triangle only.

    B (K R)^2 / 2 work. ``free`` must ascend with k.
    """
    K, B = index.shape
    R = rows.shape[1]
    d = np.empty((K, R))
    out[:] = 0.0
    for b in range(B):
        _design(index, first, rows, b, d)
        for k in range(K):
            if free[k] < 0:
                continue
            p = free[k] + index[k, b] * R
            for j in range(k + 1):
                if free[j] < 0:
                    continue
                q = free[j] + index[j, b] * R
                for r in range(R):
                    x = weight[b] * d[k, r]
                    for s in range(R):
                        out[p + r, q + s] += x * d[j, s]
