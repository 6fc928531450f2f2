"""Run tasks that need one another on a Ray cluster: ``pool.run`` for many machines.

Tasks exchange files through the output folders, so every machine must see these and have this version installed; that is
looked at before anything runs, and again when a machine joins. A task whose machine dies is run again elsewhere, and nothing
else is. The calling process alone writes records.
"""

import hashlib
import secrets
import socket
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

import lowrank_rl
from lowrank_rl import check
from lowrank_rl.rl.bench import run as cell_run
from lowrank_rl.rl.bench.pool import Course, Task, Watcher, attempt
from lowrank_rl.rl.bench.store import packages
from lowrank_rl.tensor.solvers.engine_ray import import_ray, join

PATIENCE = 180.0     # seconds that a machine may take to answer at first, and that we wait for one with room for a task
EVERY = 0.5          # seconds between words of one task, and between our questions for them
SIGHT = 15.0         # seconds until a new file must be seen by every machine; network file systems take some


def run(tasks: Sequence[Task], watcher: Watcher, folders: Sequence[Path], *, address: str = "auto", jobs: int | None = None,
        device: str = "cpu", gpus: float = 0.0, retries: int = 0) -> None:
    """Run all tasks, each after those it needs, as many at once as the cluster takes, at most ``jobs``.

    folders: where tasks leave what others need, absolute. address: "auto" is the cluster that this machine is in, "local" one
    that is started here and ends with the run, of ``jobs`` processes. gpus: the share of a GPU for tasks that compute on one.
    retries: as ``pool.run``; a lost machine does not count.

    Raises:
        ValueError: no Ray, no cluster, a machine that lacks the package or a folder, or none with a GPU.
    """
    ray = import_ray("--executor ray")
    course = Course(tasks, watcher, retries)
    joined = not ray.is_initialized()
    if joined:
        join(ray, None if address == "local" else address, jobs or 1, otherwise="take --ray-address local")
    try:
        _Cluster(ray, course, folders, None if address == "local" else jobs, device, gpus).run()
    finally:
        if joined:
            ray.shutdown()


