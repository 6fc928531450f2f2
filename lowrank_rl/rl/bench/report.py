"""Records -> tables and notes, as values and as Markdown. Pure: reads records, the paper's published numbers and the scores'
scales, runs nothing. ``page`` draws the same values in HTML."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lowrank_rl import rng
from lowrank_rl.rl.bench import cases, contests, costs, looks, notes, published
from lowrank_rl.rl.bench.gather import Gathered, Group, by_kind_of_agent, gather
from lowrank_rl.rl.bench.published import paper
from lowrank_rl.rl.bench.scores import Scale, scales
from lowrank_rl.rl.bench.statistics import Runs, finite, iqm, iqm_interval, mean_interval, mean_sd
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.bench.tables import Column, Entry, Row, Table, interval, markdown, number, plain
from lowrank_rl.rl.contracts import Environment

LABELS = ("method", "data", "")
TITLES = {"reward": "Average return", "rmse": "50-step prediction error, RMSE in units of the state",
          "r2_median": "50-step prediction error, median R2"}
DETAILS = "interval and n"
LIMITS = {"rmse": (0.0, np.inf), "r2_median": (-np.inf, 1.0)}     # that an interval around a mean can pass


@dataclass(frozen=True)
class Report:
    """All that a report says of one kind of agents, and then of the other, before it is set in Markdown or HTML."""
    environment: Environment
    gathered: Gathered
    tables: tuple[Table, ...]
    notes: tuple[notes.Note, ...]
    rest: "Report | None" = None     # the same of unseen agents, where this is of test agents

    @property
    def parts(self) -> list["Report"]:
        """This, and the rest."""
        return [self, *([self.rest] if self.rest else [])]

    def table(self, key: str) -> Table | None:
        return next((table for table in self.tables if table.key == key), None)


def build(environment: Environment, cells: Iterable[Cell], records: dict[Cell, Record]) -> Report:
    """Tables and notes of the cells' records, which are of one budget and settings; unseen agents have tables of their own.

    Raises:
        ValueError: cells of more than one budget or settings, or of another environment.
    """
    first, *more = (_part(environment, some, records) for some in by_kind_of_agent(environment, cells))
    if more:      # what is said above is not said again
        more = [replace(part, notes=tuple(note for note in part.notes if note not in first.notes)) for part in more]
    return replace(first, rest=more[0]) if more else first


def _part(environment: Environment, cells: list[Cell], records: dict[Cell, Record]) -> Report:
    gathered = gather(environment, cells, records)
    places = contests.leaders(gathered)
    found = [_beside_the_paper("reward", environment, gathered, places), _middles_and_scores(environment, gathered),
             _beside_the_paper("rmse", environment, gathered, contests.leaders(gathered, "rmse")),
             _beside_the_paper("r2_median", environment, gathered, contests.leaders(gathered, "r2_median")),
             contests.wins(gathered), contests.ranks(places), looks.table(gathered), costs.table(gathered)]
    tables = [table for table in found if table]
    if gathered.unseen:
        tables = [replace(table, title=f"Unseen agents: {table.title[0].lower()}{table.title[1:]}") for table in tables]
    return Report(environment, gathered, tuple(tables), tuple(notes.notes(environment, gathered)))


def tables_text(report: Report) -> str:
    """Markdown: returns and prediction errors, ours beside the paper's, for every data set among the cells; wins; costs."""
    return "\n".join(line for part in report.parts for table in part.tables for line in markdown(table))


def notes_text(report: Report) -> str:
    """What stands behind the numbers: repeats, episodes, cut episodes, commit, versions, what failed, what was left out."""
    return "\n\n".join(f"**{note.lead}** {note.text}" if note.lead else note.text
                       for part in report.parts for note in part.notes)


