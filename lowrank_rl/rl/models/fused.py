"""A compiled loop that steps one-hidden-layer simulators forward: many plans, many members, no intermediate arrays."""

import numba
import numpy as np
import torch
from torch import Tensor

from lowrank_rl.rl.models.contacts import Contacts

WIDEST = 4   # state dimensions that fit the loop's four accumulators


def rollout_discrete(weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor, walls: Contacts, state: Tensor,
                     action: Tensor) -> Tensor:
    """state += out_weight[action] relu(weight' state + bias) + out_bias[action], stopped at the walls, H times.

    weight (M, D, K), bias (M, K), out_weight (M, B, actions, D, K), out_bias (M, B, actions, D), state (M, B, D) with
    D <= WIDEST, action (B, C, H) integers -> states (M, B, C, H, D), in the weights' dtype.
    """
    M, _, D = state.shape
    spare = WIDEST - D
    pad = torch.nn.functional.pad
    weight, out_weight = pad(weight, (0, 0, 0, spare)), pad(out_weight, (0, 0, 0, spare))
    out_bias, state = pad(out_bias, (0, spare)), pad(state.to(weight.dtype), (0, spare))
    out = torch.empty((M, *action.shape, D), dtype=weight.dtype)
    after = pad(walls.after, (0, spare), value=torch.nan)
    _rollout(*(x.detach().contiguous().numpy() for x in (weight, bias, out_weight, out_bias, state, action)),
             walls.dimension.numpy(), *(x.to(weight.dtype).numpy() for x in (walls.sign, walls.bound, after)), out.numpy())
    return out


# sums may be reordered, but NaN and Inf stay what they are
@numba.njit(cache=True, fastmath={"reassoc", "contract", "nsz", "arcp"}, nogil=True)
def _rollout(weight: np.ndarray, bias: np.ndarray, out_weight: np.ndarray, out_bias: np.ndarray, state: np.ndarray,
             action: np.ndarray, dimension: np.ndarray, sign: np.ndarray, bound: np.ndarray, after: np.ndarray,
             out: np.ndarray) -> None:
    zero = weight.dtype.type(0)
    M, B = state.shape[:2]
    C, H = action.shape[1:]
    D = out.shape[-1]
    for m in range(M):
        w, first_bias = weight[m], bias[m]
        for b in range(B):
            for c in range(C):
                x0, x1, x2, x3 = state[m, b]
                for h in range(H):
                    o, y = out_weight[m, b, action[b, c, h]], out_bias[m, b, action[b, c, h]]
                    y0, y1, y2, y3 = y[0], y[1], y[2], y[3]
                    for k in range(len(first_bias)):
                        z = first_bias[k] + x0 * w[0, k] + x1 * w[1, k] + x2 * w[2, k] + x3 * w[3, k]
                        z = max(z, zero)
                        y0 += o[0, k] * z
                        y1 += o[1, k] * z
                        y2 += o[2, k] * z
                        y3 += o[3, k] * z
                    x0, x1, x2, x3 = x0 + y0, x1 + y1, x2 + y2, x3 + y3
                    for i in range(len(bound)):
                        x = (x0, x1, x2, x3)[dimension[i]]
                        if (x - bound[i]) * sign[i] <= 0:
                            x0, x1 = _set(x0, after[i, 0]), _set(x1, after[i, 1])
                            x2, x3 = _set(x2, after[i, 2]), _set(x3, after[i, 3])
                    for d, x in enumerate((x0, x1, x2, x3)):
                        if d < D:
                            out[m, b, c, h, d] = x


@numba.njit(inline="always")
def _set(value: float, wanted: float) -> float:
    """What is wanted, unless that is NaN."""
    return value if np.isnan(wanted) else wanted
