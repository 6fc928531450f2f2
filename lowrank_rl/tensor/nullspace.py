"""Directions in which the factors of a CP can move while the observed entries stay, to first order: the null space of J.

J (B, P) is the Jacobian of the observed entries by the P = R sum_k I_k numbers of the factors. A direction that leaves
the observed entries where they are and moves another entry shows that the data cannot tell that entry, near this point.
(Such a direction always exists for the scales, which may go from one factor to another: they move no entry.)

The functions take arrays, as ``solvers.derivatives`` does: ``index`` (K, B), the factors of all modes stacked to ``rows``
(S, R), S = sum_k I_k, where mode k begins at ``first[k]``; a direction is (S, R) too. So whatever makes the rows, a table
or a function of coordinates, they serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.solvers import derivatives
from lowrank_rl.tensor.solvers.compiled import compiled

ZERO = 1e-9          # singular values of J below this share of the largest are zero; rounding leaves about 1e-13
SUSPECT = 1e-8       # eigenvalues of J'J below this share are computed again from J, which keeps twice the digits
STILL = 3e-8         # an entry moves, if the parts of its derivative along a direction leave more than this share of their sum
CHUNK = 1 << 16      # entries whose movement is held at once, divided by the number of directions


@dataclass(frozen=True, eq=False)
class Point:
    """Where J is taken: the factors, stacked."""
    rows: np.ndarray    # (S, R)
    first: np.ndarray   # (K,) int64: where each mode begins

    @property
    def parameters(self) -> int:
        """P"""
        return self.rows.size


def generic_point(shape: Sequence[int], rank: int, *, seed: int) -> Point:
    """Factors of random sign and size 0.5 to 1.5. What holds here holds almost everywhere, with probability 1."""
    rng = numpy_stream(seed, "nullspace", "point")
    rows = rng.uniform(0.5, 1.5, (sum(shape), rank)) * rng.choice([-1.0, 1.0], (sum(shape), rank))
    return Point(rows, _first(shape))


def point_of(cp: CP) -> Point:
    """A given CP, each term's size shared out evenly among the modes, so that J is well scaled."""
    normal = cp.normalized()
    size = normal.weights ** (1 / len(cp.shape))
    return Point(np.concatenate([factor * size for factor in normal.factors]), _first(cp.shape))


