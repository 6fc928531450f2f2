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
import time
from dataclasses import dataclass

import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.solvers.als import InMemory
from lowrank_rl.tensor.solvers.compiled import compiled
from lowrank_rl.tensor.solvers.layout import Layouts
from lowrank_rl.tensor.solvers.problem import Factors, Problem, Progress


@dataclass(frozen=True)
class AnnealConfig:
    sweeps: int = 1000           # at most
    heat: float = 2.0            # the noise's variance is taken so many times the residual's
    work: float = 5e9            # and fewer sweeps, if entries times rank^2 times sweeps exceeded this (0.4 s per 1e9)
    explained: float = 1e-4      # stop when the residual is below this fraction of the values' sum of squares

    def __post_init__(self) -> None:
        check.count("sweeps", self.sweeps)
        if not 0 < self.heat < math.inf:
            raise ValueError(f"heat: expected a number above 0, got {self.heat!r}")
        if not 0 <= self.explained < 1:
            raise ValueError(f"explained: expected a fraction in [0, 1), got {self.explained!r}")
        if not self.work > 0:
            raise ValueError(f"work: expected a number above 0, got {self.work!r}")

    def sweeps_for(self, problem: Problem) -> int:
        """As many as ``work`` allows; at least one."""
        return max(1, int(min(self.sweeps, self.work / (len(problem.value) * problem.rank**2))))


def random_start(problem: Problem, fixed: Factors | None = None, *, generator: np.random.Generator) -> Factors:
    """Normal factors (magnitudes in non-negative modes) whose tensor has the data's scale; fixed modes as in ``fixed``."""
    K, sd = len(problem.shape), _scale(problem, fixed)
    draws = [sd * generator.standard_normal((size, problem.rank)) for size in problem.shape]
    draws = [np.abs(d) if n else d for d, n in zip(draws, problem.non_negative, strict=True)]
    return tuple(fixed[k].copy() if problem.fixed[k] else draws[k] for k in range(K))


def anneal_start(problem: Problem, config: AnnealConfig = AnnealConfig(), fixed: Factors | None = None, *,
                 generator: np.random.Generator, layouts: Layouts | None = None, listener: Progress | None = None) -> Factors:
    """Factors at the end of the chain from a random start. Fixed modes are taken from ``fixed``; the ridge is not used.

    ``listener`` hears of each sweep.

    Differs: in non-negative modes a drawn number below 0 is put at 0, not drawn from a truncated normal.
    """
    factors = random_start(problem, fixed, generator=generator)
    free = [k for k in range(len(factors)) if not problem.fixed[k]]
    scale, engine = _scale(problem, fixed), InMemory(problem, layouts)
    total = float(len(problem.value) if problem.weight is None else problem.weight.sum())
    if not free or engine.square == 0:
        return factors
    began, left = time.monotonic(), engine.square
    for sweep in range(config.sweeps_for(problem)):
        precision = total / (config.heat * left)
        for k in free:
            left = engine.square
            noise = generator.standard_normal(factors[k].shape)
            for where, gram, rhs in engine.normal(factors, k):
                left += _draw(gram, rhs, precision, 1 / scale**2, noise[where], problem.non_negative[k], factors[k][where])
        if sweep % 5 == 0:
            _balance(factors, free)
        if listener is not None:
            loss = 0.5 * left + problem.penalty(factors)
            listener({"iteration": sweep + 1, "loss": loss, "seconds": time.monotonic() - began},
                     tuple(f.copy() for f in factors))
        if not left > config.explained * engine.square:
            break
    return factors


def _scale(problem: Problem, fixed: Factors | None) -> float:
    """The free factors' standard deviation that gives the tensor the values' mean square."""
    weight = np.ones(len(problem.value)) if problem.weight is None else problem.weight
    size = math.sqrt(float(weight @ problem.value**2) / float(weight.sum()) / problem.rank)
    for k, is_fixed in enumerate(problem.fixed):
        if is_fixed:
            size /= math.sqrt(float(np.square(fixed[k]).mean())) or 1.0
    return size ** (1 / max(1, len(problem.fixed) - sum(problem.fixed))) or 1.0


def _balance(factors: Factors, free: list[int]) -> None:
    """Equal column norms in all free modes, in place: the sampler's own random walk between them is slow."""
    norms = np.stack([np.linalg.norm(factors[k], axis=0) for k in free])
    alive = (norms > 0).all(0)
    wanted = np.exp(np.log(norms[:, alive]).mean(0))
    for k, norm in zip(free, norms, strict=True):
        factors[k][:, alive] *= wanted / norm[alive]


@compiled(fastmath={"reassoc", "contract", "nsz"})
def _draw(gram: np.ndarray, rhs: np.ndarray, precision: float, prior: float, noise: np.ndarray, bounded: bool,
          factor: np.ndarray) -> float:
    """Rows from their conditional normals; gram and rhs as in ``rows``. Gives sum over rows of a'Ga - 2 h'a."""
    R = rhs.shape[1]
    L, a, full = np.empty((R, R)), np.empty(R), np.empty((R, R))
    total = 0.0
    for i in range(len(gram)):
        # L L' = precision gram + prior;  row = L'^-1 (L^-1 precision right + noise)
        p = 0
        for r in range(R):
            for s in range(r, R):
                full[s, r] = gram[i, p]
                p += 1
        for r in range(R):
            y = precision * rhs[i, r]
            for s in range(r):
                x = precision * full[r, s]
                for q in range(s):
                    x -= L[r, q] * L[s, q]
                x *= L[s, s]
                L[r, s] = x
                y -= x * a[s]
            pivot = precision * full[r, r] + prior
            for s in range(r):
                pivot -= L[r, s] * L[r, s]
            L[r, r] = 1 / np.sqrt(max(pivot, 1e-12 * prior))
            a[r] = y * L[r, r]
        for r in range(R - 1, -1, -1):
            x = (a[r] + noise[i, r]) * L[r, r]
            a[r] = x
            for q in range(r):
                a[q] -= L[r, q] * x
        for r in range(R):
            if bounded and a[r] < 0:
                a[r] = 0.0
            factor[i, r] = a[r]
        for r in range(R):
            inner = 0.5 * full[r, r] * a[r] - rhs[i, r]
            for s in range(r):
                inner += full[r, s] * a[s]
            total += 2 * a[r] * inner
    return total
