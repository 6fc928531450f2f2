"""Rows by ridge least squares: entries' sums, the prior that trained rows are, the posterior, and which entries to set aside.

    y_bd = sum_r X_bdr u_r + e_bd,   e ~ N(0, noise),   u ~ N(mean, L L')

In u = mean + L z the prior is N(0, I), so a nearly singular one (rows on a line) needs no inverse, and

    covariance of z = (I + G / noise)^-1,   G = L' X'X L

An eigenvalue of G / noise is the prior's variance over that of the data alone, in its direction: well above 1 the data decide,
below 1 the prior does. M members and G groups (a row each) are batch axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS_PER_TERM = 5     # fewer trained rows than so many per term do not show the shape of their cloud, only its size
STARTS = 32           # trained rows tried as a first guess beside outliers,
GUESSES = 4           # and how many of them are followed up
SAMPLE = 1000         # entries of a group that judge them
FEWEST = 5            # entries among which an outlier can show
ROUNDS = 30
FLAT = 1e-10          # noise beside the largest eigenvalue: smaller ones are rounding


@dataclass(frozen=True, eq=False)
class Prior:
    """N(mean, covariance) over the trained rows, by the covariance's principal axes."""
    mean: Tensor       # (M, R)
    axes: Tensor       # (M, R, R), an axis per column
    spread: Tensor     # (M, R) standard deviation along each
    low: Tensor        # (M, R) least and
    high: Tensor       # (M, R) greatest trained row along each, from the mean
    isotropic: bool    # the same spread along all axes, because the rows are too few (or too alike) to show more

    @property
    def root(self) -> Tensor:
        """L with covariance L L', (M, R, R)."""
        return self.axes * self.spread[..., None, :]

    @property
    def variance(self) -> Tensor:
        """Trace of the covariance, (M,)."""
        return self.spread.square().sum(-1)

    @classmethod
    def of(cls, rows: Tensor) -> Prior:
        """Mean and covariance of trained rows (M, N, R)."""
        N, R = rows.shape[1:]
        mean = rows.mean(1)
        away = rows - mean[:, None]
        value, axes = torch.linalg.eigh(away.mT @ away / max(N - 1, 1))
        spread = value.clamp(min=0).sqrt()
        total, size = spread.square().sum(-1), mean.square().sum(-1)
        alike = total <= 1e-20 * size
        isotropic = N < ROWS_PER_TERM * R or bool(alike.any())
        if isotropic:
            total = torch.where(alike, torch.where(size > 0, size, torch.ones_like(size)), total)
            spread = (total / R).sqrt()[:, None].expand_as(spread)
        along = away @ axes
        return cls(mean, axes, spread, along.amin(1), along.amax(1), isotropic)


@dataclass(frozen=True, eq=False)
class Sums:
    """All that a row's entries say: add those of two batches, and you have those of both."""
    gram: Tensor       # (M, G, R, R) L' X'X L
    moment: Tensor     # (M, G, R) L' X' (y - X mean)
    square: Tensor     # (M, G) |y - X mean|^2
    count: Tensor      # (M, G) numbers, D per entry

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.gram + other.gram, self.moment + other.moment, self.square + other.square, self.count + other.count)


@dataclass(frozen=True, eq=False)
class Posterior:
    row: Tensor           # (M, G, R)
    covariance: Tensor    # (M, G, R, R)
    eigenvalues: Tensor   # (M, G, R) of gram / noise, descending
    noise: Tensor         # (M, G) variance of an error: the model's, or the entries' own where that is larger


@dataclass(frozen=True, eq=False)
class Entries:
    """Groups of entries, padded to one length K."""
    design: Tensor     # (M, G, K, D, R) X
    target: Tensor     # (G, K, D) y
    present: Tensor    # (G, K) False where padded

    def sums(self, prior: Prior, keep: Tensor) -> Sums:
        """Of the entries where keep (M, G, K)."""
        kept = keep[..., None, None].to(self.design.dtype)
        left = (self.target - self._times(prior.mean[:, None])) * kept[..., 0]             # (M, G, K, D)
        design = (self.design * kept).flatten(2, 3) @ prior.root[:, None]                  # (M, G, K D, R)
        gram, moment = design.mT @ design, (design.mT @ left.flatten(2)[..., None])[..., 0]
        return Sums(gram, moment, left.square().sum((2, 3)), keep.sum(-1) * self.target.shape[-1])

    def errors(self, row: Tensor) -> Tensor:
        """Squared errors summed over outputs, (M, G, K), at row (M, G, R)."""
        return (self.target - self._times(row)).square().sum(-1)

    def leverage(self, covariance: Tensor) -> Tensor:
        """Variance of the prediction because the row is uncertain, mean over outputs, (M, G, K)."""
        return torch.einsum("mgkdr,mgrs,mgkds->mgk", self.design, covariance, self.design) / self.target.shape[-1]

    def _times(self, row: Tensor) -> Tensor:
        return (self.design.flatten(2, 3) @ row[..., None])[..., 0].unflatten(-1, self.target.shape[1:])


def solve(prior: Prior, sums: Sums, noise: float) -> Posterior:
    """Mean and covariance of each row. ``noise``: the model's variance of an error; the entries' own counts where larger."""
    value, vector = torch.linalg.eigh(sums.gram)
    value = value.clamp(min=0)
    moment = (vector.mT @ sums.moment[..., None])[..., 0]
    least = torch.maximum(torch.full_like(sums.square, noise), FLAT * value[..., -1]).clamp(min=torch.finfo(value.dtype).tiny)
    own = least
    for _ in range(ROUNDS):     # the row depends on the noise, and the errors on the row; settles in a few rounds
        z = moment / (own[..., None] + value)
        left = (sums.square - 2 * (z * moment).sum(-1) + (z * z * value).sum(-1)).clamp(min=0)
        free = sums.count - (value / (own[..., None] + value)).sum(-1)
        before, own = own, torch.where(free >= 1, torch.maximum(least, left / free.clamp(min=1)), least)
        if torch.equal(before, own):
            break
    ratio = value / own[..., None]
    z = moment / (own[..., None] + value)
    turned = prior.root[:, None] @ vector
    row = prior.mean[:, None] + (turned @ z[..., None])[..., 0]
    return Posterior(row, (turned / (1 + ratio)[..., None, :]) @ turned.mT, ratio.flip(-1), own)


