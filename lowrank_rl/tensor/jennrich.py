"""Jennrich's simultaneous diagonalisation: the terms of a complete tensor from one eigenvalue problem, or why there are none.

For X = sum_r a_r o b_r o c_r with R terms, a's independent and b's independent, any two mixtures of slices are

    S(x) = A diag(c_r . x) B',   S(y) = A diag(c_r . y) B',   so   S(x) S(y)^-1 = A diag(c_r . x / c_r . y) A^-1

Eigenvectors are the a_r. If all eigenvalues differ they are unique, and with them all terms (Kruskal's condition holds).
Terms whose eigenvalue is the same, because their c's are parallel, can be mixed: only the span of their a_r is determined.

Source: R. A. Harshman, "Foundations of the PARAFAC procedure", UCLA Working Papers in Phonetics 16, 1970 (who credits
R. Jennrich); S. E. Leurgans, R. T. Ross, R. B. Abel, "A decomposition for three-way arrays", SIAM J. Matrix Anal. 14(4), 1993.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.approximate import errors
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.unfoldings import complete, noise, unfold, unfoldings

DRAWS = 20          # mixtures (x, y) tried; the one with the best separated eigenvalues is used
SAME = 1e-6         # two eigenvalues, as points on a circle, nearer than this (or 3 standard deviations of noise) count as one
WORKS = 1e-8        # the largest relative error of terms that are exact to rounding; with noise: twice the noise
FAILS = 1e-3        # and one that eigenvalues which merely seem to coincide cannot explain
CONDITION = 1e4     # eigenvectors worse conditioned than this tell nothing


@dataclass(frozen=True, eq=False)
class Jennrich:
    """What the eigenvalues say. ``cp`` is None where the method does not apply, and ``reason`` tells why."""

    groups: tuple[tuple[int, ...], ...]   # the modes taken together as a, b and c
    cp: CP | None                         # the terms; in a cluster of equal eigenvalues one choice of many
    error: float                          # root mean square of tensor - cp over that of the tensor
    gap: float                            # smallest distance of two eigenvalues as points on a circle, 0..1
    clusters: tuple[int, ...]             # how many terms share each eigenvalue, descending: (1, 1, ...) if all differ
    works: bool                           # the terms explain the tensor to rounding, or to the noise stated
    refuted: bool                         # no CP of that many real terms exists, unless one of terms that nearly cancel
    reason: str                           # a sentence

    @property
    def unique(self) -> bool:
        """The terms are the only ones of this rank, up to order and scale."""
        return self.works and self.gap > SAME and all(size == 1 for size in self.clusters)


def jennrich(tensor: Any, *, rank: int | None = None, sigma: float | None = None, seed: int) -> Jennrich:
    """The terms of a complete tensor by simultaneous diagonalisation, how well separated they are, and the error left.

    Modes are put into three groups, two of which must have rank R each; with four modes and more all groupings are looked
    at, and merged modes are split into rank-one tensors afterwards.

    Args:
        tensor: complete, three modes or more.
        rank: R; None takes the largest rank of an unfolding, the least that R can be.
        sigma: standard deviation of the noise, as in ``unfoldings``.
        seed: draws the mixtures.

    Raises:
        ValueError: as ``unfoldings``, fewer than three modes, a zero tensor, or a rank below 1.
    """
    tensor = complete(tensor)
    noise(sigma)
    if tensor.ndim < 3:
        raise ValueError(f"tensor: expected three modes or more, got {tensor.ndim}; the terms of a matrix are never unique")
    if not tensor.any():
        raise ValueError("tensor: expected one that is not all zeros, got zeros; its rank is 0")
    found = {side: u.rank for u in unfoldings(tensor, sigma=sigma) for side in (u.rows, u.columns)}
    R = max(found.values()) if rank is None else rank
    if rank is None and R == 0:
        return Jennrich((), None, np.nan, 0.0, (), False, False, "No singular value is above the noise.")
    check.count("rank", R)
    able = [groups for groups in _groupings(tensor.ndim) if found[groups[0]] >= R and found[groups[1]] >= R]
    if not able:
        single = [found[(k,)] for k in range(tensor.ndim)]
        return Jennrich((), None, np.nan, 0.0, (), False, False,
                        f"Jennrich's method needs two groups of modes of rank {R} each; the modes have ranks "
                        f"{', '.join(map(str, single))}.")
    tries = [_diagonalised(tensor, groups, R, found[groups[2]], sigma, seed) for groups in able]
    return max(tries, key=lambda x: (x.works, x.gap))


def _diagonalised(tensor: np.ndarray, groups: tuple[tuple[int, ...], ...], R: int, third: int, sigma: float | None,
                  seed: int) -> Jennrich:
    modes = [k for group in groups for k in group]
    sizes = [int(np.prod([tensor.shape[k] for k in group])) for group in groups]
    cube = tensor.transpose(modes).reshape(sizes)
    bases = [np.linalg.svd(unfold(cube, (k,)), full_matrices=False)[0][:, :r] for k, r in enumerate((R, R, third))]
    core = np.einsum("abc,ai,bj,ck->ijk", cube, *bases, optimize=True)
    mixtures = _mixtures(core, numpy_stream(seed, "jennrich", groups))
    if mixtures is None:   # R independent a's and b's exclude that
        return Jennrich(groups, None, np.nan, 0.0, (), False, sigma is None,
                        f"Every mixture of slices is singular, so the tensor has no {R} terms.")
    x, y = mixtures
    inverse = np.linalg.inv(core @ y)
    pencil = (core @ x) @ inverse
    values, vectors = np.linalg.eig(pencil)
    condition = float(np.linalg.cond(vectors))
    spread = np.zeros(R)   # standard deviation of each eigenvalue as a point on the circle, to first order
    if sigma is not None and condition < 1 / SAME:
        along = np.linalg.norm(np.linalg.inv(vectors), axis=1) * np.linalg.norm(inverse @ vectors, axis=0)
        square = np.abs(values) ** 2
        spread = sigma * along * np.sqrt(x @ x + square * (y @ y)) / (1 + square)
    members = _clusters(values, spread)
    A = np.hstack([_eigenspace(pencil, values[list(c)]) for c in members])
    terms = _rest(core, A)
    factors = []
    for group, factor in zip(groups, (bases[0] @ A, bases[1] @ terms[0], bases[2] @ terms[1]), strict=True):
        factors += _split(factor, [tensor.shape[k] for k in group])
    cp = CP(np.ones(R), tuple(factors[modes.index(k)] for k in range(tensor.ndim)))
    rms, _ = errors(tensor, cp)
    error = rms / float(np.sqrt(np.mean(tensor**2)))
    limit = WORKS if sigma is None else 2 * sigma / float(np.sqrt(np.mean(tensor**2)))
    works = bool(error <= limit)
    sizes_of = tuple(sorted((len(c) for c in members), reverse=True))
    gap = _nearest(values) if len(members) == R else 0.0
    complex_pair = sigma is None and bool((np.abs(values.imag) > 1e-6 * np.abs(values).max()).any())
    clear = error > (WORKS if len(members) == R else FAILS) and condition < CONDITION
    refuted = not works and (complex_pair or (sigma is None and clear))
    reason = _reason(R, works, error, gap, sizes_of, complex_pair, refuted)
    return Jennrich(groups, cp, error, gap, sizes_of, works, refuted, reason)


def _mixtures(core: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray] | None:
    """Of some random pairs (x, y) the one whose eigenvalues are best separated; None if every mixture is singular."""
    best = None
    for _ in range(DRAWS):
        x, y = rng.standard_normal((2, core.shape[2]))
        slice_y = core @ y
        if np.linalg.svd(slice_y, compute_uv=False)[-1] <= 1e-12 * np.linalg.norm(core):
            continue
        gap = _nearest(np.linalg.eigvals((core @ x) @ np.linalg.inv(slice_y)))
        if best is None or gap > best[0]:
            best = gap, x, y
    return None if best is None else best[1:]


def _reason(R: int, works: bool, error: float, gap: float, sizes: tuple[int, ...], complex_pair: bool,
            refuted: bool) -> str:
    if works and max(sizes) == 1:
        return (f"Jennrich's method finds {R} term{'s' * (R > 1)} with relative error {error:.1e}; eigenvalues are at least "
                f"{gap:.2g} apart (of at most 1).")
    if works:
        shared = " and ".join(str(s) for s in sizes if s > 1)
        return (f"Jennrich's method finds {R} terms with relative error {error:.1e}, but groups of {shared} terms share an "
                "eigenvalue: within a group any other basis does as well.")
    if complex_pair:
        return (f"Eigenvalues are complex: {R} real terms do not exist ({R} complex ones may), so the rank over the reals is "
                f"above {R}.")
    if max(sizes) > 1:
        return (f"Eigenvalues coincide and no choice of eigenvectors explains the tensor (relative error {error:.1e}): "
                f"it takes more than {R} terms{'' if refuted else ', unless terms that nearly cancel come close'}.")
    return f"No {R} terms explain the tensor: Jennrich's leave a relative error of {error:.1e}."


def _nearest(values: np.ndarray) -> float:
    """The smallest distance of two eigenvalues, as points (value, 1) on a sphere: at most 1, whatever their size."""
    if len(values) == 1:
        return 1.0
    length = np.sqrt(1 + np.abs(values) ** 2)
    distance = np.abs(values[:, None] - values) / (length[:, None] * length)
    return float(distance[np.triu_indices(len(values), 1)].min())


def _clusters(values: np.ndarray, spread: np.ndarray) -> list[list[int]]:
    """Numbers of eigenvalues that are linked because rounding or noise may explain how they differ, or as complex pairs."""
    members: list[list[int]] = []
    for i in range(len(values)):
        near = [c for c in members if any(
            _nearest(values[[i, j]]) <= max(SAME, 3 * np.hypot(spread[i], spread[j])) or
            (values[i].imag != 0 and values[i] == values[j].conj()) for j in c)]
        members = [c for c in members if c not in near] + [[i, *(j for c in near for j in c)]]
    return members


def _eigenspace(pencil: np.ndarray, values: np.ndarray) -> np.ndarray:
    """An orthonormal real basis of what the pencil maps nearly to multiples, as many vectors as eigenvalues given."""
    shifted = pencil - values.mean().real * np.eye(len(pencil))
    return np.linalg.svd(shifted)[2][len(pencil) - len(values):].T


def _rest(core: np.ndarray, A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """b's and c's for given a's: row r of A^-1 times the core is b_r c_r'."""
    slices = np.tensordot(np.linalg.pinv(A), core, axes=(1, 0))
    u, s, vt = np.linalg.svd(slices)
    return (u[:, :, 0] * s[:, :1]).T, vt[:, 0, :].T


def _split(factor: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    """Columns over merged modes as nearly as possible the outer product of one column per mode."""
    factors, part = [], factor.T   # (R, product of the sizes)
    for size in sizes[:-1]:
        u, s, vt = np.linalg.svd(part.reshape(len(part), size, -1), full_matrices=False)
        factors.append(u[:, :, 0].T)
        part = s[:, :1] * vt[:, 0]
    return [*factors, part.T]


def _groupings(K: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """All ways to put K modes into groups a, b, c, none empty, a before b."""
    for size in range(1, K - 1):
        for a in combinations(range(K), size):
            rest = [k for k in range(K) if k not in a]
            for other in range(1, len(rest)):
                for b in combinations(rest, other):
                    if a < b:
                        yield a, b, tuple(k for k in rest if k not in b)
