"""What this machine can do at most, measured: multiply-adds, and bytes to and from memory."""

import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from lowrank_rl.rl.models import fused_bfloat16
from lowrank_rl.rl.models.lanes import ROWS, layer
from lowrank_rl.tensor.solvers.compiled import compiled
from lowrank_rl.threads import side_by_side

SIZE = 64           # inputs and outputs of a tile whose data stay in the first cache
TILES = 2000
BIG = 1 << 26       # bytes, more than a cache holds

_tile = layer(SIZE // 16)


def seconds(function: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Wall seconds of some calls, after one that warms up, and processor seconds, of all threads together."""
    function()
    wall, cpu = [], []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        function()
        wall.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    return wall, cpu


def peaks(threads: int) -> dict[str, float]:
    """GFLOP/s in float32 and bfloat16, and GB/s of a copy, by so many threads at once.

    The first two are the most that matrix products of torch and NumPy and a tile in registers reach. By the threads' processor
    time: other programs on the machine do not lower them.
    """
    size = 1024
    a, b = torch.randn(size, size), np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    half, product = a.bfloat16(), 2 * size ** 3

    def best(function: Callable[[], object], work: float) -> float:
        def one(_: int) -> float:
            times = []
            for _ in range(30):
                began = time.thread_time()
                function()
                times.append(time.thread_time() - began)
            return work / min(times[1:]) / 1e9
        return sum(side_by_side(one, range(threads), threads))

    full = max(best(lambda: a @ a, product), best(lambda: b @ b, product), best(*_tiles(torch.zeros(SIZE), np.float32, 1)))
    bfloat16 = best(lambda: half @ half, product)
    if fused_bfloat16.available(a.device):
        bfloat16 = max(bfloat16, best(*_tiles(torch.zeros(SIZE, dtype=torch.int32), np.uint32, 2)))
    rooms = threading.local()     # each thread copies its own

    def copy() -> None:
        if not hasattr(rooms, "both"):
            rooms.both = np.ones(BIG, np.uint8), np.ones(BIG, np.uint8)
        np.copyto(*rooms.both)
    return {"peak_gflop_per_s": full, "peak_bfloat16_gflop_per_s": bfloat16, "peak_gb_per_s": best(copy, 2 * BIG)}


def _tiles(words: torch.Tensor, kind: type, terms: int) -> tuple[Callable[[], None], float]:
    """Something that multiplies and adds for a while, and how much; a word holds ``terms`` numbers."""
    x, weight = (words.new_zeros(n * SIZE).numpy().view(kind) for n in (ROWS, SIZE))
    bias = torch.zeros(SIZE).numpy()
    return lambda: _repeat(x, weight, bias, np.empty(ROWS * SIZE, np.float32)), 2.0 * terms * ROWS * SIZE * SIZE * TILES


@compiled()
def _repeat(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    for _ in range(TILES):
        _tile(x, 0, SIZE, weight, 0, bias, 0, out, 0, SIZE, SIZE, 0)
