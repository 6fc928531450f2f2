"""What CartPole's margin is worth: the same simulators, planned with plain rewards and with the margin.

    python benchmarks/planning_scores.py        # about four minutes on one core

Prints a Markdown table and writes results/planning_scores.csv: mean return of 5 episodes per test agent, seed 1.
"""

import csv
from functools import partial
from pathlib import Path

import torch

from lowrank_rl import rng
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.models.persim import fit_persim
from lowrank_rl.rl.plan import random_shooting
from lowrank_rl.rl.policies.mpc import MPC
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.score import cartpole_margin, total_reward

SEED, AGENTS, EPISODES = 1, [0, 1, 2, 3, 4], 5


def main() -> None:
    torch.set_num_threads(1)
    environment = cases.ENVIRONMENTS["cartpole"]
    covariates = data.agents(environment, 500, seed=SEED)
    logged = data.collect(environment, covariates, torch.arange(500), Uniform(environment.actions), seed=SEED, what="random")
    model = fit_persim(logged.transitions(), 500, environment.actions, cases.LEARNING["best", "cartpole"],
                       seed=rng.integer(SEED, "cartpole", "persim"))
    planner = partial(random_shooting, actions=environment.actions, config=cases.PLANNING["best", "cartpole"].planner)
    rows = []
    for name, score in (("total reward", total_reward(environment)), ("cartpole margin", cartpole_margin)):
        totals, _ = evaluate.returns(environment, MPC(model, planner, score), covariates, AGENTS, episodes=EPISODES, seed=SEED)
        rows.append({"score": name, **{f"agent {a + 1}": f"{x:.1f}" for a, x in zip(AGENTS, totals.mean(1), strict=True)}})
        print("| " + " | ".join(rows[-1].values()) + " |", flush=True)
    with Path("results/planning_scores.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
