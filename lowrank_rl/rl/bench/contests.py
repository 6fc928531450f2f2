"""Who is better where: our methods against the paper's numbers, and against each other, counted by cell.

A cell is one data set and agent. Two numbers are equal "within an interval" where either lies in the other's 95 % interval.
"""

from collections import Counter
from dataclasses import replace

from lowrank_rl.rl.bench import cases, published
from lowrank_rl.rl.bench.gather import Gathered, Group
from lowrank_rl.rl.bench.statistics import Estimate, verdict
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.bench.tables import Column, Entry, Row, Table

MEASURES = {"reward": "return", "rmse": "RMSE", "r2_median": "R2"}
VERDICTS = ("better", "within", "worse")
ORACLES = ("true-env-mpc",)     # sees the true dynamics, so that it competes with nobody
WITHIN = ("Within: one mean lies in the other's 95 % interval; the paper's is Student's, from its ± over 5 repeats, or its "
          "rounding.")


def against_paper(group: Group, agent: int, metric: str, cut: int | None) -> str:
    """The verdict on our cell beside the paper's of the same method; "" where either is lacking, or returns are cut."""
    if metric == "reward" and cut:
        return ""
    mine, theirs = group.estimate(agent, metric), published.estimate(replace(group.first, agent=agent), metric)
    return verdict(mine, theirs, higher=published.higher_is_better(metric)) if mine and theirs else ""


def wins(gathered: Gathered) -> Table | None:
    """Cells better than, within an interval of, and worse than the paper's same method, its PerSim and its best baseline."""
    counts: dict[tuple[str, str, str], Counter] = {}
    for group in gathered.groups:
        for metric in MEASURES if not gathered.cut else ("rmse", "r2_median"):
            for agent in gathered.agents:
                for who, other in _opponents(group, agent, metric):
                    mine, theirs = group.estimate(agent, metric), published.estimate(other, metric)
                    if mine and theirs:
                        count = counts.setdefault((group.method, MEASURES[metric], who), Counter())
                        count[verdict(mine, theirs, higher=published.higher_is_better(metric))] += 1
                        count["doubtful"] += published.doubtful(published.paper(other, metric)[2])
    rows = tuple(Row(key, (*(Entry(str(count[name])) for name in VERDICTS),
                           Entry(str(sum(count[name] for name in VERDICTS))), Entry(str(count["doubtful"]))))
                 for key, count in counts.items())
    columns = (Column("better"), Column("within"), Column("worse"), Column("cells"), Column("suspect"))
    return Table("wins", "Cells better and worse than the paper's", ("method", "measure", "against the paper's"), columns, rows,
                 (WITHIN, "Suspect: how many of these cells are compared with a number of the paper that is suspect.")) \
        if rows else None


def _opponents(group: Group, agent: int, metric: str) -> list[tuple[str, Cell]]:
    """The paper's cells that a method is held against, with their names."""
    cell = replace(group.first, agent=agent)
    if not cases.METHODS[group.method].learns:
        return [(group.method, cell)]
    persim, best = published.best_persim(cell, metric), published.best_baseline(cell, metric)
    whose = "best persim" if cases.unseen(cell.environment, agent) else "persim"
    return [(group.method, cell), *([(whose, persim)] if persim and group.method != "persim" else []),
            *([("best baseline", best)] if best else [])]


def leaders(gathered: Gathered, metric: str = "reward") -> dict[tuple[str, int], dict[str, str]]:
    """(data set, agent) -> each competing method's place: "first", "tied" (within an interval of the best) or "behind".

    Methods that learn nothing compete on every data set, but for the oracles. Cells with one competitor are no contest.
    """
    places = {}
    for dataset in gathered.datasets or ["none"]:
        for agent in gathered.agents:
            found = {group.method: group.estimate(agent, metric) for group in gathered.groups
                     if group.dataset in (dataset, "none") and group.method not in ORACLES and group.estimate(agent, metric)}
            if len(found) > 1:
                places[dataset, agent] = _places(found, published.higher_is_better(metric))
    return places


def _places(found: dict[str, Estimate], higher: bool) -> dict[str, str]:
    best = (max if higher else min)(found, key=lambda name: found[name].mean)
    level = {name for name in found if name == best or verdict(found[name], found[best], higher=higher) == "within"}
    return {name: "behind" if name not in level else "tied" if len(level) > 1 else "first" for name in found}


def ranks(places: dict[tuple[str, int], dict[str, str]]) -> Table | None:
    """How often each of our methods has the best mean return, and where PerSim has not."""
    if not places:
        return None
    methods = [name for name in cases.METHODS if any(name in where for where in places.values())]
    rows = []
    for name in methods:
        count = Counter(where[name] for where in places.values() if name in where)
        rows.append(Row((name,), (*(Entry(str(count[place])) for place in ("first", "tied", "behind")),
                                  Entry(str(count.total())))))
    behind = [f"{dataset} agent {agent} ({', '.join(name for name, place in where.items() if place != 'behind')})"
              for (dataset, agent), where in places.items() if where.get("persim") == "behind"]
    notes = ["Tied: within an interval of the best mean. Cells where only one method has run are no contest, and the true "
             "environment's planner does not compete."]
    if behind:
        notes.append(f"PerSim is behind in {', '.join(behind)}.")
    return Table("ranks", "Best mean return among our methods", ("method",),
                 (Column("best"), Column("tied"), Column("behind"), Column("cells")), tuple(rows), tuple(notes))
