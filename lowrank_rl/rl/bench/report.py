"""Records -> tables. Pure: reads records and the paper's published numbers, computes nothing anew."""

import csv
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from importlib.resources import files

import numpy as np

from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.contracts import Environment

ERROR_TABLE = {"mountaincar": "6", "cartpole": "7", "halfcheetah": "8"}
RETURN_TABLE = {"mountaincar": "9", "cartpole": "10", "halfcheetah": "11"}


@cache
def paper_numbers() -> dict[tuple[str, ...], tuple[float, float | None, str]]:
    """(table, environment, dataset, method, agent, metric) -> (value, sd or None, note on a suspect or odd cell)."""
    with files("lowrank_rl.rl.bench").joinpath("paper_results.csv").open() as file:
        return {tuple(row[k] for k in ("table", "environment", "dataset", "method", "agent", "metric")):
                (float(row["value"]), float(row["std"]) if row["std"] else None, row["note"])
                for row in csv.DictReader(file) if row["value"]}


def paper(cell: Cell, metric: str) -> tuple[float, float | None, str] | None:
    """The published number of a cell: metric "rmse", "r2_median" or "reward"; None where the paper has none."""
    table = (RETURN_TABLE if metric == "reward" else ERROR_TABLE)[cell.environment]
    return paper_numbers().get((table, cell.environment, cell.dataset, cell.method, str(cell.agent), metric))


def tables(environment: Environment, cells: Iterable[Cell], records: dict[Cell, Record]) -> str:
    """Markdown: returns and prediction errors, ours beside the paper's, for every data set among the cells."""
    cells = list(cells)
    agents = sorted({cell.agent for cell in cells})
    parts = []
    for metric, title in (("reward", "Average return"), ("rmse", "50-step prediction error, RMSE in units of the state"),
                          ("r2_median", "50-step prediction error, median R2")):
        rows, notes = [], set()
        for dataset, method in dict.fromkeys((cell.dataset, cell.method) for cell in cells):
            mine = [cell for cell in cells if (cell.dataset, cell.method) == (dataset, method)]
            texts = [_ours([records.get(c) for c in mine if c.agent == agent], metric) for agent in agents]
            if metric == "reward" or any(text not in ("", "missing") for text in texts):
                rows.append([method, dataset, "ours", *texts])
            published = [paper(replace(mine[0], agent=agent), metric) for agent in agents]
            if any(published):
                rows.append([method, dataset, "paper", *(_published(p, notes) for p in published)])
        if rows:
            head = ["method", "data", "", *(f"agent {a}: {_who(environment, a)}" for a in agents)]
            parts += [f"### {title}", "", *_markdown(head, rows), ""]
            parts += [f"* suspect in the paper: {note}" for note in sorted(notes)] + ([""] if notes else [])
    return "\n".join(parts)


def footnotes(environment: Environment, cells: Iterable[Cell], records: dict[Cell, Record]) -> str:
    """What stands behind the numbers: repeats, episodes, cut episodes, commit, versions, what failed."""
    cells = list(cells)
    have = [records[cell] for cell in cells if cell in records and records[cell].status == "done"]
    lines = []
    if have:
        first = have[0]
        budget = first.config["budget"]
        lines.append(f"Budget {first.cell.budget}, settings {first.cell.settings}: {len({r.cell.seed for r in have})} seed(s), "
                     f"{budget['agents']} agents, {budget['members']} members, {budget['return_episodes']} episodes per "
                     f"agent and seed for returns, {budget['error_episodes']} for errors. ± is the standard deviation over "
                     "seeds where there are several, else over episodes; the paper's is over 5 repeats.")
        if budget["return_steps"]:
            lines.append(f"**Our returns here are of the first {budget['return_steps']} of {environment.max_steps} steps; "
                         "the paper's are of whole episodes, so the two do not compare.** Use a larger --budget for that.")
        lines.append("Prediction errors use a scripted test policy where the paper has a trained one, so compare with care.")
        dropped = sum(r.non_finite for r in have)
        if dropped:
            lines.append(f"{dropped} candidate plans scored NaN or Inf and were passed over.")
        commits = ", ".join(sorted({r.commit or "no commit" for r in have}))
        versions = ", ".join(f"{k} {v}" for k, v in first.versions.items())
        lines.append(f"Commit {commits}; {versions}; {first.device}.")
    lines += [f"FAILED {cell}: {records[cell].message.strip().splitlines()[-1]}"
              for cell in cells if cell in records and records[cell].status == "failed"]
    missing = [cell for cell in cells if cell not in records]
    if missing:
        lines.append(f"Not run yet: {len(missing)} of {len(cells)} cells; the same command goes on with them.")
    return "\n\n".join(lines)


def value(record: Record, metric: str) -> float | None:
    """A cell's number for one metric."""
    return {"reward": float(np.mean(record.returns)) if record.returns else None,
            "rmse": record.rmse, "r2_median": record.r2}[metric]


def _ours(records: list[Record | None], metric: str) -> str:
    """Mean ± spread over the seeds of one method and agent."""
    if any(record and record.status == "failed" for record in records):
        return "FAILED"
    values = [value(record, metric) for record in records if record]
    if not values:
        return "missing"
    if any(v is None for v in values):
        return ""
    if len(values) > 1:
        spread = float(np.std(values, ddof=1))
    else:
        returns = next(r.returns for r in records if r)
        spread = float(np.std(returns, ddof=1)) if metric == "reward" and len(returns) > 1 else None
    return _number(float(np.mean(values)), spread) + ("" if len(values) == len(records) else f" ({len(values)} seeds)")


def _published(entry: tuple[float, float | None, str] | None, notes: set[str]) -> str:
    if entry is None:
        return "-"
    number, spread, note = entry
    if "suspect" in note or "unconfirmed" in note:
        notes.add(note)
        return _number(number, spread) + " *"
    return _number(number, spread)


def _number(mean: float, spread: float | None) -> str:
    size = abs(mean)
    text = f"{mean:{'.0f' if size >= 1000 else '.4g' if size >= 1 else '.3f' if size >= 0.0995 else '.2g'}}"
    return text if spread is None else f"{text} ± {spread:{'.0f' if spread >= 99.5 else '.2g'}}"


def _who(environment: Environment, agent: int) -> str:
    return ", ".join(f"{x:g}" for x in environment.test_agents[agent - 1])


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