def _beside_the_paper(metric: str, environment: Environment, gathered: Gathered,
                      places: dict[tuple[str, int], dict[str, str]]) -> Table | None:
    """Mean ± sd of each method and agent, the paper's under it, for RMSE the ratio of the two, and the rest of the paper's."""
    rows = []
    for group in gathered.groups:
        entries = [_ours(group, agent, metric, gathered.cut, places) for agent in gathered.agents]
        if metric == "reward" or (_simulates(group) and any(entry.text not in ("", "missing") for entry in entries)):
            rows.append(Row((group.method, group.dataset, "ours"), tuple(entries)))
        rows += _papers_rows(group.first, metric, gathered.agents, "paper")
        ratios = _ratios(group, gathered.agents) if metric == "rmse" else []
        if any(ratios):
            rows.append(Row((group.method, group.dataset, "ours/paper"), tuple(map(Entry, ratios))))
    if not rows:
        return None
    for dataset in [*gathered.datasets, "none"]:     # the rest of the paper's table
        run = {group.method for group in gathered.groups if group.dataset == dataset}
        for method in published.published_methods(environment.name, dataset, metric, gathered.unseen):
            if method not in run:
                cell = Cell(environment.name, dataset, method, 1, 0, gathered.settings, gathered.budget)
                rows += _papers_rows(cell, metric, gathered.agents, "unrun")
    cut = f", first {gathered.cut} steps (the paper's: whole episodes)" if metric == "reward" and gathered.cut else ""
    return Table(metric, TITLES[metric] + cut, LABELS, _columns(environment, gathered.agents), tuple(rows),
                 by_data=True, details=DETAILS)


def _simulates(group: Group) -> bool:
    """Whether it has a prediction error, however its cells went."""
    method = cases.METHODS[group.method]
    return method.learns and method.plans


def _ours(group: Group, agent: int, metric: str, cut: int | None, places: dict[tuple[str, int], dict[str, str]]) -> Entry:
    """Mean ± sd of one method and agent, from the seeds that did not fail, and how many those are."""
    cells, done, failed = (those.get(agent, []) for those in (group.cells, group.done, group.failed))
    if not done:
        return Entry("FAILED" if failed else "left out" if group.left_out[agent] else "missing", kind="gap")
    runs = group.runs(agent, metric)
    if runs is None:
        return Entry("")
    lost = f", {len(failed)} FAILED" if failed else ""
    short = f" ({len(done)} of {len(cells)} seeds{lost})" if len(done) < len(cells) else ""
    mean, spread = mean_sd(runs)
    if not np.isfinite(mean):
        return Entry(f"not finite{short}", kind="gap")
    where = [places.get((dataset, agent), {}).get(group.method) for dataset in
             ([group.dataset] if group.dataset != "none" else {key[0] for key in places})]
    return Entry(number(mean, spread) + short, _behind(runs, metric, group.dataset, done),
                 verdict=contests.against_paper(group, agent, metric, cut),
                 best=bool(where) and all(place in ("first", "tied") for place in where))


def _behind(runs: Runs, metric: str, dataset: str, done: Sequence[Record]) -> str:
    """The interval of the mean, and how many seeds (times episodes) are behind it."""
    count = f"n {len(done)}"
    if metric == "reward":
        episodes = sorted({len(record.returns) for record in done})
        count += f"×{episodes[0]}" + (f"–{episodes[-1]}" if len(episodes) > 1 else "")
    around, (low, high) = mean_interval(runs), LIMITS.get(metric, (-np.inf, np.inf))
    return " ".join(part for part in (interval(around and (max(around[0], low), min(around[1], high))), count) if part)


def _papers_rows(cell: Cell, metric: str, agents: Sequence[int], kind: str) -> list[Row]:
    """The paper's row of a cell's method and data; none where it has no number at all."""
    entries = [_published(replace(cell, agent=agent), metric) for agent in agents]
    return [Row((cell.method, cell.dataset, "paper"), tuple(entries), kind)] if any(e.text != "-" for e in entries) else []


def _published(cell: Cell, metric: str) -> Entry:
    entry = paper(cell, metric)
    if entry is None:
        return Entry("-")
    value, spread, note = entry
    known, detail = published.estimate(cell, metric), ""
    if spread is not None and cell.dataset != "none":
        detail = f"{interval((known.low, known.high)) if spread else ''} n {published.REPEATS}".strip()
    return Entry(number(value, spread), detail, doubt=note if published.doubtful(note) else "")


