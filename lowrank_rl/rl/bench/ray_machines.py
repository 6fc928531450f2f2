"""Which machines of a Ray cluster may work for us: those that see our folders and have this very package.

All are looked at before anything runs, and what is wrong with one is said at once. A machine that joins later is asked while
the others work; if it is not fit, it is left out of the run with a warning.
"""

import hashlib
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import lowrank_rl
from lowrank_rl import check
from lowrank_rl.rl.bench import run as cell_run
from lowrank_rl.rl.bench.store import packages

PATIENCE = 180.0     # seconds that a machine may take to answer
SIGHT = 15.0         # seconds until a new file must be seen by every machine; network file systems take some


@dataclass(frozen=True)
class _Asked:
    """A machine that has not answered yet."""
    node: dict           # what Ray says of it
    marks: list[Path]    # files that it shall see
    answer: Any          # Ray's reference
    until: float         # when we stop waiting


class Machines:
    """The fit ones, as of the last look."""

    def __init__(self, ray: Any, folders: Sequence[Path], device: str, gpus: float) -> None:
        """folders: that all must see. device: of networks. gpus: the share of a GPU that some tasks take."""
        self.ray, self.folders, self.device, self.gpus = ray, folders, device, gpus
        self.alive: dict[str, dict] = {}     # the fit ones: what Ray says of each, by its name in Ray
        self._fit: set[str] = set()          # of all that were ever looked at
        self._unfit: set[str] = set()
        self._asked: dict[str, _Asked] = {}

    def look(self) -> None:
        """See who is there. Machines that are there from the beginning are waited for, those that join later are not.

        Raises:
            ValueError: a machine that was there from the beginning could not work for us: which, and what it lacks.
        """
        found = {node["NodeID"]: node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1}
        first = not self._fit | self._unfit
        for name in found.keys() - self._fit - self._unfit - self._asked.keys():
            self._asked[name] = self._ask(found[name])
        for name, answered in self._due(PATIENCE if first else 0.0):
            asked = self._asked[name]
            trouble = self._trouble(asked, answered)
            self._forget(self._asked.pop(name))
            where = f"machine {asked.node['NodeManagerHostname']} ({asked.node['NodeManagerAddress']})"
            if trouble and first:
                raise ValueError(f"{where}: {trouble}")
            if trouble:
                self._unfit.add(name)
                warnings.warn(f"{where} has joined and is left out of this run: {trouble}; Ray started there anew is looked at "
                              "again", stacklevel=2)
            elif trouble is not None:
                self._fit.add(name)
        self.alive = {name: node for name, node in found.items() if name in self._fit}

    def close(self) -> None:
        """Leave no marks behind."""
        while self._asked:
            self._forget(self._asked.popitem()[1])

    def _ask(self, node: dict) -> _Asked:
        token = secrets.token_hex(8)
        marks = [folder / f".seen-{token}" for folder in self.folders]
        gpus = self.gpus if node["Resources"].get("GPU", 0) >= self.gpus else 0.0
        look = self._remote(_look, num_cpus=0, num_gpus=gpus, max_retries=0)
        for mark in marks:
            mark.write_text(token)
        answer = look.options(scheduling_strategy=on(node["NodeID"], soft=False)).remote(
            marks, token, self.device if gpus or self.device == "cpu" else "cpu", SIGHT)
        return _Asked(node, marks, answer, monotonic() + PATIENCE)

    def _due(self, patience: float) -> list[tuple[str, bool]]:
        """Who has answered by now, or never will: names, and whether they did."""
        if not self._asked:
            return []
        answers = [asked.answer for asked in self._asked.values()]
        ready = set(self.ray.wait(answers, num_returns=len(answers), timeout=patience)[0])
        now = monotonic()
        return [(name, asked.answer in ready) for name, asked in self._asked.items()
                if asked.answer in ready or now >= asked.until]

    def _forget(self, asked: _Asked) -> None:
        for mark in asked.marks:
            for one in mark.parent.glob(f"{mark.name}*"):
                one.unlink(missing_ok=True)

    def _trouble(self, asked: _Asked, answered: bool) -> str | None:
        """What keeps it from working for us: nothing, one sentence, or None for one that is gone again."""
        if not answered:
            return f"expected an answer within {PATIENCE:g} seconds, got none; free or remove it"
        errors = self.ray.exceptions
        try:
            answer = self.ray.get(asked.answer, timeout=PATIENCE)
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            return (f"expected lowrank_rl {lowrank_rl.__version__} and what it needs, got '{line(error)}'; install them on "
                    "every machine")
        except errors.RayError as error:
            alive = {other["NodeID"] for other in self.ray.nodes() if other["Alive"]}
            return f"expected an answer, got '{line(error)}'; repair or remove it" if asked.node["NodeID"] in alive else None
        if answer["trouble"]:
            return answer["trouble"]
        mine = {"source": source(), **_packages()}
        odd = [f"{name} {answer['packages'].get(name)} instead of {value}" for name, value in mine.items()
               if answer["packages"].get(name) != value]
        if odd:
            return (f"expected the same packages as here, got {', '.join(odd)}; a table never mixes versions, so install the "
                    "same on every machine")
        for mark in asked.marks:
            if not (answer["seen"] and _seen(mark.with_name(f"{mark.name}-{answer['who']}"), answer["who"], SIGHT)):
                return (f"expected the folder {mark.parent} to be the same as here, got another or none; name an --out on a "
                        "file system that all machines share, or run a --shard on each")
        return ""

    def _remote(self, what: Any, **options: Any) -> Any:
        return self.ray.remote(**options)(what)


def on(node: str, soft: bool) -> Any:
    """Where Ray shall put something; soft: somewhere else if need be."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # optional, as ray is
    return NodeAffinitySchedulingStrategy(node, soft=soft)


def line(error: Exception) -> str:
    """What Ray says last is the cause."""
    return str(error).strip().splitlines()[-1].strip().rstrip(".")


def _look(marks: list[Path], token: str, device: str, patience: float) -> dict:
    """What this machine has: packages, our folders, the device."""
    who, trouble = secrets.token_hex(8), ""
    try:
        check.device(device)
    except ValueError as error:
        trouble = str(error)
    seen = all(_seen(mark, token, patience) for mark in marks)
    if seen:
        for mark in marks:
            try:
                mark.with_name(f"{mark.name}-{who}").write_text(who)
            except OSError as error:
                trouble = f"folder {mark.parent}: expected one that can be written, got '{error.strerror}'"
    return {"packages": {"source": source(), **_packages()}, "seen": seen, "who": who, "trouble": trouble}


def _seen(path: Path, text: str, patience: float) -> bool:
    until = monotonic() + (patience if path.parent.is_dir() else 0.0)
    while True:
        try:
            if path.read_text() == text:
                return True
        except OSError:
            pass
        if monotonic() >= until:
            return False
        sleep(0.2)


@cache
def source() -> str:
    """Changes with any line of this package's code."""
    root = Path(lowrank_rl.__file__).parent
    digest = hashlib.blake2b(digest_size=4)
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def _packages() -> dict[str, str]:
    return dict(packages(tuple(cell_run.versions().items())))
