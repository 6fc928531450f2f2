"""What each table and figure of the paper needs: which methods on which data for which agents, and how far each must get.

A table or figure is a row here; what this command cannot run is a sentence. Asked for otherwise, cells are all combinations
of what was named.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from lowrank_rl import check
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.options import Options
from lowrank_rl.rl.bench.store import Cell

ALL, NEW = (1, 2, 3, 4, 5), (6, 7, 8, 9, 10)     # test agents, and those that no data come from
SIMULATORS = ("persim", "vanilla-cadm", "pe-ts-cadm")
POLICIES = ("bcq-p", "bcq-a", "cql-p", "cql-a", "morel-p", "morel-a")
SYNTHETIC = ("bcq-p", "bcq-a", "persim-bcq-5", "cql-p", "cql-a", "persim-cql-5")


@dataclass(frozen=True)
class Suite:
    """Methods x data sets x agents of some environments."""
    agents: dict[str, tuple[int, ...]]           # by environment
    methods: tuple[str, ...]
    datasets: tuple[str, ...] = tuple(cases.BEHAVIOUR)
    seeds: int | None = None                     # None: the budget's
    stage: str = "cells"                         # "logged" or "trained": no cell is run, the data or simulators are all


def _everywhere(agents: tuple[int, ...] = ALL) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(cases.ENVIRONMENTS, agents)


def _of(behaviour: str, counts: Iterable[int]) -> tuple[str, ...]:
    """The data sets of so many agents."""
    return tuple(f"{behaviour}-of-{count}" for count in counts)


SHORT = {"mountaincar": (1, 4, 5), "cartpole": (1, 4, 5), "halfcheetah": (1, 2, 3)}     # columns of Tables 1 and 2
FEW = (*SIMULATORS, "bcq-p")
SCARCE = {"mountaincar": "random", "cartpole": "pure", "halfcheetah": "random"}     # what acted in Tables 14 to 16
WAYS = tuple(name for name, method in cases.METHODS.items() if method.unseen)
KNOWN = tuple(name for name in WAYS if not cases.METHODS[name].unseen.steps)      # by covariates alone, as in Tables 12 and 13
LOGGED = ("random", "pure")                                                        # the data of these tables
RETURNS = (*SIMULATORS, *POLICIES, "true-env-mpc")
TABLES = {
    1: Suite(SHORT, SIMULATORS),
    2: Suite(SHORT, RETURNS),
    3: Suite(_everywhere(), SYNTHETIC, ("random",)),
    5: Suite(_everywhere(), ("persim",), seeds=1, stage="logged"),
    **{number: Suite({name: ALL}, SIMULATORS) for number, name in enumerate(cases.ENVIRONMENTS, start=6)},
    **{number: Suite({name: ALL}, RETURNS) for number, name in enumerate(cases.ENVIRONMENTS, start=9)},
    12: Suite({"mountaincar": NEW}, (*KNOWN, "vanilla-cadm", "pe-ts-cadm"), LOGGED),
    13: Suite({"mountaincar": NEW}, (*KNOWN, *FEW[1:]), LOGGED),
    **{number: Suite({name: ALL}, FEW, _of(SCARCE[name], cases.SCARCE[:-1]))
       for number, name in enumerate(cases.ENVIRONMENTS, start=14)},
}
# The paper names neither the data of its figures nor the agents of 2 and 4: ours are random data, as in appendix F.4, and the
# agents at both ends of the ranges; of Figure 2 the short pole, which is the hardest (Table 7)
ENDS = {"mountaincar": (1, 5), "cartpole": (4, 5)}
FIGURES = {
    1: Suite(_everywhere((1,)), ("persim",), ("random",), 1, "trained"),
    2: Suite({"cartpole": (5,)}, SIMULATORS, ("random",), 1),
    4: Suite(ENDS, SIMULATORS, ("random",), 1),
    5: Suite(_everywhere((1,)), ("persim",), ("random",), 1, "trained"),
}
SUITES = ("paper", "all")
# What has nothing to run, or not by this command, and why
WITHOUT = {
    ("table", 4): "the ranges of the agents' parameters, which the environments know (lowrank_rl/rl/envs)",
    ("figure", 3): "the networks, a drawing",
}


@dataclass(frozen=True)
class Work:
    """What to run, in the order of the tables."""
    cells: list[Cell] = field(default_factory=list)
    trained: list[Cell] = field(default_factory=list)     # whose simulators are wanted, without the cell
    logged: list[Cell] = field(default_factory=list)      # whose data are wanted

    @property
    def all(self) -> list[Cell]:
        return [*self.cells, *self.trained, *self.logged]

    @property
    def environments(self) -> list[str]:
        return list(dict.fromkeys(cell.environment for cell in self.all))


def work(options: Options) -> Work:
    """What was asked for.

    Raises:
        ValueError: it names what is unknown, or what the table, figure or settings lack.
    """
    for name in ("methods", "datasets", "agents"):
        if getattr(options, name) == ():
            raise ValueError(f"--{name}: expected at least one, got none; leave it away for all")
    found: dict[str, list[Cell]] = {"cells": [], "trained": [], "logged": []}
    for suite, what in _suites(options):
        for environment, agents in _places(suite, options, what).items():
            found[suite.stage] += _cells(suite, environment, agents, options, what)
    return Work(**{stage: list(dict.fromkeys(cells)) for stage, cells in found.items()})


def _suites(options: Options) -> list[tuple[Suite, str]]:
    """With what they are called in a sentence."""
    for kind, number, known in (("table", options.table, TABLES), ("figure", options.figure, FIGURES)):
        if number is not None:
            if (kind, number) in WITHOUT:
                raise ValueError(f"--{kind} {number}: expected one of {', '.join(map(str, known))}, got one about "
                                 f"{WITHOUT[kind, number]}")
            check.known(kind, number, known)
            return [(known[number], f"{kind} {number}")]
    if options.suite is None:
        return [(_named(options), "")]
    check.known("suite", options.suite, SUITES)
    if options.suite == "paper":
        return [(suite, "the paper") for suite in (*TABLES.values(), *FIGURES.values())]
    methods = cases.METHODS
    return [(Suite(_everywhere(), tuple(name for name in methods if not (methods[name].flown or methods[name].unseen))),
             "suite all"),
            (Suite(_everywhere(), tuple(name for name in methods if methods[name].flown), ("random",)), "suite all"),
            *((Suite({name: ALL}, (*FEW, "e-pets"), _of(behaviour, cases.SCARCE)), "suite all")
              for name, behaviour in SCARCE.items()),
            (TABLES[13], "suite all"), (Suite(_everywhere(NEW), (*WAYS, "true-env-mpc"), LOGGED), "suite all")]


def _named(options: Options) -> Suite:
    """No suite: the methods, data and agents that were named, or what runs by default."""
    methods = options.methods or _default_methods(options)
    logged = tuple(cases.BEHAVIOUR) if options.budget in ("small", "paper") else ("random",)
    return Suite({options.env: options.agents or _default_agents(options.env, methods)}, methods, options.datasets or logged)


def _default_methods(options: Options) -> tuple[str, ...]:
    """What runs for test agents without being named, and what for unseen ones that were named."""
    found = cases.methods(options.settings, options.env, baselines=False)
    return (*found, *WAYS) if any(agent in NEW for agent in options.agents or ()) else found


def _default_agents(environment: str, methods: Iterable[str]) -> tuple[int, ...]:
    """The test agents, and the unseen ones where a method is for these alone."""
    known = [name for name in methods if name in cases.METHODS]
    tests = any(not cases.METHODS[name].unseen for name in known) or not known
    return (*(cases.agents(environment, unseen=False) if tests else ()),
            *(cases.agents(environment, unseen=True) if any(name in WAYS for name in known) else ()))


def _places(suite: Suite, options: Options, what: str) -> dict[str, tuple[int, ...]]:
    """The environments, those asked for, and their agents."""
    if options.env is None or options.env in suite.agents:
        return {name: agents for name, agents in suite.agents.items() if options.env in (None, name)}
    if options.suite:     # other parts of it may be about this environment
        return {}
    raise ValueError(f"--env: expected one that {what} is about ({', '.join(suite.agents)}), got {options.env!r}; leave it "
                     "away")


def _cells(suite: Suite, environment: str, agents: tuple[int, ...], options: Options, what: str) -> list[Cell]:
    """Of one environment, narrowed to what was named."""
    able = cases.methods(options.settings, environment)
    everyone = (*cases.agents(environment, unseen=False), *cases.agents(environment, unseen=True))
    _check_named("method", options.methods, suite.methods if what else able, options, what)
    _check_named("data set", options.datasets, suite.datasets if what else cases.DATASETS, options, what)
    _check_named("agent", options.agents, agents if what else everyone, options, what)
    if not what:
        _check_served(options)
    methods = [name for name in suite.methods if name in able and name in (options.methods or able)]
    datasets = [name for name in suite.datasets if name in (options.datasets or suite.datasets)]
    agents = tuple(agent for agent in agents if agent in (options.agents or agents))
    seeds = options.seeds or suite.seeds or cases.BUDGETS[options.budget, environment].seeds
    cell = Cell(environment, "", "", 0, 0, options.settings, options.budget)
    found = [replace(cell, dataset=dataset if cases.METHODS[method].learns else "none", method=method, agent=agent, seed=seed)
             for dataset in datasets for method in methods for seed in range(seeds) for agent in agents
             if _runs(method, environment, agent, options, what)]
    if suite.stage != "cells":     # agents share these
        return [one for one in found if one.agent == found[0].agent]
    return found


def _runs(method: str, environment: str, agent: int, options: Options, what: str) -> bool:
    """Whether a method can act for an agent; unasked, only those for unseen agents alone do so for these."""
    unseen = cases.unseen(environment, agent)
    asked = what or options.agents or not unseen or cases.METHODS[method].unseen
    return cases.serves(method, unseen) and bool(asked)


def _check_served(options: Options) -> None:
    """Refuse a method and an agent that were both named and do not go together."""
    for method in options.methods or ():
        for agent in options.agents or ():
            unseen = cases.unseen(options.env, agent)
            if not cases.serves(method, unseen):
                others = ", ".join(name for name in cases.methods(options.settings, options.env) if cases.serves(name, unseen))
                why = "it needs the agent's own logs" if unseen else "it is for agents that no data come from"
                raise ValueError(f"agent {agent} of {method}: expected one of "
                                 f"{', '.join(map(str, cases.agents(options.env, not unseen)))}, since {why}; for this agent "
                                 f"there are {others}")


def _check_named(what: str, named: tuple | None, known: Iterable, options: Options, whose: str) -> None:
    """Refuse a name that is unknown; a suite of many tables may lack it in some."""
    if options.suite:
        known = {"method": cases.METHODS, "data set": cases.DATASETS, "agent": (*ALL, *NEW)}[what]
    for name in named or ():
        check.known(f"{what} of {whose}" if whose and not options.suite else what, name, known)
