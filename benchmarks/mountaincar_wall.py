"""Adam's rate and beta2 for MountainCar, judged by the 50-step error of agents that are not among the tested ones.

    python benchmarks/mountaincar_wall.py        # about 20 minutes on one core

Forty transitions in a quarter of a million meet the wall, where the car stops dead; with beta2 = 0.999 each swells Adam's
second moments for a thousand steps. Two data seeds, two members, 20 episodes each of agents 5..44; prints Markdown and writes
results/mountaincar_wall.csv.
"""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tables import show, write

from lowrank_rl import rng
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.models.persim import fit_persim
from lowrank_rl.rl.policies.uniform import Uniform

GRID = ((60, 1e-2, 0.999), (60, 1e-2, 0.99), (60, 1e-2, 0.95), (60, 5e-3, 0.97), (60, 3e-3, 0.97))   # epochs, rate, beta2
SEEDS, AGENTS, EPISODES = (3, 4), list(range(5, 45)), 20


def main() -> None:
    torch.set_num_threads(1)
    environment, rows = cases.ENVIRONMENTS["mountaincar"], []
    for epochs, rate, beta2 in GRID:
        base, errors, started = cases.LEARNING["best", "mountaincar"], [], time.monotonic()
        config = replace(base, members=2, adam=replace(base.adam, epochs=epochs, learning_rate=rate, beta2=beta2))
        for seed in SEEDS:
            covariates = data.agents(environment, 500, seed=seed)
            logged = data.collect(environment, covariates, torch.arange(500), Uniform(environment.actions), seed=seed,
                                  what="random")
            model = fit_persim(logged.transitions(), 500, environment.actions, config,
                               seed=rng.integer(seed, "mountaincar", "persim"))
            found = evaluate.prediction_error(environment, model, covariates, AGENTS, cases.TEST_POLICIES["mountaincar"](),
                                              episodes=EPISODES, seed=seed)
            errors.append([found[agent].rmse for agent in AGENTS])
        rows.append({"epochs": epochs, "learning_rate": rate, "beta2": beta2,
                     **{f"seed {s}: {name}": f"{f(e):.5f}" for s, e in zip(SEEDS, errors, strict=True)
                        for name, f in (("mean", np.mean), ("median", np.median), ("max", np.max))},
                     "seconds": f"{(time.monotonic() - started) / len(SEEDS):.0f}"})
        show(rows[-1])
    write(Path("results/mountaincar_wall.csv"), rows)


if __name__ == "__main__":
    main()
