"""One fit of CPCompletion: find the terms on a sample of the entries, then sweep over all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.solvers import multistart
from lowrank_rl.tensor.solvers.als import ALSConfig, Engine, InMemory, fill_empty_rows, solve_als
from lowrank_rl.tensor.solvers.ccd import CCDConfig, solve_ccd
from lowrank_rl.tensor.solvers.engine_ray import RayEngine
from lowrank_rl.tensor.solvers.engine_stream import Sorted
from lowrank_rl.tensor.solvers.layout import Layouts
from lowrank_rl.tensor.solvers.lm import LMConfig, solve_lm
from lowrank_rl.tensor.solvers.problem import Factors, Fit, Problem, Progress
from lowrank_rl.tensor.stream import Stream

if TYPE_CHECKING:
    from lowrank_rl.tensor.completion import CPCompletion

SAMPLE = 20              # entries per free number of the model that suffice to find the terms
SMALLEST = 100_000       # entries that are cheap anyway
ASKED, INTERRUPTED = "the callback asked to stop", "interrupted; these are the best factors so far"


def enough(free_numbers: int) -> int:
    """Entries that suffice to find the terms of a model."""
    return max(SMALLEST, SAMPLE * free_numbers)


class Stopped(Exception):
    """The callback asked to."""


@dataclass
class Run:
    """One fit in progress: what is told on the way, and the best factors so far."""
    door: CPCompletion                 # the settings
    problem: Problem                   # of a stream, a sample; values as the user gave them
    scale: float                       # their root mean square: solvers see values in units of it
    stream: Stream | None = None       # values in ``scale``
    starts: list[dict] = field(default_factory=list)
    best: tuple[float, Factors] | None = None           # of the phase that runs
    history: list[dict] = field(default_factory=list)   # of the sweeps over all entries
    unconfirmed: bool = False          # the starts ran out before two agreed or one explained the data

    def solve(self, start: Factors | None) -> Fit:
        """``start`` is gone on from alone, unless it only holds fixed factors."""
        try:
            if start is None and not self.problem.value.any():
                zero = tuple(np.zeros((n, self.problem.rank)) for n in self.problem.shape)
                return Fit(zero, [], "all values are 0", True)
            found, layouts = start, None
            if start is None or (any(self.problem.fixed) and not self.door.continues):
                found, layouts = self._find(start)
            return self._polish(found, layouts)
        except Stopped:
            return Fit(self.best[1], self.history, ASKED, False)
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

    def _find(self, start: Factors | None) -> tuple[Factors, Layouts | None]:
        """The terms, from a sample, which is gone before the sweeps over all entries need memory; layouts of all entries."""
        sample = self._sample()
        layouts = Layouts(sample)
        try:
            found = self._search(sample, start, layouts)
        except (Stopped, KeyboardInterrupt):
            if self.best is not None:
                self.best = self.best[0], fill_empty_rows(self.best[1], sample.seen(), sample.fixed)
            raise
        if len(sample.value) == len(self.problem.value) and self.stream is None:
            return found, layouts
        return fill_empty_rows(found, sample.seen(), sample.fixed), None

    def _sample(self) -> Problem:
        """Enough entries to find the terms by, in units of ``scale``; all, if that is not much less.

        One is drawn from each run of neighbours: sorted tables are sampled evenly, and nothing is sorted here.
        """
        total, count = len(self.problem.value if self.stream is None else self.stream), enough(self.problem.free_numbers)
        if self.stream is not None:
            return self._scaled(slice(None), len(self.problem.value) / total)   # its problem is a sample already
        if 2 * count >= total:
            return self._scaled(slice(None))
        run = total // count
        chosen = np.arange(0, total - run + 1, run)
        chosen += numpy_stream(self.door.random_state, "completion", "sample").integers(run, size=len(chosen))
        return self._scaled(chosen, len(chosen) / total)

    def _scaled(self, chosen: slice | np.ndarray, share: float = 1.0) -> Problem:
        """Some entries in units of ``scale``, with the ridge as strong against them as against all."""
        problem = self.problem
        return replace(problem, index=problem.index.T[chosen].T, value=problem.value[chosen] / self.scale,
                       weight=None if problem.weight is None else problem.weight[chosen],
                       ridge=tuple(r * share for r in problem.ridge))

    def _search(self, sample: Problem, start: Factors | None, layouts: Layouts) -> Factors:
        config = multistart.MultistartConfig(starts=self.door.n_restarts)
        if self.door.init == "random":
            config = replace(config, cheap=0)
        tol, unit = max(self.door.tol, 1e-4), self.scale * self.scale

        def tell(entry: dict) -> None:
            told = {name: entry[name] for name in ("kind", "seconds", "agreed")}
            self.starts.append({**told, "loss": entry["loss"] * unit, "best": entry["best"] * unit})
            if self.door.verbose:
                print(f"start {len(self.starts)} ({entry['kind']}): loss {entry['loss'] * unit:.6g}, best "
                      f"{entry['best'] * unit:.6g} found {entry['agreed']} times, {entry['seconds']:.1f} s", flush=True)
        fit = multistart.solve(sample, lambda problem, first: self._local(problem, first, tol, layouts=layouts), config,
                               seed=self.door.random_state, start=start, progress=tell, listener=self._listener(),
                               layouts=layouts)
        self.unconfirmed = not fit.converged
        return fit.factors

    def _polish(self, start: Factors, layouts: Layouts | None) -> Fit:
        """Sweeps over all entries. ``layouts``: of all entries, in units of ``scale``."""
        door, problem = self.door, self.problem
        self.best = math.inf, start
        if door.engine == "ray":
            with RayEngine(self._scaled(slice(None)) if self.stream is None else self.stream, door.n_workers,
                           address=door.address) as engine:
                return self._local(problem, start, door.tol, engine=engine, record=True)
        if self.stream is not None:
            return self._local(problem, start, door.tol, engine=Sorted(self.stream), record=True)
        if door.device != "cpu":
            from lowrank_rl.tensor.solvers.engine_torch import TorchEngine  # here, because it brings torch

            engine = TorchEngine(self._scaled(slice(None)), door.device)
            return self._local(problem, start, door.tol, engine=engine, record=True)
        if door.solver != "als":
            return self._local(self._scaled(slice(None)), start, door.tol, record=True)
        return self._local(problem, start, door.tol, engine=InMemory(problem, layouts, self.scale), record=True)

    def _local(self, problem: Problem, start: Factors, tol: float, *, layouts: Layouts | None = None,
               engine: Engine | None = None, record: bool = False) -> Fit:
        """One run of the solver."""
        door = self.door
        told = {"progress": self._listener(record)}
        if door.solver == "lm":
            return solve_lm(problem, start, LMConfig(max_iter=door.max_iter, tolerance=tol), **told)
        if door.solver == "ccd":
            return solve_ccd(problem, start, CCDConfig(max_iter=door.max_iter, tolerance=tol), **told)
        return solve_als(problem, start, ALSConfig(max_iter=door.max_iter, tol=tol), layouts=layouts, engine=engine, **told)

    def _listener(self, record: bool = False) -> Progress | None:
        """Who hears of each sweep, if anybody wants to: factors are copied for those who listen only."""
        door = self.door
        if door.callback is None and not door.keep_interrupted and door.verbose < 2:
            return None

        def watch(entry: dict, factors: Factors) -> None:
            told = {**entry, "loss": entry["loss"] * self.scale * self.scale}
            if record:
                self.history.append(entry)
            if self.best is None or entry["loss"] < self.best[0]:
                self.best = entry["loss"], factors
            if door.verbose > 1:
                print(f"  sweep {entry['iteration']}: loss {told['loss']:.6g}, {entry['seconds']:.2f} s", flush=True)
            if door.callback is not None and door.callback(told, to_cp(factors, self.scale, self.problem)):
                raise Stopped
        return watch


def to_cp(factors: Factors, scale: float, problem: Problem) -> CP:
    """The tensor in the values' own unit; fixed factors stay as they are."""
    cp = CP(np.full(problem.rank, scale), factors)
    return cp if any(problem.fixed) else cp.normalized()
