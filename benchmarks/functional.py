"""What exact solves of a functional CP reach, and how long they take, on the paper's environments and random data.

    python benchmarks/functional.py mountaincar     # 500 agents: loss, simulators' error, gravity in the rows
    python benchmarks/functional.py cartpole        # 500 agents, 12,000 transitions in all
    python benchmarks/functional.py halfcheetah     # exact last layers between epochs of Adam, against Adam alone
    python benchmarks/functional.py unseen          # MountainCars that the simulators never saw, from 25 steps of their own
    python benchmarks/functional.py agents          # time and memory from a thousand to a million agents

Seeds, data and test trajectories are those of ``python -m lowrank_rl.rl.bench``, whose records hold Adam's numbers. Each run
is appended to results/functional-<name>.csv when it is whole; runs that are there are skipped. A second argument is another
folder. Starts and members are fitted on two threads, everything else on one.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LinearRegression
from tables import done, show, write

from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.behaviour.trained import tester
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.contracts import Environment, Transitions
from lowrank_rl.rl.models.persim import PerSim
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.tensor import AdamConfig, ALSConfig, Categorical, FunctionalCP, Neural, Polynomial, Spline
from lowrank_rl.tensor.foldin import add_row, fold_in

TARGET = 0.0118      # normalised loss of MountainCar
SEEDS = range(5)
UNSEEN = (0.00005, 0.00008, 0.002, 0.0037, 0.004)     # gravities: two below and two above those of the logged agents
STEPS = 25           # of its own that an unseen agent shows
CELLS = (64, 6)      # of the spline over MountainCar's position and velocity
THREADS = {"mountaincar": 2, "cartpole": 2, "unseen": 2}     # else one


def simulators(environment: Environment, logged: Transitions, state_mode: object, rank: int, members: int,
               solver: ALSConfig, seed: int) -> tuple[FunctionalCP, float, float]:
    """A fitted tensor agent x state x action, and the wall-clock and CPU seconds that it took."""
    agents, D = int(logged.agent.max()) + 1, logged.state.shape[1]
    cp = FunctionalCP([Categorical(agents), state_mode, Categorical(environment.actions.n)], rank=rank, outputs=D,
                      output_mode=1, members=members, solver=solver, random_state=seed)
    wall, cpu = time.monotonic(), time.process_time()
    cp.fit((logged.agent, logged.state, logged.action[:, 0]), logged.next_state - logged.state)
    return cp, time.monotonic() - wall, time.process_time() - cpu


def logged(environment: Environment, agents: int, seed: int) -> tuple[torch.Tensor, Transitions]:
    """Covariates, and one random trajectory of each agent."""
    covariates = data.agents(environment, agents, seed=seed)
    return covariates, data.collect(environment, covariates, torch.arange(agents), Uniform(environment.actions), seed=seed,
                                    what="random").transitions()


def errors(environment: Environment, model: PerSim, covariates: torch.Tensor, agents: list[int], seed: int) -> dict[str, str]:
    """50-step prediction error of each agent on the test policy's trajectories."""
    found = evaluate.prediction_error(environment, model, covariates, agents, tester(environment, len(covariates)),
                                      episodes=200, seed=seed)
    return {f"rmse_{i + 1}": f"{found[a].rmse:.2e}" for i, a in enumerate(agents)}


def explained(cp: FunctionalCP, features: np.ndarray) -> list[float]:
    """R2 of a linear map from the first member's latent rows to each hidden quantity, (N, F)"""
    rows = cp.module_.modes[0].rows()[0].detach().numpy()
    residual = features - LinearRegression().fit(rows, features).predict(rows)
    return [float(1 - r.var() / f.var()) for r, f in zip(residual.T, features.T, strict=True)]


def mountaincar() -> Iterator[tuple[dict, Callable[[], dict]]]:
    """One simulator to the target loss; five for the error."""
    environment = cases.ENVIRONMENTS["mountaincar"]
    for seed in SEEDS:
        for members in (1, 5):
            def run(seed: int = seed, members: int = members) -> dict:
                covariates, transitions = logged(environment, 500, seed)
                cp, wall, cpu = simulators(environment, transitions, Spline(2, CELLS), 3, members, ALSConfig(tol=0.008), seed)
                reached = [e["seconds"] for e in cp.history_ if e["loss"] <= TARGET]
                return {"seconds_to_target": f"{reached[0]:.1f}" if reached else "never", "seconds": f"{wall:.1f}",
                        "cpu_seconds": f"{cpu:.1f}", "loss": f"{cp.history_[-1]['loss']:.4g}",
                        "gravity_r2": f"{explained(cp, covariates.numpy())[0]:.7f}",
                        **errors(environment, PerSim(cp, True), covariates, list(range(5)), seed)}
            yield {"seed": seed, "members": members}, run


def cartpole() -> Iterator[tuple[dict, Callable[[], dict]]]:
    """The best of two starts."""
    environment = cases.ENVIRONMENTS["cartpole"]
    for seed in SEEDS:
        def run(seed: int = seed) -> dict:
            covariates, transitions = logged(environment, 500, seed)
            solver = ALSConfig(sweeps=100, regularization=1e-10, tol=0.01, spare=1)
            cp, wall, cpu = simulators(environment, transitions, Polynomial(4, degree=3), 5, 1, solver, seed)
            force, length = covariates.numpy().T
            r2 = explained(cp, np.stack([1 / length, force / length, force, length], 1))
            names = ("one_over_length", "force_over_length", "force", "length")
            return {"transitions": len(transitions.agent), "seconds": f"{wall:.1f}", "cpu_seconds": f"{cpu:.1f}",
                    "loss": f"{cp.history_[-1]['loss']:.3g}", **{f"{n}_r2": f"{v:.6f}" for n, v in zip(names, r2, strict=True)},
                    **errors(environment, PerSim(cp, True), covariates, list(range(5)), seed)}
        yield {"seed": seed, "starts": 2}, run


