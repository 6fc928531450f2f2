"""Alternating least squares on the observed entries: each factor in turn is the exact minimiser, the others held.

The loop is over an engine, which only has to give blocks of normal equations; ``InMemory`` is the usual one.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.solvers import kernels, rows
from lowrank_rl.tensor.solvers.layout import Layouts
from lowrank_rl.tensor.solvers.problem import Factors, Fit, Problem, Progress

BLOCK_BYTES = 1 << 25   # normal equations held at once
TRUST = 1e-7            # a squared error below this share of y'y has lost digits when it comes from the normal equations
EXACT = 1e-28           # a squared error below this share of y'y is rounding

# Momentum. Median sweeps until it stopped at the target, 50^3, R = 4, noise 1e-3, 30 entries per parameter, 10 starts each, at
# a correlation of the factors of 0, .5 and .9: 15, 47 and 1000 (the most allowed) without; 19, 31 and 94 with. At 10 entries
# per parameter 15 starts of 30 reached the target instead of 9.
SLOW = 0.5              # it begins once a sweep lowers the loss by less than this share
FIRST = 0.5             # the step along the last change, when it begins
GROW = 1.5              # times this after a sweep that lowered the loss, up to a limit that begins at 1, falls to the step
RELAX = 1.05            # that failed, and grows by this


@dataclass(frozen=True)
class ALSConfig:
    max_iter: int = 500        # sweeps over the modes
    tol: float = 1e-6          # stop when a sweep lowers the loss by less than this share of it
    momentum: bool = True      # go on along the last change, where sweeps have become slow

    def __post_init__(self) -> None:
        check.count("max_iter", self.max_iter)
        if not 0 <= self.tol < 1:
            raise ValueError(f"tol: expected a share in [0, 1), got {self.tol!r}")


class Engine(Protocol):
    """Where the entries are, and who sums over them."""
    square: float   # sum_b weight[b] value[b]^2

    def normal(self, factors: Factors, k: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Blocks (rows, gram, rhs) that cover the rows of mode k; the next block may overwrite the arrays."""

    def squared_error(self, factors: Factors) -> float:
        """sum_b weight[b] (value[b] - model at b)^2"""


