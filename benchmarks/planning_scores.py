"""What the planning is worth: the same simulators, planned as the paper does and as our defaults do.

    python benchmarks/planning_scores.py cartpole                        # rewards, margin, plans near the last one; 5 minutes
    python benchmarks/planning_scores.py few runs/cartpole               # plans near the last one, in simulators of 25 logs
    python benchmarks/planning_scores.py mountaincar runs/mountaincar    # the paper's planning in our simulators; 10 minutes

The others take the ``small`` budget's simulators from the folder, or train them there. Prints Markdown and writes
results/planning_scores.csv (mean of 5 episodes per test agent, and per agent of the ten others with the shortest poles, with
the mean angle of their poles in degrees; seed 1), results/planning_few.csv (agent 5, the shortest pole, 20 episodes, seeds 0
to 2), or results/planning_mountaincar.csv (20 episodes, seeds 0 to 4).
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tables import show, write

from lowrank_rl import rng
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.bench import cases, pieces, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import DynamicsModel
from lowrank_rl.rl.models.persim import fit_persim
from lowrank_rl.rl.plan import random_shooting
from lowrank_rl.rl.policies.mpc import MPC
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.score import cartpole_margin, total_reward

SEED, AGENTS, EPISODES, SHORT = 1, [0, 1, 2, 3, 4], 5, 10


def margin() -> None:
    environment = cases.ENVIRONMENTS["cartpole"]
    covariates = data.agents(environment, 500, seed=SEED)
    logged = data.collect(environment, covariates, torch.arange(500), Uniform(environment.actions), seed=SEED, what="random")
    model = fit_persim(logged.transitions(), 500, environment.actions, cases.LEARNING["best", "cartpole"],
                       seed=rng.integer(SEED, "cartpole", "persim"))
    short = (covariates[len(AGENTS):, 1].argsort()[:SHORT] + len(AGENTS)).tolist()
    rows = []
    for name, score in (("total reward", total_reward(environment)), ("cartpole margin", cartpole_margin)):
        for near in (0.0, 0.5):
            config = replace(cases.PLANNING["best", "cartpole"].planner, near=near)
            policy = MPC(model, partial(random_shooting, actions=environment.actions, config=config), score)
            totals, _ = evaluate.returns(environment, policy, covariates, AGENTS, episodes=EPISODES, seed=SEED)
            others, flown = evaluate.returns(environment, policy, covariates, short, episodes=EPISODES, seed=SEED)
            angle = np.degrees(np.abs(flown.state[:, environment.state_names.index("theta")])).mean()
            rows.append({"score": name, "near": near,
                         **{f"agent {a + 1}": f"{x:.1f}" for a, x in zip(AGENTS, totals.mean(1), strict=True)},
                         "short poles": f"{others.mean():.1f}", "their angle": f"{angle:.2f}"})
            show(rows[-1])
    write(Path("results/planning_scores.csv"), rows)


def simulators(out: Path, cell: Cell) -> DynamicsModel:
    """Those of a cell, from the folder or trained there."""
    train.make_data(out, cell, lambda what, share: None)
    train.train(out, cell, "cpu", lambda what, share: None)
    return pieces.load_model(out, cell)


def few(out: Path) -> None:
    environment, rows = cases.ENVIRONMENTS["cartpole"], []
    for seed in range(3):
        cell = Cell("cartpole", "pure-of-25", "persim", 5, seed, "best", "small")
        model, covariates = simulators(out, cell), data.agents(environment, 25, seed=seed)
        for near in (0.0, 0.5):
            best = cases.PLANNING["best", "cartpole"]
            plan = replace(best, planner=replace(best.planner, near=near))
            policy = cases.planning_policy("best", environment, model, plan=plan)
            totals, _ = evaluate.returns(environment, policy, covariates, [cell.agent - 1], episodes=20, seed=seed)
            rows.append({"data": cell.dataset, "seed": seed, "near": near, "episodes": 20, "return": f"{totals.mean():.2f}",
                         "fell": int((totals < environment.max_steps).sum())})
            show(rows[-1])
    write(Path("results/planning_few.csv"), rows)


def paper_planning(out: Path) -> None:
    environment, rows = cases.ENVIRONMENTS["mountaincar"], []
    for seed in range(5):
        cell = Cell("mountaincar", "random", "persim", 1, seed, "best", "small")
        policy = cases.planning_policy("paper", environment, simulators(out, cell))
        covariates = data.agents(environment, 500, seed=seed)
        totals, _ = evaluate.returns(environment, policy, covariates, AGENTS, episodes=20, seed=seed)
        rows.append({"simulators": "best", "planning": "paper", "seed": seed,
                     **{f"agent {a + 1}": f"{x:.2f}" for a, x in zip(AGENTS, totals.mean(1), strict=True)}})
        show(rows[-1])
    write(Path("results/planning_mountaincar.csv"), rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["cartpole"]:
        margin()
    elif len(sys.argv) == 3 and sys.argv[1] in ("few", "mountaincar"):
        (few if sys.argv[1] == "few" else paper_planning)(Path(sys.argv[2]))
    else:
        sys.exit("expected: cartpole, or: few FOLDER, or: mountaincar FOLDER")
