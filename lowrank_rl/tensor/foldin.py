"""Fold in new rows: a new category of a fitted FunctionalCP, from a few observations of its own and nothing else trained.

With the other modes fixed, an output is linear in the row, so that ridge least squares gives it, with the trained rows' mean
and covariance as prior (``foldin_solve``). The answer says how sure it is, and whether the observations were enough.

    new = fold_in(model, 0, (state, action), y)        # 25 steps of an agent that the model has never seen
    print(new.summary())
    model = add_row(model, new)                        # a model of one more agent, the last
    new = update_row(model, new, (state, action), y)   # more of its steps
    model = set_row(model, 500, new)
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.tensor.foldin_solve import Entries, Prior, Sums, keep_all, set_aside, set_aside_next, solve
from lowrank_rl.tensor.functional import FunctionalCP, FunctionalModule, check_fitted
from lowrank_rl.tensor.modes import Categorical
from lowrank_rl.tensor.observed import numbers

CUT = 7.0           # standard deviations
ENOUGH = 0.1        # of the trained rows' spread may stay open
MISFIT = 3.0        # times the model's errors call for a caution
CHUNK = 1 << 22     # numbers in the design of the groups that are worked on at once
PART = 1 << 16      # observations that pass through the modes at once: bounds the memory of hidden layers


@dataclass(frozen=True, eq=False, repr=False)
class NewRow:
    """A row of a Categorical mode, found by ``fold_in``, for each of M members."""
    name: str              # what messages call it
    mode: int
    row: Tensor            # (M, R)
    covariance: Tensor     # (M, R, R) of the row, as far as the observations' errors are independent
    eigenvalues: Tensor    # (M, R) the Gram matrix over noise and prior, descending: above 1 the data decide, below the prior
    noise: Tensor          # (M,) variance of a scaled output's error here; the model's own, or more
    misfit: float          # root of that over the model's own: 1 where the model describes the row as well as its others
    observations: int      # k
    outliers: int          # of these, how many were set aside
    prior: Prior
    sums: Sums             # all that the observations said, for ``update_row``

    def __repr__(self) -> str:
        return f"NewRow({self.name!r}, mode={self.mode}, observations={self.observations}, enough={self.enough})"

    @property
    def determined(self) -> int:
        """Directions, of R, that the data tell more about than the trained rows do."""
        return int((self.eigenvalues >= 1).sum(-1).min())

    @property
    def open(self) -> float:
        """The row's standard deviation as a share of the trained rows' spread: 1 knows nothing, 0 all."""
        left = self.covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        return float((left / self.prior.variance).sqrt().max())

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the observations are not enough; empty if they are."""
        R, kept = self.row.shape[-1], self.observations - self.outliers
        found = []
        if kept < R:
            found.append(f"{_many(kept)}, fewer than the rank {R}: the prior supplies the rest")
        if self.open > ENOUGH:
            found.append(f"{self.open:.0%} of the trained rows' spread stays open, more than {ENOUGH:.0%}: "
                         "observe more, or at other coordinates")
        return tuple(found)

    @property
    def enough(self) -> bool:
        """The observations suffice: as many as terms, and at most a tenth of the trained rows' spread stays open."""
        return not self.reasons

    @property
    def cautions(self) -> tuple[str, ...]:
        """What to be careful about, however many observations there are."""
        found = []
        axes = self.prior.axes
        along = (axes.mT @ (self.row - self.prior.mean)[..., None])[..., 0]
        unsure = 2 * (axes.mT @ self.covariance @ axes).diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        beyond = torch.maximum(along - self.prior.high, self.prior.low - along)
        outside = int((beyond > unsure + 1e-9 * self.prior.spread).any(0).sum())
        if outside:
            found.append(f"extrapolates: beyond all trained rows along {outside} of the {along.shape[-1]} axes of their cloud")
        if self.misfit > MISFIT:
            found.append(f"the model fits it badly: its errors are {self.misfit:.3g} times the model's, and the covariance "
                         "counts on that; it may differ in a way that no trained row does")
        if self.outliers > self.observations / 4:
            found.append(f"{self.outliers} of {self.observations} observations were set aside as outliers")
        if self.prior.isotropic:
            found.append("trained rows too few or too alike to be a prior in more than size")
        return tuple(found)

    def summary(self) -> str:
        """The verdict in words, a line for each thing worth knowing."""
        R, aside = self.row.shape[-1], f", {self.outliers} of them set aside as outliers" if self.outliers else ""
        lowest = self.eigenvalues.amin(0).tolist()
        return "\n".join([
            f"{self.name} of mode {self.mode} from {_many(self.observations)}{aside}: "
            f"{'enough' if self.enough else 'not enough'}",
            f"  the data determine {self.determined} of {R} directions, the prior supplies {R - self.determined} "
            f"(eigenvalues {', '.join(f'{value:.2g}' for value in lowest)}; above 1 the data decide)",
            f"  still open: {self.open:.2%} of the trained rows' spread",
            *(f"  not enough: {reason}" for reason in self.reasons),
            *(f"  caution: {caution}" for caution in self.cautions)])


