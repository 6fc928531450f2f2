"""Updates per CPU second of BCQ and CQL, discrete and continuous, alone and as stacked runs, beside d3rlpy's on the same logs.

    python benchmarks/baselines.py            # five minutes on one core
    python benchmarks/baselines.py --help

Each update draws its batch and takes one step of the optimizers, on one thread. Both libraries take turns, so that what else
the machine does slows both; a ratio is the median over turns. d3rlpy needs an environment of its own (``make witness``);
without it only ours are measured. Prints Markdown and adds to results/baselines.csv.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
import tyro
from tables import add, show

from lowrank_rl import check
from lowrank_rl.rl import data
from lowrank_rl.rl.contracts import Discrete, Environment, Experience
from lowrank_rl.rl.envs import cartpole, halfcheetah, mountaincar
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.batches import Logs
from lowrank_rl.rl.policies.bcq import BCQ, BCQConfig
from lowrank_rl.rl.policies.bcq_continuous import ContinuousBCQ, ContinuousBCQConfig
from lowrank_rl.rl.policies.cql import CQL, CQLConfig
from lowrank_rl.rl.policies.cql_continuous import ContinuousCQL, ContinuousCQLConfig
from lowrank_rl.rl.policies.uniform import Uniform


@dataclass(frozen=True)
class Case:
    make: Callable[..., offline.Learner]
    config: Any
    environment: Environment
    agents: int              # whose logs are learned from
    runs: tuple[int, ...]    # side by side


CHEETAH = halfcheetah.ENVIRONMENT
CASES = {
    "BCQ": Case(BCQ, BCQConfig(), cartpole.ENVIRONMENT, 1000, (1, 5, 25)),
    "CQL": Case(CQL, CQLConfig(), cartpole.ENVIRONMENT, 1000, (1, 5, 25)),
    "CQL of own logs": Case(CQL, CQLConfig(), mountaincar.ENVIRONMENT, 5, (1, 5)),     # five runs: each batch is a whole log
    "BCQ, continuous": Case(partial(ContinuousBCQ, box=CHEETAH.actions), ContinuousBCQConfig(), CHEETAH, 10, (1, 5)),
    "CQL, continuous": Case(partial(ContinuousCQL, box=CHEETAH.actions), ContinuousCQLConfig(), CHEETAH, 10, (1, 5)),
}


def logs(case: Case, seed: int) -> Experience:
    agents = case.agents
    return data.collect(case.environment, data.agents(case.environment, agents, seed=seed), torch.arange(agents),
                        Uniform(case.environment.actions), seed=seed, what="random").experience()


def ours(case: Case, logged: Experience, runs: int, seed: int) -> Callable[[], None]:
    """One update of every run; each has its share of the agents."""
    actions = case.environment.actions
    discrete = isinstance(actions, Discrete)
    kept = Logs(logged, torch.arange(case.agents) % runs, discrete, "cpu")
    learner = case.make(logged.state.shape[1], actions.n if discrete else actions.size, case.config, seed, runs, "cpu")
    generators, number = offline.streams(seed, runs, "batches"), count()
    return lambda: learner.update(kept.draw(case.config.batch, generators), next(number))


def theirs(name: str, case: Case, logged: Experience) -> Callable[[], None]:
    """One update of d3rlpy's, with the same settings and networks as ours, but for discrete BCQ's target, which it copies now
    and then."""
    import d3rlpy
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    ends, config = logged.terminated.clone(), case.config
    ends[-1] = True
    kept = d3rlpy.dataset.MDPDataset(logged.state.float().numpy(), logged.action.numpy(),
                                     logged.reward.float().numpy()[:, None], ends.float().numpy())
    same, layers = {"batch_size": config.batch, "gamma": config.discount}, d3rlpy.models.VectorEncoderFactory
    algorithm = {
        "BCQ": lambda: d3rlpy.algos.DiscreteBCQConfig(**same, learning_rate=config.learning_rate, beta=config.logits,
                                                      share_encoder=False),
        "CQL": lambda: d3rlpy.algos.DiscreteCQLConfig(**same, learning_rate=config.learning_rate, n_critics=config.critics,
                                                      alpha=config.alpha),
        "BCQ, continuous": lambda: d3rlpy.algos.BCQConfig(
            **same, n_action_samples=config.samples, actor_encoder_factory=layers(list(config.hidden)),
            critic_encoder_factory=layers(list(config.hidden)), imitator_encoder_factory=layers(list(config.autoencoder))),
        "CQL, continuous": lambda: d3rlpy.algos.CQLConfig(
            **same, alpha_threshold=config.threshold, actor_learning_rate=config.policy_rate),
    }[name.removesuffix(" of own logs")]().create(device="cpu:0")
    algorithm.build_with_dataset(kept)
    return lambda: algorithm.update(kept.sample_transition_batch(config.batch))


def rate(update: Callable[[], None], seconds: float) -> float:
    """Updates per CPU second."""
    start, done = time.process_time(), 0
    while time.process_time() - start < seconds:
        update()
        done += 1
    return done / (time.process_time() - start)


def main(only: tuple[str, ...] = tuple(CASES), turns: int = 5, seconds: float = 2.0, seed: int = 0, note: str = "",
         out: Path = Path("results/baselines.csv")) -> None:
    """Speed of offline learners.

    Args:
        only: which of them.
        turns: of every measurement.
        seconds: of one turn, on the CPU.
        seed: of data and training.
        note: what should be known of the run, such as who shared the machine.
        out: where rows are added; those of other machines stay.
    """
    torch.set_num_threads(1)
    peer = find_spec("d3rlpy") is not None
    if not peer:
        print("d3rlpy is not installed here, so only our own rates are measured; `make witness` installs it.")
    for name in only:
        check.known("learner", name, CASES)
        case = CASES[name]
        logged = logs(case, seed)
        updates: dict[object, Callable[[], None]] = {size: ours(case, logged, size, seed) for size in case.runs}
        if peer:
            updates["d3rlpy"] = theirs(name, case, logged)
        for update in updates.values():
            rate(update, 0.2)                    # warms up
        found = [{key: rate(update, seconds) for key, update in updates.items()} for _ in range(turns)]
        for size in case.runs:
            row = {"algorithm": name, "runs": size, "steps": len(logged.agent), "batch": case.config.batch,
                   "run updates per s": f"{size * median(turn[size] for turn in found):.1f}",
                   "of one run": f"{median(size * turn[size] / turn[1] for turn in found):.2f}"}
            if peer:
                row |= {"d3rlpy per s": f"{median(turn['d3rlpy'] for turn in found):.1f}",
                        "of d3rlpy": f"{median(size * turn[size] / turn['d3rlpy'] for turn in found):.2f}"}
            row |= {"turns": turns, "torch": torch.__version__, "note": note}
            show(row)
            add(out, row)


if __name__ == "__main__":
    tyro.cli(main)
