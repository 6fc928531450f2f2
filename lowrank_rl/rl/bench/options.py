"""What a person may ask of the benchmark, and the first look at it."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from lowrank_rl import check
from lowrank_rl.rl.bench import cases

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class Options:
    """Run PerSim's experiments and put our numbers beside the published ones.

    Every finished cell (method, data set, agent, seed) is a record in the output folder. Ctrl-C or a kill loses at most
    the piece in flight; the same command goes on. What fails is tried again twice, unless its input is bad.
    """
    env: str | None = None
    """mountaincar, cartpole or halfcheetah; a table, figure or suite without it runs all that it is about"""
    table: int | None = None
    """run what this table of the paper needs: 1 to 3, 5 to 16"""
    figure: int | None = None
    """run what this figure of the paper needs: 1, 2, 4 or 5"""
    suite: str | None = None
    """paper (all these tables and figures), or all (our methods too)"""
    budget: str = "quick"
    """tiny (does it run? seconds a cell), quick (minutes), small (hours), or paper (as published)"""
    settings: str = "best"
    """best (ours), or paper (as published)"""
    methods: tuple[str, ...] | None = None
    """which methods: by default persim, pooled, true-env-mpc, cloned, uniform, as far as these settings have them; baselines
    run when named: vanilla-cadm, pe-ts-cadm, e-pets, bcq-p, bcq-a, cql-p, cql-a, morel-p, morel-a, persim-bcq-5,
    persim-cql-5; PerSim for unseen agents: persim-p100, -p50, -p25, -p10 (by covariates of so many percent of the training
    agents), persim-k5, -k10, -k25, -k100 (by so many steps of their own), persim-p10-k10"""
    datasets: tuple[str, ...] | None = None
    """which logged data: random, pure, pure-eps-20, pure-eps-40; by default random for tiny and quick, these four for others;
    random-of-N and pure-of-N are those of the first N agents alone (N 250, 100, 50, 25, 10)"""
    agents: tuple[int, ...] | None = None
    """which agents: 1 to 5 are the test agents, by default all of them; 6 to 10 are unseen ones, which no data come from"""
    seeds: int | None = None
    """how many repeats; by default the budget's"""
    device: str = "cpu"
    """where networks run: cpu, or cuda"""
    jobs: int | None = None
    """tasks at once, one thread each; by default one per core, one for a GPU; with Ray as many as the cluster takes"""
    executor: str = "local"
    """local (processes on this machine), or ray (a cluster whose machines all see the output folder; extra "ray")"""
    ray_address: str | None = None
    """of the cluster: auto (the default: the one this machine is in), ray://host:10001, or local to start one here"""
    gpus_per_task: float | None = None
    """with Ray: share of a GPU that a task gets; by default 1 with --device cuda"""
    shard: str | None = None
    """2/5: only the second of five parts, which train nothing twice; each needs a folder of its own, and --merge unites them"""
    merge: tuple[Path, ...] | None = None
    """run nothing: unite the records of these output folders, and what pictures need, in --out"""
    keep_first: bool = False
    """with --merge: where two folders have different numbers for one cell, keep those of the one named first"""
    out: Path | None = None
    """output folder; runs/<env> by default"""
    list: bool = False
    """print the cells and an estimate of the hours, run nothing"""


def checked(options: Options) -> Options:
    """The options, unless they contradict each other or name what is not there.

    Raises:
        ValueError: which, and what to do instead.
    """
    asked = [f"--{name}" for name in ("table", "figure", "suite", "merge") if getattr(options, name) is not None]
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)}: expected one of them, got {len(asked)}; run one after the other")
    if options.env is None and not asked:
        raise ValueError("--env: expected an environment, got none; known: "
                         f"{', '.join(cases.ENVIRONMENTS)}; or ask for a --table, a --figure or a --suite")
    if options.env is not None:
        check.known("environment", options.env, cases.ENVIRONMENTS)
    check.known("budget", options.budget, cases.BUDGET_NAMES)
    check.known("settings", options.settings, cases.SETTINGS)
    check.known("executor", options.executor, EXECUTORS)
    if options.seeds is not None:
        check.count("--seeds", options.seeds)
    if options.jobs is not None:
        check.count("--jobs", options.jobs)
    _check_merge(options)
    if options.executor == "ray":
        _check_gpus(options)
        try:
            torch.device(options.device)
        except RuntimeError:
            raise ValueError(f"--device: expected cpu or cuda, got {options.device!r}") from None
        return options      # its machines say themselves whether they have the device
    for name in ("ray_address", "gpus_per_task"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: expected --executor ray beside it, got --executor local")
    check.device(options.device)
    return options


def folders(options: Options, environments: list[str]) -> dict[str, Path]:
    """The output folder of each environment: absolute, as workers may start elsewhere, where they are not of this machine."""
    suffix = f"-shard-{options.shard.replace('/', '-of-')}" if options.shard else ""
    found = {name: options.out or Path("runs") / f"{name}{suffix}" for name in environments}
    return {name: path.absolute() for name, path in found.items()} if options.executor == "ray" else found


def asked_for(options: Options) -> str:
    """What a page of it is called: table-9, figure-4, suite-paper, or report."""
    return next((f"{name}-{getattr(options, name)}" for name in ("table", "figure", "suite")
                 if getattr(options, name) is not None), "report")


def part(shard: str) -> tuple[int, int]:
    """(2, 5) of "2/5"."""
    i, slash, n = shard.partition("/")
    if slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n):
        return int(i), int(n)
    raise ValueError(f"--shard: expected i/n with i from 1 to n, such as 2/5, got {shard!r}")


def jobs(options: Options) -> int:
    """Workers on this machine."""
    return options.jobs or ((os.cpu_count() or 1) if torch.device(options.device).type == "cpu" else 1)


def gpus(options: Options) -> float:
    """The share of a GPU that a task gets from Ray."""
    return (1.0 if options.gpus_per_task is None else options.gpus_per_task) if options.device != "cpu" else 0.0


def _check_merge(options: Options) -> None:
    if options.merge is None:
        if options.keep_first:
            raise ValueError("--keep-first: expected --merge beside it, got none")
        return
    if not options.merge:
        raise ValueError("--merge: expected at least one folder, got none; name the output folders to unite")
    if options.out is None:
        raise ValueError("--merge: expected --out beside it, got none; name the folder that shall hold the records of all")
    others = ("env", "budget", "settings", "methods", "datasets", "agents", "seeds", "device", "jobs", "executor",
              "ray_address", "gpus_per_task")
    asked = [name.replace("_", "-") for name in others if getattr(options, name) != getattr(Options, name)]
    if asked:
        raise ValueError(f"--merge: expected no --{asked[0]} beside it, as it unites all that the folders hold; name it in the "
                         "run that reports them")
    if options.shard or options.list:
        raise ValueError(f"--merge: expected no {'--shard' if options.shard else '--list'} beside it; unite first")


def _check_gpus(options: Options) -> None:
    share = options.gpus_per_task
    if share is None:
        return
    if not (0 < share <= 1 or (1 < share < math.inf and share == int(share))):
        raise ValueError(f"--gpus-per-task: expected a share in (0, 1] or a whole number, got {share:g}")
    if options.device == "cpu":
        raise ValueError("--gpus-per-task: expected --device cuda beside it, got --device cpu")
