"""Fit a functional CP by exact solves: with the others fixed, every mode is linear in its weights.

A sweep solves each mode once (alternating least squares). Where sweeps creep (a swamp), a Levenberg-Marquardt step over all
modes at once follows. When that has settled, a second phase polishes the rows of large categorical modes: they get a Gaussian
prior, whose mean, covariance and noise are estimated from the rows themselves (empirical Bayes, by expectation maximisation),
so that a row with few entries falls back on what the others are like; and gross outliers are set aside, so that they do not
spoil it. The features of the mode with the outputs are then solved once more from all entries alike. A network's hidden
layers train by Adam between sweeps; its last layer is solved like any other mode.

Members start apart and, from the second on, see entries weighted at random (the Bayesian bootstrap: Rubin, Annals of
Statistics 9(1), 1981), so that their disagreement says what the data leave open.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowrank_rl import check
from lowrank_rl.nets import Mlp
from lowrank_rl.tensor.functional_adam import Fit, adam_epoch, since_best, split
from lowrank_rl.tensor.functional_state import (
    State,
    features_of,
    levenberg_marquardt,
    rescale,
    set_aside_outliers,
    solve,
    start,
    store,
    sweep,
    update_prior,
    weights_of,
)
from lowrank_rl.tensor.functional_system import System
from lowrank_rl.tensor.modes import Rows as Table

CREEPS = 0.3       # sweeps that lower the loss by less than this share call for a Levenberg-Marquardt step each,
WORTH = 0.05       # as long as such a step gains this share; it takes as long as four sweeps or more
AGAIN = 10         # sweeps after which it is tried again
SETTLED = 3        # sweeps in a row that lower the loss by less than ``tol`` end a phase
POLISH = 10        # sweeps that the second phase takes at most
PRIOR_ROWS = 5     # a categorical mode of so many rows per term has enough of them to estimate a prior
LATEST = 0.75      # share of the sweeps after which the second phase begins even if the first has not settled


@dataclass(frozen=True)
class ALSConfig:
    sweeps: int = 60                 # at most; each solves every mode once
    regularization: float | tuple[float, ...] = 1e-6   # of all modes or each: its penalty's weight beside the mean error
    tol: float = 1e-3                # settled: three sweeps in a row lower the loss by less than this share
    spare: int = 0                   # further starts of each member, of which the one with the lowest loss stays
    held_out: float = 0.0            # fraction of entries kept out of the fit and scored after each sweep
    patience: int = 0                # stop after so many sweeps without a better held-out loss, keep the best; 0: never
    learning_rate: float = 1e-3      # of the hidden layers of Neural modes, whose epochs of Adam alternate with sweeps
    batch: int = 512                 # entries per member and step there

    def __post_init__(self) -> None:
        check.count("sweeps", self.sweeps)
        check.count("spare", self.spare, 0)
        check.count("patience", self.patience, 0)
        check.count("batch", self.batch)
        if isinstance(self.regularization, list):
            object.__setattr__(self, "regularization", tuple(self.regularization))
        values = self.regularization if isinstance(self.regularization, tuple) else (self.regularization,)
        if not all(isinstance(value, float | int) and 0 < value < math.inf for value in values):
            raise ValueError(f"regularization: expected numbers above 0, got {self.regularization!r}")
        if not 0 <= self.tol < 1:
            raise ValueError(f"tol: expected a share in [0, 1), got {self.tol!r}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate!r}")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out: expected a fraction in [0, 1), got {self.held_out!r}")
        if self.patience and not self.held_out:
            raise ValueError("patience: expected held_out > 0 beside it, got 0; early stopping needs held-out entries")


def fit_als(module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, config: ALSConfig, *,
            generator: torch.Generator, progress: Callable[[dict], None] | None = None) -> Fit:
    """Minimise the mean squared error of ``module(coordinates)`` against ``target`` (B, D), in place.

    ``coordinates``: one (B, ...) tensor per mode, already scaled, on the module's device. The history has an entry per sweep:
    epoch, loss (mean over members, all entries alike, without penalties), held_out, step (what was done), seconds.

    Raises:
        ValueError: spare starts beside a Neural mode, or a loss that is not finite.
    """
    train, held_out = split(len(target), config.held_out, config.patience, generator, target.device)
    fitted, known = [x[train] for x in coordinates], target[train]
    scored = _Scored(module, [x[held_out] for x in coordinates], target[held_out])
    hidden = _HiddenLayers(module, fitted, known, config, generator) if any(isinstance(m, Mlp) for m in module.modes) else None
    if hidden and config.spare:
        raise ValueError(f"spare: expected 0 where a mode is Neural, got {config.spare}; raise members instead")
    starts = _Starts(module, fitted, known, config, hidden is not None, generator)
    history: list[dict] = []
    best, stopped, began = None, "reached the last sweep", time.monotonic()

    def record(number: int, step: str, loss: Tensor) -> Tensor:
        """Append to the history; the starts with the lowest loss, one per member."""
        chosen = loss.view(module.members, -1).argmin(1)
        chosen = chosen + torch.arange(module.members, device=chosen.device) * (1 + config.spare)
        history.append({"epoch": number, "loss": float(loss[chosen].mean()) / known.numel(),
                        "held_out": scored.loss([w[chosen] for w in starts.weights()]), "step": step,
                        "seconds": time.monotonic() - began})
        if not math.isfinite(history[-1]["loss"]):
            raise ValueError(f"sweep {number}: expected finite losses, got {history[-1]['loss']}; raise regularization above "
                             f"{config.regularization} or scale the data")
        return chosen

    for number in range(1, config.sweeps + 1):
        if hidden and number > 1:
            hidden.train(starts.groups[0], (number - 1) / config.sweeps)
        with torch.no_grad():
            chosen = record(number, *starts.improve(number))
        if config.patience and history[-1]["held_out"] <= min(e["held_out"] for e in history):
            best = starts.weights(), chosen, hidden and hidden.snapshot()
        if progress:
            progress(history[-1])
        if config.patience and since_best(history) >= config.patience:
            stopped = f"no better held-out loss for {config.patience} sweeps"
            break
        if starts.settled:
            stopped = f"settled: the last {SETTLED} sweeps lowered the loss by less than {config.tol:.2%} each"
            break

    with torch.no_grad():
        if best:
            weights, chosen, layers = best
            starts.come_back(weights)
            if hidden:
                hidden.restore(layers, starts.groups[0])
        noise = starts.noise()
        if starts.second:
            record(number, "features from all entries alike", starts.features_from_all_alike())
        module.noise.fill_(float(noise[chosen].mean()))
        store(module, [w[chosen] for w in starts.weights()])
    return Fit(module, history, stopped)


class _Starts:
    """The starts of all members. Those on a CPU are improved each on its own, as many side by side as torch has threads;
    on a GPU, or beside networks, they are one batch."""

    def __init__(self, module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, config: ALSConfig, networks: bool,
                 generator: torch.Generator) -> None:
        self.output_mode, count = module.output_mode, module.members * (1 + config.spare)
        weight = _bootstrap(module.members, len(target), generator, target.device)
        weight = None if weight is None else weight.repeat_interleave(1 + config.spare, 0)
        together = networks or target.device.type != "cpu"
        with torch.no_grad():
            state = start(module, coordinates, target, config.regularization, count, weight, generator,
                          at_once=count if together else 1)
            self.groups = [state] if together else [state.part(torch.tensor([i])) for i in range(count)]
            self._side_by_side(lambda i: solve(self.groups[i], self.output_mode), range(len(self.groups)))
        self.paces = [_Pace(config, _with_prior(module), networks, group) for group in self.groups]

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return all(pace.settled for pace in self.paces)

    @property
    def second(self) -> bool:
        """Whether any start is in its second phase."""
        return any(bool(pace.second.any()) for pace in self.paces)

    def improve(self, number: int) -> tuple[str, Tensor]:
        """Sweep number ``number`` and what follows it; what was done, and the sum of squared errors, (P,)"""
        open_ = [i for i, pace in enumerate(self.paces) if not pace.settled]
        steps = self._side_by_side(lambda i: self.paces[i].improve(self.groups[i], number), open_)
        return max(steps, key=len), torch.cat([pace.total for pace in self.paces])

    def weights(self) -> list[Tensor]:
        """Of each mode, (P, F, D or 1, R)"""
        return [torch.cat(w) for w in zip(*(group.weights for group in self.groups), strict=True)]

    def come_back(self, weights: list[Tensor]) -> None:
        """Take over earlier ``weights()``."""
        sizes = [len(group.damping) for group in self.groups]
        for group, *mine in zip(self.groups, *(w.split(sizes) for w in weights), strict=True):
            group.weights = mine

    def noise(self) -> Tensor:
        """The variance of an output's error but for outliers, (P,)"""
        return torch.cat(self._side_by_side(lambda i: set_aside_outliers(self.groups[i])[0], range(len(self.groups))))

    def features_from_all_alike(self) -> Tensor:
        """Solve the mode with the outputs with no entry set aside; the sum of squared errors, (P,)"""
        def run(i: int) -> Tensor:
            state = self.groups[i]
            state.system.robust = None
            solve(state, self.output_mode)
            return state.system.loss(state.weights)
        return torch.cat(self._side_by_side(run, range(len(self.groups))))

    def _side_by_side(self, run: Callable, which: Sequence[int]) -> list:
        """Results of ``run(i)``, each on one thread."""
        threads = torch.get_num_threads()
        if len(which) == 1 or threads == 1:
            return [run(i) for i in which]

        def alone(i: int) -> object:
            torch.set_num_threads(1)      # counts for this thread only
            with torch.no_grad():
                return run(i)
        try:
            with ThreadPoolExecutor(min(threads, len(which))) as pool:
                return list(pool.map(alone, which))
        finally:
            torch.set_num_threads(threads)


