"""Compiled sums over the entries of a layout: normal equations of every row, and squared errors.

    G_i = sum_b weight[b] c_b c_b',  h_i = sum_b weight[b] value[b] c_b,  c_b = Hadamard product of the other modes' rows

over the entries b of row i. A symmetric (R, R) matrix is packed as its upper triangle, row by row: P = R (R + 1) / 2.

How: the rows [c_b, value[b]], times the root of the weight, of up to CHUNK entries are written to a small buffer Z, and the
lower triangle of Z'Z is added up by tiles whose sums stay in registers; its last row is h. One path serves every rank,
order and size. (Adding up ready outer products from a table, entry by entry or fibre by fibre, takes as long at R = 10 and
I = 1000, and half as long at R = 5 and I = 200, but its tables outgrow the cache soon after.)
"""

import numpy as np

from lowrank_rl.tensor.solvers.compiled import compiled
from lowrank_rl.tensor.solvers.layout import Layout
from lowrank_rl.tensor.solvers.problem import Factors
from lowrank_rl.tensor.solvers.simd import LANES, get_double, get_short, get_word, load, multiply, outer_product, spread, store

CHUNK = 32   # entries in the buffer: 2 to 18 kB at R up to 64, so it stays in the first cache

_tile_2x1, _tile_2x2, _tile_4x1, _tile_4x2 = outer_product(2, 1), outer_product(2, 2), outer_product(4, 1), outer_product(4, 2)
_tile_6x1, _tile_6x2, _tile_8x1, _tile_8x2 = outer_product(6, 1), outer_product(6, 2), outer_product(8, 1), outer_product(8, 2)


def packed_size(rank: int) -> int:
    """P, the entries of a symmetric matrix's triangle."""
    return rank * (rank + 1) // 2


