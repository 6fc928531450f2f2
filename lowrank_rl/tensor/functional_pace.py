"""What an exact fit does next: sweep, step over all modes, begin the second phase, stop."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lowrank_rl.tensor.functional_state import State, levenberg_marquardt, rescale, set_aside_outliers, sweep, update_prior

CREEPS = 0.3       # sweeps that lower the loss by less than this share call for a Levenberg-Marquardt step each,
WORTH = 0.05       # as long as such a step gains this share; it takes as long as four sweeps or more
AGAIN = 10         # sweeps after which it is tried again
SETTLED = 3        # sweeps in a row that lower the loss by less than ``tol`` end a phase
POLISHED = 3       # times ``tol`` does so in the second phase, where only rows change, and not much
LOST = 3.0         # times another start's loss tells a false minimum, of one that stands still
LATEST = 0.75      # share of the sweeps after which the second phase begins even if the first has not settled


class Pace:
    """When to step over all modes, when the second phase begins, when to stop: of each start by how fast its loss falls."""

    def __init__(self, sweeps: int, tol: float, rows: list[int], together: bool, state: State) -> None:
        """``rows``: the modes that get a prior. ``together``: no steps over all modes, and all starts settle at once."""
        self.sweeps, self.tol, self.rows, self.together = sweeps, tol, rows, together
        like = state.damping
        self.second = torch.zeros_like(like, dtype=torch.bool)
        self._settled, self._calm, self._wait = torch.zeros_like(self.second), torch.zeros_like(like), torch.full_like(like, 3)
        self._before = torch.full_like(like, math.inf)      # the loss after the sweep before, in the same phase
        self.total = torch.full_like(like, math.inf)        # of squared errors
        self.began = torch.zeros_like(like)                 # the sweep before the first
        self._slow = torch.zeros_like(self.second)          # whether the last sweep gained next to nothing

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self._settled.all())

    def rest(self, number: int) -> None:
        """Go on from what sweeps up to ``number`` have found: no steps over all modes soon."""
        self._wait[:], self.began[:] = number + AGAIN, number

    def lost(self, lowest: float, number: int) -> bool:
        """Whether a single start has had its time, and stands still far above the loss that another has found."""
        tried = bool((self._calm >= SETTLED) | (number - self.began >= AGAIN) & self._slow)
        return number <= self.sweeps / 2 and tried and bool(~self.second & (self.total > LOST * lowest))

    def renew(self, number: int) -> None:
        """Begin anew after sweep ``number``."""
        self.load({"_settled": torch.zeros_like(self.second), "_calm": torch.zeros_like(self.total),
                   "_before": torch.full_like(self.total, math.inf), "_wait": torch.full_like(self.total, number + 3),
                   "began": torch.full_like(self.total, number)})

    def tensors(self) -> dict[str, Tensor]:
        """All that it remembers."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        vars(self).update({name: value.to(self.total.device) for name, value in tensors.items()})

    def improve(self, state: State, number: int) -> str:
        """Sweep number ``number`` and what follows it; what was done."""
        active = (~self._settled).nonzero()[:, 0]
        if self.rows:
            late = number > LATEST * self.sweeps
            enter = ~self._settled & ~self.second & ((self._calm >= SETTLED) | late)
            self.second |= enter
            self._calm[enter], self._wait[enter], self._before[enter] = 0, number + AGAIN, math.inf
        part, second, before = state.part(active), self.second[active], self._before[active]
        normal = sweep(part)
        loss = part.system.loss(part.weights)
        creeps = (_gain(before, loss) < CREEPS) & (number > self._wait[active])
        step = "sweep"
        if not self.together and bool(creeps.any()):
            stuck = creeps.nonzero()[:, 0]
            few = part.part(stuck)
            levenberg_marquardt(few)
            part.put(few, stuck)
            step, swept, loss = "sweep and Levenberg-Marquardt", loss, part.system.loss(part.weights)
            self._wait[active[creeps & (_gain(swept, loss) < WORTH)]] = number + AGAIN
        total = loss
        if bool(second.any()):
            those = second.nonzero()[:, 0]
            few = part.part(those)
            noise, all_alike = set_aside_outliers(few)
            for k in self.rows:
                update_prior(few, k, normal[k][those], noise)
            part.put(few, those)
            total, loss = total.clone(), loss.clone()
            total[those], loss[those] = all_alike, few.penalized(few.weights)
        rescale(part)
        state.put(part, active)
        calm = _gain(before, loss) < torch.where(second, POLISHED * self.tol, self.tol)
        calm = calm.all().expand_as(calm) if self.together else calm
        self._calm[active] = torch.where(calm, self._calm[active] + 1, torch.zeros_like(loss))
        self._slow[active] = _gain(before, loss) < WORTH
        self._before[active], self.total[active] = loss, total
        self._settled[active] = (self._calm[active] >= SETTLED) & (second if self.rows else True)
        return step


def _gain(before: Tensor, after: Tensor) -> Tensor:
    """The share by which each loss fell, (P,)"""
    return 1 - after / before.clamp(min=torch.finfo(before.dtype).tiny)
