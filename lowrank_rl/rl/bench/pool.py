"""Run tasks that need one another on worker processes, one torch thread each.

A worker that raises or dies fails its task and those that need it; the others go on. What raises a ValueError was given bad
input, which would be as bad a second time; whatever else fails may be tried again.
"""

import heapq
import multiprocessing
import os
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

LOSSES = 5     # machines that may die under one task before it is given up


@dataclass(frozen=True)
class Task:
    name: str                                # unique
    function: Callable[..., Any]             # called as function(*args, say); importable, so that it can be sent
    args: tuple
    needs: frozenset[str] = frozenset()      # names of tasks that must be done before
    gpu: bool = False                        # whether it computes on a GPU, if the run has some


class Watcher(Protocol):
    """Told what happens, in the calling process."""

    def started(self, task: Task) -> None: ...
    def said(self, task: Task, words: str, share: float) -> None: ...
    def retried(self, task: Task, message: str) -> None: ...     # it failed and will be started again; only with retries
    def done(self, task: Task, result: Any) -> None: ...
    def failed(self, task: Task, message: str) -> None: ...


class Course:
    """What is ready to run, and what follows from how tasks end; whoever runs them asks here.

    The watcher is told at ``tell``, so that workers need not wait for it.
    """

    def __init__(self, tasks: Sequence[Task], watcher: Watcher, retries: int) -> None:
        self.watcher, self.retries = watcher, retries
        self.missing: dict[str, int] = {}              # of each task that has not begun, how many needs are not done
        self.after: dict[str, list[Task]] = {}         # who needs it
        self.place = count()
        self.ready: list[tuple[int, Task]] = []        # a heap, in the order given; what is tried again comes last
        self.tries, self.losses = Counter[str](), Counter[str]()
        self.news: list[Callable[[], None]] = []
        self.places = {}
        for task in tasks:
            if task.name in self.after or not task.needs <= self.after.keys():
                raise ValueError("tasks: expected different names, each after what it needs, got "
                                 f"{task.name!r} twice or too early")
            self.after[task.name], self.places[task.name] = [], next(self.place)
            for need in task.needs:
                self.after[need].append(task)
            self.missing[task.name] = len(task.needs)
            if not task.needs:
                self._queue(task)

    def take(self) -> Task | None:
        """The next task to run, or None if nothing is ready."""
        if not self.ready:
            return None
        _, task = heapq.heappop(self.ready)
        self.tries[task.name] += 1
        self.news.append(partial(self.watcher.started, task))
        return task

    def said(self, task: Task, words: str, share: float) -> None:
        self.news.append(partial(self.watcher.said, task, words, share))

    def settle(self, task: Task, kind: str, value: Any) -> None:
        """A task has ended: "done" with a result; "refused", "failed", "died" or "lost" (with its machine) with a message."""
        if kind == "done":
            self.news.append(partial(self.watcher.done, task, value))
            for other in self.after[task.name]:
                if other.name in self.missing:
                    self.missing[other.name] -= 1
                    if self.missing[other.name] == 0:
                        self._queue(other)
            return
        if kind == "lost":
            self.losses[task.name] += 1
            self.tries[task.name] -= 1
        if kind != "refused" and self.tries[task.name] <= self.retries and self.losses[task.name] <= LOSSES:
            self.places[task.name] = next(self.place)
            self._queue(task)
            self.news.append(partial(self.watcher.retried, task, value))
            return
        self._fail(task, value)

    def tell(self) -> None:
        news, self.news = self.news, []
        for item in news:
            item()

    def _queue(self, task: Task) -> None:
        self.missing.pop(task.name, None)
        heapq.heappush(self.ready, (self.places[task.name], task))

    def _fail(self, task: Task, message: str) -> None:
        """And whatever needs it, which can never run."""
        self.news.append(partial(self.watcher.failed, task, message))
        cause = f"{message.rstrip()}\nneeds {task.name}, which failed: {message.strip().splitlines()[-1]}"
        doomed = [*self.after[task.name]]
        for other in doomed:     # grows
            if self.missing.pop(other.name, None) is not None:
                self.news.append(partial(self.watcher.failed, other, cause))
                doomed += self.after[other.name]


def run(tasks: Sequence[Task], jobs: int, watcher: Watcher, retries: int = 0) -> None:
    """Run all tasks, at most ``jobs`` at once, each after those it needs. Ctrl-C ends the workers and is passed on.

    retries: how often a task that failed is tried again, behind those that are ready; not after a ValueError.
    """
    course = Course(tasks, watcher, retries)
    workers: list[_Worker] = []
    try:
        while True:
            for _ in range(jobs - sum(worker.task is not None for worker in workers)):
                task = course.take()
                if task is None:
                    break
                idle = next((worker for worker in workers if worker.task is None and worker.process.is_alive()), None)
                if idle is None:
                    idle = _Worker()
                    workers.append(idle)
                idle.give(task)
            course.tell()
            busy = {worker.connection: worker for worker in workers if worker.task}
            if not busy:
                return
            for connection in wait(busy):
                worker = busy[connection]
                task = worker.task
                kind, value = worker.hear()
                if kind == "said":
                    course.said(task, *value)
                    continue
                if kind == "died":
                    workers.remove(worker)
                course.settle(task, kind, value)
    finally:
        for worker in workers:
            worker.process.terminate()


def attempt(function: Callable[..., Any], args: tuple, say: Callable[[str, float], None]) -> tuple[str, Any]:
    """How a call ends: "done" and its result; "refused" or "failed" and its traceback, whose last line says why."""
    try:
        return "done", function(*args, say)
    except (EOFError, BrokenPipeError):     # nobody listens any more
        raise
    except ValueError as error:     # the bare sentence, as it stands for itself
        words = str(error).strip()
        frames = "".join(traceback.format_exception(error)[:-1])
        return "refused", frames + words if words else traceback.format_exc()
    except Exception:
        return "failed", traceback.format_exc()


@dataclass
class _Worker:
    """One process and what it is doing."""
    task: Task | None = None
    connection: Connection = field(init=False)
    process: Any = field(init=False)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        heard = signal.signal(signal.SIGINT, signal.SIG_IGN)     # inherited: the parent decides what Ctrl-C means
        try:
            self.process.start()
        finally:
            signal.signal(signal.SIGINT, heard)
        theirs.close()

    def give(self, task: Task) -> None:
        self.task = task
        with suppress(BrokenPipeError):     # it has just died; hear() will say so
            self.connection.send((task.function, task.args))

    def hear(self) -> tuple[str, Any]:
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):     # OSError: killed in the middle of a message
            self.process.join()
            kind, value = "died", f"its process died (exit code {self.process.exitcode}; -9 is a kill, often for memory)"
        if kind != "said":
            self.task = None
        return kind, value


def _work(connection: Connection) -> None:
    """A worker's life: take a task, do it, tell; leave quietly when the parent is gone."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)

    def say(words: str, share: float) -> None:     # a test reads the pipe from it
        connection.send(("said", (words, share)))
    try:
        while True:
            function, args = connection.recv()
            connection.send(attempt(function, args, say))
    except (EOFError, OSError):
        return


def _leave_with_parent() -> None:
    """A killed parent cannot end its workers; they must not go on beside those of the next run."""
    multiprocessing.parent_process().join()
    os._exit(1)
