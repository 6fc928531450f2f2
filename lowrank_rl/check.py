"""Checks at public doors: each failure is one sentence that says what, expected, got and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def shapes(**named: tuple[torch.Tensor | np.ndarray, str]) -> dict[str, int]:
    """Sizes by axis letter; refuses arrays that disagree.

    ``shapes(state=(state, "M B D"), action=(action, "B A"))["D"]``

    Raises:
        ValueError: an array has another number of axes, or an axis another size than an earlier array gave it.
    """
    size: dict[str, int] = {}
    for name, (array, axes) in named.items():
        letters = axes.split()
        if array.ndim != len(letters):
            raise ValueError(f"{name}: expected axes ({axes}), got shape {tuple(array.shape)}")
        for letter, n in zip(letters, array.shape, strict=True):
            if size.setdefault(letter, n) != n:
                raise ValueError(f"{name}: axis {letter} is {n}, earlier inputs say {letter}={size[letter]}")
    return size


def finite(name: str, array: torch.Tensor | np.ndarray) -> None:
    """Refuse NaN and Inf, saying how many there are and where the first one is."""
    bad = ~(np.isfinite(array) if isinstance(array, np.ndarray) else array.isfinite())
    if bad.any():
        first = tuple(int(axis[0]) for axis in bad.nonzero()) if isinstance(bad, np.ndarray) else \
            tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(f"{name}: {int(bad.sum())} of {bad.size if isinstance(bad, np.ndarray) else bad.numel()} values "
                         f"are NaN or Inf, the first at {first}; expected finite numbers, so drop or repair those rows")


def count(name: str, value: int, low: int = 1) -> None:
    """Refuse what is not a whole number, or is one below ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < low:
        raise ValueError(f"{name}: expected a whole number >= {low}, got {value!r}")


def within(name: str, index: torch.Tensor | np.ndarray, size: int) -> None:
    """Refuse integer indices outside 0..size-1."""
    if len(index) == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise ValueError(f"{name}: expected integers 0..{size - 1}, got values {low}..{high}")


def known(what: str, name: object, names: Iterable[object]) -> None:
    """Refuse a name that is not among the known ones, and list those."""
    names = list(names)
    if name not in names:
        raise ValueError(f"unknown {what} {name!r}; known: {', '.join(map(str, names))}")


def device(name: str) -> str:
    """Refuse a device that torch cannot compute on here."""
    import torch  # here, because it takes a second and 200 MB, which users of discrete completion need not pay

    try:
        float(torch.zeros(1, device=name))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r}: expected one that torch can use here, got '{str(error).splitlines()[0]}'; "
                         "use 'cpu'") from error
    return name


def file(path: Path, what: str) -> None:
    """Refuse a path that is not a file's, where ``what`` is to be read."""
    if not path.is_file():
        raise ValueError(f"{path}: expected {what}, got {'a folder' if path.is_dir() else 'no such file'}")


def writable_folder(path: Path) -> Path:
    """The folder, made if missing; refuses one that cannot be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"folder {path}: expected one that can be written, got '{error.strerror}'; "
                         "name another or change its permissions") from error
    return path
