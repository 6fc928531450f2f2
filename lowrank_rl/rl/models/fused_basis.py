"""Compiled loops that step simulators whose state mode is a spline or a polynomial: many plans, many members.

Agent, action and scales are folded into one table of coefficients per member, row and action before the loop.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from lowrank_rl.rl.models.contacts import Contacts
from lowrank_rl.tensor.bases import PolynomialBasis, SplineBasis

LANES = 128      # plans that are stepped together, so that processors can use vectors
FAST = {"reassoc", "contract", "nsz", "arcp"}     # sums may be reordered, but NaN and Inf stay what they are


def fusible(basis: object) -> bool:
    """Whether there is a loop for this basis: cubic splines of two inputs, and polynomials."""
    if isinstance(basis, SplineBasis):
        return basis.degree == 3 and len(basis.per_input) == 2
    return isinstance(basis, PolynomialBasis)


def rollout_basis(basis: SplineBasis | PolynomialBasis, center: Tensor, scale: Tensor, weight: Tensor, shift: Tensor,
                  walls: Contacts, state: Tensor, action: Tensor) -> Tensor:
    """state += weight[action]' features((state - center) / scale) + shift, stopped at the walls, H times.

    center, scale, shift (D,), weight (M, B, actions, F, D), state (M, B, D), action (B, C, H) integers
    -> states (M, B, C, H, D) in float32.
    """
    D = weight.shape[-1]
    span = (basis.high - basis.low) * scale
    out = np.empty((len(weight), *action.shape, D), np.float32)
    start, plans = _single(state), np.ascontiguousarray(action.numpy())
    stops = walls.dimension.numpy(), _single(walls.sign), _single(walls.bound), _single(walls.after)
    if isinstance(basis, SplineBasis):
        gain = basis.cells / span
        table = weight.flatten(3)                                                           # (M, B, A, n0 n1 D)
        _spline(_single(gain), _single(-(center + scale * basis.low) * gain), _single(basis.cells), _single(basis.pieces),
                _single(table), _single(shift), *stops, start, plans, out)
        return torch.from_numpy(out)
    gain = 2 / span
    monomials, parent, factor = _monomials(basis)
    table = torch.einsum("gf,mbafd->mbagd", torch.from_numpy(monomials), weight)
    _polynomial(_single(gain), _single(-1 - (center + scale * basis.low) * gain), parent, factor,
                _single(table.mT.flatten(2, 3)), _single(shift), *stops, start, plans, out)
    return torch.from_numpy(out)


def _single(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().numpy(), dtype=np.float32)


def _monomials(basis: PolynomialBasis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients (monomials, features) of the basis; each monomial is that of ``parent`` times input ``factor``."""
    power = basis.power.numpy()
    place = {tuple(p): i for i, p in enumerate(power.tolist())}
    chebyshev = [np.polynomial.chebyshev.cheb2poly([0] * n + [1]) for n in range(basis.degree + 1)]
    matrix = np.zeros((len(power), len(power)))
    for f, own in enumerate(power):
        terms = {(): 1.0}
        for n in own:
            terms = {(*key, k): value * c for key, value in terms.items() for k, c in enumerate(chebyshev[n])}
        for key, value in terms.items():
            matrix[place[key], f] += value
    parent, factor = np.zeros(len(power), np.int64), np.zeros(len(power), np.int64)
    for i, own in enumerate(power.tolist()):
        if any(own):
            factor[i] = next(d for d, n in enumerate(own) if n)
            own[factor[i]] -= 1
            parent[i] = place[tuple(own)]
    return matrix, parent, factor


