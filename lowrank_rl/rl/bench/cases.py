"""What the benchmark can run, as data: environments, data sets, methods, and the settings of each.

``paper`` settings are PerSim's (NeurIPS 2021, sections 4-5, appendix D): networks, batches and rates as published; the
rest, and how it plans, as in the released code of March 2021. ``best`` settings are ours.
The only file that knows the concrete names.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.behaviour.trained import data_policy
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import DynamicsModel, Environment, Policy
from lowrank_rl.rl.envs import cartpole, halfcheetah, mountaincar
from lowrank_rl.rl.models.ensemble_mean import EnsembleMean
from lowrank_rl.rl.models.multistep import MultiStep
from lowrank_rl.rl.models.persim import Exact, PerSimConfig
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.plan import CEMConfig, ICEMConfig, ShootingConfig, cem, icem, random_shooting
from lowrank_rl.rl.policies.cloned import CloneConfig, Cloned
from lowrank_rl.rl.policies.mpc import MPC
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.score import Score, cartpole_margin, mountaincar_bonus, total_reward, upright
from lowrank_rl.tensor import AdamConfig, ALSConfig, Polynomial, Spline

ENVIRONMENTS = {e.name: e for e in (mountaincar.ENVIRONMENT, cartpole.ENVIRONMENT, halfcheetah.ENVIRONMENT)}
# Covariates of agents that no data come from, numbered behind the test agents: 6, 7, ... MountainCar's are those of Table 12.
# Trained are gravity 0.0001..0.0035; force 2..18 and length 0.15..0.85; mass and damping 0.2..1.8
UNSEEN = {
    "mountaincar": ((0.00005,), (0.00008,), (0.002,), (0.0037,), (0.004,)),         # outside but for the third
    "cartpole": ((6.0, 0.3), (14.0, 0.7), (20.0, 0.5), (10.0, 1.0), (1.5, 0.12)),   # two inside, three outside
    "halfcheetah": ((0.7, 1.2), (1.5, 0.6), (2.0, 1.0), (1.0, 0.1), (2.0, 2.0)),    # two inside, three outside
}
# What logs each data set, made from (environment, covariates (N, E))
BEHAVIOUR: dict[str, Callable[[Environment, Tensor], Policy]] = {
    "random": lambda environment, covariates: Uniform(environment.actions),
    "pure": data_policy,
    "pure-eps-20": partial(data_policy, share=0.2),
    "pure-eps-40": partial(data_policy, share=0.4),
}
SCARCE = (250, 100, 50, 25, 10)     # Tables 14 to 16, and ours below them


@dataclass(frozen=True)
class Logs:
    """A data set: one trajectory of each agent."""
    behaviour: str                # what acted, one of BEHAVIOUR
    agents: int | None = None     # the first so many of those of the whole one, and their same trajectories; None: the budget's


DATASETS = {name: Logs(name) for name in BEHAVIOUR} | {
    f"{name}-of-{count}": Logs(name, count) for name in ("random", "pure") for count in SCARCE}
SETTINGS = ("best", "paper")


@dataclass(frozen=True)
class Way:
    """How PerSim gets the latent row of an unseen agent: from covariates, from the agent's own steps, or from both."""
    fraction: float | None = None     # of the training agents, those whose covariates are known
    steps: int | None = None          # own steps, the first of an episode that is logged as the data set is


@dataclass(frozen=True)
class Method:
    learns: bool       # from a data set: a simulator if it plans, otherwise a policy
    plans: bool        # acts by planning in a model
    personal: bool     # knows which agent it deals with
    baseline: bool = False     # of the paper's tables or ours to beat: runs when it is named (baselines.py)
    flown: int = 0             # trajectories per agent, flown in PerSim's simulators, that it learns from beside the logs
    recognises: bool = False   # knows an agent by its last steps, so that it need not have been logged
    unseen: Way | None = None  # for unseen agents alone: PerSim's own simulators with rows for these


METHODS = {
    "persim": Method(True, True, True),   # PerSim: one simulator per agent by functional tensor completion, then MPC
    "pooled": Method(True, True, False),   # one simulator for all agents, otherwise the same
    "true-env-mpc": Method(False, True, True),   # the same planner with the true dynamics
    "cloned": Method(True, False, True),   # each agent's logged policy, learned from all logs together (``best`` HalfCheetah)
    "uniform": Method(False, False, False),   # uniformly random actions
    # unseen agents by covariates of a share of the training agents (Tables 12 and 13), by their own first steps, by both
    **{f"persim-p{share}": Method(True, True, True, unseen=Way(share / 100)) for share in (100, 50, 25, 10)},
    **{f"persim-k{steps}": Method(True, True, True, unseen=Way(steps=steps)) for steps in (5, 10, 25, 100)},
    "persim-p10-k10": Method(True, True, True, unseen=Way(0.1, 10)),
    "vanilla-cadm": Method(True, True, True, True, recognises=True),   # one model that tells agents apart by their last steps
    "pe-ts-cadm": Method(True, True, True, True, recognises=True),   # the same as a probabilistic ensemble with particles
    "e-pets": Method(True, True, True, True),   # a probabilistic ensemble with an embedding of each agent
    # policies learned without planning, from everybody's steps (-p) or from each test agent's own (-a)
    **{f"{name}-{form}": Method(True, False, form == "a", True) for name in ("bcq", "cql", "morel") for form in "pa"},
    **{f"persim-{name}-5": Method(True, False, True, True, flown=5) for name in ("bcq", "cql")},   # Table 3
}

