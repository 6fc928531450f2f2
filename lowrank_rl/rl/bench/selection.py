"""Of the looks at an unfinished policy each agent's best, judged in the agent's simulator.

Learners from few steps swing: the policy after the last update may be the one that arrives or the one before it did. PerSim's
own learners (PerSim-BCQ-5) can tell these apart without a step in the true environment, which the others cannot.
"""

import math
from pathlib import Path

import torch

from lowrank_rl.rl import evaluate
from lowrank_rl.rl.bench import baselines, cases, pieces
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.imagined import imagined
from lowrank_rl.rl.policies.offline import Learned


class Selection:
    """The looks so far, and each run's best of them, in a file beside the unfinished training: a killed one goes on with it."""

    def __init__(self, out: Path, cell: Cell) -> None:
        """Raises ValueError where what a killed training left is corrupt."""
        logged, self.kind = pieces.load_data(out, cell), baselines.kind(cell)
        environment, self.budget = cases.ENVIRONMENTS[cell.environment], baselines.budget_of(cell)
        self.environment, self.numbers = imagined(environment, pieces.load_model(out, pieces.simulator_of(cell)),
                                                  logged.state[logged.start[:-1]], self.budget.agents)
        self.agents, self.seed = list(range(len(environment.test_agents))), cell.seed
        self.path = pieces.model_path(out, cell).with_suffix(".best")
        self.best = baselines.load_policy(cell, self.path) if self.path.exists() else None
        self.looks: dict[str, dict[str, float]] = self.best.history[-1]["imagined"] if self.best else {}

    def look(self, done: int, policy: Learned) -> None:
        """Judge the policies after so many updates; of equal ones the later is the better."""
        able = [agent for agent in self.agents if policy.able(agent)]
        if str(done) in self.looks or not able:
            return
        found, _ = evaluate.returns(self.environment, policy, self.numbers, able, episodes=self.budget.return_episodes,
                                    seed=self.seed, max_steps=self.budget.return_steps)
        score = dict(zip(map(str, able), found.mean(1).tolist(), strict=True))
        better = torch.zeros(len(policy.failed), dtype=torch.bool)
        for agent in able:
            before = [look[str(agent)] for look in self.looks.values() if str(agent) in look]
            better[policy.run[agent]] = score[str(agent)] >= max(before, default=-math.inf)
        self.looks[str(done)] = score
        self.best = self.best.taking(better, policy) if self.best else policy
        self.best.history = [{"imagined": self.looks}]
        self.best.save(self.path, self.kind)

    def chosen(self, last: Learned) -> Learned:
        """Each run's best; a run that diverged in the end stays failed."""
        return last.taking(last.failed < 0, self.best) if self.best else last

    def close(self) -> None:
        """The policy is kept elsewhere."""
        self.path.unlink(missing_ok=True)
