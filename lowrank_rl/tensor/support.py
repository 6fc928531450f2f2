"""Where a functional CP was fitted: which coordinates lie outside those seen, and would be extrapolated.

The coordinates of each continuous mode are covered by balls around centres, each the point farthest from those before it
(Gonzalez, Clustering to Minimize the Maximum Intercluster Distance, Theoretical Computer Science 38, 1985). Their common
radius reaches every coordinate seen. Unlike a box around the data, balls leave out holes and empty corners. Modes are judged
one by one: that a state and an agent were both seen does not mean that they were seen together.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.functional import FunctionalCP, check_fitted

SUBSAMPLE = 20_000     # coordinates among which centres are looked for; the radius reaches all
SHARE, FEW = 8, 4      # a centre for so many different coordinates, so that new ones of the same kind lie in a ball too
                       # (all but about 4%); of some dozen coordinates at least FEW are centres, or balls reach far beyond


@dataclass(frozen=True, eq=False)
class Support:
    """Coordinates seen in training.

    >>> support = Support.of(X_train, model)
    >>> support.outside(X)                  # which entries extrapolate
    """
    model: FunctionalCP
    centres: tuple[Tensor, ...]      # of each mode (centres, inputs), scaled; of a categorical one (size,) bool, the seen
    radius: tuple[float, ...]        # of each mode's balls, in scaled units; 0 for categories

    @classmethod
    def of(cls, X_train: Sequence[Any], model: FunctionalCP, *, centres: int = 256, seed: int = 0) -> Self:
        """Cover the coordinates that a model was fitted to.

        Args:
            centres: of each continuous mode, at most; fewer where few coordinates differ.

        Raises:
            ValueError: a model that is not fitted, bad coordinates, no centres.
        """
        check_fitted(model)
        check.count("centres", centres)
        check.count("seed", seed, 0)
        found, radii = [], []
        for k, x in enumerate(model._check_coordinates(X_train)):
            place, radius = _cover(_scaled(model, k, x), centres, seed) if model.module_.inputs[k] else _categories(model, k, x)
            found.append(place)
            radii.append(radius)
        return cls(copy.copy(model), tuple(found), tuple(radii))

    def why(self, X: Sequence[Any]) -> Any:
        """For each entry, the modes whose coordinate was not seen: (B, modes) bool."""
        columns = []
        for k, x in enumerate(self.model._check_coordinates(X)):
            if self.model.module_.inputs[k]:
                columns.append(_distance(_scaled(self.model, k, x), self.centres[k]) > self.radius[k])
            else:
                columns.append(~self.centres[k][x.cpu()])
        return self.model._give_back(X, torch.stack(columns, 1))

    def outside(self, X: Sequence[Any]) -> Any:
        """Whether any coordinate of an entry was not seen: (B,) bool. Never for an entry that the support was made of."""
        return self.why(X).any(1)


def _scaled(model: FunctionalCP, k: int, x: Tensor) -> Tensor:
    return model.module_.scaled(k, x.to(model.module_.center.device, torch.float64)).double().cpu()


def _categories(model: FunctionalCP, k: int, x: Tensor) -> tuple[Tensor, float]:
    """Which categories have an entry."""
    return torch.bincount(x.cpu(), minlength=model.module_.modes[k].table.shape[1]) > 0, 0.0


def _cover(x: Tensor, most: int, seed: int) -> tuple[Tensor, float]:
    """Centres among the rows of x (B, inputs), and the radius around them that reaches every row."""
    some = x[torch.from_numpy(numpy_stream(seed, "support").permutation(len(x))[:SUBSAMPLE])].unique(dim=0)
    count = min(most, max(len(some) // SHARE, min(FEW, (len(some) + 1) // 2)))
    chosen = [(some - some.mean(0)).square().sum(1).argmax()]
    nearest = _distance(some, some[chosen[0]][None])
    while len(chosen) < count:
        chosen.append(nearest.argmax())
        nearest = torch.minimum(nearest, _distance(some, some[chosen[-1]][None]))
    centres = some[torch.stack(chosen)]
    return centres, float(_distance(x, centres).max())


def _distance(x: Tensor, centres: Tensor) -> Tensor:
    """To the nearest centre, (B,). Distances by matrix products would be faster but lose digits where they are small."""
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    return torch.cat([torch.cdist(part, centres, **exact).amin(1) for part in x.split(65536)])
