"""Run a cell: prediction error and return of one method on one agent, from pieces that are there."""

import platform
import subprocess
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

from lowrank_rl.files import whole
from lowrank_rl.nets import has_bfloat16
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.behaviour.trained import tester
from lowrank_rl.rl.bench import baselines, cases, newcomers, pieces
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.bench.train import Say
from lowrank_rl.rl.contracts import DynamicsModel
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.policies.uniform import Uniform


def run_cell(out: Path, cell: Cell, device: str, say: Say) -> Record:
    """Prediction error and return of one method on one agent."""
    started = time.monotonic()
    environment, budget = cases.ENVIRONMENTS[cell.environment], baselines.budget_of(cell)
    method = cases.METHODS[cell.method]
    covariates, number = newcomers.everybody(cell)
    model: DynamicsModel | None = None
    results: dict = {}
    guide = newcomers.piloted(cell, pieces.load_clone(out, cell)) if pieces.clones(cell) else None
    if pieces.simulates(cell):
        model, found = newcomers.simulated(cell, pieces.load_model(out, cell))
        model.module.to(device)
        trained = model.history[-1] if method.baseline else {**model.cp.history_[-1], "stopped": model.cp.stopped_}
        say("prediction error", 0.0)
        error = evaluate.prediction_error(environment, model, covariates, [number], tester(environment, len(covariates)),
                                          episodes=budget.error_episodes, seed=cell.seed)[number]
        _save_trace(pieces.trace_path(out, cell), error)
        results |= {"rmse": error.rmse, "r2": error.r2, "error_episodes": error.episodes,
                    "error_by_step": [None if np.isnan(x) else float(x) for x in error.by_step],
                    "training": found or trained}
        model = baselines.planned(cell, model)
    elif method.plans:
        model = TrueEnv(environment, covariates)
    policy = guide or Uniform(environment.actions)
    if pieces.acts(cell):
        policy = newcomers.learned(cell, pieces.load_policy(out, cell))
        *history, looks = policy.history
        own = {name: {at: found[str(number)] for at, found in every.items() if str(number) in found}
               for name, every in looks.items()}
        results["training"] = {**history[-1], **own}
    if model:
        policy = cases.planning_policy(cell.settings, environment, model, guide)
    totals, episodes = evaluate.returns(environment, policy, covariates, [number], episodes=budget.return_episodes,
                                        seed=cell.seed, max_steps=budget.return_steps,
                                        progress=lambda t, limit: say(f"acting, step {t}", t / limit))
    return Record(cell, "done", returns=totals[0].tolist(), lengths=episodes.lengths.tolist(), config=pieces.settings_of(cell),
                  same_action=_same(episodes), non_finite=policy.non_finite if model else 0, commit=commit(),
                  versions=dict(versions()), device=_device(device), seconds=time.monotonic() - started, **results)


def _same(episodes: data.Episodes) -> float:
    """The share of the commonest action; 1 where a policy collapsed to doing always the same."""
    return float(np.unique(episodes.action, axis=0, return_counts=True)[1].max() / len(episodes.action))


def _save_trace(path: Path, error: evaluate.PredictionError) -> None:
    """One episode's true and predicted states, for the pictures."""
    with whole(path) as partial:
        np.savez(partial, true=error.true, predicted=error.predicted)


@cache     # asking takes as long as a small cell, and a process runs what it has once imported
def commit() -> str:
    """The source's commit, with "+" if files were changed since; empty outside a checkout."""
    def git(*words: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False).stdout.strip()
    try:
        head = git("rev-parse", "--short=12", "HEAD")
        return head + "+" if head and git("status", "--porcelain", "--untracked-files=no") else head
    except OSError:
        return ""


@cache
def versions() -> dict[str, str]:
    """Of Python, this package, and those that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in ("lowrank_rl", "torch", "numpy", "gymnasium", "mujoco", "numba"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found


def _device(device: str) -> str:
    """Its name, and whether settings that say bfloat16 had it there."""
    place = torch.device(device)
    if place.type == "cuda":
        return torch.cuda.get_device_name(place)
    return f"{place.type} ({platform.machine()}, 1 thread, {'bfloat16' if has_bfloat16(place) else 'no bfloat16'})"