def fold_in(model: FunctionalCP, mode: int, X_others: Sequence[Any], y: Any, *, cut: float = CUT) -> NewRow:
    """The row of a new category of a Categorical mode, from k observations y (k,) or (k, D) of it.

    Args:
        mode: which mode gets a row; not the one that carries the outputs.
        X_others: the coordinates of the other modes, in order, one array each.
        cut: errors beyond so many standard deviations are outliers and set aside; ``math.inf``: none are.

    Fewer observations than the rank are no error: the prior supplies the rest, and ``enough`` is False.

    Raises:
        ValueError: a model that is not fitted, a mode that is not Categorical or carries the outputs, no observation, NaN
            or Inf, shapes that disagree, a coordinate out of range.
    """
    design, target = _observations(model, mode, X_others, y, cut)
    return next(_folded(model, mode, design, target, [("new row", slice(None))], cut))[1]


def fold_in_groups(model: FunctionalCP, mode: int, X_others: Sequence[Any], y: Any, group: Any, *,
                   cut: float = CUT) -> dict[int, NewRow]:
    """``fold_in`` for many new categories at once: observation b is of category ``group[b]``, any integer; rows by it.

    Raises:
        ValueError: as ``fold_in``; also groups that are not whole numbers, or not one per observation.
    """
    design, target = _observations(model, mode, X_others, y, cut)
    group = numbers("group", group)
    check.shapes(y=(target, "B D"), group=(group, "B"))
    check.finite("group", group)
    if (group != np.floor(group)).any():
        raise ValueError("group: expected a whole number per observation, got fractions; number the new categories")
    names, place, count = np.unique(group.astype(np.int64), return_inverse=True, return_counts=True)
    parts = np.split(np.argsort(place, kind="stable"), np.cumsum(count)[:-1])
    which = [(int(names[g]), torch.from_numpy(parts[g]).to(target.device)) for g in np.argsort(count, kind="stable")]
    found = dict(_folded(model, mode, design, target, which, cut))
    return {int(name): found[int(name)] for name in names}


def update_row(model: FunctionalCP, new: NewRow, X_others: Sequence[Any], y: Any, *, cut: float = CUT) -> NewRow:
    """The row after further observations of it. Batches, in any order, give what all at once would give.

    That is exact as long as nothing is set aside: whether an observation is an outlier is judged by those before it.
    For a row that was trained, begin with ``fold_in`` of its training entries, since a model keeps no covariances.

    Raises:
        ValueError: as ``fold_in``; also a row of a model of another size.
    """
    _check_row(model, new)
    entries = _padded(*_observations(model, new.mode, X_others, y, cut), [slice(None)])
    noise = _noise(model)
    known = Sums(*(part[:, None] for part in vars(new.sums).values()))
    keep = keep_all(new.prior, entries) if cut == math.inf else set_aside_next(new.prior, entries, known, noise, cut)
    outliers = int((entries.present & ~keep).sum(-1).max())
    return _rows(new.prior, known + entries.sums(new.prior, keep), noise, new.mode, [new.name],
                 [new.observations + entries.present.shape[1]], [new.outliers + outliers])[0]


