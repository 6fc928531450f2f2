"""Descent that mends what it ends in: a CP fit with terms missing, their places taken by noise or by terms that cancel.

    worth[r] = 1 / (T^-1)[r, r],   T[r, s] = mean of term r times term s over entries

is by how much the mean square of the residual rises when term r is taken out and the other terms are scaled anew. It is small
for a term that fits noise and for one of two terms that cancel. Such terms go, and the leading terms of what is left
(``spectral_start`` on the residual) take their places.
The first sweeps have a ridge of residual variance / factor variance, as in Bayesian CP, in each sweep that of the residual
at hand: terms that the data do not show shrink to nothing, instead of cancelling each other.
"""

import time
from dataclasses import dataclass, replace

import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.solvers.als import ALSConfig, solve_als
from lowrank_rl.tensor.solvers.layout import Layouts
from lowrank_rl.tensor.solvers.problem import Factors, Fit, Problem, Progress
from lowrank_rl.tensor.solvers.spectral import spectral_start


@dataclass(frozen=True)
class RepairConfig:
    rounds: int = 10             # at most
    better: float = 1e-2         # a round helped if the loss fell by this share of it
    explained: float = 1e-5      # stop when the squared error is below this fraction of the values' sum of squares
    weak: float = 0.2            # terms worth less than this share of the residual's mean square go together,
    tangled: float = 0.15        # and terms worth less than this share of their own mean square
    ridged: int = 10             # sweeps with the ridge
    mended: float = 0.5          # no ALS from their end if the exchange of its weak terms left less than this share of the loss
    sweeps: int = 60             # of ALS in a round, at most, and
    tol: float = 1e-3            # the decrease at which they stop

    def __post_init__(self) -> None:
        for name in ("rounds", "ridged"):
            check.count(name, getattr(self, name), 0)
        check.count("sweeps", self.sweeps)
        for name in ("better", "explained", "weak", "tangled", "mended", "tol"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a fraction in [0, 1), got {getattr(self, name)!r}")


def solve_repaired(problem: Problem, start: Factors, config: RepairConfig = RepairConfig(), *, generator: np.random.Generator,
                   layouts: Layouts | None = None, listener: Progress | None = None) -> Fit:
    """ALS from ``start`` and rounds of exchanges until none helps. Where a mode is fixed, it is ALS alone.

    ``listener`` hears of each sweep with all terms.

    The history has one entry per run of ALS, with ``exchanged``, how many terms were; its loss never rises.
    """
    began, layouts = time.monotonic(), layouts or Layouts(problem)
    enough = config.explained * 0.5 * problem.square()
    als = ALSConfig(max_iter=config.sweeps, tol=config.tol)
    history: list[dict] = []

    def attempt(factors: Factors, exchanged: tuple[int, ...]) -> bool:
        """Whether the fit from here on is better than the best so far, by enough; if better at all, it is the best."""
        nonlocal best, loss
        fit = solve_als(problem, factors, als, layouts=layouts, progress=listener)
        tried = fit.history[-1]["loss"] if fit.history else problem.loss(fit.factors)
        helped = tried < loss * (1 - config.better)
        if tried < loss:
            best, loss = fit.factors, tried
        history.append({"iteration": len(history), "loss": loss, "seconds": time.monotonic() - began,
                        "exchanged": len(exchanged)})
        return helped

    best, loss = start, np.inf
    if any(problem.fixed):
        attempt(start, ())
        return Fit(best, history, "a mode is fixed", True)
    ridged, left = _ridged(problem, start, config, layouts, listener)
    weak = _weak(problem, ridged, left, config)
    if weak:
        attempt(_exchanged(problem, ridged, weak, layouts, generator), weak)
    if loss - problem.penalty(best) > max(enough, config.mended * 0.5 * left):
        attempt(ridged, ())
    helped, tried = True, 0
    while helped and loss - problem.penalty(best) > enough:
        helped = False
        for terms in _suspects(problem, best, 2 * loss, config):
            if tried == config.rounds:
                return Fit(best, history, f"reached {config.rounds} rounds", False)
            tried += 1
            if helped := attempt(_exchanged(problem, best, terms, layouts, generator), terms):
                break
    return Fit(best, history, "the data are explained" if loss - problem.penalty(best) <= enough else "no exchange helps", True)


def _ridged(problem: Problem, factors: Factors, config: RepairConfig, layouts: Layouts,
            listener: Progress | None = None) -> tuple[Factors, float]:
    """Some sweeps of ALS with the ridge of the residual, and sum weight residual^2."""
    total = float(len(problem.value) if problem.weight is None else problem.weight.sum())
    square = problem.square()
    variance = (square / total / problem.rank) ** (1 / len(factors)) or 1.0   # of factors whose tensor has the data's scale
    left, once = square, ALSConfig(max_iter=1, momentum=False)
    began = time.monotonic()
    for sweep in range(config.ridged):
        ridge = tuple(max(r, left / total / variance) for r in problem.ridge)
        fit = solve_als(replace(problem, ridge=ridge), factors, once, layouts=layouts)
        penalty = sum(r * float(np.square(f).sum()) for r, f in zip(ridge, fit.factors, strict=True))
        factors, before, left = fit.factors, left, max(0.0, 2 * fit.history[-1]["loss"] - penalty)
        if listener is not None:
            loss = 0.5 * left + problem.penalty(factors)
            listener({"iteration": sweep + 1, "loss": loss, "seconds": time.monotonic() - began},
                     tuple(f.copy() for f in factors))
        if left > 0.99 * before or left <= config.explained * square:
            break
    return factors, left


def _worth(problem: Problem, factors: Factors) -> tuple[np.ndarray, np.ndarray]:
    """worth (R,) and the terms' mean squares (R,), over some of the entries."""
    some = slice(None, None, max(1, len(problem.value) // (1000 * problem.rank)))
    terms = np.ones((len(problem.value[some]), problem.rank))
    for factor, i in zip(factors, problem.index, strict=True):
        terms *= factor[i[some]]
    weighted = terms if problem.weight is None else terms * (problem.weight[some, None] / problem.weight[some].mean())
    products = weighted.T @ terms / len(terms)
    square = products.diagonal().copy()
    size = np.where(square > 0, np.sqrt(square), 1.0)
    products = products / size / size[:, None]
    products.flat[::len(products) + 1] = 1 + 1e-10
    return square / np.linalg.inv(products).diagonal(), square


def _weak(problem: Problem, factors: Factors, left: float, config: RepairConfig) -> tuple[int, ...]:
    """Terms that explain hardly anything, beside what is left: sum weight residual^2."""
    total = len(problem.value) if problem.weight is None else problem.weight.sum()
    return _few(_worth(problem, factors)[0] < config.weak * left / total)


def _suspects(problem: Problem, factors: Factors, left: float, config: RepairConfig) -> list[tuple[int, ...]]:
    """Sets of terms to exchange: the weak ones; those that nearly cancel; the one worth least."""
    worth, square = _worth(problem, factors)
    sets = [_weak(problem, factors, left, config), _few(worth < config.tangled * square), (int(np.argmin(worth)),)]
    return [terms for terms in dict.fromkeys(sets) if terms]


def _few(chosen: np.ndarray) -> tuple[int, ...]:
    """Their numbers; none, where they are all."""
    return () if chosen.all() else tuple(np.flatnonzero(chosen).tolist())


def _exchanged(problem: Problem, factors: Factors, terms: tuple[int, ...], layouts: Layouts,
               generator: np.random.Generator) -> Factors:
    """The leading terms of the residual in the place of some."""
    rest = np.setdiff1d(np.arange(problem.rank), terms)
    kept = tuple(f[:, rest] for f in factors)
    if len(rest):
        fewer = replace(problem, rank=len(rest))
        kept = solve_als(fewer, kept, ALSConfig(max_iter=2, momentum=False), layouts=layouts).factors
        residual = problem.value - fewer.predict(kept)
    else:
        residual = problem.value
    new = spectral_start(replace(problem, rank=len(terms), value=residual), generator=generator)
    return tuple(np.concatenate([k, n], axis=1) for k, n in zip(kept, new, strict=True))