def kernel_index(index: np.ndarray) -> np.ndarray:
    """Coordinates (B, K) as the compiled loops read them: (K, B) int32."""
    return np.ascontiguousarray(index.T, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Spectrum:
    """J's singular values, squared and ascending, with the directions they belong to; the first ``null`` are zero."""
    square: np.ndarray       # (P,)
    directions: np.ndarray   # (S, R, P) orthonormal
    null: int


def spectrum(index: np.ndarray, point: Point, weight: np.ndarray | None = None) -> Spectrum:
    """By the eigenvectors of J'WJ, the small ones corrected by J itself. 9 P^3 work and 8 P^2 bytes, three times."""
    rows, first, P = point.rows, point.first, point.parameters
    B = index.shape[1]
    gram = np.zeros((P, P))
    derivatives.gauss_newton(index, first, rows, np.ones(B) if weight is None else weight, first * rows.shape[1], gram)
    square, vectors = scipy.linalg.eigh(gram, lower=True, overwrite_a=True, check_finite=False, driver="evd")
    top = square[-1]
    few = int(np.searchsorted(square, SUSPECT * top))
    # An eigenvalue of J'J is off by rounding of the largest, a singular value of J by the root of that: 1e-8. But these
    # few directions span the right space up to 1e-12, so J on that space alone has their singular values to 1e-12.
    inner = np.zeros((few, few))
    suspects = np.ascontiguousarray(vectors[:, :few]).reshape(*rows.shape, few)
    if few:
        step = max(1, CHUNK * 64 // few)
        for begin in range(0, B, step):
            some = slice(begin, begin + step)
            moved, _ = movement(index[:, some], point, suspects)
            inner += moved.T @ (moved if weight is None else weight[some, None] * moved)
        square[:few], mix = np.linalg.eigh(inner)
        vectors[:, :few] = vectors[:, :few] @ mix
    null = int(np.count_nonzero(square[:few] <= ZERO**2 * top))
    return Spectrum(square, vectors.reshape(*rows.shape, P), null)


def null_probes(index: np.ndarray, point: Point, count: int, *, seed: int, max_iter: int = 2000) -> tuple[np.ndarray, bool]:
    """(directions (S, R, count), whether all converged): random members of J's null space, for any size of problem.

    Each starts as a random direction x, and conjugate gradients on min ||J x||^2 take from it what J can see, until the
    observed entries move by less than 1e-14 of what they did. J x is carried along (CGLS: A. Bjorck, "Numerical methods for
    least squares problems", 1996, sec. 7.4), since J'J x would lose half of the digits. Two passes over the entries
    per step. Random members meet every null direction, so one tells as much as all: an entry that moves along any of them
    moves along this one, with probability 1.
    """
    x = numpy_stream(seed, "nullspace", "probes").standard_normal((*point.rows.shape, count))
    invert = _preconditioner(index, point, np.ones(index.shape[1]))
    moved, gradient = movement(index, point, x)[0], np.empty_like(x)
    enough = 1e-28 * np.einsum("bq,bq->q", moved, moved)
    direction, old = np.zeros_like(x), np.ones(count)
    for _ in range(max_iter):
        active = np.einsum("bq,bq->q", moved, moved) > enough
        if not active.any():
            return x, True
        _transpose_times(index, point.first, point.rows, moved, gradient)
        z = invert @ gradient
        size = np.einsum("srq,srq->q", gradient, z)
        direction *= np.divide(size, old, out=np.zeros(count), where=active)
        direction += z
        old = np.where(active, size, old)
        step = movement(index, point, direction)[0]
        along = np.divide(size, np.einsum("bq,bq->q", step, step), out=np.zeros(count), where=active)
        x -= along * direction
        moved -= along * step
    return x, False


def conjugate_gradients(index: np.ndarray, point: Point, weight: np.ndarray | None, right: np.ndarray,
                        max_iter: int = 2000) -> tuple[np.ndarray, bool]:
    """J'WJ x = right for q columns: (x (S, R, q), whether all left less than 1e-13 of the right, in the rows' metric)."""
    weight = np.ones(index.shape[1]) if weight is None else weight
    invert = _preconditioner(index, point, weight)
    x, product, left = np.zeros_like(right), np.empty_like(right), right.copy()
    z = invert @ left
    direction, size = z.copy(), np.einsum("srq,srq->q", left, z)
    enough = 1e-26 * size
    for _ in range(max_iter):
        active = size > enough
        if not active.any():
            return x, True
        step = movement(index, point, direction)[0]
        _transpose_times(index, point.first, point.rows, weight[:, None] * step, product)
        along = np.divide(size, np.einsum("srq,srq->q", direction, product), out=np.zeros_like(size), where=active)
        x += along * direction
        left -= along * product
        z = invert @ left
        old, size = size, np.where(active, np.einsum("srq,srq->q", left, z), size)
        direction *= np.divide(size, old, out=np.zeros_like(size), where=active)
        direction += z
    return x, False


def _preconditioner(index: np.ndarray, point: Point, weight: np.ndarray) -> np.ndarray:
    """The inverse of J'WJ's R x R blocks, (S, R, R): in their metric J has about unit size."""
    S, R = point.rows.shape
    blocks = np.empty((S, R, R))
    derivatives.row_blocks(index, point.first, point.rows, weight, blocks)
    size = np.einsum("srr->s", blocks) / R
    # Rows with fewer entries than terms have singular blocks; an addition there changes the way, not the answer.
    return np.linalg.inv(blocks + np.where(size > 0, 1e-3 * size, 1.0)[:, None, None] * np.eye(R))


def movement(index: np.ndarray, point: Point, directions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How entries move: (g'v for each direction v (B, m), the sizes that cancel in them (B,)), g an entry's gradient.

    directions: (S, R, m). The size is sum_k |d_k| |v at the row of mode k|, over all directions.
    """
    m = directions.shape[2]
    moved, size = np.zeros((index.shape[1], m)), np.zeros(index.shape[1])
    norms = np.sqrt(np.einsum("srm,srm->s", directions, directions))
    _movement(index, point.first, point.rows, directions, norms, moved, size)
    return moved, size


def moves(index: np.ndarray, point: Point, directions: np.ndarray) -> np.ndarray:
    """Whether each entry moves along any of the directions, beyond rounding: (B,) bool."""
    out = np.empty(index.shape[1], dtype=bool)
    for begin in range(0, len(out), CHUNK):
        some = slice(begin, begin + CHUNK)
        moved, size = movement(index[:, some], point, directions)
        out[some] = np.abs(moved).max(axis=1, initial=0.0) > STILL * size
    return out


def gradients(index: np.ndarray, point: Point) -> np.ndarray:
    """The derivatives of entries by all factors, in full: (S, R, B)."""
    K, B = index.shape
    out = np.zeros((*point.rows.shape, B))
    place = index + point.first[:, None]
    for k in range(K):
        out[place[k], :, np.arange(B)] = point.rows[np.delete(place, k, axis=0)].prod(axis=0)
    return out


@compiled()
def _movement(index, first, rows, directions, norms, moved, size):
    K, B = index.shape
    R, m = directions.shape[1:]
    d = np.empty((K, R))
    for b in range(B):
        for k in range(K):
            length = 0.0
            for r in range(R):
                d[k, r] = 1.0
                for j in range(K):
                    if j != k:
                        d[k, r] *= rows[first[j] + index[j, b], r]
                length += d[k, r] ** 2
            i = first[k] + index[k, b]
            size[b] += np.sqrt(length) * norms[i]
            for r in range(R):
                for q in range(m):
                    moved[b, q] += d[k, r] * directions[i, r, q]


@compiled()
def _transpose_times(index, first, rows, u, out):
    """out = J'u for the q columns of u (B, q)."""
    K, B = index.shape
    R, m = out.shape[1:]
    out[:] = 0.0
    for b in range(B):
        for k in range(K):
            i = first[k] + index[k, b]
            for r in range(R):
                d = 1.0
                for j in range(K):
                    if j != k:
                        d *= rows[first[j] + index[j, b], r]
                for q in range(m):
                    out[i, r, q] += d * u[b, q]


def row_ranks(index: np.ndarray, point: Point) -> np.ndarray:
    """How many of its R numbers each row's own entries determine, the other modes' rows given: (S,) 0..R.

    The rank of the row's design matrix, by Gram-Schmidt that stops at R. At most B K R^2 work.
    """
    out = np.zeros(len(point.rows), dtype=np.int64)
    R = point.rows.shape[1]
    _row_ranks(index, point.first, point.rows, np.zeros((len(out), R, R)), out)
    return out


@compiled()
def _row_ranks(index, first, rows, basis, rank):
    K, B = index.shape
    R = rows.shape[1]
    d = np.empty(R)
    for b in range(B):
        for k in range(K):
            i = first[k] + index[k, b]
            if rank[i] == R:
                continue
            length = 0.0
            for r in range(R):
                d[r] = 1.0
                for j in range(K):
                    if j != k:
                        d[r] *= rows[first[j] + index[j, b], r]
                length += d[r] ** 2
            for _ in range(2):   # twice is enough against rounding
                for q in range(rank[i]):
                    along = 0.0
                    for r in range(R):
                        along += basis[i, q, r] * d[r]
                    for r in range(R):
                        d[r] -= along * basis[i, q, r]
            left = 0.0
            for r in range(R):
                left += d[r] ** 2
            if left > 1e-18 * length:
                for r in range(R):
                    basis[i, rank[i], r] = d[r] / np.sqrt(left)
                rank[i] += 1


def _first(shape: Sequence[int]) -> np.ndarray:
    return np.cumsum([0, *shape[:-1]])
