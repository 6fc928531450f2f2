"""What probabilistic dynamics networks share: a Gaussian of the next state, and how long to train (PETS, Chua
and others 2018; CaDM, Lee and others 2020).

    next_state = kept * state + shift + spread * y,      y ~ N(mean, exp(log_variance))  in each dimension (frame.py)

where the network says mean and raw log variance, and the latter is kept between learned bounds, softly:

    upper = high - softplus(high - raw),      log_variance = low + softplus(upper - low)
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from lowrank_rl import check
from lowrank_rl.nets import Mlp
from lowrank_rl.rl.models.frame import Frame
from lowrank_rl.tensor.functional_checkpoint import Checkpoint, restore, so_far

TOLD = 100                           # updates between two entries of the history, and two looks at what is held out
LOOKS = 3                            # that must be bad in a row for training to stop
HIGH, LOW = 0.5, -10.0               # where the bounds of the log variance start
NARROW = 0.01                        # price on their distance
EVEN = 0.5                           # share of the updates after which likelihoods count as they are
SCHEDULES = ("fixed", "cosine")


class Bounds(nn.Module):
    """Reads a network's 2 D outputs. Differs: each member has bounds of its own; PETS' members share them."""

    def __init__(self, members: int, dims: int) -> None:
        super().__init__()
        self.high = nn.Parameter(torch.full((members, 1, dims), HIGH))
        self.low = nn.Parameter(torch.full((members, 1, dims), LOW))

    def forward(self, out: Tensor) -> tuple[Tensor, Tensor]:
        """(M, B, 2 D) -> mean and log variance, (M, B, D) each."""
        mean, raw = out.chunk(2, dim=-1)
        return mean, self.low + softplus(self.high - softplus(self.high - raw) - self.low)

    def width(self) -> Tensor:
        """By how much the log variance may vary, summed over dimensions, (M,)."""
        return (self.high - self.low).sum((1, 2))


def nll(mean: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    """Negative log likelihood of each number."""
    return 0.5 * ((target - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi))


def misfit(out: Tensor, target: Tensor, bounds: Bounds | None, done: float) -> Tensor:
    """Squared error of each number, or with bounds twice its negative log likelihood: at unit variance, the same but for a
    constant. out (M, B, D) or (M, B, 2 D), done: the share of the training that is over.

    Differs: likelihoods take what is seldom for noise before it is learned, and then never learn it (Seitzer and others
    2022). They begin with weights variance ** b, where b = 1 makes the mean learn from squares alone; b falls to 0 over the
    first half of the training.
    """
    if bounds is None:
        return (target - out).square()
    mean, log_variance = bounds(out)
    even = max(0.0, 1 - done / EVEN)
    return 2 * (even * log_variance.detach()).exp() * nll(mean, log_variance, target)


def off(out: Tensor, target: Tensor, bounds: Bounds | None) -> Tensor:
    """Squared error of the mean. Differs: what is held out is judged by it in every form, since a few numbers with too small a
    variance make likelihoods jump, which stops training early."""
    return (target - (out if bounds is None else bounds(out)[0])).square()


def predict(units: Frame, network: Mlp, bounds: Bounds | None, context: Tensor, state: Tensor, action: Tensor,
            generator: torch.Generator | None) -> Tensor:
    """A DynamicsModel's ``predict`` with a network of [state, action, context]; without bounds nothing is drawn."""
    home, here = state.device, context.device
    state = state.to(here)
    seen = units.see(state)
    acts = units.act(action.to(here)).expand(*seen.shape[:2], -1)
    out = network(torch.cat([seen.to(context), acts.to(context), context], dim=-1))
    if bounds is not None:
        out, log_variance = bounds(out)
        if generator is not None:
            noise = torch.randn(out.shape, generator=generator, device=generator.device, dtype=out.dtype).to(here)
            out = out + (0.5 * log_variance).exp() * noise
    return units.step(state, out).to(home)


