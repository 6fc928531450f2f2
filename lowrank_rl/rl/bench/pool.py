"""Run tasks that need one another on worker processes, one torch thread each.

A worker that raises or dies fails its task and those that need it; the others go on.
"""

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Task:
    name: str                                # unique
    function: Callable[..., Any]             # called as function(*args, say); importable, so that it can be sent
    args: tuple
    needs: frozenset[str] = frozenset()      # names of tasks that must be done before


class Watcher(Protocol):
    """Told what happens, in the calling process."""

    def started(self, task: Task) -> None: ...
    def said(self, task: Task, words: str, share: float) -> None: ...
    def done(self, task: Task, result: Any) -> None: ...
    def failed(self, task: Task, message: str) -> None: ...


def run(tasks: Sequence[Task], jobs: int, watcher: Watcher) -> None:
    """Run all tasks, at most ``jobs`` at once, each after those it needs. Ctrl-C ends the workers and is passed on."""
    waiting: dict[str, Task] = {}
    for task in tasks:
        if task.name in waiting or not task.needs <= waiting.keys():
            raise ValueError(f"tasks: expected different names, each after what it needs, got {task.name!r} twice or too early")
        waiting[task.name] = task
    done: set[str] = set()
    failed: set[str] = set()
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.task for worker in workers):
            for task in list(waiting.values()):     # in order of need, so that one pass finds them all
                if task.needs & failed:
                    del waiting[task.name]
                    failed.add(task.name)
                    watcher.failed(task, f"needs {', '.join(sorted(task.needs & failed))}, which failed")
            ready = [task for task in waiting.values() if task.needs <= done]
            for task in ready[:jobs - sum(worker.task is not None for worker in workers)]:
                idle = next((worker for worker in workers if worker.task is None and worker.process.is_alive()), None)
                if idle is None:
                    idle = _Worker()
                    workers.append(idle)
                idle.give(waiting.pop(task.name))
                watcher.started(task)
            busy = [worker.connection for worker in workers if worker.task]
            for connection in wait(busy) if busy else ():     # waiting for nobody would last forever
                worker = next(w for w in workers if w.connection is connection)
                task = worker.task
                kind, value = worker.hear()
                if kind == "said":
                    watcher.said(task, *value)
                elif kind == "done":
                    done.add(task.name)
                    watcher.done(task, value)
                else:
                    failed.add(task.name)
                    watcher.failed(task, value)
                    if kind == "died":
                        workers.remove(worker)
    finally:
        for worker in workers:
            worker.process.terminate()


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
    try:
        while True:
            function, args = connection.recv()
            try:
                result = function(*args, lambda words, share: connection.send(("said", (words, share))))
            except (EOFError, BrokenPipeError):
                raise
            except ValueError as error:
                connection.send(("failed", str(error).strip() or traceback.format_exc()))
            except Exception:
                connection.send(("failed", traceback.format_exc()))
            else:
                connection.send(("done", result))
    except (EOFError, OSError):
        return


def _leave_with_parent() -> None:
    """A killed parent cannot end its workers; they must not go on beside those of the next run."""
    multiprocessing.parent_process().join()
    os._exit(1)
