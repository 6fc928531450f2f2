"""The rows of a factor from their normal equations: minimise 1/2 a'(G + ridge I)a - h'a, with a >= 0 where asked.

``gram`` (rows, P) packs G's upper triangle row by row, ``rhs`` is (rows, R). Both functions write ``factor`` (rows, R)
and give sum over rows of a'Ga - 2 h'a, which is what the squared error changes by against an all-zero factor.
"""

import numpy as np

from lowrank_rl.tensor.solvers.compiled import compiled

SINGULAR = 1e-12   # a pivot, or an eigenvalue, below this share of the largest is zero


def solve(gram: np.ndarray, rhs: np.ndarray, ridge: float, factor: np.ndarray) -> float:
    """Cholesky; a row whose matrix is singular gets the solution of least norm, and a row without entries zeros."""
    failed = np.zeros(len(gram), np.bool_)
    total = _solve(gram, rhs, ridge, factor, failed)
    bad = np.flatnonzero(failed)
    if len(bad):
        full = unpack(gram[bad], rhs.shape[1])
        size, basis = np.linalg.eigh(full + ridge * np.eye(rhs.shape[1]))
        inverse = np.where(size > SINGULAR * size[:, -1:], 1 / np.where(size > 0, size, 1), 0)
        row = (basis @ (inverse[:, :, None] * (basis.transpose(0, 2, 1) @ rhs[bad, :, None])))[:, :, 0]
        factor[bad] = row
        total += float(np.einsum("ir,irs,is", row, full, row) - 2 * (row * rhs[bad]).sum())
    return total


def solve_non_negative(gram: np.ndarray, rhs: np.ndarray, ridge: float, factor: np.ndarray) -> float:
    """The active-set method (Bro & De Jong 1997), warm-started from ``factor``, which must not be negative.

    No row gets worse: where rounding or a singular matrix defeats the active set, coordinate descent goes on from the
    warm start.
    """
    return _solve_non_negative(gram, rhs, ridge, factor)


def unpack(gram: np.ndarray, rank: int) -> np.ndarray:
    """(rows, P) -> (rows, R, R)"""
    full = np.empty((len(gram), rank, rank))
    a, b = np.triu_indices(rank)
    full[:, a, b] = gram
    full[:, b, a] = gram
    return full


@compiled()
def _solve(gram: np.ndarray, rhs: np.ndarray, ridge: float, factor: np.ndarray, failed: np.ndarray) -> float:
    R = rhs.shape[1]
    lower, a, zero = np.empty((R, R)), np.empty(R), np.zeros(R)
    total = 0.0
    for i in range(len(gram)):
        g, h = gram[i], rhs[i]
        p, empty = 0, True
        for r in range(R):
            for s in range(r, R):
                lower[s, r] = g[p]
                p += 1
            empty &= lower[r, r] == 0
            lower[r, r] += ridge
        if empty:
            _set(factor[i], zero)
            continue
        if not _cholesky_solve(lower, h, R, a):
            failed[i] = True
            continue
        _set(factor[i], a)
        total += _excess(g, h, a)
    return total


@compiled(fastmath={"reassoc", "contract", "nsz"})
def _cholesky_solve(lower: np.ndarray, h: np.ndarray, n: int, a: np.ndarray) -> bool:
    """a = lower^-1 h for the leading n of a symmetric matrix given by its lower triangle, overwritten; False: singular."""
    for r in range(n):
        size = lower[r, r]
        y = h[r]
        for s in range(r):
            # row r of L
            x = lower[r, s]
            for t in range(s):
                x -= lower[r, t] * lower[s, t]
            x *= lower[s, s]
            lower[r, s] = x
            y -= x * a[s]
        pivot = size
        for s in range(r):
            pivot -= lower[r, s] * lower[r, s]
        if not pivot > SINGULAR * size:
            return False
        inverse = 1 / np.sqrt(pivot)
        lower[r, r] = inverse
        a[r] = y * inverse
    for r in range(n - 1, -1, -1):
        x = a[r] * lower[r, r]
        a[r] = x
        for s in range(r):
            a[s] -= lower[r, s] * x
    return True


@compiled()
def _set(to: np.ndarray, values: np.ndarray) -> None:
    """to[:] = values, which as a slice would take two seconds more to compile, for its error message."""
    for r in range(len(to)):
        to[r] = values[r]


