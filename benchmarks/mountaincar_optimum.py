"""The least expected number of steps to MountainCar's goal, for the five test agents, by dynamic programming.

    python benchmarks/mountaincar_optimum.py        # about a minute on one core

The car is deterministic and starts at rest, uniform in -0.6..-0.4; here at the middles of 1000 equal parts. Three answers:
an estimate, by value iteration on grids, which leaks where it interpolates; plans, searched by those values and replayed in
the true environment, so that their steps can be had; and a bound that no policy beats. The optimum lies between bound and
plans. Steps are the environment's; a return is -(steps - 1), because the step to the goal costs nothing. Prints Markdown
and writes results/mountaincar_optimum.csv.
"""

import time
from pathlib import Path

import mountaincar_grids as grids
import numpy as np
import torch
from tables import show, write

from lowrank_rl.rl.envs import mountaincar

STARTS = 1000
NODES = (200, 400, 800)                  # of value iteration, each way; the error falls about as their square
TOLERANCE = 1e-3                         # steps by which its last sweep may still change a node
WIDTH = 30                               # states that the search keeps
CELLS = ((2000, 4000), (4000, 8000))     # of the bound: positions, velocities; the error falls about as their number


def replayed(gravity: float, start: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """Steps to the goal of plans (B, LIMIT) in the true environment, (B,); LIMIT for a plan that does not get there."""
    covariates = torch.full((len(start), 1), gravity, dtype=torch.float64)
    state = torch.stack([torch.from_numpy(start), torch.zeros(len(start), dtype=torch.float64)], dim=1)
    steps = np.full(len(start), grids.LIMIT)
    for t, action in enumerate(torch.from_numpy(actions).T):
        state = mountaincar.step(covariates, state, action[:, None])
        steps[mountaincar.ended(state).numpy() & (steps > t)] = t + 1
    return steps


def row(number: int, gravity: float) -> dict:
    """One agent's answers."""
    started = time.monotonic()
    low, high = mountaincar.START
    start = low + (high - low) * (np.arange(STARTS) + 0.5) / STARTS
    value, estimate, found = np.zeros((2, 2)), [], []
    for n in NODES:
        value = grids.values(gravity, grids.refine(value, n), TOLERANCE)
        estimate.append(grids.estimates(value, start).mean())
        found.append(replayed(gravity, start, grids.plans(gravity, value, start, WIDTH)))
    bound = [grids.at_rest(grids.lower_bounds(gravity, *cells), start) for cells in CELLS]
    assert (np.max(bound, axis=0) <= np.min(found, axis=0)).all()
    found, bound = np.mean(found, axis=1), np.mean(bound, axis=1)
    steps = found.min()
    return {"agent": number, "gravity": gravity, "starts": STARTS, "steps": f"{steps:.3f}", "return": f"{1 - steps:.3f}",
            "return_5_percent_worse": f"{1.05 * (1 - steps):.2f}", "bound": f"{bound[-1]:.3f}",
            **{f"estimate_{n}": f"{x:.3f}" for n, x in zip(NODES, estimate, strict=True)},
            "estimate_extrapolated": f"{(4 * estimate[-1] - estimate[-2]) / 3:.3f}",
            **{f"plans_{n}": f"{x:.3f}" for n, x in zip(NODES, found, strict=True)},
            **{f"bound_{m}x{n}": f"{x:.3f}" for (m, n), x in zip(CELLS, bound, strict=True)},
            "bound_extrapolated": f"{2 * bound[-1] - bound[-2]:.3f}", "seconds": f"{time.monotonic() - started:.0f}"}


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for number, (gravity,) in enumerate(mountaincar.ENVIRONMENT.test_agents, start=1):
        rows.append(row(number, gravity))
        show(rows[-1])
    write(Path("results/mountaincar_optimum.csv"), rows)


if __name__ == "__main__":
    main()
