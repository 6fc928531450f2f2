"""Versions of the code that stages are made by: numbers that are raised by hand when the same settings give other results.

What a stage left is used again as long as its settings and its code's version are the same. The version is not the commit, as
most commits change no result, and not a hash of the source, as then a renamed variable would train for days. That nobody
forgets to raise one is up to a test: it knows the source that each version stands for, without comments and docstrings, and
fails when that has changed until either the number is raised or the change is declared to be without effect:

    python -m lowrank_rl.rl.bench.versions > tests/rl/bench/versions.json
"""

import ast
import hashlib
import json
import platform
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import Discrete

VERSIONS = {"data": 1, "persim": 1, "cloned": 1, "cadm": 2, "e-pets": 1, "bcq": 2, "bcq-continuous": 1, "cql": 2, "morel": 2,
            "flown": 2, "unseen": 1, "planned": 1, "tested": 1}
# Where the code of each begins; what it imports of this package belongs to it
RL = "lowrank_rl.rl."
ROOTS = {
    "data": (f"{RL}data", f"{RL}envs.mountaincar", f"{RL}envs.cartpole", f"{RL}envs.halfcheetah", f"{RL}behaviour.trained"),
    "persim": (f"{RL}models.persim",),
    "cloned": (f"{RL}policies.cloned",),
    "cadm": (f"{RL}models.cadm",),
    "e-pets": (f"{RL}models.epets",),
    "bcq": (f"{RL}policies.bcq",),
    "bcq-continuous": (f"{RL}policies.bcq_continuous",),
    "cql": (f"{RL}policies.cql", f"{RL}policies.cql_continuous"),
    "morel": (f"{RL}policies.morel", f"{RL}models.mlp_ensemble"),
    "flown": (f"{RL}synthetic", f"{RL}imagined"),
    "unseen": (f"{RL}unseen", f"{RL}row_polynomials"),
    "planned": (f"{RL}policies.mpc", f"{RL}plan", f"{RL}score", f"{RL}models.true_env", f"{RL}models.particles"),
    "tested": (f"{RL}evaluate",),
}
LEARNERS = {"persim": "persim", "pooled": "persim", "cloned": "cloned", "vanilla-cadm": "cadm", "pe-ts-cadm": "cadm",
            "e-pets": "e-pets", **{name: name.removeprefix("persim-").rpartition("-")[0] for name, method in
                                   cases.METHODS.items() if method.baseline and not method.plans},
            **{name: "persim" for name, method in cases.METHODS.items() if method.unseen}}
SILENT = {"lowrank_rl.check", "lowrank_rl.files", "lowrank_rl.threads"}     # no result depends on them


def trained(cell: Cell) -> dict[str, int]:
    """Versions behind the file of its training, those that were ever raised: older files keep their names."""
    return _raised(_training(cell))


def recorded(cell: Cell) -> dict[str, int]:
    """Versions behind its record, those that were ever raised."""
    method = cases.METHODS[cell.method]
    planned = ["planned"] if method.plans or method.flown else []
    guided = ["cloned"] if method.learns and method.plans and (cell.settings, cell.environment) in cases.CLONING else []
    rows = ["unseen"] if method.unseen else []
    return _raised([*(_training(cell) if method.learns else []), *rows, *planned, *guided, "tested"])


def _training(cell: Cell) -> list[str]:
    found = ["data", _learner(cell)]
    if cases.METHODS[cell.method].flown:      # by guided plans in simulators
        found += ["persim", "planned", "flown"]
        found += ["cloned"] if (cell.settings, cell.environment) in cases.CLONING else []
    return found


def _learner(cell: Cell) -> str:
    """The stage that it is trained by; a learner's form for continuous actions may be one of its own."""
    name = LEARNERS[cell.method]
    continuous = not isinstance(cases.ENVIRONMENTS[cell.environment].actions, Discrete)
    return f"{name}-continuous" if continuous and f"{name}-continuous" in VERSIONS else name


def _raised(stages: Iterable[str]) -> dict[str, int]:
    return {stage: VERSIONS[stage] for stage in sorted(set(stages)) if VERSIONS[stage] > 1}


def source(stage: str) -> str:
    """Changes with the code of a stage, not with its comments and docstrings."""
    seen: set[str] = set()
    todo = list(ROOTS[stage])
    while todo:
        name = todo.pop()
        if name not in seen and name not in SILENT:
            seen.add(name)
            todo += _imports(name)
    digest = hashlib.blake2b(digest_size=8)
    for name in sorted(seen):
        digest.update(f"{name} {_code(name)}".encode())
    return digest.hexdigest()


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(Path(find_spec(name).origin).read_text())


def _imports(name: str) -> list[str]:
    """The modules of this package that a module imports, at its top or within; a package's names as the files they live in."""
    found = []
    for node in ast.walk(_tree(name)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            homes = vars(import_module(node.module)).get("_HOME", {}) if node.module.startswith("lowrank_rl") else {}
            inner = [f"{node.module}.{homes.get(alias.name, alias.name)}" for alias in node.names]
            modules = [one for one in inner if one.startswith("lowrank_rl") and _is_module(one)]
            found += modules if len(modules) == len(inner) else [node.module, *modules]
    return [one for one in found if one.startswith("lowrank_rl")]


@cache
def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:     # a name within a module
        return False


@cache
def _code(name: str) -> str:
    """The syntax tree as text, without docstrings; comments and layout are not in it."""
    tree = _tree(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def now() -> dict[str, object]:
    """Version and source of every stage, as this Python reads it."""
    stages = {stage: [version, source(stage)] for stage, version in VERSIONS.items()}
    return {"python": platform.python_version().rpartition(".")[0], **stages}


if __name__ == "__main__":
    print(json.dumps(now(), indent=1))
