"""Observed: the known entries of a tensor, as coordinates and values. What is not listed is missing; 0 is a value.

The layout of a sparse "COO" tensor with the opposite meaning of what is left out: there it is zero, here it is unknown.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream


@dataclass(frozen=True, eq=False)
class Observed:
    """B observed entries of a tensor with K modes: ``value[b]`` stands at ``index[b]``, each entry at most once.

    Takes NumPy arrays, pandas columns, torch tensors or lists, and keeps its own NumPy copies. ``labels[k]`` names the
    rows of mode k in order; None there, or ``labels=None`` for all modes, means that rows are plain numbers.

    Raises:
        ValueError: an index that is not whole or outside ``shape``, NaN or Inf, no entry at all, an entry twice, or
            sizes that disagree.
    """

    index: np.ndarray   # (B, K) int64
    value: np.ndarray   # (B,) float64
    shape: tuple[int, ...]   # (K,)
    labels: Sequence[Sequence[Any] | np.ndarray | None] | None = None   # once built: a tuple of K arrays or None

    def __post_init__(self) -> None:
        shape = sizes(self.shape)
        index = rows("index", self.index, shape)
        value = numbers("value", self.value)
        check.shapes(index=(index, "B K"), value=(value, "B"))
        if len(value) == 0:
            raise ValueError("value: expected at least one observed entry, got none")
        check.finite("value", value)
        labels = _labels_of_modes(self.labels, shape)
        for name, field in {"index": index, "value": value, "shape": shape, "labels": labels}.items():
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
    def from_table(cls, table: Any, modes: Sequence[str], value: str, *, labels: Any = None,
                   duplicates: str = "refuse") -> Observed:
        """One entry per row of a table: a pandas DataFrame, a pyarrow Table or a mapping of columns.

        The columns named in ``modes`` say where, by labels that are numbered in sorted order whatever the order of the
        rows; the column ``value`` says what. ``labels`` of another Observed number this table like that one. Rows that
        repeat an entry are refused, or averaged with ``duplicates="mean"``.
        """
        if isinstance(modes, str) or len(modes) < 2 or len({*modes, value}) != len(modes) + 1:
            raise ValueError("modes: expected a list of at least two columns, all different and none of them "
                             f"{value!r}, got {modes!r}")
        check.known("duplicates", duplicates, ["refuse", "mean"])
        known = list(table.column_names if hasattr(type(table), "column_names") else table)   # pyarrow iterates columns
        names = {name: f"column {name!r}" for name in [*modes, value]}
        for name in names:
            check.known("column", name, known)
        values = numbers(names[value], table[value])
        columns = {name: _label_column(names[name], table[name]) for name in modes}
        check.shapes(**{names[name]: (column, "B") for name, column in {value: values, **columns}.items()})
        check.finite(names[value], values)

        labels = [_sorted_labels(names[name], column) if given is None else _label_array(f"labels of {name!r}", given)
                  for (name, column), given in zip(columns.items(), _one_per_mode(labels, len(modes)), strict=True)]
        index = np.stack([_codes(names[name], column, mode_labels)
                          for (name, column), mode_labels in zip(columns.items(), labels, strict=True)], axis=1)
        shape = tuple(max(1, len(mode_labels)) for mode_labels in labels)   # 1 lets an empty table fail for its rows
        if duplicates == "mean":
            _, first, entry = np.unique(_entry_numbers(index, shape), return_index=True, return_inverse=True)
            index, values = index[first], np.bincount(entry, weights=values) / np.bincount(entry)
        return cls(index, values, shape, labels)

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
        """K columns of labels -> coordinates (B, K). A mode without labels takes its row numbers."""
        if len(columns) != len(self.shape):
            raise ValueError(f"columns: expected one for each of {len(self.shape)} modes, got {len(columns)}")
        arrays = [_label_column(f"column {k}", column) for k, column in enumerate(columns)]
        check.shapes(**{f"column {k}": (array, "B") for k, array in enumerate(arrays)})
        codes = [array if labels is None else _codes(f"column {k}", array, labels)
                 for k, (array, labels) in enumerate(zip(arrays, self.labels, strict=True))]
        return rows("columns", np.stack(codes, axis=1), self.shape)

    def decode(self, index: Any) -> tuple[np.ndarray, ...]:
        """Coordinates (B, K) -> K columns of labels, the way back. A mode without labels gives its row numbers."""
        index = rows("index", index, self.shape)
        return tuple(codes if labels is None else labels[codes]
                     for codes, labels in zip(index.T, self.labels, strict=True))

    def split(self, fraction: float, *, seed: int) -> tuple[Observed, Observed]:
        """(train, held out), with a random ``fraction`` of the entries held out. Both keep shape, labels and order."""
        if not 0 < fraction < 1:
            raise ValueError(f"fraction: expected the share to hold out, between 0 and 1, got {fraction!r}")
        count = round(fraction * len(self))
        if not 0 < count < len(self):
            raise ValueError(f"fraction: expected one that leaves entries on both sides, got {fraction!r}, "
                             f"which holds out {count} of {len(self)}")
        held_out = np.zeros(len(self), dtype=bool)
        held_out[numpy_stream(seed, "observed", "split").permutation(len(self))[:count]] = True
        return self._rows_where(~held_out), self._rows_where(held_out)

    def _rows_where(self, chosen: np.ndarray) -> Observed:
        return replace(self, index=self.index[chosen], value=self.value[chosen])

    def _refuse_repeats(self) -> None:
        entry = _entry_numbers(self.index, self.shape)
        ordered = np.sort(entry)
        again = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(again):
            columns = self.decode(self.index[entry == again[0]][:1])
            raise ValueError(f"index: expected each entry once, got {len(again)} repeats, the first of entry "
                             f"({', '.join(str(column[0]) for column in columns)}); drop them, or average them with "
                             'Observed.from_table(..., duplicates="mean")')


def numbers(name: str, x: Any) -> np.ndarray:
    """A float64 copy of real numbers (array, column, torch tensor or list); refuses text, dates and complex numbers."""
    array = _array(name, x)
    text = array.dtype.kind == "O" and any(isinstance(item, str) for item in array.flat)   # "1.5" would pass as 1.5
    if array.dtype.kind in "biufO" and not text:
        try:
            return np.array(array, dtype=np.float64, order="C")
        except (TypeError, ValueError):
            pass   # objects that are no numbers, pandas.NA among them
    raise ValueError(f"{name}: expected real numbers, got dtype {array.dtype}; convert them and drop rows without one")


def rows(name: str, index: Any, shape: tuple[int, ...]) -> np.ndarray:
    """An int64 copy of coordinates (B, K) into a tensor of this shape; whole floats pass, fractions do not."""
    index = _array(name, index)
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


def _array(name: str, x: Any) -> np.ndarray:
    if isinstance(x, torch.Tensor):
        x = x.detach().cpu()
        return (x.double() if x.is_floating_point() else x).numpy()   # NumPy has no bfloat16
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name}: expected a rectangular array, got rows of different lengths") from error


def _entry_numbers(index: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One integer per row, equal where the rows are: the place in the flattened tensor, if int64 can count that far."""
    if math.prod(shape) < 2**63:
        return np.ravel_multi_index(tuple(index.T), shape)
    return np.unique(index, axis=0, return_inverse=True)[1].reshape(-1)


