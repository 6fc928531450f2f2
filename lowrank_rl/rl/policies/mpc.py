"""Model predictive control: plan in a model at every step, execute the first action."""

from collections.abc import Callable

import torch
from torch import Tensor

from lowrank_rl.rl.contracts import DynamicsModel, EpisodeView
from lowrank_rl.rl.plan import Plan
from lowrank_rl.rl.score import Score

MAX_FLOATS = 2 ** 24   # predicted numbers held at once; more rows are planned in turns


class MPC:
    """A Policy that plans with any DynamicsModel.

    Args:
        model: steps the candidates forward; each member on its own.
        planner: (score, memory=..., generators=...) -> Plan, such as ``partial(random_shooting, actions=..., config=...)``.
        score: of a predicted trajectory; averaged over the members.
        price: (D,) what a unit of the members' standard deviation costs, per dimension and step; None: nothing.
            A plan that leaves the data, where members disagree, then has to be worth it.
    """

    def __init__(self, model: DynamicsModel, planner: Callable[..., Plan], score: Score,
                 price: Tensor | None = None) -> None:
        self.model, self.planner, self.score, self.price = model, planner, score, price
        self.non_finite = 0                      # candidate scores that were NaN or Inf so far
        self._memory: Tensor | None = None       # (episodes, H, A) the last plans
        self._episodes = 0

    def reset(self, agent: Tensor) -> None:
        self._memory, self._episodes = None, len(agent)

    @torch.no_grad()
    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        context = self.model.context(view)
        memory = None if self._memory is None else self._memory[view.episode]
        plan = self.planner(lambda plans: self.values(context, view.state, plans), memory=memory, generators=generators)
        if self._memory is None:
            self._memory = plan.memory.new_zeros((self._episodes, *plan.memory.shape[1:]))
        self._memory[view.episode] = plan.memory
        self.non_finite += plan.non_finite
        return plan.actions[:, 0]

    def values(self, context: Tensor, state: Tensor, plans: Tensor) -> Tensor:
        """Scores of plans (B, C, H, A) from state (B, D): (B, C)."""
        B, C, H, _ = plans.shape
        rows = max(1, MAX_FLOATS // (self.model.members * C * H * state.shape[1]))
        return torch.cat([self._values(context[:, i:i + rows], state[i:i + rows], plans[i:i + rows])
                          for i in range(0, B, rows)])

    def _values(self, context: Tensor, state: Tensor, plans: Tensor) -> Tensor:
        start = state.expand(self.model.members, *state.shape)
        future = self.model.rollout(context, start, plans)                            # (M, B, C, H, D)
        first = start[:, :, None, None].expand(*future.shape[:3], 1, -1).to(future.dtype)
        value = self.score(torch.cat([first, future], dim=3), plans.expand(len(future), *plans.shape)).mean(0)
        if self.price is not None and len(future) > 1:
            value = value - (future.std(0) * self.price.to(future)).sum((-1, -2))
        return value