@compiled()
def _excess(g: np.ndarray, h: np.ndarray, a: np.ndarray) -> float:
    """a'Ga - 2 h'a"""
    p, total = 0, 0.0
    R = len(a)
    for r in range(R):
        inner = 0.5 * g[p] * a[r] - h[r]
        p += 1
        for s in range(r + 1, R):
            inner += g[p] * a[s]
            p += 1
        total += 2 * a[r] * inner
    return total


@compiled()
def _solve_non_negative(gram: np.ndarray, rhs: np.ndarray, ridge: float, factor: np.ndarray) -> float:
    R = rhs.shape[1]
    full, lower = np.empty((R, R)), np.empty((R, R))
    a, zero, work = np.empty(R), np.zeros(R), np.empty((3, R))
    free, where = np.empty(R, np.bool_), np.empty(R, np.int64)
    total = 0.0
    for i in range(len(gram)):
        g, h, warm = gram[i], rhs[i], factor[i]
        p, empty = 0, True
        for r in range(R):
            for s in range(r, R):
                full[r, s] = full[s, r] = g[p]
                p += 1
            empty &= full[r, r] == 0
            full[r, r] += ridge
        if empty:
            _set(warm, zero)
            continue
        _set(a, warm)
        done = _active_set(full, h, a, free, where, lower, work)
        worse = not _excess(g, h, a) + ridge * (a @ a) <= _excess(g, h, warm) + ridge * (warm @ warm)   # or not a number
        if worse:
            _set(a, warm)
        if not done:
            _descend(full, h, a)
        _set(warm, a)
        total += _excess(g, h, a)
    return total


@compiled()
def _active_set(full: np.ndarray, h: np.ndarray, a: np.ndarray, free: np.ndarray, where: np.ndarray, lower: np.ndarray,
                work: np.ndarray) -> bool:
    """The minimiser of 1/2 a'Fa - h'a on a >= 0, from and in ``a``; False: not found. The last four are room to work in."""
    R = len(a)
    sub, part, trial = work[0], work[1], work[2]
    largest = 0.0
    for r in range(R):
        free[r] = a[r] > 0
        largest = max(largest, abs(h[r]))
    for _ in range(5 * R + 10):
        # the best point on the free coordinates; step towards it until one of them reaches zero
        n = 0
        for r in range(R):
            trial[r] = 0.0
            if free[r]:
                where[n] = r
                n += 1
        for r in range(n):
            sub[r] = h[where[r]]
            for s in range(r + 1):
                lower[r, s] = full[where[r], where[s]]
        if not _cholesky_solve(lower, sub, n, part):
            return False
        step = 1.0
        for r in range(n):
            trial[where[r]] = part[r]
            if part[r] <= 0:
                step = min(step, a[where[r]] / (a[where[r]] - part[r]) if a[where[r]] > 0 else 0.0)
        if step < 1:
            for r in range(R):
                a[r] = max(a[r] + step * (trial[r] - a[r]), 0.0) if free[r] else 0.0
                if free[r] and trial[r] <= 0 and a[r] <= 1e-14 * abs(trial[r]):
                    a[r] = 0.0
                    free[r] = False
            continue
        _set(a, trial)
        steepest = _steepest(full, h, a, free, 1e-12 * largest)
        if steepest < 0:
            return True
        free[steepest] = True
    return False


@compiled()
def _steepest(full: np.ndarray, h: np.ndarray, a: np.ndarray, free: np.ndarray, least: float) -> int:
    """The coordinate at zero along which the objective falls most steeply, by more than ``least``; -1: none."""
    best, steepest = least, -1
    for r in range(len(a)):
        slope = h[r]
        for s in range(len(a)):
            slope -= full[r, s] * a[s]
        if not free[r] and slope > best:
            best, steepest = slope, r
    return steepest


@compiled()
def _descend(full: np.ndarray, h: np.ndarray, a: np.ndarray) -> None:
    """Coordinate descent on a >= 0, each step exact."""
    R = len(a)
    for _ in range(1000):
        moved = 0.0
        for r in range(R):
            if full[r, r] <= 0:
                continue
            slope = h[r]
            for s in range(R):
                slope -= full[r, s] * a[s]
            new = max(0.0, a[r] + slope / full[r, r])
            moved = max(moved, abs(new - a[r]) - 1e-12 * abs(new))
            a[r] = new
        if moved <= 0:
            break
