"""The methods that PerSim is compared with, as data: how each is learned, with which settings, from how much.

Settings are the sources' (docs/baselines.md). ``best`` and ``paper`` differ in how simulators are planned in and select
policies, not here. A budget takes a share of the updates.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import Discrete, DynamicsModel, Environment, Experience
from lowrank_rl.rl.data import Episodes
from lowrank_rl.rl.envs import halfcheetah
from lowrank_rl.rl.models.cadm import CaDM, CaDMConfig, fit_cadm
from lowrank_rl.rl.models.epets import EPETS, EPETSConfig, fit_epets
from lowrank_rl.rl.models.gaussian import Descent
from lowrank_rl.rl.models.mlp_ensemble import MlpEnsembleConfig, fit_or_load
from lowrank_rl.rl.models.particles import Particles
from lowrank_rl.rl.policies import bcq, bcq_continuous, cql, cql_continuous, morel
from lowrank_rl.rl.policies.offline import Learned
from lowrank_rl.rl.synthetic import join

CHEETAH = {"angles": (halfcheetah.PITCH,)}
# HalfCheetah, whose logs are long: batches and rate of PerSim's ``best``, and about as many updates (docs/halfcheetah.md)
LONG = {"updates": 24_000, "batch": 512, "learning_rate": 3e-3, "schedule": "cosine"}
CADM = {"mountaincar": {}, "cartpole": {},      # HalfCheetah: as released, without its velocity, which is predicted itself
        "halfcheetah": {**CHEETAH, "unseen": (0,), "absolute": (0,), "descent": Descent(**LONG, most=500)}}
FAST = {"precision": "bfloat16"}     # moves predictions by a thousandth, halves the cost (results/baseline_planning.csv)
SIMULATORS: dict[tuple[str, str], Any] = {
    **{("vanilla-cadm", name): CaDMConfig(members=1, probabilistic=False, **FAST, **more) for name, more in CADM.items()},
    **{("pe-ts-cadm", name): CaDMConfig(**FAST, **more) for name, more in CADM.items()},
    ("e-pets", "mountaincar"): EPETSConfig(**FAST), ("e-pets", "cartpole"): EPETSConfig(**FAST),
    # layers and members of ``best``, too: what differs is factors, the likelihood, and training on several steps
    ("e-pets", "halfcheetah"): EPETSConfig(members=3, hidden=(200,) * 5, **FAST, **CHEETAH, inside=True,
                                           descent=Descent(**LONG)),
}
FLOWN = {"small": 3}                # episodes that these are planned in: a decision costs ten to a hundred times PerSim's
PARTICLES = {"pe-ts-cadm": 20}      # that a plan is followed with (paper, appendix D.2); others: one for each member
NOISY = ("pe-ts-cadm", "e-pets")    # draw what comes next, but in plans that pay for disagreement
FITS = {CaDMConfig: (fit_cadm, CaDM.load), EPETSConfig: (fit_epets, EPETS.load)}


@dataclass(frozen=True)
class WorldAndPolicy:
    """MOReL's two parts."""
    model: MlpEnsembleConfig
    policy: morel.MOReLConfig


SMALL = WorldAndPolicy(MlpEnsembleConfig(hidden=(128, 128)), morel.MOReLConfig(penalty=-50.0))
POLICIES: dict[tuple[str, str], Any] = {
    **{("bcq", name): bcq.BCQConfig() for name in ("mountaincar", "cartpole")}, ("bcq", "halfcheetah"):
        bcq_continuous.ContinuousBCQConfig(),
    **{("cql", name): cql.CQLConfig() for name in ("mountaincar", "cartpole")}, ("cql", "halfcheetah"):
        cql_continuous.ContinuousCQLConfig(),
    **{("morel", name): SMALL for name in ("mountaincar", "cartpole")}, ("morel", "halfcheetah"):
        WorldAndPolicy(MlpEnsembleConfig(hidden=(1024, 1024)), morel.MOReLConfig(penalty=-200.0)),
}
# Share of the updates of simulators, and of policies
EFFORT = {
    **{("tiny", name): (0.001, 0.0001) for name in cases.ENVIRONMENTS},
    **{("quick", name): (0.1, 0.01) for name in ("mountaincar", "cartpole")}, ("quick", "halfcheetah"): (0.15, 0.001),
    **{("small", name): (0.5, 0.2) for name in ("mountaincar", "cartpole")}, ("small", "halfcheetah"): (0.5, 0.01),
    **{("paper", name): (1.0, 1.0) for name in cases.ENVIRONMENTS},
}
FLIGHT = {("small", "halfcheetah"): 0.2}      # share of MOReL's steps where it is another: PPO costs less than Q-learning there


def budget_of(cell: Cell) -> cases.Budget:
    """The budget, with fewer agents for data sets of few, and fewer episodes for simulators that are slow to plan in."""
    budget = cases.BUDGETS[cell.budget, cell.environment]
    logs = cases.DATASETS.get(cell.dataset)     # none of methods that learn nothing
    if logs and logs.agents:
        budget = replace(budget, agents=min(budget.agents, logs.agents))
    slow = (cell.method, cell.environment) in SIMULATORS and cell.budget in FLOWN
    return replace(budget, return_episodes=min(budget.return_episodes, FLOWN[cell.budget])) if slow else budget


