"""Which records a report is made of: those of one budget and one kind of settings, by method and data set; the rest is told.

What is averaged together was made alike: with the same settings of every part, and nothing in a report comes from other
versions of the packages. Records that differ stay in the store; a sentence says how many they are and what to do about them.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lowrank_rl.rl.bench import cases, pieces
from lowrank_rl.rl.bench.statistics import Estimate, Runs, mean_interval, mean_sd
from lowrank_rl.rl.bench.store import Cell, Record, made_with
from lowrank_rl.rl.contracts import Environment


@dataclass(frozen=True)
class Group:
    """One method on one data set: its cells by agent, in the order of seeds, and what is finished and what failed of them."""
    first: Cell                                            # says which method and data
    cells: dict[int, list[Cell]] = field(default_factory=dict)
    done: dict[int, list[Record]] = field(default_factory=dict)
    failed: dict[int, list[Record]] = field(default_factory=dict)
    left_out: Counter = field(default_factory=Counter)     # how many of each agent were made otherwise; not among the cells
    older: bool = False                                    # none of what is finished has today's settings and code

    @property
    def dataset(self) -> str:
        return self.first.dataset

    @property
    def method(self) -> str:
        return self.first.method

    @cached_property
    def records(self) -> list[Record]:
        """All that is finished."""
        return [record for records in self.done.values() for record in records]

    @cached_property
    def _runs(self) -> dict[tuple[int, str], Runs]:
        found: dict[tuple[int, str], Runs] = {}
        for agent, records in self.done.items():
            returns = [record.returns for record in records if record.returns]
            if returns:     # where nothing is trained, seeds are more episodes
                found[agent, "reward"] = [np.concatenate(returns)] if self.dataset == "none" else _stacked(returns)
            for metric, name in (("rmse", "rmse"), ("r2_median", "r2")):
                errors = [error for record in records if (error := getattr(record, name)) is not None]
                if errors:
                    found[agent, metric] = np.array(errors, dtype=np.float64)[:, None]
        return found

    def runs(self, agent: int, metric: str) -> Runs | None:
        """By seed: the episodes' returns (metric "reward"), or one error ("rmse", "r2_median"); None without that metric."""
        return self._runs.get((agent, metric))

    @cached_property
    def _estimates(self) -> dict[tuple[int, str], Estimate]:
        found = {}
        for key, runs in self._runs.items():
            mean = mean_sd(runs)[0]
            low, high = mean_interval(runs) or (mean, mean)
            found[key] = Estimate(mean, low, high)
        return found

    def estimate(self, agent: int, metric: str) -> Estimate | None:
        return self._estimates.get((agent, metric))


@dataclass(frozen=True)
class Gathered:
    """The groups in the order of their cells, and sentences on records that are in none."""
    budget: str
    settings: str
    asked: int                 # how many cells
    missing: int               # of them
    failures: list[Record]
    agents: list[int]
    groups: list[Group]
    left_out: list[str]
    unseen: bool = False       # all agents are such as no data come from

    @property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(group.dataset for group in self.groups if group.dataset != "none"))

    @cached_property
    def records(self) -> list[Record]:
        return [record for group in self.groups for record in group.records]

    @cached_property
    def cut(self) -> int | None:
        """After how many steps episodes were cut; then returns do not compare with the paper's."""
        return next((steps for record in self.records if (steps := record.config["budget"]["return_steps"])), None)


def gather(environment: Environment, cells: Iterable[Cell], records: dict[Cell, Record]) -> Gathered:
    """Records of these cells that belong together.

    Raises:
        ValueError: cells of other environments, of more than one budget or kind of settings, or of test agents beside unseen
            ones.
    """
    asked = list(cells)
    cells = [cell for cell in asked if cases.knows(cell)]
    kinds = _kinds(environment, cells)
    new = [cell for cell in cells if cases.unseen(environment.name, cell.agent)]
    if new and len(new) < len(cells):
        raise ValueError(f"cells: expected those of test agents or of unseen ones, got both ({len(cells) - len(new)} and "
                         f"{len(new)}); a table never mixes them, so gather each on its own")
    _, budget, settings = kinds[0] if kinds else (environment.name, "", "")
    by_group: dict[tuple[str, str], list[tuple[Cell, Record | None]]] = {}
    found = [(cell, records.get(cell)) for cell in cells]
    for cell, record in found:
        by_group.setdefault((cell.dataset, cell.method), []).append((cell, record))
    have = [record for _, record in found if record]
    versions, left_out = _versions(have)
    unknown = [cell for cell in asked if not cases.knows(cell)]
    for what, names in (("method", {cell.method for cell in unknown} - {*cases.METHODS}),
                        ("data set", {cell.dataset for cell in unknown} - {"none", *cases.DATASETS})):
        if names:
            left_out.append(f"Records of {', '.join(sorted(names))} are left out: this version has no such {what}; the version "
                            "that made them reports them.")
    groups = []
    for of_group in by_group.values():
        group, told = _group(of_group, versions)
        groups.append(group)
        left_out += told
    left_out += _elsewhere(environment.name, budget, settings, records) if kinds else []
    failures = [record for record in have if record.status == "failed"]
    return Gathered(budget, settings, len(cells), len(cells) - len(have), failures, sorted({cell.agent for cell in cells}),
                    groups, left_out, bool(new))


