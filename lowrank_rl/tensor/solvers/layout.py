"""Entries sorted by the row of one mode, compact: what the compiled kernels read.

An entry is one record, so that sorting writes to one place: its value, its rows in the other modes, and the root of its
weight if there are weights. Records of 12 bytes for three modes of sizes up to 65536; one record type, so one compilation.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np

from lowrank_rl.tensor.solvers.compiled import compiled
from lowrank_rl.tensor.solvers.problem import Problem
from lowrank_rl.tensor.solvers.simd import put_double, put_short, put_word

SMALL = 1 << 16   # rows of modes up to this size take two bytes, else four


@dataclass(frozen=True, eq=False)
class Layout:
    """The entries of row i of the mode are ``start[i]:start[i + 1]``, in the order in which they came."""
    mode: int                  # k
    others: tuple[int, ...]    # (K - 1,) the other modes, in the records' order
    start: np.ndarray          # (I_k + 1,) int64
    record: np.ndarray         # (B, words) uint32: value times root weight; rows in the other modes; root weight
    small: bool                # rows take two bytes
    weighted: bool


def sort_by_mode(index: np.ndarray, value: np.ndarray, weight: np.ndarray | None, shape: tuple[int, ...], k: int,
                 unit: float = 1.0) -> Layout:
    """A stable counting sort: one pass that counts and one that moves, O(B + I_k). index: (K, B)

    unit: values are divided by it.
    """
    others = tuple(m for m in range(len(shape)) if m != k)
    small = max(shape[m] for m in others) <= SMALL
    words = 2 + (-(-len(others) // 2) if small else len(others)) + 2 * (weight is not None)
    start = np.zeros(shape[k] + 1, np.int64)
    record = np.empty((len(value), words), np.uint32)
    _sort(index, value, value[:0] if weight is None else weight, k, float(unit), small, start, record)
    return Layout(k, others, start, record, small, weight is not None)


def unsort(layout: Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """index (K, B), value and weight of the records, in their order."""
    index = np.empty((len(layout.others) + 1, len(layout.record)), np.int32)
    index[layout.mode] = np.repeat(np.arange(len(layout.start) - 1), np.diff(layout.start))
    rows = layout.record[:, 2:].copy()
    rows = rows.view(np.uint16) if layout.small else rows
    for c, m in enumerate(layout.others):
        index[m] = rows[:, c]
    value = layout.record[:, :2].copy().view(np.float64)[:, 0]
    if not layout.weighted:
        return index, value, None
    root = layout.record[:, -2:].copy().view(np.float64)[:, 0]
    return index, value / root, root ** 2


class Layouts:
    """The layouts of one problem's entries, each built when first asked for; share it among restarts.

    They depend on the entries and the shape alone, not on rank, ridge or constraints.
    """

    def __init__(self, problem: Problem, unit: float = 1.0) -> None:
        self._build = partial(sort_by_mode, problem.index, problem.value, problem.weight, problem.shape, unit=unit)
        self._built: dict[int, Layout] = {}

    def __getitem__(self, k: int) -> Layout:
        if k not in self._built:
            self._built[k] = self._build(k)
        return self._built[k]


@compiled()
def _sort(index: np.ndarray, value: np.ndarray, weight: np.ndarray, k: int, unit: float, small: bool, start: np.ndarray,
          record: np.ndarray) -> None:
    K, B = index.shape
    words = record.shape[1]
    for b in range(B):
        start[np.uint32(index[k, b]) + 1] += 1
    for i in range(1, len(start)):
        start[i] += start[i - 1]
    place = start[:-1].copy()
    for b in range(B):
        i = np.uint32(index[k, b])
        at = place[i] * words
        place[i] += 1
        root = 1.0
        if len(weight):
            root = np.sqrt(weight[b])
            put_double(record, at + words - 2, root)
        put_double(record, at, root * value[b] / unit)
        short, c = 2 * at + 4, 2
        for m in range(K):
            if m != k:
                if small:
                    put_short(record, short, index[m, b])
                    short += 1
                else:
                    put_word(record, at + c, index[m, b])
                    c += 1
        if small and K % 2 == 0:
            put_short(record, short, 0)
