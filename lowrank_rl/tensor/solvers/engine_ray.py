"""An engine for ALS over Ray: each worker holds a share of the entries and sends the normal equations of its rows.

The entries are dealt out once; then only factors and normal equations travel. They are added up in the order of the workers,
so that the same shares give the same bits. A worker that dies, with its node or alone, is made again from its share, which is
kept in Ray's object store or read from its parquet files again, and asked again.
"""

import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.solvers import kernels
from lowrank_rl.tensor.solvers.layout import sort_by_mode
from lowrank_rl.tensor.solvers.problem import Factors, Problem
from lowrank_rl.tensor.stream import Stream

BLOCK_BYTES = 1 << 28   # of normal equations that a worker sends at once
ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
DEATHS = 5              # of one worker in one call before we give up

Rows = tuple[slice | np.ndarray, np.ndarray, np.ndarray]   # which rows, their gram and rhs


class RayEngine:
    """Shares the entries among ``workers`` processes of one thread each; ``close`` it, or use it in a ``with``.

    A Problem's entries are dealt out by the rows of its largest mode, of which then each is sent by one worker. A Stream's
    are dealt out as they come, so that a stream in the order of its largest mode costs less traffic. Parquet files must be
    where every node sees them. Together the workers must hold the entries K times, sorted.

    address: of a running Ray cluster, such as "auto" or "ray://host:10001"; None: the one this process has joined already,
    or else one on this machine, which ends with ``close``. The package must be installed on every node.

    Raises:
        ValueError: no Ray, no cluster at the address, or no room on it; also from a sum: a worker died again and again.
    """

    def __init__(self, problem: Problem | Stream, workers: int = 2, *, address: str | None = None,
                 patience: float = 300.0) -> None:
        """patience: seconds that a worker may take to start and to sort its share."""
        check.count("workers", workers)
        self._ray = ray = import_ray("RayEngine")
        self._patience = patience
        self._joined = not ray.is_initialized()
        if self._joined:
            join(ray, address, workers, otherwise="leave the address out")
        self._actors: list[Any] = []
        self._started: set[int] = set()   # those that have answered once
        try:
            shares = problem.shards(workers) if isinstance(problem, Stream) else _shares(problem, workers)
            # the object store keeps the entries; a stream of parquet files is only their names
            self._shares = [ray.put(share) for share in shares]
            self._worker = ray.remote(_Worker)
            self._actors = [self._start(n) for n in range(len(self._shares))]
            self.square = sum(self._all("square"))
        except BaseException:
            self.close()
            raise

    def normal(self, factors: Factors, k: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        size, rank = factors[k].shape
        P = kernels.packed_size(rank)
        block = max(1, min(size, BLOCK_BYTES // (8 * (P + rank))))
        others = self._put(tuple(f[:0] if m == k else f for m, f in enumerate(factors)))
        for first in range(0, size, block):
            last = min(first + block, size)
            gram, rhs = np.zeros((last - first, P)), np.zeros((last - first, rank))
            for rows, G, h in self._all("normal", others, k, first, last):
                gram[rows] += G
                rhs[rows] += h
            yield slice(first, last), gram, rhs

    def squared_error(self, factors: Factors) -> float:
        return sum(self._all("squared_error", self._put(factors)))

    def close(self) -> None:
        """End the workers, and the cluster if it was started or joined here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors, self._shares = [], []
        if self._joined and self._ray.is_initialized():
            self._ray.shutdown()

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _put(self, factors: Factors) -> Any:
        if not self._actors:   # Ray would start a cluster of its own accord
            raise ValueError("RayEngine: expected an open engine, got a closed one; make another")
        return self._ray.put(factors)

    def _start(self, n: int) -> Any:
        """A worker for share n; workers go to the nodes in turn, so that one node's death does not take all."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = sorted(node["NodeID"] for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
        place = NodeAffinitySchedulingStrategy(nodes[n % len(nodes)], soft=True) if nodes else "DEFAULT"
        return self._worker.options(max_restarts=0, scheduling_strategy=place,
                                    runtime_env={"env_vars": dict.fromkeys(ONE_THREAD, "1")}).remote(self._shares[n])

    def _all(self, method: str, *arguments: Any) -> Iterator[Any]:
        """What the workers answer, in their order, all asked at once."""
        pending = [self._ask(n, method, arguments) for n in range(len(self._actors))]
        for n, answer in enumerate(pending):
            yield self._answer(n, answer, method, arguments)

    def _ask(self, n: int, method: str, arguments: tuple) -> Any:
        return getattr(self._actors[n], method).remote(*arguments)

    def _answer(self, n: int, pending: Any, method: str, arguments: tuple) -> Any:
        errors, last = self._ray.exceptions, None
        for _ in range(DEATHS):
            try:
                self._wait(n)
                return self._ray.get(pending)
            except (errors.RayActorError, errors.ObjectLostError) as error:   # it died before, or after it had answered
                last = error
            self._ray.kill(self._actors[n])   # if only its answer is lost
            self._started.discard(n)
            self._actors[n] = self._start(n)
            pending = self._ask(n, method, arguments)
        raise ValueError(f"workers: expected ones that live, but number {n} died {DEATHS} times in a row "
                         f"('{_line(last)}'); with more workers each holds less") from last

    def _wait(self, n: int) -> None:
        """Until it has started, which on a full cluster is never."""
        if n in self._started:
            return
        try:
            self._ray.get(self._actors[n].square.remote(), timeout=self._patience)
        except self._ray.exceptions.GetTimeoutError as error:
            raise ValueError(f"workers: expected number {n} to start within {self._patience:g} seconds, but it did not; ask "
                             "for fewer, free the cluster, or be more patient") from error
        self._started.add(n)


class _Worker:
    """One share of the entries, sorted by each mode."""

    def __init__(self, share: Problem | Stream) -> None:
        if isinstance(share, Stream):
            index, value, weight = zip(*share.chunks(), strict=True)
            chunk = np.concatenate(index, axis=1), np.concatenate(value), np.concatenate(weight) if share.weighted else None
        else:   # copies, as Ray's arrays are read-only, for which the kernels would be compiled again
            chunk = share.index.copy(), share.value.copy(), None if share.weight is None else share.weight.copy()
        self._layouts = [sort_by_mode(*chunk, share.shape, k) for k in range(len(share.shape))]
        _, value, weight = chunk
        self._square = float(value @ value if weight is None else (weight * value) @ value)

    def square(self) -> float:
        return self._square

    def normal(self, factors: Factors, k: int, first: int, last: int) -> Rows:
        """Of the rows in first:last that have entries here; their numbers count from ``first``."""
        layout, rank = self._layouts[k], factors[0].shape[1]
        rows = np.flatnonzero(np.diff(layout.start[first:last + 1]))
        begin, end = (rows[0], rows[-1] + 1) if len(rows) else (0, 0)
        gram, rhs = np.zeros((end - begin, kernels.packed_size(rank))), np.zeros((end - begin, rank))
        kernels.OtherRows(layout, factors).add_normal(first + begin, gram, rhs)
        if len(rows) == end - begin:
            return slice(begin, end), gram, rhs
        return rows, gram[rows - begin], rhs[rows - begin]

    def squared_error(self, factors: Factors) -> float:
        k = max(range(len(factors)), key=lambda m: len(factors[m]))
        return kernels.OtherRows(self._layouts[k], factors).squared_error(factors[k].copy())


def _shares(problem: Problem, workers: int) -> Iterator[Problem]:
    """Equally many entries each, by the rows of the largest mode."""
    order = np.argsort(problem.index[int(np.argmax(problem.shape))], kind="stable")
    for some in np.array_split(order, min(workers, len(order))):
        yield replace(problem, index=problem.index.take(some, axis=1), value=problem.value[some],
                      weight=None if problem.weight is None else problem.weight[some])


def import_ray(who: str) -> Any:
    """The package. Raises ValueError, in the name of who needs it, where there is none."""
    try:
        import ray  # here, because it is optional and takes its time
    except ImportError as error:
        raise ValueError(f"{who}: expected the package ray, got none; install it with pip install 'lowrank_rl[ray]'"
                         ) from error
    return ray


def join(ray: Any, address: str | None, workers: int, otherwise: str) -> None:
    """Start a cluster on this machine, or join one, without its logs, dashboard and reports to its makers.

    Raises:
        ValueError: no cluster at the address; ``otherwise`` says what else to do.
    """
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        mine = {"RAY_USAGE_STATS_ENABLED": "0"} if "RAY_USAGE_STATS_ENABLED" not in os.environ else {}
        os.environ.update(mine)
        try:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        finally:
            for name in mine:
                del os.environ[name]
        return
    try:
        host, colon, port = address.removeprefix("ray://").rpartition(":")
        if colon and port.isdecimal():   # Ray itself would try for two minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"address {address!r}: expected a Ray cluster that runs, got '{_line(error)}'; start it with "
                         f"ray start --head, or {otherwise}") from error


def _line(error: Exception) -> str:
    """What Ray says last is the cause."""
    return str(error).strip().splitlines()[-1].strip().rstrip(".")
