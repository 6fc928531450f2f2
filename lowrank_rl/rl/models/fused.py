"""A compiled loop that steps one-hidden-layer simulators forward: many plans, many members, no intermediate arrays."""

import numpy as np
import torch
from torch import Tensor

from lowrank_rl.rl.models.contacts import Contacts, stop_each
from lowrank_rl.rl.models.lanes import BYTES, relu_layers
from lowrank_rl.tensor.solvers.compiled import compiled

WIDEST = 8   # state dimensions, each of which takes two registers


def rollout_network(weight: Tensor, bias: Tensor, out_weight: Tensor, out_bias: Tensor, walls: Contacts, state: Tensor,
                    action: Tensor) -> Tensor:
    """state += relu(state' weight + bias)' out_weight[action] + out_bias[action], stopped at the walls, H times.

    weight (M, D, K), bias (M, K), out_weight (M, B, actions, K, D), out_bias (M, B, actions, D), state (M, B, D) with
    D <= WIDEST, action (B, C, H) integers -> start and next states (M, B, C, H + 1, D), in the weights' dtype. A trajectory
    does not depend on the plans beside it.
    """
    M, D, K = weight.shape
    _, C, H = action.shape
    lanes = BYTES // weight.element_size()
    spare = -K % lanes
    pad = torch.nn.functional.pad
    first = pad(torch.cat([weight, bias[:, None]], 1), (0, spare)).unflatten(2, (-1, lanes)).transpose(1, 2)
    last = pad(out_weight, (0, 0, 0, spare)).unflatten(3, (-1, lanes)).transpose(4, 5)     # (..., K / lanes, D, lanes)
    out = torch.empty((M, len(action), D, H + 1, C), dtype=weight.dtype)
    tile = ((0,) * D,) * max(1, 8 // D)     # plans side by side hide each other's latency
    _rollout(*(x.detach().contiguous().numpy() for x in (first, last, out_bias, state.to(weight.dtype), action)),
             *walls.arrays(weight.dtype), out.numpy(), tile)
    return out.permute(0, 1, 4, 3, 2)


@compiled()
def _rollout(first: np.ndarray, last: np.ndarray, out_bias: np.ndarray, state: np.ndarray, action: np.ndarray,
             dimension: np.ndarray, sign: np.ndarray, bound: np.ndarray, after: np.ndarray, out: np.ndarray,
             tile: tuple) -> None:
    M, B, D, steps, C = out.shape
    actions = out_bias.shape[2]
    units = first.shape[1] * first.shape[3]
    first, last, out_bias = first.reshape(-1), last.reshape(-1), out_bias.reshape(-1)
    P = len(tile)
    x, row = np.empty((D, P), out.dtype), np.zeros(P, np.int64)
    for m in range(M):
        for b in range(B):
            for c in range(0, C, P):
                plans = min(P, C - c)
                for p in range(P):
                    for d in range(D):
                        x[d, p] = state[m, b, d]
                for h in range(steps):
                    if h > 0:
                        for p in range(plans):
                            row[p] = (m * B + b) * actions + action[b, c + p, h - 1]
                        relu_layers(first, m * (D + 1) * units, last, out_bias, row, x, units, tile)
                        stop_each(x, dimension, sign, bound, after)
                    for p in range(plans):
                        for d in range(D):
                            out[m, b, d, h, c + p] = x[d, p]
