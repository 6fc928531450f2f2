"""An ensemble of plain networks as a DynamicsModel, one for everybody: what MOReL learns of the world (NeurIPS 2020, 4.1).

    next_state = state + shift + unit * network((state - center) / scale, action)

with center and scale those of the logged inputs, shift and unit those of the logged differences. A discrete action is shown
as one column per action. Members differ by their start and by the order in which they see the steps, and so agree where there
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
from torch.nn import functional

from lowrank_rl import check, rng
from lowrank_rl.nets import ACTIVATIONS, Mlp
from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView, Transitions
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.tensor import AdamConfig, io
from lowrank_rl.tensor.functional_adam import fit_adam
from lowrank_rl.tensor.functional_checkpoint import Checkpoint, fingerprint, named, part

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


class MlpEnsemble:
    """A DynamicsModel. ``unit``: the spread of a state difference in the training data, (D,)."""

    past, noisy = 0, False

    def __init__(self, network: Mlp, center: Tensor, scale: Tensor, shift: Tensor, unit: Tensor, actions: Discrete | Box,
                 agents: int, history: list[dict]) -> None:
        """center, scale: (I,) of the inputs. shift, unit: (D,) of the outputs. agents: how many there are, all the same."""
        self.network, self.center, self.scale, self.shift, self.unit = network, center, scale, shift, unit
        self.actions, self.agents, self.history = actions, agents, history
        self.members = network.layers[0].weight.shape[0]

    def context(self, view: EpisodeView) -> Tensor:
        check.within("agent", view.agent, self.agents)
        return view.state.new_zeros(self.members, len(view.agent), 0)

    @torch.no_grad()
    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        home = self.center.device
        x, coded = state.to(home, self.center.dtype), _coded(action.to(home), self.actions, self.center.dtype)
        x = torch.cat([x, coded.expand(self.members, *coded.shape)], dim=2)
        delta = self.shift + self.unit * self.network((x - self.center) / self.scale)
        return state + delta.to(state)

    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        return rollout(self, context, state, actions, generator)

    def save(self, path: str | Path) -> None:
        io.save(path, KIND, *self._packed())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a missing, corrupt or foreign file."""
        return cls._unpacked(*io.load(path, KIND))

    def _packed(self) -> tuple[dict[str, Tensor], dict]:
        tensors = {name: getattr(self, name) for name in ("center", "scale", "shift", "unit")}
        header = {"activation": self.network.activation.__name__, "discrete": isinstance(self.actions, Discrete),
                  "actions": vars(self.actions), "agents": self.agents, "history": self.history}
        return {**tensors, **named("network", self.network.state_dict())}, header

    @classmethod
    def _unpacked(cls, tensors: dict[str, Tensor], header: dict, device: str = "cpu") -> Self:
        state = part("network", tensors)
        weights = [state[f"layers.{number}.weight"] for number in range(len(state) // 2)]
        network = Mlp(len(weights[0]), (*(w.shape[1] for w in weights), weights[-1].shape[2]), header["activation"],
                      generator=torch.Generator())
        network.load_state_dict(state)
        actions = (Discrete if header["discrete"] else Box)(**header["actions"])
        return cls(network.to(device), *(tensors[name].to(device) for name in ("center", "scale", "shift", "unit")), actions,
                   header["agents"], header["history"])


class _Trained(nn.Module):
    """The network as ``fit_adam`` calls one: with a list of inputs."""

    def __init__(self, network: Mlp, members: int) -> None:
        super().__init__()
        self.network, self.members = network, members

    def forward(self, coordinates: list[Tensor]) -> Tensor:
        return self.network(coordinates[0])


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
    _refuse(data, agents, actions)
    state, dtype = data.state.double(), torch.get_default_dtype()
    x = torch.cat([state, _coded(data.action, actions, torch.float64)], dim=1)
    delta = data.next_state.double() - state
    D = state.shape[1]
    center, scale, shift, unit = x.mean(0), _spread(x), delta.mean(0), _spread(delta)
    if isinstance(actions, Discrete):
        center[D:], scale[D:] = 0.0, 1.0          # columns of 0 and 1 as they are
    network = Mlp(config.members, (x.shape[1], *config.hidden, D), config.activation,
                  generator=rng.stream(seed, "mlp ensemble", "network"))
    least = math.ceil(config.updates / math.ceil(len(x) / config.adam.batch))
    fit = fit_adam(_Trained(network, config.members).to(device), [((x - center) / scale).to(device, dtype)],
                   ((delta - shift) / unit).to(device, dtype), replace(config.adam, epochs=max(config.adam.epochs, least)),
                   generator=rng.stream(seed, "mlp ensemble", "batches"), progress=progress, checkpoint=checkpoint)
    numbers = (value.to(device, dtype) for value in (center, scale, shift, unit))
    return MlpEnsemble(fit.module.network, *numbers, actions, agents, fit.history)


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


def _coded(action: Tensor, actions: Discrete | Box, dtype: torch.dtype) -> Tensor:
    """What a network sees of actions (B, A)."""
    return functional.one_hot(action[:, 0], actions.n).to(dtype) if isinstance(actions, Discrete) else action.to(dtype)


def _spread(x: Tensor) -> Tensor:
    """Deviations by column; 1 where nothing varies."""
    spread = x.std(0, unbiased=False)
    return torch.where(spread > 0, spread, 1)


def _refuse(data: Transitions, agents: int, actions: Discrete | Box) -> None:
    check.count("agents", agents)
    check.shapes(agent=(data.agent, "B"), state=(data.state, "B D"), action=(data.action, "B A"),
                 next_state=(data.next_state, "B D"))
    check.count("number of logged steps", len(data.agent))
    check.within("agent", data.agent, agents)
    actions.check(data.action, len(data.action))
    check.finite("state", data.state)
    check.finite("next_state", data.next_state)
