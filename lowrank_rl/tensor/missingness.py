"""Entries that are missing because of what they are: make such patterns, and see from a fit whether one looks like it.

Where high values are reported more often than low ones ("missing not at random"), held-out entries are a sample of the
reported ones, so a fit's error on them says little about the missing ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.observed import Observed, numbers, sizes
from lowrank_rl.tensor.pattern import Pattern

MOST = 50_000_000    # entries of a tensor that are formed
SAMPLE = 1_000_000   # entries that a diagnosis of a larger tensor looks at
WORTH = 0.2          # a difference of so many standard deviations is worth a warning ("small" in Cohen 1988)


def by_value(tensor: CP | np.ndarray, share: float, *, strength: float, seed: int) -> Pattern:
    """Each entry is observed, independently, with probability 1 / (1 + exp(-(c + strength z))), z its standardised value.

    c is such that ``share`` of the entries are observed on average. strength 0 is missing at random; 1 means that the odds of
    being observed grow e-fold with each standard deviation of the values; below 0 high values are the rare ones.

    Raises:
        ValueError: a share outside (0, 1), a strength that is not finite, values that are NaN or Inf, constant values with a
            strength, a tensor of more than 5e7 entries, or so small a share that nothing was drawn.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number between 0 and 1, got {share!r}")
    if not math.isfinite(strength):
        raise ValueError(f"strength: expected a finite number, got {strength!r}")
    value = _dense(tensor)
    spread = value.std()
    if strength and not spread > 0:
        raise ValueError("tensor: expected values that differ, since observation depends on them, got constant ones; "
                         "use patterns.uniform")
    logit = strength * (value - value.mean()) / (spread or 1.0)
    reach = float(np.abs(logit).max()) + abs(math.log(share / (1 - share))) + 1
    c = brentq(lambda c: float(expit(c + logit).mean()) - share, -reach, reach)
    return Pattern.from_mask(numpy_stream(seed, "pattern", "by value").random(value.shape) < expit(c + logit))


@dataclass(frozen=True)
class Missingness:
    """How being observed goes with a fit's values. Of all entries, or of a million random ones of a large tensor."""
    correlation: float   # of being observed (1 or 0) with the fitted value
    difference: float    # mean fitted value of the observed entries minus that of the missing, in standard deviations
    entries: int         # how many entries were looked at
    missing: int         # how many of these are missing

    @property
    def suspicious(self) -> bool:
        """A difference of at least 0.2 standard deviations that chance would hardly give (4 standard errors)."""
        return abs(self.difference) >= WORTH and abs(self.correlation) * math.sqrt(self.entries) > 4

    def __str__(self) -> str:
        side = "higher" if self.difference > 0 else "lower"
        text = (f"fitted values of observed entries are {abs(self.difference):.2f} standard deviations {side} than of missing "
                f"ones (correlation {self.correlation:+.2f}, {self.entries:,} entries)")
        if self.suspicious:
            return text + ": entries look missing because of their values; held-out errors may not hold for the missing ones"
        return text + ": no sign that entries are missing because of their values"


def missingness(observed: Observed, cp: CP, *, seed: int = 0) -> Missingness:
    """Does being observed go with what a fit says the value is? A warning sign, not a test.

    The fitted values of missing entries are the fit's own claims: where it is wrong about them the sign may fail, and where
    rows differ in how often they are observed for other reasons it may be a false alarm.

    Raises:
        ValueError: shapes that differ, or no entry missing.
    """
    if cp.shape != observed.shape:
        raise ValueError(f"cp: expected the observed tensor's shape {observed.shape}, got {cp.shape}")
    total = math.prod(cp.shape)
    if len(observed) == total:
        raise ValueError("observed: expected some entries missing, got all of them observed")
    if total <= SAMPLE:
        fitted, seen = cp.dense().reshape(-1), observed.mask().reshape(-1)
    else:   # both groups by random members; what they make of the whole is known
        rng = numpy_stream(seed, "missingness", "sample")
        pattern = Pattern.of(observed)
        index = np.stack([rng.integers(0, size, SAMPLE) for size in cp.shape], axis=1)
        index = np.concatenate([index[~pattern.contains(index)],
                                observed.index[rng.permutation(len(observed))[:round(SAMPLE * pattern.density) + 1]]])
        fitted, seen = cp.at(index), pattern.contains(index)
    spread = float(fitted.std())
    if spread == 0:
        return Missingness(0.0, 0.0, len(fitted), int((~seen).sum()))
    difference = float(fitted[seen].mean() - fitted[~seen].mean()) / spread
    part = float(seen.mean())
    return Missingness(difference * math.sqrt(part * (1 - part)), difference, len(fitted), int((~seen).sum()))


def _dense(tensor: CP | np.ndarray) -> np.ndarray:
    shape = sizes(tensor.shape if isinstance(tensor, CP) else np.shape(tensor))
    if math.prod(shape) > MOST:
        raise ValueError(f"tensor: expected at most {MOST:,} entries, since each is drawn, got {math.prod(shape):,}")
    value = tensor.dense() if isinstance(tensor, CP) else numbers("tensor", tensor)
    if not np.isfinite(value).all():
        raise ValueError("tensor: expected finite values, got NaN or Inf")
    return value
