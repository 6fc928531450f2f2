"""What lowers the error of a simulator's predictions, judged by the tails of logged trajectories alone.

    python benchmarks/simulators.py mountaincar [--dataset random] [--seeds 3] [--only walls]
    python benchmarks/simulators.py halfcheetah --agents 25 --only epochs      # how long to train on few logs

The last fifth (at most 100 steps) of every trajectory but the test agents' is left out of training; from its first state the
simulator predicts it, open loop, at most 50 steps at a time. No test agent and no true dynamics is consulted. Also prints the
one-step error there, in units of a state difference's deviation: what the paper chooses its rank by. Prints Markdown and adds
to results/simulators-<environment>.csv; rows found there are not run again.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tables import done, show, write

from lowrank_rl.rl import data, held_out
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.contracts import fresh_view
from lowrank_rl.rl.models.persim import Exact, PerSim, PerSimConfig, fit_persim
from lowrank_rl.tensor import AdamConfig, ALSConfig, Polynomial, Spline

TAIL, WINDOW = 100, 50
AGENTS = {"mountaincar": 500, "cartpole": 500, "halfcheetah": 200}
RANKS = (3, 5, 10, 15, 20, 30)      # the paper's candidates
EPOCHS = (24, 60, 120)


def variants(name: str) -> dict[str, PerSimConfig]:
    """Settings by what is changed from the first."""
    best, paper = cases.LEARNING["best", name], cases.LEARNING["paper", name]
    if name == "halfcheetah":
        base = replace(best, members=1, joint=False, state_hidden=(256, 256), action_hidden=(64,),
                       adam=replace(best.adam, epochs=6), multistep=replace(best.multistep, updates=400, learning_rate=1e-3))
        one_step = replace(base, adam=replace(best.adam, epochs=12), multistep=None)
        four, five = ({"joint": True, "state_hidden": (200,) * layers} for layers in (4, 5))
        return {
            "two modes, one member, 6 epochs and 400 updates": base,
            "three members": replace(base, members=3),
            "12 epochs of one-step training alone": one_step,
            "that with raw angles": replace(one_step, angles=()),
            "that and ReLU": replace(one_step, angles=(), activation="relu"),
            "that and 4 x 256, as the paper's": replace(one_step, angles=(), activation="relu", state_hidden=(256,) * 4,
                                                        action_hidden=(256,) * 2),
            "joint, 4 x 200": replace(base, **four),
            "joint, 4 x 200, 12 epochs of one-step training alone": replace(one_step, **four),
            "joint, 5 x 200, 12 epochs of one-step training alone": replace(one_step, **five),
            **{f"joint, 5 x 200, 12 epochs, then multi-step at a rate of {rate:g}": replace(
                base, adam=one_step.adam, multistep=replace(base.multistep, learning_rate=rate), **five)
               for rate in (3e-4, 1e-3)},
            "horizon 10": replace(base, multistep=replace(base.multistep, horizon=10, updates=1000)),
            "horizon 50": replace(base, multistep=replace(base.multistep, horizon=50, updates=200)),
            "4 x 256": replace(base, state_hidden=(256,) * 4),
            "2 x 128": replace(base, state_hidden=(128,) * 2),
            "inputs beyond the data": replace(base, inside=False),
            **{f"{epochs} epochs": replace(base, adam=replace(best.adam, epochs=epochs)) for epochs in EPOCHS},
            **{f"rank {rank}": replace(base, rank=rank) for rank in RANKS if rank != base.rank},
        }
    solver = best.exact.solver
    network = replace(paper, members=1, normalize=True, adam=AdamConfig(epochs=60, batch=paper.adam.batch, learning_rate=5e-3))
    exact = {
        "mountaincar": {
            "(64, 6) cells and no walls": replace(best, walls=False, exact=Exact(Spline(2, (64, 6)), solver)),
            "(16, 4) cells": replace(best, exact=Exact(Spline(2, (16, 4)), solver)),
            "polynomials of degree 10": replace(best, exact=Exact(Polynomial(2, 10), solver)),
        },
        "cartpole": {
            "degree 2": replace(best, exact=Exact(Polynomial(4, 2), solver)),
            "degree 4": replace(best, exact=Exact(Polynomial(4, 4), solver)),
            "regularization 1e-6": replace(best, exact=Exact(Polynomial(4, 3), ALSConfig(sweeps=100, tol=0.01, spare=4))),
        },
    }[name]
    return {
        "best": best,
        "the paper's network, normalised, 60 epochs": network,
        "that and walls": replace(network, walls=True),
        "five members": replace(best, members=5, exact=replace(best.exact, solver=replace(best.exact.solver, spare=0))),
        "one start": replace(best, exact=replace(best.exact, solver=replace(best.exact.solver, spare=0))),
        **exact,
        **{f"rank {rank}": replace(best, rank=rank) for rank in RANKS if rank not in (best.rank, 30)},
    }


@torch.no_grad()
def one_step(model: PerSim, episodes: data.Episodes, after: np.ndarray) -> float:
    """The error of one step behind ``after`` of each episode, in deviations of a state difference."""
    whole, place = episodes.transitions(), np.arange(len(episodes.state)) - np.repeat(episodes.start[:-1], episodes.lengths)
    rows = torch.from_numpy(np.flatnonzero(place >= np.repeat(after, episodes.lengths)))
    context = model.context(fresh_view(whole.agent[rows], whole.state[rows], whole.action.shape[1]))
    state = whole.state[rows].expand(model.members, *whole.state[rows].shape)
    step = model.predict(context, state, whole.action[rows]).mean(0) - whole.next_state[rows]
    return float((step / (whole.next_state - whole.state).std(0)).square().mean().sqrt())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", choices=cases.ENVIRONMENTS)
    parser.add_argument("--dataset", default="random", choices=cases.BEHAVIOUR)
    parser.add_argument("--agents", type=int, help="how many are logged, five more than are judged")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="only variants with this in their name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    environment, count = cases.ENVIRONMENTS[options.environment], options.agents or AGENTS[options.environment]
    agents = {"agents": "" if count == AGENTS[options.environment] else str(count)}
    path = Path(f"results/simulators-{options.environment}.csv")
    rows = [{"agents": "", **row} for row in done(path)]
    for seed in range(options.seeds):
        covariates = data.agents(environment, count, seed=seed)
        episodes = data.collect(environment, covariates, torch.arange(count),
                                cases.BEHAVIOUR[options.dataset](environment, covariates), seed=seed, what=options.dataset)
        train, after = held_out.split(episodes, 0.2, longest=TAIL, agents=range(5, count))
        for variant, config in variants(options.environment).items():
            key = {"dataset": options.dataset, "variant": variant, "seed": str(seed), **agents}
            if options.only not in variant or any(key.items() <= row.items() for row in rows):
                continue
            started = time.process_time()
            model = fit_persim(train.transitions(), count, environment.actions, config, seed=seed)
            found = held_out.prediction_error(model, episodes, horizon=WINDOW, after=after)
            each = torch.from_numpy(np.concatenate([error.windows for error in found.values()]))
            rows.append({**key, "RMSE of 50 steps, mean": f"{each.mean():.3g}", "median": f"{each.median():.3g}",
                         "one step": f"{one_step(model, episodes, after):.3g}",
                         "loss": f"{model.cp.history_[-1]['loss']:.3g}", "CPU seconds": f"{time.process_time() - started:.0f}"})
            show(rows[-1])
            write(path, rows)
    for variant in variants(options.environment):
        found = [float(row["RMSE of 50 steps, mean"]) for row in rows
                 if (row["dataset"], row["variant"], row["agents"]) == (options.dataset, variant, agents["agents"])]
        if found:
            show({"variant": variant, "seeds": len(found), "mean": float(np.mean(found)), "sd": float(np.std(found))})


if __name__ == "__main__":
    main()
