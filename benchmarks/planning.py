"""Milliseconds per decision, from the state to the chosen action: draw plans, roll them out, score them, choose.

    python benchmarks/planning.py                                   # two threads, some minutes
    python benchmarks/planning.py --threads 1 --note "quiet machine"
    python benchmarks/planning.py --help

Each decision beside the same one by the plain loop (``unroll.rollout``), and beside the machine's own peaks, measured in the
same run. Simulators are trained for a moment only: the time does not depend on it. Prints Markdown and writes
results/planning.csv.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import peaks, seconds
from tables import done, show, write
from torch import Tensor

from lowrank_rl import rng
from lowrank_rl.nets import Mlp
from lowrank_rl.rl import data, unroll
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.contracts import EpisodeView, fresh_view
from lowrank_rl.rl.models.persim import STATE, Exact, PerSim, PerSimConfig, fit_persim
from lowrank_rl.rl.plan import CEMConfig, ICEMConfig, ShootingConfig
from lowrank_rl.rl.policies.mpc import MPC
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.tensor import AdamConfig, ALSConfig, Polynomial, Spline
from lowrank_rl.tensor.bases import SplineBasis

AGENTS = 20
BRIEF = AdamConfig(epochs=3, batch=256)
DEEP = PerSimConfig(rank=15, state_hidden=(256,) * 4, adam=BRIEF)
SIMULATORS = {
    ("mountaincar", "spline 32 x 4"): PerSimConfig(rank=3, exact=Exact(Spline(2, (32, 4)), ALSConfig(sweeps=2))),
    ("mountaincar", "network 256"): PerSimConfig(rank=3, adam=BRIEF),
    ("cartpole", "polynomial of degree 3"): PerSimConfig(rank=5, exact=Exact(Polynomial(4, 3), ALSConfig(sweeps=2))),
    ("cartpole", "network 256"): PerSimConfig(rank=5, adam=BRIEF),
    ("halfcheetah", "network 4 x 256, bfloat16"): replace(DEEP, precision="bfloat16"),
    ("halfcheetah", "network 4 x 256"): DEEP,
    ("halfcheetah", "best"): replace(cases.LEARNING["best", "halfcheetah"], adam=BRIEF, multistep=None),
}
PAPER, FAR = ShootingConfig(horizon=50, candidates=1000), cases.PLANNING["best", "mountaincar"].planner
DECISIONS = {
    "mountaincar": [(PAPER, "mountaincar bonus"), (PAPER, "total reward"), (FAR, "total reward")],
    "cartpole": [(cases.PLANNING["best", "cartpole"].planner, "cartpole margin"), (PAPER, "total reward")],
    "halfcheetah": [(CEMConfig(), "total reward"), (cases.PLANNING["best", "halfcheetah"].planner, "upright")],
}


@dataclass(frozen=True)
class Plain:
    """A model whose rollouts are the plain loop."""
    model: PerSim

    past, noisy = PerSim.past, PerSim.noisy

    @property
    def members(self) -> int:
        return self.model.members

    def context(self, view: EpisodeView) -> Tensor:
        return self.model.context(view)

    def predict(self, *question: Tensor | None) -> Tensor:
        return self.model.predict(*question)

    def rollout(self, *question: Tensor | None) -> Tensor:
        return unroll.rollout(self, *question)


def simulators(name: str, config: PerSimConfig, seed: int) -> PerSim:
    """Trained for a moment on a few short logs."""
    environment = cases.ENVIRONMENTS[name]
    logged = data.collect(environment, data.agents(environment, AGENTS, seed=seed), torch.arange(AGENTS),
                          Uniform(environment.actions), seed=seed, what="random", max_steps=100)
    return fit_persim(logged.transitions(), AGENTS, environment.actions, config, seed=seed)


def operations(model: PerSim) -> float:
    """Additions and multiplications that one step of one plan in one member needs, once the agent is folded in."""
    _, state, *acted = model.module.modes
    D, R = model.module.outputs, model.module.rank
    if isinstance(state, Mlp):
        if model.joint:
            *inner, last = state.layers
            return 2 * (sum(layer.weight[0].numel() for layer in inner) + last.weight.shape[1] * D)
        if isinstance(acted[0], Mlp):
            products = sum(layer.weight[0].numel() for network in (state, *acted) for layer in network.layers)
            return 2 * (products + D * R)
        hidden = state.layers[0].weight.shape[2]
        return 2 * hidden * 2 * D
    if isinstance(state.basis, SplineBasis):
        each = state.basis.degree + 1
        return 2 * (2 * each * 6 + each * each * D + each * D)      # pieces and their slopes, then what meets
    return state.basis.size * (1 + 2 * D)


def view(name: str, episodes: int, seed: int) -> EpisodeView:
    environment = cases.ENVIRONMENTS[name]
    state = environment.reset(episodes, generator=rng.stream(seed, "benchmark", "start"))
    return fresh_view(torch.arange(episodes) % AGENTS, state, environment.actions.size)


Planner = ShootingConfig | CEMConfig | ICEMConfig


def decide(name: str, model: PerSim | Plain, config: Planner, score: str, episodes: int, seed: int,
           repeats: int) -> tuple[list[float], list[float]]:
    """Wall and processor seconds of decisions."""
    environment, search = cases.ENVIRONMENTS[name], cases.SEARCH[type(config)]
    persim = model.model if isinstance(model, Plain) else model
    price = cases.PLANNING["best", name].price / (persim.unit * len(persim.unit))
    policy = MPC(model, partial(search, actions=environment.actions, config=config), cases.SCORES[score](environment),
                 price if bool(price.any()) else None)
    policy.reset(torch.arange(episodes))
    generators = [rng.stream(seed, "benchmark", episode) for episode in range(episodes)]
    shown = view(name, episodes, seed)
    return seconds(lambda: policy.act(shown, generators=generators), repeats)


def moved(name: str, model: PerSim, seed: int) -> float:
    """How far the fast path's states are from the plain loop's within 10 steps, in shares of the largest."""
    shown = view(name, 1, seed)
    plans = cases.ENVIRONMENTS[name].actions.sample((1, 100, 10), generator=rng.stream(seed, "benchmark", "plans"))
    asked = model.context(shown), shown.state.expand(model.members, *shown.state.shape), plans
    plain = unroll.rollout(model, *asked)
    return float((model.rollout(*asked) - plain).abs().max() / plain.abs().max())


def main(threads: int = 2, repeats: int = 100, seed: int = 0, batches: tuple[int, ...] = (1, 20, 100),
         environments: tuple[str, ...] = tuple(DECISIONS), note: str = "", out: Path = Path("results/planning.csv")) -> None:
    """Milliseconds per decision.

    Args:
        threads: torch's, which planning follows.
        repeats: decisions of one episode in MountainCar and CartPole; a twentieth of it in HalfCheetah and of many episodes.
        seed: of logs, training, states and plans.
        batches: episodes that plan at once.
        environments: of which to measure decisions; the rows of others are kept.
        note: what should be known of the run, such as who shared the machine.
        out: where to write.
    """
    torch.set_num_threads(threads)
    peak = peaks(threads)
    show(peak)
    rows = [row for row in done(out) if row["environment"] not in environments]
    for (name, what), config in SIMULATORS.items():
        if name not in environments:
            continue
        model = simulators(name, config, seed)
        difference = moved(name, model, seed)
        for planner, score in DECISIONS[name]:
            plain = min(decide(name, Plain(model), planner, score, 1, seed, 3)[0])
            for episodes in batches:
                count = repeats if episodes == 1 and name != "halfcheetah" else max(3, repeats // 20)
                wall, cpu = (np.divide(x, episodes) for x in decide(name, model, planner, score, episodes, seed, count))
                rows.append({"environment": name, "simulators": what, "members": model.members, "score": score,
                             "candidates": planner.candidates, "horizon": planner.horizon, "near": getattr(planner, "near", ""),
                             "rounds": getattr(planner, "rounds", 1), "episodes": episodes, "threads": threads,
                             "ms": f"{1e3 * np.median(wall):.2f}", "ms_min": f"{1e3 * wall.min():.2f}",
                             "ms_max": f"{1e3 * wall.max():.2f}", "n": count, "processor_ms": f"{1e3 * cpu.min():.2f}",
                             "plain_ms": f"{1e3 * plain:.0f}", "plain_over_fast": f"{plain / wall.min():.1f}",
                             "difference": f"{difference:.0e}", **shares(model, planner, wall.min(), peak), "note": note})
                show(rows[-1])
    write(out, rows)


def plans(planner: Planner) -> int:
    """How many a decision rolls out."""
    if isinstance(planner, ICEMConfig):       # a first decision, which has no elites to keep from the last one
        fresh = (max(2 * planner.elites, round(planner.candidates / planner.decay**n)) for n in range(planner.rounds))
        return sum(fresh) + planner.rounds + (planner.rounds - 1) * round(planner.kept * planner.elites)
    return planner.candidates * getattr(planner, "rounds", 1)


def shares(model: PerSim, planner: Planner, seconds: float, peak: dict[str, float]) -> dict[str, str]:
    """Of the machine's peaks, at the rate of the fastest decision. Bytes: states in float32, written and read once."""
    steps = model.members * plans(planner) * planner.horizon
    rate, moved = steps * operations(model) / seconds / 1e9, 8 * steps * model.module.outputs / seconds / 1e9
    state = model.module.modes[STATE]
    low = isinstance(state, Mlp) and state.inner_dtype == torch.bfloat16
    return {"gflop_per_s": f"{rate:.0f}",
            "of_peak": f"{rate / peak['peak_bfloat16_gflop_per_s' if low else 'peak_gflop_per_s']:.0%}",
            "of_bandwidth": f"{moved / peak['peak_gb_per_s']:.0%}"} | {name: f"{x:.0f}" for name, x in peak.items()}


if __name__ == "__main__":
    tyro.cli(main)
