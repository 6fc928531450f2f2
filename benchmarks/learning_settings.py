"""Which start and learning rate PerSim learns best from, judged by held-out transitions of the logged data alone.

No test agent's true dynamics is consulted. Prints a Markdown table and writes results/learning_settings.csv.

    python benchmarks/learning_settings.py            # about 10 minutes on one core
"""

import sys
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from tables import show, write

from lowrank_rl.rl import data
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.models.persim import fit_persim
from lowrank_rl.rl.policies.uniform import Uniform

GRID = {   # environment: (agents, epochs, batch, learning rates, ranks)
    "mountaincar": (500, 30, 512, (1e-3, 3e-3, 1e-2, 3e-2), (3,)),
    "cartpole": (500, 100, 64, (1e-3, 3e-3, 1e-2, 3e-2), (5,)),
    "halfcheetah": (100, 8, 512, (1e-3, 3e-3, 1e-2), (15,)),
}
SEEDS = (0, 1)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, (agents, epochs, batch, rates, ranks) in GRID.items():
        environment = cases.ENVIRONMENTS[name]
        covariates = data.agents(environment, agents, seed=0)
        logged = data.collect(environment, covariates, torch.arange(agents), Uniform(environment.actions), seed=0,
                              what="random").transitions()
        base = cases.LEARNING["best", name]
        for rank, init, rate in product(ranks, ("nearly_equal", "linear"), rates):
            losses, started = [], time.monotonic()
            for seed in SEEDS:
                config = replace(base, rank=rank, init=init, members=1,
                                 adam=replace(base.adam, epochs=epochs, batch=batch, learning_rate=rate, held_out=0.2))
                losses.append(fit_persim(logged, agents, environment.actions, config, seed=seed).cp.history_[-1]["held_out"])
            rows.append({"environment": name, "agents": agents, "epochs": epochs, "rank": rank, "init": init,
                         "learning_rate": rate, "held_out_mean": f"{sum(losses) / len(losses):.4g}",
                         "held_out_each": " ".join(f"{x:.4g}" for x in losses),
                         "seconds": f"{(time.monotonic() - started) / len(SEEDS):.0f}"})
            show(rows[-1])
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "results/learning_settings.csv")
    write(path, rows)


if __name__ == "__main__":
    main()
