"""Stream: observed entries that need not fit in memory, read in chunks from memory maps or parquet files.

``Observed`` for data larger than memory: rows of the modes are numbers already, and what is kept is a few numbers. Every
chunk is checked each time it is read, as a file may change between two passes.

Differs: entries listed twice can not be found in bounded memory. Each then counts as an entry of its own, as if its weight
were larger; drop repeats before, or a loss and a held-out score count them twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import integer
from lowrank_rl.tensor.observed import sizes

CHUNK = 1 << 19    # entries; some 40 MB while a chunk of three modes is read
NUMBERS = 1 << 18  # entry numbers hashed at once

Chunk = tuple[np.ndarray, np.ndarray, np.ndarray | None]   # index (K, b) int32, value (b,), weight (b,) or None


@dataclass(frozen=True)
class _Raw:
    """Entries as they are stored: one column for each mode, then the value, then the weight if there is one."""
    number: int                      # of the first entry
    columns: list[np.ndarray]
    place: Callable[[int, int], str]   # column, row -> what messages call it


class _Source(Protocol):
    weighted: bool
    modes: int

    def __len__(self) -> int: ...

    def read(self, first: int, last: int, chunk: int) -> Iterator[_Raw]:
        """Entries ``first:last``, at most ``chunk`` at a time."""

    def take(self, numbers: np.ndarray, chunk: int) -> Iterator[_Raw]:
        """The entries of these ascending numbers."""


@dataclass(frozen=True, eq=False)
class Stream:
    """Observed entries of a tensor, read anew in each pass; made by ``from_arrays`` or ``from_parquet``.

    It travels to another process as it is: file names for parquet, the entries for arrays.
    """
    shape: tuple[int, ...]     # (K,)
    weighted: bool
    chunk: int                 # most entries read at once
    _source: _Source
    _range: tuple[int, int]    # entry numbers
    _sides: tuple[_Side, ...]
    _count: int                # B
    unit: float = 1.0          # what the stored values are divided by

    @classmethod
    def from_arrays(cls, index: Any, value: Any, shape: Sequence[int] | None = None, weight: Any = None, *,
                    chunk: int = CHUNK) -> Stream:
        """Entries in NumPy arrays, memory maps as a rule: ``np.load(path, mmap_mode="r")``. index: (B, K), value: (B,)

        One pass checks them, and finds the shape where none is given: the largest number of each mode plus one.

        Raises:
            ValueError: coordinates that are not whole or outside ``shape``, NaN or Inf, weights that are not positive, no
                entry at all, or sizes that disagree.
        """
        named = {"index": index, "value": value} | ({} if weight is None else {"weight": weight})
        for name, array in named.items():
            if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
                raise ValueError(f"{name}: expected a NumPy array of numbers, got "
                                 f"{getattr(array, 'dtype', type(array).__name__)}; convert it")
        check.shapes(**{name: (array, "B K" if name == "index" else "B") for name, array in named.items()})
        return cls._checked(_Arrays(index, value, weight), shape, chunk)

    @classmethod
    def from_parquet(cls, path: str | Path | Sequence[str | Path], modes: Sequence[str], value: str,
                     shape: Sequence[int] | None = None, weight: str | None = None, *, chunk: int = CHUNK) -> Stream:
        """Entries in parquet files: one, a list of them, or all of a folder, by name. ``modes``: columns of row numbers.

        One pass checks them, and finds the shape where none is given: the largest number of each mode plus one.

        Raises:
            ValueError: as ``from_arrays``; also nulls, a column that is not there or of labels (number them first), a
                missing, corrupt or truncated file, no pyarrow.
        """
        names = [*modes, value] if weight is None else [*modes, value, weight]
        if isinstance(modes, str) or len(set(names)) < len(names):
            raise ValueError(f"modes: expected a list of columns, all different and neither value nor weight, got {modes!r}")
        source = _Parquet(_files(path), tuple(names), len(modes))
        return cls._checked(source, shape, chunk)

    @classmethod
    def _checked(cls, source: _Source, shape: Sequence[int] | None, chunk: int) -> Stream:
        check.count("chunk", chunk)
        if source.modes < 2:
            raise ValueError(f"index: expected at least two modes, got {source.modes}")
        if shape is not None:
            shape = sizes(shape)
            if len(shape) != source.modes:
                raise ValueError(f"shape: expected a size for each of {source.modes} modes, got {shape}")
        if len(source) == 0:
            raise ValueError("value: expected at least one observed entry, got none")
        bounds = (2**31 - 1,) * source.modes if shape is None else shape
        if max(bounds) >= 2**31:
            raise ValueError(f"shape: expected modes smaller than 2^31, got {shape}")
        top = np.zeros(source.modes, np.int64)
        for raw in source.read(0, len(source), chunk):
            index, _, _ = _entries(raw, bounds)
            top = np.maximum(top, index.max(1))
        shape = tuple(int(n) + 1 for n in top) if shape is None else shape
        return cls(shape, source.weighted, chunk, source, (0, len(source)), (), len(source))

    def __len__(self) -> int:
        """B, the number of entries."""
        return self._count

    def chunks(self) -> Iterator[Chunk]:
        """One pass: index (K, b) int32, value (b,) and weight (b,) or None, in order, never more than ``chunk`` at once."""
        for raw in self._source.read(*self._range, self.chunk):
            index, value, weight = _entries(raw, self.shape)
            if self._sides:
                keep = self._members(raw.number, len(value))
                index, value = index.compress(keep, axis=1), value[keep]
                weight = None if weight is None else weight[keep]
            if len(value):
                yield index, value / self.unit, weight

    def root_mean_square(self) -> float:
        """Of the values, by weight; 1 if all values are 0."""
        square = total = 0.0
        for _, value, weight in self.chunks():
            square += float(value @ value if weight is None else (weight * value) @ value)
            total += len(value) if weight is None else float(weight.sum())
        return math.sqrt(square / total) or 1.0

    def scaled(self, unit: float) -> Stream:
        """The same entries with values in this unit."""
        return replace(self, unit=self.unit * unit)

    def sample(self, count: int, *, seed: int) -> Chunk:
        """``count`` entries, each set of them equally likely, in order; reads no more of an array than those."""
        check.count("count", count)
        if count > len(self):
            raise ValueError(f"count: expected at most {len(self)}, the entries there are, got {count}")
        key = integer(seed, "stream", "sample", len(self._sides))
        best, least = np.empty(0, np.int64), np.empty(0, np.uint64)   # the entries of the smallest hashes
        for first, last in self._spans():
            numbers = np.arange(first, last)[self._members(first, last - first)]
            hashes = _hash(numbers, key)
            if len(best) == count:
                near = hashes < least.max()
                numbers, hashes = numbers[near], hashes[near]
            best, least = np.concatenate([best, numbers]), np.concatenate([least, hashes])
            if len(best) > count:
                chosen = np.argpartition(least, count - 1)[:count]
                best, least = best[chosen], least[chosen]
        parts = [_entries(raw, self.shape) for raw in self._source.take(np.sort(best), self.chunk)]
        index, value, weight = zip(*parts, strict=True)
        weight = np.concatenate(weight) if self.weighted else None
        return np.concatenate(index, axis=1), np.concatenate(value) / self.unit, weight

    def split(self, fraction: float, *, seed: int) -> tuple[Stream, Stream]:
        """(train, held out), with about ``fraction`` held out: a hash of seed and entry number decides, so that nothing is
        kept. The order of the entries matters, unlike in ``Observed.split``."""
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: expected the share to hold out, between 0 and 1, got {fraction!r}")
        limit = int(fraction * 2.0**64)
        key = integer(seed, "stream", "split", len(self._sides))
        train, held_out = (replace(self, _sides=(*self._sides, _Side(key, limit, below))) for below in (False, True))
        count = sum(int(held_out._members(first, last - first).sum()) for first, last in self._spans())
        if not 0 < count < len(self):
            raise ValueError(f"fraction: expected one that leaves entries on both sides, got {fraction!r}, "
                             f"which holds out {count} of {len(self)}")
        return replace(train, _count=len(self) - count), replace(held_out, _count=count)

    def shards(self, count: int) -> list[Stream]:
        """Streams of consecutive entries that make up this one, about equally long; fewer where there are fewer entries."""
        check.count("count", count)
        first, last = self._range
        cuts = [first + (last - first) * n // count for n in range(count + 1)]
        parts = [self._part(a, b) for a, b in pairwise(cuts)]
        return [part for part in parts if len(part)]

    def _part(self, first: int, last: int) -> Stream:
        part = replace(self, _range=(first, last), _count=last - first)
        if self._sides:
            part = replace(part, _count=sum(int(part._members(a, b - a).sum()) for a, b in part._spans()))
        return part

    def _spans(self) -> Iterator[tuple[int, int]]:
        first, last = self._range
        for begin in range(first, last, NUMBERS):
            yield begin, min(begin + NUMBERS, last)

    def _members(self, first: int, count: int) -> np.ndarray:
        """Which of the entries from number ``first`` on belong here, (count,)"""
        member = np.ones(count, np.bool_)
        numbers = np.arange(first, first + count) if self._sides else None
        for side in self._sides:
            member &= (_hash(numbers, side.key) < side.limit) == side.below
        return member

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_source": self._source.only(*self._range)}


@dataclass(frozen=True)
class _Side:
    """The entries whose hash is below the limit, or those where it is not."""
    key: int
    limit: int
    below: bool


@dataclass(frozen=True, eq=False)
class _Arrays:
    """Entries from number ``first`` on."""
    index: np.ndarray          # (B, K)
    value: np.ndarray          # (B,)
    weight: np.ndarray | None  # (B,)
    first: int = 0

    @property
    def weighted(self) -> bool:
        return self.weight is not None

    @property
    def modes(self) -> int:
        return self.index.shape[1]

    def __len__(self) -> int:
        return len(self.value)

    def read(self, first: int, last: int, chunk: int) -> Iterator[_Raw]:
        for begin in range(first, last, chunk):
            yield self._raw(slice(begin - self.first, min(begin + chunk, last) - self.first), begin)

    def take(self, numbers: np.ndarray, chunk: int) -> Iterator[_Raw]:
        for begin in range(0, len(numbers), chunk):
            some = numbers[begin:begin + chunk]
            yield self._raw(some - self.first, int(some[0]))

    def _raw(self, which: slice | np.ndarray, number: int) -> _Raw:
        index = np.asarray(self.index[which])
        others = [np.asarray(self.value[which])] + ([] if self.weight is None else [np.asarray(self.weight[which])])
        names = [*(f"index, mode {k}" for k in range(self.modes)), "value", "weight"]
        numbers = which + self.first if isinstance(which, np.ndarray) else None
        return _Raw(number, [*index.T, *others],
                    lambda column, row: f"{names[column]}, row {number + row if numbers is None else numbers[row]}")

    def only(self, first: int, last: int) -> _Arrays:
        """The same numbers, but no other entries."""
        own = slice(first - self.first, last - self.first)
        return _Arrays(np.asarray(self.index[own]), np.asarray(self.value[own]),
                       None if self.weight is None else np.asarray(self.weight[own]), first)


class _Parquet:
    """Row groups in the order of the files. ``names``: the columns of the modes, the value and perhaps the weight."""

    def __init__(self, paths: list[Path], names: tuple[str, ...], modes: int) -> None:
        self._paths, self._names, self.modes = paths, names, modes
        self.weighted = len(names) == modes + 2
        self._groups: list[tuple[int, int, int, int]] = []   # file, row group, its first row in the file, its entries
        for n, path in enumerate(paths):
            with self._open(path) as file:
                self._refuse_types(path, file.schema_arrow)
                row = 0
                for group in range(file.num_row_groups):
                    count = file.metadata.row_group(group).num_rows
                    self._groups.append((n, group, row, count))
                    row += count

    def __len__(self) -> int:
        return sum(count for *_, count in self._groups)

    def only(self, first: int, last: int) -> _Parquet:
        return self

    def read(self, first: int, last: int, chunk: int) -> Iterator[_Raw]:
        for number, row, path, columns in self._batches(lambda begin, end: begin < last and first < end, chunk):
            low, high = max(first - number, 0), min(last - number, len(columns[0]))
            if low < high:
                yield self._raw(number + low, row + low, path, [column.slice(low, high - low) for column in columns])

    def take(self, numbers: np.ndarray, chunk: int) -> Iterator[_Raw]:
        def holds(first: int, last: int) -> np.ndarray:
            return numbers[np.searchsorted(numbers, first):np.searchsorted(numbers, last)]

        for number, row, path, columns in self._batches(lambda begin, end: len(holds(begin, end)) > 0, chunk):
            own = holds(number, number + len(columns[0])) - number
            if len(own):
                yield self._raw(number, row, path, [column.take(own) for column in columns])

    def _batches(self, wanted: Callable[[int, int], bool], chunk: int) -> Iterator[tuple[int, int, Path, list[Any]]]:
        """number of the first entry, its row in the file, the file, columns; of the row groups ``wanted(first, last)``"""
        number = 0
        for n, group, row, count in self._groups:
            if wanted(number, number + count):
                with self._open(self._paths[n]) as file:
                    if group >= file.num_row_groups or file.metadata.row_group(group).num_rows != count:
                        raise ValueError(f"{self._paths[n]}: expected the file of the first pass, got one with other row "
                                         "groups; make the stream again")
                    done = 0
                    for batch in file.iter_batches(chunk, row_groups=[group], columns=list(self._names), use_threads=False):
                        yield number + done, row + done, self._paths[n], [batch.column(name) for name in self._names]
                        done += len(batch)
            number += count

    def _raw(self, number: int, row: int, path: Path, columns: list[Any]) -> _Raw:
        def place(column: int, at: int) -> str:
            return f"{path}, column {self._names[column]!r}, row {row + at}"

        for n, column in enumerate(columns):
            if column.null_count:
                at = int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0])
                raise ValueError(f"{place(n, at)}: expected no nulls, got one; drop those rows")
        return _Raw(number, [column.to_numpy(zero_copy_only=False) for column in columns], place)

    @contextmanager
    def _open(self, path: Path) -> Iterator[Any]:
        arrow, parquet = _pyarrow()
        try:
            # neither buffers a whole row group nor trusts damaged pages
            with parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True) as file:
                yield file
        except (arrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: expected a parquet file, got a corrupt or truncated one "
                             f"({str(error).splitlines()[0].rstrip('.')}); restore it or make it again") from error

    def _refuse_types(self, path: Path, schema: Any) -> None:
        types = _pyarrow()[0].types
        for n, name in enumerate(self._names):
            check.known(f"column of {path}", name, schema.names)
            kind = schema.field(name).type
            if not (types.is_integer(kind) or types.is_floating(kind)):
                wanted, remedy = ("row numbers", "number the labels first, for instance with Observed.from_parquet") \
                    if n < self.modes else ("numbers", "convert it")
                raise ValueError(f"{path}, column {name!r}: expected {wanted}, got {kind}; {remedy}")


def _entries(raw: _Raw, shape: tuple[int, ...]) -> Chunk:
    """Checked, in the dtypes of a Problem."""
    K, b = len(shape), len(raw.columns[0])
    index = np.empty((K, b), np.int32)
    for k, (column, size) in enumerate(zip(raw.columns[:K], shape, strict=True)):
        if column.dtype.kind == "f":
            _refuse(raw, k, column != np.floor(column), "whole numbers", "use FunctionalCP for continuous coordinates")
        # NaN compares as outside; a mask is only made where the extremes say so
        if b and not (column.min() >= 0 and column.max() < size):
            _refuse(raw, k, ~((column >= 0) & (column < size)), f"integers 0..{size - 1}", "drop the row or give another shape")
        index[k] = column
    value = np.array(raw.columns[K], np.float64)
    _refuse(raw, K, ~np.isfinite(value), "finite numbers", "drop or repair the row")
    if len(raw.columns) == K + 1:
        return index, value, None
    weight = np.array(raw.columns[K + 1], np.float64)
    _refuse(raw, K + 1, ~((weight > 0) & np.isfinite(weight)), "positive finite weights", "drop entries that shall not count")
    return index, value, weight


def _refuse(raw: _Raw, column: int, bad: np.ndarray, expected: str, remedy: str) -> None:
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(f"{raw.place(column, row)}: expected {expected}, got {raw.columns[column][row]}; {remedy}")


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # here, because it is optional and takes its time
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet: expected the package pyarrow, got none; install it with "
                         "pip install 'lowrank_rl[table]'") from error
    return pyarrow, pyarrow.parquet


def _files(path: str | Path | Sequence[str | Path]) -> list[Path]:
    if isinstance(path, str | Path):
        folder = Path(path)
        paths = sorted(p for p in folder.rglob("*.parquet") if not p.name.startswith((".", "_"))) if folder.is_dir() \
            else [folder]
    else:
        paths = [Path(one) for one in path]
    if not paths:
        raise ValueError(f"path: expected at least one parquet file, got {path!r}")
    for one in paths:
        check.file(one, "a parquet file")
    return [one.resolve() for one in paths]


def _hash(numbers: np.ndarray, key: int) -> np.ndarray:
    """64 random bits for each entry number: the finalizer of SplitMix64 (Steele, Lea & Flood 2014), twice."""
    with np.errstate(over="ignore"):
        x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for word in (np.uint64(key), np.uint64(0)):
            x ^= word
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x ^= x >> np.uint64(31)
    return x
