"""Run the pieces of a benchmark: a data set, a trained simulator, a cell. Each is cached or recorded when whole."""

import hashlib
import json
import platform
import subprocess
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lowrank_rl import check, rng
from lowrank_rl.files import whole
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.behaviour.trained import fingerprint, tester
from lowrank_rl.rl.bench import baselines, cases
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.contracts import DynamicsModel, Experience
from lowrank_rl.rl.models.persim import PerSim, PerSimConfig, fit_persim
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.policies.cloned import Cloned, fit_cloned
from lowrank_rl.rl.policies.offline import Learned
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.synthetic import fly

Say = Callable[[str, float], None]     # what is being done, and the share done
LOOKS = 5     # episodes per agent of a look at an unfinished policy


def data_path(out: Path, cell: Cell) -> Path:
    budget = cases.BUDGETS[cell.budget, cell.environment]
    who = f"-{_loggers(cell)}" if _loggers(cell) else ""
    return out / "data" / f"{cell.environment}-{cell.dataset}-{budget.agents}-seed{cell.seed}{who}.npz"


def model_path(out: Path, cell: Cell) -> Path:
    """Named by what it is and a hash of every setting, so that changed settings train anew."""
    config, simulator = asdict(_learning(cell)), simulator_of(cell)
    whence = [data_path(out, cell).name, *([settings_of(simulator)] if simulator else [])]
    digest = hashlib.blake2b(json.dumps([config, *whence]).encode(), digest_size=4).hexdigest()
    return out / "models" / f"{cell.environment}-{cell.dataset}-{cell.method}-seed{cell.seed}-{digest}.safetensors"


def policy_path(out: Path, cell: Cell) -> Path:
    """Of the policy cloned from a cell's data, named like its model."""
    config = asdict(cases.CLONING[cell.settings, cell.environment])
    digest = hashlib.blake2b(json.dumps([config, data_path(out, cell).name]).encode(), digest_size=4).hexdigest()
    who = "all" if cases.METHODS[cell.method].personal else cell.method
    return out / "models" / f"{cell.environment}-{cell.dataset}-cloned-{who}-seed{cell.seed}-{digest}.safetensors"


def _learning(cell: Cell) -> Any:
    """The settings of its training under its budget."""
    if cases.METHODS[cell.method].baseline:
        return baselines.learning(cell)
    return cases.learning(cell.settings, cell.environment, cases.BUDGETS[cell.budget, cell.environment])


def _simulates(cell: Cell) -> bool:
    method = cases.METHODS[cell.method]
    return method.learns and method.plans


def _acts(cell: Cell) -> bool:
    """Whether it learns a policy that acts without a simulator, as baselines do."""
    method = cases.METHODS[cell.method]
    return method.baseline and not method.plans


def _clones(cell: Cell) -> bool:
    return cases.METHODS[cell.method].learns and not _acts(cell) and (cell.settings, cell.environment) in cases.CLONING


def _loggers(cell: Cell) -> str:
    """Which trained policies logged the data; nothing for random data."""
    return "" if cell.dataset == "random" else fingerprint(cases.ENVIRONMENTS[cell.environment], test=False)


def trace_path(out: Path, cell: Cell) -> Path:
    return out / "traces" / f"{cell.environment}-{cell.dataset}-{cell.method}-{cell.settings}-{cell.budget}" \
                            f"-agent{cell.agent}-seed{cell.seed}.npz"


def check_files(out: Path, cells: Iterable[Cell]) -> None:
    """Refuse what an earlier run or a hand left in pieces, before anything runs.

    Raises:
        ValueError: a corrupt or foreign data set, model or trace.
    """
    for cell in cells:
        parts: list[tuple[Path, Callable]] = []
        if cases.METHODS[cell.method].learns:
            parts.append((data_path(out, cell), load_data))
        if _simulates(cell):
            parts += [(model_path(out, cell), load_model), (trace_path(out, cell), load_trace)]
        if _clones(cell):
            parts.append((policy_path(out, cell), load_clone))
        if _acts(cell):
            parts.append((model_path(out, cell), load_policy))
        for path, load in parts:
            if path.exists():
                load(out, cell)