@numba.njit(cache=True, fastmath=FAST, nogil=True)
def _spline(gain: np.ndarray, offset: np.ndarray, cells: np.ndarray, pieces: np.ndarray, table: np.ndarray, shift: np.ndarray,
            dimension: np.ndarray, sign: np.ndarray, bound: np.ndarray, after: np.ndarray, state: np.ndarray,
            action: np.ndarray, out: np.ndarray) -> None:
    """table (M, B, A, n0 n1 D): what input 1 meets lies side by side; four splines of each input meet at a place."""
    M, B, C, H, D = out.shape
    zero, one = np.float32(0), np.float32(1)
    row = np.int32((cells[1] + 3) * D)
    x, value = np.empty((2, LANES), np.float32), np.empty((2, 4, LANES), np.float32)
    corner = np.empty(LANES, np.int32)
    for m in range(M):
        for b in range(B):
            for first in range(0, C, LANES):
                lanes = min(LANES, C - first)
                for i in range(2):
                    x[i, :] = state[m, b, i]
                for h in range(H):
                    corner[:] = 0
                    for i in range(2):
                        for lane in range(LANES):
                            place = x[i, lane] * gain[i] + offset[i]
                            known = zero if np.isnan(place) else place               # NaN picks any cell and stays NaN
                            inside = min(max(known, zero), cells[i])
                            cell = min(np.int32(inside), np.int32(cells[i]) - np.int32(1))
                            corner[lane] += cell * (row if i == 0 else np.int32(D))
                            t = place if np.isnan(place) else inside - np.float32(cell)
                            beyond = min(max(known - inside, -one), one)
                            for j in range(4):
                                a0, a1, a2, a3 = pieces[j, 0], pieces[j, 1], pieces[j, 2], pieces[j, 3]
                                slope = (3 * a3 * t + 2 * a2) * t + a1
                                value[i, j, lane] = ((a3 * t + a2) * t + a1) * t + a0 + beyond * slope
                    for lane in range(lanes):
                        w = table[m, b, action[b, first + lane, h]]
                        k = corner[lane]
                        y0, y1 = shift[0], shift[1]
                        for i in range(4):
                            z0, z1 = zero, zero
                            for j in range(4):
                                z0 += w[k + 2 * j] * value[1, j, lane]
                                z1 += w[k + 2 * j + 1] * value[1, j, lane]
                            y0 += value[0, i, lane] * z0
                            y1 += value[0, i, lane] * z1
                            k += row
                        x[0, lane] += y0
                        x[1, lane] += y1
                        _stop(x, lane, dimension, sign, bound, after)
                        out[m, b, first + lane, h, 0] = x[0, lane]
                        out[m, b, first + lane, h, 1] = x[1, lane]


@numba.njit(cache=True, fastmath=FAST, nogil=True)
def _polynomial(gain: np.ndarray, offset: np.ndarray, parent: np.ndarray, factor: np.ndarray, table: np.ndarray,
                shift: np.ndarray, dimension: np.ndarray, sign: np.ndarray, bound: np.ndarray, after: np.ndarray,
                state: np.ndarray, action: np.ndarray, out: np.ndarray) -> None:
    """table (M, B, A D, F)"""
    M, B, C, H, D = out.shape
    F = table.shape[-1]
    x, t = np.empty((D, LANES), np.float32), np.empty((D, LANES), np.float32)
    y = np.empty((table.shape[2], LANES), np.float32)
    term = np.ones((F, LANES), np.float32)
    for m in range(M):
        for b in range(B):
            for first in range(0, C, LANES):
                lanes = min(LANES, C - first)
                for d in range(D):
                    x[d, :] = state[m, b, d]
                for h in range(H):
                    for d in range(D):
                        for lane in range(LANES):
                            t[d, lane] = x[d, lane] * gain[d] + offset[d]
                    for f in range(1, F):
                        own, other = term[parent[f]], t[factor[f]]
                        for lane in range(LANES):
                            term[f, lane] = own[lane] * other[lane]
                    np.dot(table[m, b], term, y)
                    for lane in range(lanes):
                        k = action[b, first + lane, h] * D
                        for d in range(D):
                            x[d, lane] += y[k + d, lane] + shift[d]
                        _stop(x, lane, dimension, sign, bound, after)
                        for d in range(D):
                            out[m, b, first + lane, h, d] = x[d, lane]


@numba.njit(inline="always")
def _stop(x: np.ndarray, lane: int, dimension: np.ndarray, sign: np.ndarray, bound: np.ndarray, after: np.ndarray) -> None:
    """A state (D, lanes) beyond a wall becomes what it is at it."""
    for k in range(len(bound)):
        if (x[dimension[k], lane] - bound[k]) * sign[k] <= 0:
            for d in range(len(x)):
                if not np.isnan(after[k, d]):
                    x[d, lane] = after[k, d]
