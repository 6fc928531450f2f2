"""Compiled loops that step simulators whose state mode is a spline or a polynomial: many plans, many members.

Agent, action and scales are folded into one table of coefficients per member, row and action before the loop.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from lowrank_rl.rl.models.contacts import Contacts, stop_each
from lowrank_rl.rl.models.lanes import HEIGHT, four_by_four, product
from lowrank_rl.tensor.bases import PolynomialBasis, SplineBasis
from lowrank_rl.tensor.solvers.compiled import compiled

LANES = 128      # plans that are stepped together, so that processors can use vectors; a multiple of 64
REACH = np.float32(1.2)      # of a polynomial's input, which the data fill from -1 to 1: it keeps its value beyond
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
    -> start and next states (M, B, C, H + 1, D) in float32. A trajectory does not depend on the plans beside it.
    """
    M, D = len(weight), weight.shape[4]
    B, C, H = action.shape
    span = (basis.high - basis.low) * scale
    out = np.empty((M, B, D, H + 1, C), np.float32)
    start, plans, stops = _single(state), np.ascontiguousarray(action.numpy()), walls.arrays(torch.float32)
    if isinstance(basis, SplineBasis):
        gain = basis.cells / span
        _spline(_single(gain), _single(-(center + scale * basis.low) * gain), _single(basis.cells), _single(basis.pieces),
                _single(weight.flatten(3)), _single(shift), *stops, start, plans, out)
    else:
        gain = 2 / span
        monomials, parent, factor = _monomials(D, basis.degree)
        table = (weight.mT @ monomials.T.to(weight)).flatten(2, 3)                          # (M, B, actions D, F)
        table = torch.nn.functional.pad(table, (0, 0, 0, -table.shape[2] % HEIGHT))
        _polynomial(_single(gain), _single(-1 - (center + scale * basis.low) * gain), parent, factor, _single(table),
                    _single(shift), *stops, start, plans, out)
    return torch.from_numpy(out).permute(0, 1, 4, 3, 2)


def _single(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().numpy(), dtype=np.float32)


@cache
def _monomials(inputs: int, degree: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Coefficients (monomials, features) of a basis; each monomial is that of ``parent`` times input ``factor``."""
    power = PolynomialBasis(inputs, degree).power.numpy()
    place = {tuple(p): i for i, p in enumerate(power.tolist())}
    chebyshev = [np.polynomial.chebyshev.cheb2poly([0] * n + [1]) for n in range(degree + 1)]
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
    return torch.from_numpy(matrix), parent, factor


@compiled(fastmath=FAST)
def _spline(gain: np.ndarray, offset: np.ndarray, cells: np.ndarray, pieces: np.ndarray, table: np.ndarray, shift: np.ndarray,
            dimension: np.ndarray, sign: np.ndarray, bound: np.ndarray, after: np.ndarray, state: np.ndarray,
            action: np.ndarray, out: np.ndarray) -> None:
    """table (M, B, A, n0 n1 D): what input 1 meets lies side by side; four splines of each input meet at a place."""
    M, B, D, steps, C = out.shape
    A, size = table.shape[2:]
    table = table.reshape(-1)
    zero, one = np.float32(0), np.float32(1)
    row = np.int64((cells[1] + 3) * D)
    x, value = np.empty((2, LANES), np.float32), np.empty((8, LANES), np.float32)
    values = value.reshape(-1)
    corner, acts = np.empty(LANES, np.int32), np.empty((steps, LANES), np.int32)
    for b in range(B):
        for first in range(0, C, LANES):
            lanes = min(LANES, C - first)
            _turn(action[b, first:first + lanes], acts)
            for m in range(M):
                for i in range(2):
                    x[i, :] = state[m, b, i]
                    out[m, b, i, 0, first:first + lanes] = state[m, b, i]
                for h in range(1, steps):
                    corner[:] = 0
                    for i in range(2):
                        for lane in range(LANES):
                            place = x[i, lane] * gain[i] + offset[i]
                            known = zero if np.isnan(place) else place               # NaN picks any cell and stays NaN
                            inside = min(max(known, zero), cells[i])
                            cell = min(np.int32(inside), np.int32(cells[i]) - np.int32(1))
                            corner[lane] += cell * (np.int32(row) if i == 0 else np.int32(D))
                            t = place if np.isnan(place) else inside - np.float32(cell)
                            beyond = min(max(known - inside, -one), one)
                            for j in range(4):
                                a0, a1, a2, a3 = pieces[j, 0], pieces[j, 1], pieces[j, 2], pieces[j, 3]
                                slope = (3 * a3 * t + 2 * a2) * t + a1
                                value[4 * i + j, lane] = ((a3 * t + a2) * t + a1) * t + a0 + beyond * slope
                    for lane in range(lanes):
                        at = ((m * B + b) * A + acts[h, lane]) * size + corner[lane]
                        y0, y1 = four_by_four(table, at, row, values, lane, LANES)
                        x[0, lane] += y0 + shift[0]
                        x[1, lane] += y1 + shift[1]
                    stop_each(x, dimension, sign, bound, after)
                    for i in range(2):
                        out[m, b, i, h, first:first + lanes] = x[i, :lanes]


@compiled(fastmath=FAST)
def _polynomial(gain: np.ndarray, offset: np.ndarray, parent: np.ndarray, factor: np.ndarray, table: np.ndarray,
                shift: np.ndarray, dimension: np.ndarray, sign: np.ndarray, bound: np.ndarray, after: np.ndarray,
                state: np.ndarray, action: np.ndarray, out: np.ndarray) -> None:
    """table (M, B, A D and some zeros, F)"""
    M, B, D, steps, C = out.shape
    height, F = table.shape[2:]
    table = table.reshape(-1)
    x, t = np.empty((D, LANES), np.float32), np.empty((D, LANES), np.float32)
    y, term = np.empty((height, LANES), np.float32), np.ones((F, LANES), np.float32)
    all_y, terms = y.reshape(-1), term.reshape(-1)
    acts = np.zeros((steps, LANES), np.int32)
    for b in range(B):
        for first in range(0, C, LANES):
            lanes = min(LANES, C - first)
            _turn(action[b, first:first + lanes], acts)
            for m in range(M):
                for d in range(D):
                    x[d, :] = state[m, b, d]
                    out[m, b, d, 0, first:first + lanes] = state[m, b, d]
                for h in range(1, steps):
                    for d in range(D):
                        for lane in range(LANES):
                            place = x[d, lane] * gain[d] + offset[d]
                            place = REACH if place > REACH else place            # written so that NaN stays NaN
                            t[d, lane] = -REACH if place < -REACH else place
                    for f in range(1, F):
                        own, other = term[parent[f]], t[factor[f]]
                        for lane in range(LANES):
                            term[f, lane] = own[lane] * other[lane]
                    for lane in range(0, LANES, 64):
                        for k in range(0, height, HEIGHT):
                            product(table, ((m * B + b) * height + k) * F, terms, lane, all_y, k * LANES + lane, F, LANES)
                    for d in range(D):
                        for lane in range(LANES):
                            x[d, lane] += y[acts[h, lane] * D + d, lane] + shift[d]
                    stop_each(x, dimension, sign, bound, after)
                    for d in range(D):
                        out[m, b, d, h, first:first + lanes] = x[d, :lanes]


@compiled()
def _turn(action: np.ndarray, acts: np.ndarray) -> None:
    """acts[h, plan] = the action that leads to step h, so that neighbours in memory are taken at one time."""
    for plan in range(len(action)):
        for h in range(action.shape[1]):
            acts[h + 1, plan] = action[plan, h]