class OtherRows:
    """A layout and the factors of its other modes, padded for the kernel once for all blocks of rows."""

    def __init__(self, layout: Layout, factors: Factors) -> None:
        """``factors``: all K of them; the mode's own is not read."""
        self._layout = layout
        rank = factors[0].shape[1]
        self._places = _tile_places(rank)
        parts = [factors[m] for m in layout.others]
        offset = np.cumsum([0, *map(len, parts)])
        width = -(-rank // LANES) * LANES
        room = np.empty(offset[-1] * width + LANES)
        skip = -room.ctypes.data // 8 % LANES   # rows begin on cache lines
        self._table = room[skip:skip + offset[-1] * width].reshape(-1, width)
        self._table[:, rank:] = 0.0
        for part, begin, end in zip(parts, offset[:-1], offset[1:], strict=True):
            self._table[begin:end, :rank] = part
        self._offset = offset[:-1]

    def add_normal(self, first: int, gram: np.ndarray, rhs: np.ndarray) -> None:
        """Add to ``gram`` (rows, P) and ``rhs`` (rows, R) the normal equations of the mode's rows from ``first`` on."""
        layout = self._layout
        _add_normal(layout.start, layout.record, layout.small, layout.weighted, self._table, self._offset, self._places,
                    first, gram, rhs)

    def squared_error(self, factor: np.ndarray) -> float:
        """sum_b weight[b] (value[b] - model at b)^2, by a pass over the entries; factor: the mode's own."""
        layout = self._layout
        return _squared_error(layout.start, layout.record, layout.small, layout.weighted, self._table, self._offset, factor)


def _tile_places(rank: int) -> np.ndarray:
    """Where the tiles of _add_products keep the P entries of the gram and then the R of h."""
    place = np.zeros((rank + 1, rank + 1), np.int64)
    total = 0
    for a, height in _strips(rank):
        blocks = min(a + height - 1, rank - 1) // LANES + 1
        done = 0
        while done < blocks:
            width = min(2, blocks - done)
            for i in range(min(height, rank + 1 - a)):
                for j in range(LANES * width):
                    column = LANES * done + j
                    if column <= min(a + i, rank):
                        place[a + i, column] = total + LANES * width * i + j
            total += LANES * width * height
            done += width
    lower = [place[b, a] for a in range(rank) for b in range(a, rank)]
    return np.array([*lower, *place[rank, :rank], total])


def _strips(rank: int) -> list[tuple[int, int]]:
    """First row and height of the strips that cover the rank + 1 rows of Z'Z."""
    rows = rank + 1
    return [(a, min(LANES, (rows - a + 1) // 2 * 2)) for a in range(0, rows, LANES)]


@compiled()
def _add_normal(start: np.ndarray, record: np.ndarray, small: bool, weighted: bool, table: np.ndarray, offset: np.ndarray,
                place: np.ndarray, first: int, gram: np.ndarray, rhs: np.ndarray) -> None:
    rank = rhs.shape[1]
    P = gram.shape[1]
    pitch = (rank // LANES + 1) * LANES
    chunk = np.zeros((CHUNK, pitch))
    total = np.zeros(place[P + rank])
    for i in range(len(gram)):
        begin, end = start[first + i], start[first + i + 1]
        if begin == end:
            continue
        for p in range(len(total)):
            total[p] = 0.0
        for b in range(begin, end, CHUNK):
            count = min(CHUNK, end - b)
            _gather(record, small, weighted, table, offset, b, count, rank, pitch, chunk)
            _add_products(rank, pitch, count, chunk, total)
        for p in range(P):
            gram[i, p] += total[place[p]]
        for r in range(rank):
            rhs[i, r] += total[place[P + r]]


@compiled()
def _gather(record, small, weighted, table, offset, b, count, rank, pitch, chunk):
    """chunk[q] = root weight * Hadamard product of the other modes' rows of entry b + q; then its value, in column rank."""
    width, words = table.shape[1], record.shape[1]
    entry = b * words
    second = offset[1] * width if len(offset) > 1 else 0
    for lane in range(0, width, LANES):
        if len(offset) == 1:
            for q in range(count):
                at = entry + q * words
                first = get_short(record, 2 * at + 4) if small else get_word(record, at + 2)
                store(chunk, q * pitch + lane, load(table, first * width + lane))
        elif small:
            for q in range(count):
                at = 2 * (entry + q * words) + 4
                store(chunk, q * pitch + lane, multiply(load(table, get_short(record, at) * width + lane),
                                                        load(table, get_short(record, at + 1) * width + second + lane)))
        else:
            for q in range(count):
                at = entry + q * words + 2
                store(chunk, q * pitch + lane, multiply(load(table, get_word(record, at) * width + lane),
                                                        load(table, get_word(record, at + 1) * width + second + lane)))
        for m in range(2, len(offset)):
            for q in range(count):
                at = entry + q * words
                i = offset[m] + (get_short(record, 2 * at + 4 + m) if small else get_word(record, at + 2 + m))
                store(chunk, q * pitch + lane, multiply(load(chunk, q * pitch + lane), load(table, i * width + lane)))
        if weighted:
            for q in range(count):
                root = get_double(record, entry + (q + 1) * words - 2)
                store(chunk, q * pitch + lane, multiply(load(chunk, q * pitch + lane), spread(root)))
    for q in range(count):
        chunk[q, rank] = get_double(record, entry + q * words)


@compiled()
def _add_products(rank, pitch, count, chunk, total):
    """total += lower triangle of chunk' chunk, in strips of up to eight rows and tiles of one or two vectors."""
    place = 0
    for a in range(0, rank + 1, LANES):
        rows = min(LANES, (rank + 2 - a) // 2 * 2)
        columns = min(a + rows, rank)
        for b in range(0, columns, 2 * LANES):
            two = b + LANES < columns
            if rows == 8:
                if two:
                    _tile_8x2(chunk, pitch, count, a, b, total, place)
                else:
                    _tile_8x1(chunk, pitch, count, a, b, total, place)
            elif rows == 6:
                if two:
                    _tile_6x2(chunk, pitch, count, a, b, total, place)
                else:
                    _tile_6x1(chunk, pitch, count, a, b, total, place)
            elif rows == 4:
                if two:
                    _tile_4x2(chunk, pitch, count, a, b, total, place)
                else:
                    _tile_4x1(chunk, pitch, count, a, b, total, place)
            elif two:
                _tile_2x2(chunk, pitch, count, a, b, total, place)
            else:
                _tile_2x1(chunk, pitch, count, a, b, total, place)
            place += rows * (2 * LANES if two else LANES)


@compiled(fastmath={"reassoc", "contract", "nsz", "arcp"})
def _squared_error(start: np.ndarray, record: np.ndarray, small: bool, weighted: bool, table: np.ndarray,
                   offset: np.ndarray, factor: np.ndarray) -> float:
    rank = factor.shape[1]
    pitch = (rank // LANES + 1) * LANES
    chunk = np.zeros((CHUNK, pitch))
    square = 0.0
    for i in range(len(factor)):
        for b in range(start[i], start[i + 1], CHUNK):
            count = min(CHUNK, start[i + 1] - b)
            _gather(record, small, weighted, table, offset, b, count, rank, pitch, chunk)
            for q in range(count):
                error = chunk[q, rank]
                for r in range(rank):
                    error -= chunk[q, r] * factor[i, r]
                square += error * error
    return square
