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
WORTH = 0.1        # as long as such a step gains this share; it takes as long as five to ten sweeps
AGAIN = 10         # sweeps after which it is tried again
SETTLED = 3        # sweeps in a row that lower the loss by less than ``tol`` end a phase
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
    weight = _bootstrap(module.members, len(train), generator, target.device)
    weight = None if weight is None else weight.repeat_interleave(1 + config.spare, 0)
    pace = _Pace(config, _with_prior(module), steps=hidden is None)
    history: list[dict] = []
    best, stopped, started = None, "reached the last sweep", time.monotonic()
    with torch.no_grad():
        state = start(module, fitted, known, config.regularization, module.members * (1 + config.spare), weight, generator)
        solve(state, module.output_mode)

    for number in range(1, config.sweeps + 1):
        if hidden and number > 1:
            hidden.train(state, (number - 1) / config.sweeps)
        with torch.no_grad():
            step, loss = pace.improve(state, number)
            chosen = loss.view(module.members, -1).argmin(1)
            chosen = chosen + torch.arange(module.members, device=chosen.device) * (1 + config.spare)
            entry = {"epoch": number, "loss": float(loss[chosen].mean()) / known.numel(),
                     "held_out": scored.loss(state, chosen), "step": step, "seconds": time.monotonic() - started}
        if not math.isfinite(entry["loss"]):
            raise ValueError(f"sweep {number}: expected finite losses, got {entry['loss']}; raise regularization above "
                             f"{config.regularization} or scale the data")
        history.append(entry)
        if config.patience and entry["held_out"] <= min(e["held_out"] for e in history):
            best = [w.clone() for w in state.weights], chosen, hidden and hidden.snapshot()
        if progress:
            progress(entry)
        if config.patience and since_best(history) >= config.patience:
            stopped = f"no better held-out loss for {config.patience} sweeps"
            break
        if pace.settled:
            stopped = f"settled: the last {SETTLED} sweeps lowered the loss by less than {config.tol:.2%} each"
            break

    with torch.no_grad():
        if best:
            state.weights, chosen, layers = best
            if hidden:
                hidden.restore(layers, state)
        module.noise.fill_(float(set_aside_outliers(state)[0][chosen].mean()))
        if pace.second:
            state.system.robust = None
            solve(state, module.output_mode)
            history.append({"epoch": number, "loss": float(state.system.loss(state.weights)[chosen].mean()) / known.numel(),
                            "held_out": scored.loss(state, chosen), "step": "features from all entries alike",
                            "seconds": time.monotonic() - started})
        state.weights = [w[chosen] for w in state.weights]
        store(module, state)
    return Fit(module, history, stopped)


class _Pace:
    """When to step over all modes, when the second phase begins, when to stop: by how fast the loss falls."""

    def __init__(self, config: ALSConfig, rows: list[int], steps: bool) -> None:
        """``rows``: the modes that get a prior. ``steps``: whether to take Levenberg-Marquardt steps at all."""
        self.config, self.rows, self.steps = config, rows, steps
        self.second, self.settled = False, False
        self._calm, self._wait, self._before = 0, 3, None

    def improve(self, state: State, number: int) -> tuple[str, Tensor]:
        """Sweep number ``number`` and what follows it; what was done, and the sum of squared errors, (P,)"""
        if not self.second and self.rows and (self._calm >= SETTLED or number > LATEST * self.config.sweeps):
            self.second, self._calm, self._wait, self._before = True, 0, number, None
        normal = sweep(state)
        step, loss = "sweep", state.system.loss(state.weights)
        creeps = self._before is not None and bool((_gain(self._before, loss) < CREEPS).any())
        if self.steps and creeps and number > self._wait:
            levenberg_marquardt(state)
            step, swept, loss = "sweep and Levenberg-Marquardt", loss, state.system.loss(state.weights)
            if bool((_gain(swept, loss) < WORTH).all()):
                self._wait = number + AGAIN
        total = loss
        if self.second:
            noise, total = set_aside_outliers(state)
            loss = state.system.loss(state.weights)
            for k in self.rows:
                update_prior(state, k, normal[k], noise)
        rescale(state)
        calm = self._before is not None and bool((_gain(self._before, loss) < self.config.tol).all())
        self._calm = self._calm + 1 if calm else 0
        self._before = loss
        self.settled = self._calm >= SETTLED and (self.second or not self.rows)
        return step, total


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
        store(self.module, state)
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

    def loss(self, state: State, chosen: Tensor) -> float | None:
        """Mean squared error of the chosen members; None without entries."""
        if len(self.target) == 0:
            return None
        features = [features_of(mode, x) for mode, x in zip(self.module.modes, self.coordinates, strict=True)]
        system = System(features, self.target.double(), state.output_mode, state.weights[0][..., 0].numel())
        return float(system.loss([w[chosen] for w in state.weights]).mean()) / self.target.numel()
