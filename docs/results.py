"""Draws results.md from the committed records: `python docs/results.py`."""

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lowrank_rl.files import whole
from lowrank_rl.rl.bench import cases, published, report, reports, suites
from lowrank_rl.rl.bench.gather import Gathered
from lowrank_rl.rl.bench.markup import PICTURES, kind_of
from lowrank_rl.rl.bench.options import Options
from lowrank_rl.rl.bench.page import NAMES
from lowrank_rl.rl.bench.store import Cell, Record, Store
from lowrank_rl.rl.bench.tables import Row, Table, duration, markdown
from lowrank_rl.rl.bench.tasks import finished

ROOT = Path(__file__).resolve().parents[1]
BUDGET, SETTINGS = "small", "best"
SHOWN = ("*-scarcity", "*-adaptation", "*-random-*-latent")     # of the pictures beside the records
Records = dict[str, dict[Cell, Record]]

HEAD = f"""# Results

Drawn from the committed records by `python docs/results.py`; nothing on this page is typed by hand. Ours, budget `{BUDGET}`,
settings `{SETTINGS}`: mean ± standard deviation over seeds, or over episodes where there is one seed; the paper's: over five
repeats. The full reports have n and a 95 % interval beside each number, and what each cell cost. A star marks a number of the
paper that is suspect, with the reason under the table. "Paper, not run by us" is the rest of the paper's table.
"""


def page() -> str:
    records = {name: Store(ROOT / "results" / name).load() for name in cases.ENVIRONMENTS}
    parts = [HEAD, *(part for name in cases.ENVIRONMENTS for part in environment(name, records[name])),
             *strength(records), *tables(records)]
    return "\n".join(parts).rstrip() + "\n"


def environment(name: str, records: dict[Cell, Record]) -> list[str]:
    """Who is better where, then a table of returns and one of errors for every data set, and pictures."""
    cells = [cell for cell in records if (cell.budget, cell.settings) == (BUDGET, SETTINGS)]
    cells.sort(key=reports.place)
    built = report.build(cases.ENVIRONMENTS[name], cells, records)
    told = f"results/{name}/report-{name}-{BUDGET}-{SETTINGS}.md"
    lines = [f"## {NAMES[name]}", "", f"[The full report](../{told}).", ""]
    for part in built.parts:
        lines += [seeds(part.gathered), ""]
        for key in ("wins", "ranks"):
            table = part.table(key)
            lines += markdown(table) if table else []
        for dataset in part.gathered.datasets:
            for key in ("reward", "rmse"):
                table, paper = part.table(key), published.table_of(name, dataset, key, part.gathered.unseen)
                lines += compact(table, dataset, paper) if table else []
    beside = (ROOT / "results" / name).glob(f"*-{BUDGET}-{SETTINGS}-*.png")
    for path in sorted(path for path in beside if any(path.match(f"{kind}.png") for kind in SHOWN)):
        lines += [f"![{PICTURES[kind_of(path)]}](../results/{name}/{path.name})", ""]
    return lines


def seeds(gathered: Gathered) -> str:
    """How many seeds each method has, by data set."""
    found: dict[str, list[str]] = {}
    for group in gathered.groups:
        if group.dataset != "none" and group.records:
            count = len({record.cell.seed for record in group.records})
            found.setdefault(f"{group.method} {count}", []).append(group.dataset)
    whose = "Unseen agents, seeds: " if gathered.unseen else "Seeds: "
    return whose + "; ".join(f"{method} ({', '.join(data)})" for method, data in found.items()) + "."


def compact(table: Table, dataset: str, paper: str | None) -> list[str]:
    """One data set's rows without the smaller words, the paper's of methods that did not run among them."""
    rows = []
    for row in table.rows:
        if row.labels[1] == dataset:
            source = "paper, not run by us" if row.kind == "unrun" else row.labels[2]
            entries = tuple(replace(entry, detail="") for entry in row.entries)
            rows.append(Row((row.labels[0], source), entries, "paper" if row.kind == "unrun" else row.kind))
    if not rows:
        return []
    where = f", Table {paper}" if paper else ""
    title = f"{table.title}, data `{dataset}`{where}"
    return markdown(replace(table, title=title, labels=("method", ""), rows=tuple(rows)))


