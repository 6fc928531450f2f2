"""A compiled loop over networks of [state, action, context] that say a Gaussian of the next state, or its mean alone
(gaussian.py); a block of plans stays in the cache for the whole rollout, as in fused_bfloat16.py.
"""

import math
from collections.abc import Sequence

import numba
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import silu

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.inputs import Inputs, see
from lowrank_rl.rl.models import fused_bfloat16
from lowrank_rl.rl.models.frame import Frame
from lowrank_rl.rl.models.fused_bfloat16 import BLOCK
from lowrank_rl.rl.models.gaussian import Bounds
from lowrank_rl.tensor.solvers.compiled import compiled


def compiles(network: Mlp) -> bool:
    return (network.inner_dtype == torch.bfloat16 and network.activation in (torch.relu, silu) and len(network.layers) > 1
            and fused_bfloat16.available(network.layers[0].weight.device))


def rollout(units: Frame, network: Mlp, bounds: Bounds | None, context: Tensor, state: Tensor,
            actions: Tensor, generator: torch.Generator | None) -> Tensor:
    """Follow plans: (M, B, E), (M, B, D), (B, C, H, A) -> start and next states (M, B, C, H + 1, D) in float32.

    Without bounds the network says a mean alone, and nothing is drawn. A trajectory does not depend on the plans beside it,
    but for what it draws.
    """
    B, C, H, _ = actions.shape
    M, D = len(context), state.shape[2]
    noise = torch.zeros((0, M, B * C, D))
    if bounds is not None and generator is not None:
        noise = torch.stack([torch.randn((M, B * C, D), generator=generator) for _ in range(H)])
    low, high = (bounds.low[:, 0], bounds.high[:, 0]) if bounds is not None else (torch.zeros((M, D)),) * 2
    first, *others = ((layer.weight, layer.bias) for layer in network.layers)
    (weight, bias), count = first, len(units.source)
    scaled = weight[:, :count] / units.scale[:, None]           # the state's units, in the first layer
    bias = bias - (units.center @ scaled).unsqueeze(1)
    layers = [(torch.cat([scaled.to(weight), weight[:, count:]], dim=1), bias.to(weight)), *others]
    seen = Inputs(units.source, units.part, units.low, units.high)
    step = torch.stack([units.kept, units.shift, units.spread])
    return _follow(layers, network.activation is silu, seen, step, low, high, context, state, units.act(actions), noise)


def follow(layers: Sequence[tuple[Tensor, Tensor]], smooth: bool, inputs: Inputs, state: Tensor, actions: Tensor) -> Tensor:
    """The same of plain networks of [inputs(state), action] that say the difference of states: layers as ``forward`` takes
    them, (M, B, D), (B, C, H, A) -> (M, B, C, H + 1, D)."""
    M, B, D = state.shape
    step, none = torch.tensor([[1.0], [0.0], [1.0]]).expand(3, D), torch.zeros((M, D))
    return _follow(layers, smooth, inputs, step, none, none, torch.zeros((M, B, 0)), state, actions, torch.zeros((0, M, 0, D)))


def _follow(layers: Sequence[tuple[Tensor, Tensor]], smooth: bool, inputs: Inputs, step: Tensor, low: Tensor, high: Tensor,
            context: Tensor, state: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
    """Arguments of ``_rollout``, but for actions (B, C, H, W)."""
    B, C, H, _ = actions.shape
    out = torch.empty((len(state), state.shape[2], H + 1, B * C))
    _rollout(fused_bfloat16.pack(layers), int(smooth), *(x.detach().float().contiguous().numpy() for x in (
        step, low, high, context, state, actions.flatten(0, 1), noise)), *inputs.arrays(), out.numpy())
    return out.permute(0, 3, 2, 1).unflatten(1, (B, C))


@numba.njit(inline="always")
def _softplus(z):
    return max(z, np.float32(0)) + np.float32(math.log1p(math.exp(-abs(z))))


@compiled()
def _rollout(packed, smooth, step, low, high, context, state, acts, noise, source, part, least, most, out):
    """step (3, D), low, high (M, D), context (M, B, E), state (M, B, D), acts (B C, H, W), noise (H or 0, M, B C, D),
    out (M, D, H + 1, B C)"""
    M, D, steps, count = out.shape
    here, there, y = fused_bfloat16.room(packed[0])
    seen, W = len(source), acts.shape[2]
    x, inputs = np.zeros((BLOCK, D), np.float32), np.zeros((BLOCK, seen + W + context.shape[2]), np.float32)
    for m in range(M):
        for first in range(0, count, BLOCK):
            rows = min(BLOCK, count - first)
            for row in range(rows):
                origin = (first + row) * state.shape[1] // count
                x[row] = state[m, origin]
                inputs[row, seen + W:] = context[m, origin]
            for h in range(steps):
                if h > 0:
                    see(x, source, part, least, most, inputs)
                    inputs[:rows, seen:seen + W] = acts[first:first + rows, h - 1]
                    fused_bfloat16.network(packed, m, smooth, inputs, rows, here, there, y)
                    for row in range(rows):
                        for d in range(D):
                            said = y[row, d]
                            if len(noise) > 0:
                                spare = _softplus(high[m, d] - y[row, D + d])
                                variance = low[m, d] + _softplus(high[m, d] - spare - low[m, d])
                                said += math.exp(np.float32(0.5) * variance) * noise[h - 1, m, first + row, d]
                            x[row, d] = step[0, d] * x[row, d] + step[1, d] + step[2, d] * said
                for d in range(D):
                    for row in range(rows):
                        out[m, d, h, first + row] = x[row, d]
