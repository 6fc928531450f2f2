"""How sure a functional CP's predictions are: intervals that hold a new entry as often as they say.

A prediction's standard deviation adds up three variances: what the data leave open about the weights (posterior.py), how far
the members of an ensemble disagree, and the noise of an entry. That is a guess, because noise may differ from place to place
and no tensor of low rank fits exactly; so entries that the fit has not seen turn it into an interval (split conformal
prediction with scaled residuals: Lei, G'Sell, Rinaldo, Tibshirani, Wasserman, JASA 113(523), 2018, sections 2.2 and 5.2):

    prediction +- factor * sd,   factor: the ceil((n + 1) coverage)-th smallest of n held-out |y - prediction| / sd.

If a new entry comes from where the held-out ones do, it lies inside with at least the given probability, for any
distribution and any n, on average over draws of both. Elsewhere nothing is promised.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.tensor.functional import FunctionalCP, check_fitted
from lowrank_rl.tensor.posterior import Posterior, posterior

METHODS = ("both", "laplace", "ensemble")
ONE_SIGMA = 0.6827      # share of a normal distribution within one standard deviation


@dataclass(frozen=True, eq=False)
class Intervals:
    """Prediction intervals of a fitted model. Where there are several outputs, each has its own, at its own coverage.

    >>> intervals = Intervals.fit(model, X_train, y_train, X_held, y_held)
    >>> low, high = intervals.predict(X, coverage=0.9)
    """
    model: FunctionalCP
    method: str                       # what a deviation contains besides noise: see ``fit``
    noise: Tensor                     # (D,) variance of each scaled output's error in the training entries
    posterior: Posterior | None       # None for "ensemble"
    held: np.ndarray                  # (entries, D) scaled residuals of the held-out entries, each column in rising order

    @classmethod
    def fit(cls, model: FunctionalCP, X_train: Sequence[Any], y_train: Any, X_held: Sequence[Any], y_held: Any, *,
            method: str = "both", draws: int = 32, seed: int = 0) -> Self:
        """Learn deviations from the entries that the model was fitted to, and their factor from entries that it was not.

        Args:
            method: "laplace": the posterior of the weights around the fit (Gauss-Newton). "ensemble": the members' variance.
                "both": their sum; of a single member, the posterior's alone.
            draws: from the posterior. An interval's width is off by about 1 / sqrt(2 draws) where the posterior dominates.

        Raises:
            ValueError: a model that is not fitted or no FunctionalCP, bad entries (as ``FunctionalCP.fit``), the training
                entries held out, an unknown method, "ensemble" of one member, fewer than 2 draws.
        """
        check_fitted(model)
        model = copy.copy(model)      # so that fitting it again leaves these intervals alone
        check.known("method", method, METHODS)
        check.count("draws", draws, 2)
        check.count("seed", seed, 0)
        if method == "ensemble" and model.module_.members == 1:
            raise ValueError("method: expected 'laplace' or 'both' for a model of one member, got 'ensemble'; "
                             "fit with members=5 to have an ensemble")
        module = model.module_
        coordinates, target = model._check_entries(X_train, y_train)
        if _same(coordinates, model._check_coordinates(X_held)):
            raise ValueError(f"X_held: expected entries that the model was not fitted to, got the {len(target)} training "
                             "entries; hold some out of the fit")
        error = (model._predict(coordinates).mean(0).cpu().reshape(target.shape) - target) / module.scale.cpu()
        noise = _variance(error).to(module.center.device)
        drawn = None if method == "ensemble" else posterior(model, _scaled(model, coordinates), noise, draws=draws, seed=seed)
        intervals = cls(model, method, noise, drawn, np.zeros((0, module.outputs)))
        return replace(intervals, held=np.sort(intervals.residuals(X_held, y_held), axis=0))

    def deviation(self, X: Sequence[Any]) -> Any:
        """Standard deviation of a new entry at X as the model sees it, before any factor: (B,) if outputs is 1, else (B, D)."""
        module = self.model.module_
        coordinates = self.model._check_coordinates(X)
        variance = self.noise.expand(len(coordinates[0]), -1)
        if self.posterior is not None:
            parts = zip(*(x.split(65536) for x in _scaled(self.model, coordinates)), strict=True)   # bounds memory
            variance = variance + torch.cat([self.posterior.variance(part) for part in parts])
        if self.method != "laplace" and module.members > 1:
            members = self.model._predict(coordinates).reshape(module.members, len(variance), -1)
            variance = variance + (members / module.scale).var(0)
        deviation = module.scale * variance.sqrt()
        return self.model._give_back(X, deviation[:, 0] if module.outputs == 1 else deviation)

    def residuals(self, X: Sequence[Any], y: Any) -> np.ndarray:
        """|y - prediction| / deviation of entries with known values: (B, D)."""
        coordinates, target = self.model._check_entries(X, y)
        prediction, deviation = (x.double().cpu().reshape(target.shape)
                                 for x in (self.model.predict(coordinates), self.deviation(coordinates)))
        return ((target - prediction).abs() / deviation).numpy()

    def factor(self, coverage: float) -> np.ndarray:
        """How many deviations to each side hold this share of new entries, for each output: (D,).

        Beside a normal distribution's (1.64 for 90%), it says how well the deviations were guessed.

        Raises:
            ValueError: a coverage outside (0, 1), or one that needs more held-out entries.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage: expected a share between 0 and 1, got {coverage!r}")
        n = len(self.held)
        place = math.ceil((n + 1) * coverage - 1e-9)       # (n + 1) 0.9 may come out a trace above a whole number
        if place > n:
            raise ValueError(f"coverage: expected at most {n / (n + 1):.4g} with {n} held-out entries, got {coverage}; "
                             "hold out more")
        return self.held[place - 1]

    def predict(self, X: Sequence[Any], coverage: float = 0.9) -> tuple[Any, Any]:
        """Ends (low, high) of the intervals at X, each shaped as the model's predictions.

        Raises:
            ValueError: bad coordinates, or a coverage as for ``factor``.
        """
        factor = self.factor(coverage)
        center, deviation = self.model.predict(X), self.deviation(X)
        factor = factor[0] if self.model.module_.outputs == 1 else factor
        half = deviation * (torch.as_tensor(factor, device=deviation.device) if isinstance(deviation, Tensor) else factor)
        return center - half, center + half

    def coverage(self, X: Sequence[Any], y: Any, coverage: float = 0.9) -> np.ndarray:
        """Share of the known values y that intervals of this coverage hold, for each output: (D,)."""
        return (self.residuals(X, y) <= self.factor(coverage)).mean(0)


def _scaled(model: FunctionalCP, coordinates: Sequence[Tensor]) -> list[Tensor]:
    """Checked coordinates as the module's modes want them."""
    module = model.module_
    return [module.scaled(k, x.to(module.center.device)) for k, x in enumerate(coordinates)]


def _same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return all(a.shape == b.shape and bool((a.cpu() == b.cpu()).all()) for a, b in zip(first, second, strict=True))


def _variance(error: Tensor) -> Tensor:
    """Of each column, from where most of its errors lie: the few that no such tensor fits would drown the others."""
    square = error.square().sort(0).values[max(0, math.ceil(ONE_SIGMA * len(error)) - 1)]
    return square.clamp(min=torch.finfo(error.dtype).eps ** 2)
