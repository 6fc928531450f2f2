"""Unfinished fits in a file, so that the same call goes on where a killed one was."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_rl.tensor import io

EVERY = 30.0     # seconds between two writes at least


class Checkpoint:
    """Where a fit keeps its tensors and history; without a path it does nothing."""

    def __init__(self, path: str | Path | None, every: float, job: str) -> None:
        """``job`` says what is fitted to what (``fingerprint``): a file of another job is not taken up."""
        self.path, self.every, self.job = Path(path) if path else None, every, job
        self.saved = time.monotonic()

    def resume(self) -> tuple[dict[str, Tensor], list[dict]] | None:
        """Tensors and history so far; None if there is nothing to take up."""
        if self.path is None or not self.path.exists():
            return None
        tensors, header = io.load(self.path, "checkpoint")
        return (tensors, header["history"]) if header["job"] == self.job else None

    def save(self, tensors: Callable[[], dict[str, Tensor]], history: list[dict]) -> None:
        """Write, unless the last time was just now."""
        if self.path is None or time.monotonic() - self.saved < self.every:
            return
        io.save(self.path, "checkpoint", tensors(), {"job": self.job, "history": history})
        self.saved = time.monotonic()

    def remove(self) -> None:
        """The fit is whole."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def fingerprint(config: Any, coordinates: Sequence[Tensor], target: Tensor, module: nn.Module,
                generator: torch.Generator) -> str:
    """Changes with the settings, the data, the start or the seed."""
    digest = hashlib.blake2b(f"{asdict(config)} {module}".encode(), digest_size=16)
    for tensor in (*coordinates, target, *module.state_dict().values(), generator.get_state()):
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def named(kind: str, tensors: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """The same under "kind:name"."""
    return {f"{kind}:{name}": tensor for name, tensor in (tensors or {}).items()}


def part(kind: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those under "kind:name", by name."""
    return {name.split(":", 1)[1]: tensor for name, tensor in tensors.items() if name.startswith(f"{kind}:")}


def so_far(module: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> dict[str, Tensor]:
    """All that a training with one module and one optimizer has come to."""
    return {"generator": generator.get_state(), **named("module", module.state_dict()), **named("adam", moments(optimizer))}


def restore(tensors: dict[str, Tensor], module: nn.Module, optimizer: torch.optim.Optimizer,
            generator: torch.Generator) -> None:
    """Go on with what ``so_far`` gave."""
    module.load_state_dict(part("module", tensors))
    load_moments(optimizer, part("adam", tensors))
    generator.set_state(tensors["generator"])


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What an optimizer has learned of its parameters' gradients."""
    return {f"{number}.{key}": torch.as_tensor(tensor)
            for number, state in optimizer.state_dict()["state"].items() for key, tensor in state.items()}


def load_moments(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of ``moments``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".")
        state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
