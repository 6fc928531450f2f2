"""The paper's published numbers, by table and by cell, with what is doubtful about some of them."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files

from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.statistics import Estimate, student
from lowrank_rl.rl.bench.store import Cell

ERROR_TABLE = {"mountaincar": "6", "cartpole": "7", "halfcheetah": "8"}
RETURN_TABLE = {"mountaincar": "9", "cartpole": "10", "halfcheetah": "11"}
SCARCE_TABLE = {"mountaincar": "14", "cartpole": "15", "halfcheetah": "16"}     # returns of data sets of few agents
UNSEEN_TABLE = {"rmse": "12", "r2_median": "12", "reward": "13"}     # of agents that no data come from
METRICS = ("reward", "rmse", "r2_median")
REPEATS = 5                # behind the paper's ± (section 5.3, appendix F.2)
# Words of the notes in paper_results.csv that say that a number may not be what was measured; corrected labels are no doubt
DOUBTS = ("suspect", "unconfirmed", "garbled", "check std", "assigned by position")


@cache
def _rows() -> dict[tuple[str, ...], dict[str, str]]:
    with files("lowrank_rl.rl.bench").joinpath("paper_results.csv").open() as file:
        return {(row["table"], row["environment"], _dataset(row), _method(row), _agent(row), row["metric"]): row
                for row in csv.DictReader(file) if row["value"]}


def _dataset(row: dict[str, str]) -> str:
    """Our name of the data that a number was learned from."""
    if row["table"] not in SCARCE_TABLE.values():
        return row["dataset"]
    return next(name for name, logs in cases.DATASETS.items() if logs == cases.Logs(row["dataset"], int(row["n_agents"])))


def _method(row: dict[str, str]) -> str:
    """Our name of the method, which says of how many training agents the covariates were known."""
    if not row["covariate_fraction"]:
        return row["method"]
    way = cases.Way(float(row["covariate_fraction"]))
    return next(name for name, method in cases.METHODS.items() if method.unseen == way)


def _agent(row: dict[str, str]) -> str:
    """Our number of the agent: the paper counts unseen ones from 1 again."""
    if row["table"] not in UNSEEN_TABLE.values():
        return row["agent"]
    return str(cases.agents(row["environment"], unseen=True)[int(row["agent"]) - 1])


@cache
def paper_numbers() -> dict[tuple[str, ...], tuple[float, float | None, str]]:
    """(table, environment, dataset, method, agent, metric) -> (value, sd or None, note on a suspect or odd cell)."""
    return {key: (float(row["value"]), float(row["std"]) if row["std"] else None, row["note"]) for key, row in _rows().items()}


def paper(cell: Cell, metric: str) -> tuple[float, float | None, str] | None:
    """The published number of a cell: metric "rmse", "r2_median" or "reward"; None where the paper has none.

    Returns that are lost or not in Tables 9 to 11 (MountainCar's ``pure`` rows; PerSim-BCQ-5 and -CQL-5) are those of
    Tables 2 and 3.
    """
    key = _key(cell, metric)
    return paper_numbers()[key] if key else None


def estimate(cell: Cell, metric: str) -> Estimate | None:
    """The published number with its 95 % interval: of the mean of five repeats, and never narrower than it is printed.

    Where nothing was trained (True env+MPC) the paper's ± is over a number of episodes that it does not tell: then the
    interval is the printing's alone.
    """
    key = _key(cell, metric)
    if key is None:
        return None
    value, spread, _ = paper_numbers()[key]
    half = 0.5 * 10.0 ** -len(_rows()[key]["value"].partition(".")[2])
    if spread and cell.dataset != "none":
        half = max(half, student(REPEATS) * spread / REPEATS**0.5)
    return Estimate(value, value - half, value + half)


def best_baseline(cell: Cell, metric: str) -> Cell | None:
    """The paper's best method on a cell's agent and data but for PerSim's own and the true environment, doubtful or not."""
    return _best(cell, metric, [name for name, method in cases.METHODS.items() if method.baseline and not method.flown])


def best_persim(cell: Cell, metric: str) -> Cell | None:
    """The paper's PerSim on a cell's agent and data; of unseen agents, the one that was best of several, doubtful or not."""
    return _best(cell, metric, ["persim", *(name for name, method in cases.METHODS.items() if method.unseen)])


def _best(cell: Cell, metric: str, names: Sequence[str]) -> Cell | None:
    found = []
    for name in names:
        other = replace(cell, method=name)
        entry = paper(other, metric)
        if entry:
            found.append((entry[0] if higher_is_better(metric) else -entry[0], other))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def published_methods(environment: str, dataset: str, metric: str, unseen: bool = False) -> list[str]:
    """The methods for which the paper has any such number of test agents, or unseen ones, in the order of our tables."""
    return [name for name in cases.METHODS
            if any(paper(Cell(environment, dataset, name, agent, 0, "", ""), metric)
                   for agent in cases.agents(environment, unseen))]


def table_of(environment: str, dataset: str, metric: str, unseen: bool = False) -> str | None:
    """The number of the paper's table that has such cells of test agents, or of unseen ones."""
    if unseen:
        return UNSEEN_TABLE[metric] if any(key[:3] == (UNSEEN_TABLE[metric], environment, dataset) for key in _rows()) else None
    if dataset != "none" and cases.DATASETS[dataset].agents:
        return SCARCE_TABLE[environment] if metric == "reward" else None
    return (RETURN_TABLE if metric == "reward" else ERROR_TABLE)[environment]


def doubtful(note: str) -> bool:
    return any(word in note for word in DOUBTS)


def higher_is_better(metric: str) -> bool:
    return metric != "rmse"


def _key(cell: Cell, metric: str) -> tuple[str, ...] | None:
    """Where the number stands."""
    unseen = cases.unseen(cell.environment, cell.agent)
    places = (table_of(cell.environment, cell.dataset, metric, unseen), *(("2", "3") if metric == "reward" else ()))
    keys = ((table, cell.environment, cell.dataset, cell.method, str(cell.agent), metric) for table in places)
    return next((key for key in keys if key in paper_numbers()), None)
