"""Fit a functional CP by Adam on minibatches; all members step together, each on its own minibatch.

The loss is the mean squared error over rows and outputs (PerSim, Algorithm 1), in standardised units.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank_rl import check
from lowrank_rl.tensor.functional_checkpoint import EVERY, Checkpoint, fingerprint, named, part, restore, so_far

SCHEDULES = ("constant", "halve", "cosine")


@dataclass(frozen=True)
class AdamConfig:
    epochs: int = 100              # passes over the training entries
    batch: int = 512               # entries per member and step
    learning_rate: float = 1e-3    # at the start
    beta2: float = 0.999           # Adam's memory of squared gradients; less where rare entries err greatly, as at a wall
    schedule: str = "cosine"       # "constant"; "halve": halved after half of the epochs (PerSim); "cosine": down to 0
    held_out: float = 0.0          # fraction of entries kept out of training and scored after each epoch
    patience: int = 0              # stop after so many epochs without a better held-out loss, keep the best; 0: never

    def __post_init__(self) -> None:
        check.count("epochs", self.epochs)
        check.count("batch", self.batch)
        check.count("patience", self.patience, 0)
        check.known("schedule", self.schedule, SCHEDULES)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate!r}")
        if not 0 <= self.beta2 < 1:
            raise ValueError(f"beta2: expected a share in [0, 1), got {self.beta2!r}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: expected a fraction in [0, 1), got {self.held_out!r}")
        if self.patience and not self.held_out:
            raise ValueError("patience: expected held_out > 0 beside it, got 0; early stopping needs held-out entries")


@dataclass(frozen=True)
class Fit:
    """What a solver gives: the fitted module, what happened, and why it stopped."""
    module: nn.Module
    history: list[dict]    # epoch, loss, held_out (or None), learning_rate, seconds
    stopped: str


def fit_adam(module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, config: AdamConfig, *,
             generator: torch.Generator, progress: Callable[[dict], None] | None = None,
             checkpoint: str | Path | None = None, checkpoint_seconds: float = EVERY) -> Fit:
    """Minimise the mean squared error of ``module(coordinates)`` against ``target`` (B, D), in place.

    ``coordinates``: one (B, ...) tensor per mode, already scaled, on the module's device. Minibatches come from
    ``generator`` (on the CPU, so that a GPU sees the same order). With a ``checkpoint`` file, the state after an epoch
    is kept there at most every ``checkpoint_seconds``; the same call finds it, goes on to the same bits, and removes it.

    Raises:
        ValueError: the loss became NaN or Inf (remedy: a smaller learning rate).
    """
    device = target.device
    train, held_out = split(len(target), config.held_out, config.patience, generator, device)
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)
    keep = Checkpoint(checkpoint, checkpoint_seconds,
                      fingerprint(config, coordinates, target, module, generator) if checkpoint else "")
    history: list[dict] = []
    best: dict[str, Tensor] | None = None
    found = keep.resume()
    if found:
        kept, history = found
        restore(kept, module, optimizer, generator)
        best = part("best", kept) or None

    def tensors() -> dict[str, Tensor]:
        return {**so_far(module, optimizer, generator), **named("best", best)}

    stopped = "reached the last epoch"
    started = time.monotonic() - (history[-1]["seconds"] if history else 0.0)

    for epoch in range(len(history) + 1, config.epochs + 1):
        loss = adam_epoch(module, optimizer, coordinates, target, config.batch, generator, train,
                          lambda share, epoch=epoch: _learning_rate(config, epoch - 1 + share))
        entry = {"epoch": epoch, "loss": loss,
                 "held_out": _held_out_loss(module, coordinates, target, held_out),
                 "learning_rate": _learning_rate(config, epoch - 1), "seconds": time.monotonic() - started}
        if not math.isfinite(entry["loss"] + (entry["held_out"] or 0)):
            raise ValueError(f"training diverged in epoch {epoch}: expected finite losses, got {entry['loss']} "
                             f"(held out {entry['held_out']}); "
                             f"use a learning rate below {config.learning_rate} or scaled inputs")
        history.append(entry)
        if config.patience and entry["held_out"] <= min(e["held_out"] for e in history):
            best = {name: value.clone() for name, value in module.state_dict().items()}
        if progress:
            progress(entry)
        if config.patience and since_best(history) >= config.patience:
            stopped = f"no better held-out loss for {config.patience} epochs"
            break
        keep.save(tensors, history)

    if best is not None:
        module.load_state_dict(best)
    keep.remove()
    return Fit(module, history, stopped)


def split(count: int, held_out: float, patience: int, generator: torch.Generator,
          device: torch.device) -> tuple[Tensor, Tensor]:
    """Entries to train on and entries held out, drawn at random.

    Raises:
        ValueError: nothing is left to train on, or nothing is held out although ``patience`` needs it.
    """
    order = torch.randperm(count, generator=generator)
    kept_out = int(held_out * count)
    if kept_out == count:
        raise ValueError(f"held_out: expected entries left to train on, got none of {count}")
    if patience and kept_out == 0:
        raise ValueError(f"held_out: expected enough for patience, got {held_out} of {count}, which is none")
    return order[kept_out:].to(device), order[:kept_out].to(device)


def adam_epoch(module: nn.Module, optimizer: torch.optim.Optimizer, coordinates: Sequence[Tensor], target: Tensor,
               batch: int, generator: torch.Generator, train: Tensor | None = None,
               learning_rate: Callable[[float], float] | None = None) -> float:
    """One pass over the entries ``train`` (all by default), each member in an order of its own; the mean loss on the way.

    ``learning_rate`` gives the rate at each share of the epoch; the optimizer's own by default.
    """
    members, device = module.members, target.device
    train = torch.arange(len(target), device=device) if train is None else train
    rows = torch.stack([torch.randperm(len(train), generator=generator) for _ in range(members)]).to(device)
    rows = train[rows]                                                      # (M, training entries)
    steps = math.ceil(len(train) / batch)
    total = torch.zeros((), device=device)
    for step, some in enumerate(rows.split(batch, dim=1)):
        for group in optimizer.param_groups if learning_rate else []:
            group["lr"] = learning_rate(step / steps)
        error = module([x[some] for x in coordinates]) - target[some]       # (M, batch, D)
        loss = error.square().mean((1, 2)).sum()                            # members do not share parameters
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * some.shape[1]
    return float(total) / (members * len(train))


def _learning_rate(config: AdamConfig, done: float) -> float:
    """The learning rate after ``done`` epochs (with fractions)."""
    if config.schedule == "halve":
        return config.learning_rate * (0.5 if done >= config.epochs / 2 else 1.0)
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done / config.epochs))
    return config.learning_rate


@torch.no_grad()
def _held_out_loss(module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, rows: Tensor) -> float | None:
    if len(rows) == 0:
        return None
    total = 0.0
    for chunk in rows.split(16384):
        batch = chunk.expand(module.members, -1)
        total += float((module([x[batch] for x in coordinates]) - target[batch]).square().mean((0, 2)).sum())
    return total / len(rows)


def since_best(history: list[dict]) -> int:
    """Entries of the history after the one with the lowest held-out loss."""
    losses = [entry["held_out"] for entry in history]
    return len(losses) - 1 - losses.index(min(losses))
