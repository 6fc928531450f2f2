"""Agents that no data come from, in the benchmark: PerSim gets rows for them (appendix F.5), other methods act as they are.

They stand behind a data set's N agents, all of them in every cell, with numbers N, N + 1, ..., which name their random streams.
Nothing is trained for them: simulators and policies are those of the test agents.
"""

import copy
import time
from dataclasses import asdict

import torch
from torch import Tensor

from lowrank_rl import rng
from lowrank_rl.rl import data
from lowrank_rl.rl.bench import baselines, cases
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import DynamicsModel, Transitions
from lowrank_rl.rl.models.persim import AGENT, PerSim
from lowrank_rl.rl.policies.cloned import Cloned
from lowrank_rl.rl.policies.offline import Learned
from lowrank_rl.rl.row_polynomials import fit_polynomial
from lowrank_rl.rl.row_regression import NetworkConfig, Regression, fewest, fit_network, known_agents
from lowrank_rl.rl.unseen import few_shot, zero_shot
from lowrank_rl.tensor.foldin import with_rows


def everybody(cell: Cell) -> tuple[Tensor, int]:
    """Covariates of all agents that its evaluation knows of, and the number of the cell's own among them."""
    known = logged(cell)
    if not _is_new(cell):
        return known, cell.agent - 1
    return torch.cat([known, new(cell)]), len(known) + cell.agent - 1 - len(cases.ENVIRONMENTS[cell.environment].test_agents)


def logged(cell: Cell) -> Tensor:
    """Covariates (N, E) of the agents of its data set."""
    return data.agents(cases.ENVIRONMENTS[cell.environment], baselines.budget_of(cell).agents, seed=cell.seed)


def new(cell: Cell) -> Tensor:
    """Covariates (U, E) of the unseen agents of its environment."""
    return torch.tensor(cases.UNSEEN[cell.environment], dtype=torch.float64)


def settings(cell: Cell) -> dict:
    """What a cell of an unseen agent depends on besides, the same for all of them."""
    way, found = cases.METHODS[cell.method].unseen, {"covariates": cases.UNSEEN[cell.environment]}
    if way and way.steps:
        found["steps"] = way.steps
    if way and way.fraction:
        regression = {"network": asdict(NetworkConfig())} if cell.settings == "paper" else "polynomial"
        found |= {"fraction": way.fraction, "known": _count(cell, way.fraction), "regression": regression}
    return found


def simulated(cell: Cell, model: DynamicsModel) -> tuple[DynamicsModel, dict]:
    """The trained simulator as a cell uses it, with all unseen agents where it is one of theirs; and what was done for these.

    Told are the "row_seconds" of finding rows, the polynomials' "bases", and how many of its own steps the cell's agent has
    "shown": fewer than asked for where its episode ended.
    """
    if not _is_new(cell) or not isinstance(model, PerSim):
        return model, {}
    way = cases.METHODS[cell.method].unseen
    if way is None:     # everybody has one row
        rows = torch.cat([model.rows, model.rows[:, :1].expand(-1, len(new(cell)), -1)], 1)
        return PerSim(with_rows(model.cp, AGENT, rows), model.personal, model.walls, model.inputs), {}
    started, told = time.monotonic(), {}
    regression = _regression(cell, model, way.fraction) if way.fraction else None
    if regression and cell.settings == "best":
        told["bases"] = [f"{basis.degree} of {' '.join(basis.forms)}" for basis in regression.bases]
    if way.steps:
        steps = own_steps(cell, way.steps)
        told["shown"] = int((steps.agent == cases.agents(cell.environment, unseen=True).index(cell.agent)).sum())
        model = few_shot(model, steps, None, regression, new(cell) if regression else None)
    else:
        model = zero_shot(model, regression, new(cell))
    return model, {"row_seconds": time.monotonic() - started, **told}


def own_steps(cell: Cell, count: int) -> Transitions:
    """The first steps of each unseen agent: of an episode that is logged as the data set is, by random actions or the policy of
    the nearest policy-training agent."""
    environment, agents = cases.ENVIRONMENTS[cell.environment], new(cell)
    policy = cases.BEHAVIOUR[cases.DATASETS[cell.dataset].behaviour](environment, agents)
    return data.collect(environment, agents, torch.arange(len(agents)), policy, seed=cell.seed, what="unseen",
                        max_steps=count).transitions()


def piloted(cell: Cell, guide: Cloned) -> Cloned:
    """A cloned policy as a cell's plans follow it: nobody flew the unseen agents, so that all they have is the typical pilots.

    As their own they are given the first of these, which stands among what is proposed to everybody.
    """
    if not _is_new(cell) or not guide.personal:
        return guide
    rows = torch.cat([guide.rows, guide.skills[:1].expand(len(new(cell)), -1)])
    return Cloned(with_rows(guide.cp, AGENT, rows[None]), True, guide.inputs, guide.actions, guide.share, guide.variance,
                  guide.loyalty, guide.skills)


def learned(cell: Cell, policy: Learned) -> Learned:
    """Everybody's policy, for the unseen agents too."""
    if not _is_new(cell):
        return policy
    policy = copy.copy(policy)
    policy.run = torch.cat([policy.run, policy.run[:1].expand(len(new(cell)))])
    return policy


def _is_new(cell: Cell) -> bool:
    return cases.unseen(cell.environment, cell.agent)


def _regression(cell: Cell, model: PerSim, fraction: float) -> Regression:
    covariates = logged(cell)
    who = known_agents(len(covariates), _count(cell, fraction) / len(covariates),
                       generator=rng.stream(cell.seed, cell.environment, "known covariates"))
    if cell.settings == "paper":
        return fit_network(model, who, covariates[who], seed=cell.seed)
    return fit_polynomial(model, who, covariates[who])


def _count(cell: Cell, fraction: float) -> int:
    """How many training agents are known: of few agents more than the share, as many as a regression needs."""
    agents = baselines.budget_of(cell).agents
    return min(agents, max(round(fraction * agents), fewest(len(cases.UNSEEN[cell.environment][0]))))
