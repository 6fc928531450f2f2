"""Run tasks that need one another on a Ray cluster: ``pool.run`` for many machines.

Tasks exchange files through the output folders, so they run on machines that are fit for it alone (ray_machines.py), and name
them: a cluster that grows on demand does not grow for us. A task whose machine dies is run again elsewhere, and nothing else
is. The calling process alone writes records.
"""

import socket
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lowrank_rl.rl.bench.pool import Course, Task, Watcher, attempt
from lowrank_rl.rl.bench.ray_machines import Machines, line, on
from lowrank_rl.tensor.solvers.engine_ray import import_ray, join

PATIENCE = 180.0     # seconds that we wait for a machine with room for a task
EVERY = 0.5          # seconds between words of one task, and between our questions for them


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
        self.ray, self.course, self.jobs, self.gpus = ray, course, jobs, gpus
        self.machines = Machines(ray, folders, device, gpus)
        self.flying: dict[Any, _Flight] = {}     # by the reference of its result
        self.room = 0                            # for so many tasks
        self.heard = self.looked = self.roomy = -2 * PATIENCE     # when we last did, and when there last was room
        self.words = ray.remote(num_cpus=0, max_restarts=-1)(_Words).options(scheduling_strategy=on(
            ray.get_runtime_context().get_node_id(), soft=True)).remote()
        self.work = ray.remote(num_cpus=1, max_retries=0)(_work)

    def run(self) -> None:
        try:
            while True:
                self._look_around()
                while len(self.flying) < min(self.room, self.jobs or self.room) and (task := self.course.take()):
                    self._fly(task)
                self.course.tell()
                if not self.flying and not self.course.ready:
                    return
                self._land()
        finally:
            for reference in self.flying:     # Ctrl-C, or a full disk
                self.ray.cancel(reference, force=True)
            self.machines.close()

    def _fly(self, task: Task) -> None:
        share = self.gpus if task.gpu else 0.0
        fit = frozenset(name for name, node in self.machines.alive.items() if node["Resources"].get("GPU", 0) >= share)
        chosen = self.work.options(num_gpus=share, name=task.name,
                                   label_selector={"ray.io/node-id": f"in({','.join(sorted(fit))})"})
        self.flying[chosen.remote(task.name, task.function, task.args, self.words)] = _Flight(task, fit)

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
            self.course.settle(self.flying.pop(reference).task, *self._ending(reference))

    def _ending(self, reference: Any) -> tuple[str, Any]:
        errors = self.ray.exceptions
        try:
            return self.ray.get(reference)
        except errors.RayTaskError as error:     # it could not even begin
            return "failed", str(error)
        except (errors.NodeDiedError, errors.ObjectLostError):
            return "lost", "its machine died"
        except errors.RayError as error:
            return "died", f"its process died ({line(error)})"

    def _hear(self) -> None:
        running = {flight.task.name: flight.task for flight in self.flying.values()}
        try:
            said = self.ray.get(self.words.hear.remote(), timeout=EVERY)
        except (self.ray.exceptions.RayError, TimeoutError):     # words are no results; we can do without
            return
        for name, (words, share) in said.items():
            if name in running:
                self.course.said(running[name], words, share)

    def _look_around(self) -> None:
        """How much room there is now."""
        now = time.monotonic()
        if now - self.looked < EVERY:
            return
        self.looked = now
        self.machines.look()
        alive = self.machines.alive
        self._recall(alive.keys())
        self.room = 0
        if any(node["Resources"].get("GPU", 0) >= self.gpus for node in alive.values()):
            slots = sum(int(node["Resources"]["CPU"]) for node in alive.values())
            self.room, self.roomy = slots + max(2, slots // 8), now     # some wait in line, so that nobody waits for us
        elif now - self.roomy > PATIENCE:
            wanted = f"a CPU and {self.gpus:g} GPU" if self.gpus else "a CPU"
            raise ValueError(f"cluster: expected a machine with {wanted} that is fit, got none; start one, and the same "
                             "command goes on")

    def _recall(self, alive: Set[str]) -> None:
        """Tasks in line for machines that are all gone begin again; Ray would keep them there."""
        for reference, flight in list(self.flying.items()):
            if not flight.machines & alive:
                del self.flying[reference]
                self.ray.cancel(reference, force=True)
                self.course.settle(flight.task, "lost", "its machine died")


@dataclass(frozen=True)
class _Flight:
    task: Task
    machines: frozenset[str]     # that it may land on


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
