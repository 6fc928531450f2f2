"""How much the fast paths save, side by side in one run on one thread: ratios, and how far the numbers move in 10 steps.

    python benchmarks/rollouts.py        # about a minute

Prints Markdown and writes results/rollouts.csv. Simulators are trained for a moment only: the time does not depend on it.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from tables import show, write

from lowrank_rl import rng
from lowrank_rl.rl import unroll
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.contracts import Environment, Transitions, fresh_view
from lowrank_rl.rl.models.persim import PerSim, PerSimConfig, fit_persim


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median wall seconds of a call, after one that warms up."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def trained(environment: Environment, config: PerSimConfig) -> tuple[PerSim, float]:
    """A simulator after a few batches of first steps, and seconds per batch."""
    draw, count = rng.stream(0, "steps"), 10 * config.adam.batch
    agent = torch.arange(count) % 5
    state, action = environment.reset(count, generator=draw), environment.actions.sample((count,), generator=draw)
    covariates = torch.tensor(environment.test_agents, dtype=torch.float64)[agent]
    data = Transitions(agent, state, action, environment.step(covariates, state, action))
    epochs: list[dict] = []
    model = fit_persim(data, 5, environment.actions, replace(config, adam=replace(config.adam, epochs=4)), seed=0,
                       progress=epochs.append)
    return model, (epochs[-1]["seconds"] - epochs[0]["seconds"]) / 30


def question(environment: Environment, model: PerSim, plans: int, horizon: int) -> tuple[torch.Tensor, ...]:
    draw = rng.stream(0, "question")
    state = environment.reset(1, generator=draw)
    context = model.context(fresh_view(torch.zeros(1, dtype=torch.int64), state, environment.actions.size))
    return context, state.expand(model.members, *state.shape), environment.actions.sample((1, plans, horizon), generator=draw)


def main() -> None:
    torch.set_num_threads(1)
    rows = []

    def compare(what: str, slow: float, fast: float, moved: float | None) -> None:
        rows.append({"what": what, "plain_ms": f"{slow * 1e3:.2f}", "fast_ms": f"{fast * 1e3:.2f}",
                     "ratio": f"{slow / fast:.1f}", "difference": "" if moved is None else f"{moved:.1e}"})
        show(rows[-1])

    for name in ("mountaincar", "cartpole"):
        environment = cases.ENVIRONMENTS[name]
        model, _ = trained(environment, cases.LEARNING["best", name])
        asked = question(environment, model, 1000, 50)
        plain = unroll.rollout(model, *asked)[..., :10, :]      # later, float32's rounding grows with an unstable pole
        moved = float((model.rollout(*asked)[..., :10, :] - plain).abs().max() / plain.abs().max())
        compare(f"{name}: 1000 plans x 50 steps x 5 members, fused loop", seconds(partial(unroll.rollout, model, *asked)),
                seconds(partial(model.rollout, *asked)), moved)

    environment, config = cases.ENVIRONMENTS["halfcheetah"], cases.LEARNING["best", "halfcheetah"]
    (full, full_step), (half, half_step) = (trained(environment, replace(config, precision=precision))
                                            for precision in ("full", "bfloat16"))
    compare("halfcheetah: a training step of 5 members, bfloat16", full_step, half_step, None)
    asked = question(environment, full, 200, 30)
    compare("halfcheetah: 200 plans x 30 steps x 5 members, bfloat16", seconds(partial(full.rollout, *asked)),
            seconds(partial(half.rollout, *asked)), None)

    write(Path("results/rollouts.csv"), rows)


if __name__ == "__main__":
    main()
