"""Small policies for tests of something else: rules of the state, and networks of random weights."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lowrank_rl.rl.behaviour.trained import Network
from lowrank_rl.rl.contracts import Discrete
from lowrank_rl.rng import stream
from lowrank_rl.tensor.bases import PolynomialBasis


@dataclass(frozen=True)
class Rule:
    """A discrete action by a rule of the state; with chance ``explore`` a uniform one instead."""
    choose: Callable[[Tensor], Tensor]      # (B, D) -> (B,)
    actions: Discrete
    explore: float

    past = 0

    def reset(self, agent):
        pass

    def act(self, view, *, generators):
        other = torch.stack([self.actions.sample((), generator=g) for g in generators])
        draws = torch.stack([torch.rand((), generator=g) for g in generators])
        return torch.where((draws < self.explore)[:, None], other, self.choose(view.state)[:, None])


def energy_pumping(explore=0.1):
    """MountainCar: push the way the car moves, so that each swing climbs higher."""
    return Rule(lambda state: 2 * (state[:, 1] >= 0).long(), Discrete(3), explore)


def balance(gain=(0.1, 0.2, 1.0, 0.4), explore=0.1):
    """CartPole: push towards where the pole falls."""
    return Rule(lambda state: (state @ torch.tensor(gain, dtype=state.dtype) > 0).long(), Discrete(2), explore)


def network(inputs, outputs, *, hidden=(20,), seed=0, card=None):
    """Of any sizes, with outputs of about 1."""
    draw, sizes = stream(seed, "network"), (inputs, *hidden, outputs)
    weights = tuple(torch.randn((before, after), generator=draw) * (2 / before) ** 0.5 for before, after in pairwise(sizes))
    return Network(weights, tuple(torch.randn(size, generator=draw) for size in sizes[1:]), card or {})


def near(basis, x):
    """Where a simulator asks a basis instead of at x: polynomials no farther than a tenth of the range from the data."""
    if not isinstance(basis, PolynomialBasis):
        return x
    room = 0.1 * (basis.high - basis.low)
    return torch.minimum(torch.maximum(x, basis.low - room), basis.high + room)
