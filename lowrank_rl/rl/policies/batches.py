"""Logged steps of several runs, and the batches that offline learners of policies draw from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from lowrank_rl.rl.contracts import Experience
from lowrank_rl.rl.inputs import spread


@dataclass(frozen=True)
class Distinct:
    """The states of a batch, each once: in an episode most that follow are logged ones too."""
    state: Tensor        # (G, S, D), S up to the longest run's, the last repeated in others
    now: Tensor          # (G, B) int64 which of them each step starts from
    then: Tensor         # (G, B) and leads to

    @classmethod
    def of(cls, state: Tensor, next_state: Tensor) -> Self:
        """Of states and next states (G, B, D)."""
        found = [torch.cat(pair).unique(dim=0, return_inverse=True) for pair in zip(state, next_state, strict=True)]
        most = max(len(each) for each, _ in found)
        every = torch.stack([each[torch.arange(most, device=each.device).clamp(max=len(each) - 1)] for each, _ in found])
        now, then = torch.stack([index for _, index in found]).chunk(2, dim=1)
        return cls(every, now, then)


@dataclass(frozen=True)
class Batch:
    """B logged steps for each of G runs; states in units of the run's own."""
    state: Tensor        # (G, B, D)
    action: Tensor       # (G, B, A) float, or (G, B) int64 if discrete
    reward: Tensor       # (G, B)
    next_state: Tensor   # (G, B, D)
    going: Tensor        # (G, B) 1 where the episode goes on, 0 where it terminated
    weight: Tensor       # (G, B) sums to 1 over each run's rows
    extremes: Tensor     # (G, 2) the lowest and the highest reward among all of a run's steps
    distinct: Distinct | None = None     # if these are few: the same object in each batch that consists of the same steps

    def mean(self, each: Tensor) -> Tensor:
        """The mean over steps of (G, B): (G,)."""
        return (each * self.weight).sum(1)


class Logs:
    """The steps of G runs, from which batches are drawn.

    If no run has more steps than a batch, the batch is all of them, each weighted by how often it was drawn.
    """

    def __init__(self, data: Experience, run: Tensor, discrete: bool, device: str) -> None:
        """run: (N,) of each agent, -1 for agents whose steps nobody learns from."""
        own = run[data.agent]
        order = own.argsort(stable=True)
        order = order[own[order] >= 0]
        own = own[order]
        self.runs = int(run.max()) + 1
        self.count = torch.bincount(own, minlength=self.runs)                     # (G,)
        self.first = self.count.cumsum(0) - self.count
        state = data.state[order].double()
        each = [state[first:first + count] for first, count in zip(self.first.tolist(), self.count.tolist(), strict=True)]
        self.center = torch.stack([x.mean(0) for x in each])                      # (G, D)
        self.scale = torch.stack([spread(x) for x in each])
        self.device = torch.device(device)

        def unit(x: Tensor) -> Tensor:
            return ((x[order].double() - self.center[own]) / self.scale[own]).float().to(device)
        action = data.action[order]
        self._parts = {"state": unit(data.state), "action": action[:, 0].to(device) if discrete else action.float().to(device),
                       "reward": data.reward[order].float().to(device), "next_state": unit(data.next_state),
                       "going": (~data.terminated[order]).float().to(device)}
        earned = self._parts["reward"].split(self.count.tolist())
        self.extremes = torch.stack([torch.stack(reward.aminmax()) for reward in earned])              # (G, 2)

    def draw(self, size: int, generators: Sequence[torch.Generator]) -> Batch:
        """``size`` steps for each run, with replacement, each run from its own generator (on the CPU)."""
        rows = torch.stack([torch.randint(int(count), (size,), generator=generator)
                            for count, generator in zip(self.count, generators, strict=True)])        # (G, size)
        longest = int(self.count.max())
        weight = torch.full(rows.shape, 1 / size)
        if longest <= size:
            weight = torch.zeros(self.runs, longest).scatter_add_(1, rows, weight)
            rows = self._all
        return Batch(**self._at(rows), weight=weight.to(self.device), extremes=self.extremes,
                     distinct=self._distinct if longest <= size else None)

    def _at(self, rows: Tensor) -> dict[str, Tensor]:
        """Steps (G, B) of each run, counted from 0."""
        rows = (rows + self.first[:, None]).to(self.device)
        return {name: values[rows] for name, values in self._parts.items()}

    @cached_property
    def _all(self) -> Tensor:
        """(G, length of the longest run) each run's steps from 0, the last repeated."""
        return torch.minimum(torch.arange(int(self.count.max())), self.count[:, None] - 1)

    @cached_property
    def _distinct(self) -> Distinct | None:
        """Of all steps, where most states are the next ones of others."""
        parts = self._at(self._all)
        found = Distinct.of(parts["state"], parts["next_state"])
        return found if 3 * found.state.shape[1] < 4 * self._all.shape[1] else None
