"""CaDM: one dynamics model for all agents, told who acts by a context made from the last steps (Lee and others 2020).

    context = encoder(last K state differences and actions)
    next_state - state = ahead(state, action, context),      state - next_state = back(next_state, action, context)

The same context has to serve the next F logged transitions, forwards and backwards. The vanilla form is one network and squared
errors; the probabilistic ensemble ("PE", to be planned in with ``particles.Particles``) says a Gaussian.
Differs: an encoder sees state differences in units of their deviations, or velocities as small as MountainCar's would be
lost; the released code feeds them raw. Windows that begin an episode weigh little: without a past nothing tells who acts, so
that few of them made most of the loss and of its gradient, and hid all that could be learned (docs/baselines.md).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from lowrank_rl import check, rng
from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView, Transitions
from lowrank_rl.rl.inputs import spread
from lowrank_rl.rl.models import fused_gaussian, gaussian
from lowrank_rl.rl.models.frame import Frame, checked, frame, pack, unpack
from lowrank_rl.rl.models.gaussian import NARROW, Bounds, Descent, decay, descend, fill, misfit, off
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.tensor import io
from lowrank_rl.tensor.functional_checkpoint import EVERY, Checkpoint, fingerprint

KIND = "CaDM"


@dataclass(frozen=True)
class CaDMConfig:
    """The vanilla form is ``members=1, probabilistic=False``.

    Differs: the released code prices weights, at a fixed learning rate; both leave errors that 50 steps make large. It also
    trains for hundreds of epochs, and holds out up to 5000 windows.
    """
    members: int = 5                                  # M
    probabilistic: bool = True
    past: int = 10                                    # K, steps that the context is made from
    future: int = 10                                  # F, transitions that it has to serve
    width: int = 10                                   # E, of the context
    hidden: tuple[int, ...] = (200, 200, 200, 200)    # of ahead and back, swish
    context_hidden: tuple[int, ...] = (256, 128, 64)  # of the encoder, ReLU
    back: float = 0.5                                 # weight of the backward error
    blind: float = 0.01                               # weight of windows without a past; released: 1
    decay: float = 0.0                                # price on weights (gaussian.decay); released: 2.5e-5
    unseen: tuple[int, ...] = ()                      # state dimensions that ahead and back do not see
    angles: tuple[int, ...] = ()                      # those seen as sine and cosine
    absolute: tuple[int, ...] = ()                    # those of which the next value is said, not the difference
    precision: str = "full"                           # of hidden layers of ahead and back; "bfloat16" is faster
    descent: Descent = Descent(updates=20_000, schedule="cosine", most=500)      # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        for name in ("members", "past", "future", "width"):
            check.count(name, getattr(self, name))
        for name in ("back", "blind", "decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected a number of at least 0, got {getattr(self, name)!r}")


class Networks(nn.Module):
    """M members' networks and the units they share."""

    def __init__(self, units: Frame, config: CaDMConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        seen, acts, D = units.sizes
        sizes, M = (seen + acts + config.width, *config.hidden), config.members
        self.units, self.past = units, config.past
        self.encoder = fill(Mlp(M, (config.past * (D + acts), *config.context_hidden, config.width), "relu",
                                generator=generator), generator=generator)
        self.ahead, self.back = (fill(Mlp(M, (*sizes, outputs), "silu", config.precision, generator=generator),
                                      generator=generator) for outputs in (2 * D if config.probabilistic else D, D))
        self.bounds = Bounds(M, D) if config.probabilistic else None

    def context(self, change: Tensor, action: Tensor, known: Tensor) -> Tensor:
        """Of K steps, oldest first: differences (M, B, K, D), actions as they are seen, which are known -> (M, B, E)."""
        steps = torch.cat([change / self.units.spread, action], dim=-1)
        return self.encoder(torch.where(known[..., None], steps, 0).flatten(2).to(self.encoder.layers[0].weight))


class CaDM:
    """A DynamicsModel whose context is encoded from the past; if not ``personal``, the past is hidden from it."""

    def __init__(self, module: Networks, config: CaDMConfig, personal: bool, history: list[dict]) -> None:
        self.module, self.config, self.personal, self.history = module, config, personal, history
        self.members, self.past, self.noisy = config.members, config.past, config.probabilistic

    @property
    def unit(self) -> Tensor:
        """The spread of what is predicted of each dimension, most often a state difference, in the training data, (D,)."""
        return self.module.units.spread

    @torch.no_grad()
    def context(self, view: EpisodeView) -> Tensor:
        units = self.module.units
        state, past_state, past_action, known = (
            x.to(units.scale.device) for x in (view.state, view.past_state, view.past_action, view.past_mask))
        spare = self.past - known.shape[1]         # a view may show less of the past than K steps, or more
        past_state, past_action = (nn.functional.pad(x, (0, 0, spare, 0)) for x in (past_state, past_action))
        known = nn.functional.pad(known, (spare, 0)) & self.personal
        after = torch.cat([past_state[:, 1:], state[:, None]], dim=1)
        action = units.act(torch.where(known[..., None], past_action, 0))
        return self.module.context(*(x.expand(self.members, *x.shape) for x in (after - past_state, action, known)))

    @torch.no_grad()
    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        module = self.module
        return gaussian.predict(module.units, module.ahead, module.bounds, context, state, action, generator)

    @torch.no_grad()
    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        module = self.module
        if fused_gaussian.compiles(module.ahead):
            return fused_gaussian.rollout(module.units, module.ahead, module.bounds, context, state, actions, generator)
        return rollout(self, context, state, actions, generator)

    def save(self, path: str | Path) -> None:
        """Raises ValueError where the file cannot be written."""
        io.save(path, KIND, *pack(self.module, self.config, self.history, personal=self.personal))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a missing, corrupt or foreign file."""
        tensors, header = io.load(path, KIND)
        units, config = unpack(tensors, header, CaDMConfig)
        networks = Networks(units, config, generator=torch.Generator())
        networks.load_state_dict(tensors)
        return cls(networks, config, header["personal"], header["history"])


def fit_cadm(data: Transitions, agents: int, actions: Discrete | Box, config: CaDMConfig, *, seed: int,
             device: str = "cpu", personal: bool = True, progress: Callable[[dict], None] | None = None,
             checkpoint: str | Path | None = None) -> CaDM:
    """Learn one model from the pooled logs of ``agents`` agents; the rows of an episode follow each other.

    Args:
        personal: False hides the past from the model: an ensemble that cannot tell agents apart.
        progress: called with each entry of the history ("update", "loss", "held_out", "seconds").
        checkpoint: a file for unfinished training; the same call goes on to the same bits, and removes it.

    Raises:
        ValueError: shapes that disagree, NaN or Inf, an agent out of range, an action outside the bounds, dimensions that
            the state does not have, a loss that diverged.
    """
    data = checked(data, agents, actions)
    units = frame(data, actions, angles=config.angles, unseen=config.unseen, absolute=config.absolute)
    networks = Networks(units, config, generator=rng.stream(seed, "cadm", "start"))
    draws = rng.stream(seed, "cadm", "batches")
    job = fingerprint(config, (*vars(data).values(), torch.tensor(personal)), data.next_state, networks, draws)
    networks.to(device)
    logs = Logs(data, units, config, personal)
    rows, held = config.descent.split(len(data.agent), generator=rng.stream(seed, "cadm", "held out"))
    again = torch.randint(len(rows), (config.members, len(rows)), generator=rng.stream(seed, "cadm", "bootstrap"))
    rows = rows[again] if config.members > 1 else rows[None]

    def weight(first: Tensor) -> Tensor:
        """Of the windows that begin at these rows, the same shape and one more axis."""
        return torch.where(logs.age[first] > 0, 1.0, config.blind if personal else 1.0)[..., None].to(device)

    def loss(first: Tensor, done: float) -> Tensor:
        later = (torch.rand(first.shape, generator=draws) * logs.left[first]).long()
        context, rows = logs.context(networks, first), first + later
        ahead = misfit(*logs.ahead_said(networks, context, rows), networks.bounds, done)
        back = misfit(*logs.back_said(networks, context, rows), None, done)
        price = decay(networks.ahead, config.decay, 4) + decay(networks.encoder, config.decay, 3) + \
            decay(networks.back, config.decay, 4)
        if networks.bounds is not None:
            price = price + NARROW * networks.bounds.width()
        return (weight(first) * (ahead + config.back * back)).mean((1, 2)) + price

    def errors(first: Tensor) -> Tensor:
        later, left = torch.arange(config.future), logs.left[first][..., None]
        rows, inside = (first[..., None] + torch.minimum(later, left - 1)).flatten(1), (later < left).flatten(1)
        context = logs.context(networks, first).repeat_interleave(config.future, dim=1)
        each = off(*logs.ahead_said(networks, context, rows), networks.bounds).mean(2)
        inside = inside.to(each) * weight(first).repeat_interleave(config.future, dim=1)[..., 0]
        return torch.stack([(each * inside).sum(), inside.sum()])

    history = descend(networks, loss, errors, rows, held, config.descent, generator=draws,
                      keep=Checkpoint(checkpoint, EVERY, job), progress=progress)
    return CaDM(networks.requires_grad_(False), config, personal, history)


class Logs:
    """Logged steps as the networks see them, on their device."""

    def __init__(self, data: Transitions, units: Frame, config: CaDMConfig, personal: bool) -> None:
        self.past = config.past
        age, self.left = _places(data)
        self.age = age if personal else torch.zeros_like(age)
        self.left = self.left.clamp_max(config.future)
        home = units.scale.device
        state, next_state, action = (x.to(home) for x in (data.state.double(), data.next_state.double(), data.action))
        backward = state - units.kept * next_state
        dtype = torch.get_default_dtype()
        self.state, self.next_state, self.action, self.ahead, self.back, self.change = (x.to(dtype) for x in (
            units.see(state), units.see(next_state), units.act(action), units.target(state, next_state),
            (backward - backward.mean(0)) / spread(backward), next_state - state))

    def context(self, networks: Networks, first: Tensor) -> Tensor:
        """Of the episodes at rows ``first`` (M, B)."""
        back = torch.arange(self.past, 0, -1)
        rows, known = (first[..., None] - back).clamp_min(0), back <= self.age[first][..., None]
        rows, known = rows.to(self.state.device), known.to(self.state.device)
        return networks.context(self.change[rows], self.action[rows], known)

    def ahead_said(self, networks: Networks, context: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of the transitions at rows (M, B), with contexts (M, B, E): outputs and targets."""
        rows = rows.to(self.state.device)
        return networks.ahead(torch.cat([self.state[rows], self.action[rows], context], dim=-1)), self.ahead[rows]

    def back_said(self, networks: Networks, context: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same backwards."""
        rows = rows.to(self.state.device)
        return networks.back(torch.cat([self.next_state[rows], self.action[rows], context], dim=-1)), self.back[rows]


def _places(data: Transitions) -> tuple[Tensor, Tensor]:
    """How many steps of its episode come before each row, and how many from it on, (B,) each."""
    episode = torch.cat([torch.zeros(1, dtype=torch.int64), (~data.follows()).cumsum(0)])
    length = torch.bincount(episode)
    end = length.cumsum(0)[episode]
    row = torch.arange(len(episode))
    return row - end + length[episode], end - row
