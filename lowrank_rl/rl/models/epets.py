"""E-PETS: a probabilistic ensemble on [state, action, embedding of the agent]; PerSim without its factors.

    next_state - state ~ N(mean, variance),      [mean, log variance] = network(state, action, u(agent))

PETS (Chua and others 2018) with a learned vector u for each agent, which enters as any input does, where PerSim multiplies
factors of agent, state and action. Beside PerSim with networks (benchmarks/factorisation.py) it says what the factors alone are
worth; beside ``best``, what exact solves are, which the factors make possible.
Differs: members differ by their start and batches, as PerSim's do; PETS draws a bootstrap sample for each.
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
from lowrank_rl.rl.models import fused_gaussian, gaussian
from lowrank_rl.rl.models.frame import Frame, checked, everyone, frame, pack, unpack
from lowrank_rl.rl.models.gaussian import NARROW, Bounds, Descent, decay, descend, fill, misfit, off
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.tensor import io
from lowrank_rl.tensor.functional_checkpoint import EVERY, Checkpoint, fingerprint

KIND = "E-PETS"


@dataclass(frozen=True)
class EPETSConfig:
    members: int = 5                            # M
    width: int = 8                              # E, of an embedding
    start: float = 0.3                          # deviation of embeddings before training; less tells agents apart later
    hidden: tuple[int, ...] = (200, 200, 200)   # swish
    decay: float = 0.0                          # price on weights, from which layers' own follow (gaussian.decay)
    angles: tuple[int, ...] = ()                # state dimensions seen as sine and cosine
    inside: bool = False                        # no number beyond the data's range is seen
    precision: str = "full"                     # of hidden layers; "bfloat16" is faster
    descent: Descent = Descent(updates=20_000, schedule="cosine")     # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        check.count("members", self.members)
        check.count("width", self.width)
        if not self.decay >= 0:
            raise ValueError(f"decay: expected a number of at least 0, got {self.decay!r}")


class Networks(nn.Module):
    """M members' networks and embeddings, and the units they share."""

    def __init__(self, units: Frame, agents: int, config: EPETSConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        seen, acts, D = units.sizes
        self.units = units
        self.network = fill(Mlp(config.members, (seen + acts + config.width, *config.hidden, 2 * D), "silu",
                                config.precision, generator=generator), generator=generator)
        self.bounds = Bounds(config.members, D)
        self.agents = nn.Parameter(config.start * torch.randn(config.members, agents, config.width, generator=generator))


class EPETS:
    """A DynamicsModel whose context is the agent's embedding; if not ``personal``, everybody's is the first."""

    past, noisy = 0, True

    def __init__(self, module: Networks, config: EPETSConfig, personal: bool, history: list[dict]) -> None:
        self.module, self.config, self.personal, self.history = module, config, personal, history
        self.members = config.members

    @property
    def rows(self) -> Tensor:
        """The agents' embeddings, (M, N, E)."""
        return self.module.agents.detach()

    @property
    def unit(self) -> Tensor:
        """The spread of what is predicted of each dimension, most often a state difference, in the training data, (D,)."""
        return self.module.units.spread

    def context(self, view: EpisodeView) -> Tensor:
        check.within("agent", view.agent, self.rows.shape[1])
        agent = view.agent if self.personal else torch.zeros_like(view.agent)
        return self.rows[:, agent.to(self.rows.device)]

    @torch.no_grad()
    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        module = self.module
        return gaussian.predict(module.units, module.network, module.bounds, context, state, action, generator)

    @torch.no_grad()
    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        module = self.module
        if fused_gaussian.compiles(module.network):
            return fused_gaussian.rollout(module.units, module.network, module.bounds, context, state, actions, generator)
        return rollout(self, context, state, actions, generator)

    def save(self, path: str | Path) -> None:
        """Raises ValueError where the file cannot be written."""
        io.save(path, KIND, *pack(self.module, self.config, self.history, personal=self.personal))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a missing, corrupt or foreign file."""
        tensors, header = io.load(path, KIND)
        units, config = unpack(tensors, header, EPETSConfig)
        networks = Networks(units, tensors["agents"].shape[1], config, generator=torch.Generator())
        networks.load_state_dict(tensors)
        return cls(networks, config, header["personal"], header["history"])


def fit_epets(data: Transitions, agents: int, actions: Discrete | Box, config: EPETSConfig, *, seed: int,
              device: str = "cpu", personal: bool = True, progress: Callable[[dict], None] | None = None,
              checkpoint: str | Path | None = None) -> EPETS:
    """Learn the simulators of ``agents`` agents from their pooled transitions.

    Args:
        personal: False hides from the model who acts.
        progress: called with each entry of the history ("update", "loss", "held_out", "seconds").
        checkpoint: a file for unfinished training; the same call goes on to the same bits, and removes it.

    Raises:
        ValueError: shapes that disagree, NaN or Inf, an agent out of range or without a transition, an action outside
            the bounds, dimensions that the state does not have, a loss that diverged.
    """
    data = checked(data, agents, actions)
    everyone(data, agents)
    units = frame(data, actions, angles=config.angles, inside=config.inside)
    networks = Networks(units, agents, config, generator=rng.stream(seed, "epets", "start"))
    draws = rng.stream(seed, "epets", "batches")
    job = fingerprint(config, (*vars(data).values(), torch.tensor(personal)), data.next_state, networks, draws)
    networks.to(device)
    state, next_state, action = (x.to(device) for x in (data.state.double(), data.next_state.double(), data.action))
    like = networks.agents
    steps = torch.cat([units.see(state), units.act(action)], dim=-1).to(like)
    target = units.target(state, next_state).to(like)
    agent = (data.agent if personal else torch.zeros_like(data.agent)).to(device)
    rows, held = config.descent.split(len(agent), generator=rng.stream(seed, "epets", "held out"))
    member = torch.arange(config.members, device=like.device)[:, None]

    def said(rows: Tensor) -> tuple[Tensor, Tensor]:
        rows = rows.to(like.device)
        return networks.network(torch.cat([steps[rows], networks.agents[member, agent[rows]]], dim=-1)), target[rows]

    def loss(rows: Tensor, done: float) -> Tensor:
        price = NARROW * networks.bounds.width() + decay(networks.network, config.decay, 4)
        return misfit(*said(rows), networks.bounds, done).mean((1, 2)) + price

    def errors(rows: Tensor) -> Tensor:
        each = off(*said(rows), networks.bounds).mean(2)
        return torch.stack([each.sum(), torch.ones_like(each).sum()])

    history = descend(networks, loss, errors, rows.expand(config.members, -1), held, config.descent, generator=draws,
                      keep=Checkpoint(checkpoint, EVERY, job), progress=progress)
    return EPETS(networks.requires_grad_(False), config, personal, history)
