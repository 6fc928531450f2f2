"""Observed: the known entries of a tensor, as coordinates and values. What is not listed is missing; 0 is a value.

The layout of a sparse "COO" tensor with the opposite meaning of what is left out: there it is zero, here it is unknown.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_rl import check, files
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.labels import Coded, as_array, coded, label_array, label_column, numbered, refuse_absent


@dataclass(frozen=True, eq=False)
class Observed:
    """B observed entries of a tensor with K modes: ``value[b]`` stands at ``index[b]``, each entry at most once.

    Takes NumPy arrays, pandas columns, torch tensors or lists, and keeps its own NumPy copies. ``labels[k]`` names the
    rows of mode k in order; None there, or ``labels=None`` for all modes, means that rows are plain numbers.
    ``weight[b]`` says how much entry b counts in a fit: the number of measurements that its value averages, or one over
    the variance of its noise. None means that all count the same.

    Raises:
        ValueError: an index that is not whole or outside ``shape``, NaN or Inf, no entry at all, an entry twice, a
            weight that is not positive, or sizes that disagree.
    """

    index: np.ndarray   # (B, K) int64
    value: np.ndarray   # (B,) float64
    shape: tuple[int, ...]   # (K,)
    labels: Sequence[Sequence[Any] | np.ndarray | None] | None = None   # once built: a tuple of K arrays or None
    weight: np.ndarray | None = None   # (B,) float64

    def __post_init__(self) -> None:
        shape = sizes(self.shape)
        index = rows("index", self.index, shape)
        value = numbers("value", self.value)
        check.shapes(index=(index, "B K"), value=(value, "B"))
        if len(value) == 0:
            raise ValueError("value: expected at least one observed entry, got none")
        check.finite("value", value)
        labels = _labels_of_modes(self.labels, shape)
        weight = None if self.weight is None else _weights("weight", self.weight)
        if weight is not None:
            check.shapes(value=(value, "B"), weight=(weight, "B"))
        for name, field in {"index": index, "value": value, "shape": shape, "labels": labels, "weight": weight}.items():
            object.__setattr__(self, name, field)
        self._refuse_repeats()

    @classmethod
    def from_dense(cls, tensor: Any, mask: Any = None, *, missing: float | None = None, labels: Any = None) -> Observed:
        """The entries of a dense tensor where ``mask`` is 1 or True (TensorLy's convention); all without a mask.

        NaN means missing only on request, by ``missing=np.nan`` in place of a mask. Another sentinel is a mask already:
        ``from_dense(tensor, tensor != -999)``.
        """
        tensor = numbers("tensor", tensor)
        if missing is not None:
            if not (isinstance(missing, float | np.floating) and math.isnan(missing)):
                raise ValueError(f"missing: expected np.nan, got {missing!r}; for another sentinel pass "
                                 f"mask=(tensor != {missing!r})")
            if mask is not None:
                raise ValueError("mask and missing: expected one of them, got both; pass mask & ~np.isnan(tensor)")
            mask = ~np.isnan(tensor)
        mask = np.ones(tensor.shape) if mask is None else numbers("mask", mask)
        if mask.shape != tensor.shape:
            raise ValueError(f"mask: expected the tensor's shape {tensor.shape}, got {mask.shape}")
        if not np.isin(mask, (0, 1)).all():
            raise ValueError("mask: expected 1 or True (observed) and 0 or False (missing) only, got other values too")
        mask = mask == 1
        bad = np.argwhere(mask & ~np.isfinite(tensor))
        if len(bad):
            raise ValueError(f"tensor: expected finite observed entries, got {len(bad)} NaN or Inf, the first at "
                             f"{tuple(bad[0].tolist())}; set mask to 0 there, or pass missing=np.nan if NaN is missing")
        return cls(np.argwhere(mask), tensor[mask], tensor.shape, labels)

    @classmethod
    def from_table(cls, table: Any, modes: Sequence[str], value: str, *, weight: str | None = None, labels: Any = None,
                   duplicates: str = "refuse") -> Observed:
        """One entry per row of a table: a pandas DataFrame, a pyarrow Table or a mapping of columns.

        The columns named in ``modes`` say where, by labels that are numbered in sorted order whatever the order of the
        rows; the column ``value`` says what, and ``weight`` how much it counts. ``labels`` of another Observed number
        this table like that one. Rows that repeat an entry are refused, or averaged with ``duplicates="mean"``: by their
        weights, which then add up; without a column of weights each row counts 1, and the sums are kept as weights.
        """
        names = _column_names(modes, value, weight)
        check.known("duplicates", duplicates, ["refuse", "mean"])
        known = list(table.column_names if hasattr(type(table), "column_names") else table)   # pyarrow iterates columns
        for name in names:
            check.known("column", name, known)
        values = numbers(names[value], table[value])
        weights = None if weight is None else numbers(names[weight], table[weight])
        columns = {names[mode]: label_column(names[mode], table[mode]) for mode in modes}
        check.shapes(**{name: (column, "B") for name, column in {names[value]: values, **columns}.items()})
        check.finite(names[value], values)
        if weights is not None:
            check.shapes(**{names[value]: (values, "B"), names[weight]: (weights, "B")})
            _weights(names[weight], weights)
        parts = {name: [coded(name, column)] for name, column in columns.items()}
        return cls._from_parts(parts, values, weights, labels, duplicates)

    @classmethod
    def from_parquet(cls, path: str | Path, modes: Sequence[str], value: str, *, weight: str | None = None,
                     labels: Any = None, duplicates: str = "refuse") -> Observed:
        """``from_table`` for a parquet file. Reads the named columns only and one row group at a time, so that memory
        holds the numbers of the entries but never all their labels.

        Raises:
            ValueError: also a missing, corrupt or truncated file, a column that is not in it, nulls, no pyarrow.
        """
        names = _column_names(modes, value, weight)
        check.known("duplicates", duplicates, ["refuse", "mean"])
        parts, values, weights = {names[mode]: [] for mode in modes}, [np.empty(0)], [np.empty(0)]
        for group in _row_groups(Path(path), names):
            values.append(numbers(names[value], group[value]))
            check.finite(names[value], values[-1])
            if weight is not None:
                weights.append(_weights(names[weight], group[weight]))
            for mode in modes:
                parts[names[mode]] += _coded_chunks(names[mode], group[mode])
        return cls._from_parts(parts, np.concatenate(values), None if weight is None else np.concatenate(weights), labels,
                               duplicates)

    @classmethod
    def _from_parts(cls, parts: Mapping[str, list[Coded]], values: np.ndarray, weights: np.ndarray | None, labels: Any,
                    duplicates: str) -> Observed:
        """parts: for each mode's column its labels and codes, in pieces that follow one another."""
        if len(values) == 0:
            raise ValueError("value: expected at least one observed entry, got none")
        labels = [None if given is None else label_array(f"labels of {name}", given)
                  for name, given in zip(parts, _one_per_mode(labels, len(parts)), strict=True)]
        labels, codes = zip(*(numbered(name, parts[name], given) for name, given in zip(parts, labels, strict=True)),
                            strict=True)
        index, shape = np.stack(codes, axis=1), tuple(len(mode_labels) for mode_labels in labels)
        if duplicates == "mean":
            _, first, entry = np.unique(_entry_numbers(index, shape), return_index=True, return_inverse=True)
            if len(first) < len(index) or weights is not None:
                row_weights = np.ones(len(index)) if weights is None else weights
                weights = np.bincount(entry, weights=row_weights)
                values = values * (row_weights / weights[entry])   # exact where an entry stands alone
            index, values = index[first], np.bincount(entry, weights=values)
        return cls(index, values, shape, labels, weights)

    def __len__(self) -> int:
        """B, the number of observed entries."""
        return len(self.value)

    @property
    def density(self) -> float:
        """The observed share of all entries."""
        return len(self) / math.prod(self.shape)

    def mask(self) -> np.ndarray:
        """The dense boolean tensor, True where observed."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[tuple(self.index.T)] = True
        return mask

    def dense(self, fill: float = np.nan) -> np.ndarray:
        """The dense tensor, with ``fill`` where nothing was observed."""
        tensor = np.full(self.shape, fill, dtype=np.float64)
        tensor[tuple(self.index.T)] = self.value
        return tensor

    def encode(self, columns: Sequence[Any]) -> np.ndarray:
        """K columns of labels -> coordinates (B, K). A mode without labels takes its row numbers.

        A list of columns, or a pandas DataFrame, pyarrow Table or mapping with these columns alone, in the modes' order.
        """
        columns = _columns(columns)
        if len(columns) != len(self.shape):
            raise ValueError(f"columns: expected one for each of {len(self.shape)} modes, got {len(columns)}")
        arrays = [label_column(f"column {k}", column) for k, column in enumerate(columns)]
        check.shapes(**{f"column {k}": (array, "B") for k, array in enumerate(arrays)})
        codes = [array if labels is None else numbered(f"column {k}", [coded(f"column {k}", array)], labels)[1]
                 for k, (array, labels) in enumerate(zip(arrays, self.labels, strict=True))]
        return rows("columns", np.stack(codes, axis=1), self.shape)

    def decode(self, index: Any) -> tuple[np.ndarray, ...]:
        """Coordinates (B, K) -> K columns of labels, the way back. A mode without labels gives its row numbers."""
        index = rows("index", index, self.shape)
        return tuple(codes if labels is None else labels[codes]
                     for codes, labels in zip(index.T, self.labels, strict=True))

    def to_table(self, modes: Sequence[str] | None = None, value: str = "value",
                 weight: str = "weight") -> dict[str, np.ndarray]:
        """Columns of labels by the names in ``modes`` (mode_0, mode_1, ... if None), then values, then weights if any.

        ``from_table`` with ``labels=observed.labels`` is the way back. Without these it cannot know rows of a mode that
        have no entry, and its shape may be smaller.
        """
        names = self._names_of_columns(modes, value, weight)
        columns = [*self.decode(self.index), self.value, *([] if self.weight is None else [self.weight])]
        return {name: column.copy() for name, column in zip(names, columns, strict=True)}

    def to_parquet(self, path: str | Path, modes: Sequence[str] | None = None, value: str = "value",
                   weight: str = "weight") -> None:
        """The same columns as a parquet file with checksums, which appears whole or not at all.

        Raises:
            ValueError: labels that parquet cannot hold, a place that cannot be written, or no pyarrow.
        """
        arrow, parquet = _pyarrow()
        names = self._names_of_columns(modes, value, weight)
        columns = [self.value] if self.weight is None else [self.value, self.weight]
        columns = dict(zip(names[len(self.shape):], columns, strict=True))
        for name, codes, labels in zip(names[:len(self.shape)], self.index.T, self.labels, strict=True):
            try:
                columns[name] = codes if labels is None else arrow.array(labels).take(arrow.array(codes))
            except arrow.ArrowException as error:
                raise ValueError(f"labels of {name}: expected ones of a single type that parquet knows, got "
                                 f"'{_line(error)}'; convert them") from error
        with files.whole(path) as partial:
            parquet.write_table(arrow.table({name: columns[name] for name in names}), partial,
                                write_page_checksum=True)

    def counts(self, k: int) -> np.ndarray:
        """How many entries each row of mode k has: (size of mode k,). k is the mode's place in ``shape``, from 0."""
        (k,) = self._modes("k", k)
        return np.bincount(self.index[:, k], minlength=self.shape[k])

    def unobserved(self, k: int) -> np.ndarray:
        """The numbers of the rows of mode k without any entry; a fit knows nothing of them but its prior.

        k is the mode's place in ``shape``, from 0; ``labels[k][observed.unobserved(k)]`` are their labels, if it has any.
        """
        return np.flatnonzero(self.counts(k) == 0)

    def split(self, fraction: float, *, seed: int, by: int | Sequence[int] | None = None) -> tuple[Observed, Observed]:
        """(train, held out), with a random ``fraction`` held out. Both keep shape, labels, weights and order.

        ``by`` names modes: entries that share their coordinates there go to the same side, and the fraction is one of
        such groups. None means all modes, so single entries; a mode k means whole rows of it; all modes but one mean
        fibres. Who is held out depends on which groups occur and on the seed, not on the order of the entries.

        Held-out rows of a mode are without data in training, so a fit leaves their factors at the prior: only a method
        that folds in new rows, or models the mode by covariates, can predict them.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: expected the share to hold out, between 0 and 1, got {fraction!r}")
        modes = list(range(len(self.shape)) if by is None else self._modes("by", by))
        groups, group = np.unique(_entry_numbers(self.index[:, modes], tuple(self.shape[k] for k in modes)),
                                  return_inverse=True)
        count = round(fraction * len(groups))
        if not 0 < count < len(groups):
            raise ValueError(f"fraction: expected one that leaves entries on both sides, got {fraction!r}, "
                             f"which holds out {count} of {len(groups)}{'' if by is None else ' groups'}")
        chosen = np.zeros(len(groups), dtype=bool)
        chosen[numpy_stream(seed, "observed", "split").permutation(len(groups))[:count]] = True
        return self._rows_where(~chosen[group]), self._rows_where(chosen[group])

    def _rows_where(self, chosen: np.ndarray) -> Observed:
        return replace(self, index=self.index[chosen], value=self.value[chosen],
                       weight=None if self.weight is None else self.weight[chosen])

    def _modes(self, name: str, modes: int | Sequence[int]) -> tuple[int, ...]:
        """Numbers of modes, each at most once."""
        listed = tuple(modes) if isinstance(modes, Sequence | np.ndarray) else (modes,)
        try:
            whole = tuple(operator.index(k) for k in listed)
        except TypeError:
            whole = ()
        if not whole or len({*whole}) < len(whole) or not {*whole} <= {*range(len(self.shape))}:
            raise ValueError(f"{name}: expected different modes among 0..{len(self.shape) - 1}, got {modes!r}")
        return whole

    def _names_of_columns(self, modes: Sequence[str] | None, value: str, weight: str) -> list[str]:
        modes = [f"mode_{k}" for k in range(len(self.shape))] if modes is None else modes
        names = list(_column_names(modes, value, None if self.weight is None else weight))
        if len(modes) != len(self.shape):
            raise ValueError(f"modes: expected a name for each of {len(self.shape)} modes, got {len(modes)}")
        return names

    def _refuse_repeats(self) -> None:
        entry = _entry_numbers(self.index, self.shape)
        ordered = np.sort(entry)
        if (ordered[1:] != ordered[:-1]).all():
            return
        order = np.argsort(entry, kind="stable")
        again = np.flatnonzero(entry[order[1:]] == entry[order[:-1]])
        differ = again[self.value[order[again + 1]] != self.value[order[again]]]
        pair = order[(differ if len(differ) else again)[0] + np.arange(2)]
        where = ", ".join(str(column[0]) for column in self.decode(self.index[pair[:1]]))
        one, other = self.value[pair].tolist()
        raise ValueError(f"index: expected each entry once, got {len(again)} repeats, {len(differ)} of them with another "
                         f"value, such as {one} and {other} of entry ({where}); drop them, or average them with "
                         'Observed.from_table(..., duplicates="mean")')


def numbers(name: str, x: Any) -> np.ndarray:
    """A float64 copy of real numbers (array, column, torch tensor or list); refuses text, dates and complex numbers."""
    array = as_array(name, x)
    text = array.dtype.kind == "O" and any(isinstance(item, str) for item in array.flat)   # "1.5" would pass as 1.5
    if array.dtype.kind in "biufO" and not text:
        try:
            return np.array(array, dtype=np.float64, order="C")
        except (TypeError, ValueError):
            pass   # objects that are no numbers, pandas.NA among them
    raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}; convert them and drop rows without one")


def rows(name: str, index: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An int64 copy of coordinates (B, K) into a tensor of this shape; whole floats pass, fractions do not."""
    index = as_array(name, index)
    check.shapes(**{name: (index, "B K")})
    if index.shape[1] != len(shape):
        raise ValueError(f"{name}: expected one column for each of {len(shape)} modes, got shape {index.shape}")
    if index.dtype.kind not in "iu":
        index = numbers(name, index)
        check.finite(name, index)
        fractions = index[index != np.floor(index)]
        if len(fractions):
            raise ValueError(f"{name}: expected whole numbers, got fractions such as {fractions[0]}; "
                             "use FunctionalCP for continuous coordinates")
    for k, size in enumerate(shape):
        check.within(f"{name}, mode {k}", index[:, k], size)
    return np.array(index, dtype=np.int64, order="C")


def sizes(shape: Any) -> tuple[int, ...]:
    """A tensor's shape as Python integers; refuses fewer than two modes and sizes below 1."""
    try:
        whole = tuple(operator.index(size) for size in shape)
    except TypeError:
        whole = ()
    if len(whole) < 2 or min(whole) < 1:
        raise ValueError(f"shape: expected at least two modes, each of a whole size >= 1, got {shape!r}")
    return whole


def _weights(name: str, x: Any) -> np.ndarray:
    weights = numbers(name, x)
    bad = ~((weights > 0) & np.isfinite(weights))
    if bad.any():
        first = int(bad.reshape(-1).argmax())
        raise ValueError(f"{name}: expected positive finite weights, got {int(bad.sum())} others, the first "
                         f"{weights.flat[first]} in row {first}; drop entries that shall not count")
    return weights


def _entry_numbers(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One integer per row, ordered as the rows are: the place in the flattened tensor, if int64 can count that far."""
    number, size = index[:, 0], shape[0]
    for column, more in zip(index.T[1:], shape[1:], strict=True):
        if size * more >= 2**63:   # keep of both only what occurs
            number, column = (np.unique(one, return_inverse=True)[1] for one in (number, column))
            size, more = int(number.max()) + 1, int(column.max()) + 1
        number = number * more + column
        size *= more
    return number


def _one_per_mode(labels: Any, modes: int) -> list[Any]:
    labels = [None] * modes if labels is None else list(labels)
    if len(labels) != modes:
        raise ValueError(f"labels: expected one item (labels or None) for each of {modes} modes, got {len(labels)}")
    return labels


def _labels_of_modes(labels: Any, shape: tuple[int, ...]) -> tuple[np.ndarray | None, ...]:
    arrays = []
    for k, (given, size) in enumerate(zip(_one_per_mode(labels, len(shape)), shape, strict=True)):
        array = None if given is None else label_array(f"labels of mode {k}", given)
        if array is not None and len(array) != size:
            raise ValueError(f"labels of mode {k}: expected {size}, the size of the mode, got {len(array)}")
        arrays.append(array)
    return tuple(arrays)


def _column_names(modes: Sequence[str], value: str, weight: str | None) -> dict[str, str]:
    """What messages call the columns, in the order modes, value, weight."""
    others = [value] if weight is None else [value, weight]
    if isinstance(modes, str) or len(modes) < 2 or len({*modes, *others}) != len(modes) + len(others):
        raise ValueError("modes: expected a list of at least two columns, all different and none of them "
                         f"{' or '.join(map(repr, others))}, got {modes!r}")
    return {name: f"column {name!r}" for name in [*modes, *others]}


def _columns(table: Any) -> list[Any]:
    """The columns of a table; what is no table is a sequence of columns already."""
    if hasattr(type(table), "column_names"):   # pyarrow
        return list(table.columns)
    return [column for _, column in table.items()] if hasattr(type(table), "items") else list(table)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow  # here, because it is optional and takes its time
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet: expected the package pyarrow, got none; install it with "
                         "pip install 'lowrank_rl[table]'") from error
    return pyarrow, pyarrow.parquet


def _row_groups(path: Path, names: Mapping[str, str]) -> Iterator[Any]:
    """The named columns of each row group, as pyarrow Tables without nulls."""
    arrow, parquet = _pyarrow()
    check.file(path, "a parquet file")
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for name in names:
                check.known(f"column of {path}", name, file.schema_arrow.names)
            for number in range(file.num_row_groups):
                group = file.read_row_group(number, columns=list(names))
                for name in names:
                    if group[name].null_count:
                        raise ValueError(f"{path}, {names[name]}: expected no nulls, got {group[name].null_count} in row "
                                         f"group {number}; drop those rows")
                yield group
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: expected a parquet file, got a corrupt or truncated one ({_line(error)}); restore it or "
                         "make it again") from error


def _coded_chunks(name: str, column: Any) -> list[Coded]:
    """A pyarrow column, chunk by chunk: its dictionary may hold labels that do not occur, or one twice."""
    arrow, _ = _pyarrow()
    try:
        chunks = column.dictionary_encode().chunks
    except arrow.ArrowException as error:
        raise ValueError(f"{name}: expected labels such as text or numbers, got {column.type}") from error
    parts = []
    for chunk in chunks:
        used, codes = coded(name, chunk.indices.to_numpy())
        distinct = chunk.dictionary.to_numpy(zero_copy_only=False)[used]
        refuse_absent(name, distinct, codes)
        parts.append((distinct, codes))
    return parts


def _line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".")
