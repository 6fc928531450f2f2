"""Fractional polynomials from covariates to latent rows: ``row_regression`` in closed form, for maps that are smooth.

    u_r = sum_f  weight_fr  product over covariates e in f of  g_e(covariate_e),     g: itself, logarithm or reciprocal
"""

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from lowrank_rl.rl.models.persim import PerSim
from lowrank_rl.rl.row_regression import around, checked_covariates, known_rows, middle_and_half

HIGHEST = 6        # degree that is tried
FORMS = ("itself", "logarithm", "reciprocal")     # of a covariate; the others only where all known ones are positive
EDGE = 0.1         # share of the known agents beyond which a basis is tried
USUAL = 4          # median errors beyond which an agent counts less
ROUNDS = 5         # of weights, until they settle
TINY = 1e-6        # share of the rows' deviation below which errors are alike


@dataclass(frozen=True, eq=False)
class Basis:
    """Products of up to ``degree`` covariates, each as it is, or its logarithm or reciprocal, scaled to -1..1."""
    degree: int
    forms: tuple[str, ...]                 # of each covariate, names of FORMS
    middle: Tensor                         # (E,) of the known agents' covariates in these forms
    half: Tensor                           # (E,) half their range

    def __call__(self, covariates: Tensor) -> Tensor:
        """(U, E) -> (U, F)"""
        x = (_formed(covariates, self.forms) - self.middle) / self.half
        return torch.stack([x[:, list(factors)].prod(1) for degree in range(self.degree + 1)
                            for factors in combinations_with_replacement(range(x.shape[1]), degree)], 1)


@dataclass(frozen=True, eq=False)
class Polynomials:
    """Of each member a polynomial in its own basis."""
    bases: tuple[Basis, ...]               # of each member
    weights: tuple[Tensor, ...]            # of each member, (F, R)
    roots: tuple[Tensor, ...]              # of each member, (X'X)^-1/2 at the known agents, (F, F)
    error: Tensor                          # (M, n, R) standardised held-out errors

    def rows(self, covariates: Tensor) -> Tensor:
        return torch.stack([X @ weight for X, weight in zip(self._features(covariates), self.weights, strict=True)])

    def cloud(self, covariates: Tensor) -> Tensor:
        """Wider where the covariates are far from the known ones: the variance of a new answer is that of an error times
        1 + leverage. What a polynomial of this basis cannot say is not in it."""
        lever = torch.stack([(X @ root).square().sum(1) for X, root in
                             zip(self._features(covariates), self.roots, strict=True)])                   # (M, U)
        return around(self.rows(covariates), self.error[:, None] * (1 + lever).sqrt()[..., None, None])

    def _features(self, covariates: Tensor) -> list[Tensor]:
        covariates = checked_covariates(covariates, len(self.bases[0].forms))
        for basis in self.bases:
            for e, form in enumerate(basis.forms):
                if form != "itself" and bool((covariates[:, e] <= 0).any()):
                    raise ValueError(f"covariates: expected positive numbers in column {e}, as those of all known agents are, "
                                     f"got {covariates[:, e].min().item():g}; the regression uses their {form}")
        return [basis(covariates) for basis in self.bases]


def fit_polynomial(model: PerSim, agent: Tensor, covariates: Tensor) -> Polynomials:
    """Least squares on products of covariates; which, is chosen for each member by agents that are held out.

    Covariates that are positive may enter by their logarithm or reciprocal (fractional polynomials, Royston and Altman 1994):
    laws of motion divide by masses and lengths, and a polynomial in these runs away soon beyond their range. A basis is
    judged at each agent by a fit without it, and at the tenth of the agents with the least or greatest value of a covariate
    by a fit without that tenth, for new agents may be beyond the known ones; by the logarithms of these errors along the
    rows' principal axes, so that neither odd rows nor wide axes decide alone. In fits, odd rows count less, for an agent's
    steps may have been too few. The simplest basis within one standard error of the best wins (Breiman and others,
    Classification and Regression Trees, 1984, section 3.4.3; here the standard error of the difference). Smooth maps need no
    network.

    Args:
        agent: (n,) which training agents are known. covariates: (n, E) theirs.

    Raises:
        ValueError: shapes that disagree, NaN or Inf, an agent out of range or known twice, or too few of them.
    """
    rows, covariates = known_rows(model, agent, covariates)
    bases, edges = _candidates(covariates), _edges(covariates)
    found, fits = zip(*(_fitted(bases, edges, covariates, y) for y in rows), strict=True)
    return Polynomials(found, tuple(fit.weight for fit in fits), tuple(fit.root for fit in fits),
                       torch.stack([fit.error * (1 - fit.lever).sqrt() for fit in fits]))


