"""Records -> tables. Pure: reads records, the paper's published numbers and the scores' scales, runs nothing."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files

import numpy as np

from lowrank_rl import rng
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.scores import scales
from lowrank_rl.rl.bench.statistics import Runs, iqm, iqm_interval, mean_sd
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
    """The published number of a cell: metric "rmse", "r2_median" or "reward"; None where the paper has none.

    Returns that are lost or not in Tables 9 to 11 (MountainCar's ``pure`` rows; PerSim-BCQ-5 and -CQL-5) are those of
    Tables 2 and 3.
    """
    places = (RETURN_TABLE[cell.environment], "2", "3") if metric == "reward" else (ERROR_TABLE[cell.environment],)
    found = (paper_numbers().get((table, cell.environment, cell.dataset, cell.method, str(cell.agent), metric))
             for table in places)
    return next((entry for entry in found if entry), None)


def tables(environment: Environment, cells: Iterable[Cell], records: dict[Cell, Record]) -> str:
    """Markdown: returns and prediction errors, ours beside the paper's, for every data set among the cells."""
    cells = list(cells)
    return "\n".join([
        *_beside_the_paper("Average return", "reward", environment, cells, records),
        *_middles_and_scores(environment, cells, records),
        *_beside_the_paper("50-step prediction error, RMSE in units of the state", "rmse", environment, cells, records),
        *_beside_the_paper("50-step prediction error, median R2", "r2_median", environment, cells, records)])


def footnotes(environment: Environment, cells: Iterable[Cell], records: dict[Cell, Record]) -> str:
    """What stands behind the numbers: repeats, episodes, cut episodes, commit, versions, what failed."""
    cells = list(cells)
    have = [records[cell] for cell in cells if cell in records and records[cell].status == "done"]
    lines = []
    if have:
        first = have[0]
        budget = first.config["budget"]
        members = sorted({r.config["learning"]["members"] for r in have if "members" in r.config.get("learning", {})})
        ensembles = f"{' or '.join(map(str, members))} member(s), " if members else ""
        lines.append(f"Budget {first.cell.budget}, settings {first.cell.settings}: {_seeds(have)}, "
                     f"{budget['agents']} agents, {ensembles}{budget['return_episodes']} episodes per agent and seed for "
                     f"returns, {budget['error_episodes']} for errors. ± is the standard deviation (n - 1) "
                     "over seeds, as the paper's over 5 repeats; over episodes where there is one seed or nothing to train, "
                     "as the paper's for True env+MPC must be.")
        lines += _efforts(have)
        always = [str(r.cell) for r in have if r.same_action == 1]
        if always:
            lines.append(f"**Always the same action:** {', '.join(always)}.")
        if budget["return_steps"]:
            lines.append(f"**Our returns here are of the first {budget['return_steps']} of {environment.max_steps} steps; "
                         "the paper's are of whole episodes, so the two do not compare.** Use a larger --budget for that.")
        lines.append("Prediction errors are on trajectories of our trained test policy; the paper's was another, so compare "
                     "with care.")
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


def _efforts(records: list[Record]) -> list[str]:
    """How many updates stand behind each baseline, where there are any."""
    found: dict[str, set[int]] = {}
    for record in records:
        learning = record.config.get("learning", {})
        of = learning.get("policy") or learning.get("descent") or learning
        if cases.METHODS[record.cell.method].baseline:
            found.setdefault(record.cell.method, set()).add(of.get("updates") or of.get("steps"))
    if not found:
        return []
    told = ", ".join(f"{method} {' or '.join(map(str, sorted(counts)))}" for method, counts in found.items())
    known = "; the paper's BCQ had 550000" if any("bcq" in method for method in found) else ""
    return [f"Updates of baselines (MOReL: steps of PPO): {told}{known}."]


def _seeds(records: list[Record]) -> str:
    """How many there are, by data set where they differ."""
    found = {dataset: len({r.cell.seed for r in records if r.cell.dataset == dataset})
             for dataset in dict.fromkeys(r.cell.dataset for r in records if r.cell.dataset != "none")}
    if len(set(found.values())) > 1:
        return ", ".join(f"{count} seed(s) of {dataset}" for dataset, count in found.items())
    return f"{len({r.cell.seed for r in records})} seed(s)"


def _beside_the_paper(title: str, metric: str, environment: Environment, cells: list[Cell],
                      records: dict[Cell, Record]) -> list[str]:
    """Mean ± sd of each method and agent, the paper's under it, and for RMSE the ratio of the two."""
    agents, rows, notes = sorted({cell.agent for cell in cells}), [], set()
    for method, dataset, mine in _methods(cells):
        each = [[cell for cell in mine if cell.agent == agent] for agent in agents]
        runs = [_runs(these, records, metric) for these in each]
        texts = [_ours(these, records, r) for these, r in zip(each, runs, strict=True)]
        if metric == "reward" or any(text not in ("", "missing") for text in texts):
            rows.append([method, dataset, "ours", *texts])
        published = [paper(replace(mine[0], agent=agent), metric) for agent in agents]
        if any(published):
            rows.append([method, dataset, "paper", *(_published(entry, notes) for entry in published)])
        if metric == "rmse" and any(published) and any(runs):
            rows.append([method, dataset, "ours/paper", *(
                f"{mean_sd(r)[0] / entry[0]:.2f}" if r and entry and entry[0] else "-"     # the paper prints some as 0.000
                for r, entry in zip(runs, published, strict=True))])
    if not rows:
        return []
    return [f"### {title}", "", *_markdown(_head(environment, agents), rows), "",
            *(f"* suspect in the paper: {note}" for note in sorted(notes)), *([""] if notes else [])]


def _middles_and_scores(environment: Environment, cells: list[Cell], records: dict[Cell, Record]) -> list[str]:
    """Interquartile means with their intervals, and scores of whole episodes where every agent has a scale."""
    agents, rows = sorted({cell.agent for cell in cells}), []
    scale = [scales().get((environment.name, agent)) for agent in agents]
    scored = None not in scale and not any(r.config["budget"]["return_steps"] for r in _done(cells, records))
    blank = [""] if scored else []     # under the last column, which only scores have
    for method, dataset, mine in _methods(cells):
        runs = [_runs([cell for cell in mine if cell.agent == agent], records, "reward") for agent in agents]
        if not any(runs):
            continue
        name = environment.name, dataset, method
        rows.append([method, dataset, "IQM", *(
            _middle([r], _number, *name, agent) if r else "" for r, agent in zip(runs, agents, strict=True)), *blank])
        if scored:
            scores = [[s.score(np.asarray(run)) for run in r] for s, r in zip(scale, runs, strict=True)]
            rows.append([method, dataset, "score", *(f"{mean_sd(x)[0]:.1f}" if x else "" for x in scores),
                         _middle(scores, "{:.1f}".format, *name) if all(scores) else ""])
        published = [paper(replace(mine[0], agent=agent), "reward") for agent in agents]
        if scored and any(published):
            rows.append([method, dataset, "paper's score", *(
                f"{s.score(entry[0]):.1f}{' *' if _doubtful(entry[2]) else ''}" if entry else "-"
                for s, entry in zip(scale, published, strict=True)), *blank])
    if not rows:
        return []
    told = ["IQM: mean of the middle half of all seeds' episodes; [95 % interval] by a bootstrap that redraws each agent's "
            "seeds, and their episodes (after rliable, Agarwal et al. 2021); from few seeds a little narrow."]
    if scored:
        told.append(f"Score: of the mean return; 0 is uniformly random actions, 100 is {scale[0].source}. "
                    "Together: IQM of the scores of all episodes of these agents.")
    title = "### Interquartile mean of the returns" + (", and normalised score" if scored else "")
    head = _head(environment, agents) + (["together"] if scored else [])
    return [title, "", *_markdown(head, rows), "", " ".join(told), ""]


def _middle(strata: Sequence[Runs], number: Callable[[float], str], *name: object) -> str:
    """Interquartile mean and interval; the name is that of its random stream."""
    around = iqm_interval(strata, generator=rng.numpy_stream(0, "iqm", *name))
    return number(iqm(strata)) + (f" [{number(around[0])}, {number(around[1])}]" if around else "")


def _methods(cells: list[Cell]) -> list[tuple[str, str, list[Cell]]]:
    """(method, data set, their cells), in the order of the cells."""
    return [(method, dataset, [cell for cell in cells if (cell.dataset, cell.method) == (dataset, method)])
            for dataset, method in dict.fromkeys((cell.dataset, cell.method) for cell in cells)]


def _done(cells: list[Cell], records: dict[Cell, Record]) -> list[Record]:
    """What is finished of them, by seed."""
    return sorted((records[cell] for cell in cells if cell in records and records[cell].status == "done"),
                  key=lambda record: record.cell.seed)


def _runs(cells: list[Cell], records: dict[Cell, Record], metric: str) -> Runs:
    """What one method gave on one agent, by seed: its episodes' returns, or one error; empty without that metric."""
    done = _done(cells, records)
    if metric == "reward":
        runs = [record.returns for record in done]
        return [np.concatenate(runs)] if runs and done[0].cell.dataset == "none" else runs     # nothing was retrained
    errors = [{"rmse": record.rmse, "r2_median": record.r2}[metric] for record in done]
    return [[error] for error in errors if error is not None]


def _ours(cells: list[Cell], records: dict[Cell, Record], runs: Runs) -> str:
    """Mean ± sd of one method and agent, from the seeds that did not fail, and how many those are."""
    done, failed = _done(cells, records), sum(records[cell].status == "failed" for cell in cells if cell in records)
    if not done:
        return "FAILED" if failed else "missing"
    if not runs:
        return ""
    gaps = f" ({len(done)} of {len(cells)} seeds{f', {failed} FAILED' if failed else ''})" if len(done) < len(cells) else ""
    return _number(*mean_sd(runs)) + gaps


def _published(entry: tuple[float, float | None, str] | None, notes: set[str]) -> str:
    if entry is None:
        return "-"
    number, spread, note = entry
    if _doubtful(note):
        notes.add(note)
        return _number(number, spread) + " *"
    return _number(number, spread)


def _doubtful(note: str) -> bool:
    return "suspect" in note or "unconfirmed" in note


def _number(mean: float, spread: float | None = None) -> str:
    size = abs(mean)
    text = f"{mean:{'.0f' if size >= 1000 else '.4g' if size >= 1 else '.3f' if size >= 0.0995 else '.2g'}}"
    return text if spread is None else f"{text} ± {spread:{'.0f' if spread >= 99.5 else '.2g'}}"


def _head(environment: Environment, agents: list[int]) -> list[str]:
    who = [", ".join(f"{x:g}" for x in environment.test_agents[agent - 1]) for agent in agents]
    return ["method", "data", "", *(f"agent {agent}: {words}" for agent, words in zip(agents, who, strict=True))]


def _markdown(head: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]