@lru_cache(maxsize=4)
def load_data(out: Path, cell: Cell) -> data.Episodes:
    """The data set of a cell.

    Raises:
        ValueError: missing, corrupt, or another one than the cell's.
    """
    path = data_path(out, cell)
    episodes = data.load(path)
    wanted = (cell.environment, cell.dataset, cell.seed, cases.BUDGETS[cell.budget, cell.environment].agents)
    got = (episodes.environment, episodes.policy, episodes.seed, len(episodes))
    if got != wanted:
        raise ValueError(f"{path}: expected the data set {wanted} (environment, policy, seed, agents), got {got}; remove it")
    return episodes


def load_model(out: Path, cell: Cell) -> DynamicsModel:
    """The trained simulator of a cell.

    Raises:
        ValueError: missing, corrupt, or another one than the cell's.
    """
    path, environment = model_path(out, cell), cases.ENVIRONMENTS[cell.environment]
    if cases.METHODS[cell.method].baseline:
        return baselines.load_simulator(cell, path)
    model = PerSim.load(path)
    wanted = (len(environment.state_names), cases.BUDGETS[cell.budget, cell.environment].agents,
              cases.METHODS[cell.method].personal)
    got = (model.cp.outputs, model.rows.shape[1], model.personal)
    if got != wanted:
        raise ValueError(f"{path}: expected a model of {wanted} (state dimensions, agents, personal), got {got}; remove it")
    return model


def load_policy(out: Path, cell: Cell) -> Learned:
    """The policies that a baseline learned.

    Raises:
        ValueError: missing, corrupt, or those of another number of agents.
    """
    path, agents = model_path(out, cell), cases.BUDGETS[cell.budget, cell.environment].agents
    policy = baselines.load_policy(cell, path)
    if len(policy.run) != agents:
        raise ValueError(f"{path}: expected policies for {agents} agents, got some for {len(policy.run)}; remove it")
    return policy


def load_clone(out: Path, cell: Cell) -> Cloned:
    """The cloned policy of a cell.

    Raises:
        ValueError: missing, corrupt, or another one than the cell's.
    """
    path, budget = policy_path(out, cell), cases.BUDGETS[cell.budget, cell.environment]
    policy = Cloned.load(path)
    wanted = (cases.ENVIRONMENTS[cell.environment].actions.size, budget.agents, cases.METHODS[cell.method].personal)
    got = (policy.cp.outputs, len(policy.rows), policy.personal)
    if got != wanted:
        raise ValueError(f"{path}: expected a policy of {wanted} (actions, agents, personal), got {got}; remove it")
    return policy