LEARNING = {
    ("paper", "mountaincar"): PerSimConfig(rank=3, init="linear", normalize=False, walls=False,
                                           adam=AdamConfig(epochs=300, batch=512, schedule="halve")),
    ("paper", "cartpole"): PerSimConfig(rank=5, init="linear", normalize=False, walls=False,
                                        adam=AdamConfig(epochs=300, batch=64, schedule="halve")),
    ("paper", "halfcheetah"): PerSimConfig(rank=15, init="linear", walls=False, state_hidden=(256,) * 4,
                                           adam=AdamConfig(epochs=300, batch=512, schedule="halve")),
    # Exact solves of data without noise: one simulator is enough, the best of a few starts (docs/architecture.md)
    ("best", "mountaincar"): PerSimConfig(rank=3, members=1, exact=Exact(Spline(2, (32, 4)), ALSConfig(tol=0.008, spare=3))),
    ("best", "cartpole"): PerSimConfig(rank=5, members=1, exact=Exact(
        Polynomial(4, 3), ALSConfig(sweeps=100, regularization=1e-10, tol=0.01, spare=4))),
    # by held-out tails of logs, and by plans for agents that are not tested (docs/halfcheetah.md)
    ("best", "halfcheetah"): PerSimConfig(rank=15, members=3, init="linear", joint=True, state_hidden=(200,) * 5,
                                          activation="silu", angles=(halfcheetah.PITCH,), inside=True, walls=False,
                                          precision="bfloat16",
                                          adam=AdamConfig(epochs=24, batch=512, learning_rate=3e-3),
                                          multistep=MultiStep(horizon=25, updates=1600, learning_rate=3e-4)),
}


# Policies that guide the plans in learned simulators, and act themselves as the method "cloned"
CLONING = {("best", "halfcheetah"): CloneConfig(angles=(halfcheetah.PITCH,))}


@dataclass(frozen=True)
class Planning:
    planner: ShootingConfig | CEMConfig | ICEMConfig
    score: str              # one of SCORES
    price: float = 0.0      # reward per unit of the members' mean standard deviation, in units of a state difference


PLANNING = {
    ("paper", "mountaincar"): Planning(ShootingConfig(horizon=50, candidates=1000), "mountaincar bonus"),
    ("paper", "cartpole"): Planning(ShootingConfig(horizon=50, candidates=1000), "total reward"),
    ("paper", "halfcheetah"): Planning(CEMConfig(), "total reward"),
    # persistent pushes see far: with the true model near the optimum of dynamic programming, without the bonus
    ("best", "mountaincar"): Planning(ShootingConfig(horizon=150, candidates=1000, stay=(0.9, 0.97)), "total reward"),
    # plans that improve from step to step keep a pole twice as near to upright as fresh ones (results/planning_scores.csv)
    ("best", "cartpole"): Planning(ShootingConfig(horizon=50, candidates=1000, near=0.5), "cartpole margin"),
    # weights, price and planner by what earns most with agents that are not tested (docs/halfcheetah.md)
    ("best", "halfcheetah"): Planning(ICEMConfig(horizon=20, colour=0.25), "upright", price=1.0),
}
UPRIGHT = 2.0      # reward that a body turned by a right angle costs at each step, on its back twice that
SEARCH = {ShootingConfig: random_shooting, CEMConfig: cem, ICEMConfig: icem}
# Records know a score by its name, so that a changed one needs another
SCORES: dict[str, Callable[[Environment], Score]] = {
    "total reward": total_reward,
    "mountaincar bonus": lambda _: mountaincar_bonus,
    "cartpole margin": lambda _: cartpole_margin,
    "upright": partial(upright, weight=UPRIGHT),
}
# Here all members start each predicted step from their mean (reference code); elsewhere each from its own state.
FROM_MEAN = {("paper", "halfcheetah")}


@dataclass(frozen=True)
class Budget:
    """How much of the full experiment is run; a table never mixes budgets."""
    agents: int                 # N, in the data set
    members: int                # M, at most
    epochs: float               # share of the settings' epochs and updates; of exact solves' sweeps, four times that
    seeds: int                  # repeats: data, training and evaluation
    error_episodes: int         # prediction-error episodes per test agent
    return_episodes: int        # episodes per test agent in the true environment
    return_steps: int | None    # cut after so many steps; None: the environment's own limit


