"""An engine for ALS over entries that do not fit in memory: ``Sorted`` reads them from files of its own.

800,000 entries, 200^3, R = 5, a sweep of ALS on one core: InMemory 7 ms, Sorted 8 ms. To decode and sort each chunk anew in
each pass took 26 ms from a memory map and 49 ms from parquet; the files take the time of 10 to 25 sweeps to make.
"""

import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.solvers.als import InMemory
from lowrank_rl.tensor.solvers.layout import Layout, sort_by_mode
from lowrank_rl.tensor.solvers.problem import Factors, Problem
from lowrank_rl.tensor.stream import Chunk, Stream

BINS = 4   # chunks of entries sorted at once


class Sorted:
    """The stream sorted by each mode, once, into files that are then read through memory maps.

    Memory: some chunks of entries and a block of normal equations. What the maps keep in memory beyond that is the system's
    cache, which it takes back when asked. Disk: ``bytes_on_disk``, K times 12 bytes an entry for three modes without weights,
    and while sorting 4 more for each mode. The files have no names once they are written, where the system allows that: their
    space is free again when the engine goes or the process ends, however it ends.

    Raises:
        ValueError: the folder cannot be written, or its disk is too small.
    """

    def __init__(self, stream: Stream, folder: str | Path | None = None) -> None:
        """folder: where the files go; None: where the system keeps temporary ones."""
        parent = check.writable_folder(Path(tempfile.gettempdir() if folder is None else folder))
        shape, (empty_index, empty_value, empty_weight) = stream.shape, _no_entries(stream)
        words = [sort_by_mode(empty_index, empty_value, empty_weight, shape, k).record.shape[1] for k in range(len(shape))]
        self.bytes_on_disk = 4 * sum(words) * len(stream)
        need, free = self.bytes_on_disk + 4 * len(shape) * len(stream), shutil.disk_usage(parent).free
        if need > free:
            raise ValueError(f"folder {parent}: expected {need:,} bytes of free disk, got {free:,}; name another")
        temporary = Path(tempfile.mkdtemp(prefix="lowrank-sorted-", dir=parent))
        weakref.finalize(self, shutil.rmtree, temporary, ignore_errors=True)
        try:
            self.square, layouts = _sort(stream, temporary)
        except OSError as error:
            raise ValueError(f"folder {parent}: expected one that can be written, got '{error}'; name another") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)   # the open maps stay
        unasked = (0.0,) * len(shape), (False,) * len(shape), (False,) * len(shape)
        self._engine = InMemory(Problem(empty_index, empty_value, None, shape, 1, *unasked), layouts)

    def normal(self, factors: Factors, k: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        return self._engine.normal(factors, k)

    def squared_error(self, factors: Factors) -> float:
        return self._engine.squared_error(factors)


def _square(chunks: Iterable[Chunk]) -> float:
    return sum(float(value @ value if weight is None else (weight * value) @ value) for _, value, weight in chunks)


def _no_entries(stream: Stream) -> Chunk:
    return np.empty((len(stream.shape), 0), np.int32), np.empty(0), np.empty(0) if stream.weighted else None


class _Bins:
    """One mode's records in a file, in ranges of rows that are sorted by themselves; a stable sort in all."""

    def __init__(self, stream: Stream, k: int, start: np.ndarray, folder: Path) -> None:
        self._k, self._start, self._shape = k, start, stream.shape
        most = BINS * stream.chunk
        edges = [0]
        while edges[-1] < len(start) - 1:   # as many rows as have at most ``most`` entries, but at least one
            edges.append(max(edges[-1] + 1, int(np.searchsorted(start, start[edges[-1]] + most, side="right")) - 1))
        self._edges = np.array(edges)
        self._place = start[self._edges[:-1]].copy()   # where the next entries of a range go
        self._path, self._rows_path = folder / f"records-{k}", folder / f"rows-{k}"
        self._records, self._rows = open(self._path, "w+b"), open(self._rows_path, "w+b")   # noqa: SIM115

    def add(self, chunk: Chunk) -> None:
        layout = sort_by_mode(*chunk, self._shape, self._k)
        rows = np.repeat(np.arange(len(layout.start) - 1, dtype=np.int32), np.diff(layout.start))
        cuts = layout.start[self._edges]
        for n in np.flatnonzero(np.diff(cuts)):
            some = slice(cuts[n], cuts[n + 1])
            _write(self._records, layout.record[some], self._place[n])
            _write(self._rows, rows[some], self._place[n])
            self._place[n] += cuts[n + 1] - cuts[n]

    def layout(self, others: Layout) -> Layout:
        """Sort each range and map the file. others: a layout of the same mode without entries"""
        words = others.record.shape[1]
        for a, b in pairwise(self._edges):
            first, last = self._start[a], self._start[b]
            if b - a > 1 and last > first:
                rows = _read(self._rows, (last - first,), np.int32, first)
                record = _read(self._records, (last - first, words), np.uint32, first)
                _write(self._records, record[np.argsort(rows, kind="stable")], first)
        self.close()
        self._rows_path.unlink()
        # "c", so that the array counts as writable and the kernels compiled for arrays serve it; nothing writes
        record = np.asarray(np.memmap(self._path, np.uint32, "c", shape=(int(self._start[-1]), words)))
        return replace(others, start=self._start, record=record)

    def close(self) -> None:
        self._records.close()
        self._rows.close()


def _sort(stream: Stream, folder: Path) -> tuple[float, list[Layout]]:
    """square, and the layouts with records on disk: a pass that counts, a pass that deals out, and a sort of each range."""
    square, starts = 0.0, [np.zeros(n + 1, np.int64) for n in stream.shape]
    for chunk in stream.chunks():
        square += _square([chunk])
        for start, rows in zip(starts, chunk[0], strict=True):
            start[1:] += np.bincount(rows, minlength=len(start) - 1)
    bins = [_Bins(stream, k, np.cumsum(start), folder) for k, start in enumerate(starts)]
    try:
        for chunk in stream.chunks():
            for mode in bins:
                mode.add(chunk)
        return square, [mode.layout(sort_by_mode(*_no_entries(stream), stream.shape, k)) for k, mode in enumerate(bins)]
    finally:
        for mode in bins:
            mode.close()


def _write(file: BinaryIO, array: np.ndarray, first: int) -> None:
    """array: the rows from number ``first`` on, all of one size"""
    file.seek(int(first) * (array.nbytes // len(array)))
    file.write(np.ascontiguousarray(array).data)


def _read(file: BinaryIO, shape: tuple[int, ...], dtype: type, first: int) -> np.ndarray:
    array = np.empty(shape, dtype)
    file.seek(int(first) * (array.nbytes // len(array)))
    file.readinto(array.data)
    return array
