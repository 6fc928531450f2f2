"""Random numbers by name: a generator depends on a seed and on labels, never on what ran before."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def integer(seed: int, *labels: object) -> int:
    """A number in 0..2^63-1 that depends on the seed and the labels only."""
    digest = hashlib.blake2b(repr((int(seed), *labels)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def stream(seed: int, *labels: object, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one purpose: ``stream(3, "halfcheetah", "persim", "init")``."""
    import torch  # here, because it takes a second and 200 MB, and NumPy's streams do without

    return torch.Generator(device).manual_seed(integer(seed, *labels))


def numpy_stream(seed: int, *labels: object) -> np.random.Generator:
    """The same for NumPy."""
    return np.random.default_rng(integer(seed, *labels))
