"""Scripted test policies, one per environment, whose actions the simulators must predict under.

They stand in for the paper's trained ones (appendix D.1): as there, one policy acts on every agent without knowing who
it is, and its actions are unlike the training data's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_rl.rl.contracts import EpisodeView


@dataclass(frozen=True)
class EnergyPumping:
    """MountainCar: push the way the car moves, so that each swing climbs higher; a tenth of the steps is random."""
    explore: float = 0.1

    def reset(self, agent: Tensor) -> None:
        pass

    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        push = torch.where(view.state[:, 1] >= 0, 2, 0)
        return _explore(push, 3, self.explore, generators)


@dataclass(frozen=True)
class Balance:
    """CartPole: push towards where the pole falls (a linear rule in x, velocity, angle, angular velocity)."""
    gain: tuple[float, ...] = (0.1, 0.2, 1.0, 0.4)
    explore: float = 0.1

    def reset(self, agent: Tensor) -> None:
        pass

    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        lean = view.state @ torch.tensor(self.gain, dtype=view.state.dtype, device=view.state.device)
        return _explore((lean > 0).long(), 2, self.explore, generators)


class CorrelatedTorques:
    """HalfCheetah: torques that wander, a_t = rho a_(t-1) + sqrt(1 - rho^2) sigma N(0, 1), clipped to [-1, 1]."""

    def __init__(self, rho: float = 0.9, sigma: float = 0.6) -> None:
        self.rho, self.sigma = rho, sigma
        self._torque = torch.zeros(0)

    def reset(self, agent: Tensor) -> None:
        self._torque = torch.zeros((len(agent), 6), dtype=torch.float64)

    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        noise = torch.stack([torch.randn(6, generator=g, dtype=torch.float64) for g in generators])
        row = view.episode
        self._torque[row] = self.rho * self._torque[row] + (1 - self.rho ** 2) ** 0.5 * self.sigma * noise
        return self._torque[row].clamp(-1, 1)


def _explore(action: Tensor, n: int, rate: float, generators: list[torch.Generator]) -> Tensor:
    draws = torch.stack([torch.rand(2, generator=g, dtype=torch.float64) for g in generators])
    other = (draws[:, 1] * n).long()
    return torch.where(draws[:, 0] < rate, other, action)[:, None]
