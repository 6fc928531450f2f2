"""A start for CP completion by a hot Gibbs sampler, which walks out of the local minima that descent stays in.

The model is Bayesian CP (Xiong et al. 2010; Rai et al. 2014): rows ~ N(0, scale^2 I), entries ~ N(model,
1 / (precision weight)). One sweep draws every row of every mode from its conditional normal: ALS, with the posterior's noise.

    precision = sum_b weight[b] / (heat sum_b weight[b] error[b]^2)

Differs: Bayesian CP samples the precision too, which is heat = 1 here. A hotter chain forgets a wrong start, and
cools by itself, geometrically, as soon as it has found the terms, since its own residual is its temperature: measured on 50^3
tensors of rank 4, heat 2.8 finds the truth most often at 5 entries per degree of freedom and never at 3, where heat 2 is
best; 1 is worse at both, and at 4 the factors stay noise. The prior keeps terms from cancelling each other, which is what
descent with few data ends in.
"""

import math
from dataclasses import dataclass

import numba
import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.solvers.problem import Factors, Problem


@dataclass(frozen=True)
class AnnealConfig:
    sweeps: int = 1000           # at most
    heat: float = 2.0            # the noise's variance is taken so many times the residual's
    explained: float = 1e-4      # stop when the residual is below this fraction of the values' sum of squares

    def __post_init__(self) -> None:
        check.count("sweeps", self.sweeps)
        if not 0 < self.heat < math.inf:
            raise ValueError(f"heat: expected a number above 0, got {self.heat!r}")
        if not 0 <= self.explained < 1:
            raise ValueError(f"explained: expected a fraction in [0, 1), got {self.explained!r}")


def random_start(problem: Problem, fixed: Factors | None = None, *, generator: np.random.Generator) -> Factors:
    """Normal factors (magnitudes in non-negative modes) whose tensor has the data's scale; fixed modes as in ``fixed``."""
    K, sd = len(problem.shape), _scale(problem, fixed)
    draws = [sd * generator.standard_normal((size, problem.rank)) for size in problem.shape]
    draws = [np.abs(d) if n else d for d, n in zip(draws, problem.non_negative, strict=True)]
    return tuple(fixed[k].copy() if problem.fixed[k] else draws[k] for k in range(K))


def anneal_start(problem: Problem, config: AnnealConfig = AnnealConfig(),
                 fixed: Factors | None = None, *, generator: np.random.Generator) -> Factors:
    """Factors at the end of the chain from a random start. Fixed modes are taken from ``fixed``; the ridge is not used.

    Differs: in non-negative modes a drawn number below 0 is put at 0, not drawn from a truncated normal.
    """
    factors = list(random_start(problem, fixed, generator=generator))
    free = [k for k in range(len(factors)) if not problem.fixed[k]]
    scale = _scale(problem, fixed)
    weight = np.ones(len(problem.value)) if problem.weight is None else problem.weight
    total, square = float(weight.sum()), float(weight @ problem.value**2)
    if not free or square == 0:
        return tuple(factors)
    first = np.cumsum(problem.shape) - np.array(problem.shape)
    rows, left = np.concatenate(factors), square
    for sweep in range(config.sweeps):
        precision = total / (config.heat * left)
        noise = generator.standard_normal(rows.shape)
        left = _sweep(problem.index, first, problem.value, weight, np.array(free), np.array(problem.non_negative),
                      precision, 1 / scale**2, noise, rows)
        if sweep % 5 == 0:
            _balance(rows, first, free)
        if not left > config.explained * square:
            break
    return tuple(part.copy() for part in np.split(rows, first[1:]))


def _scale(problem: Problem, fixed: Factors | None) -> float:
    """The free factors' standard deviation that gives the tensor the values' mean square."""
    weight = np.ones(len(problem.value)) if problem.weight is None else problem.weight
    size = math.sqrt(float(weight @ problem.value**2) / float(weight.sum()) / problem.rank)
    for k, is_fixed in enumerate(problem.fixed):
        if is_fixed:
            size /= math.sqrt(float(np.square(fixed[k]).mean())) or 1.0
    return size ** (1 / max(1, len(problem.fixed) - sum(problem.fixed))) or 1.0


def _balance(rows: np.ndarray, first: np.ndarray, free: list[int]) -> None:
    """Equal column norms in all free modes, in place: the sampler's own random walk between them is slow."""
    ends = [*first[1:], len(rows)]
    parts = [rows[first[k]:ends[k]] for k in free]
    norms = np.stack([np.linalg.norm(part, axis=0) for part in parts])
    alive = (norms > 0).all(0)
    wanted = np.exp(np.log(norms[:, alive]).mean(0))
    for part, norm in zip(parts, norms, strict=True):
        part[:, alive] *= wanted / norm[alive]


# sums may be reordered, but NaN and Inf stay what they are
@numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"}, nogil=True)
def _sweep(index: np.ndarray, first: np.ndarray, value: np.ndarray, weight: np.ndarray, free: np.ndarray,
           bounded: np.ndarray, precision: float, prior: float, noise: np.ndarray, rows: np.ndarray) -> float:
    """Draw every row of every free mode once, in place; gives sum weight error^2 afterwards."""
    K, B = index.shape
    R = rows.shape[1]
    d, x, L = np.empty(R), np.empty(R), np.empty((R, R))
    gram, right = np.empty((len(rows), R, R)), np.empty_like(rows)
    for k in free:
        low = first[k]
        high = first[k + 1] if k + 1 < K else len(rows)
        gram[low:high] = 0.0
        right[low:high] = 0.0
        for b in range(B):
            i = low + index[k, b]
            for r in range(R):
                term = 1.0
                for j in range(K):
                    if j != k:
                        term *= rows[first[j] + index[j, b], r]
                d[r] = term
                right[i, r] += weight[b] * value[b] * term
            for r in range(R):
                term = weight[b] * d[r]
                for s in range(r + 1):
                    gram[i, r, s] += term * d[s]
        for i in range(low, high):
            # L L' = precision gram + prior;  row = L'^-1 (L^-1 precision right + noise)
            for r in range(R):
                for s in range(r + 1):
                    t = precision * gram[i, r, s]
                    if r == s:
                        t += prior
                    for q in range(s):
                        t -= L[r, q] * L[s, q]
                    L[r, s] = np.sqrt(max(t, 1e-12 * prior)) if r == s else t / L[s, s]
                t = precision * right[i, r]
                for q in range(r):
                    t -= L[r, q] * x[q]
                x[r] = t / L[r, r]
            for r in range(R - 1, -1, -1):
                t = x[r] + noise[i, r]
                for q in range(r + 1, R):
                    t -= L[q, r] * x[q]
                x[r] = t / L[r, r]
            for r in range(R):
                rows[i, r] = max(x[r], 0.0) if bounded[k] else x[r]
    left = 0.0
    for b in range(B):
        total = 0.0
        for r in range(R):
            term = 1.0
            for k in range(K):
                term *= rows[first[k] + index[k, b], r]
            total += term
        left += weight[b] * (value[b] - total) ** 2
    return left
