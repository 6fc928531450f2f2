"""What PerSim's factors are worth without its exact solves: networks and Adam against E-PETS, which has no factors.

    python benchmarks/factorisation.py OUT [--environments cartpole] [--datasets pure] [--seeds 1]

PerSim's ``best`` simulators of MountainCar and CartPole are solved for exactly, on splines and polynomials, which no baseline
is. Here its factor of the state is a network as E-PETS's (three hidden layers of 200, swish), trained as that is: five members,
Adam at a rate that falls from .001 to 0, as many updates and as large batches, normalised, no walls. Errors as in
``prediction_errors.py``, where E-PETS's are. Data sets are kept in OUT. Adds to results/factorisation.csv; rows found there are
not run again.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from prediction_errors import measure
from tables import add, done, show

from lowrank_rl.rl.bench import baselines, cases, pieces, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.models.persim import PerSimConfig, fit_persim
from lowrank_rl.tensor import AdamConfig

RESULTS = Path("results/factorisation.csv")


@dataclass(frozen=True)
class Options:
    out: tyro.conf.Positional[Path]
    """where data sets are kept"""
    environments: tuple[str, ...] = ("mountaincar", "cartpole")
    datasets: tuple[str, ...] = tuple(cases.BEHAVIOUR)
    seeds: int = 1
    results: Path = RESULTS


def errors(out: Path, cell: Cell) -> dict:
    """A row: each test agent's RMSE and median R2."""
    train.make_data(out, cell, lambda what, share: None)
    episodes = pieces.load_data(out, cell)
    logs, like = episodes.transitions(), baselines.learning(cell)
    epochs = math.ceil(like.descent.updates * like.descent.batch / len(logs.agent))
    config = PerSimConfig(rank=cases.LEARNING["best", cell.environment].rank, members=like.members, state_hidden=like.hidden,
                          activation="silu", walls=False,
                          adam=AdamConfig(epochs, like.descent.batch, like.descent.learning_rate))
    model = fit_persim(logs, len(episodes), cases.ENVIRONMENTS[cell.environment].actions, config, seed=cell.seed)
    last = model.cp.history_[-1]
    row = {**_key(cell), "rank": config.rank, "epochs": epochs}
    for agent, error in measure(model, cell, "test").items():
        row |= {f"rmse {agent + 1}": f"{error.rmse:.4g}", f"r2 {agent + 1}": f"{error.r2:.4f}"}
    return {**row, "training seconds": f"{last['seconds']:.0f}", "torch": torch.__version__}


def _key(cell: Cell) -> dict[str, str]:
    return {"environment": cell.environment, "dataset": cell.dataset, "seed": str(cell.seed)}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for environment in options.environments:
            for dataset in options.datasets:
                cell = Cell(environment, dataset, "e-pets", 1, seed, "best", "small")
                rows = done(options.results)
                if not any(_key(cell).items() <= row.items() for row in rows):
                    row = errors(options.out, cell)
                    show(row)
                    add(options.results, row)


if __name__ == "__main__":
    main(tyro.cli(Options))