def add_row(model: FunctionalCP, *new: NewRow) -> FunctionalCP:
    """A new model with the new rows after the old ones of their mode; the old model stays as it is.

    Raises:
        ValueError: no row, rows of several modes, or of a model of another size.
    """
    for row in new:
        _check_row(model, row)
    if len({row.mode for row in new}) != 1:
        raise ValueError(f"new: expected rows of one mode, got {len(new)} rows of modes {sorted({r.mode for r in new})}; "
                         "add one mode's after the other's")
    rows = model.module_.modes[new[0].mode].rows().detach()
    return with_rows(model, new[0].mode, torch.cat([rows, torch.stack([row.row for row in new], 1).to(rows)], 1))


def set_row(model: FunctionalCP, number: int, new: NewRow) -> FunctionalCP:
    """A new model in which row ``number`` of the mode is the new one, as after ``update_row``.

    Raises:
        ValueError: a number that is out of range, or a row of a model of another size.
    """
    _check_row(model, new)
    rows = model.module_.modes[new.mode].rows().detach().clone()
    check.count("number", number, 0)
    check.within("number", np.array([number]), rows.shape[1])
    rows[:, number] = new.row.to(rows)
    return with_rows(model, new.mode, rows)


def _observations(model: FunctionalCP, mode: int, X_others: Sequence[Any], y: Any, cut: float) -> tuple[Tensor, Tensor]:
    """Checked and ready: the design (M, B, D, R), double precision, and scaled outputs (B, D)."""
    modes = _modes(model)
    check.count("mode", mode, 0)
    check.within("mode", np.array([mode]), len(modes))
    module = model.module_
    if not isinstance(modes[mode], Categorical):
        raise ValueError(f"mode: expected a Categorical one, got {mode}, which is {type(modes[mode]).__name__}; a continuous "
                         "mode needs no new row, since it predicts at any coordinate")
    if mode == module.output_mode:
        raise ValueError(f"mode: expected one that does not carry the outputs, got {mode}; fit with another output_mode")
    if isinstance(cut, bool) or not isinstance(cut, int | float) or not cut > 0:
        raise ValueError(f"cut: expected a number of standard deviations above 0, or math.inf to keep all, got {cut!r}")
    others = [k for k in range(len(modes)) if k != mode]
    if not isinstance(X_others, list | tuple) or len(X_others) != len(others):
        got = len(X_others) if isinstance(X_others, list | tuple) else type(X_others).__name__
        raise ValueError(f"X_others: expected a list of {len(others)} coordinate arrays, those of modes {others}, got {got}")
    target = torch.from_numpy(numbers("y", y))
    target = target[:, None] if target.ndim == 1 else target
    if target.ndim != 2 or target.shape[1] != module.outputs:
        raise ValueError(f"y: expected shape (observations, {module.outputs}), got {tuple(np.shape(y))}")
    if len(target) == 0:
        raise ValueError("y: expected at least one observation of the new row, got none; without any, the mean of the trained "
                         "rows is all there is to say")
    check.finite("y", target)
    coordinates = {}
    for k, x in zip(others, X_others, strict=True):
        name = f"X_others, mode {k}"
        coordinates[k] = modes[k].coordinate(name, torch.from_numpy(numbers(name, x)))
        if len(coordinates[k]) != len(target):
            raise ValueError(f"{name}: expected {len(target)} coordinates, one for each observation in y, "
                             f"got {len(coordinates[k])}")
    parts = zip(*(x.to(module.center.device).split(PART) for x in coordinates.values()), strict=True)
    design = torch.cat([_design(module, dict(zip(others, part, strict=True))) for part in parts], 1)
    return design, (target.to(module.center.device) - module.center) / module.scale


@torch.no_grad()
def _design(module: FunctionalModule, coordinates: dict[int, Tensor]) -> Tensor:
    """The product of these modes' factors, (M, B, D, R)."""
    design: Tensor | None = None
    for k, x in coordinates.items():
        factor = module.factor(k, x).double()
        factor = factor if k == module.output_mode else factor[:, :, None]            # (M, B, D or 1, R)
        design = factor if design is None else design * factor
    return design


