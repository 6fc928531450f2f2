"""Train simulators on what they are used for: predictions that are fed on themselves for many steps.

A simulator that is right about one step is not thereby right about fifty, since it then meets states that it has itself made
a little wrong. So, after one-step training, the squared error of whole predicted stretches of the logs is lowered by gradient
descent through all their steps.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Transitions
from lowrank_rl.tensor.functional import FunctionalModule
from lowrank_rl.tensor.functional_checkpoint import Checkpoint, restore, so_far

TOLD = 50     # updates between two entries of the history


@dataclass(frozen=True)
class MultiStep:
    horizon: int = 25              # H, steps predicted from one true state
    updates: int = 2000            # gradient steps
    batch: int = 128               # stretches per member and update
    learning_rate: float = 1e-3    # of Adam at the start; falls to 0 as a cosine

    def __post_init__(self) -> None:
        check.count("horizon", self.horizon, 2)
        check.count("updates", self.updates)
        check.count("batch", self.batch)
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate!r}")


def stretches(data: Transitions, horizon: int) -> Tensor:
    """First rows of all runs of ``horizon`` steps that follow each other in ``data``.

    Raises:
        ValueError: there are none.
    """
    breaks = torch.cat([torch.zeros(1, dtype=torch.int64), (~data.follows()).cumsum(0)])     # how many before each row
    first = torch.arange(max(0, len(breaks) - horizon + 1))
    first = first[breaks[first] == breaks[first + horizon - 1]]
    if len(first) == 0:
        raise ValueError(f"multi-step training: expected stretches of {horizon} steps that follow each other, got none; "
                         "keep the steps of an episode in order, or choose a shorter horizon")
    return first


def fit_multistep(module: FunctionalModule, coordinates: Callable[..., Sequence[Tensor]], data: Transitions,
                  config: MultiStep, *, generator: torch.Generator, keep: Checkpoint, spent: float = 0.0,
                  progress: Callable[[dict], None] | None = None) -> list[dict]:
    """Lower the mean over H steps of the squared error of predicted states, in units of the states' deviations; in place.

    ``coordinates``: of the module's modes behind the agents, from states (M, B, D) and actions (M, B, A) on its device.
    Members learn apart, each from its own stretches. The history has an entry for every ``TOLD`` updates, which ``progress``
    hears; its seconds go on from the ``spent`` ones. ``keep`` holds unfinished training; the same call goes on to the same
    bits.

    Raises:
        ValueError: no stretch is long enough, or the loss became NaN or Inf.
    """
    first, device = stretches(data, config.horizon), module.center.device
    agent, action = data.agent.to(device), data.action.to(device)
    state, following = (x.to(device, module.dtype) for x in (data.state, data.next_state))
    spread = state.std(0)
    weight = torch.where(spread > 0, 1 / spread, 0)
    center, scale = module.center.to(state), module.scale.to(state)
    optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, fused=True)
    history: list[dict] = []
    found = keep.resume()
    if found:
        kept, history = found
        restore(kept, module, optimizer, generator)

    started, total = time.monotonic() - (history[-1]["seconds"] if history else spent), 0.0
    for update in range(TOLD * len(history), config.updates):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1 + math.cos(math.pi * update / config.updates))
        rows = first[torch.randint(len(first), (module.members, config.batch), generator=generator)].to(device)
        x, error = state[rows], 0.0
        for h in range(config.horizon):
            known = agent[rows], *coordinates(x, action[rows + h])
            x = x + center + scale * module([module.scaled(k, each) for k, each in enumerate(known)])
            error = error + ((x - following[rows + h]) * weight).square().mean((1, 2))
        loss = error.sum() / config.horizon                     # members do not share parameters
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        _limit(module)
        optimizer.step()
        total += float(loss.detach()) / module.members
        if (update + 1) % TOLD == 0 or update + 1 == config.updates:
            told = update % TOLD + 1
            if not math.isfinite(total):
                raise ValueError(f"multi-step training diverged at update {update + 1}: expected a finite loss, got {total}; "
                                 f"use a learning rate below {config.learning_rate} or a shorter horizon than {config.horizon}")
            history.append({"update": update + 1, "loss": total / told, "seconds": time.monotonic() - started})
            total = 0.0
            if progress:
                progress(history[-1])
            keep.save(partial(so_far, module, optimizer, generator), history)
    return history


def _limit(module: FunctionalModule) -> None:
    """Scale down each member's gradient to a length of 1: through many steps it is now and then enormous."""
    gradients = [parameter.grad for parameter in module.parameters()]
    length = sum(g.flatten(1).square().sum(1) for g in gradients).sqrt()        # (M,)
    share = (1 / length).clamp_max(1)
    for g in gradients:
        g.mul_(share.view(-1, *[1] * (g.ndim - 1)))
