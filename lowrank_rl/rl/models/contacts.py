"""Walls that a system runs into: where states stop at a bound, no smooth law holds, and no tensor of low rank.

MountainCar's left wall stops the car: position = -1.2, velocity = 0. Such steps are few, but what follows each of them is
predicted wrongly by a law that was fitted through them. They show in the data: next states that share their dimension's
extreme value exactly have probability zero unless something cut them off, or all numbers are rounded; then the values beside
the extreme are shared as well. They are left out of the fit, and the simulator stops its predictions at the bound instead.
"""

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

LEAST = 5        # next states with exactly the extreme value that tell a wall
BESIDE = 10      # next values: none of them may be half as frequent, as those of rounded numbers are
ALIKE = 0.9      # share of them in which another dimension has one and the same value, for it to be set, too


@dataclass(frozen=True)
class Contacts:
    """K walls. At each, one dimension has reached its bound, and others may be set to what they always are there."""
    dimension: Tensor    # (K,) int64
    sign: Tensor         # (K,) 1 for a lower bound, -1 for an upper one
    bound: Tensor        # (K,)
    after: Tensor        # (K, D) the state at the wall; NaN where it is as predicted

    def reached(self, state: Tensor) -> Tensor:
        """Whether states are at or beyond each wall, (..., D) -> (..., K)"""
        return (state[..., self.dimension] - self.bound.to(state.dtype)) * self.sign <= 0

    def stop(self, state: Tensor) -> Tensor:
        """States beyond a wall as they are at it, (..., D) -> (..., D); the second meets them as the first has left them."""
        for k, after in enumerate(self.after.to(state.dtype)):
            state = torch.where(self.reached(state)[..., k, None] & ~after.isnan(), after, state)
        return state

    def to(self, device: torch.device) -> "Contacts":
        return Contacts(*(x.to(device) for x in (self.dimension, self.sign, self.bound, self.after)))

    def arrays(self, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
        """For ``stop_each``."""
        return self.dimension.cpu().numpy(), *(x.to("cpu", dtype).numpy() for x in (self.sign, self.bound, self.after))


@numba.njit(inline="always")
def stop_each(state: np.ndarray, dimension: np.ndarray, sign: np.ndarray, bound: np.ndarray, after: np.ndarray) -> None:
    """``Contacts.stop`` of the columns of ``state`` (D, B), with what ``arrays`` gave."""
    for k in range(len(bound)):
        place, lower, wall = dimension[k], sign[k], bound[k]
        hits = 0
        for b in range(state.shape[1]):      # without branches, so that processors can use vectors; hits are rare
            hits |= np.int32((state[place, b] - wall) * lower <= 0)
        if hits:
            for b in range(state.shape[1]):
                if (state[place, b] - wall) * lower <= 0:
                    for d in range(len(state)):
                        if not np.isnan(after[k, d]):
                            state[d, b] = after[k, d]


def none(dimensions: int) -> Contacts:
    """No walls among so many dimensions."""
    empty = torch.zeros(0, dtype=torch.float64)
    return Contacts(empty.long(), empty, empty, empty.new_zeros((0, dimensions)))


def find(next_state: Tensor) -> Contacts:
    """The walls that next states (B, D) show."""
    found = none(next_state.shape[1])
    for d, column in enumerate(next_state.double().unbind(1)):
        for sign, bound in ((1.0, column.min()), (-1.0, column.max())):
            there = next_state[column == bound].double()
            if LEAST <= len(there) < len(column) and _stands_out(sign * column):
                middle = there.median(0).values
                after = torch.where((there == middle).double().mean(0) >= ALIKE, middle, torch.nan)
                found = Contacts(torch.cat([found.dimension, torch.tensor([d], device=column.device)]),
                                 torch.cat([found.sign, bound.new_tensor([sign])]),
                                 torch.cat([found.bound, bound[None]]), torch.cat([found.after, after[None]]))
    return found


def _stands_out(column: Tensor) -> bool:
    """Whether the least value is much more frequent than those beside it."""
    counts = column.unique(return_counts=True)[1]
    return bool(counts[0] > 2 * counts[1:1 + BESIDE].max())
