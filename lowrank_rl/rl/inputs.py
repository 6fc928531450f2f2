"""What a simulator's network sees of a state: angles as sine and cosine, and no number beyond those of the data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

NUMBER, SINE, COSINE = range(3)


@dataclass(frozen=True)
class Inputs:
    """I numbers, each made of one dimension of the state.

    A body that turns over and over is at the same place each time, but its angle grows; a network would have to learn every
    turn anew. Beyond the data a network's output may be anything, so there it is asked for what is nearest among the data.
    """
    source: Tensor       # (I,) int64, the dimension
    part: Tensor         # (I,) int64: NUMBER, SINE or COSINE of it
    low: Tensor          # (I,) least and greatest; -inf and inf: any
    high: Tensor         # (I,)

    @property
    def plain(self) -> bool:
        """Whether they are the state, unchanged."""
        return not (self.part.any() or self.low.isfinite().any() or self.high.isfinite().any())

    def __call__(self, state: Tensor) -> Tensor:
        """(..., D) -> (..., I)"""
        if self.plain:
            return state
        chosen, part = state[..., self.source], self.part
        value = torch.where(part == SINE, chosen.sin(), torch.where(part == COSINE, chosen.cos(), chosen))
        return torch.minimum(torch.maximum(value, self.low.to(value)), self.high.to(value))

    def to(self, device: torch.device) -> "Inputs":
        return Inputs(*(x.to(device) for x in (self.source, self.part, self.low, self.high)))

    def arrays(self) -> tuple[np.ndarray, ...]:
        """For ``see``."""
        return self.source.cpu().numpy(), self.part.cpu().numpy(), *(x.cpu().float().numpy() for x in (self.low, self.high))


@numba.njit(inline="always")
def see(state: np.ndarray, source: np.ndarray, part: np.ndarray, low: np.ndarray, high: np.ndarray, out: np.ndarray) -> None:
    """``Inputs`` of the rows of ``state`` (B, D) into ``out`` (B, I), with what ``arrays`` gave."""
    for b in range(len(state)):
        for i in range(len(source)):
            value = state[b, source[i]]
            if part[i] == SINE:
                value = np.float32(math.sin(value))
            elif part[i] == COSINE:
                value = np.float32(math.cos(value))
            if value < low[i]:           # written so that NaN stays NaN
                value = low[i]
            elif value > high[i]:
                value = high[i]
            out[b, i] = value


def spread(x: Tensor) -> Tensor:
    """Deviations of the columns of (B, D); 1 where nothing varies."""
    deviation = x.std(0, unbiased=False)
    return torch.where(deviation > 0, deviation, 1)


def plain(dimensions: int) -> Inputs:
    """The state, unchanged."""
    every, limit = torch.arange(dimensions), torch.full((dimensions,), torch.inf, dtype=torch.float64)
    return Inputs(every, torch.zeros_like(every), -limit, limit)


def of(state: Tensor, angles: Sequence[int], inside: bool) -> Inputs:
    """The inputs of a network that learns from states (B, D): ``angles`` as sine and cosine, if ``inside`` within the data.

    Raises:
        ValueError: an angle that is no dimension of the state.
    """
    D = state.shape[1]
    if not set(angles) <= set(range(D)) or len(set(angles)) < len(angles):
        raise ValueError(f"angles: expected different dimensions of the state, 0..{D - 1}, got {tuple(angles)}")
    numbers = [d for d in range(D) if d not in angles]
    every = plain(D + len(angles))
    source = torch.tensor([*numbers, *angles, *angles])
    part = torch.tensor([NUMBER] * len(numbers) + [SINE] * len(angles) + [COSINE] * len(angles))
    found = Inputs(source, part, every.low, every.high)
    if not inside:
        return found if angles else plain(D)
    seen = found(state.double())
    return Inputs(source, part, seen.amin(0), seen.amax(0))
