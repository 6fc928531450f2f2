"""What a completion's user passes in, checked: coordinates, values, weights, and settings per mode.

Each refusal is one sentence. scikit-learn's own checks would copy, and say it in several lines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import scipy.sparse
from scipy.linalg.blas import dnrm2
from sklearn.utils.validation import column_or_1d

from lowrank_rl import check
from lowrank_rl.tensor.labels import as_array
from lowrank_rl.tensor.observed import numbers

LARGEST_MODE = 2**31 - 1


def matrix(X: Any) -> np.ndarray:
    """(B, K) numbers, the caller's own array where it is one."""
    if scipy.sparse.issparse(X):
        raise ValueError("X: expected coordinates (B, K), got a sparse matrix; with M = X.tocoo() pass "
                         "np.column_stack([M.row, M.col]) as X and M.data as y")
    array = as_array("X", X)
    kind, remedy = array.dtype.kind, "number labels with Observed.from_table"
    if kind == "c":
        raise ValueError("X: expected row numbers, got complex numbers; Complex data not supported")
    if array.ndim != 2:
        raise ValueError(f"X: expected coordinates (B, K), got shape {array.shape}; Reshape your data to a row per entry, or "
                         "pass a dense tensor through Observed.from_dense")
    if len(array) == 0:
        raise ValueError("X: expected at least one entry, got none")
    if kind in "iuf":
        return array
    if kind == "b":
        raise ValueError("X: expected row numbers, got bool; a mask goes through Observed.from_dense, else pass X.astype(int)")
    if kind != "O" or any(isinstance(x, str) for x in array.flat):
        raise ValueError(f"X: expected row numbers, got text or dates (dtype {array.dtype}); {remedy}")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:   # scikit-learn wants the kind of error kept
        raise type(error)(f"X: expected row numbers, got objects ('{error}'); {remedy}") from error


def columns(array: np.ndarray, shape: tuple[int, ...] | None, why: str) -> np.ndarray:
    """Coordinates (B, K) as (K, B) int32, of which each entry's stand together; refuses fractions and what is out of range.

    The caller's own where they are like that. One order in memory, because kernels are compiled for each.
    """
    index = array.T if array.dtype == np.int32 and array.flags.c_contiguous else np.empty(array.shape, np.int32).T
    limits = (LARGEST_MODE,) * array.shape[1] if shape is None else shape
    fit = array.dtype.kind != "f" and array.min() >= 0 and array.max() < min(limits)   # sooner said than of each column
    for k, (column, limit) in enumerate(zip(array.T, limits, strict=True)):
        if not fit:
            _refuse_unfit(column, k, limit, why if shape is not None else "number labels with Observed.from_table")
        if not np.may_share_memory(index, array):
            index[k] = column
    return index


def _refuse_unfit(column: np.ndarray, k: int, limit: int, remedy: str) -> None:
    if column.dtype.kind == "f":
        check.finite(f"X, column {k}", column)
        whole = column == np.floor(column)
        if not whole.all():
            raise ValueError(f"X: expected whole numbers as coordinates, got {column[~whole][0]} in column {k}; number the "
                             "labels, for example with Observed.from_table, or use FunctionalCP for continuous coordinates")
    low, high = column.min(), column.max()
    if low < 0:
        raise ValueError(f"X: expected coordinates >= 0, got {low} in column {k}; Negative values in data passed to "
                         "CPCompletion are no row numbers")
    if high >= limit:
        raise ValueError(f"X: expected coordinates below {limit} in column {k}, got {high}; {remedy}")


def values(y: Any) -> np.ndarray:
    """(B,) float64, the caller's own array where it is one."""
    if y is None:
        raise ValueError("y: CPCompletion requires y to be passed, but the target y is None; pass values, or an Observed as X")
    array = as_array("y", y)
    value = column_or_1d(array if array.dtype == np.float64 else numbers("y", array), warn=True)
    with np.errstate(over="ignore", invalid="ignore"):
        if not math.isfinite(value.sum()):   # a sum is read at once; it may also be finite numbers' that overflows
            check.finite("y", value)
    return value


def weights(sample_weight: Any, count: int) -> np.ndarray | None:
    """(B,) float64, None if all are 1; one number stands for all."""
    weight = numbers("sample_weight", sample_weight)
    weight = np.full(count, float(weight)) if weight.ndim == 0 else weight
    if weight.shape != (count,):
        raise ValueError(f"sample_weight: expected shape ({count},), one for each entry, got {weight.shape}")
    check.finite("sample_weight", weight)
    if weight.min() < 0 or weight.max() == 0:
        what = f"{weight.min()}" if weight.min() < 0 else "only zeros"
        raise ValueError(f"sample_weight: expected weights >= 0, not all zero, got {what}; drop entries that shall not count")
    return None if (weight == 1).all() else weight


def fixed(modes: Any, K: int) -> tuple[bool, ...]:
    listed = list(modes) if isinstance(modes, Sequence | np.ndarray | set | range) and not isinstance(modes, str) else [None]
    if not all(isinstance(j, Integral) and not isinstance(j, bool) and -K <= j < K for j in listed):
        raise ValueError(f"fixed_modes: expected a list of modes among 0..{K - 1}, got {modes!r}")
    fixed = tuple(k in {j % K for j in listed} for k in range(K))
    if all(fixed):
        raise ValueError(f"fixed_modes: expected at least one mode of {K} left to fit, got all of them fixed")
    return fixed


def per_mode(name: str, given: Any, modes: int, kind: type) -> tuple:
    """One value per mode from one value or a sequence."""
    many = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str) and np.ndim(given) == 1
    listed = list(given) if many else [given] * modes
    if len(listed) != modes:
        raise ValueError(f"{name}: expected one value or one for each of {modes} modes, got {len(listed)}")
    for x in listed:
        if kind is bool and not isinstance(x, bool | np.bool_):
            raise ValueError(f"{name}: expected True or False, got {x!r}")
        if kind is float and (isinstance(x, bool) or not isinstance(x, float | int | np.number) or not 0 <= x < math.inf):
            raise ValueError(f"{name}: expected a number >= 0, got {x!r}")
    return tuple(kind(x) for x in listed)


def root_mean_square(value: np.ndarray, weight: np.ndarray | None) -> float:
    """1 if all values are 0. BLAS' norm, in which squares neither overflow nor vanish."""
    if weight is None:
        return float(dnrm2(value)) / math.sqrt(len(value)) or 1.0
    return float(dnrm2(np.sqrt(weight) * value)) / math.sqrt(float(weight.sum())) or 1.0
