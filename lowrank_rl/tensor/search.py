"""One fit of CPCompletion: find the terms on a sample of the entries, then sweep over all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.solvers import multistart
from lowrank_rl.tensor.solvers.als import ALSConfig, Engine, fill_empty_rows, solve_als
from lowrank_rl.tensor.solvers.ccd import CCDConfig, solve_ccd
from lowrank_rl.tensor.solvers.engine_ray import RayEngine
from lowrank_rl.tensor.solvers.engine_stream import Sorted
from lowrank_rl.tensor.solvers.layout import Layouts
from lowrank_rl.tensor.solvers.lm import LMConfig, solve_lm
from lowrank_rl.tensor.solvers.problem import Factors, Fit, Problem
from lowrank_rl.tensor.stream import Stream

if TYPE_CHECKING:
    from lowrank_rl.tensor.completion import CPCompletion

SAMPLE = 20              # entries per free number of the model that suffice to find the terms
SMALLEST = 100_000       # entries that are cheap anyway
ASKED, INTERRUPTED = "the callback asked to stop", "interrupted; these are the best factors so far"


def enough(free_numbers: int) -> int:
    """Entries that suffice to find the terms of a model."""
    return max(SMALLEST, SAMPLE * free_numbers)


@dataclass
class Run:
    """One fit in progress: what is told on the way, and the best factors so far."""
    door: CPCompletion                 # the settings
    problem: Problem                   # values in ``scale``; of a stream, a sample
    scale: float
    stream: Stream | None = None       # values in ``scale`` too
    starts: list[dict] = field(default_factory=list)
    best: tuple[float, Factors] | None = None           # of the phase that runs
    history: list[dict] = field(default_factory=list)   # of the solver run that goes on
    stop: bool = False
    unconfirmed: bool = False          # the starts ran out before two agreed or one explained the data

    def solve(self, start: Factors | None) -> Fit:
        """``start`` is gone on from alone, unless it only holds fixed factors."""
        try:
            if not self.problem.value.any() and start is None:
                zero = tuple(np.zeros((n, self.problem.rank)) for n in self.problem.shape)
                return Fit(zero, [], "all values are 0", True)
            found, layouts = start, Layouts(self.problem)
            if start is None or (any(self.problem.fixed) and not self.door.continues):
                found = self._find(start, layouts)
            if self.stop:
                return Fit(found, self.history, ASKED, False)
            self.best = math.inf, found
            with self._engine() as engine:
                fit = self._local(self.problem, found, self.door.tol, layouts, engine)
            return Fit(fit.factors, fit.history, ASKED, False) if self.stop else fit
        except KeyboardInterrupt:
            if not self.door.keep_interrupted or self.best is None:
                raise
            return Fit(self.best[1], self.history, INTERRUPTED, False)

    def seen(self) -> tuple[np.ndarray, ...]:
        """For each mode which rows have entries, (I_k,) bool."""
        seen = self.problem.seen()
        for index, _, _ in self.stream.chunks() if self.stream is not None else ():
            for mode, rows in zip(seen, index, strict=True):
                mode[rows] = True
        return seen

    @contextmanager
    def _engine(self) -> Iterator[Engine | None]:
        """Who sums over all entries; None: the solver itself, in memory."""
        if self.door.engine == "ray":
            with RayEngine(self.problem if self.stream is None else self.stream, self.door.n_workers,
                           address=self.door.address) as engine:
                yield engine
        elif self.stream is not None:
            yield Sorted(self.stream)
        elif self.door.device != "cpu":
            from lowrank_rl.tensor.solvers.engine_torch import TorchEngine  # here, because it brings torch

            yield TorchEngine(self.problem, self.door.device)
        else:
            yield None

    def _find(self, start: Factors | None, layouts: Layouts) -> Factors:
        """The terms, from a sample, which is gone before the sweeps over all entries need memory."""
        sample = self._sample()
        if sample is self.problem:
            return self._search(sample, start, layouts)
        return fill_empty_rows(self._search(sample, start, Layouts(sample)), sample.seen(), sample.fixed)

    def _sample(self) -> Problem:
        """Enough entries to find the terms by, drawn at random; all, if that is not much less."""
        problem, total = self.problem, len(self.problem.value if self.stream is None else self.stream)
        count = enough(problem.free_numbers)
        chosen: slice | np.ndarray = slice(None)          # a stream's problem is a sample already
        if self.stream is not None:
            count = len(problem.value)
        elif 2 * count >= total:
            return problem
        else:
            generator = numpy_stream(self.door.random_state, "completion", "sample")
            chosen = np.sort(generator.choice(total, count, replace=False, shuffle=False))
        ridge = tuple(r * count / total for r in problem.ridge)   # as much against the data as with all of them
        return replace(problem, index=np.ascontiguousarray(problem.index[:, chosen]), value=problem.value[chosen], ridge=ridge,
                       weight=None if problem.weight is None else problem.weight[chosen])

    def _search(self, sample: Problem, start: Factors | None, layouts: Layouts) -> Factors:
        config = multistart.MultistartConfig(starts=self.door.n_restarts)
        if self.door.init == "random":
            config = replace(config, cheap=0)
        tol, unit = max(self.door.tol, 1e-4), self.scale * self.scale

        def tell(entry: dict, factors: Factors) -> bool:
            told = {name: entry[name] for name in ("kind", "seconds", "agreed")}
            self.starts.append({**told, "loss": entry["loss"] * unit, "best": entry["best"] * unit})
            if self.door.verbose:
                print(f"start {len(self.starts)} ({entry['kind']}): loss {entry['loss'] * unit:.6g}, best "
                      f"{entry['best'] * unit:.6g} found {entry['agreed']} times, {entry['seconds']:.1f} s", flush=True)
            return self.stop
        fit = multistart.solve(sample, lambda problem, first: self._local(problem, first, tol, layouts), config,
                                seed=self.door.random_state, start=start, progress=tell, layouts=layouts)
        self.unconfirmed = not fit.converged
        return fit.factors

    def _local(self, problem: Problem, start: Factors, tol: float, layouts: Layouts,
               engine: Engine | None = None) -> Fit:
        """One run of the solver. Factors are copied for those who listen only."""
        door, self.history = self.door, []
        listens = door.callback is not None or door.keep_interrupted or door.verbose > 1
        told = {"progress": self._watch if listens else None}
        if door.solver == "lm":
            return solve_lm(problem, start, LMConfig(max_iter=door.max_iter, tolerance=tol), **told)
        if door.solver == "ccd":
            return solve_ccd(problem, start, CCDConfig(max_iter=door.max_iter, tolerance=tol), **told)
        return solve_als(problem, start, ALSConfig(max_iter=door.max_iter, tol=tol), layouts=layouts, engine=engine, **told)

    def _watch(self, entry: dict, factors: Factors) -> bool:
        self.history.append(entry)
        told = {**entry, "loss": entry["loss"] * self.scale * self.scale}
        if self.best is None or entry["loss"] < self.best[0]:
            self.best = entry["loss"], factors
        if self.door.verbose > 1:
            print(f"  sweep {entry['iteration']}: loss {told['loss']:.6g}, {entry['seconds']:.2f} s", flush=True)
        if self.door.callback is not None:
            self.stop = bool(self.door.callback(told, to_cp(factors, self.scale, self.problem)))
        return self.stop


def to_cp(factors: Factors, scale: float, problem: Problem) -> CP:
    """The tensor in the values' own unit; fixed factors stay as they are."""
    cp = CP(np.full(problem.rank, scale), factors)
    return cp if any(problem.fixed) else cp.normalized()
