"""Fit a functional CP by exact solves: with the others fixed, every mode is linear in its weights.

A sweep solves each mode once (alternating least squares). Where sweeps creep (a swamp), a Levenberg-Marquardt step over all
modes at once follows. When that has settled, a second phase polishes the rows of large categorical modes: they get a Gaussian
prior, whose mean, covariance and noise are estimated from the rows themselves (empirical Bayes, by expectation maximisation),
so that a row with few entries falls back on what the others are like; and gross outliers are set aside, so that they do not
spoil it. The features of the mode with the outputs are then solved once more from all entries alike. Splines of many cells
begin on few. A network's hidden layers train by Adam between sweeps; its last layer is solved like any other mode.

Members start apart and, from the second on, see entries weighted at random (the Bayesian bootstrap: Rubin, Annals of
Statistics 9(1), 1981), so that their disagreement says what the data leave open.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lowrank_rl import check
from lowrank_rl.nets import Mlp
from lowrank_rl.tensor.functional_adam import Fit, adam_epoch, since_best, split
from lowrank_rl.tensor.functional_checkpoint import EVERY, Checkpoint, fingerprint, load_moments, moments, named, part
from lowrank_rl.tensor.functional_coarse import coarser, refine
from lowrank_rl.tensor.functional_pace import SETTLED
from lowrank_rl.tensor.functional_starts import Starts, bootstrap
from lowrank_rl.tensor.functional_state import State, features_of, store, weights_of
from lowrank_rl.tensor.functional_system import System

LEAST = 8        # sweeps without which a fit does not begin on few cells,
ROUGH = 0.5      # and their share that it spends there at most


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
            generator: torch.Generator, progress: Callable[[dict], None] | None = None,
            checkpoint: str | Path | None = None, checkpoint_seconds: float = EVERY) -> Fit:
    """Minimise the mean squared error of ``module(coordinates)`` against ``target`` (B, D), in place.

    ``coordinates``: one (B, ...) tensor per mode, already scaled, on the module's device. The history has an entry per sweep:
    epoch, loss (mean over members, all entries alike, without penalties), held_out, step (what was done), seconds. With a
    ``checkpoint`` file, the state after a sweep is kept there at most every ``checkpoint_seconds``; the same call finds it,
    goes on to the same bits, and removes it.

    Raises:
        ValueError: spare starts beside a Neural mode, or a loss that is not finite.
    """
    keep = Checkpoint(checkpoint, checkpoint_seconds,
                      fingerprint(config, coordinates, target, module, generator) if checkpoint else "")
    job = _Job(module, coordinates, target, config, generator)
    found = keep.resume()
    if found:
        job.load(*found)
    for number in range(len(job.history) + 1, config.sweeps + 1):
        job.sweep(number)
        if progress:
            progress(job.history[-1])
        if job.over():
            break
        keep.save(job.tensors, job.history)
    stopped = job.over() or "reached the last sweep"
    job.finish()
    keep.remove()
    return Fit(module, job.history, stopped)


class _Stage:
    """The starts of one module, and the entries that judge them."""

    def __init__(self, module: nn.Module, starts: Starts, held_out: _HeldOut) -> None:
        self.module, self.starts, self.held_out = module, starts, held_out

    def chosen(self) -> Tensor:
        """The start with the lowest loss of each member, (M,)"""
        best = self.starts.losses().view(self.module.members, -1).argmin(1)
        return best + torch.arange(len(best), device=best.device) * (len(self.starts.losses()) // len(best))


class _Job:
    """An exact fit in progress: on few cells first, if a spline has many."""

    def __init__(self, module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, config: ALSConfig,
                 generator: torch.Generator) -> None:
        self.module, self.config, self.generator = module, config, generator
        train, held_out = split(len(target), config.held_out, config.patience, generator, target.device)
        fitted, self.target = [x[train] for x in coordinates], target[train]
        self.hidden: _HiddenLayers | None = None
        if any(isinstance(mode, Mlp) for mode in module.modes):
            self.hidden = _HiddenLayers(module, fitted, self.target, config, generator)
            if config.spare:
                raise ValueError(f"spare: expected 0 where a mode is Neural, got {config.spare}; raise members instead")
        rough = coarser(module) if self.hidden is None and config.sweeps >= LEAST else None
        weight = bootstrap(module.members, len(train), generator, target.device)
        self.stages = []
        for one in (rough, module) if rough else (module,):
            last = one is module
            starts = Starts(one, fitted, self.target, weight, generator, regularization=config.regularization, tol=config.tol,
                            sweeps=config.sweeps, each=1 if last and rough else 1 + config.spare,
                            networks=self.hidden is not None, priors=last)
            self.stages.append(_Stage(one, starts, _HeldOut(one, [x[held_out] for x in coordinates], target[held_out])))
        self.rough = int(rough is not None)        # stages before the last
        self.history: list[dict] = []
        self.first = 0                             # the last stage's first entry there
        self.best: dict[str, Tensor] = {}          # of each member, where the held-out loss was lowest
        self.began = time.monotonic()

    @property
    def stage(self) -> _Stage:
        """The present one."""
        return self.stages[-1 - self.rough]

    def sweep(self, number: int) -> None:
        """Sweep number ``number`` and what belongs to it."""
        if self.hidden and number > 1:
            self.hidden.train(self.stage.starts.groups[0], (number - 1) / self.config.sweeps)
        with torch.no_grad():
            if number == 1:
                self.stage.starts.begin()
            step = self.stage.starts.improve(number)
            self._record(number, step + " on few cells" * self.rough)
        if self.rough:
            if self.stage.starts.settled or number >= ROUGH * self.config.sweeps:
                weights = [w[self.stage.chosen()] for w in self.stage.starts.weights()]
                self.stages[-1].starts.take_over(refine(self.stage.module, self.module, weights), number)
                self.stages, self.rough, self.first = self.stages[-1:], 0, number
        elif self.config.patience and self.history[-1]["held_out"] <= min(e["held_out"] for e in self.history[self.first:]):
            self.best = {"chosen": self.stage.chosen(),
                         **named("weights", {str(k): w for k, w in enumerate(self.stage.starts.weights())}),
                         **named("layers", self.hidden and self.hidden.snapshot())}

    def over(self) -> str:
        """Why no further sweep is needed, "" if one is."""
        own = self.history[self.first:]
        if self.rough or not own:
            return ""
        if self.config.patience and since_best(own) >= self.config.patience:
            return f"no better held-out loss for {self.config.patience} sweeps"
        if self.stage.starts.settled:
            return f"settled: the last {SETTLED} sweeps lowered the loss by less than {self.config.tol:.2%} each"
        return ""

    @torch.no_grad()
    def finish(self) -> None:
        """Write the best of each member's starts into the module."""
        starts, chosen = self.stage.starts, self.stage.chosen()
        if self.best:
            chosen, weights = self.best["chosen"], part("weights", self.best)
            starts.come_back([weights[str(k)] for k in range(len(weights))])
            if self.hidden:
                self.hidden.restore(part("layers", self.best), starts.groups[0])
        noise = starts.noise()
        if starts.second:
            starts.features_from_all_alike()
            self._record(len(self.history), "features from all entries alike")
        self.module.noise.fill_(float(noise[chosen].mean()))
        store(self.module, [w[chosen] for w in starts.weights()])

    def _record(self, number: int, step: str) -> None:
        """Append to the history."""
        chosen = self.stage.chosen()
        entry = {"epoch": number, "loss": float(self.stage.starts.losses()[chosen].mean()) / self.target.numel(),
                 "held_out": self.stage.held_out.loss([w[chosen] for w in self.stage.starts.weights()]), "step": step,
                 "seconds": time.monotonic() - self.began}
        if not math.isfinite(entry["loss"]):
            raise ValueError(f"sweep {number}: expected finite losses, got {entry['loss']}; raise regularization above "
                             f"{self.config.regularization} or scale the data")
        self.history.append(entry)

    def tensors(self) -> dict[str, Tensor]:
        """All that is in progress."""
        return {"generator": self.generator.get_state(), "stage": torch.tensor([self.rough, self.first]),
                **named("starts", self.stage.starts.tensors()), **named("best", self.best),
                **named("hidden", self.hidden and self.hidden.tensors())}

    def load(self, tensors: dict[str, Tensor], history: list[dict]) -> None:
        """The inverse of ``tensors``."""
        self.history, self.best = history, part("best", tensors)
        self.began = time.monotonic() - history[-1]["seconds"]
        self.generator.set_state(tensors["generator"])
        self.rough, self.first = tensors["stage"].tolist()
        self.stage.starts.load(part("starts", tensors))
        if self.hidden:
            self.hidden.load(part("hidden", tensors))


class _HiddenLayers:
    """The networks' epochs of Adam between sweeps."""

    def __init__(self, module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, config: ALSConfig,
                 generator: torch.Generator) -> None:
        self.module, self.coordinates, self.target = module, coordinates, target
        self.config, self.generator = config, generator
        self.optimizer = torch.optim.Adam(module.parameters(), lr=config.learning_rate, fused=True)

    def tensors(self) -> dict[str, Tensor]:
        """All that is in progress."""
        return {**named("module", self.module.state_dict()), **named("adam", moments(self.optimizer))}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        self.module.load_state_dict(part("module", tensors))
        load_moments(self.optimizer, part("adam", tensors))

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


class _HeldOut:
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
