"""How many terms do the data carry? Held-out error over ranks, with standard errors, and a rule.

The entries are dealt into folds; each fold is predicted from the others, at every rank. A rank too low misses structure,
one too high learns noise: both show in entries that the fit never saw, and neither in those it saw.
"""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning

from lowrank_rl import check
from lowrank_rl.rng import integer, numpy_stream
from lowrank_rl.tensor.compare import factor_match_score
from lowrank_rl.tensor.completion import CPCompletion
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.observed import Observed

RULES = ("one standard error", "best")
Done = MutableMapping[tuple[str, int, int], tuple[float, float, bool, CP]]   # (data and settings, rank, fold) -> one fit


@dataclass(frozen=True, eq=False)
class RankChoice:
    """Held-out errors of R ranks in F folds, and the rank they speak for. Errors are in units of the values."""

    ranks: tuple[int, ...]       # (R,) ascending
    errors: np.ndarray           # (R, F) root mean square error on the fold held out
    train_errors: np.ndarray     # (R, F) the same on the entries of the fit
    baseline: np.ndarray         # (F,) held-out error of the mean of the training values: a model without any term
    stability: np.ndarray        # (R,) factor match score between fits of different folds, mean over pairs; nan for 2 modes
    converged: np.ndarray        # (R, F) whether the fit ended by its tolerance
    left_out: int                # held-out entries of rows without a training entry: not scored, in any fold
    rule: str                    # see ``choose_rank``

    @property
    def mean(self) -> np.ndarray:
        """Held-out error, mean over folds: (R,)"""
        return self.errors.mean(axis=1)

    @property
    def standard_error(self) -> np.ndarray:
        """Of that mean, from the spread over folds: (R,)"""
        return self.errors.std(axis=1, ddof=1) / math.sqrt(self.errors.shape[1])

    @property
    def best(self) -> int:
        """The rank of lowest mean held-out error."""
        return self.ranks[int(self.mean.argmin())]

    @property
    def chosen(self) -> int:
        """The rank that the rule takes."""
        return self.best if self.rule == "best" else one_standard_error(self.ranks, self.mean, self.standard_error)

    def table(self) -> str:
        """The numbers as text, one line per rank, and below them what to be careful about."""
        lines = ["rank  held out             train      stability"]
        for rank, mean, error, train, stability in zip(self.ranks, self.mean, self.standard_error,
                                                       self.train_errors.mean(axis=1), self.stability, strict=True):
            marks = [name for name, it in (("best", self.best), ("chosen", self.chosen)) if it == rank]
            same = "-" if math.isnan(stability) else f"{stability:.2f}"
            lines.append(f"{rank:4d}  {mean:<9.4g} ± {error:<7.2g}  {train:<9.4g}  {same:>9}   {', '.join(marks)}".rstrip())
        lines.append(f"none  {self.baseline.mean():<9.4g}   (the mean of the training entries)")
        return "\n".join([*lines, *self._cautions()])

    def _cautions(self) -> Iterator[str]:
        if self.mean.min() >= self.baseline.mean():
            yield "No rank predicts better than the mean: these entries show no low-rank structure."
        elif self.best == self.ranks[-1]:
            yield f"The largest rank tried, {self.best}, has the lowest error: try larger ones."
        if self.left_out:
            yield f"{self.left_out} held-out entries are not scored: their row of a mode had no entry in training."
        if not self.converged.all():
            yield f"{(~self.converged).sum()} of {self.converged.size} fits did not converge: raise the model's max_iter."


def choose_rank(observed: Observed, ranks: Sequence[int], *, folds: int = 5, by: int | Sequence[int] | None = None,
                rule: str = "one standard error", model: CPCompletion | None = None, seed: int,
                progress: Callable[[dict], Any] | None = None, done: Done | None = None) -> RankChoice:
    """The rank of a CP that predicts best what it was not fitted to, by cross-validation over the entries.

    Every entry is held out once, in the same folds for all ranks. The rule "one standard error" takes the smallest rank
    whose mean error is within one standard error of the best one's; "best" takes the best one.

    Source: T. Hastie, R. Tibshirani, J. Friedman, "The Elements of Statistical Learning", 2009, sec. 7.10.
    Differs: a fold's error is the root of its mean square, in units of the values.

    Args:
        observed: the entries; their weights count in the fits and in the errors.
        ranks: the ranks to try, each >= 1, in any order.
        folds: how many parts the entries are dealt into.
        by: hold out what you will have to predict. None: single entries. Modes: entries that share their coordinates
            there are held out together, as in ``Observed.split``; all modes but one hold out whole fibres.
        model: what to fit, but for its rank and random_state; None: ``CPCompletion()``.
        seed: deals the folds and starts the fits. Same seed, same numbers, whatever the order of the entries.
        progress: called after each fit with a dict of rank, fold, error, train_error, converged, seconds and fits_left.
        done: a dict of yours that keeps the finished fits. After Ctrl-C, or with more ranks, the same call goes on there.

    A held-out entry whose row of some mode has no entry in training cannot be predicted by any rank: those are left out of
    the errors, counted in ``left_out`` and warned of.

    Raises:
        ValueError: ranks below 1 or none, fewer than two folds or more than there are groups, an unknown rule, modes that
            are not there, a model that starts from a given CP, or a fold in which no entry can be predicted, such as
            whole rows of a mode (``by=0``).
    """
    ranks = _ranks(ranks)
    check.known("rule", rule, RULES)
    model = _model(model)
    observed = _sorted(observed)
    fold = deal(observed, folds, by=by, seed=seed)
    known = np.stack([_known(observed, fold != f) & (fold == f) for f in range(folds)])   # (F, B) held out and predictable
    left_out = len(fold) - int(known.sum())
    if not known.any(axis=1).all():
        raise ValueError("by: expected held-out entries whose rows keep other entries in training, got a fold without any; "
                         "hold out single entries or fibres (all modes but one), or take fewer folds")
    if left_out:
        warnings.warn(f"{left_out} of {len(fold)} entries are the only ones of their row, or their row is held out whole: they "
                      "are not scored", stacklevel=2)
    finished: Done = {} if done is None else done
    name = _name(observed, model, folds, by, seed)
    jobs = [(rank, f) for rank in ranks for f in range(folds)]
    missing = [job for job in jobs if (name, *job) not in finished]
    for i, (rank, f) in enumerate(missing):
        began = time.perf_counter()
        fit = clone(model).set_params(rank=rank, random_state=integer(seed, "rank choice", f))
        train, test = _part(observed, fold != f), _part(observed, known[f])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"mode \d+: .* no observed entry")   # counted above
            warnings.filterwarnings("ignore", category=ConvergenceWarning)                 # in the table
            warnings.filterwarnings("ignore", message=r"rank \d+ has \d+ free numbers")    # the held-out error tells
            fit.fit(train)
        result = rms(test, fit.predict(test)), rms(train, fit.predict(train)), bool(fit.converged_), fit.cp_
        finished[name, rank, f] = result
        if progress is not None:
            progress({"rank": rank, "fold": f, "error": result[0], "train_error": result[1], "converged": result[2],
                      "seconds": time.perf_counter() - began, "fits_left": len(missing) - i - 1})
    fits = [[finished[name, rank, f] for f in range(folds)] for rank in ranks]
    errors, train_errors, converged = (np.array([[fit[j] for fit in row] for row in fits]) for j in range(3))
    means = [_part(observed, fold != f) for f in range(folds)]
    baseline = [rms(_part(observed, known[f]), np.average(means[f].value, weights=means[f].weight)) for f in range(folds)]
    stability = [_agreement([fit[3] for fit in row]) for row in fits]
    return RankChoice(ranks, errors, train_errors, np.array(baseline), np.array(stability), converged, left_out, rule)