def strength(records: Records) -> list[str]:
    """Whether our baselines are as strong as the paper's."""
    returns: dict[Cell, list[float]] = {}
    for cell, record in (item for own in records.values() for item in own.items()):
        mine = (cell.budget, cell.settings, record.status) == (BUDGET, SETTINGS, "done")
        if mine and cases.METHODS[cell.method].baseline and record.returns:
            returns.setdefault(replace(cell, seed=0), []).extend(record.returns)
    found: dict[tuple[str, str], dict[str, list[bool]]] = {}
    for cell, mine in sorted(returns.items(), key=lambda item: reports.place(item[0])):
        theirs = published.paper(cell, "reward")
        if theirs and not published.doubtful(theirs[2]):
            strong = sum(mine) / len(mine) >= theirs[0] - (theirs[1] or 0.0)
            found.setdefault((cell.environment, cell.method), {}).setdefault(cell.dataset, []).append(strong)
    datasets = [dataset for dataset in cases.DATASETS if any(dataset in row for row in found.values())]
    lines = ["## Are our baselines as strong as the paper's?", "",
             "Cells whose mean return is at least the paper's less one of its standard deviations, of those that have run and",
             "have a number of the paper that is not suspect.", "",
             f"| | method | {' | '.join(f'`{dataset}`' for dataset in datasets)} |", "|---|---|" + "---|" * len(datasets)]
    for (name, method), row in sorted(found.items(), key=lambda item: list(cases.ENVIRONMENTS).index(item[0][0])):
        counts = (f"{sum(row[dataset])} of {len(row[dataset])}" if dataset in row else "" for dataset in datasets)
        lines.append(f"| {NAMES[name]} | {method} | {' | '.join(counts)} |")
    return [*lines, ""]


def tables(records: Records) -> list[str]:
    """How much of each table of the paper has run, what is left of it, and what such cells took where one has run."""
    lines = ["## What has run, and what has not", "",
             f"Cells of `--table N --budget {BUDGET}` by environment: done of all. What is left has in brackets what a cell of",
             "that method took, with its share of the training, where one has run; where none has, what a short probe says",
             "([estimates](../results/estimates.csv)). Tables 1 and 2 are columns of 6 to 11.",
             "", "| table | done of all | left |", "|---|---|---|"]
    for number, suite in suites.TABLES.items():
        if suite.stage != "cells" or number in (1, 2):
            continue
        cells = suites.work(Options(table=number, budget=BUDGET, settings=SETTINGS)).cells
        open_cells = [cell for cell in cells if not finished(cell, records[cell.environment])]
        done = Counter(cell.environment for cell in cells)
        left = Counter(cell.environment for cell in open_cells)
        counts = ", ".join(f"{NAMES[name]} {done[name] - left[name]} of {count}" for name, count in done.items())
        lines.append(f"| {number} | {counts} | {remaining(open_cells, records)} |")
    return lines


def remaining(cells: Iterable[Cell], records: Records) -> str:
    counts = Counter((cell.environment, cell.method) for cell in cells)
    told = (f"{NAMES[name]} {method} {count}{took(name, method, records)}" for (name, method), count in counts.items())
    return ", ".join(told) or "nothing"


def took(environment: str, method: str, records: Records) -> str:
    mine = [record for cell, record in records[environment].items() if record.status == "done" and
            (cell.method, cell.budget, cell.settings) == (method, BUDGET, SETTINGS)]
    if not mine:
        return probed(environment, method)
    seconds = [record.seconds + (record.training.get("seconds") or 0.0) / len(suites.ALL) for record in mine]
    return f" ({duration(sum(seconds) / len(seconds))})"


def probed(environment: str, method: str) -> str:
    """What a cell that never ran would take, where benchmarks/estimates.py has probed it."""
    with (ROOT / "results" / "estimates.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if (row["environment"], row["method"]) == (environment, method):
                seconds = float(row["training seconds"]) / len(suites.ALL) + float(row["acting seconds"])
                return f" (probe: {duration(seconds)})"
    return ""


if __name__ == "__main__":
    with whole(ROOT / "docs" / "results.md") as partial:
        partial.write_text(page())
