"""python -m lowrank_rl.rl.bench --env halfcheetah: train, evaluate, and put our numbers beside the paper's."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro

from lowrank_rl import check
from lowrank_rl.files import whole
from lowrank_rl.rl import data
from lowrank_rl.rl.bench import cases, pieces, report, run, train
from lowrank_rl.rl.bench.console import Display
from lowrank_rl.rl.bench.estimate import seconds
from lowrank_rl.rl.bench.pool import Task
from lowrank_rl.rl.bench.pool import run as run_tasks
from lowrank_rl.rl.bench.store import Cell, Record, Store, locked
from lowrank_rl.rl.cards import card


@dataclass(frozen=True)
class Options:
    """Run PerSim's experiments and put our numbers beside the published ones.

    Every finished cell (method, data set, agent, seed) is a record in the output folder. Ctrl-C or a kill loses at most
    the piece in flight; the same command goes on.
    """
    env: str
    """mountaincar, cartpole or halfcheetah"""
    budget: str = "quick"
    """tiny (seconds: does it run?), quick (minutes), small (hours), or paper (as published)"""
    settings: str = "best"
    """best (ours), or paper (as published)"""
    methods: tuple[str, ...] | None = None
    """which methods: by default persim, pooled, true-env-mpc, cloned, uniform, as far as these settings have them; baselines
    run when named: vanilla-cadm, pe-ts-cadm, e-pets, bcq-p, bcq-a, cql-p, cql-a, morel-p, morel-a, persim-bcq-5,
    persim-cql-5"""
    datasets: tuple[str, ...] | None = None
    """which logged data: random, pure, pure-eps-20, pure-eps-40; by default random for tiny and quick, all for others"""
    agents: tuple[int, ...] = (1, 2, 3, 4, 5)
    """which test agents"""
    seeds: int | None = None
    """how many repeats; by default the budget's"""
    device: str = "cpu"
    """where networks run: cpu, or cuda"""
    jobs: int | None = None
    """worker processes, one thread each; by default one per core, one for a GPU"""
    out: Path | None = None
    """output folder; runs/<env> by default"""
    list: bool = False
    """print the cells and an estimate of the hours, run nothing"""


@dataclass
class _Keeper:
    """Keeps the records of finished cells and tells the display."""
    store: Store
    display: Display
    cells: dict[str, Cell]
    failures: int = field(default=0)

    def started(self, task: Task) -> None:
        self.display.start(task.name)

    def said(self, task: Task, words: str, share: float) -> None:
        self.display.say(task.name, words, share)

    def done(self, task: Task, result: Any) -> None:
        if task.name in self.cells:
            self.store.append(result)
        words = f"return {sum(result.returns) / len(result.returns):.4g}" if isinstance(result, Record) else "done"
        if isinstance(result, Record) and result.rmse is not None:
            words += f", RMSE {result.rmse:.3g}"
        self.display.finish(task.name, words)

    def failed(self, task: Task, message: str) -> None:
        self.failures += 1
        if task.name in self.cells:
            self.store.append(Record(self.cells[task.name], "failed", message=message))
        self.display.finish(task.name, f"FAILED: {message.strip().splitlines()[-1]}")


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 some cells failed, 2 bad input, 130 interrupted."""
    options = tyro.cli(Options, args=arguments, prog="python -m lowrank_rl.rl.bench")
    try:
        return _run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; finished pieces are kept and the same command goes on", file=sys.stderr)
        return 130


def _run(options: Options) -> int:
    cells = _cells(options)
    environment = cases.ENVIRONMENTS[options.env]
    out = options.out or Path("runs") / options.env
    if options.list:
        _print_list(out, cells, Store(out).load(), options.device, options.jobs or _default_jobs(options.device))
        return 0
    with locked(out):
        store = Store(out)
        records = store.load()
        pieces.check_files(out, cells)
        todo = [cell for cell in cells if not _done(cell, records)]
        tasks = _tasks(out, todo, options.device)
        print(f"{options.env}: {len(cells)} cells, {len(cells) - len(todo)} of them done before; results go to {out}")
        failures = 0
        if tasks:
            with Display(len(tasks)) as display:
                keeper = _Keeper(store, display, {str(cell): cell for cell in todo})
                run_tasks(tasks, options.jobs or _default_jobs(options.device), keeper)
                failures = keeper.failures
        records = store.load()
        alike = [cell for cell in records if cell.environment == options.env
                 and (cell.budget, cell.settings) == (options.budget, options.settings)]
        _report(out, environment, sorted({*cells, *alike}, key=_place), records)
    return 1 if failures else 0


def _done(cell: Cell, records: dict[Cell, Record]) -> bool:
    """Whether a record says so, and was made with today's settings."""
    return cell in records and records[cell].status == "done" and pieces.same_settings(
        records[cell].config, pieces.settings_of(cell))


