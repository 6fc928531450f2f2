"""Model predictive control: plan in a model at every step, execute the first action."""

from collections.abc import Callable

import torch
from torch import Tensor

from lowrank_rl.rl.contracts import DynamicsModel, EpisodeView
from lowrank_rl.rl.plan import Plan, Proposals
from lowrank_rl.rl.score import Score
from lowrank_rl.threads import side_by_side, torch_threads

# Numbers that one piece of work predicts; pieces are done in turns, or side by side
ON_CPU = 280_000     # a megabyte that stays in the cache, two or more pieces per decision, and calls that cost little beside it
ON_GPU = 2 ** 24     # which wants much at once


class MPC:
    """A Policy that plans with any DynamicsModel.

    Args:
        model: steps the candidates forward; each member on its own.
        planner: (score, memory=..., generators=...) -> Plan, such as ``partial(random_shooting, actions=..., config=...)``.
        score: of a predicted trajectory; averaged over the members.
        price: (D,) what a unit of the members' standard deviation costs, per dimension and step; None: nothing.
            A plan that leaves the data, where members disagree, then has to be worth it. Members of a noisy model are then
            followed along their means: what they draw is no disagreement. One member cannot disagree, and draws.
        guide: proposes plans to a planner that takes them, from (model, context, view).
    """

    def __init__(self, model: DynamicsModel, planner: Callable[..., Plan], score: Score,
                 price: Tensor | None = None, guide: Callable[..., Proposals] | None = None) -> None:
        self.model, self.planner, self.score, self.price, self.guide = model, planner, score, price, guide
        self.past = model.past
        self.non_finite = 0                      # candidate scores that were NaN or Inf so far
        self._memory: Tensor | None = None       # (episodes, H, A) the last plans
        self._episodes = 0

    def reset(self, agent: Tensor) -> None:
        self._memory, self._episodes = None, len(agent)

    @torch.no_grad()
    def plan(self, view: EpisodeView, *, generators: list[torch.Generator], memory: Tensor | None = None) -> Plan:
        """The best plans found, (B, H, A), from here on; nothing is remembered."""
        context = self.model.context(view)
        with torch_threads(1) as threads:
            more = {"proposals": self.guide(self.model, context, view)} if self.guide else {}
            return self.planner(lambda plans: self.values(context, view.state, plans, threads, generators),
                                memory=memory, generators=generators, **more)

    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        memory = None if self._memory is None else self._memory[view.episode]
        plan = self.plan(view, generators=generators, memory=memory)
        if self._memory is None:
            self._memory = plan.memory.new_zeros((self._episodes, *plan.memory.shape[1:]))
        self._memory[view.episode] = plan.memory
        self.non_finite += plan.non_finite
        return plan.actions[:, 0]

    def values(self, context: Tensor, state: Tensor, plans: Tensor, threads: int = 1,
               generators: list[torch.Generator] | None = None) -> Tensor:
        """Scores of plans (B, C, H, A) from state (B, D): (B, C), the same for any number of threads. A noisy model draws from
        its row's generator, but for a price."""
        B, C, H, _ = plans.shape
        room = ON_CPU if context.device.type == "cpu" else ON_GPU
        fit = max(1, room // (self.model.members * (H + 1) * state.shape[1]))           # plans of one row
        free = self.price is None or self.model.members == 1
        noisy = self.model.noisy and generators is not None and free
        rows, parts = 1 if noisy else max(1, fit // C), -(-C // fit)
        columns = -(-C // parts)
        places = [(b, c) for b in range(0, B, rows) for c in range(0, C, columns)]
        seeds = [int(torch.randint(2**62, (), generator=generators[b], device=generators[b].device)) if noisy else 0
                 for b, _ in places]

        def piece(place: tuple[tuple[int, int], int]) -> Tensor:
            corner, seed = place
            b, c = (slice(first, first + size) for first, size in zip(corner, (rows, columns), strict=True))
            draw = torch.Generator(context.device).manual_seed(seed) if noisy else None
            return self._values(context[:, b], state[b], plans[b, c], draw)
        values = side_by_side(piece, list(zip(places, seeds, strict=True)), threads)
        parts = -(-C // columns)
        return torch.cat([torch.cat(values[i:i + parts], dim=1) for i in range(0, len(values), parts)])

    def _values(self, context: Tensor, state: Tensor, plans: Tensor, draw: torch.Generator | None) -> Tensor:
        start = state.expand(self.model.members, *state.shape)
        states = self.model.rollout(context, start, plans, draw)                      # (M, B, C, H + 1, D)
        value = self.score(states, plans.expand(len(states), *plans.shape)).mean(0)
        if self.price is not None and len(states) > 1:
            value = value - (_deviation(states[..., 1:, :]) * self.price.to(states)).sum((-1, -2))
        return value


def _deviation(x: Tensor) -> Tensor:
    """x.std(0), which torch takes from one number after the other."""
    return ((x - x.mean(0)).square().sum(0) / (len(x) - 1)).sqrt()