def halfcheetah() -> Iterator[tuple[dict, Callable[[], dict]]]:
    """Exact solves of the last layers between epochs of Adam, against Adam alone; one simulator of 100 agents."""
    environment = cases.ENVIRONMENTS["halfcheetah"]
    for seed in SEEDS[:2]:
        for name, solver in (("adam", AdamConfig(epochs=12, learning_rate=3e-3)),
                             ("exact solves between epochs", ALSConfig(sweeps=12, learning_rate=1e-3, regularization=1e-2))):
            def run(seed: int = seed, solver: AdamConfig | ALSConfig = solver) -> dict:
                _, transitions = logged(environment, 100, seed)
                cp = FunctionalCP([Categorical(100, init="linear"), Neural(transitions.state.shape[1], hidden=(256,) * 4),
                                   Neural(6, hidden=(256, 256))], rank=15, outputs=transitions.state.shape[1],
                                  output_mode=1, solver=solver, random_state=seed)
                start, losses = time.process_time(), []
                cp.fit((transitions.agent, transitions.state, transitions.action), transitions.next_state - transitions.state,
                       progress=lambda e: losses.append((e["loss"], time.process_time() - start)))
                final, seconds = losses[-1]
                return {"loss": f"{final:.4g}", "cpu_seconds": f"{seconds:.0f}",
                        "losses": " ".join(f"{loss:.3g}" for loss, _ in losses),
                        "cpu_seconds_each": " ".join(f"{t:.0f}" for _, t in losses)}
            yield {"seed": seed, "solver": name}, run


def unseen() -> Iterator[tuple[dict, Callable[[], dict]]]:
    """Rows from the first steps of a random trajectory; the simulators know 500 other cars."""
    environment = cases.ENVIRONMENTS["mountaincar"]
    for seed in SEEDS:
        def run(seed: int = seed) -> dict:
            covariates, transitions = logged(environment, 500, seed)
            cp, _, _ = simulators(environment, transitions, Spline(2, CELLS), 3, 5, ALSConfig(tol=0.008), seed)
            gravity = torch.tensor(UNSEEN, dtype=torch.float64)[:, None]
            own = data.collect(environment, gravity, torch.arange(len(UNSEEN)), Uniform(environment.actions), seed=seed,
                               what="unseen", max_steps=STEPS).transitions()
            start = time.process_time()
            for i in range(len(UNSEEN)):
                mine = own.agent == i
                row = fold_in(cp, 0, (own.state[mine], own.action[mine, 0]), (own.next_state - own.state)[mine])
                cp = add_row(cp, row)
            seconds = (time.process_time() - start) / len(UNSEEN)
            return {"steps": STEPS, "cpu_seconds_each": f"{seconds:.2f}",
                    **errors(environment, PerSim(cp, True), torch.cat([covariates, gravity]), list(range(500, 505)), seed)}
        yield {"seed": seed, "gravities": " ".join(map(str, UNSEEN))}, run


def agents() -> Iterator[tuple[dict, Callable[[], dict]]]:
    """Ten noisy observations of each agent, a fixed number of sweeps; each size in a process of its own."""
    for count in (1_000, 10_000, 100_000, 1_000_000):
        def run(count: int = count) -> dict:
            out = subprocess.run([sys.executable, __file__, "one-size", str(count)], capture_output=True, text=True, check=True)
            seconds, peak = out.stdout.split()
            each = float(seconds) / (10 * count * 5)
            return {"entries": 10 * count, "cpu_seconds": seconds, "microseconds_per_entry_and_sweep": f"{1e6 * each:.2f}",
                    "peak_mb": peak}
        yield {"agents": count, "sweeps": 5}, run


def one_size(count: int) -> None:
    """Prints CPU seconds and peak MB of a fit with ``count`` agents."""
    rng = np.random.default_rng(0)
    agent = np.repeat(np.arange(count), 10)
    x, kind = rng.uniform(-1, 1, len(agent)), rng.integers(3, size=len(agent))
    row, action = rng.standard_normal((count, 3)), rng.standard_normal((3, 3))
    y = (row[agent] * action[kind] * np.stack([np.ones_like(x), x, x ** 2], 1)).sum(1) + 0.01 * rng.standard_normal(len(agent))
    cp = FunctionalCP([Categorical(count), Polynomial(1, degree=3), Categorical(3)], rank=3, solver=ALSConfig(sweeps=5))
    start = time.process_time()
    cp.fit((agent, x, kind), y)
    print(f"{time.process_time() - start:.1f}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)


NAMES = {f.__name__: f for f in (mountaincar, cartpole, halfcheetah, unseen, agents)}


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "one-size":
        torch.set_num_threads(1)
        one_size(int(sys.argv[2]))
        return
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"say which: {', '.join(NAMES)}")
    name = sys.argv[1]
    torch.set_num_threads(THREADS.get(name, 1))
    path = Path(sys.argv[2] if len(sys.argv) > 2 else "results") / f"functional-{name}.csv"
    rows = done(path)
    for key, run in NAMES[name]():
        if not any(all(str(row.get(k)) == str(v) for k, v in key.items()) for row in rows):
            rows.append({**key, "threads": torch.get_num_threads(), **run()})
            show(rows[-1])
            write(path, rows)


if __name__ == "__main__":
    main()
