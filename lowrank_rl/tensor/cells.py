"""Recorded coordinates as rows of a tensor: continuous columns in bins, categories and exact coordinates as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.labels import as_array, coded, label_column, numbered
from lowrank_rl.tensor.observed import Observed, numbers
from lowrank_rl.tensor.pattern import Pattern

HOW = ("quantile", "width")


@dataclass(frozen=True, eq=False)
class Cells:
    """T records, each in an entry of a tensor with K modes; several may fall into one entry."""

    pattern: Pattern                                   # the entries that occur
    index: np.ndarray                                  # (T, K) int64: each record's entry
    labels: tuple[np.ndarray, ...]                     # what row i of mode k is: a label, or (columns,) bins or coordinates
    edges: tuple[tuple[np.ndarray, ...] | None, ...]   # of the bins, for each column of a binned mode; None: not binned

    def observed(self, value: Any) -> Observed:
        """The mean value (T,) of the records in each entry, weighted by how many they are."""
        value = numbers("value", value)
        check.shapes(index=(self.index, "T K"), value=(value, "T"))
        table = {**{f"mode {k}": column for k, column in enumerate(self.index.T)}, "value": value}
        rows = [np.arange(size) for size in self.pattern.shape]
        mean = Observed.from_table(table, list(table)[:-1], "value", labels=rows, duplicates="mean")
        return Observed(mean.index, mean.value, mean.shape, weight=mean.weight)


def from_coordinates(columns: Sequence[Any], bins: Sequence[Any], *, how: str = "quantile") -> Cells:
    """Which entries T records fall into: ``from_coordinates([agent, state, action], bins=[None, 8, None])``.

    Only cells that occur become rows, in sorted order, so no row is without entry; with 8 bins in each of 2 columns a mode has
    at most 64.

    Args:
        columns: for each mode its coordinates, (T,) or (T, columns), such as a state vector.
        bins: for each mode None, so that each distinct coordinate is a row of its own (categories, or exact coordinates), or
            how many bins: one number for all of its columns or one for each.
        how: "quantile" puts the edges so that each bin of a column has as many records as the others, as far as ties allow;
            "width" so that all are equally wide.

    Raises:
        ValueError: fewer than two modes, columns of different lengths, no record, NaN or Inf, text in a column with bins.
    """
    columns, bins = list(columns), list(bins)
    if len(columns) < 2 or len(bins) != len(columns):
        raise ValueError("bins: expected None or a number for each of at least two columns, got "
                         f"{len(bins)} for {len(columns)}")
    check.known("how", how, HOW)
    modes = [_mode(f"column {k}", column, wanted, how) for k, (column, wanted) in enumerate(zip(columns, bins, strict=True))]
    codes, labels, edges = zip(*modes, strict=True)
    check.shapes(**{f"column {k}": (code, "T") for k, code in enumerate(codes)})
    index = np.stack(codes, axis=1)
    return Cells(Pattern(np.unique(index, axis=0), tuple(map(len, labels))), index, labels, edges)


def _mode(name: str, column: Any, wanted: Any, how: str) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...] | None]:
    """(row of each record (T,), what the rows are, edges)"""
    array = as_array(name, column)
    if array.ndim not in (1, 2) or 0 in array.shape:
        raise ValueError(f"{name}: expected coordinates (T,) or (T, columns) of at least one record, got shape {array.shape}")
    if wanted is None and array.ndim == 1:
        labels, codes = numbered(name, [coded(name, label_column(name, column))])
        return codes, labels, None
    matrix = numbers(name, array.reshape(len(array), -1))
    check.finite(name, matrix)
    edges = None
    if wanted is not None:
        each = [wanted] * matrix.shape[1] if np.ndim(wanted) == 0 else list(wanted)
        if len(each) != matrix.shape[1]:
            raise ValueError(f"bins of {name}: expected one number for each of {matrix.shape[1]} columns, got {len(each)}")
        edges = tuple(_edges(f"bins of {name}", x, number, how) for x, number in zip(matrix.T, each, strict=True))
        matrix = np.stack([np.searchsorted(edge[1:-1], x, side="right") for x, edge in zip(matrix.T, edges, strict=True)], 1)
    labels, codes = np.unique(matrix, axis=0, return_inverse=True)
    return codes.reshape(-1), labels, edges


def _edges(name: str, x: np.ndarray, number: int, how: str) -> np.ndarray:
    """number + 1 edges, fewer where records tie; a value on an inner edge belongs to the bin above."""
    check.count(name, number)
    if how == "width":
        return np.linspace(x.min(), x.max(), number + 1)
    value, count = np.unique(x, return_counts=True)
    if len(value) == 1 or number == 1:
        return value[[0, -1]]
    below = np.cumsum(count)[:-1]    # records below the gap between a value and the next: edges go into gaps
    wanted = len(x) * np.arange(1, number) / number
    after = np.searchsorted(below, wanted).clip(1, max(1, len(below) - 1))
    nearer = np.where(wanted - below[after - 1] <= below[after.clip(max=len(below) - 1)] - wanted, after - 1, after)
    gap = np.unique(nearer.clip(max=len(below) - 1))
    return np.concatenate([value[:1], (value[gap] + value[gap + 1]) / 2, value[-1:]])
