"""Model-based offline policy selection: a learner's policies judged in the agents' simulators, without a true step.

Learners from few steps swing: the last policy may be much worse than one shortly before it.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lowrank_rl.rl import evaluate
from lowrank_rl.rl.bench import baselines, cases, pieces
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.imagined import Diverged, imagined
from lowrank_rl.rl.policies.offline import Learned


def judge(out: Path, cell: Cell) -> Callable[[Learned], Tensor]:
    """What the policy of each run is worth: the mean return of as many episodes as are flown in the true environment later,
    in the simulator of the run's agent; -Inf where that diverges."""
    environment, budget, logged = cases.ENVIRONMENTS[cell.environment], baselines.budget_of(cell), pieces.load_data(out, cell)
    inside, numbers = imagined(environment, pieces.load_model(out, pieces.simulator_of(cell)),
                               logged.state[logged.start[:-1]], budget.agents)
    tests = range(len(environment.test_agents))

    def worth(policy: Learned) -> Tensor:
        found = torch.full((len(policy.failed),), -torch.inf, dtype=torch.float64)
        able = [agent for agent in tests if policy.able(agent)]
        while able:
            try:
                returns, _ = evaluate.returns(inside, policy, numbers, able, episodes=budget.return_episodes, seed=cell.seed,
                                              max_steps=budget.return_steps)
            except Diverged as error:
                able = [agent for agent in able if agent not in error.agents]
            else:
                found[policy.run[able]] = torch.from_numpy(returns).mean(1)
                break
        return found
    return worth