@dataclass(frozen=True)
class Descent:
    updates: int = 10_000          # gradient steps at most
    batch: int = 256               # examples per member and update
    learning_rate: float = 1e-3    # of Adam
    schedule: str = "fixed"        # or "cosine": falls to 0
    share: float = 0.1             # of the examples held out,
    most: int = 5000               # but no more than these
    persistence: float = 0.99      # of the rolling mean of the held-out error; training stops when it rises

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "most"):
            check.count(name, getattr(self, name))
        check.known("schedule", self.schedule, SCHEDULES)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate!r}")
        for name in ("share", "persistence"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number from 0 to below 1, got {getattr(self, name)!r}")

    def split(self, count: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Which of ``count`` examples are learned from, and which are held out."""
        order = torch.randperm(count, generator=generator)
        out = min(int(self.share * count), self.most)
        return order[out:].sort().values, order[:out].sort().values


def descend(module: nn.Module, loss: Callable[[Tensor, float], Tensor], errors: Callable[[Tensor], Tensor], rows: Tensor,
            held: Tensor, config: Descent, *, generator: torch.Generator, keep: Checkpoint,
            progress: Callable[[dict], None] | None = None) -> list[dict]:
    """Lower the members' losses by Adam, in place, until all updates are done or the rolling mean of what is held out rises.

    Differs: examples are drawn with replacement, where the sources go through them in epochs.

    Args:
        loss: of examples (M, batch), given the share of updates that is done, by member: (M,). errors: squared ones of
            examples (M, any number), summed over examples and members, and how many there were: (2,).
        rows: (M, examples) that each member learns from. held: (examples,) held out; may be empty, then nothing stops.
        generator: of batches; on the CPU, so that a job draws the same everywhere.
        keep: holds unfinished training; the same call goes on to the same bits.

    Raises:
        ValueError: the loss became NaN or Inf.
    """
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, fused=True)
    history: list[dict] = []
    found = keep.resume()
    if found:
        kept, history = found
        restore(kept, module, optimizer, generator)

    started, total = time.monotonic() - (history[-1]["seconds"] if history else 0.0), 0.0
    for update in range(history[-1]["update"] if history else 0, config.updates):
        if update % TOLD == 0 and _rises([entry["held_out"] for entry in history], config.persistence):
            break
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _slows(config, update)
        batch = rows.gather(1, torch.randint(rows.shape[1], (len(rows), config.batch), generator=generator))
        losses = loss(batch, update / config.updates)
        optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()                                  # members do not share parameters
        optimizer.step()
        total = total + losses.detach().mean()
        done = update + 1
        if done % TOLD == 0 or done == config.updates:
            mean = float(total) / (update % TOLD + 1)
            if not math.isfinite(mean):
                raise ValueError(f"training diverged at update {done}: expected a finite loss, got {mean}; "
                                 f"use a learning rate below {config.learning_rate}")
            history.append({"update": done, "loss": mean, "held_out": _held_out(errors, held, len(rows)),
                            "seconds": time.monotonic() - started})
            total = 0.0
            if progress:
                progress(history[-1])
            keep.save(partial(so_far, module, optimizer, generator), history)
    keep.remove()
    return history


def _slows(config: Descent, update: int) -> float:
    """Share of the learning rate that is left."""
    return 1.0 if config.schedule == "fixed" else 0.5 * (1 + math.cos(math.pi * update / config.updates))


@torch.no_grad()
def _held_out(errors: Callable[[Tensor], Tensor], held: Tensor, members: int) -> float | None:
    """The mean squared error of what is held out."""
    if len(held) == 0:
        return None
    total, count = sum(errors(some.expand(members, -1)) for some in held.split(256)).tolist()
    return total / count


def _rises(held: list[float | None], persistence: float) -> bool:
    """Whether the last ``LOOKS`` values all exceed the rolling mean before them, which starts well above the first value.

    Differs: CaDM's code stops at the first such value, which may be one bad step.
    """
    if len(held) <= LOOKS or held[0] is None:
        return False
    mean = 1.5 * held[0]
    for value in held[1:-LOOKS]:
        mean = persistence * mean + (1 - persistence) * value
    return min(held[-LOOKS:]) > mean


def decay(network: Mlp, price: float, last: int) -> Tensor:
    """price * sum over layers of k |W|^2 / 2, by member (M,), or 0; k is 1, 2, 3, 3, ... and ``last`` for the last layer."""
    if price == 0:
        return network.layers[0].weight.new_zeros(())
    factors = [min(i + 1, 3) for i in range(len(network.layers) - 1)] + [last]
    return price * sum(0.5 * k * layer.weight.square().sum((1, 2)) for k, layer in zip(factors, network.layers, strict=True))


def fill(network: Mlp, *, generator: torch.Generator) -> Mlp:
    """The start of PETS and CaDM: normal, cut at two deviations of 1 / (2 sqrt(inputs)); biases 0."""
    for layer in network.layers:
        deviation = 0.5 / math.sqrt(layer.weight.shape[1])
        nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
        nn.init.zeros_(layer.bias)
    return network
