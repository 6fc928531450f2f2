"""Draws results.md from the committed records: `python docs/results.py`."""

import csv
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lowrank_rl.files import whole
from lowrank_rl.rl.bench import cases, published, report, reports, suites
from lowrank_rl.rl.bench.gather import Gathered, Group
from lowrank_rl.rl.bench.markup import PICTURES, kind_of
from lowrank_rl.rl.bench.options import Options
from lowrank_rl.rl.bench.page import NAMES
from lowrank_rl.rl.bench.statistics import mean_sd
from lowrank_rl.rl.bench.store import Cell, Record, Store
from lowrank_rl.rl.bench.tables import Row, Table, duration, markdown, number
from lowrank_rl.rl.bench.tasks import finished

ROOT = Path(__file__).resolve().parents[1]
BUDGET, SETTINGS = "small", "best"
SHOWN = ("*-scarcity", "*-adaptation", "*-random-*-latent")     # of the pictures beside the records
OLDER = "(older)"
Records = dict[str, dict[Cell, Record]]

HEAD = f"""# Results

Drawn from the committed records by `python docs/results.py`; nothing on this page is typed by hand. Ours, budget `{BUDGET}`,
settings `{SETTINGS}`: mean ± standard deviation over seeds, or over episodes where there is one seed; the paper's: over five
repeats. The full reports have n and a 95 % interval beside each number, and what each cell cost. A star marks a number of the
paper that is suspect, with the reason under the table. "Paper, not run by us" is the rest of the paper's table. Rows marked
{OLDER} were made with settings or code that have changed since; counts include them until newer ones have run.
"""


def page() -> str:
    records = {name: Store(ROOT / "results" / name).load() for name in cases.ENVIRONMENTS}
    built = {name: report.build(cases.ENVIRONMENTS[name], shown(records[name]), records[name]) for name in cases.ENVIRONMENTS}
    parts = [HEAD, *(part for name in cases.ENVIRONMENTS for part in environment(name, built[name])), *strength(built),
             *tables(records)]
    return "\n".join(parts).rstrip() + "\n"


def shown(records: dict[Cell, Record]) -> list[Cell]:
    return sorted((cell for cell in records if (cell.budget, cell.settings) == (BUDGET, SETTINGS)), key=reports.place)


def environment(name: str, built: report.Report) -> list[str]:
    """Who is better where, then a table of returns and one of errors for every data set, and pictures."""
    told = f"results/{name}/report-{name}-{BUDGET}-{SETTINGS}.md"
    lines = [f"## {NAMES[name]}", "", f"[The full report](../{told}).", ""]
    for part in built.parts:
        lines += [seeds(part.gathered), ""]
        for key in ("wins", "ranks", "looks"):
            table = part.table(key)
            lines += markdown(table) if table else []
        older = {(group.method, group.dataset) for group in part.gathered.groups if group.older}
        for dataset in part.gathered.datasets:
            for key in ("reward", "rmse"):
                table, paper = part.table(key), published.table_of(name, dataset, key, part.gathered.unseen)
                lines += compact(table, dataset, paper, older) if table else []
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


def compact(table: Table, dataset: str, paper: str | None, older: set[tuple[str, str]]) -> list[str]:
    """One data set's rows without the smaller words, the paper's of methods that did not run among them.

    older: methods and data sets whose records are none of today's."""
    rows = []
    for row in table.rows:
        if row.labels[1] == dataset:
            source = "paper, not run by us" if row.kind == "unrun" else row.labels[2]
            source += f" {OLDER}" if row.kind == "ours" and row.labels[:2] in older else ""
            entries = tuple(replace(entry, detail="") for entry in row.entries)
            rows.append(Row((row.labels[0], source), entries, "paper" if row.kind == "unrun" else row.kind))
    if not rows:
        return []
    where = f", Table {paper}" if paper else ""
    title = f"{table.title}, data `{dataset}`{where}"
    return markdown(replace(table, title=title, labels=("method", ""), rows=tuple(rows)))


