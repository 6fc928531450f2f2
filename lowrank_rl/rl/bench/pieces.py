"""What a cell is made of: its settings, where its data set, simulator, policy and trace lie, and these loaded and checked."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rl import data
from lowrank_rl.rl.behaviour.trained import fingerprint
from lowrank_rl.rl.bench import baselines, cases, newcomers, versions
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import DynamicsModel
from lowrank_rl.rl.models.persim import PerSim, PerSimConfig
from lowrank_rl.rl.plan import ShootingConfig
from lowrank_rl.rl.policies.cloned import Cloned
from lowrank_rl.rl.policies.offline import JUDGED, Learned

SELECTED = f"the best of {JUDGED} looks, in the agent's simulator"


def data_path(out: Path, cell: Cell) -> Path:
    budget = baselines.budget_of(cell)
    who = f"-{_loggers(cell)}" if _loggers(cell) else ""
    who += f"-v{versions.VERSIONS['data']}" if versions.VERSIONS["data"] > 1 else ""
    return out / "data" / f"{cell.environment}-{cell.dataset}-{budget.agents}-seed{cell.seed}{who}.npz"


def model_path(out: Path, cell: Cell) -> Path:
    """Named by what it is and a hash of every setting and of its code's version, so that changed ones train anew."""
    cell = trained_as(cell)
    config, simulator, raised = asdict(learning(cell)), simulator_of(cell), versions.trained(cell)
    whence = [data_path(out, cell).name, *([settings_of(simulator)] if simulator else []), *([raised] if raised else []),
              *([SELECTED] if selects(cell) else [])]
    digest = hashlib.blake2b(json.dumps([config, *whence]).encode(), digest_size=4).hexdigest()
    return out / "models" / f"{cell.environment}-{cell.dataset}-{cell.method}-seed{cell.seed}-{digest}.safetensors"


def clone_path(out: Path, cell: Cell) -> Path:
    """Of the policy cloned from a cell's data, named like its model."""
    config, version = asdict(cases.CLONING[cell.settings, cell.environment]), versions.VERSIONS["cloned"]
    whence = [data_path(out, cell).name, *([version] if version > 1 else [])]
    digest = hashlib.blake2b(json.dumps([config, *whence]).encode(), digest_size=4).hexdigest()
    who = "all" if cases.METHODS[cell.method].personal else cell.method
    return out / "models" / f"{cell.environment}-{cell.dataset}-cloned-{who}-seed{cell.seed}-{digest}.safetensors"


def trace_path(out: Path, cell: Cell) -> Path:
    return out / "traces" / f"{cell.environment}-{cell.dataset}-{cell.method}-{cell.settings}-{cell.budget}" \
                            f"-agent{cell.agent}-seed{cell.seed}.npz"


def learning(cell: Cell) -> Any:
    """The settings of its training under its budget."""
    if cases.METHODS[cell.method].baseline:
        return baselines.learning(cell)
    budget, whole = baselines.budget_of(cell), cases.BUDGETS[cell.budget, cell.environment]
    return cases.learning(cell.settings, cell.environment, budget, share=budget.agents / whole.agents)


def simulates(cell: Cell) -> bool:
    method = cases.METHODS[cell.method]
    return method.learns and method.plans


def acts(cell: Cell) -> bool:
    """Whether it learns a policy that acts without a simulator, as baselines do."""
    method = cases.METHODS[cell.method]
    return method.baseline and not method.plans


def clones(cell: Cell) -> bool:
    return cases.METHODS[cell.method].learns and not acts(cell) and (cell.settings, cell.environment) in cases.CLONING


def simulator_of(cell: Cell) -> Cell | None:
    """Whose simulators a method flies its further trajectories in."""
    return replace(cell, method="persim") if cases.METHODS[cell.method].flown else None


def selects(cell: Cell) -> bool:
    """Whether its policies are chosen in simulators (selection.py)."""
    return cell.settings == "best" and simulator_of(cell) is not None


def trained_as(cell: Cell) -> Cell:
    """The cell whose training it shares: PerSim's, of methods that only add rows for unseen agents to its simulators."""
    return replace(cell, method="persim") if cases.METHODS[cell.method].unseen else cell


def _loggers(cell: Cell) -> str:
    """Which trained policies logged the data; nothing for random data."""
    if cases.DATASETS[cell.dataset].behaviour == "random":
        return ""
    return fingerprint(cases.ENVIRONMENTS[cell.environment], test=False)


