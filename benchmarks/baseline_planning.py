"""Milliseconds per decision in the simulators of baselines, CaDM and E-PETS, in bfloat16 and in full precision.

    python benchmarks/baseline_planning.py              # one thread, two minutes
    python benchmarks/baseline_planning.py --note "quiet machine"

The same network, planned in by ``best``; where the processor has it, bfloat16 means the compiled loop (fused_gaussian.py). How
far it moves a prediction is measured without draws, after ten steps from logged states, in shares of what full precision says
that these steps change. Simulators are trained for a moment only: the time does not depend on it. Prints Markdown and writes
results/baseline_planning.csv.
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro
from machine import seconds
from tables import show, write
from torch import Tensor

from lowrank_rl import rng
from lowrank_rl.nets import Mlp
from lowrank_rl.rl import data
from lowrank_rl.rl.bench import baselines, cases
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import DynamicsModel, EpisodeView, fresh_view
from lowrank_rl.rl.models.cadm import CaDM
from lowrank_rl.rl.policies.uniform import Uniform

AGENTS = 20
METHODS = ("vanilla-cadm", "pe-ts-cadm", "e-pets")


def trained(environment: str, method: str, updates: int, seed: int) -> tuple[DynamicsModel, Mlp, EpisodeView]:
    """A simulator, the network that steps it, and states that it has seen."""
    true = cases.ENVIRONMENTS[environment]
    logged = data.collect(true, data.agents(true, AGENTS, seed=seed), torch.arange(AGENTS), Uniform(true.actions), seed=seed,
                          what="random", max_steps=100)
    config = baselines.learning(Cell(environment, "random", method, 1, seed, "best", "small"))
    config = replace(config, descent=replace(config.descent, updates=updates))
    model = baselines.fit_simulator(config, logged, true, seed=seed)
    network = model.module.ahead if isinstance(model, CaDM) else model.module.network
    return model, network, fresh_view(torch.from_numpy(logged.agent), torch.from_numpy(logged.state[logged.start[:-1]]),
                                      true.actions.size)


def decision(environment: str, model: DynamicsModel, view: EpisodeView, seed: int, repeats: int) -> list[float]:
    """Processor seconds of decisions of one episode."""
    policy = cases.planning_policy("best", cases.ENVIRONMENTS[environment], model)
    policy.reset(torch.arange(1))
    one = EpisodeView(*(x[:1] for x in vars(view).values()))
    return seconds(lambda: policy.act(one, generators=[rng.stream(seed, "baseline planning")]), repeats)[1]


def predicted(environment: str, model: DynamicsModel, view: EpisodeView, seed: int) -> Tensor:
    """Ten steps of random plans from each state."""
    actions = cases.ENVIRONMENTS[environment].actions
    plans = actions.sample((AGENTS, 10, 10), generator=rng.stream(seed, "baseline planning", "plans"))
    return model.rollout(model.context(view), view.state.expand(model.members, *view.state.shape), plans)


def main(environments: tuple[str, ...] = ("mountaincar", "cartpole"), updates: int = 200, repeats: int = 3, seed: int = 0,
         note: str = "", out: Path = Path("results/baseline_planning.csv")) -> None:
    """What a decision costs.

    Args:
        environments: of which.
        updates: of training.
        repeats: decisions of each kind.
        seed: of logs, training and plans.
        note: what should be known of the run, such as who shared the machine.
        out: where to write.
    """
    torch.set_num_threads(1)
    rows: list[dict] = []
    for environment in environments:
        for method in METHODS:
            model, network, view = trained(environment, method, updates, seed)
            took, said = {}, {}
            for precision in ("bfloat16", "full"):
                network.precision = precision
                took[precision] = sorted(decision(environment, model, view, seed, repeats))
                said[precision] = predicted(environment, model, view, seed)[..., -1, :].double()
            change = (said["full"] - view.state[:, None]).square().mean((0, 1, 2)).sqrt()
            off = (said["bfloat16"] - said["full"]).square().mean((0, 1, 2)).sqrt()
            fast, slow = (took[precision][repeats // 2] for precision in ("bfloat16", "full"))
            planner = cases.PLANNING["best", environment].planner
            rows.append({"environment": environment, "method": method, "members": model.members,
                         "candidates": planner.candidates, "horizon": planner.horizon, "bfloat16_ms": f"{1000 * fast:.0f}",
                         "full_ms": f"{1000 * slow:.0f}", "ratio": f"{slow / fast:.1f}",
                         "moved": f"{float((off / change).max()):.1e}", "n": repeats, "note": note})
            show(rows[-1])
    write(out, rows)


if __name__ == "__main__":
    tyro.cli(main)
