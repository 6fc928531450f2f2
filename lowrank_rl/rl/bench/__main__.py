"""python -m lowrank_rl.rl.bench --env halfcheetah: train, evaluate, and put our numbers beside the paper's."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from lowrank_rl.rl.bench import cases, estimate, merge, pieces, ray_pool, reports
from lowrank_rl.rl.bench.console import Display
from lowrank_rl.rl.bench.options import Options, asked_for, checked, folders, gpus, jobs, part
from lowrank_rl.rl.bench.pool import Task, Watcher
from lowrank_rl.rl.bench.pool import run as run_tasks
from lowrank_rl.rl.bench.store import Cell, Record, Store, locked
from lowrank_rl.rl.bench.suites import Work, work
from lowrank_rl.rl.bench.tasks import shard, tasks, unfinished

RETRIES = 2     # of a task that fails, but for bad input


@dataclass
class Keeper:
    """Keeps the records of finished cells and tells the display."""
    stores: dict[str, Store]       # by environment
    display: Display
    cells: dict[str, Cell]         # by the name of their task
    failures: int = field(default=0)

    def started(self, task: Task) -> None:
        self.display.start(task.name)

    def said(self, task: Task, words: str, share: float) -> None:
        self.display.say(task.name, words, share)

    def retried(self, task: Task, message: str) -> None:
        self.display.again(task.name, f"will be tried again: {message.strip().splitlines()[-1]}")

    def done(self, task: Task, result: Any) -> None:
        if task.name in self.cells:
            self._keep(result)
        words = f"return {sum(result.returns) / len(result.returns):.4g}" if isinstance(result, Record) else "done"
        if isinstance(result, Record) and result.rmse is not None:
            words += f", RMSE {result.rmse:.3g}"
        self.display.finish(task.name, words)

    def failed(self, task: Task, message: str) -> None:
        self.failures += 1
        if task.name in self.cells:
            self._keep(Record(self.cells[task.name], "failed", message=message))
        self.display.finish(task.name, f"FAILED: {message.strip().splitlines()[-1]}")

    def _keep(self, record: Record) -> None:
        self.stores[record.cell.environment].append(record)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 some cells failed, 2 bad input, 130 interrupted."""
    options = tyro.cli(Options, args=arguments, prog="python -m lowrank_rl.rl.bench")
    try:
        checked(options)
        return _merge(options) if options.merge else _run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished pieces are kept and the same command goes on", file=sys.stderr)
        return 130


def _run(options: Options) -> int:
    asked = work(options)
    if not asked.all:
        raise ValueError("expected cells, got none of these methods, data sets and agents together; name others")
    mine = shard(asked, *part(options.shard)) if options.shard else asked
    if not mine.all:
        print(f"shard {options.shard} has none of the {len(asked.all)} cells: fewer shards would do")
        return 0
    out = folders(options, mine.environments)
    loaded = {folder: Store(folder) for folder in dict.fromkeys(out.values())}
    if options.list:
        records = {folder: store.load() for folder, store in loaded.items()}
        estimate.print_list(out, mine, {name: records[folder] for name, folder in out.items()}, options.device, jobs(options))
        return 0
    with ExitStack() as stack:
        for folder in loaded:
            stack.enter_context(locked(folder))
        stores = {name: loaded[folder] for name, folder in out.items()}
        failures = _finish(options, mine, out, stores)
        records = {folder: store.load() for folder, store in loaded.items()}
        together = None if options.shard else asked_for(options)      # a shard has but a part of it
        reports.write(out, options.budget, options.settings, mine, records, together)
    return 1 if failures else 0


def _finish(options: Options, mine: Work, out: dict[str, Path], stores: dict[str, Store]) -> int:
    """Run what is not done yet; how much of it failed. out, stores: by environment."""
    records = {store: store.load() for store in dict.fromkeys(stores.values())}
    for name, folder in out.items():
        pieces.check_files(folder, [cell for cell in mine.all if cell.environment == name])
    left = unfinished(out, mine, {name: records[store] for name, store in stores.items()})
    for name, folder in out.items():
        asked, todo = (sum(cell.environment == name for cell in cells) for cells in (mine.cells, left.cells))
        print(f"{name}: {asked} cells, {asked - todo} of them done before; results go to {folder}")
    all_tasks = tasks(out, left, options.device)
    if not all_tasks:
        return 0
    with Display(len(all_tasks)) as display:
        keeper = Keeper(stores, display, {str(cell): cell for cell in left.cells})
        _execute(options, all_tasks, keeper, list(dict.fromkeys(out.values())))
    return keeper.failures


def _execute(options: Options, all_tasks: Sequence[Task], watcher: Watcher, shared: list[Path]) -> None:
    if options.executor == "ray":
        many = jobs(options) if options.ray_address == "local" else options.jobs
        ray_pool.run(all_tasks, watcher, shared, address=options.ray_address or "auto", jobs=many,
                     device=options.device, gpus=gpus(options), retries=RETRIES)
    else:
        run_tasks(all_tasks, jobs(options), watcher, RETRIES)


def _merge(options: Options) -> int:
    """Unite, and report what there is."""
    print(merge.merge(options.out, options.merge, options.keep_first))
    records = Store(options.out).load()
    known = [cell for cell in records if cases.knows(cell)]
    for budget, settings in dict.fromkeys((cell.budget, cell.settings) for cell in known):
        alike = {cell.environment: options.out for cell in known if (cell.budget, cell.settings) == (budget, settings)}
        reports.write(alike, budget, settings, Work(), {options.out: records}, "report")
    return 1 if any(record.status == "failed" for record in records.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