class InMemory:
    """The entries of a Problem, sorted once per mode; values are divided by ``unit``, which takes no copy of them."""

    def __init__(self, problem: Problem, layouts: Layouts | None = None, unit: float = 1.0) -> None:
        self.layouts = layouts or Layouts(problem, unit)
        self.square = problem.square(unit)

    def normal(self, factors: Factors, k: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        size, rank = factors[k].shape
        P = kernels.packed_size(rank)
        block = max(1, min(size, BLOCK_BYTES // (8 * (P + rank))))
        gram, rhs = np.empty((block, P)), np.empty((block, rank))
        others = kernels.OtherRows(self.layouts[k], factors)
        for first in range(0, size, block):
            n = min(block, size - first)
            gram[:n], rhs[:n] = 0.0, 0.0
            others.add_normal(first, gram[:n], rhs[:n])
            yield slice(first, first + n), gram[:n], rhs[:n]

    def squared_error(self, factors: Factors) -> float:
        k = max(range(len(factors)), key=lambda m: len(factors[m]))
        return kernels.OtherRows(self.layouts[k], factors).squared_error(factors[k])


def solve_als(problem: Problem, start: Factors, config: ALSConfig, *, progress: Progress | None = None,
              layouts: Layouts | None = None, engine: Engine | None = None) -> Fit:
    """Minimise ``problem.loss`` mode by mode from ``start``; the loss in the history never rises.

    A row without entries becomes zero; ``fill_empty_rows`` gives it a better guess. After each sweep the scale of each
    component is spread over the free modes.

    The loss comes from the last mode's normal equations, y'y - 2a'h + a'Ga, without another pass; where that has lost
    digits (see TRUST) it is a pass.

    Momentum: once sweeps are slow, they begin from A + step (A - A before), the step growing while the loss falls; a sweep
    that ends higher counts, but is thrown away, and the next begins from A (as Ang, Cohen, Hien & Gillis 2020).
    History entries have ``momentum``, the step, and ``kept``.

    layouts: of the same entries, to share among restarts. engine: other than ``InMemory``, which then is not made.
    """
    began = time.monotonic()
    engine = engine or InMemory(problem, layouts)
    free = [k for k, fixed in enumerate(problem.fixed) if not fixed]
    factors = tuple(np.array(f, dtype=float, order="C") for f in start)
    history: list[dict] = []
    if not free:
        return Fit(factors, history, "every mode is fixed", True)
    before, loss, step, most = factors, math.inf, 0.0, 1.0
    for iteration in range(1, config.max_iter + 1):
        new = tuple(f if fixed else _extrapolate(f, b, step, bounded) for f, b, fixed, bounded
                    in zip(factors, before, problem.fixed, problem.non_negative, strict=True))
        new_loss, error = _sweep(problem, engine, free, new)
        kept = step == 0 or new_loss <= loss
        entry = {"iteration": iteration, "loss": new_loss if kept else loss, "momentum": step, "kept": kept}
        decrease = 1 - new_loss / loss if 0 < loss < math.inf else 1.0
        before = factors
        if kept:
            factors, loss = new, new_loss
            if config.momentum and decrease < SLOW:
                step = min(most, GROW * step) if step else min(most, FIRST)
                most = min(1.0, RELAX * most)
        else:
            most, step = step, 0.0
        history.append({**entry, "seconds": time.monotonic() - began})
        if progress is not None and progress(history[-1], tuple(f.copy() for f in factors)):
            return Fit(factors, history, "progress asked to stop", False)
        if error <= EXACT * engine.square and not any(problem.ridge):
            return Fit(factors, history, "the fit is exact", True)
        if kept and decrease < config.tol:
            return Fit(factors, history, f"a sweep lowered the loss by less than {config.tol:g} of it", True)
    return Fit(factors, history, f"reached {config.max_iter} sweeps", False)


def _extrapolate(factor: np.ndarray, before: np.ndarray, step: float, non_negative: bool) -> np.ndarray:
    """A new array."""
    if step == 0:
        return factor.copy()
    new = factor + step * (factor - before)
    return np.maximum(new, 0.0, out=new) if non_negative else new


def _sweep(problem: Problem, engine: Engine, free: list[int], factors: Factors) -> tuple[float, float]:
    """Update the free factors in place; the loss and the squared error after it."""
    error = 0.0
    for k in free:
        solve = rows.solve_non_negative if problem.non_negative[k] else rows.solve
        error = engine.square
        for where, gram, rhs in engine.normal(factors, k):
            error += solve(gram, rhs, problem.ridge[k], factors[k][where])
    if error < TRUST * engine.square:
        error = engine.squared_error(factors)
    _balance(problem, free, factors)
    penalty = sum(r * float(np.square(f).sum()) for r, f in zip(problem.ridge, factors, strict=True) if r)
    return 0.5 * (error + penalty), error


def _balance(problem: Problem, free: list[int], factors: Factors) -> None:
    """Spread each component's scale over the free modes, in place: equal ridge terms, or equal norms where no ridge is.

    The model stays and the ridge terms fall to their least for it (by the inequality of the means), where all are positive;
    where only some are, the least does not exist, and nothing is done.
    """
    ridge = np.array([problem.ridge[k] for k in free])
    if len(free) < 2 or (ridge > 0).any() != (ridge > 0).all():
        return
    norm = np.stack([np.linalg.norm(factors[k], axis=0) for k in free])
    alive = (norm > 0).all(0)
    level = np.log(norm[:, alive]) + (0.5 * np.log(ridge)[:, None] if ridge[0] > 0 else 0.0)
    for k, scale in zip(free, np.exp(level.mean(0) - level), strict=True):
        factors[k][:, alive] *= scale


def fill_empty_rows(factors: Factors, seen: Sequence[np.ndarray], fixed: Sequence[bool]) -> Factors:
    """Rows without entries become the mean of their mode's rows with entries, a better guess than zero; fixed modes stay.

    seen[k]: (I_k,) bool, the rows with entries.
    """
    filled = []
    for factor, rows_seen, is_fixed in zip(factors, seen, fixed, strict=True):
        if is_fixed or rows_seen.all() or not rows_seen.any():
            filled.append(factor)
            continue
        new = factor.copy()
        new[~rows_seen] = factor[rows_seen].mean(0)
        filled.append(new)
    return tuple(filled)
