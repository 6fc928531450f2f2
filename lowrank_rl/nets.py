"""Small networks whose ensemble members train side by side: the only place where network weights are drawn."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

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
    """M multilayer perceptrons, (M, B, sizes[0]) -> (M, B, sizes[-1]); the last layer is linear."""

    def __init__(self, members: int, sizes: tuple[int, ...], activation: str, *, generator: torch.Generator) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.layers = nn.ModuleList(EnsembleLinear(members, inputs, outputs, generator=generator)
                                    for inputs, outputs in pairwise(sizes))

    def extra_repr(self) -> str:
        return self.activation.__name__   # two networks that print alike compute alike, given equal weights

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)
