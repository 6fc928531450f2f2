"""50-step prediction errors of simulators on the test agents, beside the paper's Tables 6 and 7.

    python benchmarks/prediction_errors.py OUT [--environments cartpole] [--datasets pure] [--methods vanilla-cadm] [--seeds 1]
    python benchmarks/prediction_errors.py OUT --settings paper --methods persim --acting logs

Data sets and simulators are those of the benchmark's budget ``small``, kept in OUT, and not made anew if they are there.
Returns, which take hours for simulators without fast rollouts, are left out. The steps to be predicted are the test policy's,
or those of what logged the data, in new episodes. Adds to results/prediction_errors.csv; rows found there are not run again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from tables import add, done, show

from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.behaviour.trained import tester
from lowrank_rl.rl.bench import cases, pieces, published, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import DynamicsModel

RESULTS = Path("results/prediction_errors.csv")


@dataclass(frozen=True)
class Options:
    out: tyro.conf.Positional[Path]
    """where data sets and simulators are kept"""
    environments: tuple[str, ...] = ("mountaincar", "cartpole")
    datasets: tuple[str, ...] = ("random", "pure")
    methods: tuple[str, ...] = ("vanilla-cadm", "pe-ts-cadm", "e-pets", "persim")
    seeds: int = 1
    settings: Literal["best", "paper"] = "best"
    acting: Literal["test", "logs"] = "test"
    """whose steps are predicted"""
    results: Path = RESULTS


def measure(model: DynamicsModel, cell: Cell, acting: str) -> dict[int, evaluate.PredictionError]:
    """The errors of each test agent, by its number from 0, in the cell's budget."""
    environment, budget = cases.ENVIRONMENTS[cell.environment], cases.BUDGETS[cell.budget, cell.environment]
    covariates = data.agents(environment, budget.agents, seed=cell.seed)
    policy = tester(environment, budget.agents) if acting == "test" else cases.BEHAVIOUR[cell.dataset](environment, covariates)
    return evaluate.prediction_error(environment, model, covariates, list(range(len(environment.test_agents))), policy,
                                     episodes=budget.error_episodes, seed=cell.seed)


def errors(out: Path, cell: Cell, acting: str) -> dict:
    """A row: RMSE, median R2 and the paper's of each test agent, and what the training was."""
    train.make_data(out, cell, lambda what, share: None)
    train.train(out, cell, "cpu", lambda what, share: None)
    model = pieces.load_model(out, cell)
    found = measure(model, cell, acting)
    last = (model.history if cases.METHODS[cell.method].baseline else model.cp.history_)[-1]
    row = {**_key(cell, acting),
           "trained": " ".join(f"{last[name]} {name}s" for name in ("update", "epoch") if name in last)}
    for agent, error in found.items():
        theirs = Cell(cell.environment, cell.dataset, cell.method, agent + 1, 0, "paper", "paper")
        known = {name: published.paper(theirs, metric) for name, metric in (("paper", "rmse"), ("paper r2", "r2_median"))}
        row |= {f"rmse {agent + 1}": f"{error.rmse:.4g}", f"r2 {agent + 1}": f"{error.r2:.4f}",
                **{f"{name} {agent + 1}": f"{x[0]:g}" if x else "" for name, x in known.items()}}
    return {**row, "training seconds": f"{last['seconds']:.0f}", "torch": torch.__version__}


def _key(cell: Cell, acting: str) -> dict[str, str]:
    return {"environment": cell.environment, "dataset": cell.dataset, "method": cell.method, "seed": str(cell.seed),
            "settings": cell.settings, "acting": acting}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for environment in options.environments:
            for dataset in options.datasets:
                for method in options.methods:
                    cell = Cell(environment, dataset, method, 1, seed, options.settings, "small")
                    rows = [row | {"settings": row.get("settings", "best"), "acting": row.get("acting", "test")}
                            for row in done(options.results)]
                    if not any(_key(cell, options.acting).items() <= row.items() for row in rows):
                        row = errors(options.out, cell, options.acting)
                        show(row)
                        add(options.results, row)


if __name__ == "__main__":
    main(tyro.cli(Options))
