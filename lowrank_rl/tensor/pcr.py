"""Principal component regression of some rows of a low-rank matrix on others, and what it predicts, with standard errors.

    y = X w + noise          X (T, N) the donors, y (T,) the target, where both are known; rank k
    prediction = Z w         Z (m, N) the donors, where only they are known

Columns of X and Z, and of Y for several targets, are units; rows are measurements. Used by blocks.py.

Source: A. Agarwal, D. Shah, D. Shen, "Synthetic Interventions", arXiv 2006.07691 ("SI" below): the estimator (SI-PCR), its
asymptotic normality, the subspace inclusion condition.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True, eq=False)
class Prediction:
    """Of n targets at m measurements from N donors. "Expected" values are without the noise of a single measurement."""

    rank: int                          # k
    freedom: int                       # degrees of freedom of the residual, T - k
    weights: np.ndarray                # (n, N) of the donors, for each target
    value: np.ndarray                  # (n, m)
    standard_error: np.ndarray         # (n, m) of the expected values
    mean: np.ndarray                   # (n,) over the m measurements: SI's estimand
    mean_standard_error: np.ndarray    # (n,)
    residual: np.ndarray               # (n,) standard deviation of y - X w
    direction: np.ndarray              # (m, k) H below: how far the rows of Z lie out, in units of X
    inclusion_p: float                 # do the rows of Z need directions that X lacks? nan if N = k
    misfit_p: np.ndarray               # (n,) do the donors explain y as well as noise allows? nan if N = k

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends, (n, m) each, that hold an expected value with this chance."""
        half = self._quantile(level) * self.standard_error
        return self.value - half, self.value + half

    def mean_interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """The same for the means over the m measurements, (n,) each."""
        half = self._quantile(level) * self.mean_standard_error
        return self.mean - half, self.mean + half

    def prediction_interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """The same for what a single new measurement would read, noise included: (n, m) each."""
        half = self._quantile(level) * np.outer(self.residual, np.sqrt(1 + (self.direction**2).sum(axis=1)))
        return self.value - half, self.value + half

    def surprise(self, measured: np.ndarray) -> np.ndarray:
        """p-values (n,) of measurements (n, m): small where they are further from ``value`` than noise explains.

        F = e' (I + H H')^-1 e / (m s^2) with m and T - k degrees of freedom: the prediction test of G. C. Chow, "Tests of
        Equality Between Sets of Coefficients in Two Linear Regressions", Econometrica 28(3), 1960.
        """
        m = self.value.shape[1]
        squares = [_whitened(error[:, None], self.direction) for error in measured - self.value]
        return stats.f.sf(squares / (m * np.maximum(self.residual**2, _rounding(self.value))), m, self.freedom)

    def _quantile(self, level: float) -> float:
        if not 0 < level < 1:
            raise ValueError(f"level: expected a chance between 0 and 1, such as 0.9, got {level!r}")
        return float(stats.t.ppf((1 + level) / 2, self.freedom))


def predict(X: np.ndarray, Y: np.ndarray, Z: np.ndarray, rank: int) -> Prediction:
    """X (T, N), Y (T, n), Z (m, N) -> what Y's units would show where Z was measured.

    With X = U S V' cut to k terms, w = V S^-1 U' y. Differs: what noise does to S, U and V is undone (``_components``); else
    predictions are too small. To first order in the noise, with H = Z V S^-1 (m, k),

        variance of (Z w)_t = donor noise * |w|^2  +  variance of (y - X w) * |H_t|^2

    The first term is SI's. Differs: the second, the error of the weights, is kept; SI's theorem lets it vanish, for T large
    against m. Differs: all donors get weight; SI selects k of them, so that the first term dominates.
    Quantiles are Student's with T - k degrees of freedom. Noise is taken as independent, of one variance for all donors, and
    of one for each target.

    The rank must satisfy ``usable``.
    """
    (T, N), m, k = X.shape, len(Z), rank
    U, V, inverse, noise = _components(X, k)
    W = V @ (inverse[:, None] * (U.T @ Y))   # (N, n)
    H = Z @ V * inverse                      # (m, k)
    length, leverage = (W**2).sum(axis=0), (H**2).sum(axis=1)
    residual = ((Y - U @ (U.T @ Y))**2).sum(axis=0) / (T - k)   # variances of y - X w
    inclusion, misfit = math.nan, np.full(len(residual), math.nan)
    donor = residual / (1 + length)   # if the donors leave no residual, their noise is taken to be the targets' own
    if k < N:
        donor, many = max(noise, _rounding(X)), (T - k) * (N - k)
        outside = Z - Z @ V @ V.T
        inclusion = float(stats.f.sf(_whitened(outside, H) / (m * (N - k) * donor), m * (N - k), many))
        misfit = stats.f.sf(residual / (donor * (1 + length)), T - k, many)
    value = Z @ W
    variance, of_mean = np.outer(residual, leverage), residual * (H.mean(axis=0)**2).sum()
    return Prediction(k, T - k, W.T, value.T, np.sqrt(variance + (donor * length)[:, None]), value.mean(axis=0),
                      np.sqrt(of_mean + donor * length / m), np.sqrt(residual), H, inclusion, misfit)


