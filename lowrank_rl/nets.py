"""Small networks whose ensemble members train side by side: the only place where network weights are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn

PRECISIONS = ("full", "bfloat16")
ACTIVATIONS = {"relu": torch.relu, "silu": nn.functional.silu, "tanh": torch.tanh}


class EnsembleLinear(nn.Module):
    """M linear layers as one batched product: (M, B, inputs) -> (M, B, outputs).

    Weights and biases start uniform in +-1/sqrt(inputs), PyTorch's default for ``nn.Linear``.
    """

    def __init__(self, members: int, inputs: int, outputs: int, *, generator: torch.Generator) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs))
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class Mlp(nn.Module):
    """M multilayer perceptrons, (M, B, sizes[0]) -> (M, B, sizes[-1]); the last layer is linear.

    ``precision="bfloat16"`` multiplies matrices behind the first layer in that type where the hardware has it (two to
    three times faster); parameters, the first layer and the result keep their own.
    """

    def __init__(self, members: int, sizes: tuple[int, ...], activation: str, precision: str = "full", *,
                 generator: torch.Generator) -> None:
        super().__init__()
        self.activation, self.precision = ACTIVATIONS[activation], precision
        self.layers = nn.ModuleList(EnsembleLinear(members, inputs, outputs, generator=generator)
                                    for inputs, outputs in pairwise(sizes))

    def alone(self, member: int) -> Mlp:
        """A copy of one member."""
        return self._with({name: value[member:member + 1].clone() for name, value in self.state_dict().items()})

    @classmethod
    def of(cls, state: dict[str, Tensor], activation: str) -> Mlp:
        """The networks with these parameters, a ``state_dict``; in full precision."""
        weights = [state[f"layers.{number}.weight"] for number in range(len(state) // 2)]
        network = cls(len(weights[0]), (*(w.shape[1] for w in weights), weights[-1].shape[2]), activation,
                      generator=torch.Generator())
        network.load_state_dict(state)
        return network

    @staticmethod
    def stack(networks: Sequence[Mlp]) -> Mlp:
        """Networks of the same sizes as one, with a copy of all their members."""
        states = [network.state_dict() for network in networks]
        return networks[0]._with({name: torch.cat([state[name] for state in states]) for name in states[0]})

    def _with(self, state: dict[str, Tensor]) -> Mlp:
        other = deepcopy(self)
        for name, parameter in other.named_parameters():
            parameter.data = state[name]
        return other

    def extra_repr(self) -> str:
        # two networks that print alike compute alike, given equal weights
        return f"{self.activation.__name__}, precision={self.precision}"

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, len(self.layers)).to(x.dtype)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer is linear in, (M, B, sizes[-2])."""
        return self.activation(self._run(x, len(self.layers) - 1)).to(x.dtype) if len(self.layers) > 1 else x

    @property
    def inner_dtype(self) -> torch.dtype:
        """In which matrices behind the first layer are multiplied."""
        weight = self.layers[0].weight
        return torch.bfloat16 if self.precision == "bfloat16" and has_bfloat16(weight.device) else weight.dtype

    def _run(self, x: Tensor, layers: int) -> Tensor:
        """The first layers, an activation between any two."""
        first, *others = self.layers[:layers]
        out = first(x)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.inner_dtype == torch.bfloat16):
            for layer in others:
                out = layer(self.activation(out))
        return out


@cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster there than in full precision."""
    if device.type == "cpu":    # torch has no public name for these over the versions that we support
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True
