"""What the benchmark's runner costs beside its cells: per cell, share of time that workers are busy, and a large store.

    python benchmarks/runner.py            # two minutes
    python benchmarks/runner.py --help

Cells that do nothing, and such that take 20 and 100 ms, run on two workers as the command runs them: each leaves a record,
which is written and synced to the disk, and lines for the display. Local processes and Ray (if installed) in the same run.
Cells wait instead of computing, so that what else the machine does adds little to them. Time counts once both workers are up.
Prints Markdown and writes results/runner.csv.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro
from tables import show, write

from lowrank_rl.rl.bench import cases, pieces, ray_pool, report, run
from lowrank_rl.rl.bench.__main__ import Keeper
from lowrank_rl.rl.bench.console import Display
from lowrank_rl.rl.bench.pool import Task
from lowrank_rl.rl.bench.pool import run as run_locally
from lowrank_rl.rl.bench.store import Cell, Record, Store

CELL = Cell("cartpole", "random", "persim", 1, 0, "best", "quick")
CONFIG, BY_STEP = pieces.settings_of(CELL), [0.001 * step for step in range(51)]


@dataclass(frozen=True)
class Options:
    """Measure, print, and write results/runner.csv."""
    cells: int = 1000
    """how many of each length"""
    workers: int = 2
    records: int = 100_000
    """in the large store"""
    out: Path = Path("results/runner.csv")


def tiny(cell: Cell, seconds: float, say: Callable) -> Record:
    """A cell that does nothing for a while; its record tells how long it took."""
    began = time.perf_counter()
    if seconds:
        time.sleep(seconds)
    say("acting", 1.0)
    return record(cell, time.perf_counter() - began)


def warm(say: Callable) -> None:
    """Both workers are up when both have done this."""
    time.sleep(1.0)


def record(cell: Cell, seconds: float) -> Record:
    """As large as those of real cells."""
    return Record(cell, "done", returns=[200.0] * 20, lengths=[200] * 20, rmse=0.001, r2=0.999, error_episodes=200,
                  error_by_step=BY_STEP, same_action=0.5, config=CONFIG, training={"epoch": 60, "loss": 0.002},
                  commit=run.commit(), versions=dict(run.versions()), device="cpu", seconds=seconds)


class Clock(Keeper):
    """Notes when the workers were up and when the last cell was kept."""
    up = last = 0.0

    def done(self, task: Task, result: Any) -> None:
        super().done(task, result)
        self.last = time.perf_counter()
        if task.name.startswith("warm"):
            self.up = self.last


def overhead(executor: str, runner: Callable, options: Options, seconds: float) -> dict:
    """Milliseconds of each cell beyond its own time, and the share of the workers' time that was the cells' own."""
    cells = [replace(CELL, seed=i) for i in range(options.cells)]
    first = [Task(f"warm {i}", warm, ()) for i in range(options.workers)]
    tasks = [*first, *(Task(str(cell), tiny, (cell, seconds), frozenset(task.name for task in first)) for cell in cells)]
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        store = Store(Path(folder))
        with Display(len(tasks)) as display:
            clock = Clock({CELL.environment: store}, display, {str(cell): cell for cell in cells})
            runner(tasks, clock)
        own = sum(kept.seconds for kept in store.load().values())
    wall = clock.last - clock.up
    return {"what": f"cells of {1000 * seconds:g} ms", "executor": executor, "count": options.cells, "workers": options.workers,
            "wall_s": wall, "overhead_ms": 1000 * (wall * options.workers - own) / options.cells,
            "busy": own / (wall * options.workers)}


def large_store(count: int) -> list[dict]:
    """Seconds to write, load, add to and report so many records."""
    methods = [name for name, method in cases.METHODS.items() if method.learns and name != "cloned"]
    kinds = [(dataset, method, agent) for dataset in cases.BEHAVIOUR for method in methods for agent in range(1, 6)]
    cells = [replace(CELL, dataset=dataset, method=method, agent=agent, seed=seed) for seed in range(-(-count // len(kinds)))
             for dataset, method, agent in kinds][:count]
    rows = []

    def took(what: str, function: Callable[[], Any]) -> Any:
        began, busy = time.perf_counter(), time.process_time()
        found = function()
        rows.append({"what": what, "count": len(cells), "wall_s": time.perf_counter() - began,
                     "cpu_s": time.process_time() - busy})
        show(rows[-1])
        return found

    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        took("store: write", lambda: store.extend(record(cell, 1.0) for cell in cells))
        records = took("store: load", store.load)
        took("store: add one", lambda: store.append(record(CELL, 1.0)))
        took("report", lambda: report.build(cases.ENVIRONMENTS[CELL.environment], cells, records))
    return rows


def main(options: Options) -> None:
    runners = {"local": lambda tasks, watcher: run_locally(tasks, options.workers, watcher)}
    if find_spec("ray"):
        # by default its workers give way to whatever else runs
        os.environ["RAY_worker_niceness"] = "0"     # noqa: SIM112
        runners["ray"] = partial(ray_pool.run, folders=[], address="local", jobs=options.workers)
    rows = []
    for seconds in (0.0, 0.02, 0.1):
        for executor, runner in runners.items():
            rows.append(overhead(executor, runner, options, seconds))
            show(rows[-1])
    write(options.out, [*rows, *large_store(options.records)])


if __name__ == "__main__":
    main(tyro.cli(Options))
