"""Updates per CPU second of discrete BCQ and CQL, alone and as stacked runs, beside d3rlpy's on the same logs.

    python benchmarks/baselines.py            # two minutes on one core
    python benchmarks/baselines.py --help

Each update draws its batch and takes one step of the optimizer, on one thread. Both libraries take turns, so that what else
the machine does slows both; a ratio is the median over turns. d3rlpy needs an environment of its own (``make witness``);
without it only ours are measured. Prints Markdown and writes results/baselines.csv.
"""

import logging
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median

import torch
import tyro
from tables import show, write

from lowrank_rl.rl import data
from lowrank_rl.rl.contracts import Experience
from lowrank_rl.rl.envs import cartpole
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.bcq import BCQ, BCQConfig
from lowrank_rl.rl.policies.cql import CQL, CQLConfig
from lowrank_rl.rl.policies.uniform import Uniform

ENVIRONMENT = cartpole.ENVIRONMENT
ALGORITHMS = {"BCQ": (BCQ, BCQConfig()), "CQL": (CQL, CQLConfig())}


def logs(agents: int, seed: int) -> Experience:
    return data.collect(ENVIRONMENT, data.agents(ENVIRONMENT, agents, seed=seed), torch.arange(agents),
                        Uniform(ENVIRONMENT.actions), seed=seed, what="random").experience()


def ours(name: str, logged: Experience, agents: int, runs: int, seed: int) -> Callable[[], None]:
    """One update of every run; each has its share of the agents."""
    make, config = ALGORITHMS[name]
    kept = offline.Logs(logged, torch.arange(agents) % runs, True, "cpu")
    if kept.count.min() < config.batch:
        raise ValueError(f"agents: expected at least {config.batch} steps for each of {runs} runs, got {int(kept.count.min())} "
                         f"from {agents} agents; log more, or batches would shrink to that")
    learner = make(logged.state.shape[1], ENVIRONMENT.actions.n, config, seed, runs, "cpu")
    generators, number = offline.streams(seed, runs, "batches"), count()
    return lambda: learner.update(kept.draw(config.batch, generators), next(number))


def theirs(name: str, logged: Experience) -> Callable[[], None]:
    """One update of d3rlpy's, with the same settings as ours, but for BCQ's target, which it copies now and then."""
    import d3rlpy
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    ends = logged.terminated.clone()
    ends[-1] = True
    kept = d3rlpy.dataset.MDPDataset(logged.state.float().numpy(), logged.action.numpy(),
                                     logged.reward.float().numpy()[:, None], ends.float().numpy())
    config = ALGORITHMS[name][1]
    same = {"batch_size": config.batch, "learning_rate": config.learning_rate, "gamma": config.discount}
    algorithm = {
        "BCQ": lambda: d3rlpy.algos.DiscreteBCQConfig(**same, beta=config.logits, share_encoder=False),
        "CQL": lambda: d3rlpy.algos.DiscreteCQLConfig(**same, n_critics=config.critics, alpha=config.alpha),
    }[name]().create(device="cpu:0")
    algorithm.build_with_dataset(kept)
    return lambda: algorithm.update(kept.sample_transition_batch(config.batch))


def rate(update: Callable[[], None], seconds: float) -> float:
    """Updates per CPU second."""
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds:
        update()
        done += 1
    return done / (time.process_time() - start)


def main(agents: int = 1000, runs: tuple[int, ...] = (1, 5, 25), turns: int = 5, seconds: float = 2.0, seed: int = 0,
         note: str = "", out: Path = Path("results/baselines.csv")) -> None:
    """Speed of offline learners.

    Args:
        agents: whose logs are learned from.
        runs: side by side.
        turns: of every measurement.
        seconds: of one turn, on the CPU.
        seed: of data and training.
        note: what should be known of the run, such as who shared the machine.
        out: where to write.
    """
    torch.set_num_threads(1)
    logged, rows = logs(agents, seed), []
    peer = find_spec("d3rlpy") is not None
    if not peer:
        print("d3rlpy is not installed here, so only our own rates are measured; `make witness` installs it.")
    for name in ALGORITHMS:
        updates: dict[object, Callable[[], None]] = {size: ours(name, logged, agents, size, seed) for size in runs}
        if peer:
            updates["d3rlpy"] = theirs(name, logged)
        for update in updates.values():
            rate(update, 0.2)                    # warms up
        found = [{key: rate(update, seconds) for key, update in updates.items()} for _ in range(turns)]
        for size in runs:
            row = {"algorithm": name, "runs": size, "steps": len(logged.agent), "batch": ALGORITHMS[name][1].batch,
                   "run updates per s": f"{size * median(turn[size] for turn in found):.1f}",
                   "of one run": f"{median(size * turn[size] / turn[runs[0]] for turn in found):.2f}"}
            if peer:
                row |= {"d3rlpy per s": f"{median(turn['d3rlpy'] for turn in found):.1f}",
                        "of d3rlpy": f"{median(size * turn[size] / turn['d3rlpy'] for turn in found):.2f}"}
            rows.append({**row, "turns": turns, "torch": torch.__version__, "note": note})
            show(rows[-1])
    write(out, rows)


if __name__ == "__main__":
    tyro.cli(main)
