"""An environment as a simulator imagines it: what a policy is worth there costs no step in the true one.

    next_state = mean over members of f_m(state, action)

Episodes start where logged ones did. Whatever acts in an ``Environment`` acts in this one, too:

    environment, agents = imagined(mountaincar.ENVIRONMENT, simulator, logged.state[logged.start[:-1]], count=500)
    found, _ = returns(environment, policy, agents, [0, 1, 2], episodes=20, seed=0)
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import DynamicsModel, Environment, fresh_view


class Diverged(ValueError):
    """Predictions of these agents' next states are NaN or Inf."""

    def __init__(self, agents: Collection[int]) -> None:
        super().__init__(f"agents {sorted(agents)}: expected predictions that are finite numbers, got NaN or Inf; leave them "
                         "out, or train their simulators longer")
        self.agents = frozenset(agents)


def imagined(environment: Environment, model: DynamicsModel, start: np.ndarray | Tensor, count: int
             ) -> tuple[Environment, Tensor]:
    """The environment with the model's dynamics, and its agents' covariates, (count, 1) float64: their numbers in the model.

    Its ``step`` raises ``Diverged`` where a prediction is no finite number. Its ``reset`` draws from ``start``.

    Args:
        environment: its reward, ends and step limit are used, never its dynamics.
        start: (S, D) logged first states, of which each episode draws one.
        count: how many agents the model knows.

    Raises:
        ValueError: no first states, NaN or Inf in them, or a model that recognises agents by the running episode's past.
    """
    first = torch.as_tensor(start).double()
    check.shapes(start=(first, "S D"))
    check.finite("start", first)
    check.count("count", count)
    if len(first) == 0 or first.shape[1] != len(environment.state_names):
        raise ValueError(f"start: expected logged first states {environment.state_names}, got shape {tuple(first.shape)}")
    if model.past:
        raise ValueError(f"model: expected one that knows agents by their number, got one that wants their last {model.past} "
                         "steps, which a simulation only makes up; ask Simulator.counterfactual, which shows it logged ones")

    @torch.no_grad()
    def step(numbers: Tensor, state: Tensor, action: Tensor) -> Tensor:
        view = fresh_view(numbers[:, 0].long(), state, environment.actions.size)
        after = model.predict(model.context(view), state.expand(model.members, *state.shape), action).double().mean(0)
        lost = ~after.isfinite().all(1)
        if lost.any():
            raise Diverged({int(number) for number in numbers[lost, 0]})
        return after

    def reset(size: int, *, generator: torch.Generator) -> Tensor:
        return first[torch.randint(len(first), (size,), generator=generator)]
    number = torch.arange(count, dtype=torch.float64)[:, None]
    return replace(environment, name=f"{environment.name}, imagined", gym_id="", covariate_names=("agent",),
                   covariate_low=(0.0,), covariate_high=(count - 1.0,), test_agents=tuple((float(i),) for i in range(count)),
                   policy_training_agents=(), default_agent=(0.0,), step=step, reset=reset, rollout=None), number
