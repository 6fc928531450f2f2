"""How many terms a complete tensor needs at least, and how many suffice, each with evidence that can be checked.

At least: the largest rank of an unfolding, shown by rows and columns whose small matrix is far from singular.
At most: a CP with that many terms, shown by the error that it leaves.

Where the two agree the CP rank is known. They need not: deciding the rank of a tensor is NP-hard (Håstad 1990).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import qr

from lowrank_rl import check
from lowrank_rl.tensor.approximate import Core, best_cps, cancellation, core_of, errors, exact_cps
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.jennrich import jennrich
from lowrank_rl.tensor.unfoldings import Unfolding, complete, noise, unfold, unfoldings

EXACT = 1e-9       # relative root mean square error up to which a CP counts as exact
CANCELS = 100      # sum of the terms' norms over the tensor's, from which a text says that terms cancel
FIBRES = "that are fibres of the core"
SMALL = (5_000, 100_000)   # entries up to which a search is cheap: for exact terms, for terms up to noise


@dataclass(frozen=True, eq=False)
class LowerBound:
    """No CP with fewer terms has these entries. ``minor`` is rank x rank, from the rows and columns named."""

    rank: int
    unfolding: Unfolding          # of the largest rank
    rows: np.ndarray              # (rank, modes that index rows) coordinates
    columns: np.ndarray           # (rank, modes that index columns)
    minor: np.ndarray             # (rank, rank) entries of the tensor; columns have the lengths they have there
    strength: float               # smallest over largest singular value of the minor, its columns scaled to length 1

    def __str__(self) -> str:
        return self.text([f"mode {k}" for k in range(len(self.unfolding.rows + self.unfolding.columns))])

    def text(self, names: Sequence[str]) -> str:
        """A sentence, with these names of the modes."""
        if self.rank == 0:
            return "at least 0: no unfolding has a singular value above its threshold."
        u = self.unfolding
        m, n = u.shape
        full = " That is all its shape allows." if u.full else ""
        return (f"at least {self.rank}: {' + '.join(names[k] for k in u.rows)} against the rest "
                f"({m} x {n}) has {self.rank} singular value{'s' * (self.rank > 1)} above {u.threshold:.2g}, the last "
                f"{u.singular[self.rank - 1]:.2g}, {_times(u.gap)} times what is not counted.{full}")


@dataclass(frozen=True, eq=False)
class UpperBound:
    """These terms suffice."""

    rank: int                # 0 for a tensor of zeros, or of noise alone
    cp: CP | None            # None at rank 0
    error: float             # root mean square of tensor - cp, over that of the tensor
    worst: float             # largest |tensor - cp|, units of the entries
    cancels: float           # sum of the terms' norms over the tensor's
    how: str                 # where the terms come from

    def __str__(self) -> str:
        if self.cp is None:
            return f"at most 0: no entry is larger than {self.worst:.2g}, and noise or rounding explain them."
        return (f"at most {self.rank}: terms {self.how} leave a relative error of {self.error:.1e} ({self.worst:.1e} in the "
                "worst entry)." + (f" They nearly cancel: their norms sum to {self.cancels:.0f} times the tensor's."
                                   if self.cancels > CANCELS else ""))


def lower_bound(tensor: Any, *, sigma: float | None = None, found: tuple[Unfolding, ...] | None = None) -> LowerBound:
    """The largest rank of an unfolding, with rows and columns that show it.

    Rows and columns are those that pivoted QR picks from the leading singular vectors (Golub, Klema & Stewart 1976).

    Args:
        sigma: standard deviation of the noise, as in ``unfoldings``.
        found: the tensor's unfoldings, if you have them.

    Raises:
        ValueError: as ``unfoldings``.
    """
    tensor = complete(tensor)
    found = unfoldings(tensor, sigma=sigma) if found is None else found
    most = max(u.rank for u in found)
    unfolding = max((u for u in found if u.rank == most), key=lambda u: u.gap)
    matrix = unfold(tensor, unfolding.rows)
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    pick = [np.sort(qr(side[:most], mode="r", pivoting=True)[1][:most]) if most else np.empty(0, int) for side in (u.T, vt)]
    minor = matrix[np.ix_(*pick)]
    rows, columns = (np.stack(np.unravel_index(i, [tensor.shape[k] for k in modes]), axis=1)
                     for i, modes in zip(pick, (unfolding.rows, unfolding.columns), strict=True))
    singular = np.linalg.svd(minor / np.linalg.norm(minor, axis=0), compute_uv=False) if most else np.zeros(1)
    return LowerBound(most, unfolding, rows, columns, minor, float(singular[-1] / (singular[0] or 1.0)))


def upper_bound(tensor: Any, *, sigma: float | None = None, cp: CP | None = None, at_least: int = 1, most: int | None = None,
                seed: int) -> UpperBound:
    """The fewest terms that we could find which explain every entry: to rounding, or to the noise if sigma is given.

    Tried in turn: your ``cp``; Jennrich's terms; Levenberg-Marquardt from several starts, at ranks from ``at_least`` up to
    ``most``; and the fibres of the core, which always suffice: the product of the multilinear ranks but the largest.

    With noise a CP suffices when its squared error is within three standard deviations of what noise alone leaves,
    sigma^2 (entries - free numbers).

    Args:
        cp: terms of your own, such as the factors of a formula. They are taken as they are; fewer that also suffice win.
        at_least: where the search begins, such as a lower bound.
        most: where it ends; None: ``at_least`` + 6, or no search where it would take minutes (SMALL entries of the core).

    Raises:
        ValueError: as ``unfoldings``, a cp of another shape, or bounds below 1 or in the wrong order.
    """
    tensor = complete(tensor)
    noise(sigma)
    check.count("at_least", at_least)
    if most is not None:
        check.count("most", most, low=at_least)
    if cp is not None and cp.shape != tensor.shape:
        raise ValueError(f"cp: expected the tensor's shape {tensor.shape}, got {cp.shape}")
    nothing = UpperBound(0, None, 1.0, float(np.abs(tensor).max()), 0.0, "")
    if suffices(tensor, nothing, sigma):
        return nothing
    # without noise all can be done in the core; with it, the core of the noise has another size than its shape says
    core = core_of(tensor) if sigma is None else Core(tensor, tuple(np.eye(n) for n in tensor.shape))
    tries = [] if cp is None else [_upper(tensor, cp, "that you gave")]
    if tensor.ndim > 2:
        terms = jennrich(core.tensor, sigma=sigma, seed=seed).cp
        tries += [] if terms is None else [_upper(tensor, core.lift(terms), "by simultaneous diagonalisation")]
    tries.append(_upper(tensor, core.lift(_fibres(core.tensor, sigma)), FIBRES))
    enough = [bound for bound in tries if suffices(tensor, bound, sigma)]
    if most is None:
        most = at_least + 6 if core.tensor.size <= SMALL[sigma is not None] else at_least - 1
    ranks = range(at_least, min([most + 1, *(bound.rank for bound in enough)]))
    search = exact_cps(tensor, ranks, seed=seed) if sigma is None else best_cps(tensor, ranks, seed=seed)
    for found in search:
        bound = _upper(tensor, found, "found by least squares")
        if suffices(tensor, bound, sigma):
            return bound
    if not enough:   # the noise of the fibres left out is not quite within its bounds: keep all of them
        enough = [_upper(tensor, _fibres(tensor, None), FIBRES)]
    return min(enough, key=lambda bound: bound.rank)


def suffices(tensor: np.ndarray, bound: UpperBound, sigma: float | None) -> bool:
    """Whether its error is rounding, or what noise of this sigma leaves."""
    if sigma is None:
        return bound.error <= EXACT or not tensor.any()
    square = (bound.error * np.linalg.norm(tensor) / sigma) ** 2
    left = max(1, tensor.size - bound.rank * (sum(tensor.shape) - tensor.ndim + 1))
    return bool(square <= left + 3 * math.sqrt(2 * left))


def _upper(tensor: np.ndarray, cp: CP, how: str) -> UpperBound:
    rms, worst = errors(tensor, cp)
    relative = rms * math.sqrt(tensor.size) / float(np.linalg.norm(tensor))
    return UpperBound(cp.rank, cp, relative, worst, cancellation(tensor, cp), how)


def _fibres(tensor: np.ndarray, sigma: float | None) -> CP:
    """One term per fibre of the core along its largest mode, which is exact."""
    found = unfoldings(tensor, sigma=sigma, bipartitions=False)
    core = core_of(tensor)
    ranks = [max(1, min(u.rank, n)) for u, n in zip(found, core.tensor.shape, strict=True)]
    small = core.tensor[tuple(slice(r) for r in ranks)]
    along = int(np.argmax(ranks))
    places = np.indices([1 if k == along else r for k, r in enumerate(ranks)]).reshape(len(ranks), -1)
    factors = [np.moveaxis(small, along, 0).reshape(ranks[along], -1) if k == along else np.eye(r)[:, places[k]]
               for k, r in enumerate(ranks)]
    return CP(np.ones(places.shape[1]), tuple(basis[:, :r] @ f for basis, r, f in zip(core.bases, ranks, factors, strict=True)))


def _times(gap: float) -> str:
    return "infinitely many" if math.isinf(gap) else f"{gap:.2g}"

