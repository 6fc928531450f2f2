"""Simulators of agents that no training data came from, beside the paper's Tables 12 and 13 (appendix F.5).

    python benchmarks/unseen.py OUT                                  # errors of 50 steps: MountainCar, CartPole, HalfCheetah
    python benchmarks/unseen.py OUT --returns                        # and returns of plans in them, beside the optimum

Data sets and simulators are those of the benchmark's budget ``small`` under ``best`` settings, kept in OUT, and not made anew
if they are there. New agents get their latent rows in one of these ways:

    average        the mean of the trained rows: what knowing nothing gives
    best, paper    from covariates, known of a fraction p of the training agents: fractional polynomials, or the paper's network
    few-shot       from the first k steps of an episode of their own; no covariates
    both           those steps, with ``best`` at p as their prior

An agent's own episode is logged as the data set was: by uniformly random actions, or by the policy that was trained on the
nearest of the policy-training agents. If it ends before k steps, all of it is used ("shown"). ``optimum`` rows are the least
steps that dynamic programming finds from the very starts of the test episodes (MountainCar only; mountaincar_optimum.py).
Adds to results/unseen.csv; rows found there are not run again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import mountaincar_grids as grids
import numpy as np
import torch
import tyro
from mountaincar_optimum import NODES, TOLERANCE, WIDTH, replayed
from tables import add, done, show
from torch import Tensor

from lowrank_rl import rng
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.behaviour.trained import tester
from lowrank_rl.rl.bench import cases, newcomers, pieces, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.models.persim import PerSim
from lowrank_rl.rl.row_polynomials import fit_polynomial
from lowrank_rl.rl.row_regression import fit_network, known_agents
from lowrank_rl.rl.unseen import few_shot, with_agents, zero_shot

RESULTS = Path("results/unseen.csv")
FRACTIONS, STEPS = (1.0, 0.5, 0.25, 0.1), (5, 10, 25, 100)
EPISODES = {"mountaincar": 200, "cartpole": 200, "halfcheetah": 40}      # of prediction errors
PLANNED = {"mountaincar": 10, "cartpole": 5}                             # of returns
RETURNS = {("best", 0.1, None), ("paper", 0.1, None), ("few-shot", None, 10)}


@dataclass(frozen=True)
class Options:
    out: tyro.conf.Positional[Path]
    """where data sets and simulators are kept"""
    environments: tuple[str, ...] = ("mountaincar", "cartpole", "halfcheetah")
    datasets: tuple[str, ...] = ("random", "pure")
    seeds: tuple[int, ...] = (0, 1, 2)
    returns: bool = False
    """plan in the simulators, too"""
    results: Path = RESULTS


def ways() -> list[tuple[str, float | None, int | None]]:
    """(method, fraction, steps)"""
    return [("average", None, None), *((method, p, None) for method in ("best", "paper") for p in FRACTIONS),
            *(("few-shot", None, k) for k in STEPS), *(("both", 0.1, k) for k in STEPS)]


@cache
def simulators(out: Path, cell: Cell) -> PerSim:
    train.make_data(out, cell, lambda what, share: None)
    train.train(out, cell, "cpu", lambda what, share: None)
    return pieces.load_model(out, cell)


def extended(out: Path, cell: Cell, method: str, fraction: float | None, steps: int | None) -> tuple[PerSim, dict]:
    """Simulators with the new agents as their last, and what was done."""
    model, covariates = simulators(out, cell), newcomers.logged(cell)
    started = time.process_time()
    regression, more = None, {}
    if fraction:
        who = known_agents(len(covariates), fraction, generator=rng.stream(cell.seed, cell.environment, "known covariates"))
        regression = fit_network(model, who, covariates[who], seed=cell.seed) if method == "paper" else \
            fit_polynomial(model, who, covariates[who])
        if method != "paper":
            more["bases"] = "; ".join(f"{basis.degree} of {' '.join(basis.forms)}" for basis in regression.bases)
    if method == "average":
        model = with_agents(model, model.rows.mean(1, keepdim=True).expand(-1, len(newcomers.new(cell)), -1))
    elif not steps:
        model = zero_shot(model, regression, newcomers.new(cell))
    else:
        shown = newcomers.own_steps(cell, steps)
        model = few_shot(model, shown, None, regression, newcomers.new(cell) if regression else None)
        more["shown"] = " ".join(map(str, torch.bincount(shown.agent).tolist()))
    return model, {**more, "cpu_seconds": f"{time.process_time() - started:.2f}"}


def everybody(cell: Cell) -> tuple[Tensor, list[int]]:
    """Covariates of the training agents and the new ones, and the numbers of these."""
    logged, new = newcomers.logged(cell), newcomers.new(cell)
    return torch.cat([logged, new]), list(range(len(logged), len(logged) + len(new)))


def errors(cell: Cell, model: PerSim) -> dict:
    environment, agents, last = cases.ENVIRONMENTS[cell.environment], *everybody(cell)
    found = evaluate.prediction_error(environment, model, agents, last, tester(environment, len(agents)),
                                      episodes=EPISODES[cell.environment], seed=cell.seed)
    return {"episodes": EPISODES[cell.environment],
            **{f"rmse {i + 1}": f"{found[a].rmse:.3e}" for i, a in enumerate(last)},
            **{f"r2 {i + 1}": f"{found[a].r2:.4f}" for i, a in enumerate(last)}}


def returns(cell: Cell, model: PerSim) -> dict:
    environment, agents, last = cases.ENVIRONMENTS[cell.environment], *everybody(cell)
    started = time.monotonic()
    totals, _ = evaluate.returns(environment, cases.planning_policy("best", environment, model), agents, last,
                                 episodes=PLANNED[cell.environment], seed=cell.seed)
    return {"planned episodes": PLANNED[cell.environment],
            **{f"return {i + 1}": f"{x:.2f}" for i, x in enumerate(totals.mean(1))},
            **{f"sd {i + 1}": f"{x:.2f}" for i, x in enumerate(totals.std(1))},
            "planning seconds": f"{time.monotonic() - started:.0f}"}


def optimum(seed: int) -> dict:
    """The best returns from the starts of the test episodes of this seed, which are the same for all data sets and methods."""
    environment = cases.ENVIRONMENTS["mountaincar"]
    agents, last = everybody(Cell("mountaincar", "random", "persim", 1, seed, "best", "small"))
    found = {}
    for i, agent in enumerate(last):
        gravity, number = float(agents[agent, 0]), torch.full((PLANNED["mountaincar"],), agent)
        begun = data.collect(environment, agents[number], number, cases.BEHAVIOUR["random"](environment, agents), seed=seed,
                             what="return-test", max_steps=1)
        value = np.zeros((2, 2))
        for n in NODES:
            value = grids.values(gravity, grids.refine(value, n), TOLERANCE)
        start = begun.state[:, 0]
        steps = replayed(gravity, start, grids.plans(gravity, value, start, WIDTH))
        found |= {f"return {i + 1}": f"{1 - steps.mean():.2f}", f"sd {i + 1}": f"{steps.std():.2f}"}
    return {"planned episodes": PLANNED["mountaincar"], **found}


def identity(row: dict) -> tuple[str, ...]:
    return tuple(str(row.get(name, "")) for name in ("environment", "dataset", "seed", "what", "method", "p", "k"))


def main(options: Options) -> None:
    torch.set_num_threads(1)

    def once(head: dict, run: Callable[[], dict]) -> None:
        rows = done(options.results)
        if identity(head) not in {identity(row) for row in rows}:
            row = {**head, **run(), "torch": torch.__version__}
            show(row)
            add(options.results, row)

    for environment in options.environments:
        for seed in options.seeds:
            for dataset in options.datasets:
                cell = Cell(environment, dataset, "persim", 1, seed, "best", "small")
                for method, fraction, steps in ways():
                    head = {"environment": environment, "dataset": dataset, "seed": str(seed), "what": "error",
                            "method": method, "p": f"{fraction:g}" if fraction else "", "k": str(steps or "")}

                    def run(way=(method, fraction, steps), cell=cell, judge=errors) -> dict:
                        model, how = extended(options.out, cell, *way)
                        return {**how, **judge(cell, model)}

                    once(head, run)
                    if options.returns and environment in PLANNED and (method, fraction, steps) in RETURNS:
                        once({**head, "what": "return"}, lambda run=run: run(judge=returns))
            if options.returns and environment == "mountaincar":
                once({"environment": environment, "dataset": "", "seed": str(seed), "what": "return", "method": "optimum",
                      "p": "", "k": ""}, lambda seed=seed: optimum(seed))


if __name__ == "__main__":
    main(tyro.cli(Options))
