"""Labels: what the rows of a mode are called. Equal labels get equal numbers, in sorted order or in a given one."""

from __future__ import annotations

from typing import Any

import numpy as np

from lowrank_rl import check

Coded = tuple[np.ndarray, np.ndarray]   # labels that occur, each once (U,), and every row's place among them (B,)


def as_array(name: str, x: Any) -> np.ndarray:
    """NumPy's view of an array, column, torch tensor or list; refuses rows of different lengths."""
    if hasattr(x, "detach"):   # a torch tensor, told without importing torch
        x = x.detach().cpu()
        return (x.double() if x.is_floating_point() else x).numpy()   # NumPy has no bfloat16
    try:
        return np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name}: expected a rectangular array, got rows of different lengths") from error


def label_column(name: str, column: Any) -> np.ndarray:
    """The column as it is; a list becomes objects, because NumPy would turn ["a", 1] into the texts "a" and "1"."""
    return np.fromiter(column, dtype=object) if isinstance(column, list | tuple) else as_array(name, column)


def label_array(name: str, labels: Any) -> np.ndarray:
    """A copy of the names of a mode's rows, in the order given.

    Raises:
        ValueError: a name that is missing, comes twice or cannot be looked up.
    """
    array = label_column(name, labels).copy()
    check.shapes(**{name: (array, "rows")})
    different = len(coded(name, array)[0])
    if different < len(array):
        raise ValueError(f"{name}: expected different labels, got {len(array)} of which only {different} differ")
    return array


def coded(name: str, column: np.ndarray) -> Coded:
    """The labels of a column (B,), each once and in no order, and every row's place among them.

    Raises:
        ValueError: rows without a label (None, NaN, NaT, pandas.NA), or labels that cannot be looked up.
    """
    if column.dtype.kind in "biu":
        return _coded_integers(column)
    if column.dtype.kind in "fcmM":
        distinct = np.unique(column)
        codes = np.searchsorted(distinct, column)
    else:
        place, codes = {}, np.empty(len(column), dtype=np.int64)
        for start in range(0, len(column), 65536):   # Python objects for a few rows at a time
            items = column[start:start + 65536].tolist()
            try:
                for label in dict.fromkeys(items):
                    place.setdefault(label, len(place))
            except TypeError as error:
                raise ValueError(f"{name}: expected labels such as text or numbers, got some of {error}") from error
            codes[start:start + len(items)] = [place[label] for label in items]
        distinct = np.fromiter(place, object, len(place)).astype(column.dtype)
    refuse_absent(name, distinct, codes)
    return distinct, codes


def refuse_absent(name: str, distinct: np.ndarray, codes: np.ndarray) -> None:
    """Refuse rows whose label says that there is none."""
    absent = np.fromiter(map(_is_absent, distinct), bool) if distinct.dtype.kind == "O" else distinct != distinct
    if absent.any():
        rows = absent[codes]
        raise ValueError(f"{name}: expected a label in each row, got {int(rows.sum())} without (None or NaN), "
                         f"the first in row {int(rows.argmax())}; drop those rows or give them a label")


def numbered(name: str, parts: list[Coded], labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(labels, codes) of a column that came in parts: by ``labels`` if given, else by the sorted labels that occur.

    Raises:
        ValueError: labels that do not sort, or one that is not among the given ones.
    """
    distinct = np.concatenate([part for part, _ in parts])
    labels = _sorted(name, distinct) if labels is None else labels
    place = np.split(places(name, distinct, labels), np.cumsum([len(part) for part, _ in parts])[:-1])
    return labels, np.concatenate([place_of[codes] for place_of, (_, codes) in zip(place, parts, strict=True)])


def places(name: str, wanted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Where each wanted label stands among ``labels``; refuses unknown ones."""
    if len(labels) and wanted.dtype.kind == labels.dtype.kind and wanted.dtype.kind in "biufmMUS":
        order = np.argsort(labels)
        codes = order[np.searchsorted(labels, wanted, sorter=order).clip(max=len(labels) - 1)]
        codes[labels[codes] != wanted] = -1
    else:
        place = {label: code for code, label in enumerate(labels)}
        codes = np.fromiter((place.get(label, -1) for label in wanted), np.int64, len(wanted))
    if (codes < 0).any():
        some = ", ".join(map(str, labels[:20])) + (f", ... ({len(labels)} in all)" if len(labels) > 20 else "")
        raise ValueError(f"{name}: unknown label '{wanted[codes < 0][0]}'; known: {some}")
    return codes


def _sorted(name: str, distinct: np.ndarray) -> np.ndarray:
    if distinct.dtype.kind != "O":
        return np.unique(distinct)
    try:
        return np.fromiter(sorted(set(distinct)), dtype=object)
    except TypeError as error:
        kinds = ", ".join(sorted({type(label).__name__ for label in distinct}))
        raise ValueError(f"{name}: expected labels that sort, got {kinds}; convert them to one type") from error


def _coded_integers(column: np.ndarray) -> Coded:
    """Row numbers and the like lie close together: a table of the range is ten times faster than sorting."""
    low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
    if high - low > 4 * len(column) or high >= 2**62:
        distinct = np.unique(column)
        return distinct, np.searchsorted(distinct, column)
    above = column.astype(np.int64) - low
    seen = np.zeros(high - low + 1, dtype=bool)
    seen[above] = True
    return (np.flatnonzero(seen) + low).astype(column.dtype), (np.cumsum(seen) - 1)[above]


def _is_absent(label: Any) -> bool:
    """None, NaN, NaT or pandas.NA, without importing pandas: the last three do not say that they equal themselves."""
    same = label == label
    return label is None or not isinstance(same, bool | np.bool_) or not same