def usable(X: np.ndarray, Z: np.ndarray, asked: int | None) -> tuple[int, str]:
    """The rank to use and "", or why none will do.

    Asked for none: the singular values of the donors in X and Z together that exceed the optimal hard threshold. A rank will do
    if X has as many columns, more rows, and a singular value of that number that noise alone would not give. So where Z shows
    more directions than X can tell apart, none will do.
    """
    (T, N), both = X.shape, np.vstack([X, Z])
    if N == 0:
        return 0, "no unit has both this block and something in common with these units"
    here = f"the overlap ({T} {'column' if T == 1 else 'columns'}, {N} {'donor' if N == 1 else 'donors'})"
    s, s_both = (np.linalg.svd(matrix, compute_uv=False) for matrix in (X, both))
    least = s_both[0] * max(both.shape) * np.finfo(float).eps   # rounding errors
    k = int((s_both > max(median_threshold(_aspect(both)) * np.median(s_both), least)).sum()) if asked is None else asked
    if k == 0:
        return 0, f"the donors of {here} show nothing but noise"
    if k > N or k >= T:
        return k, f"rank {k} needs at least {k} donors and {k + 1} shared columns, got {N} and {T}"
    noise = math.sqrt(_noise(s_both, both.shape, k))
    if s[k - 1] <= max(hard_threshold(_aspect(X)) * math.sqrt(max(X.shape)) * noise, least):
        return k, f"{here} has too little rank: its singular value {k} is {s[k - 1]:.2g}, not above noise"
    return k, ""


def hard_threshold(aspect: float) -> float:
    """The singular value worth keeping, in units of sigma sqrt(longer side), for a matrix of this shorter / longer side.

    Source: M. Gavish, D. L. Donoho, "The Optimal Hard Threshold for Singular Values is 4/sqrt(3)", IEEE Trans. Inf. Theory
    60(8), 2014: lambda*(beta).
    """
    b = aspect
    return math.sqrt(2 * (b + 1) + 8 * b / (b + 1 + math.sqrt(b * b + 14 * b + 1)))


def median_threshold(aspect: float) -> float:
    """The same in units of the median singular value, for unknown sigma: their cubic for omega(beta), good to 0.02."""
    b = aspect
    return 0.56 * b**3 - 0.95 * b**2 + 1.82 * b + 1.43


def _components(X: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """U (T, k) and V (N, k) of X, what to multiply by in place of 1/s, and the variance of the noise.

    Noise of variance c lifts a singular value s0 to s and turns U and V away, so that on average U'V'/s is 1/s0 times a factor:
        s^2 = (s0^2 + T c) (s0^2 + N c) / s0^2,     factor = (s0^4 - T N c^2) / ((s0^2 + T c) (s0^2 + N c))

    Source: F. Benaych-Georges, R. R. Nadakuditi, "The singular values and vectors of low rank perturbations of large
    rectangular random matrices", J. Multivariate Analysis 111, 2012.
    """
    T, N = X.shape
    U, s, Vt = np.linalg.svd(X, full_matrices=False)
    c = _noise(s, X.shape, k)
    rest = s[:k]**2 - (T + N) * c
    square = (rest + np.sqrt(np.maximum(rest**2 - 4 * T * N * c**2, 0))) / 2   # s0^2
    factor = (square**2 - T * N * c**2) / ((square + T * c) * (square + N * c))
    return U[:, :k], Vt[:k].T, 1 / (factor * s[:k]), c


def _aspect(X: np.ndarray) -> float:
    return min(X.shape) / max(X.shape)


def _noise(s: np.ndarray, shape: tuple[int, int], k: int) -> float:
    """Variance of what rank k leaves; 0 where it leaves nothing."""
    return float((s[k:]**2).sum() / ((shape[0] - k) * (shape[1] - k))) if k < min(shape) else 0.0


def _whitened(R: np.ndarray, H: np.ndarray) -> float:
    """trace of R' (I + H H')^-1 R"""
    inner = H.T @ R
    return float((R**2).sum() - (inner * np.linalg.solve(np.eye(H.shape[1]) + H.T @ H, inner)).sum())


def _rounding(X: np.ndarray) -> float:
    """Variances up to here are rounding errors."""
    return float((100 * np.finfo(float).eps * np.abs(X).max())**2)
