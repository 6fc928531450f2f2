"""An ensemble of plain networks as a DynamicsModel, one for everybody: what MOReL learns of the world (NeurIPS 2020, 4.1).

    next_state - state = network(state, action)      in the units of frame.py

Members differ by their start and by the order in which they see the steps, and so agree where there
were steps to learn from, and elsewhere only by accident.

Differs: the code cited by PerSim predicts the reward, too, and has nothing between its first two layers; ours are known
reward functions and ordinary networks. The step size falls to 0 as a cosine, without which members disagree by noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from lowrank_rl import check, rng
from lowrank_rl.nets import ACTIVATIONS, Mlp
from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView, Transitions
from lowrank_rl.rl.models import gaussian
from lowrank_rl.rl.models.frame import Frame, checked, frame, pack, unpack
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.tensor import AdamConfig, io
from lowrank_rl.tensor.functional_adam import fit_adam
from lowrank_rl.tensor.functional_checkpoint import Checkpoint, fingerprint

KIND = "MlpEnsemble"


@dataclass(frozen=True)
class MlpEnsembleConfig:
    """PerSim, appendix D.2: four members, two hidden layers of 128 neurons, for HalfCheetah of 1024."""
    members: int = 4                                               # M
    hidden: tuple[int, ...] = (128, 128)
    activation: str = "relu"
    adam: AdamConfig = AdamConfig(epochs=2, batch=128)             # noqa: RUF009 (frozen)
    updates: int = 5_000                                           # at least, by more epochs where there are few steps

    def __post_init__(self) -> None:
        check.count("members", self.members)
        check.count("updates", self.updates)
        check.known("activation", self.activation, ACTIVATIONS)


class Networks(nn.Module):
    """M members and their units."""

    def __init__(self, units: Frame, config: MlpEnsembleConfig, *, generator: torch.Generator) -> None:
        super().__init__()
        seen, acts, D = units.sizes
        self.units, self.members = units, config.members
        self.network = Mlp(config.members, (seen + acts, *config.hidden, D), config.activation, generator=generator)

    def forward(self, coordinates: list[Tensor]) -> Tensor:
        """As ``fit_adam`` calls it, with a list of what networks see."""
        return self.network(coordinates[0])


class MlpEnsemble:
    """A DynamicsModel."""

    past, noisy = 0, False

    def __init__(self, module: Networks, config: MlpEnsembleConfig, agents: int, history: list[dict]) -> None:
        """agents: how many there are, all the same."""
        self.module, self.config, self.agents, self.history = module, config, agents, history
        self.members = config.members

    @property
    def unit(self) -> Tensor:
        """The spread of a state difference in the training data, (D,)."""
        return self.module.units.spread

    def context(self, view: EpisodeView) -> Tensor:
        check.within("agent", view.agent, self.agents)
        return self.module.network.layers[0].weight.new_zeros(self.members, len(view.agent), 0)

    @torch.no_grad()
    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        return gaussian.predict(self.module.units, self.module.network, None, context, state, action, None)

    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        return rollout(self, context, state, actions, generator)

    def save(self, path: str | Path) -> None:
        """Raises ValueError where the file cannot be written."""
        io.save(path, KIND, *self._packed())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a missing, corrupt or foreign file."""
        return cls._unpacked(*io.load(path, KIND))

    def _packed(self) -> tuple[dict[str, Tensor], dict]:
        return pack(self.module, self.config, self.history, agents=self.agents)

    @classmethod
    def _unpacked(cls, tensors: dict[str, Tensor], header: dict, device: str = "cpu") -> Self:
        units, config = unpack(tensors, header, MlpEnsembleConfig)
        networks = Networks(units, config, generator=torch.Generator())
        networks.load_state_dict(tensors)
        return cls(networks.to(device).requires_grad_(False), config, header["agents"], header["history"])


def fit_mlp_ensemble(data: Transitions, agents: int, actions: Discrete | Box, config: MlpEnsembleConfig, *, seed: int,
                     device: str = "cpu", progress: Callable[[dict], None] | None = None,
                     checkpoint: str | Path | None = None) -> MlpEnsemble:
    """Learn one model from the steps of all agents, whoever made them.

    ``progress`` hears of each epoch ("epoch", "loss", ...). ``checkpoint`` is a file for unfinished training; the same call
    goes on to the same bits, and removes it.

    Raises:
        ValueError: shapes that disagree, no steps, NaN or Inf, an agent out of range, actions of another kind or outside the
            bounds, a loss that diverged.
    """
    data = checked(data, agents, actions)
    units = frame(data, actions)
    networks = Networks(units, config, generator=rng.stream(seed, "mlp ensemble", "network")).to(device)
    state, next_state, action = (x.to(device) for x in (data.state.double(), data.next_state.double(), data.action))
    dtype = networks.network.layers[0].weight.dtype
    steps, target = torch.cat([units.see(state), units.act(action)], dim=1).to(dtype), units.target(state, next_state).to(dtype)
    least = math.ceil(config.updates / math.ceil(len(state) / config.adam.batch))
    fit = fit_adam(networks, [steps], target, replace(config.adam, epochs=max(config.adam.epochs, least)),
                   generator=rng.stream(seed, "mlp ensemble", "batches"), progress=progress, checkpoint=checkpoint)
    return MlpEnsemble(networks.requires_grad_(False), config, agents, fit.history)


def fit_or_load(data: Transitions, agents: int, actions: Discrete | Box, config: MlpEnsembleConfig, *, seed: int,
                device: str = "cpu", progress: Callable[[dict], None] | None = None,
                checkpoint: str | Path | None = None) -> MlpEnsemble:
    """``fit_mlp_ensemble``, but the whole model stays in ``checkpoint``, where the same call finds it; the caller removes it.

    For those who train something else with the model, may be killed meanwhile, and would not learn it anew.
    """
    keep = Checkpoint(checkpoint, 0.0, checkpoint and fingerprint(
        config, (data.agent, data.state, data.action), data.next_state, nn.Module(), rng.stream(seed, agents, repr(actions))))
    found = keep.resume()
    if found:
        return MlpEnsemble._unpacked(found[0], found[1][0], device)
    unfinished = keep.path and keep.path.with_name(keep.path.name + ".unfinished")
    model = fit_mlp_ensemble(data, agents, actions, config, seed=seed, device=device, progress=progress, checkpoint=unfinished)
    tensors, header = model._packed()
    keep.save(lambda: tensors, [header])
    return model
