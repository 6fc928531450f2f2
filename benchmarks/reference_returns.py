"""What a normalised score is measured between: uniformly random actions, and the best return that we can name.

    python benchmarks/reference_returns.py        # a minute on one core

MountainCar's best comes from results/mountaincar_optimum.csv; CartPole's is to stand to the end. HalfCheetah has none: nobody
knows its best, and planning in the true environment finds tumbling at 36 to 67 m/s in the paper and has not been run here.
Prints Markdown and writes lowrank_rl/rl/bench/reference_returns.csv, which the benchmark's report reads.
"""

from pathlib import Path

import torch
from tables import done, show, write

from lowrank_rl.rl import evaluate
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.policies.uniform import Uniform

EPISODES = {"mountaincar": 1000, "cartpole": 1000, "halfcheetah": 100}
OPTIMUM = Path("results/mountaincar_optimum.csv")


def uniform(name: str) -> list[dict]:
    """Mean return of uniformly random actions, by test agent."""
    environment = cases.ENVIRONMENTS[name]
    covariates = torch.tensor(environment.test_agents, dtype=torch.float64)
    totals, _ = evaluate.returns(environment, Uniform(environment.actions), covariates, list(range(len(covariates))),
                                 episodes=EPISODES[name], seed=0)
    return [{"environment": name, "agent": agent, "what": "random", "return": f"{total.mean():.2f}",
             "sd": f"{total.std(ddof=1):.2f}", "episodes": len(total), "source": "uniformly random actions"}
            for agent, total in enumerate(totals, start=1)]


def best() -> list[dict]:
    """The returns that count as 100."""
    optimum = done(OPTIMUM)
    if not optimum:
        raise ValueError(f"{OPTIMUM}: expected the least steps, got no such file; run benchmarks/mountaincar_optimum.py first")
    car = [{"environment": "mountaincar", "agent": row["agent"], "what": "best", "return": row["return"],
            "episodes": row["starts"], "source": "the optimum by dynamic programming",
            **{name: row[name] for name in ("machine", "numpy", "commit")}} for row in optimum]
    environment = cases.ENVIRONMENTS["cartpole"]
    pole = [{"environment": "cartpole", "agent": agent, "what": "best", "return": f"{environment.max_steps}",
             "source": "a reward of 1 at every step to the limit"} for agent in range(1, len(environment.test_agents) + 1)]
    return car + pole


def main() -> None:
    torch.set_num_threads(1)
    rows = best()
    for name in EPISODES:
        rows += uniform(name)
    for row in rows:
        show(row)
    write(Path("lowrank_rl/rl/bench/reference_returns.csv"), rows)


if __name__ == "__main__":
    main()
