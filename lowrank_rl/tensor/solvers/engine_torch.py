"""An engine for ALS whose sums run in torch, on a GPU or wherever torch computes, in float64.

Entries are sorted by the row of each mode, and each row's are cut into tiles of L entries, the last one padded with zeros. Of
a tile Z (L, R + 1), with rows [c_b, value[b]] times the root of the weight, Z'Z holds the tile's part of the normal equations.
The products of all tiles are one batched multiplication, and a segmented sum adds them up by row. Neither depends on the order
of threads, and the host waits once for each block of rows. Rows are then solved on the host, as for any engine.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.tensor.solvers.problem import Factors, Problem

SMALLEST, LARGEST = 4, 512   # L: a quarter of the mean number of entries in a row, within these
HOST_BYTES = 1 << 20         # of Z at once on a CPU: stays in the cache
DEVICE_BYTES = 1 << 28       # and elsewhere
BLOCK_BYTES = 1 << 28        # of normal equations at once


@dataclass(frozen=True)
class _Tiles:
    """The entries by row of one mode, on the device. T tiles of L entries."""
    others: tuple[int, ...]     # the other modes
    rows: tuple[Tensor, ...]    # for each of them (T * L,) int32; padding has the row after the first one's last
    value: Tensor               # (T * L,) times the root of the weight
    root: Tensor | None         # (T * L,) of the weight
    length: int                 # L
    count: Tensor               # (I_k,) tiles of each row
    start: np.ndarray           # (I_k + 1,) a row's first tile, on the host


class TorchEngine:
    """``device``: torch's name of it, which must know float64."""

    def __init__(self, problem: Problem, device: str = "cpu") -> None:
        self._device = check.device(device)
        try:
            torch.zeros(1, dtype=torch.float64, device=device)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"device {device!r}: expected one that computes in float64, got '{str(error).splitlines()[0]}'; "
                             "use 'cpu'") from error
        self._problem = problem
        self._bytes = HOST_BYTES if torch.device(device).type == "cpu" else DEVICE_BYTES
        self._tiles: dict[int, _Tiles] = {}   # each mode's when first asked for
        self.square = problem.square()

    def normal(self, factors: Factors, k: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        size, rank = factors[k].shape
        tiles, tables = self._ready(factors, k)
        upper = torch.triu_indices(rank, rank, device=self._device)
        upper = upper[0] * (rank + 1) + upper[1]
        block = max(1, min(size, BLOCK_BYTES // (8 * (rank + 1) ** 2)))
        for first in range(0, size, block):
            last = min(first + block, size)
            total = torch.zeros(last - first, (rank + 1) ** 2, dtype=torch.float64, device=self._device)
            for begin, end in self._cuts(int(tiles.start[first]), int(tiles.start[last]), tiles.length, rank):
                Z = self._gather(tiles, tables, begin, end)
                low = int(np.searchsorted(tiles.start, begin, side="right")) - 1   # rows of the first and after the last tile
                high = int(np.searchsorted(tiles.start, end, side="left"))
                count = tiles.count[low:high].clone()
                count[0] -= begin - int(tiles.start[low])
                count[-1] -= int(tiles.start[high]) - end
                products = torch.bmm(Z.mT, Z).flatten(1)
                total[low - first:high - first] += torch.segment_reduce(products, "sum", lengths=count, unsafe=True)
            rhs = total[:, rank::rank + 1][:, :rank].contiguous()
            yield slice(first, last), total[:, upper].cpu().numpy(), rhs.cpu().numpy()

    def squared_error(self, factors: Factors) -> float:
        k = max(range(len(factors)), key=lambda m: len(factors[m]))
        rank = factors[k].shape[1]
        tiles, tables = self._ready(factors, k)
        own = torch.as_tensor(factors[k], device=self._device)
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        row = torch.repeat_interleave(tiles.count, output_size=int(tiles.start[-1]))
        for begin, end in self._cuts(0, int(tiles.start[-1]), tiles.length, rank):
            Z = self._gather(tiles, tables, begin, end)
            error = Z[:, :, rank] - torch.bmm(Z[:, :, :rank], own[row[begin:end], :, None])[:, :, 0]
            total += error.square().sum()
        return float(total)

    def _ready(self, factors: Factors, k: int) -> tuple[_Tiles, list[Tensor]]:
        """Tiles, and the other modes' factors on the device, the first with a row of zeros for padding."""
        if k not in self._tiles:
            self._tiles[k] = _tile(self._problem, k, self._device)
        tiles = self._tiles[k]
        tables = [torch.as_tensor(factors[m], device=self._device) for m in tiles.others]
        return tiles, [torch.cat([tables[0], torch.zeros_like(tables[0][:1])]), *tables[1:]]

    def _cuts(self, first: int, last: int, length: int, rank: int) -> Iterator[tuple[int, int]]:
        """Ranges of tiles that are held at once."""
        most = max(1, self._bytes // (8 * length * (rank + 1)))
        return pairwise([*range(first, last, most), last])

    def _gather(self, tiles: _Tiles, tables: list[Tensor], begin: int, end: int) -> Tensor:
        """Z of some tiles: (end - begin, L, R + 1)"""
        some = slice(begin * tiles.length, end * tiles.length)
        rank = tables[0].shape[1]
        Z = tables[0].new_empty(end * tiles.length - begin * tiles.length, rank + 1)
        terms = tables[0].index_select(0, tiles.rows[0][some])
        for table, rows in zip(tables[1:], tiles.rows[1:], strict=True):
            terms *= table.index_select(0, rows[some])
        if tiles.root is not None:
            terms *= tiles.root[some, None]
        Z[:, :rank] = terms
        Z[:, rank] = tiles.value[some]
        return Z.view(end - begin, tiles.length, rank + 1)


def _tile(problem: Problem, k: int, device: str) -> _Tiles:
    own = torch.as_tensor(problem.index[k], device=device)
    own, order = torch.sort(own, stable=True)
    entries = torch.bincount(own, minlength=problem.shape[k])
    filled = max(1, int((entries > 0).sum()))
    length = min(LARGEST, max(SMALLEST, 1 << (max(1, len(own) // filled // 4).bit_length() - 1)))
    count = (entries + length - 1) // length
    start = torch.cat([count.new_zeros(1), count.cumsum(0)])
    place = torch.arange(len(own), device=device) + (start[:-1] * length - (entries.cumsum(0) - entries))[own]
    total = int(start[-1]) * length

    def padded(column: np.ndarray, fill: float) -> Tensor:
        column = torch.as_tensor(column, device=device)
        out = torch.full((total,), fill, dtype=column.dtype, device=device)
        out[place] = column[order]
        return out

    others = tuple(m for m in range(len(problem.shape)) if m != k)
    rows = tuple(padded(problem.index[m], problem.shape[m] if m == others[0] else 0) for m in others)
    root = None if problem.weight is None else np.sqrt(problem.weight)
    value = problem.value if root is None else problem.value * root
    return _Tiles(others, rows, padded(value, 0.0), None if root is None else padded(root, 0.0), length, count,
                  start.cpu().numpy())
