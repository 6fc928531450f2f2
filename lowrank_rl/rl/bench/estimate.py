"""How long a benchmark will take, from a probe of a second or two per method before anything runs."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from lowrank_rl import rng
from lowrank_rl.rl import data
from lowrank_rl.rl.bench import baselines, cases, pieces
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.bench.suites import Work
from lowrank_rl.rl.bench.tasks import unfinished
from lowrank_rl.rl.contracts import DynamicsModel, Environment, EpisodeView, Experience, Transitions
from lowrank_rl.rl.models.persim import PerSim, fit_persim
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.tensor import ALSConfig

# steps of a random trajectory and of a test episode, or one of a trained policy, for the estimate only (paper, Table 5; ours)
TYPICAL = {"mountaincar": (500, 150), "cartpole": (23, 200), "halfcheetah": (1000, 1000)}
PROBE_BATCHES = 8
PROBE_UPDATES = 3
PROBE_SHORT = (3, 3, 12)   # updates of short trainings of a baseline, the first to warm up; of PPO, thousands of steps
PROBE_ENTRIES = 30_000     # of exact solves, part of whose cost does not grow with the entries


def print_list(out: dict[str, Path], work: Work, records: dict[str, dict[Cell, Record]], device: str, jobs: int) -> None:
    """Every cell, whether it is done, and what it would cost with the training that it needs. out, records: by environment."""
    torch.set_num_threads(1)     # as in the workers
    costs: dict[tuple, tuple[float, float]] = {}
    trained: set[Path] = set()

    def cost(cell: Cell) -> tuple[float, float]:
        method = pieces.trained_as(cell).method     # whoever logged the data
        grows = cell.dataset != "none" and not cases.METHODS[method].baseline     # baselines: as many updates from few agents
        key = (cell.environment, baselines.budget_of(cell).agents if grows else None, method, _steps(cell))
        costs[key] = costs.get(key) or seconds(cell, device)
        return costs[key]

    def training(cell: Cell) -> float:
        """Of its model and those that it begins with, as far as no cell above has paid for them."""
        path = pieces.model_path(out[cell.environment], cell) if cases.METHODS[cell.method].learns else None
        if path is None or path in trained:
            return 0.0
        trained.add(path)
        simulator = pieces.simulator_of(cell)
        return (0.0 if path.exists() else cost(cell)[0]) + (training(simulator) if simulator else 0.0)

    left, total = unfinished(out, work, records), 0.0
    rows = [(cell, "", cell not in left.cells) for cell in work.cells]
    rows += [(cell, ", its training alone", cell not in left.trained) for cell in work.trained]
    for cell, words, done in rows:
        mine = 0.0 if done else training(cell) + (0.0 if words else cost(cell)[1])
        total += mine
        print(f"{'done' if done else 'to do':6}  {cell}{words}  "
              f"{f'{mine / 3600:.2f} h' if mine >= 360 else f'{mine:.0f} s' if mine else ''}")
    for cell in work.logged:
        print(f"{'to do' if cell in left.logged else 'done':6}  data {cell.environment}/{cell.dataset}/seed {cell.seed}")
    print(f"{len(work.all)} cells; about {total / 3600:.2f} hours of one worker, {total / 3600 / jobs:.2f} with {jobs}, "
          "from a probe of this machine (without data collection, looks at unfinished policies, prediction errors, pictures)")


def seconds(cell: Cell, device: str) -> tuple[float, float]:
    """(training shared by the cells of all agents, this cell's acting), in seconds on this machine."""
    environment, budget = cases.ENVIRONMENTS[cell.environment], baselines.budget_of(cell)
    method = cases.METHODS[cell.method]
    logged, acted = TYPICAL[cell.environment]
    acted = min(acted, budget.return_steps or acted)
    training, model = 0.0, None
    if method.baseline:
        training, model = _baseline_probe(cell, environment, device)
    elif method.learns and method.plans:
        config = pieces.learning(cell)
        model, training = _train_probe(environment, config, device, budget.agents * logged)
    elif method.plans:
        model = TrueEnv(environment, data.agents(environment, 5, seed=0))
    if model is None:
        return training, 1.0
    # baselines' plans are slow: one episode is probed, and many cost as many times that
    episodes = 1 if method.baseline else budget.return_episodes
    return training, _decision(environment, cell, model, episodes) * acted * budget.return_episodes / episodes


def _baseline_probe(cell: Cell, environment: Environment, device: str) -> tuple[float, DynamicsModel | None]:
    """Seconds that a baseline's training would take, by short ones on random logs of five agents; and its simulator."""
    episodes = data.collect(environment, data.agents(environment, 5, seed=0), torch.arange(5), Uniform(environment.actions),
                            seed=0, what="probe", max_steps=min(60, _steps(cell)))
    config, model, took = baselines.learning(cell), None, []
    for count in PROBE_SHORT:
        started = time.monotonic()
        if cases.METHODS[cell.method].plans:
            model = baselines.fit_simulator(replace(config, descent=replace(config.descent, updates=count)), episodes,
                                            environment, seed=0, device=device)
        elif isinstance(config, baselines.WorldAndPolicy):
            few = replace(config, model=replace(config.model, updates=count),
                          policy=replace(config.policy, steps=1000 * count, clone=count))
            baselines.fit_policy(cell, few, episodes, environment, seed=0, device=device)
        else:
            more = _more(cell, episodes, config.batch)
            baselines.fit_policy(cell, replace(config, updates=count), episodes, environment, more, seed=0, device=device)
        took.append(time.monotonic() - started)
    each = max(0.0, took[-1] - took[-2]) / (PROBE_SHORT[-1] - PROBE_SHORT[-2])
    if model is not None:
        return each * config.descent.updates, baselines.planned(cell, model)
    if isinstance(config, baselines.WorldAndPolicy):
        return each * config.policy.steps / 1000, None
    return each * config.updates, None


def _steps(cell: Cell) -> int:
    """Of a logged trajectory. Only policies of one agent's own logs care: their batches are no larger than these."""
    logged, acted = TYPICAL[cell.environment]
    own = cell.dataset != "none" and cases.METHODS[cell.method].baseline and cases.METHODS[cell.method].personal
    return acted if own and cases.DATASETS[cell.dataset].behaviour != "random" else logged


def _more(cell: Cell, episodes: data.Episodes, batch: int) -> Experience | None:
    """The same steps again, as often as makes runs as long as real ones, or longer than a batch."""
    found, method = episodes.experience(), cases.METHODS[cell.method]
    wanted = _steps(cell) + method.flown * TYPICAL[cell.environment][1]
    if not method.personal:
        wanted *= baselines.budget_of(cell).agents
    wanted = min(wanted, batch + 1)
    runs = [found.agent == agent for agent in range(len(episodes))] if method.personal else [found.agent >= 0]
    again = torch.cat([own.nonzero()[:, 0].repeat(wanted)[:max(0, wanted - int(own.sum()))] for own in runs])
    return Experience(**{name: values[again] for name, values in vars(found).items()}) if len(again) else None


def _train_probe(environment: Environment, config: cases.PerSimConfig, device: str, transitions: int) -> tuple[PerSim, float]:
    """A simulator trained a little on noise, and the seconds that its whole training on so many transitions would take."""
    generator = rng.stream(0, "probe")
    count = min(transitions, PROBE_ENTRIES) if config.exact else PROBE_BATCHES * config.adam.batch
    states = torch.randn(count + 1, len(environment.state_names), generator=generator)
    noise = Transitions(torch.arange(count) * 5 // count, states[:-1],      # five agents, one after the other
                        environment.actions.sample((count,), generator=generator), states[1:])
    if config.exact:
        once, passes = replace(config, exact=replace(config.exact, solver=ALSConfig(sweeps=3))), config.exact.solver.sweeps
    else:
        once, passes = replace(config, adam=replace(config.adam, epochs=3)), config.adam.epochs
    if config.multistep:
        once = replace(once, multistep=replace(config.multistep, updates=PROBE_UPDATES))
    entries: list[dict] = []
    model = fit_persim(noise, 5, environment.actions, once, seed=0, device=device, progress=entries.append)
    training = (entries[2]["seconds"] - entries[1]["seconds"]) * transitions / count * passes
    if config.multistep:
        training += entries[-1]["seconds"] / PROBE_UPDATES * config.multistep.updates
    return model, training


def _decision(environment: Environment, cell: Cell, model: DynamicsModel, episodes: int) -> float:
    """Seconds to plan one step of all episodes of one agent."""
    policy = cases.planning_policy(cell.settings, environment, model)
    state = torch.cat([environment.reset(1, generator=rng.stream(0, "probe", i)) for i in range(episodes)])
    K, D = policy.past, state.shape[1]
    agent = torch.zeros(episodes, dtype=torch.int64)
    view = EpisodeView(torch.arange(episodes), agent, state, state.new_zeros(episodes, K, D), environment.actions.sample(
        (episodes, K), generator=rng.stream(0, "probe")), torch.zeros((episodes, K), dtype=torch.bool))
    generators = [rng.stream(0, "probe", i) for i in range(episodes)]
    policy.reset(view.agent)
    policy.act(view, generators=generators)     # warms up compiled code
    started = time.monotonic()
    policy.act(view, generators=generators)
    return time.monotonic() - started