def one_standard_error(ranks: Sequence[int], mean: np.ndarray, standard_error: np.ndarray) -> int:
    """The smallest rank whose mean error is at most that of the best plus the best's standard error."""
    best = int(np.argmin(mean))
    return min(rank for rank, m in zip(ranks, mean, strict=True) if m <= mean[best] + standard_error[best])


def deal(observed: Observed, folds: int, *, by: int | Sequence[int] | None = None, seed: int) -> np.ndarray:
    """A fold 0..folds-1 for each entry: (B,). Groups (see ``choose_rank``) stay together; folds differ by one group at most."""
    check.count("folds", folds, low=2)
    modes = list(range(len(observed.shape)) if by is None else observed._modes("by", by))
    groups, group = np.unique(observed.index[:, modes], axis=0, return_inverse=True)
    if len(groups) < folds:
        raise ValueError(f"folds: expected at most {len(groups)}, the number of {'entries' if by is None else 'groups'} to "
                         f"deal out, got {folds}")
    place = numpy_stream(seed, "rank choice", "folds").permutation(len(groups))
    return (place % folds)[group.reshape(-1)]


def rms(observed: Observed, predicted: np.ndarray | float) -> float:
    """Root of the weighted mean square of value - predicted."""
    return math.sqrt(np.average((observed.value - predicted) ** 2, weights=observed.weight))


def _ranks(ranks: Sequence[int]) -> tuple[int, ...]:
    listed = list(ranks) if isinstance(ranks, Sequence | np.ndarray) else [ranks]
    if not listed:
        raise ValueError("ranks: expected at least one rank to try, got none")
    for rank in listed:
        check.count("ranks", rank)
    return tuple(sorted({int(rank) for rank in listed}))


def _model(model: CPCompletion | None) -> CPCompletion:
    model = CPCompletion() if model is None else model
    if not isinstance(model, CPCompletion):
        raise ValueError(f"model: expected a CPCompletion, got {type(model).__name__}")
    if isinstance(model.init, CP) or model.fixed_modes:
        raise ValueError('model: expected init "spectral" or "random" and no fixed modes, got a given CP, which has a rank '
                         "already; leave them out")
    return model


def _sorted(observed: Observed) -> Observed:
    """The same entries in the order of their coordinates, so that nothing depends on the order they came in."""
    return _part(observed, np.lexsort(observed.index.T[::-1]))


def _part(observed: Observed, chosen: np.ndarray) -> Observed:
    return observed._rows_where(chosen)


def _known(observed: Observed, train: np.ndarray) -> np.ndarray:
    """Which entries have rows that all occur in training: (B,)"""
    known = np.ones(len(observed), dtype=bool)
    for i, size in zip(observed.index.T, observed.shape, strict=True):
        known &= (np.bincount(i[train], minlength=size) > 0)[i]
    return known


def _name(observed: Observed, model: CPCompletion, folds: int, by: Any, seed: int) -> str:
    """Tells calls apart whose fits are not the same."""
    digest = hashlib.blake2b(digest_size=16)
    for array in (observed.index, observed.value, observed.weight):
        digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    settings = {key: value for key, value in model.get_params().items()
                if key not in ("rank", "random_state", "verbose", "callback", "warm_start")}
    modes = None if by is None else np.atleast_1d(by).tolist()
    digest.update(repr((observed.shape, settings, folds, modes, seed)).encode())
    return digest.hexdigest()


def _agreement(fits: list[CP]) -> float:
    """Mean factor match score over pairs; nan for matrices, whose terms can be mixed without changing an entry."""
    if len(fits[0].shape) < 3:
        return math.nan
    return float(np.mean([factor_match_score(a, b)[0] for a, b in combinations(fits, 2)]))