def _one_per_mode(labels: Any, modes: int) -> list[Any]:
    labels = [None] * modes if labels is None else list(labels)
    if len(labels) != modes:
        raise ValueError(f"labels: expected one item (labels or None) for each of {modes} modes, got {len(labels)}")
    return labels


def _labels_of_modes(labels: Any, shape: tuple[int, ...]) -> tuple[np.ndarray | None, ...]:
    arrays = []
    for k, (given, size) in enumerate(zip(_one_per_mode(labels, len(shape)), shape, strict=True)):
        array = None if given is None else _label_array(f"labels of mode {k}", given)
        if array is not None and len(array) != size:
            raise ValueError(f"labels of mode {k}: expected {size}, the size of the mode, got {len(array)}")
        arrays.append(array)
    return tuple(arrays)


def _label_column(name: str, column: Any) -> np.ndarray:
    """The column as it is; a list becomes objects, because NumPy would turn ["a", 1] into the texts "a" and "1"."""
    return np.fromiter(column, dtype=object) if isinstance(column, list | tuple) else _array(name, column)


def _label_array(name: str, labels: Any) -> np.ndarray:
    array = _label_column(name, labels).copy()
    check.shapes(**{name: (array, "rows")})
    different = len(_distinct(name, array))
    if different < len(array):
        raise ValueError(f"{name}: expected different labels, got {len(array)} of which only {different} differ")
    return array


def _sorted_labels(name: str, column: np.ndarray) -> np.ndarray:
    distinct = _distinct(name, column)
    try:
        return np.fromiter(sorted(distinct), dtype=object).astype(column.dtype)
    except TypeError as error:
        kinds = ", ".join(sorted({type(label).__name__ for label in distinct}))
        raise ValueError(f"{name}: expected labels that sort, got {kinds}; convert them to one type") from error


def _codes(name: str, column: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place of each label of the column among ``labels``."""
    _distinct(name, column)   # for its refusals
    place = {label: code for code, label in enumerate(labels)}
    codes = np.fromiter((place.get(label, -1) for label in column), np.int64, len(column))
    if (codes < 0).any():
        some = ", ".join(map(str, labels[:20])) + (f", ... ({len(labels)} in all)" if len(labels) > 20 else "")
        raise ValueError(f"{name}: unknown label '{column[codes < 0][0]}'; known: {some}")
    return codes


def _distinct(name: str, column: np.ndarray) -> set[Any]:
    """The labels that occur; refuses rows without one and labels that cannot be looked up."""
    absent = np.fromiter(map(_is_absent, column), bool) if column.dtype.kind == "O" else column != column
    if absent.any():
        raise ValueError(f"{name}: expected a label in each row, got {int(absent.sum())} without (None or NaN), "
                         f"the first in row {int(absent.argmax())}; drop those rows or give them a label")
    try:
        return set(column)
    except TypeError as error:
        raise ValueError(f"{name}: expected labels such as text or numbers, got some of {error}") from error


def _is_absent(label: Any) -> bool:
    """None, NaN, NaT or pandas.NA, without importing pandas: the last three do not say that they equal themselves."""
    same = label == label
    return label is None or not isinstance(same, bool | np.bool_) or not same
