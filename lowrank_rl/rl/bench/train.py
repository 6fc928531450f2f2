"""Make what cells share: a data set, trained simulators, learned policies. Each is written when whole."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lowrank_rl import check, rng
from lowrank_rl.files import whole
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.bench import baselines, cases, pieces, selection
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import Experience
from lowrank_rl.rl.models.persim import PerSimConfig, fit_persim
from lowrank_rl.rl.policies.cloned import fit_cloned
from lowrank_rl.rl.policies.offline import Learned
from lowrank_rl.rl.synthetic import fly

Say = Callable[[str, float], None]     # what is being done, and the share done
LOOKS = 5     # episodes per agent of a look at an unfinished policy


def make_data(out: Path, cell: Cell, say: Say) -> None:
    """Collect the data set of a cell, unless it is there."""
    if pieces.data_path(out, cell).exists():
        pieces.load_data(out, cell)
        return
    environment = cases.ENVIRONMENTS[cell.environment]
    count, behaviour = baselines.budget_of(cell).agents, cases.DATASETS[cell.dataset].behaviour
    covariates = data.agents(environment, count, seed=cell.seed)
    policy = cases.BEHAVIOUR[behaviour](environment, covariates)
    episodes = data.collect(environment, covariates, torch.arange(count), policy, seed=cell.seed, what=behaviour,
                            progress=lambda t, limit: say("collecting", t / limit))
    data.save(pieces.data_path(out, cell), episodes)


def train(out: Path, cell: Cell, device: str, say: Say) -> None:
    """Train what a cell needs and shares with all its agents: simulators, a cloned policy, or both."""
    cell = pieces.trained_as(cell)
    if pieces.clones(cell):
        _clone(out, cell, say)
    if pieces.simulates(cell):
        _train_simulators(out, cell, device, say)
    if pieces.acts(cell):
        _train_policies(out, cell, device, say)


def _clone(out: Path, cell: Cell, say: Say) -> None:
    """Clone the policies that logged a cell's data, unless that is done: less than a minute."""
    path, method = pieces.clone_path(out, cell), cases.METHODS[cell.method]
    if path.exists():
        pieces.load_clone(out, cell)
        return
    environment, budget = cases.ENVIRONMENTS[cell.environment], baselines.budget_of(cell)
    say("cloning the policies of the logs", 0.0)
    policy = fit_cloned(pieces.load_data(out, cell).transitions(), budget.agents, environment.actions,
                        cases.CLONING[cell.settings, cell.environment],
                        seed=rng.integer(cell.seed, cell.environment, "cloned"), personal=method.personal)
    check.writable_folder(path.parent)
    policy.save(path)


def _train_simulators(out: Path, cell: Cell, device: str, say: Say) -> None:
    """Train the simulators of a cell, unless they are there; resumes where it was killed."""
    path = pieces.model_path(out, cell)
    if path.exists():
        pieces.load_model(out, cell)
        return
    environment, budget = cases.ENVIRONMENTS[cell.environment], baselines.budget_of(cell)
    config, episodes = pieces.learning(cell), pieces.load_data(out, cell)
    check.writable_folder(path.parent)
    options = {"seed": rng.integer(cell.seed, cell.environment, cell.method), "device": device,
               "progress": partial(_told, say, config), "checkpoint": path.with_suffix(".checkpoint")}
    if cases.METHODS[cell.method].baseline:
        model = baselines.fit_simulator(config, episodes, environment, **options)
    else:
        model = fit_persim(episodes.transitions(), budget.agents, environment.actions, config,
                           personal=cases.METHODS[cell.method].personal, **options)
    model.save(path)


def _told(say: Say, config: Any, entry: dict) -> None:
    """An entry of a training's history, in words."""
    if "update" in entry:
        of = config.multistep if isinstance(config, PerSimConfig) else getattr(config, "descent", config)
        what, at, end = "update", entry["update"], of.updates
    elif config.exact:
        what, at, end = "sweep", entry["epoch"], config.exact.solver.sweeps
    else:
        what, at, end = "epoch", entry["epoch"], config.adam.epochs
    say(f"training, {what} {at}/{end}, loss {entry['loss']:.2e}", at / end)