def strength(built: dict[str, report.Report]) -> list[str]:
    """Whether our baselines are as strong as the paper's, agent by agent."""
    lines = ["## Are our baselines as strong as the paper's?", "",
             "Mean returns ± deviation over seeds, or over episodes where there is one seed; in brackets the paper's.",
             "Stronger: our mean is above the paper's and one of its standard deviations; as strong: within; weaker: below.",
             "Numbers of the paper that are suspect (*) are not judged. What is behind the weaker ones is said with the",
             "[baselines](baselines.md#numbers-and-verdicts).", ""]
    for name, known in built.items():
        agents, rows, verdicts = known.gathered.agents, [], Counter()
        for group in known.gathered.groups:
            if cases.METHODS[group.method].baseline:
                places = {agent: contest(group, agent) for agent in agents}
                judged = {agent: verdict for agent, (_, verdict) in places.items()}
                verdicts += Counter(judged.values())
                method = f"{group.method} {OLDER}" if group.older else group.method
                rows.append([method, f"`{group.dataset}`", str(len({record.cell.seed for record in group.records})),
                             *(text for text, _ in places.values()), told(judged)])
        strong = verdicts["stronger"] + verdicts["as strong"]
        lines += [f"### {NAMES[name]}: {strong} of {strong + verdicts['weaker']} cells at least as strong", "",
                  f"| method | data | seeds | {' | '.join(f'agent {agent}' for agent in agents)} | verdict |",
                  "|---|---|---|" + "---|" * (len(agents) + 1), *(f"| {' | '.join(row)} |" for row in rows), ""]
    return lines


def contest(group: Group, agent: int) -> tuple[str, str]:
    """What stands at an agent's place, and the verdict: stronger, as strong or weaker, or why there is none."""
    runs = group.runs(agent, "reward")
    if runs is None:
        return "", "not run or failed"
    mean, spread = mean_sd(runs)
    theirs = published.paper(replace(group.first, agent=agent), "reward")
    if theirs is None:
        return number(mean, spread), "not in the paper"
    value, width, note = theirs
    text, off = f"{number(mean, spread)} ({number(value, width)}{' *' if published.doubtful(note) else ''})", mean - value
    if published.doubtful(note):
        return text, "suspect in the paper"
    return text, "as strong" if abs(off) <= (width or 0.0) else "stronger" if off > 0 else "weaker"


def told(judged: dict[int, str]) -> str:
    """stronger 3, as strong 1, **weaker: agent 5**"""
    counts = Counter(judged.values())
    weaker = ", ".join(f"agent {agent}" for agent, verdict in judged.items() if verdict == "weaker")
    words = [f"{verdict} {counts[verdict]}" for verdict in ("stronger", "as strong") if counts[verdict]]
    words += [f"**weaker: {weaker}**"] if weaker else []
    return ", ".join(words or sorted(counts))


def tables(records: Records) -> list[str]:
    """How much of each table of the paper has run, what is left of it, and what such cells took where one has run."""
    lines = ["## What has run, and what has not", "",
             f"Cells of `--table N --budget {BUDGET}` by environment: done of all. What is left has in brackets what a cell of",
             "that method took, with its share of the training, where one has run; where none has, what a short probe says of",
             "`random` data ([estimates](../results/estimates.csv)). Tables 1 and 2 are columns of 6 to 11.",
             "", "| table | done of all | left |", "|---|---|---|"]
    for which, suite in suites.TABLES.items():
        if suite.stage != "cells" or which in (1, 2):
            continue
        cells = suites.work(Options(table=which, budget=BUDGET, settings=SETTINGS)).cells
        open_cells = [cell for cell in cells if not finished(cell, records[cell.environment])]
        done = Counter(cell.environment for cell in cells)
        left = Counter(cell.environment for cell in open_cells)
        counts = ", ".join(f"{NAMES[name]} {done[name] - left[name]} of {count}" for name, count in done.items())
        lines.append(f"| {which} | {counts} | {remaining(open_cells, records)} |")
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
