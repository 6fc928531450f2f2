"""A compiled loop that steps simulators with deep networks: a block of plans stays in the cache for the whole rollout.

The first layer works in float32, so that states keep their digits; the others multiply bfloat16 and add in float32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lowrank_rl.rl.inputs import Inputs, see
from lowrank_rl.rl.models.contacts import Contacts, stop_each
from lowrank_rl.rl.models.lanes import ROWS, layer
from lowrank_rl.tensor.solvers.compiled import compiled

BLOCK = 20 * ROWS      # plans that are stepped together
WIDE, NARROW = 64, 32  # outputs of a tile; layers are padded to multiples of the second

_wide, _narrow = layer(4), layer(2)


def available(device: torch.device) -> bool:
    """Whether the processor multiplies bfloat16 by vectors, and by nothing faster."""
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()


def forward(layers: Sequence[tuple[Tensor, Tensor]], smooth: bool, x: Tensor) -> Tensor:
    """Networks with max(., 0), or if ``smooth`` SiLU, between layers: weights (M, K, N) and biases (M, 1, N),
    x (M, B, inputs) -> (M, B, outputs).
    """
    out = torch.empty((*x.shape[:2], layers[-1][0].shape[2]))
    _forward(pack(layers), int(smooth), x.float().contiguous().numpy(), out.numpy())
    return out


def rollout(layers: Sequence[tuple[Tensor, Tensor]], smooth: bool, mixed: Tensor, shift: Tensor, walls: Contacts,
            inputs: Inputs, state: Tensor) -> Tensor:
    """state += network(inputs(state))' mixed[h] + shift, stopped at the walls, H times; the network's outputs are (R, D).

    mixed (M, B, C, H, R), shift (D,), state (M, B, D) -> start and next states (M, B, C, H + 1, D) in float32. A trajectory
    does not depend on the plans beside it.
    """
    M, B, C, H, _ = mixed.shape
    out = torch.empty((M, state.shape[2], H + 1, B * C))
    _rollout(pack(layers), int(smooth), *(x.float().contiguous().numpy() for x in (mixed.flatten(1, 2), shift, state)),
             *walls.arrays(torch.float32), *inputs.arrays(), out.numpy())
    return out.permute(0, 3, 2, 1).unflatten(1, (B, C))


def pack(layers: Sequence[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, ...]:
    """(sizes (layers, 2) of inputs and padded outputs, first weights, other weights (M, ...), all biases (M, ...))."""
    (first, _), *others = layers
    members, inputs = first.shape[:2]
    widths = [-(-weight.shape[2] // NARROW) * NARROW for weight, _ in layers]
    sizes = np.array([(inputs, widths[0]), *((before // 2, width) for before, width in zip(widths, widths[1:], strict=False))])
    # torch's arrays begin on cache lines
    floats = torch.zeros((members, inputs * widths[0])).numpy()
    _pack_floats(_numpy(first.float()), floats)
    pairs = torch.zeros((members, int(sizes[1:].prod(1).sum())), dtype=torch.int32).numpy().view(np.uint32)
    at, pad = 0, torch.nn.functional.pad
    for (weight, _), (count, width) in zip(others, sizes[1:].tolist(), strict=True):
        halves = pad(weight.bfloat16(), (0, 0, 0, 2 * count - weight.shape[1])).view(torch.int16)
        _pack_pairs(_numpy(halves).view(np.uint16), pairs[:, at:at + count * width], width)
        at += count * width
    bias = torch.cat([pad(bias[:, 0], (0, width - bias.shape[2])) for (_, bias), width in zip(layers, widths, strict=True)], 1)
    return sizes, floats, pairs, _numpy(bias.float())


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


@compiled()
def _pack_floats(weight: np.ndarray, out: np.ndarray) -> None:
    """(M, K, N) -> for each tile of outputs, K rows of its width."""
    members, inputs, outputs = weight.shape
    for m in range(members):
        for n in range(0, outputs, WIDE):
            width = min(WIDE, out.shape[1] // inputs - n)
            for k in range(inputs):
                at = n * inputs + k * width
                for j in range(min(width, outputs - n)):
                    out[m, at + j] = weight[m, k, n + j]


@compiled()
def _pack_pairs(weight: np.ndarray, out: np.ndarray, padded: int) -> None:
    """The same of bfloat16 that are given as uint16; neighbouring inputs make a word."""
    members, inputs, outputs = weight.shape
    for m in range(members):
        for n in range(0, outputs, WIDE):
            width = min(WIDE, padded - n)
            for k in range(0, inputs, 2):
                low, high = weight[m, k, n:n + WIDE], weight[m, k + 1, n:n + WIDE]
                at = n * inputs // 2 + k // 2 * width
                words = out[m, at:at + len(low)]
                for j in range(len(low)):
                    words[j] = np.uint32(low[j]) | np.uint32(high[j]) << np.uint32(16)


@compiled()
def _layer(x, x_pitch, rows, weight, at, bias, bias_at, out, out_pitch, per_word, count, width, smooth):
    """``rows`` rows of one layer, a tile after the other; ``per_word`` outputs share a word."""
    for n in range(0, width, WIDE):
        for row in range(0, rows, ROWS):
            begin, place, first, b = row * x_pitch, row * out_pitch + n // per_word, at + n * count, bias_at + n
            if width - n >= WIDE:
                _wide(x, begin, x_pitch, weight, first, bias, b, out, place, out_pitch, count, smooth)
            else:
                _narrow(x, begin, x_pitch, weight, first, bias, b, out, place, out_pitch, count, smooth)


@compiled()
def network(packed, m, smooth, x, rows, here, there, out):
    """x (BLOCK, inputs) -> out (BLOCK, padded outputs), by way of the words in ``here`` and ``there``."""
    sizes, floats, pairs, biases = packed
    first, weight, bias = floats[m], pairs[m], biases[m]
    pitch = len(here) // BLOCK
    inputs, width = sizes[0]
    _layer(x.reshape(-1), inputs, rows, first, 0, bias, 0, here, pitch, 2, inputs, width, smooth)
    at, bias_at = 0, width
    for i in range(1, len(sizes) - 1):
        count, width = sizes[i]
        _layer(here, pitch, rows, weight, at, bias, bias_at, there, pitch, 2, count, width, smooth)
        here, there = there, here
        at, bias_at = at + count * width, bias_at + width
    count, width = sizes[-1]
    _layer(here, pitch, rows, weight, at, bias, bias_at, out.reshape(-1), width, 1, count, width, smooth)


@compiled()
def room(sizes):
    """Words for the hidden layers of a block, twice, and its outputs."""
    words = BLOCK * (sizes[:-1, 1].max() // 2)
    return np.zeros(words, np.uint32), np.zeros(words, np.uint32), np.zeros((BLOCK, sizes[-1, 1]), np.float32)


@compiled()
def _forward(packed, smooth, x, out):
    members, count, inputs = x.shape
    here, there, y = room(packed[0])
    block = np.zeros((BLOCK, inputs), np.float32)
    for m in range(members):
        for first in range(0, count, BLOCK):
            rows = min(BLOCK, count - first)
            block[:rows] = x[m, first:first + rows]
            network(packed, m, smooth, block, rows, here, there, y)
            out[m, first:first + rows] = y[:rows, :out.shape[2]]


@compiled()
def _rollout(packed, smooth, mixed, shift, state, dimension, sign, bound, after, source, part, low, high, out):
    """mixed (M, B C, H, R), out (M, D, H + 1, B C)"""
    M, D, steps, count = out.shape
    R = mixed.shape[3]
    here, there, y = room(packed[0])
    x, seen = np.zeros((BLOCK, D), np.float32), np.zeros((BLOCK, len(source)), np.float32)
    for m in range(M):
        for first in range(0, count, BLOCK):
            rows = min(BLOCK, count - first)
            for row in range(rows):
                x[row] = state[m, (first + row) * state.shape[1] // count]
            for h in range(steps):
                if h > 0:
                    see(x, source, part, low, high, seen)
                    network(packed, m, smooth, seen, rows, here, there, y)
                    for row in range(rows):
                        for d in range(D):
                            x[row, d] += shift[d]
                        for r in range(R):
                            share = mixed[m, first + row, h - 1, r]
                            for d in range(D):
                                x[row, d] += share * y[row, r * D + d]
                    stop_each(x.T, dimension, sign, bound, after)
                for d in range(D):
                    for row in range(rows):
                        out[m, d, h, first + row] = x[row, d]