def load_trace(out: Path, cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """One test episode's true states (steps, D) and each member's predictions (M, steps, D).

    Raises:
        ValueError: missing or corrupt.
    """
    path = trace_path(out, cell)
    try:
        with np.load(path, allow_pickle=False) as trace:
            return trace["true"], trace["predicted"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a test episode, got a missing or corrupt file ({error}); remove it and its "
                         "record") from error


def make_data(out: Path, cell: Cell, say: Say) -> None:
    """Collect the data set of a cell, unless it is there."""
    if data_path(out, cell).exists():
        load_data(out, cell)
        return
    environment = cases.ENVIRONMENTS[cell.environment]
    count = cases.BUDGETS[cell.budget, cell.environment].agents
    covariates = data.agents(environment, count, seed=cell.seed)
    policy = cases.BEHAVIOUR[cell.dataset](environment, covariates)
    episodes = data.collect(environment, covariates, torch.arange(count), policy, seed=cell.seed, what=cell.dataset,
                            progress=lambda t, limit: say("collecting", t / limit))
    data.save(data_path(out, cell), episodes)


def train(out: Path, cell: Cell, device: str, say: Say) -> None:
    """Train what a cell needs and shares with all its agents: simulators, a cloned policy, or both."""
    if _clones(cell):
        _clone(out, cell, say)
    if _simulates(cell):
        _train_simulators(out, cell, device, say)
    if _acts(cell):
        _train_policies(out, cell, device, say)


def _clone(out: Path, cell: Cell, say: Say) -> None:
    """Clone the policies that logged a cell's data, unless that is done: less than a minute."""
    path, method = policy_path(out, cell), cases.METHODS[cell.method]
    if path.exists():
        load_clone(out, cell)
        return
    environment, budget = cases.ENVIRONMENTS[cell.environment], cases.BUDGETS[cell.budget, cell.environment]
    say("cloning the policies of the logs", 0.0)
    policy = fit_cloned(load_data(out, cell).transitions(), budget.agents, environment.actions,
                        cases.CLONING[cell.settings, cell.environment],
                        seed=rng.integer(cell.seed, cell.environment, "cloned"), personal=method.personal)
    check.writable_folder(path.parent)
    policy.save(path)


def _train_simulators(out: Path, cell: Cell, device: str, say: Say) -> None:
    """Train the simulators of a cell, unless they are there; resumes where it was killed."""
    path = model_path(out, cell)
    if path.exists():
        load_model(out, cell)
        return
    environment, budget = cases.ENVIRONMENTS[cell.environment], cases.BUDGETS[cell.budget, cell.environment]
    config, episodes = _learning(cell), load_data(out, cell)
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


def _told_of_policy(say: Say, length: int, entry: dict) -> None:
    """The same of a policy's, or of the model that MOReL begins with."""
    if "update" in entry:
        say(f"training, update {entry['update']}/{length}, loss {entry['loss'] or float('nan'):.2e}", entry["update"] / length)
    else:
        say(f"training its model, epoch {entry['epoch']}, loss {entry['loss']:.2e}", 0.0)


def _train_policies(out: Path, cell: Cell, device: str, say: Say) -> None:
    """Learn the policies of a baseline, unless they are there; resumes where it was killed.

    Their history ends with a curve: the test agents' returns in the true environment after a tenth, two tenths, ... of the
    updates. It is for people to look at; nothing is chosen by it.
    """
    path = model_path(out, cell)
    if path.exists():
        load_policy(out, cell)
        return
    environment, budget = cases.ENVIRONMENTS[cell.environment], cases.BUDGETS[cell.budget, cell.environment]
    check.writable_folder(path.parent)
    looks = path.with_suffix(".curve")
    curve = {int(at): found for at, found in json.loads(looks.read_text()).items()} if looks.exists() else {}
    tests = list(range(len(environment.test_agents)))
    covariates = data.agents(environment, budget.agents, seed=cell.seed)

    def watch(done: int, policy: Learned) -> None:
        able = [agent for agent in tests if policy.able(agent)]
        if done not in curve and able:
            found, _ = evaluate.returns(environment, policy, covariates, able, episodes=min(LOOKS, budget.return_episodes),
                                        seed=cell.seed, max_steps=budget.return_steps)
            curve[done] = dict(zip(able, found.mean(1).tolist(), strict=True))
            with whole(looks) as partial_file:
                partial_file.write_text(json.dumps(curve))

    config = _learning(cell)
    policy = baselines.fit_policy(cell, config, load_data(out, cell), environment, _flown(out, cell, say), watch=watch,
                                  device=device, seed=rng.integer(cell.seed, cell.environment, cell.method),
                                  progress=partial(_told_of_policy, say, baselines.length(cell, config)),
                                  checkpoint=path.with_suffix(".checkpoint"))
    policy.history = [*policy.history, {"curve": {str(at): {str(agent): x for agent, x in found.items()}
                                                  for at, found in sorted(curve.items())}}]
    policy.save(path, baselines.kind(cell))
    looks.unlink(missing_ok=True)


def simulator_of(cell: Cell) -> Cell | None:
    """Whose simulators a method flies its further trajectories in."""
    return replace(cell, method="persim") if cases.METHODS[cell.method].flown else None


def _flown(out: Path, cell: Cell, say: Say) -> Experience | None:
    """These trajectories, of the test agents."""
    simulator, environment = simulator_of(cell), cases.ENVIRONMENTS[cell.environment]
    if simulator is None:
        return None
    say("flying in simulators", 0.0)
    logged, guide = load_data(out, cell), load_clone(out, simulator) if _clones(simulator) else None
    pilot = cases.planning_policy(cell.settings, environment, load_model(out, simulator), guide)
    return fly(environment, pilot, list(range(len(environment.test_agents))), torch.from_numpy(logged.state[logged.start[:-1]]),
               count=cases.METHODS[cell.method].flown, seed=rng.integer(cell.seed, cell.environment, "flown"))


def settings_of(cell: Cell) -> dict:
    """Every setting that a cell depends on, as plain JSON; a record with others is not this cell's."""
    budget, method = cases.BUDGETS[cell.budget, cell.environment], cases.METHODS[cell.method]
    settings = {"budget": asdict(budget)}
    if method.learns:
        tested = fingerprint(cases.ENVIRONMENTS[cell.environment], test=True)
        settings["policies"] = {"logged": _loggers(cell), "tested": tested}
    if _simulates(cell) or _acts(cell):
        settings["learning"] = asdict(_learning(cell))
    simulator = simulator_of(cell)
    if simulator:
        settings["flown"] = {name: value for name, value in settings_of(simulator).items() if name != "budget"}
    if _clones(cell):
        settings["cloning"] = asdict(cases.CLONING[cell.settings, cell.environment])
    if method.plans:
        settings["planning"] = asdict(cases.PLANNING[cell.settings, cell.environment])
        if (cell.settings, cell.environment) in cases.FROM_MEAN:
            settings["planning"]["members"] = "start each step from their mean"
    return json.loads(json.dumps(settings))


def same_settings(recorded: dict, wanted: dict) -> bool:
    """Whether a record was made with these settings; one that did not exist then counts as its default."""
    defaults = {"learning": json.loads(json.dumps(asdict(PerSimConfig())))}

    def same(old: object, new: object, default: object) -> bool:
        if not isinstance(old, dict) or not isinstance(new, dict):
            return old == new
        default = default if isinstance(default, dict) else {}
        return set(old) <= set(new) and all(
            same(old.get(name, default.get(name)), value, default.get(name)) for name, value in new.items())
    return same(recorded, wanted, defaults)


def run_cell(out: Path, cell: Cell, device: str, say: Say) -> Record:
    """Prediction error and return of one method on one agent."""
    started = time.monotonic()
    environment, budget = cases.ENVIRONMENTS[cell.environment], cases.BUDGETS[cell.budget, cell.environment]
    method = cases.METHODS[cell.method]
    covariates = data.agents(environment, budget.agents, seed=cell.seed)
    number = cell.agent - 1
    model: DynamicsModel | None = None
    results: dict = {}
    guide = load_clone(out, cell) if _clones(cell) else None
    if _simulates(cell):
        model = load_model(out, cell)
        model.module.to(device)
        trained = model.history[-1] if method.baseline else {**model.cp.history_[-1], "stopped": model.cp.stopped_}
        say("prediction error", 0.0)
        error = evaluate.prediction_error(environment, model, covariates, [number], tester(environment, budget.agents),
                                          episodes=budget.error_episodes, seed=cell.seed)[number]
        _save_trace(trace_path(out, cell), error)
        results |= {"rmse": error.rmse, "r2": error.r2, "error_episodes": error.episodes,
                    "error_by_step": [None if np.isnan(x) else float(x) for x in error.by_step],
                    "training": trained}
        model = baselines.planned(cell, model)
    elif method.plans:
        model = TrueEnv(environment, covariates)
    policy = guide or Uniform(environment.actions)
    if _acts(cell):
        policy = load_policy(out, cell)
        *history, last = policy.history
        results["training"] = {**history[-1], "curve": {at: found[str(number)] for at, found in last["curve"].items()
                                                        if str(number) in found}}
    if model:
        policy = cases.planning_policy(cell.settings, environment, model, guide)
    totals, episodes = evaluate.returns(environment, policy, covariates, [number], episodes=budget.return_episodes,
                                        seed=cell.seed, max_steps=budget.return_steps,
                                        progress=lambda t, limit: say(f"acting, step {t}", t / limit))
    return Record(cell, "done", returns=totals[0].tolist(), lengths=episodes.lengths.tolist(), config=settings_of(cell),
                  same_action=_same(episodes), non_finite=policy.non_finite if model else 0, commit=_commit(),
                  versions=_versions(), device=_device(device), seconds=time.monotonic() - started, **results)


def _same(episodes: data.Episodes) -> float:
    """The share of the commonest action; 1 where a policy collapsed to doing always the same."""
    return float(np.unique(episodes.action, axis=0, return_counts=True)[1].max() / len(episodes.action))


def _save_trace(path: Path, error: evaluate.PredictionError) -> None:
    """One episode's true and predicted states, for the pictures."""
    with whole(path) as partial:
        np.savez(partial, true=error.true, predicted=error.predicted)


def _commit() -> str:
    """The source's commit, with "+" if files were changed since; empty outside a checkout."""
    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + "+" if head and git("status", "--porcelain", "--untracked-files=no") else head
    except OSError:
        return ""


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("lowrank_rl", "torch", "numpy", "gymnasium", "mujoco", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _device(device: str) -> str:
    kind = torch.device(device).type
    return torch.cuda.get_device_name(device) if kind == "cuda" else f"{kind} ({platform.machine()}, 1 thread)"
