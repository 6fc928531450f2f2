"""Several pieces of work at once, instead of torch's own threads inside each operation, which wait for each other."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


@contextmanager
def torch_threads(count: int) -> Iterator[int]:
    """Torch's operations take ``count`` threads each; gives the number that they took before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def side_by_side(function: Callable[[Piece], Result], pieces: Sequence[Piece], threads: int) -> list[Result]:
    """``[function(piece) for piece in pieces]``, without gradients: several each on one thread, a single one on all.

    How the work is cut decides the results to the last bit, so cut it without regard to the number of threads.
    """
    with torch.no_grad(), torch_threads(threads if len(pieces) == 1 else 1):
        if threads == 1 or len(pieces) <= 1:
            return [function(piece) for piece in pieces]
        return list(_pool(os.getpid(), threads).map(torch.no_grad()(function), pieces))


@lru_cache(maxsize=2)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads do not survive a fork, hence one pool per process. Torch counts its own anew in each thread."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
