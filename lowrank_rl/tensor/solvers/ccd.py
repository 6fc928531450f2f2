"""CCD++ for CP completion: one term at a time, one number at a time, with the residual kept.

Yu, Hsieh, Si & Dhillon 2012 (matrices); Karlsson, Kressner & Uschmajew 2016 (tensors). With the residual e of all other
terms and d_b = prod_{j != k} a_j[i_j], the best value of a_k[i] with everything else fixed is

    a_k[i] = sum_b weight[b] e[b] d_b / (ridge[k] + sum_b weight[b] d_b^2)      over the entries b with i_k = i,

clipped at 0 in a non-negative mode. The work is B K per term and inner sweep, whatever the rank, and no system is solved.
"""

import math
import time
from dataclasses import dataclass

import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.solvers.compiled import compiled
from lowrank_rl.tensor.solvers.problem import Factors, Fit, Problem, Progress


@dataclass(frozen=True)
class CCDConfig:
    max_iter: int = 500       # sweeps over all terms
    tolerance: float = 1e-7   # stop when a sweep lowers the loss by less than this fraction
    inner: int = 2            # sweeps over the modes of one term before the next term

    def __post_init__(self) -> None:
        check.count("max_iter", self.max_iter, 0)
        check.count("inner", self.inner)
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance: expected a number >= 0, got {self.tolerance!r}")


def solve_ccd(problem: Problem, start: Factors, config: CCDConfig = CCDConfig(), *,
              progress: Progress | None = None) -> Fit:
    """Coordinate descent from ``start``; the loss never rises. A non-negative mode's start is clipped at 0."""
    sizes = np.array(problem.shape)
    first = np.cumsum(sizes) - sizes
    bounded, moves = np.array(problem.non_negative), ~np.array(problem.fixed)
    columns = np.concatenate([np.maximum(f, 0) if n and m else f for f, n, m in
                              zip(start, bounded, moves, strict=True)]).T.copy()             # (R, S): a term is a row
    weight = np.ones(len(problem.value)) if problem.weight is None else problem.weight
    ridge, error = np.array(problem.ridge, dtype=float), problem.value - problem.predict(_split(columns, first))
    floor = 1e-30 * float(weight @ problem.value**2)
    started, history = time.monotonic(), []

    def loss() -> float:
        penalty = np.add.reduceat(np.square(columns).sum(0), first) @ ridge
        return 0.5 * float((weight * error) @ error + penalty)

    history.append({"iteration": 0, "loss": loss(), "seconds": 0.0})
    for iteration in range(1, config.max_iter + 1):
        _sweep(problem.index, first, weight, ridge, bounded, moves, config.inner, columns, error)
        history.append({"iteration": iteration, "loss": loss(), "seconds": time.monotonic() - started})
        if progress and progress(history[-1], _split(columns, first)):
            return Fit(_split(columns, first), history, "the callback asked to stop", False)
        if history[-1]["loss"] <= floor:
            return Fit(_split(columns, first), history, "the loss is zero to rounding", True)
        if history[-2]["loss"] - history[-1]["loss"] <= config.tolerance * history[-2]["loss"]:
            return Fit(_split(columns, first), history, "the loss falls by less than its tolerance", True)
    return Fit(_split(columns, first), history, "reached max_iter", False)


def _split(columns: np.ndarray, first: np.ndarray) -> Factors:
    return tuple(part.T.copy() for part in np.split(columns, first[1:], axis=1))


# sums may be reordered, but NaN and Inf stay what they are
@compiled(fastmath={"reassoc", "contract", "nsz", "arcp"})
def _sweep(index: np.ndarray, first: np.ndarray, weight: np.ndarray, ridge: np.ndarray, bounded: np.ndarray,
           moves: np.ndarray, inner: int, columns: np.ndarray, error: np.ndarray) -> None:
    """Renew every term once, in place; ``error`` stays value minus model (its rounding is renewed with each term)."""
    K, B = index.shape
    top, bottom = np.empty(columns.shape[1]), np.empty(columns.shape[1])
    for r in range(len(columns)):
        a = columns[r]
        for b in range(B):                            # the residual without this term
            term = 1.0
            for k in range(K):
                term *= a[first[k] + index[k, b]]
            error[b] += term
        for _ in range(inner):
            for k in range(K):
                if not moves[k]:
                    continue
                low = first[k]
                high = first[k + 1] if k + 1 < K else len(a)
                top[low:high] = 0.0
                bottom[low:high] = ridge[k]
                for b in range(B):
                    d = 1.0
                    for j in range(K):
                        if j != k:
                            d *= a[first[j] + index[j, b]]
                    i = low + index[k, b]
                    top[i] += weight[b] * error[b] * d
                    bottom[i] += weight[b] * d * d
                for i in range(low, high):
                    if bottom[i] > 0.0:               # else nothing depends on a[i]: leave it
                        a[i] = top[i] / bottom[i]
                        if bounded[k] and a[i] < 0.0:
                            a[i] = 0.0
        for b in range(B):
            term = 1.0
            for k in range(K):
                term *= a[first[k] + index[k, b]]
            error[b] -= term