def _folded(model: FunctionalCP, mode: int, design: Tensor, target: Tensor, which: list[tuple[Any, Any]],
            cut: float) -> Iterator[tuple[Any, NewRow]]:
    """(name, row) of each group; which: its name and where its entries are, small groups first."""
    rows = model.module_.modes[mode].rows().detach().double()
    prior, noise = Prior.of(rows), _noise(model)
    size = [len(target[where]) for _, where in which]
    start = 0
    while start < len(which):
        end = start + 1
        while end < len(which) and (end + 1 - start) * size[end] * design[:, 0].numel() <= CHUNK:
            end += 1
        entries = _padded(design, target, [where for _, where in which[start:end]])
        keep = keep_all(prior, entries) if cut == math.inf else set_aside(prior, entries, rows, noise, cut)
        outliers = (entries.present & ~keep).sum(-1).amax(0).tolist()
        names = [name if isinstance(name, str) else f"new row {name}" for name, _ in which[start:end]]
        found = _rows(prior, entries.sums(prior, keep), noise, mode, names, size[start:end], outliers)
        yield from zip((name for name, _ in which[start:end]), found, strict=True)
        start = end


def _padded(design: Tensor, target: Tensor, groups: Sequence[Any]) -> Entries:
    """The groups' entries beside one another; what is missing from the longest is 0."""
    def pad(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    parts = [target[where] for where in groups]
    by_entry = design.transpose(0, 1)                                                # (B, M, D, R)
    present = pad([torch.ones(len(part), dtype=torch.bool, device=target.device) for part in parts])
    return Entries(pad([by_entry[where] for where in groups]).movedim(2, 0), pad(parts), present)


def _rows(prior: Prior, sums: Sums, noise: float, mode: int, names: Sequence[str], observations: Sequence[int],
          outliers: Sequence[int]) -> list[NewRow]:
    found = solve(prior, sums, noise)
    misfit = (found.noise / max(noise, torch.finfo(torch.float64).tiny)).sqrt().amax(0).tolist()
    return [NewRow(name, mode, *(part[:, g] for part in vars(found).values()), misfit[g], observations[g], outliers[g], prior,
                   Sums(*(part[:, g] for part in vars(sums).values()))) for g, name in enumerate(names)]


def _noise(model: FunctionalCP) -> float:
    """Variance of a scaled output's error. A fit by gradients estimates none: there, its last loss."""
    return min(float(model.module_.noise), model.history_[-1]["loss"])


def _modes(model: FunctionalCP) -> Sequence[Any]:
    check_fitted(model)
    return model.fitted_params_["modes"]


def _check_row(model: FunctionalCP, new: NewRow) -> None:
    modes = _modes(model)
    expected = (model.module_.members, model.module_.rank)
    if not isinstance(new, NewRow):
        raise ValueError(f"new: expected what fold_in returns, got {type(new).__name__}")
    if new.mode >= len(modes) or not isinstance(modes[new.mode], Categorical) or new.row.shape != expected:
        raise ValueError(f"new: expected a row of a Categorical mode of this model, (members, rank) {expected}, got one of "
                         f"mode {new.mode}, {tuple(new.row.shape)}; fold it in with this model")


def _many(observations: int) -> str:
    return f"{observations} observation{'' if observations == 1 else 's'}"


def with_rows(model: FunctionalCP, mode: int, rows: Tensor) -> FunctionalCP:
    """The model with rows (M, size, R) as the mode's table; nothing is shared that a fit could change."""
    out, module = copy.copy(model), copy.deepcopy(model.module_)
    modes = [replace(m, size=rows.shape[1]) if k == mode else m for k, m in enumerate(model.fitted_params_["modes"])]
    table = module.modes[mode]
    table.table = torch.nn.Parameter(rows - table.bias.detach())
    out.modes, out.module_, out.history_ = modes, module, list(model.history_)
    out.fitted_params_ = {**model.fitted_params_, "modes": modes}
    return out
