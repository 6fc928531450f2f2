"""Pattern: which entries of a tensor are observed, whatever their values; what it covers and how it hangs together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.observed import Observed, _entry_numbers, numbers, rows, sizes

NAMED = 5          # rows that a summary names before it only counts them
LARGEST = 10_000   # rows or blocks whose overlaps are counted: a matrix of 800 MB


@dataclass(frozen=True, eq=False)
class Pattern:
    """B observed entries of a tensor with K modes, each at most once. ``patterns`` makes the usual kinds.

    Raises:
        ValueError: an index that is not whole or outside ``shape``, no entry, or an entry twice.
    """

    index: np.ndarray        # (B, K) int64
    shape: tuple[int, ...]   # (K,)

    def __post_init__(self) -> None:
        shape = sizes(self.shape)
        index = rows("index", self.index, shape)
        if len(index) == 0:
            raise ValueError("index: expected at least one observed entry, got none")
        entry, first = np.unique(_entry_numbers(index, shape), return_index=True)
        if len(entry) < len(index):
            again = np.setdiff1d(np.arange(len(index)), first)
            raise ValueError(f"index: expected each entry once, got {len(again)} repeats, the first of entry "
                             f"{tuple(index[again[0]].tolist())}; drop them with numpy.unique(index, axis=0)")
        object.__setattr__(self, "index", index)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def of(cls, observed: Observed) -> Pattern:
        """Where a tensor was observed."""
        return cls(observed.index, observed.shape)

    @classmethod
    def from_mask(cls, mask: Any) -> Pattern:
        """From a dense tensor of 1 or True (observed) and 0 or False (missing)."""
        mask = numbers("mask", mask)
        if not np.isin(mask, (0, 1)).all():
            raise ValueError("mask: expected 1 or True (observed) and 0 or False (missing) only, got other values too")
        return cls(np.argwhere(mask), mask.shape)

    def __len__(self) -> int:
        """B, the number of observed entries."""
        return len(self.index)

    @property
    def density(self) -> float:
        """The observed share of all entries."""
        return len(self) / math.prod(self.shape)

    def mask(self) -> np.ndarray:
        """The dense boolean tensor, True where observed."""
        mask = np.zeros(self.shape, dtype=bool)
        mask[tuple(self.index.T)] = True
        return mask

    def contains(self, index: Any) -> np.ndarray:
        """Whether each entry (Q, K) is observed: (Q,) bool."""
        index = rows("index", index, self.shape)
        entry = _entry_numbers(np.concatenate([self.index, index]), self.shape)
        return np.isin(entry[len(self):], entry[:len(self)])

    def adding(self, index: Any) -> Pattern:
        """The same and these entries (Q, K); those that are observed already, or come twice, count once."""
        return Pattern(np.unique(np.concatenate([self.index, rows("index", index, self.shape)]), axis=0), self.shape)

    def observe(self, source: CP | np.ndarray | Callable[[np.ndarray], Any], *, noise: float = 0.0, seed: int) -> Observed:
        """The values of a CP, a dense tensor, or a function of coordinates (B, K) -> (B,), seen through this pattern.

        noise: standard deviation of independent normal errors, in units of the values.

        Raises:
            ValueError: a source of another shape, a negative or infinite noise, values that are NaN or Inf.
        """
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise: expected a standard deviation >= 0, got {noise!r}")
        if callable(source):
            value = numbers("source(index)", source(self.index.copy()))
            check.shapes(index=(self.index, "B K"), **{"source(index)": (value, "B")})
        else:
            source = source if isinstance(source, CP) else numbers("source", source)
            if source.shape != self.shape:
                raise ValueError(f"source: expected the pattern's shape {self.shape}, got {source.shape}")
            value = source.at(self.index) if isinstance(source, CP) else source[tuple(self.index.T)]
        error = numpy_stream(seed, "pattern", "noise").standard_normal(len(self))
        return Observed(self.index, value + noise * error, self.shape)

    def counts(self, k: int) -> np.ndarray:
        """How many entries each row of mode k has: (size of mode k,)"""
        return np.bincount(self.index[:, self._mode("k", k)], minlength=self.shape[k])

    def unobserved(self, k: int) -> np.ndarray:
        """The numbers of the rows of mode k without any entry."""
        return np.flatnonzero(self.counts(k) == 0)

    def components(self, modes: Sequence[int] | None = None) -> tuple[np.ndarray, ...]:
        """Which rows hang together: for each of the modes a number per row, (size of mode,), -1 for rows without entry.

        Two rows are linked if an observed entry lies in both; a component is what links connect. With two modes this is
        the bipartite graph of their rows, whatever the others are. None means all modes. Component 0 has the most entries.
        """
        from scipy.sparse import coo_array  # here, because it is slow to import
        from scipy.sparse.csgraph import connected_components

        listed = range(len(self.shape)) if modes is None else modes
        modes = [self._mode("modes", k) for k in listed]
        if len({*modes}) < max(2, len(modes)):
            raise ValueError(f"modes: expected at least two different ones, got {list(listed)}")
        shape = [self.shape[k] for k in modes]
        first = np.cumsum([0, *shape])
        place = self.index[:, modes] + first[:-1]
        left, right = np.repeat(place[:, 0], len(modes) - 1), place[:, 1:].reshape(-1)
        links = coo_array((np.ones(len(left), dtype=bool), (left, right)), shape=(first[-1], first[-1]))
        found = connected_components(links, directed=False)[1]
        number, entries = np.unique(found[place[:, 0]], return_counts=True)
        name = np.full(first[-1], -1)
        name[number[np.argsort(-entries, kind="stable")]] = np.arange(len(number))
        return tuple(np.split(name[found], first[1:-1]))

    def overlap(self, k: int, groups: Any = None) -> np.ndarray:
        """In how many columns two rows of mode k are both observed: (I_k, I_k), the diagonal being each row's own number.

        A column is one choice of coordinates in the other modes. ``groups`` (I_k,), whole numbers 0..G-1, asks for blocks of
        rows in place of single ones: a block is observed where any of its rows is, and the answer is (G, G).

        Raises:
            ValueError: groups that are not one whole number >= 0 per row.
        """
        from scipy.sparse import coo_array

        k = self._mode("k", k)
        if groups is None:
            groups = np.arange(self.shape[k])
        else:
            groups = row_numbers("groups", groups, 2**31)
            if len(groups) != self.shape[k]:
                raise ValueError(f"groups: expected one number for each of {self.shape[k]} rows of mode {k}, got {len(groups)}")
        if groups.max() >= LARGEST:
            raise ValueError(f"groups: expected at most {LARGEST} rows or blocks to compare in pairs, got {groups.max() + 1}; "
                             "put rows together by groups")
        others = [j for j in range(len(self.shape)) if j != k]
        column = np.unique(_entry_numbers(self.index[:, others], tuple(self.shape[j] for j in others)), return_inverse=True)[1]
        seen = coo_array((np.ones(len(self)), (groups[self.index[:, k]], column)), shape=(groups.max() + 1, column.max() + 1))
        seen = seen.tocsr()
        seen.data[:] = 1
        return (seen @ seen.T).toarray().astype(np.int64)

    def summary(self, modes: Sequence[str] | None = None) -> str:
        """In words: size, coverage of each mode, rows without entry, what does not hang together. modes: their names."""
        names = mode_names(modes, len(self.shape))
        lines = [f"{len(self):,} of {math.prod(self.shape):,} entries observed ({self.density:.3g} of all), "
                 f"{' x '.join(map(str, self.shape))}"]
        for k, name in enumerate(names):
            counts, empty = self.counts(k), self.unobserved(k)
            lines.append(f"  {name}: {self.shape[k]} rows, entries per row {counts.min()} to {counts.max()}, "
                         f"median {np.median(counts):g}" + (f"; {listed_rows(empty)} without any" if len(empty) else ""))
        return "\n".join([*lines, *self.separations(names)])

    def separations(self, names: Sequence[str]) -> list[str]:
        """A sentence for each pair of modes whose rows fall into groups that never meet in an entry."""
        lines = []
        for pair in combinations(range(len(self.shape)), 2):
            labels = self.components(pair)
            groups = int(labels[0].max()) + 1
            if groups > 1:
                parts = [" and ".join(f"{np.count_nonzero(label == g)} {names[k]}"
                                      for k, label in zip(pair, labels, strict=True)) for g in range(min(groups, NAMED))]
                lines.append(f"  {names[pair[0]]} and {names[pair[1]]} fall into {groups} groups that never meet: "
                             + "; ".join(parts) + ("; ..." if groups > NAMED else ""))
        return lines or ["  every two modes hang together"]

    def _mode(self, name: str, k: int) -> int:
        check.count(name, k, 0)
        check.within(name, np.array([k]), len(self.shape))
        return int(k)


def row_numbers(name: str, x: Any, size: int) -> np.ndarray:
    """Row numbers 0..size-1 as int64; whole floats pass."""
    number = numbers(name, x)
    check.shapes(**{name: (number, "rows")})
    check.finite(name, number)
    if (number != np.floor(number)).any():
        raise ValueError(f"{name}: expected whole numbers, got {number[number != np.floor(number)][0]}")
    check.within(name, number, size)
    return number.astype(np.int64)


def mode_names(modes: Sequence[str] | None, K: int) -> list[str]:
    """The given names, or "mode 0", "mode 1", ..."""
    names = [f"mode {k}" for k in range(K)] if modes is None else list(modes)
    if len(names) != K:
        raise ValueError(f"modes: expected a name for each of {K} modes, got {len(names)}")
    return names


def listed_rows(which: np.ndarray) -> str:
    """"row 3", "rows 3, 5" or "17 rows (3, 5, 6, 8, 9, ...)"."""
    text = ", ".join(map(str, which[:NAMED].tolist()))
    if len(which) == 1:
        return f"row {text}"
    return f"rows {text}" if len(which) <= NAMED else f"{len(which)} rows ({text}, ...)"
