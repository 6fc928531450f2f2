"""50-step prediction errors of simulators on the test agents, beside the paper's Tables 6 and 7.

    python benchmarks/prediction_errors.py OUT [--environments cartpole] [--datasets pure] [--methods vanilla-cadm] [--seeds 1]

Data sets and simulators are those of the benchmark's budget ``small``, kept in OUT, and not made anew if they are there.
Returns, which take hours for simulators without fast rollouts, are left out. Adds to results/prediction_errors.csv; rows found
there are not run again.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tables import done, show, write

from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.behaviour.trained import tester
from lowrank_rl.rl.bench import cases, pieces, published, train
from lowrank_rl.rl.bench.store import Cell

RESULTS = Path("results/prediction_errors.csv")


@dataclass(frozen=True)
class Options:
    out: tyro.conf.Positional[Path]
    """where data sets and simulators are kept"""
    environments: tuple[str, ...] = ("mountaincar", "cartpole")
    datasets: tuple[str, ...] = ("random", "pure")
    methods: tuple[str, ...] = ("vanilla-cadm", "pe-ts-cadm", "e-pets", "persim")
    seeds: int = 1
    results: Path = RESULTS


def errors(out: Path, cell: Cell) -> dict:
    """A row: RMSE, median R2 and the paper's RMSE of each test agent, and what the training was."""
    environment, budget = cases.ENVIRONMENTS[cell.environment], cases.BUDGETS[cell.budget, cell.environment]
    train.make_data(out, cell, lambda what, share: None)
    train.train(out, cell, "cpu", lambda what, share: None)
    model = pieces.load_model(out, cell)
    found = evaluate.prediction_error(environment, model, data.agents(environment, budget.agents, seed=cell.seed),
                                      list(range(len(environment.test_agents))), tester(environment, budget.agents),
                                      episodes=budget.error_episodes, seed=cell.seed)
    last = (model.history if cases.METHODS[cell.method].baseline else model.cp.history_)[-1]
    row = {"environment": cell.environment, "dataset": cell.dataset, "method": cell.method, "seed": str(cell.seed),
           "trained": " ".join(f"{last[name]} {name}s" for name in ("update", "epoch") if name in last)}
    for agent, error in found.items():
        known = published.paper(Cell(cell.environment, cell.dataset, cell.method, agent + 1, 0, "paper", "paper"), "rmse")
        row |= {f"rmse {agent + 1}": f"{error.rmse:.4g}", f"r2 {agent + 1}": f"{error.r2:.3f}",
                f"paper {agent + 1}": f"{known[0]:g}" if known else ""}
    return {**row, "training seconds": f"{last['seconds']:.0f}", "torch": torch.__version__}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for environment in options.environments:
            for dataset in options.datasets:
                for method in options.methods:
                    cell = Cell(environment, dataset, method, 1, seed, "best", "small")
                    rows = done(options.results)
                    key = (environment, dataset, method, str(seed))
                    if key not in {(row["environment"], row["dataset"], row["method"], row["seed"]) for row in rows}:
                        row = errors(options.out, cell)
                        show(row)
                        write(options.results, [*rows, row])


if __name__ == "__main__":
    main(tyro.cli(Options))