def _ratios(group: Group, agents: Sequence[int]) -> list[str]:
    """Ours by the paper's RMSE; nothing where no agent has both."""
    pairs = [(group.estimate(agent, "rmse"), paper(replace(group.first, agent=agent), "rmse")) for agent in agents]
    if not any(mine and theirs for mine, theirs in pairs):
        return []
    ratios = [mine.mean / theirs[0] if mine and theirs and theirs[0] else np.nan for mine, theirs in pairs]   # some are 0.000
    return [f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.1g}" if np.isfinite(ratio) else "-" for ratio in ratios]


def _middles_and_scores(environment: Environment, gathered: Gathered) -> Table | None:
    """Interquartile means with their intervals, and scores of whole episodes where every agent has a scale."""
    agents, rows = gathered.agents, []
    scale = [scales().get((environment.name, agent)) for agent in agents]
    scored = None not in scale and not gathered.cut
    blank = (Entry(""),) if scored else ()     # under the last column, which only scores have
    for group in gathered.groups:
        method, dataset, name = group.method, group.dataset, (environment.name, group.dataset, group.method)
        runs = [group.runs(agent, "reward") for agent in agents]
        if all(r is None for r in runs):
            continue
        middles = [_middle([r], number, *name, agent) if r is not None else Entry("")
                   for r, agent in zip(runs, agents, strict=True)]
        rows.append(Row((method, dataset, "IQM"), (*middles, *blank)))
        if scored:
            means = [group.estimate(agent, "reward") for agent in agents]
            together = [] if any(r is None for r in runs) else [_scores(s, r) for s, r in zip(scale, runs, strict=True)]
            rows.append(Row((method, dataset, "score"), (
                *(Entry(f"{s.score(m.mean):.1f}" if m else "") for s, m in zip(scale, means, strict=True)),
                _middle(together, "{:.1f}".format, *name) if together else Entry(""))))
        theirs = [paper(replace(group.first, agent=agent), "reward") for agent in agents]
        if scored and any(theirs):
            rows.append(Row((method, dataset, "paper's score"), (*(
                Entry(f"{s.score(x[0]):.1f}", doubt=x[2] if published.doubtful(x[2]) else "") if x else Entry("-")
                for s, x in zip(scale, theirs, strict=True)), *blank), "paper"))
    if not rows:
        return None
    told = ["IQM: mean of the middle half of all seeds' episodes; [95 % interval] by a bootstrap that redraws each agent's "
            "seeds, and their episodes (after rliable, Agarwal et al. 2021); from few seeds a little narrow."]
    if scored:
        told.append(f"Score: of the mean return; 0 is uniformly random actions, 100 is {scale[0].source}. "
                    "Together: IQM of the scores of all episodes of these agents.")
    title = "Interquartile mean of the returns" + (", and normalised score" if scored else "")
    columns = _columns(environment, agents) + ((Column("together"),) if scored else ())
    return Table("middles", title, LABELS, columns, tuple(rows), tuple(told), by_data=True, details="interval")


def _scores(scale: Scale, runs: Runs) -> Runs:
    return scale.score(runs) if isinstance(runs, np.ndarray) else [scale.score(np.asarray(run)) for run in runs]


def _middle(strata: Sequence[Runs], words: Callable[[float], str], *name: object) -> Entry:
    """Interquartile mean and interval; the name is that of its random stream."""
    if not finite(strata):
        return Entry("not finite", kind="gap")
    around = iqm_interval(strata, generator=rng.numpy_stream(0, "iqm", *name))
    return Entry(words(iqm(strata)), f"[{words(around[0])}, {words(around[1])}]" if around else "")


def _columns(environment: Environment, agents: Sequence[int]) -> tuple[Column, ...]:
    def words(agent: int) -> list[str]:
        return [plain(x) for x in cases.covariates(environment.name, agent)]
    return tuple(Column(f"agent {agent}", ", ".join(words(agent)), ", ".join(
        f"{name} {x}" for name, x in zip(environment.covariate_names, words(agent), strict=True))) for agent in agents)
