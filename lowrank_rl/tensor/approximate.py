"""The best CPs that we can find of a complete tensor, rank after rank.

The tensor is first turned into its core, which loses nothing but rounding: X = core x_k basis_k with orthonormal bases
(De Lathauwer, De Moor & Vandewalle 2000). Distances between tensors are those between cores, so the search is in the core.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.solvers.lm import LMConfig, solve_lm
from lowrank_rl.tensor.solvers.problem import Problem
from lowrank_rl.tensor.unfoldings import unfold

ROUNDING = 1e-14   # directions of a mode that hold less than this share of the norm are left out of the core
NEGLECT = 0.002    # and those that together hold less than this share of the least squared error, while searching
EXACT = 1e-28      # a squared error of this share is rounding
BALANCE = 3        # rounds over the modes
LOOSE, TIGHT = LMConfig(max_iter=200, tolerance=1e-5), LMConfig(max_iter=500, tolerance=1e-5)


@dataclass(frozen=True, eq=False)
class Core:
    """X[i_0, ...] = sum_j tensor[j_0, ...] prod_k bases[k][i_k, j_k]"""

    tensor: np.ndarray
    bases: tuple[np.ndarray, ...]   # bases[k]: (size of mode k, size of the core's mode k)

    def lift(self, cp: CP) -> CP:
        """A CP of the core as one of the tensor."""
        return CP(cp.weights, tuple(basis @ factor for basis, factor in zip(self.bases, cp.factors, strict=True)))


def core_of(tensor: np.ndarray, share: float = ROUNDING) -> Core:
    """The core in orthonormal bases, without directions whose singular value is below ``share`` of the tensor's norm."""
    limit = share * np.linalg.norm(tensor)
    core, bases = tensor, []
    for k in range(tensor.ndim):
        u, s, _ = np.linalg.svd(unfold(core, (k,)), full_matrices=False)
        basis = u[:, :max(1, int((s > limit).sum()))]
        bases.append(basis)
        core = np.moveaxis(np.tensordot(basis.T, core, axes=(1, k)), 0, k)
    return Core(core, tuple(bases))


def best_cps(tensor: np.ndarray, ranks: Iterable[int], *, seed: int, starts: int = 3) -> Iterator[CP]:
    """For each rank in ascending order the CP of least squared error that was found; the error never rises with the rank.

    Levenberg-Marquardt on the core: from the CP of the rank before with terms of the residual added, then from random ones,
    up to ``starts`` in all. A rank is done once its error is within 1% of what no CP of that rank can be below
    (``Unfolding.tail``). Otherwise the result is only the best of what was tried: there may be a better one, and above
    rank 1 there may be none that is best, because terms that grow and cancel come ever nearer (De Silva & Lim 2008).
    """
    size = float(np.linalg.norm(tensor)) or 1.0
    whole = core_of(tensor / size)
    spectra = [np.linalg.svd(unfold(whole.tensor, (k,)), compute_uv=False) for k in range(tensor.ndim)]
    best: CP | None = None
    for rank in ranks:
        least = max(float(np.sum(s[rank:] ** 2)) for s in spectra)
        core = core_of(whole.tensor, math.sqrt(NEGLECT * least / whole.tensor.size**(1 / tensor.ndim) + ROUNDING**2))
        rng = numpy_stream(seed, "best cps", rank)
        found = best
        for start in range(starts):
            if found is not None and _loss(whole.tensor, found) <= max(1.02 * least, EXACT):
                break
            grown = None if best is None or start > 0 else _grown(whole.tensor, best, rank, rng)
            cp = _improved(core, rank, grown, rng, LOOSE)
            if found is None or _loss(whole.tensor, cp) < _loss(whole.tensor, found):
                found = cp
        best = found
        padded = CP(np.full(rank, size), tuple(_padded(f, rank) for f in best.factors))
        yield whole.lift(padded)