def settings_of(cell: Cell) -> dict:
    """Every setting that a cell depends on, as plain JSON; a record with others is not this cell's."""
    budget, method = baselines.budget_of(cell), cases.METHODS[cell.method]
    settings = {"budget": asdict(budget)}
    if method.learns:
        tested = fingerprint(cases.ENVIRONMENTS[cell.environment], test=True)
        settings["policies"] = {"logged": _loggers(cell), "tested": tested}
    if simulates(cell) or acts(cell):
        settings["learning"] = asdict(learning(cell))
    simulator = simulator_of(cell)
    if simulator:
        settings["flown"] = {name: value for name, value in settings_of(simulator).items() if name != "budget"}
    if selects(cell):
        settings["selected"] = SELECTED
    if clones(cell):
        settings["cloning"] = asdict(cases.CLONING[cell.settings, cell.environment])
    if method.plans:
        settings["planning"] = asdict(cases.PLANNING[cell.settings, cell.environment])
        if baselines.particles(cell):
            settings["planning"]["particles"] = baselines.particles(cell)
        if baselines.along_means(cell):
            settings["planning"]["followed"] = "means of the members"
        if (cell.settings, cell.environment) in cases.FROM_MEAN:
            settings["planning"]["members"] = "start each step from their mean"
    if cases.unseen(cell.environment, cell.agent):
        settings["unseen"] = newcomers.settings(cell)
    if versions.recorded(cell):
        settings["code"] = versions.recorded(cell)
    return json.loads(json.dumps(settings))


def same_settings(recorded: dict, wanted: dict) -> bool:
    """Whether a record was made with these settings; one that did not exist then counts as its default."""
    defaults = json.loads(json.dumps({"learning": asdict(PerSimConfig()), "planning": {"planner": asdict(ShootingConfig())}}))
    defaults["flown"] = dict(defaults)

    def same(old: object, new: object, default: object) -> bool:
        if not isinstance(old, dict) or not isinstance(new, dict):
            return old == new
        default = default if isinstance(default, dict) else {}
        return set(old) <= set(new) and all(
            same(old.get(name, default.get(name)), value, default.get(name)) for name, value in new.items())
    return same(recorded, wanted, defaults)


def check_files(out: Path, cells: Iterable[Cell]) -> None:
    """Refuse what an earlier run or a hand left in pieces, before anything runs.

    Raises:
        ValueError: a corrupt or foreign data set, model or trace.
    """
    seen: set[Path] = set()     # agents share them
    for cell in cells:
        parts: list[tuple[Path, Callable]] = []
        if cases.METHODS[cell.method].learns:
            parts.append((data_path(out, cell), load_data))
        if simulates(cell):
            parts += [(model_path(out, cell), load_model), (trace_path(out, cell), load_trace)]
        if clones(cell):
            parts.append((clone_path(out, cell), load_clone))
        if acts(cell):
            parts.append((model_path(out, cell), load_policy))
        for path, load in parts:
            if path not in seen and path.exists():
                load(out, cell)
            seen.add(path)


@lru_cache(maxsize=4)
def load_data(out: Path, cell: Cell) -> data.Episodes:
    """The data set of a cell.

    Raises:
        ValueError: missing, corrupt, or another one than the cell's.
    """
    path = data_path(out, cell)
    episodes = data.load(path)
    wanted = (cell.environment, cases.DATASETS[cell.dataset].behaviour, cell.seed, baselines.budget_of(cell).agents)
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
    wanted = (len(environment.state_names), baselines.budget_of(cell).agents, cases.METHODS[cell.method].personal)
    got = (model.cp.outputs, model.rows.shape[1], model.personal)
    if got != wanted:
        raise ValueError(f"{path}: expected a model of {wanted} (state dimensions, agents, personal), got {got}; remove it")
    return model


def load_policy(out: Path, cell: Cell) -> Learned:
    """The policies that a baseline learned.

    Raises:
        ValueError: missing, corrupt, or those of another number of agents.
    """
    path, agents = model_path(out, cell), baselines.budget_of(cell).agents
    policy = baselines.load_policy(cell, path)
    if len(policy.run) != agents:
        raise ValueError(f"{path}: expected policies for {agents} agents, got some for {len(policy.run)}; remove it")
    return policy


def load_clone(out: Path, cell: Cell) -> Cloned:
    """The cloned policy of a cell.

    Raises:
        ValueError: missing, corrupt, or another one than the cell's.
    """
    path, budget = clone_path(out, cell), baselines.budget_of(cell)
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
            true, predicted = trace["true"], trace["predicted"]
        check.shapes(true=(true, "steps D"), predicted=(predicted, "M steps D"))
        return true, predicted
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a test episode, got a missing or corrupt file ({error}); remove it and its "
                         "record") from error
