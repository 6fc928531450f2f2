"""How this room compiles: cached on disk where that is possible, without the interpreter's lock."""

from collections.abc import Callable

import numba


def compiled(**options) -> Callable[[Callable], Callable]:
    """``numba.njit`` with the room's options; ``options`` add to them."""
    options = {"nogil": True, "error_model": "numpy", **options}

    def compile_later(function: Callable) -> Callable:
        try:
            return numba.njit(cache=True, **options)(function)
        except RuntimeError:   # no folder to write to: compile again in each process
            return numba.njit(**options)(function)

    return compile_later