BUDGETS = {
    ("tiny", "mountaincar"): Budget(8, 2, 0.02, 1, 2, 2, 12),
    ("tiny", "cartpole"): Budget(8, 2, 0.02, 1, 4, 2, 12),
    ("tiny", "halfcheetah"): Budget(8, 2, 0.02, 1, 1, 1, 2),
    ("quick", "mountaincar"): Budget(500, 5, 0.25, 1, 50, 3, None),
    ("quick", "cartpole"): Budget(500, 5, 0.3, 1, 50, 3, None),
    ("quick", "halfcheetah"): Budget(200, 2, 0.4, 1, 20, 1, 100),
    ("small", "mountaincar"): Budget(500, 5, 1.0, 3, 200, 20, None),
    ("small", "cartpole"): Budget(500, 5, 1.0, 3, 200, 20, None),
    ("small", "halfcheetah"): Budget(500, 5, 0.5, 3, 200, 3, None),
    ("paper", "mountaincar"): Budget(500, 5, 1.0, 5, 200, 20, None),
    ("paper", "cartpole"): Budget(500, 5, 1.0, 5, 200, 20, None),
    ("paper", "halfcheetah"): Budget(500, 5, 1.0, 5, 200, 20, None),
}
BUDGET_NAMES = ("tiny", "quick", "small", "paper")


def knows(cell: Cell) -> bool:
    """Whether this version has its method, data set, budget, agent and environment; what wrote a record may have had more."""
    return (cell.method in METHODS and cell.dataset in ("none", *DATASETS) and (cell.budget, cell.environment) in BUDGETS
            and cell.settings in SETTINGS
            and 1 <= cell.agent <= agents(cell.environment, unseen=True)[-1])


def methods(settings: str, environment: str, baselines: bool = True) -> tuple[str, ...]:
    """Those that can run, with or without baselines and those for unseen agents alone, which run when they are named."""
    return tuple(name for name, method in METHODS.items() if (name != "cloned" or (settings, environment) in CLONING)
                 and (baselines or not (method.baseline or method.unseen)))


def unseen(environment: str, agent: int) -> bool:
    """Whether an agent, by its number from 1, is one that no data come from."""
    return agent > len(ENVIRONMENTS[environment].test_agents)


def agents(environment: str, unseen: bool) -> tuple[int, ...]:
    """The numbers of the test agents, or of the unseen ones behind them."""
    tests = len(ENVIRONMENTS[environment].test_agents)
    return tuple(range(tests + 1, tests + 1 + len(UNSEEN[environment])) if unseen else range(1, tests + 1))


def covariates(environment: str, agent: int) -> tuple[float, ...]:
    """Those of a test agent or an unseen one, by its number."""
    return (*ENVIRONMENTS[environment].test_agents, *UNSEEN[environment])[agent - 1]


def serves(method: str, unseen: bool) -> bool:
    """Whether a method can act for test agents, or for unseen ones."""
    kind = METHODS[method]
    if kind.unseen:
        return unseen
    return not unseen or not (kind.learns and kind.personal) or kind.recognises


def learning(settings: str, environment: str, budget: Budget, share: float = 1.0) -> PerSimConfig:
    """The settings of training under a budget, from a share of its agents: ``best`` networks get as many updates from few."""
    config = LEARNING[settings, environment]
    config = replace(config, members=min(config.members, budget.members))
    if config.exact:      # settles within the sweeps of all but the tiny budget
        sweeps = max(3, round(config.exact.solver.sweeps * min(1.0, 4 * budget.epochs)))
        return replace(config, exact=replace(config.exact, solver=replace(config.exact.solver, sweeps=sweeps)))
    if config.multistep:
        updates = max(1, round(config.multistep.updates * budget.epochs))
        config = replace(config, multistep=replace(config.multistep, updates=updates))
    epochs = config.adam.epochs * budget.epochs / (share if settings == "best" else 1.0)
    return replace(config, adam=replace(config.adam, epochs=max(1, round(epochs))))


def planning_policy(settings: str, environment: Environment, model: DynamicsModel, guide: Cloned | None = None,
                    plan: Planning | None = None) -> MPC:
    """MPC in a model, learned or true, with the same planner: the settings', or ``plan``; a useful guide guides it."""
    check.known("planning", (settings, environment.name), PLANNING)
    plan = plan or PLANNING[settings, environment.name]
    price: Tensor | None = None
    if plan.price and not isinstance(model, TrueEnv):
        price = plan.price / (model.unit * len(model.unit))
    if (settings, environment.name) in FROM_MEAN and model.members > 1 and not model.noisy:
        model = EnsembleMean(model)
    search = partial(SEARCH[type(plan.planner)], actions=environment.actions, config=plan.planner)
    proposals = partial(guide.propose, horizon=plan.planner.horizon) if guide and guide.useful else None
    return MPC(model, search, SCORES[plan.score](environment), price, proposals)
