"""Simulators of agents that were not in the training data: nothing is trained again, a PerSim only gets further rows.

    zero_shot(model, regression, covariates)                      what is known of them, no steps (PerSim, appendix F.5)
    few_shot(model, steps, 25)                                    their own first 25 steps, no covariates
    few_shot(model, steps, 25, regression, covariates)            both

Each gives a PerSim whose last agents are the new ones, numbers N, N + 1, ... With the other factors fixed a state difference is
linear in the agent's row, so a few steps give the row by least squares (``tensor.fold_in``), with a prior for what they leave
open: the training agents' rows or, with both, the regression's answer and its held-out errors,

    u ~ N(f(covariates), covariance of the errors f made at agents it was not told of)

Differs: the paper has the first only. Steps stopped by a wall are left out, as in training. Rows belong to one member's frame
(row_regression.py says why); nothing here mixes members.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Transitions
from lowrank_rl.rl.models.persim import ACTION, AGENT, PerSim
from lowrank_rl.rl.row_regression import Regression, check_personal
from lowrank_rl.tensor import NewRow, fold_in
from lowrank_rl.tensor.foldin import with_rows


def with_agents(model: PerSim, rows: Tensor) -> PerSim:
    """A PerSim with U further agents behind its own, of these latent rows (M, U, R); the model stays as it is.

    Raises:
        ValueError: a model that does not tell agents apart, rows of another size, NaN or Inf.
    """
    check_personal(model)
    M, _, R = model.rows.shape
    rows = torch.as_tensor(rows)
    if rows.ndim != 3 or rows.shape[::2] != (M, R):
        raise ValueError(f"rows: expected (members, agents, rank) ({M}, U, {R}), got {tuple(rows.shape)}")
    check.finite("rows", rows)
    cp = with_rows(model.cp, AGENT, torch.cat([model.rows, rows.to(model.rows)], 1))
    return PerSim(cp, model.personal, model.walls, model.inputs)


def zero_shot(model: PerSim, regression: Regression, covariates: Tensor) -> PerSim:
    """With U further agents by their covariates (U, E) alone. The regression is one that was fitted to this model.

    Raises:
        ValueError: covariates of another width, NaN or Inf; rows of another model.
    """
    return with_agents(model, regression.rows(covariates))


def few_shot(model: PerSim, steps: Transitions, count: int | None = None, regression: Regression | None = None,
             covariates: Tensor | None = None) -> PerSim:
    """With U further agents by their own first ``count`` steps (None: all that there are); arguments as ``agent_rows``."""
    return with_agents(model, torch.stack([new.row for new in agent_rows(model, steps, count, regression, covariates)], 1))


def agent_rows(model: PerSim, steps: Transitions, count: int | None = None, regression: Regression | None = None,
               covariates: Tensor | None = None) -> list[NewRow]:
    """The new agents' rows, in their order, with how sure each is (``summary()``); what ``few_shot`` adds.

    Args:
        steps: of agents numbered 0..U-1, each one's in the order in which they were made.
        count: how many of each agent's are used, from the first on, stopped ones included.
        regression, covariates: (U, E); both, for a prior by covariates. What a summary calls trained rows then is the cloud of
            rows around the regression's answer.

    Few steps are no error: the prior supplies the rest. All of an agent's steps stopped by walls are taken, as in training.

    Raises:
        ValueError: a model that does not tell agents apart, shapes that disagree, NaN or Inf, actions of another kind, an
            agent without a step or with fewer than ``count``, a regression without covariates or the reverse.
    """
    check_personal(model)
    steps, agents = _checked(model, steps, count)
    if (regression is None) != (covariates is None):
        raise ValueError("regression, covariates: expected both or neither, got one; fit_polynomial makes a regression")
    clouds = [None] * agents
    if regression is not None:
        if len(covariates) != agents:
            raise ValueError(f"covariates: expected those of {agents} agents, as many as have steps, got {len(covariates)}")
        found, (M, _, R) = regression.cloud(covariates), model.rows.shape
        if found.shape[0] != M or found.shape[-1] != R:
            raise ValueError(f"regression: expected one that was fitted to this model, {M} members of rank {R}, got one of "
                             f"{found.shape[0]} members of rank {found.shape[-1]}")
        clouds = found.unbind(1)
    return [_row(model, _of(steps, agent, count, model), f"agent {agent}", cloud) for agent, cloud in enumerate(clouds)]


def _row(model: PerSim, steps: Transitions, name: str, cloud: Tensor | None) -> NewRow:
    """One agent's. ``fold_in`` takes the rows that it finds for the prior; a cloud (M, n, R) is put in their place."""
    cp = model.cp if cloud is None else with_rows(model.cp, AGENT, cloud.to(model.rows))
    change = steps.next_state - steps.state
    return replace(fold_in(cp, AGENT, model.coordinates(steps.state, steps.action), change), name=name)


def _of(steps: Transitions, agent: int, count: int | None, model: PerSim) -> Transitions:
    """An agent's first steps, without those that walls stopped, unless there are no others."""
    mine = (steps.agent == agent).nonzero()[:, 0][:count]
    free = mine[~model.walls.reached(steps.next_state[mine]).any(-1)]
    kept = free if len(free) else mine
    return Transitions(*(x[kept] for x in (steps.agent, steps.state, steps.action, steps.next_state)))


def _checked(model: PerSim, steps: Transitions, count: int | None) -> tuple[Transitions, int]:
    """The steps, on the CPU, and of how many agents."""
    steps = Transitions(*(torch.as_tensor(x).cpu() for x in (steps.agent, steps.state, steps.action, steps.next_state)))
    check.shapes(agent=(steps.agent, "B"), state=(steps.state, "B D"), action=(steps.action, "B A"),
                 next_state=(steps.next_state, "B D"))
    D = model.cp.outputs
    if steps.state.shape[1] != D:
        raise ValueError(f"state: expected {D} dimensions, as the model has, got {steps.state.shape[1]}")
    if len(steps.agent) == 0:
        raise ValueError("steps: expected at least one of each new agent, got none; without any, use zero_shot")
    if steps.agent.is_floating_point() or int(steps.agent.min()) < 0:
        raise ValueError(f"agent: expected whole numbers 0..U-1 for U new agents, got {steps.agent.dtype} from "
                         f"{steps.agent.min().item():g}")
    for name in ("state", "next_state"):
        check.finite(name, getattr(steps, name))
    kind, width = steps.action, model.action_width
    if kind.shape[1] != width or kind.is_floating_point() == model.discrete:
        wanted = f"one of {model.cp.modes[ACTION].size} actions as an integer column" if model.discrete else \
            f"{width} columns of floats"
        raise ValueError(f"action: expected {wanted}, as the model was trained with, got {kind.shape[1]} columns of "
                         f"{kind.dtype}")
    if model.discrete:
        check.within("action", kind, model.cp.modes[ACTION].size)
    check.finite("action", kind)
    found = torch.bincount(steps.agent)
    if bool((found == 0).any()):
        raise ValueError(f"agent: expected steps of each of {len(found)} new agents, got none of agent "
                         f"{int((found == 0).nonzero()[0])}; number those that have steps 0..U-1, and use zero_shot for others")
    if count is not None:
        check.count("count", count)
        if int(found.min()) < count:
            raise ValueError(f"count: expected at most {int(found.min())}, the steps of agent {int(found.argmin())}, got "
                             f"{count}; use fewer, or None for all that there are")
    return steps, len(found)
