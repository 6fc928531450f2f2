"""python -m lowrank_rl.rl.bench.policies --env cartpole: train the policies that log data and test simulators.

They ship with the package, so nobody needs to; ``--out lowrank_rl/rl/behaviour/weights`` in a checkout replaces those.
Needs the extra ``policies`` (Stable-Baselines3).
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from lowrank_rl import check
from lowrank_rl.rl.behaviour import trained
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.console import Display
from lowrank_rl.rl.bench.pool import Task
from lowrank_rl.rl.bench.pool import run as run_tasks
from lowrank_rl.rl.bench.store import locked
from lowrank_rl.rl.contracts import Environment

try:
    from lowrank_rl.rl.behaviour import online
except ModuleNotFoundError as error:
    raise SystemExit(f"policies: expected Stable-Baselines3, got '{error}'; pip install lowrank_rl[policies]") from error


@dataclass(frozen=True)
class Options:
    """Train every policy of an environment that is not in the folder yet. Ctrl-C or a kill loses at most a few thousand
    steps; the same command goes on and ends with the same policies."""
    env: str
    """mountaincar, cartpole or halfcheetah"""
    seed: int = 0
    """of everything drawn"""
    jobs: int = 2
    """worker processes, one thread each"""
    out: Path = Path("runs") / "policies"
    """output folder"""


class _Words:
    """Tells the display."""

    def __init__(self, display: Display) -> None:
        self.display, self.failures = display, 0

    def started(self, task: Task) -> None:
        self.display.start(task.name)

    def said(self, task: Task, words: str, share: float) -> None:
        self.display.say(task.name, words, share)

    def done(self, task: Task, result: Any) -> None:
        self.display.finish(task.name, result)

    def failed(self, task: Task, message: str) -> None:
        self.failures += 1
        self.display.finish(task.name, f"FAILED: {message.strip().splitlines()[-1]}")


def train(environment: Environment, purpose: str, seed: int, folder: Path, say: Any) -> str:
    """One policy, into the folder; in words."""
    checkpoint = folder / f"{environment.name}-{purpose}.checkpoint"
    network = online.train(environment, purpose, online.RECIPES[environment.name], seed=seed, checkpoint=checkpoint, say=say)
    trained.save(folder, environment, purpose, network)
    checkpoint.unlink(missing_ok=True)
    return f"return {network.card['mean_return']:.4g} after {network.card['steps']} steps"


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 1 a training failed, 2 bad input, 130 interrupted."""
    options = tyro.cli(Options, args=arguments, prog="python -m lowrank_rl.rl.bench.policies")
    try:
        check.known("environment", options.env, cases.ENVIRONMENTS)
        check.count("--jobs", options.jobs)
        environment = cases.ENVIRONMENTS[options.env]
        with locked(options.out):
            todo = [purpose for purpose in trained.purposes(environment)
                    if not trained.path_of(options.out, environment, purpose).exists()]
            tasks = [Task(f"{options.env} {purpose}", train, (environment, purpose, options.seed, options.out))
                     for purpose in todo]
            with Display(len(tasks)) as display:
                words = _Words(display)
                run_tasks(tasks, options.jobs, words)
        if words.failures == 0:
            print("\n" + trained.cards(environment, options.out))
        return 1 if words.failures else 0
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