class _Pace:
    """When to step over all modes, when the second phase begins, when to stop: of each start by how fast its loss falls."""

    def __init__(self, config: ALSConfig, rows: list[int], together: bool, state: State) -> None:
        """``rows``: the modes that get a prior. ``together``: no steps over all modes, and all starts settle at once."""
        self.config, self.rows, self.together = config, rows, together
        like = state.damping
        self.second, self._polished = torch.zeros_like(like, dtype=torch.bool), torch.zeros_like(like)
        self._settled, self._calm, self._wait = torch.zeros_like(self.second), torch.zeros_like(like), torch.full_like(like, 3)
        self._before = torch.full_like(like, math.inf)      # the loss after the sweep before, in the same phase
        self.total = torch.full_like(like, math.inf)        # of squared errors

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do."""
        return bool(self._settled.all())

    def improve(self, state: State, number: int) -> str:
        """Sweep number ``number`` and what follows it; what was done."""
        active = (~self._settled).nonzero()[:, 0]
        if self.rows:
            late = number > LATEST * self.config.sweeps
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
        calm = _gain(before, loss) < self.config.tol
        calm = calm.all().expand_as(calm) if self.together else calm
        self._calm[active] = torch.where(calm, self._calm[active] + 1, torch.zeros_like(loss))
        self._before[active], self.total[active] = loss, total
        self._polished[active] += second
        if self.rows:
            self._settled[active] = second & ((self._calm[active] >= SETTLED) | (self._polished[active] >= POLISH))
        else:
            self._settled[active] = self._calm[active] >= SETTLED
        return step


class _HiddenLayers:
    """The networks' epochs of Adam between sweeps."""

    def __init__(self, module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, config: ALSConfig,
                 generator: torch.Generator) -> None:
        self.module, self.coordinates, self.target = module, coordinates, target
        self.config, self.generator = config, generator
        self.optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, fused=True)

    def snapshot(self) -> dict[str, Tensor]:
        """Everything in the networks, to come back to."""
        return {name: value.clone() for name, value in self.module.state_dict().items()}

    def restore(self, layers: dict[str, Tensor], state: State) -> None:
        """Back to a snapshot, whose features the system then computes anew."""
        self.module.load_state_dict(layers)
        state.system.forget()
        state.grams.clear()

    def train(self, state: State, done: float) -> None:
        """One epoch at the rate of a cosine after the share ``done``, from the weights of ``state`` and back into them."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        store(self.module, state.weights)
        adam_epoch(self.module, self.optimizer, self.coordinates, self.target, self.config.batch, self.generator)
        state.weights = [weights_of(mode, w.shape[2]) for mode, w in zip(self.module.modes, state.weights, strict=True)]
        state.system.forget()
        state.grams.clear()


def _bootstrap(members: int, entries: int, generator: torch.Generator, device: torch.device) -> Tensor | None:
    """How much each member counts each entry, (M, B): the first all alike, the others at random with mean 1."""
    if members == 1:
        return None
    weight = torch.empty((members, entries), dtype=torch.float64).exponential_(generator=generator)
    weight[0] = 1
    return (weight / weight.mean(1, keepdim=True)).to(device)


def _gain(before: Tensor, after: Tensor) -> Tensor:
    """The share by which each loss fell, (P,)"""
    return 1 - after / before.clamp(min=torch.finfo(before.dtype).tiny)


def _with_prior(module: nn.Module) -> list[int]:
    """The modes whose rows get a prior."""
    return [k for k, mode in enumerate(module.modes) if isinstance(mode, Table) and k != module.output_mode
            and mode.table.shape[1] >= PRIOR_ROWS * module.rank]


class _Scored:
    """Entries kept out of the fit."""

    def __init__(self, module: nn.Module, coordinates: Sequence[Tensor], target: Tensor) -> None:
        self.module, self.coordinates, self.target = module, coordinates, target

    def loss(self, weights: list[Tensor]) -> float | None:
        """Mean squared error of members with these weights; None without entries."""
        if len(self.target) == 0:
            return None
        features = [features_of(mode, x) for mode, x in zip(self.module.modes, self.coordinates, strict=True)]
        system = System(features, self.target.double(), self.module.output_mode,
                        self.target.shape[1] * len(weights[0]) * self.module.rank)
        return float(system.loss(weights).mean()) / self.target.numel()
