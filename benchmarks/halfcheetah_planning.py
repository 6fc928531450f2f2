"""What HalfCheetah's planner earns by how it plans, for agents that are not tested: where its settings come from.

    python benchmarks/halfcheetah_planning.py OUT [--dataset random] [--steps 150] [--only price]

Trains the benchmark's simulators in OUT, or takes those that are there, and plans in them for a few agents other than the five
test agents, in the true environment. Each row changes one setting. Prints Markdown and adds to
results/halfcheetah_planning.csv; rows found there are not run again.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tables import done, show, write

from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.bench import cases, pieces, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.plan import CEMConfig
from lowrank_rl.rl.score import upright

NAME = "halfcheetah"
AGENTS = list(range(10, 16))      # test agents are 0 to 4


def variants() -> dict[str, tuple[cases.Planning, float]]:
    """(planning, weight of standing upright) by what is changed."""
    best, weight = cases.PLANNING["best", NAME], cases.UPRIGHT
    search = best.planner
    return {
        "best": (best, weight),
        **{f"weight {w:g}": (best, w) for w in (0.0, 0.5, 1.0, 4.0)},
        **{f"price {p:g}": (replace(best, price=p), weight) for p in (0.0, 0.3, 3.0)},
        **{f"colour {c:g}": (replace(best, planner=replace(search, colour=c)), weight) for c in (0.0, 0.5, 1.5)},
        **{f"horizon {h}": (replace(best, planner=replace(search, horizon=h)), weight) for h in (10, 15, 30)},
        **{f"{c} candidates": (replace(best, planner=replace(search, candidates=c)), weight) for c in (50, 200)},
        "5 rounds": (replace(best, planner=replace(search, rounds=5)), weight),
        "the paper's CEM": (replace(best, planner=CEMConfig(horizon=search.horizon)), weight),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset", default="random", choices=cases.BEHAVIOUR)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", default="", help="only variants with this in their name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    environment, cell = cases.ENVIRONMENTS[NAME], Cell(NAME, options.dataset, "persim", 1, 0, "best", "small")

    def say(what: str, share: float) -> None:
        print(f"{what}: {share:.0%}", file=sys.stderr, flush=True)

    train.make_data(options.out, cell, say)
    train.train(options.out, cell, "cpu", say)
    model, covariates = pieces.load_model(options.out, cell), data.agents(environment, 500, seed=0)
    guide = pieces.load_clone(options.out, cell)
    path = Path("results/halfcheetah_planning.csv")
    rows = done(path)
    for variant, (planning, weight) in variants().items():
        key = {"dataset": options.dataset, "variant": variant, "steps": str(options.steps)}
        if options.only not in variant or any(key.items() <= row.items() for row in rows):
            continue
        policy = cases.planning_policy("best", environment, model, guide, planning)
        policy.score = upright(environment, weight)
        began = time.process_time()
        totals = evaluate.returns(environment, policy, covariates, AGENTS, episodes=1, seed=0, max_steps=options.steps)[0][:, 0]
        took = (time.process_time() - began) / options.steps / len(AGENTS)
        rows.append({**key, "mean": f"{totals.mean():.1f}", "each": " ".join(f"{x:.0f}" for x in totals),
                     "CPU ms per decision": f"{1000 * took:.0f}"})
        show(rows[-1])
        write(path, rows)


if __name__ == "__main__":
    main()