class _Cluster:
    """What flies where."""

    def __init__(self, ray: Any, course: Course, folders: Sequence[Path], jobs: int | None, device: str, gpus: float) -> None:
        self.ray, self.course, self.folders, self.jobs, self.device, self.gpus = ray, course, folders, jobs, device, gpus
        self.flying: dict[Any, Task] = {}     # by the reference of its result
        self.checked: set[str] = set()        # machines
        self.room = 0                         # for so many tasks
        self.heard = self.looked = self.roomy = -2 * PATIENCE     # when we last did, and when there last was room
        self.words = self._remote(_Words, num_cpus=0).options(scheduling_strategy=self._on(
            ray.get_runtime_context().get_node_id(), soft=True)).remote()
        self.work = self._remote(_work, num_cpus=1, max_retries=0)

    def run(self) -> None:
        try:
            while True:
                self._look_around()
                while len(self.flying) < min(self.room, self.jobs or self.room) and (task := self.course.take()):
                    self.flying[self._fly(task)] = task
                self.course.tell()
                if not self.flying and not self.course.ready:
                    return
                self._land()
        finally:
            for reference in self.flying:     # Ctrl-C, or a full disk
                self.ray.cancel(reference, force=True)

    def _fly(self, task: Task) -> Any:
        share = self.gpus if task.gpu else 0.0
        return self.work.options(num_gpus=share, name=task.name).remote(task.name, task.function, task.args, self.words)

    def _land(self) -> None:
        """Wait a while for tasks to end, and pass on what they say."""
        flying = list(self.flying)
        if not flying:     # no machine has room
            time.sleep(1.0)
            return
        ended, _ = self.ray.wait(flying, timeout=EVERY)
        if ended:
            ended, _ = self.ray.wait(flying, num_returns=len(flying), timeout=0)
        if time.monotonic() - self.heard > EVERY:
            self.heard = time.monotonic()
            self._hear()
        for reference in ended:
            self.course.settle(self.flying.pop(reference), *self._ending(reference))

    def _ending(self, reference: Any) -> tuple[str, Any]:
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:     # it could not even begin
            return "failed", str(error)
        except (errors.NodeDiedError, errors.ObjectLostError):
            return "lost", "its machine died"
        except errors.RayError as error:
            return "died", f"its process died ({_line(error)})"

    def _hear(self) -> None:
        running = {task.name: task for task in self.flying.values()}
        try:
            said = self.ray.get(self.words.hear.remote(), timeout=EVERY)
        except (self.ray.exceptions.RayError, TimeoutError):     # words are no results; we can do without
            return
        for name, (words, share) in said.items():
            if name in running:
                self.course.said(running[name], words, share)

    def _look_around(self) -> None:
        """How much room there is now; machines that have joined are checked."""
        now = time.monotonic()
        if now - self.looked < EVERY:
            return
        self.looked = now
        alive = [node for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
        self._check([node for node in alive if node["NodeID"] not in self.checked])
        slots = sum(int(node["Resources"]["CPU"]) for node in alive)
        self.room = slots + max(2, slots // 8)     # some wait in line, so that nobody waits for us
        if alive and (not self.gpus or any(node["Resources"].get("GPU", 0) >= self.gpus for node in alive)):
            self.roomy = now
        elif now - self.roomy > PATIENCE:
            wanted = f"a CPU and {self.gpus:g} GPU" if self.gpus else "a CPU"
            raise ValueError(f"cluster: expected a machine with {wanted}, got none; start one, and the same command goes on")

    def _check(self, nodes: list[dict]) -> None:
        """Refuse machines that could not work for us.

        Raises:
            ValueError: which, and what it lacks.
        """
        if not nodes:
            return
        token = secrets.token_hex(8)
        marks = [folder / f".seen-{token}" for folder in self.folders]
        try:
            for mark in marks:
                mark.write_text(token)
            asked = []
            for node in nodes:
                gpus = self.gpus if node["Resources"].get("GPU", 0) >= self.gpus else 0.0
                look = self._remote(_look, num_cpus=0, num_gpus=gpus, max_retries=0)
                asked.append(look.options(scheduling_strategy=self._on(node["NodeID"], soft=False)).remote(
                    marks, token, self.device if gpus or self.device == "cpu" else "cpu", SIGHT))
            for node, reference in zip(nodes, asked, strict=True):
                self._believe(node, marks, reference)
        finally:
            for mark in marks:
                for one in mark.parent.glob(f"{mark.name}*"):
                    one.unlink(missing_ok=True)

    def _believe(self, node: dict, marks: list[Path], reference: Any) -> None:
        where, errors = f"machine {node['NodeManagerHostname']} ({node['NodeManagerAddress']})", self.ray.exceptions
        try:
            answer = self.ray.get(reference, timeout=PATIENCE)
        except errors.GetTimeoutError as error:
            raise ValueError(f"{where}: expected an answer within {PATIENCE:g} seconds, got none; free or remove it") from error
        except (errors.RayTaskError, errors.RuntimeEnvSetupError) as error:
            raise ValueError(f"{where}: expected lowrank_rl {lowrank_rl.__version__} and what it needs, got '{_line(error)}'; "
                             "install them on every machine") from error
        except errors.RayError as error:
            alive = {other["NodeID"] for other in self.ray.nodes() if other["Alive"]}
            if node["NodeID"] in alive:
                raise ValueError(f"{where}: expected an answer, got '{_line(error)}'; repair or remove it") from error
            return      # gone again
        if answer["trouble"]:
            raise ValueError(f"{where}: {answer['trouble']}")
        mine = {"source": source(), **_packages()}
        odd = [f"{name} {answer['packages'].get(name)} instead of {value}" for name, value in mine.items()
               if answer["packages"].get(name) != value]
        if odd:
            raise ValueError(f"{where}: expected the same packages as here, got {', '.join(odd)}; a table never mixes "
                             "versions, so install the same on every machine")
        for mark in marks:
            if not (answer["seen"] and _seen(mark.with_name(f"{mark.name}-{answer['who']}"), answer["who"], SIGHT)):
                raise ValueError(f"{where}: expected the folder {mark.parent} to be the same as here, got another or none; "
                                 "name an --out on a file system that all machines share, or run a --shard on each")
        self.checked.add(node["NodeID"])

    def _remote(self, what: Any, **options: Any) -> Any:
        return self.ray.remote(**options)(what)

    def _on(self, node: str, soft: bool) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # optional, as ray is
        return NodeAffinitySchedulingStrategy(node, soft=soft)


class _Words:
    """An actor beside the caller: what tasks said last, until it is fetched."""

    def __init__(self) -> None:
        self.said: dict[str, tuple[str, float]] = {}

    def tell(self, name: str, words: str, share: float) -> None:
        self.said[name] = words, share

    def hear(self) -> dict[str, tuple[str, float]]:
        said, self.said = self.said, {}
        return said


def _work(name: str, function: Callable[..., Any], args: tuple, words: Any) -> tuple[str, Any]:
    """A task, on some machine, where Ray has told other libraries to keep to one thread (OMP_NUM_THREADS)."""
    torch.set_num_threads(1)
    spoke = 0.0

    def say(said: str, share: float) -> None:
        nonlocal spoke
        if time.monotonic() - spoke > EVERY:
            spoke = time.monotonic()
            words.tell.remote(name, said, share)
    say(f"on {socket.gethostname()}", 0.0)
    spoke = 0.0
    return attempt(function, args, say)


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
    until = time.monotonic() + (patience if path.parent.is_dir() else 0.0)
    while True:
        try:
            if path.read_text() == text:
                return True
        except OSError:
            pass
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)


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


def _line(error: Exception) -> str:
    """What Ray says last is the cause."""
    return str(error).strip().splitlines()[-1].strip().rstrip(".")
