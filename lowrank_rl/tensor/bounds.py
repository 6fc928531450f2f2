"""The Cramer-Rao bound of completed entries: how small the variance of any unbiased estimate can be, given the noise.

    var(entry) >= sigma^2 g' (J'WJ)^+ g

J holds the derivatives of the observed entries by the factors, g that of the entry asked for, W the weights. J'WJ is singular,
since scales may move between factors; the bound holds all the same for what does not depend on them, as g is then in the
range of J'WJ. Where it is not, observations leave the entry free and the bound is infinite.

Source: X. Liu, N. Sidiropoulos, "Cramer-Rao lower bounds for low-rank decomposition of multidimensional arrays", IEEE Trans.
Signal Processing 49(9), 2001; P. Stoica, T. Marzetta, "Parameter estimation problems with singular information matrices",
the same journal 49(1), 2001.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.nullspace import (
    CHUNK,
    conjugate_gradients,
    gradients,
    kernel_index,
    movement,
    moves,
    null_probes,
    point_of,
    spectrum,
)
from lowrank_rl.tensor.observed import Observed, rows
from lowrank_rl.tensor.pattern import Pattern

DENSE = 3000    # parameters up to which all eigenvectors are computed: 5 s and 200 MB there
TOGETHER = 16   # entries whose systems are solved in one run of conjugate gradients above that


def cramer_rao(observed: Observed | Pattern, cp: CP, sigma: float, entries: Any) -> np.ndarray:
    """The least variance (Q,) of unbiased estimates of entries (Q, K), in squared units of the values; inf if not determined.

    Up to 3000 parameters by eigenvectors, any number of entries; above by conjugate gradients, about as many passes over the
    observations as the system is hard, for each 16 entries.

    Args:
        observed: where the tensor was seen. Weights count as the inverse of the noise's relative variance.
        cp: the tensor, as known from a fit: the bound is taken there. Inf means "not locally identifiable at this CP".
        sigma: the noise's standard deviation where the weight is 1, in units of the values; ``cp``'s own error is not noise.
        entries: which entries, observed ones too.

    Raises:
        ValueError: shapes that differ, a sigma that is not positive, entries outside the tensor.
    """
    if not isinstance(observed, Observed | Pattern):
        raise ValueError(f"observed: expected an Observed or a Pattern, got {type(observed).__name__}")
    if cp.shape != observed.shape:
        raise ValueError(f"cp: expected the observed tensor's shape {observed.shape}, got {cp.shape}")
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma: expected a standard deviation above 0, got {sigma!r}")
    weight = observed.weight if isinstance(observed, Observed) else None
    index, point, wanted = kernel_index(observed.index), point_of(cp), kernel_index(rows("entries", entries, cp.shape))
    of = _dense if point.parameters <= DENSE else _sampled
    return sigma**2 * of(index, point, weight, wanted)


def _dense(index, point, weight, wanted):
    found = spectrum(index, point, weight)
    null = np.ascontiguousarray(found.directions[:, :, :found.null])
    rest = found.directions[:, :, found.null:] / np.sqrt(found.square[found.null:])
    variance = np.empty(wanted.shape[1])
    step = max(1, 64 * CHUNK // point.parameters)
    for begin in range(0, len(variance), step):
        some = slice(begin, begin + step)
        variance[some] = (movement(wanted[:, some], point, rest)[0] ** 2).sum(axis=1)
    variance[moves(wanted, point, null)] = np.inf
    return variance


def _sampled(index, point, weight, wanted):
    null, converged = null_probes(index, point, 4, seed=0)
    free = moves(wanted, point, null)
    variance = np.full(wanted.shape[1], np.inf)
    known = np.flatnonzero(~free)
    for begin in range(0, len(known), TOGETHER):
        some = known[begin:begin + TOGETHER]
        g = gradients(wanted[:, some], point)
        x, done = conjugate_gradients(index, point, weight, g)
        converged &= done
        variance[some] = np.einsum("srq,srq->q", g, x)
    if not converged:
        warnings.warn("cramer_rao: conjugate gradients did not converge, so some bounds are too small or infinite by mistake",
                      stacklevel=3)
    return variance