def keep_all(prior: Prior, entries: Entries) -> Tensor:
    """No outliers: (M, G, K)."""
    return entries.present.expand(len(prior.mean), *entries.present.shape)


def set_aside(prior: Prior, entries: Entries, rows: Tensor, noise: float, cut: float) -> Tensor:
    """Which entries to keep, (M, G, K): errors up to ``cut`` standard deviations, their own spread told by the median error.

    Least squares would hide an outlier of great leverage, so first guesses are, beside it, those of ``STARTS`` trained rows
    (M, N, R) whose median error is least (Rousseeuw, Least Median of Squares Regression, JASA 79(388), 1984). Fits of the
    better half follow (Rousseeuw and Van Driessen, Computing LTS Regression for Large Data Sets, 2006), then of all entries
    within ``cut``, which leaves least squares as it is where no entry is odd.
    """
    D, R = entries.target.shape[-1], rows.shape[-1]
    counts = entries.present.sum(-1)
    able = (counts >= FEWEST) & (counts * D > 2 * R)                     # else nothing tells an outlier from the others
    if not bool(able.any()):
        return keep_all(prior, entries)
    row, covariance = _robust_start(prior, entries, rows, noise)
    keep = entries.present
    half = 1 - 2 / (9 * D)                                               # Wilson and Hilferty: chi squared's median is D half^3
    for _ in range(ROUNDS):                                              # then keep all that the rest can explain
        errors = entries.errors(row)
        scale = (_median(entries, errors) / (D * half ** 3)).clamp(min=noise)[..., None]
        allowed = cut ** 2 * (scale + entries.leverage(covariance))
        before, keep = keep, ((errors <= allowed) | ~able[:, None]) & entries.present
        if torch.equal(before, keep):
            break
        found = solve(prior, entries.sums(prior, keep), noise)
        row, covariance = found.row, found.covariance
    return keep


def set_aside_next(prior: Prior, entries: Entries, known: Sums, noise: float, cut: float) -> Tensor:
    """The same for entries that come after others: how far they are from what ``known`` leads to expect."""
    found, keep = solve(prior, known, noise), entries.present
    scale = found.noise[..., None]
    for _ in range(ROUNDS):
        lever = entries.leverage(found.covariance)
        before, keep = keep, (entries.errors(found.row) <= cut ** 2 * (scale + lever)) & entries.present
        if torch.equal(before, keep):
            break
        found = solve(prior, known + entries.sums(prior, keep), noise)
    return keep


def _robust_start(prior: Prior, entries: Entries, rows: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """The row (M, G, R) with the least median error that concentration finds, and its covariance."""
    R, groups = rows.shape[-1], len(entries.target)
    step = -(-entries.target.shape[1] // SAMPLE)
    sample = Entries(entries.design[:, :, ::step], entries.target[:, ::step], entries.present[:, ::step])
    order = ((rows - prior.mean[:, None]) @ prior.axes[:, :, -1:]).argsort(1)
    place = torch.linspace(0, rows.shape[1] - 1, min(STARTS, rows.shape[1]), device=rows.device).round().long()
    starts = rows.gather(1, order[:, place].expand(-1, -1, R)).unbind(1)
    starts = torch.stack([start[:, None].expand(-1, groups, -1) for start in starts])               # (STARTS, M, G, R)
    medians = torch.stack([_median(sample, sample.errors(start)) for start in starts])
    best = medians.topk(min(GUESSES, len(medians)), 0, largest=False).indices
    squares = solve(prior, entries.sums(prior, keep_all(prior, entries)), noise).row
    fits = [_concentrate(prior, entries, row, noise) for row in (squares, *_pick(starts, best))]
    medians = torch.stack([_median(entries, entries.errors(row)) for row, _ in fits])
    best = medians.argmin(0, keepdim=True)
    rows, covariances = (torch.stack(parts) for parts in zip(*fits, strict=True))
    return _pick(rows, best)[0], _pick(covariances, best)[0]


def _pick(of: Tensor, chosen: Tensor) -> Tensor:
    """of (S, M, G, ...) at chosen (C, M, G), for each member and group its own: (C, M, G, ...)"""
    shape = (*chosen.shape, *of.shape[3:])
    return of.gather(0, chosen.view(*chosen.shape, *[1] * (of.ndim - 3)).expand(shape))


def _concentrate(prior: Prior, entries: Entries, row: Tensor, noise: float) -> tuple[Tensor, Tensor]:
    """Fit the better half of the entries, choose it anew, and so on: row (M, G, R) and its covariance."""
    keep = entries.present
    for _ in range(ROUNDS):
        errors = entries.errors(row)
        before, keep = keep, (errors <= _median(entries, errors)[..., None]) & entries.present
        found = solve(prior, entries.sums(prior, keep), noise)
        row = found.row
        if torch.equal(before, keep):
            break
    return row, found.covariance


def _median(entries: Entries, errors: Tensor) -> Tensor:
    """Of each group's errors, (M, G)."""
    return errors.masked_fill(~entries.present, torch.nan).nanmedian(-1).values