def learning(cell: Cell) -> Any:
    """The settings of a baseline's training under its budget.

    Raises:
        ValueError: the cell's method is no baseline.
    """
    simulators, policies = EFFORT[cell.budget, cell.environment]
    members = cases.BUDGETS[cell.budget, cell.environment].members

    def shared(config: Any, share: float, name: str = "updates") -> Any:
        return replace(config, **{name: max(2, round(getattr(config, name) * share))})
    if (cell.method, cell.environment) in SIMULATORS:
        config = SIMULATORS[cell.method, cell.environment]
        return replace(config, members=min(members, config.members), descent=shared(config.descent, simulators))
    config = POLICIES.get((_algorithm(cell), cell.environment))
    if config is None:
        raise ValueError(f"method {cell.method!r}: expected a baseline, got another")
    if isinstance(config, WorldAndPolicy):
        steps = FLIGHT.get((cell.budget, cell.environment), policies)
        return replace(config, policy=shared(config.policy, steps, "steps"), model=shared(config.model, simulators))
    return shared(config, policies)


def fit_simulator(config: Any, episodes: Episodes, environment: Environment, **options: Any) -> DynamicsModel:
    """Options: seed, device, progress, checkpoint."""
    return FITS[type(config)][0](episodes.transitions(), len(episodes), environment.actions, config, **options)


def load_simulator(cell: Cell, path: Path) -> DynamicsModel:
    """Raises ValueError for a missing, corrupt or foreign file."""
    return FITS[type(SIMULATORS[cell.method, cell.environment])][1](path)


def particles(cell: Cell) -> int:
    """How many a plan is followed with, 0 for one of each member: all but the paper's budget, at a quarter of the cost."""
    return PARTICLES.get(cell.method, 0) if cell.budget == "paper" and not along_means(cell) else 0


def along_means(cell: Cell) -> bool:
    """Whether plans follow the means of members that could draw (mpc.py)."""
    return cell.method in NOISY and cases.PLANNING[cell.settings, cell.environment].price > 0


def planned(cell: Cell, model: DynamicsModel) -> DynamicsModel:
    """The simulator as plans see it."""
    count = particles(cell) // model.members * model.members
    return Particles(model, count) if count else model


def runs(cell: Cell, agents: int) -> Tensor:
    """Which policy each agent's steps teach, (agents,): everybody's one, or each test agent's own."""
    run = torch.zeros(agents, dtype=torch.int64)
    if cases.METHODS[cell.method].personal:
        tests = len(cases.ENVIRONMENTS[cell.environment].test_agents)
        run[:tests], run[tests:] = torch.arange(tests), -1
    return run


def fit_policy(cell: Cell, config: Any, episodes: Episodes, environment: Environment, more: Experience | None = None,
               **options: Any) -> Learned:
    """A policy for each test agent, or one for all, from logs and ``more``. Options: those of ``offline.fit``."""
    data, run = episodes.experience(), runs(cell, len(episodes))
    data = join([data, more]) if more else data
    if isinstance(config, WorldAndPolicy):
        def fit_model(steps: Any, **more: Any) -> DynamicsModel:
            return fit_or_load(steps, len(episodes), environment.actions, config.model, **more)
        return morel.fit_morel(data, run, environment, config.policy, fit_model=fit_model, **options)
    return _learner(cell, environment)[0](data, run, environment.actions, config, **options)


def length(cell: Cell, config: Any) -> int:
    """Updates of all runs together, as a policy's history counts them; MOReL's of PPO's steps in whole rollouts."""
    if not isinstance(config, WorldAndPolicy):
        return config.updates
    size = config.policy.episodes * config.policy.rollout
    tests = len(cases.ENVIRONMENTS[cell.environment].test_agents)
    return -(-config.policy.steps // size) * size * (tests if cases.METHODS[cell.method].personal else 1)


def load_policy(cell: Cell, path: Path) -> Learned:
    """Raises ValueError for a missing, corrupt or foreign file."""
    return _learner(cell, cases.ENVIRONMENTS[cell.environment])[1](path)


def kind(cell: Cell) -> str:
    """What the file of a cell's policy calls itself."""
    return _learner(cell, cases.ENVIRONMENTS[cell.environment])[2]


def _algorithm(cell: Cell) -> str:
    """"bcq" of "bcq-p" and of "persim-bcq-5"."""
    return cell.method.removeprefix("persim-").rpartition("-")[0]


def _learner(cell: Cell, environment: Environment) -> tuple[Callable, Callable, str]:
    discrete, name = isinstance(environment.actions, Discrete), _algorithm(cell)
    if name == "morel":
        return morel.fit_morel, morel.load, morel.KIND
    if name == "bcq":
        return (bcq.fit_bcq, bcq.load, bcq.KIND) if discrete else \
            (bcq_continuous.fit_bcq_continuous, bcq_continuous.load, bcq_continuous.KIND)
    return (cql.fit_cql, cql.load, cql.KIND) if discrete else \
        (cql_continuous.fit_cql_continuous, cql_continuous.load, cql_continuous.KIND)