def _cells(options: Options) -> list[Cell]:
    """What was asked for, checked, in the order of the tables."""
    check.known("environment", options.env, cases.ENVIRONMENTS)
    check.known("budget", options.budget, cases.BUDGET_NAMES)
    check.known("settings", options.settings, cases.SETTINGS)
    known = cases.methods(options.settings, options.env)
    methods = cases.methods(options.settings, options.env, baselines=False) if options.methods is None else options.methods
    for method in methods:
        check.known("method", method, known)      # of these settings and this environment
    datasets = options.datasets
    if datasets is None:
        datasets = tuple(cases.BEHAVIOUR) if options.budget in ("small", "paper") else ("random",)
    for dataset in datasets:
        check.known("data set", dataset, cases.BEHAVIOUR)
    tests = len(cases.ENVIRONMENTS[options.env].test_agents)
    for agent in options.agents:
        check.known("agent", agent, range(1, tests + 1))
    for name, values in (("--methods", methods), ("--datasets", datasets), ("--agents", options.agents)):
        if not values:
            raise ValueError(f"{name}: expected at least one, got none; leave it away for all")
    if options.seeds is not None:
        check.count("--seeds", options.seeds)
    if options.jobs is not None:
        check.count("--jobs", options.jobs)
    check.device(options.device)
    seeds = options.seeds or cases.BUDGETS[options.budget, options.env].seeds
    return list(dict.fromkeys(
        Cell(options.env, dataset if cases.METHODS[method].learns else "none", method, agent, seed, options.settings,
             options.budget)
        for dataset in datasets for method in methods for seed in range(seeds)
        for agent in options.agents))


def _tasks(out: Path, cells: list[Cell], device: str) -> list[Task]:
    """Data, then training, then cells; what is shared is done once."""
    shared: dict[str, Task] = {}
    last = []
    for cell in cells:
        needs = frozenset[str]()
        if cases.METHODS[cell.method].learns:
            logged = f"data {pieces.data_path(out, cell).stem}"
            trained = f"train {cell.environment}/{cell.dataset}/{cell.method}/seed {cell.seed}"
            shared.setdefault(logged, Task(logged, train.make_data, (out, cell)))
            simulator = pieces.simulator_of(cell)
            first = frozenset([logged])
            if simulator:
                before = f"train {simulator.environment}/{simulator.dataset}/{simulator.method}/seed {simulator.seed}"
                shared.setdefault(before, Task(before, train.train, (out, simulator, device), first))
                first = frozenset([before])
            shared.setdefault(trained, Task(trained, train.train, (out, cell, device), first))
            needs = frozenset([trained])
        last.append(Task(str(cell), run.run_cell, (out, cell, device), needs))
    return [*shared.values(), *last]


def _place(cell: Cell) -> tuple[int, ...]:
    """Where it stands in the tables; what learns nothing stands with the first data set."""
    dataset = 0 if cell.dataset == "none" else list(cases.BEHAVIOUR).index(cell.dataset)
    return dataset, list(cases.METHODS).index(cell.method), cell.seed, cell.agent


def _default_jobs(device: str) -> int:
    return (os.cpu_count() or 1) if torch.device(device).type == "cpu" else 1


def _report(out: Path, environment: Any, cells: list[Cell], records: dict[Cell, Record]) -> None:
    """The table on the screen, report.md, and the pictures."""
    first = cells[0]
    logged = {cell.dataset: pieces.data_path(out, cell) for cell in cells if cell.dataset != "none"}
    cards = [card(data.load(path), environment) for path in logged.values() if path.exists()]
    text = report.tables(environment, cells, records)
    notes = report.footnotes(environment, cells, records)
    try:
        from lowrank_rl.rl.bench.plots import draw_all  # optional: the extra "plot"
    except ModuleNotFoundError:
        pictures = []
        print("no pictures: install the extra 'plot' for them (pip install lowrank_rl[plot])")
    else:
        drawn = draw_all(out, environment, cells, records)
        # those of an earlier run stay in the report, though what they were drawn from is gone
        kept = sorted(set(out.glob(f"{environment.name}-*-{first.budget}-{first.settings}-*.png")) - set(drawn))
        pictures = [*drawn, *kept]
    title = f"# {environment.name}, budget {first.budget}, settings {first.settings}"
    blocks = [title, text, notes, *(f"```\n{lines}\n```" for lines in cards),
              *(f"![{picture.stem}]({picture.name})" for picture in pictures)]
    path = out / f"report-{first.budget}-{first.settings}.md"
    with whole(path) as partial:
        partial.write_text("\n\n".join(blocks) + "\n")
    print("\n" + "\n\n".join([*cards, text, notes]))
    print("\n".join(["", f"report    {path}", *(f"picture   {picture}" for picture in pictures)]))


def _print_list(out: Path, cells: list[Cell], records: dict[Cell, Record], device: str, jobs: int) -> None:
    """Every cell, whether it is done, and what it would cost."""
    torch.set_num_threads(1)     # as in the workers
    total, costs = 0.0, {}
    trained = set()
    for cell in cells:
        key = (cell.dataset, cell.method)
        costs[key] = costs.get(key) or seconds(cell, device)
        training, acting = costs[key]
        state = "done" if _done(cell, records) else "to do"
        cost = 0.0 if state == "done" else acting
        if cost and (*key, cell.seed) not in trained:
            trained.add((*key, cell.seed))
            cost += 0.0 if pieces.model_path(out, cell).exists() else training
        total += cost
        print(f"{state:6}  {cell}  {f'{cost / 3600:.2f} h' if cost >= 360 else f'{cost:.0f} s' if cost else ''}")
    print(f"{len(cells)} cells; about {total / 3600:.2f} hours of one worker, {total / 3600 / jobs:.2f} with {jobs}, "
          "from a probe of this machine (data collection, prediction errors and pictures not counted)")


if __name__ == "__main__":
    sys.exit(main())