def exact_cps(tensor: np.ndarray, ranks: Iterable[int], *, seed: int, starts: int = 8) -> Iterator[CP]:
    """For each rank the CP that comes nearest to the whole tensor after ``starts`` searches; for tensors that have one.

    The search is in a core whose unfoldings have orthonormal rows as nearly as changes of basis allow, which changes no
    rank: so a term that is a thousand times smaller than another is found as easily.
    """
    core = core_of(tensor)
    balanced, bases = core.tensor, list(core.bases)
    for _ in range(BALANCE):
        for k in range(tensor.ndim):
            u, s, _ = np.linalg.svd(unfold(balanced, (k,)), full_matrices=False)
            bases[k] = bases[k] @ (u * s)
            balanced = np.moveaxis(np.tensordot((u / s).T, balanced, axes=(1, k)), 0, k)
    own = Core(balanced, tuple(np.eye(n) for n in balanced.shape))
    for rank in ranks:
        rng = numpy_stream(seed, "exact cps", rank)
        best, least = None, math.inf
        for _ in range(starts):
            cp = _improved(own, rank, None, rng, TIGHT)
            if (loss := _loss(balanced, cp)) < least:
                best, least = cp, loss
            if least < EXACT * balanced.size:
                break
        yield Core(balanced, tuple(bases)).lift(best)


def _improved(core: Core, rank: int, start: CP | None, rng: np.random.Generator, config: LMConfig) -> CP:
    """A local optimum, near ``start`` or near random factors."""
    tensor = core.tensor
    index = np.indices(tensor.shape).reshape(tensor.ndim, -1).astype(np.int32)
    problem = Problem(index, np.ascontiguousarray(tensor.ravel()), None, tensor.shape, rank, (0.0,) * tensor.ndim,
                      (False,) * tensor.ndim, (False,) * tensor.ndim)
    if start is None:
        factors = tuple(rng.standard_normal((n, rank)) * rank ** (-0.5 / tensor.ndim) for n in tensor.shape)
    else:
        factors = tuple(basis.T @ f for basis, f in zip(core.bases, start.factors, strict=True))
    return core.lift(CP(np.ones(rank), solve_lm(problem, factors, config).factors))


def errors(tensor: np.ndarray, cp: CP) -> tuple[float, float]:
    """(root mean square, largest) size of tensor - cp over all entries."""
    difference = np.abs(tensor - cp.dense())
    return float(np.sqrt(np.mean(difference**2))), float(difference.max())


def cancellation(tensor: np.ndarray, cp: CP) -> float:
    """Sum of the norms of the terms over that of the tensor: 1 if they are alike, large if they cancel each other."""
    return float(cp.normalized().weights.sum() / (np.linalg.norm(tensor) or 1.0))


def _loss(tensor: np.ndarray, cp: CP) -> float:
    return float(np.sum((tensor - cp.dense()) ** 2))


def _padded(factor: np.ndarray, rank: int) -> np.ndarray:
    """With columns of zeros up to ``rank``."""
    return np.hstack([factor, np.zeros((len(factor), rank - factor.shape[1]))])


def _grown(tensor: np.ndarray, cp: CP, rank: int, rng: np.random.Generator) -> CP:
    """With rank-one terms of what is left added: its leading singular vectors, mode by mode, and a little noise."""
    while cp.rank < rank:
        part, vectors = tensor - cp.dense(), []
        for _ in range(tensor.ndim - 1):
            u, s, vt = np.linalg.svd(part.reshape(len(part), -1), full_matrices=False)
            vectors.append(u[:, 0])
            part = (s[0] * vt[0]).reshape(part.shape[1:])
        length = max(float(np.linalg.norm(part)), 1e-8)
        vectors.append(part / length)
        scale = length ** (1 / tensor.ndim)
        terms = [scale * (v + 0.01 * rng.standard_normal(len(v)) / math.sqrt(len(v))) for v in vectors]
        cp = CP(np.ones(cp.rank + 1), tuple(np.column_stack(pair) for pair in zip(cp.factors, terms, strict=True)))
    return cp