def by_kind_of_agent(environment: Environment, cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells of the test agents, and of the unseen ones where there are any; of the former, too, where there is nothing.

    Raises:
        ValueError: as ``gather`` for all of them.
    """
    cells = list(cells)
    _kinds(environment, [cell for cell in cells if cases.knows(cell)])
    new = [cell for cell in cells if cases.unseen(environment.name, cell.agent)]
    tests = [cell for cell in cells if not cases.unseen(environment.name, cell.agent)]
    return [some for some in (tests, new) if some] or [[]]


def _kinds(environment: Environment, cells: Iterable[Cell]) -> list[tuple[str, str, str]]:
    """The environment, budget and settings that all have; none of no cells."""
    kinds = list(dict.fromkeys((cell.environment, cell.budget, cell.settings) for cell in cells))
    if len(kinds) > 1 or any(kind[0] != environment.name for kind in kinds):
        raise ValueError(f"cells: expected those of {environment.name} with one budget and settings, got {kinds}; a table "
                         "never mixes them, so report each on its own")
    return kinds


def _stacked(runs: list[list[float]]) -> Runs:
    """One array of runs that are equally long: a hundred times faster to work with."""
    return np.array(runs, dtype=np.float64) if len(set(map(len, runs))) == 1 else runs


def _group(found: list[tuple[Cell, Record | None]], versions: tuple | None) -> tuple[Group, list[str]]:
    """One row of the tables. A record that was made with other settings than today's is left out beside such as were."""
    mine = [record for _, record in found if record and record.status == "done" and made_with(record) == versions]
    alike, older = _alike(mine)
    group = Group(found[0][0], older=older)
    kept = {id(record) for record in alike}
    for cell, record in sorted(found, key=lambda pair: pair[0].seed):
        agent = cell.agent
        if record and record.status == "done" and id(record) not in kept:
            group.left_out[agent] += 1
            continue
        group.cells.setdefault(agent, []).append(cell)
        if record:
            (group.done if record.status == "done" else group.failed).setdefault(agent, []).append(record)
    odd = len(mine) - len(kept)
    return group, [f"{odd} record(s) of {group.method} on {group.dataset} were made with other settings than the {len(kept)} "
                   "shown and are left out; the same command with as many --seeds runs those cells anew."] if odd else []


def _alike(records: list[Record]) -> tuple[list[Record], bool]:
    """Those with today's settings; if there are none, the largest number with one another's (of equals, the later), and
    that they are older."""
    kinds: list[tuple[dict, list[Record]]] = []
    for record in records:
        known = next((those for config, those in kinds if config == record.config), None)
        if known is None:
            known = []
            kinds.append((record.config, known))
        known.append(record)
    if not kinds:
        return [], False
    today = pieces.settings_of(records[0].cell)
    current = [record for config, those in kinds if pieces.same_settings(config, today) for record in those]
    return (current, False) if current else (max(reversed(kinds), key=lambda kind: len(kind[1]))[1], True)


def _versions(have: list[Record]) -> tuple[tuple | None, list[str]]:
    """Those that stand behind most of the cells (of equals, the later), and a sentence on the others."""
    counts = Counter(made_with(record) for record in have if record.status == "done")
    if not counts:
        return None, []
    most = max(reversed(counts), key=counts.get)
    told = []
    for other, count in counts.items():
        if other != most:
            unlike, instead = (", ".join(f"{name} {version}" for name, version in these if (name, version) not in those) or
                               "fewer packages" for these, those in ((other, most), (most, other)))
            told.append(f"{count} record(s) made with {unlike} instead of {instead} are left out: a table never mixes "
                        "versions; to see them together, run all cells with the same versions and another --out.")
    return most, told


def _elsewhere(environment: str, budget: str, settings: str, records: dict[Cell, Record]) -> list[str]:
    """What the store holds besides, and how to see it."""
    counts = Counter((cell.environment, cell.budget, cell.settings) for cell in records)
    counts.pop((environment, budget, settings), None)
    return [f"{count} record(s) of {where}, budget {other}, settings {kind} are not in these tables; "
            f"--env {where} --budget {other} --settings {kind} reports them."
            for (where, other, kind), count in counts.items()]