def _train_policies(out: Path, cell: Cell, device: str, say: Say) -> None:
    """Learn the policies of a baseline, unless they are there; resumes where it was killed.

    Their history ends with a curve: the test agents' returns in the true environment after a tenth, two tenths, ... of the
    updates. It is for people to look at; nothing is chosen by it. Where simulators select (selection.py), a second curve says
    what policies earned there, and both are of each twentieth.
    """
    path = pieces.model_path(out, cell)
    if path.exists():
        pieces.load_policy(out, cell)
        return
    environment, budget = cases.ENVIRONMENTS[cell.environment], baselines.budget_of(cell)
    check.writable_folder(path.parent)
    file = path.with_suffix(".curve")
    curve = _curve(file)
    tests = list(range(len(environment.test_agents)))
    covariates = data.agents(environment, budget.agents, seed=cell.seed)

    def watch(done: int, policy: Learned) -> None:
        able = [agent for agent in tests if policy.able(agent)]
        if done not in curve and able:
            found, _ = evaluate.returns(environment, policy, covariates, able, episodes=min(LOOKS, budget.return_episodes),
                                        seed=cell.seed, max_steps=budget.return_steps)
            curve[done] = dict(zip(able, found.mean(1).tolist(), strict=True))
            with whole(file) as partial_file:
                partial_file.write_text(json.dumps(curve))

    config, selects = pieces.learning(cell), pieces.selects(cell)
    policy = baselines.fit_policy(cell, config, pieces.load_data(out, cell), environment, _flown(out, cell, say), watch=watch,
                                  device=device, seed=rng.integer(cell.seed, cell.environment, cell.method),
                                  progress=partial(_told_of_policy, say, baselines.length(cell, config)),
                                  checkpoint=path.with_suffix(".checkpoint"),
                                  **({"judge": selection.judge(out, cell)} if selects else {}))
    seen = {"curve": {str(at): {str(agent): x for agent, x in found.items()} for at, found in sorted(curve.items())}}
    if selects:
        *policy.history, last = policy.history
        seen["imagined"] = {at: {str(agent): worth[policy.run[agent]] for agent in tests}
                            for at, worth in last["looks"].items()}
    policy.history = [*policy.history, seen]
    policy.save(path, baselines.kind(cell))
    file.unlink(missing_ok=True)


def _curve(path: Path) -> dict[int, dict]:
    """What earlier looks at an unfinished policy found, by update.

    Raises:
        ValueError: a corrupt file.
    """
    try:
        return {int(at): dict(found) for at, found in json.loads(path.read_text()).items()} if path.exists() else {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected returns of an unfinished policy, got a corrupt file ({error}); remove it, and "
                         "training goes on with a curve that begins later") from error


def _told_of_policy(say: Say, length: int, entry: dict) -> None:
    """The same of a policy's, or of the model that MOReL begins with."""
    if "update" in entry:
        say(f"training, update {entry['update']}/{length}, loss {entry['loss'] or float('nan'):.2e}", entry["update"] / length)
    else:
        say(f"training its model, epoch {entry['epoch']}, loss {entry['loss']:.2e}", 0.0)


def _flown(out: Path, cell: Cell, say: Say) -> Experience | None:
    """These trajectories, of the test agents."""
    simulator, environment = pieces.simulator_of(cell), cases.ENVIRONMENTS[cell.environment]
    if simulator is None:
        return None
    say("flying in simulators", 0.0)
    logged, guide = pieces.load_data(out, cell), pieces.load_clone(out, simulator) if pieces.clones(simulator) else None
    pilot = cases.planning_policy(cell.settings, environment, pieces.load_model(out, simulator), guide)
    return fly(environment, pilot, list(range(len(environment.test_agents))), torch.from_numpy(logged.state[logged.start[:-1]]),
               count=cases.METHODS[cell.method].flown, seed=rng.integer(cell.seed, cell.environment, "flown"))