@dataclass(frozen=True, eq=False)
class _Fit:
    weight: Tensor     # (F, R)
    error: Tensor      # (n, R) at each agent, by the fit without it
    lever: Tensor      # (n, 1)
    root: Tensor       # (F, F)


def _robust(X: Tensor, y: Tensor) -> _Fit:
    """Least squares of targets y (n, R), along their principal axes, on features X (n, F) in which odd agents count less.

    One that is c > USUAL times as far off as the median agent counts USUAL / c (Huber, Robust Estimation of a Location
    Parameter, 1964), where c is the greatest over columns.
    """
    trust = torch.ones_like(y[:, :1])
    for _ in range(ROUNDS):
        fit = _least_squares(X, y, trust)
        off = (y - X @ fit.weight).abs()
        off = off / off.median(0).values.clamp(min=torch.finfo(y.dtype).tiny)
        trust = (USUAL / off.amax(1, keepdim=True)).clamp(max=1)
    return _least_squares(X, y, trust)


def _least_squares(X: Tensor, y: Tensor, trust: Tensor) -> _Fit:
    """With weights (n, 1) of the squares; and all fits that leave one agent out, in closed form."""
    U, S, V = torch.linalg.svd(trust.sqrt() * X, full_matrices=False)
    kept = S[0] * max(X.shape) * torch.finfo(S.dtype).eps < S       # covariates may not vary
    root = V.mT * torch.where(kept, 1 / S, 0)
    weight = root @ ((U * kept).mT @ (trust.sqrt() * y))
    lever = (U * kept).square().sum(1)[:, None].clamp(max=1 - 1e-9)
    return _Fit(weight, (y - X @ weight) / (1 - lever), lever, root)


def _fitted(bases: list[Basis], edges: list[Tensor], covariates: Tensor, y: Tensor) -> tuple[Basis, _Fit]:
    """For one member's rows y (n, R), the first basis about as good as the best, and the fit."""
    mean = y.mean(0)
    axes = torch.linalg.eigh((y - mean).mT @ (y - mean)).eigenvectors
    along = (y - mean) @ axes
    least = TINY * along.square().mean(0).sqrt().clamp(min=torch.finfo(y.dtype).tiny)
    fits, judged = [], []
    for basis in bases:
        X = basis(covariates)
        fits.append(_robust(X, along))
        beyond = [along[edge] - X[edge] @ _robust(X[~edge], along[~edge]).weight for edge in edges]
        judged.append(torch.cat([fits[-1].error, *beyond]).abs().maximum(least).log().mean(1))
    logs = torch.stack(judged)                                                       # (bases, errors)
    worse = logs - logs[logs.mean(1).argmin()]
    about = worse.mean(1) <= worse.std(1) / worse.shape[1] ** 0.5
    best = int(about.to(torch.int8).argmax())
    fit = fits[best]
    weight = fit.weight @ axes.mT
    weight[0] += mean      # the first feature is 1
    return bases[best], _Fit(weight, fit.error @ axes.mT, fit.lever, fit.root)


def _edges(covariates: Tensor) -> list[Tensor]:
    """The tenth of the agents with the least, and with the greatest value of each covariate that varies, (n,) bool each."""
    count = max(1, round(EDGE * len(covariates)))
    found = []
    for column in covariates.unbind(1):
        if column.max() > column.min():
            order = column.argsort(stable=True)
            found += [torch.zeros(len(column), dtype=torch.bool).index_fill(0, some, True)
                      for some in (order[:count], order[-count:])]
    return found


def _candidates(covariates: Tensor) -> list[Basis]:
    """From the simplest on; none that has more features than half the agents, but for planes."""
    n, E = covariates.shape
    forms = [FORMS if bool((column > 0).all()) else FORMS[:1] for column in covariates.unbind(1)]
    every = sorted(product(*forms), key=lambda some: sum(FORMS.index(form) for form in some))
    found = [Basis(0, every[0], *middle_and_half(covariates))]
    for degree in range(1, HIGHEST + 1):
        if degree == 1 or n >= 2 * math.comb(degree + E, E):
            found += [Basis(degree, some, *middle_and_half(_formed(covariates, some))) for some in every]
    return found


def _formed(covariates: Tensor, forms: tuple[str, ...]) -> Tensor:
    how = {"itself": lambda x: x, "logarithm": torch.log, "reciprocal": torch.reciprocal}
    return torch.stack([how[form](x) for form, x in zip(forms, covariates.unbind(1), strict=True)], 1)
