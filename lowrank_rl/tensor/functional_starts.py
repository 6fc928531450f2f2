"""The starts of an exact fit, side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lowrank_rl.tensor.functional_checkpoint import named, part
from lowrank_rl.tensor.functional_pace import Pace
from lowrank_rl.tensor.functional_state import random_weights, set_aside_outliers, solve, start
from lowrank_rl.tensor.modes import Rows as Table
from lowrank_rl.threads import side_by_side

AGAIN_AT_MOST = 3  # times that a start begins anew
PRIOR_ROWS = 5     # a categorical mode of so many rows per term has enough of them to estimate a prior


class Starts:
    """The starts of all members. Those on a CPU are improved each on its own, as many side by side as torch has threads;
    on a GPU, or beside networks, they are one batch."""

    def __init__(self, module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, weight: Tensor | None,
                 generator: torch.Generator, *, regularization: float | tuple[float, ...], sweeps: int, tol: float, each: int,
                 networks: bool, priors: bool) -> None:
        """``each`` starts per member, which counts entries by ``weight`` (M, B); ``priors``: do rows get one in the end."""
        self.output_mode, count = module.output_mode, module.members * each
        weight = None if weight is None else weight.repeat_interleave(each, 0)
        together = networks or target.device.type != "cpu"
        state = start(module, coordinates, target, regularization, count, weight, generator, at_once=count if together else 1)
        self.groups = [state] if together else [state.part(torch.tensor([i])) for i in range(count)]
        rows = with_prior(module) if priors else []
        # with what those that end in a false minimum begin anew, if each is on its own
        self._each = each
        self._beginnings = [] if together else [{name: value.clone() for name, value in group.tensors().items()}
                                                for group in self.groups]
        self._reserve = [random_weights(module, target.shape[1], AGAIN_AT_MOST, generator) for _ in self._beginnings]
        self._used = [0] * len(self.groups)
        self.paces = [Pace(sweeps, tol, rows, networks, group) for group in self.groups]

    def begin(self) -> None:
        """From rows at random: first solve for the outputs."""
        self._side_by_side(lambda i: solve(self.groups[i], self.output_mode), range(len(self.groups)))

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return all(pace.settled for pace in self.paces)

    @property
    def second(self) -> bool:
        """Whether any start is in its second phase."""
        return any(bool(pace.second.any()) for pace in self.paces)

    def improve(self, number: int) -> str:
        """Sweep number ``number`` and what follows it; what was done."""
        open_ = [i for i, pace in enumerate(self.paces) if not pace.settled]
        steps = self._side_by_side(lambda i: self.paces[i].improve(self.groups[i], number), open_)
        self._renew_lost(number)
        return max(steps, key=len)

    def _renew_lost(self, number: int) -> None:
        """Starts that stand still far above another's loss go on from that one's weights, or, if it is of the same member
        and would only be found twice, from others at random."""
        losses = self.losses()
        best = int(losses.argmin())
        lost = [i for i, pace in enumerate(self.paces)
                if self._reserve and self._used[i] < AGAIN_AT_MOST and pace.lost(float(losses[best]), number)]
        for i in lost:
            fresh = [w[self._used[i]:self._used[i] + 1] for w in self._reserve[i]]
            same = i // self._each == best // self._each
            self.groups[i].renew(fresh if same else self.groups[best].weights, self._beginnings[i])
            self.paces[i].renew(number)
            self._used[i] += 1
        self._side_by_side(lambda i: solve(self.groups[i], self.output_mode), lost)

    def losses(self) -> Tensor:
        """The sum of squared errors after the last sweep, (P,)"""
        return torch.cat([pace.total for pace in self.paces])

    def tensors(self) -> dict[str, Tensor]:
        """All that is in progress."""
        used = {f"{i}.used": torch.tensor(used) for i, used in enumerate(self._used)}
        return used | {f"{i}.{name}": value for i, (group, pace) in enumerate(zip(self.groups, self.paces, strict=True))
                for name, value in {**named("state", group.tensors()), **named("pace", pace.tensors())}.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        for i, (group, pace) in enumerate(zip(self.groups, self.paces, strict=True)):
            mine = {name.split(".", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{i}.")}
            self._used[i] = int(mine["used"])
            group.load(part("state", mine))
            pace.load(part("pace", mine))

    def weights(self) -> list[Tensor]:
        """Of each mode, (P, F, D or 1, R)"""
        return [torch.cat(w) for w in zip(*(group.weights for group in self.groups), strict=True)]

    def take_over(self, weights: list[Tensor], number: int) -> None:
        """Go on from weights that sweeps up to ``number`` have found."""
        self.come_back(weights)
        for pace in self.paces:
            pace.rest(number)

    def come_back(self, weights: list[Tensor]) -> None:
        """Take over earlier ``weights()``."""
        sizes = [len(group.damping) for group in self.groups]
        for group, *mine in zip(self.groups, *(w.split(sizes) for w in weights), strict=True):
            group.weights = [w.clone() for w in mine]

    def noise(self) -> Tensor:
        """The variance of an output's error but for outliers, (P,)"""
        return torch.cat(self._side_by_side(lambda i: set_aside_outliers(self.groups[i])[0], range(len(self.groups))))

    def features_from_all_alike(self) -> None:
        """Solve the mode with the outputs with no entry set aside."""
        def run(i: int) -> None:
            state = self.groups[i]
            state.system.robust = None
            solve(state, self.output_mode)
            self.paces[i].total = state.system.loss(state.weights)
        self._side_by_side(run, range(len(self.groups)))

    def _side_by_side(self, run: Callable, which: Sequence[int]) -> list:
        """Results of ``run(i)``: several each on one thread, a single one on all."""
        return side_by_side(run, which, torch.get_num_threads())


def bootstrap(members: int, entries: int, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """How much each member counts each entry, (M, B): the first all alike, the others at random with mean 1."""
    if members == 1:
        return None
    weight = torch.empty((members, entries), dtype=torch.float64).exponential_(generator=generator)
    weight[0] = 1
    return (weight / weight.mean(1, keepdim=True)).to(device)


def with_prior(module: nn.Module) -> list[int]:
    """The modes whose rows get a prior."""
    return [k for k, mode in enumerate(module.modes) if isinstance(mode, Table) and k != module.output_mode
            and mode.table.shape[1] >= PRIOR_ROWS * module.rank]
