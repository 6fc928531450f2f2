"""Several starts for one completion problem, until the best fit is confirmed: CP completion has local minima.

The first starts are cheap (spectral, then random): most problems end there. The others are annealed where data are scarce,
with heats in turn, since the best one depends on how scarce; elsewhere random too. Every start is repaired before the local
solver gets it (``repair``), but for the one given. Each start has its own random stream: how many run changes none.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.solvers.anneal import AnnealConfig, anneal_start, random_start
from lowrank_rl.tensor.solvers.layout import Layouts
from lowrank_rl.tensor.solvers.problem import Factors, Fit, Problem, Progress
from lowrank_rl.tensor.solvers.repair import RepairConfig, solve_repaired
from lowrank_rl.tensor.solvers.spectral import spectral_start

Local = Callable[[Problem, Factors], Fit]


@dataclass(frozen=True)
class MultistartConfig:
    starts: int = 30                # at most
    agree: int = 2                  # stop when so many starts end in the best loss and the same tensor; one more if scarce
    explained: float = 1e-5         # stop when the squared error is below this fraction of the values' sum of squares
    same: float = 1e-2              # losses and tensors (Frobenius, all entries) closer than this, relatively, are the same,
    noise: float = 0.25             # and tensors closer than this share of their standard error: see _same_tensor
    cheap: int = 3                  # starts that are not annealed: the first spectral, then random ones
    scarce: float = 5.0             # entries per free number of the model below which one more start must agree
    plenty: float = 10.0            # the same if ``noise`` decides; from here on no start is annealed
    heats: tuple[float, ...] = (2.0, 2.8)   # of the annealed starts, in turn
    anneal: AnnealConfig = field(default_factory=AnnealConfig)
    repair: RepairConfig = field(default_factory=RepairConfig)   # its ``explained`` is the one above

    def __post_init__(self) -> None:
        check.count("starts", self.starts)
        check.count("agree", self.agree)
        check.count("cheap", self.cheap, 0)
        for name in ("noise", "scarce", "plenty"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)!r}")
        for name in ("explained", "same"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a fraction in [0, 1), got {getattr(self, name)!r}")
        if not self.heats or not all(heat > 0 for heat in self.heats):
            raise ValueError(f"heats: expected at least one number above 0, got {self.heats!r}")


def solve(problem: Problem, local: Local, config: MultistartConfig = MultistartConfig(), *, seed: int,
          start: Factors | None = None, progress: Callable[[dict], None] | None = None, listener: Progress | None = None,
          layouts: Layouts | None = None) -> Fit:
    """The best of several fits by ``local``, a solver with its settings: ``lambda p, s: solve_lm(p, s, LMConfig())``.

    ``start``, where given, is tried first, and holds the fixed modes' factors. The history has one entry per start:
    iteration (its number from 0), kind, loss, seconds, best (the best loss so far), agreed (how many starts found it),
    repair (the history of its repair) and local (that of the local fit). ``converged``: the starts agreed, or the data are
    explained. ``progress`` hears of each start, ``listener`` of each sweep but the local solver's; to stop, they raise.
    ``layouts``: of the same entries, to share with the local solver.

    Raises:
        ValueError: a mode is fixed and there is no ``start``.
    """
    if any(problem.fixed) and start is None:
        raise ValueError("start: expected factors that hold the fixed modes, got None")
    square = problem.square()
    enough = config.explained * 0.5 * square
    began, history, fits, losses = time.monotonic(), [], [], []
    layouts, abundance = layouts or Layouts(problem), _abundance(problem)
    for number in range(config.starts):
        generator = numpy_stream(seed, "multistart", number)
        kind, first = _start(problem, config, number, generator, start, layouts, listener)
        repairs: list[dict] = []
        if kind != "given" and not any(problem.fixed):
            repaired = solve_repaired(problem, first, replace(config.repair, explained=config.explained), generator=generator,
                                      layouts=layouts, listener=listener)
            first, repairs = repaired.factors, repaired.history
        fits.append(fit := local(problem, first))
        losses.append(problem.loss(fit.factors))
        best = int(np.argmin(np.nan_to_num(losses, nan=np.inf)))
        left = losses[best] - problem.penalty(fits[best].factors)
        near = _same_tensor(problem, config, 2 * left / square if square > 0 else 0.0)
        agreed = sum(loss <= losses[best] * (1 + config.same) and
                     distance(f.factors, fits[best].factors) <= near for f, loss in zip(fits, losses, strict=True))
        history.append({"iteration": number, "kind": kind, "loss": losses[-1], "seconds": time.monotonic() - began,
                        "best": losses[best], "agreed": agreed, "repair": repairs, "local": fit.history})
        ran = f"{number + 1} start" + "s" * (number > 0)
        if progress is not None:
            progress(history[-1])
        if left <= enough:
            return Fit(fits[best].factors, history, f"the data are explained after {ran}", True)
        if agreed >= config.agree + (abundance < (config.plenty if near > config.same else config.scarce)):
            return Fit(fits[best].factors, history, f"{agreed} of {ran} agree", True)
    return Fit(fits[best].factors, history, f"{ran} ran, {agreed} found the best loss", False)


def distance(one: Factors, two: Factors) -> float:
    """Frobenius norm of the difference of two CP tensors, all entries, relative to the second's: sum_k I_k R^2 work."""
    def inner(a: Factors, b: Factors) -> float:
        product = a[0].T @ b[0]
        for x, y in zip(a[1:], b[1:], strict=True):
            product *= x.T @ y
        return float(product.sum())
    size = inner(two, two)
    square = inner(one, one) - 2 * inner(one, two) + size
    return float(np.sqrt(max(square, 0.0) / size)) if size > 0 else float(np.sqrt(max(square, 0.0)))


def _same_tensor(problem: Problem, config: MultistartConfig, left: float) -> float:
    """The distance below which two fits are the same. left: the share of the values' sum of squares that is not explained.

    A fit's own standard error is at least about sqrt(left / entries per free number) of the tensor. The same minimum is
    reached to some tenth of it, as the loss is flat there, and other minima are 2 to 4 of it away (30^3, R = 3, noise of 0.1 to
    2 standard deviations, 3 and 5 entries per free number).
    """
    return max(config.same, config.noise * math.sqrt(max(0.0, left) / _abundance(problem)))


def _abundance(problem: Problem) -> float:
    """Entries per free number of the model: those of the free modes, less the scales that may move between modes."""
    sizes = [n for n, fixed in zip(problem.shape, problem.fixed, strict=True) if not fixed]
    return len(problem.value) / (problem.rank * max(1, sum(sizes) - len(sizes) + 1))


def _start(problem: Problem, config: MultistartConfig, number: int, generator: np.random.Generator, given: Factors | None,
           layouts: Layouts, listener: Progress | None) -> tuple[str, Factors]:
    if given is not None:
        if number == 0:
            return "given", given
        number -= 1
    if number == 0 and config.cheap:
        guess = spectral_start(problem, generator=generator)
        held = guess if given is None else given
        return "spectral", tuple(h if f else g for g, h, f in zip(guess, held, problem.fixed, strict=True))
    if number < config.cheap or _abundance(problem) >= config.plenty:
        return "random", random_start(problem, given, generator=generator)
    heat = config.heats[(number - config.cheap) % len(config.heats)]
    return f"annealed, heat {heat:g}", anneal_start(problem, replace(config.anneal, heat=heat), given, generator=generator,
                                                    layouts=layouts, listener=listener)
