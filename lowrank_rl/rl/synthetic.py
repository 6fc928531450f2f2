"""Trajectories flown in simulators, for learners that need more than an agent's own (PerSim, section 5.4, appendix F.4).

A plan is made, flown to its end without looking, and the next one is made there, until the episode is over.
Differs: the paper does not say where its trajectories start; an agent's of ours start where logged ones did, far from each
other, since a learner of five knows nothing but what lies between them.
"""

import torch
from torch import Tensor

from lowrank_rl import check, rng
from lowrank_rl.rl.contracts import Environment, Experience, fresh_view
from lowrank_rl.rl.inputs import spread
from lowrank_rl.rl.policies.mpc import MPC


@torch.no_grad()
def fly(environment: Environment, pilot: MPC, agents: list[int], start: Tensor, *, count: int, seed: int) -> Experience:
    """``count`` trajectories of each agent by ``pilot`` in its own model, which predicts the mean over its members.

    Args:
        environment: its reward, ends and step limit are used, never its dynamics.
        start: (S, D) logged first states. An agent's first trajectory draws one, and each further one takes that which is
            farthest from those taken, in units of their spread.

    Raises:
        ValueError: no first states, or a prediction that is NaN or Inf.
    """
    check.count("count", count)
    if len(start) == 0:
        raise ValueError("start: expected logged first states, got none")
    generators = [rng.stream(seed, "synthetic", agent, k) for agent in agents for k in range(count)]
    agent = torch.tensor(agents, dtype=torch.int64).repeat_interleave(count)
    first = torch.cat([_apart(start.double(), count, rng.stream(seed, "synthetic", agent)) for agent in agents])
    state, alive, parts = start[first].double(), torch.ones(len(agent), dtype=torch.bool), []
    done = 0
    while done < environment.max_steps and alive.any():
        rows = alive.nonzero()[:, 0]
        view = fresh_view(agent[rows], state[rows], environment.actions.size)
        plan = pilot.plan(view, generators=[generators[i] for i in rows.tolist()]).actions[:, :environment.max_steps - done]
        model = pilot.model
        future = model.rollout(model.context(view), view.state.expand(model.members, *view.state.shape), plan[:, None])
        future = future.double().mean(0)[:, 0]                                        # (rows, H + 1, D)
        check.finite("synthetic trajectories", future)
        now, after = future[:, :-1], future[:, 1:]
        ended = environment.ended(after)
        before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1].cummax(1).values], dim=1)
        kept = ~before
        parts.append(Experience(agent[rows][:, None].expand_as(kept)[kept], now[kept], plan[kept], after[kept],
                                environment.reward(now, plan, after)[kept], ended[kept]))
        state[rows], alive[rows] = after[:, -1], ~ended.any(1)
        done += plan.shape[1]
    return join(parts)


def _apart(start: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows (count,) of ``start`` far from each other, the first of them drawn (Gonzalez 1985)."""
    unit = start / spread(start)
    rows = torch.randint(len(start), (1,), generator=generator)
    while len(rows) < count:
        nearest = torch.cdist(unit, unit[rows]).min(1).values
        rows = torch.cat([rows, nearest.argmax(keepdim=True)])
    return rows


def join(parts: list[Experience]) -> Experience:
    """All their steps, one part after the other."""
    return Experience(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})
