"""Loops over simulators with deep networks by few calls: what the plans alone decide is computed beforehand.

Layers behind the first work in the network's ``inner_dtype``, compiled where that is bfloat16 and the processor has it.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.inputs import Inputs
from lowrank_rl.rl.models import fused_bfloat16
from lowrank_rl.rl.models.contacts import Contacts

ROWS = 512     # whose hidden layers stay in a CPU's cache

Layers = list[tuple[Tensor, Tensor]]


def outputs(network: Mlp, center: Tensor, scale: Tensor, x: Tensor) -> Tensor:
    """network((x - center) / scale): (M, B, inputs) -> (M, B, outputs)."""
    layers = _layers(network, center, scale)
    if _compiles(network):
        return fused_bfloat16.forward(layers, _smooth(network), x)
    layers = _narrowed(network, layers)
    pieces = x.to(layers[0][0]).split(ROWS if x.device.type == "cpu" else max(1, x.shape[1]), dim=1)
    return torch.cat([_run(network, layers, piece) for piece in pieces], dim=1)


def rollout_deep(network: Mlp, center: Tensor, scale: Tensor, mixed: Tensor, unit: Tensor, shift: Tensor, walls: Contacts,
                 inputs: Inputs, state: Tensor) -> Tensor:
    """state += unit * sum_r mixed[h, r] network((inputs(state) - center) / scale)[:, r] + shift, stopped at the walls, H times.

    center, scale (I,), unit, shift (D,), mixed (M, B, C, H, R) rows of agents times those of actions, state (M, B, D)
    -> start and next states (M, B, C, H + 1, D), in the parameters' dtype.
    """
    _, B, C, H, R = mixed.shape
    D = len(shift)
    *layers, last = _layers(network, center, scale)
    last = tuple((x.unflatten(-1, (D, R)) * unit[:, None].to(x)).mT.flatten(2) for x in last)     # outputs ordered (R, D)
    layers = [*layers, last]
    if _compiles(network):
        return fused_bfloat16.rollout(layers, _smooth(network), mixed, shift, walls, inputs, state)
    layers = _narrowed(network, layers)
    x = state.to(last[0]).repeat_interleave(C, dim=1)
    mixed, shift = mixed.flatten(1, 2).permute(2, 0, 1, 3).reshape(H, -1, 1, R).to(x), shift.to(x)
    walls, inputs, future = walls.to(x.device), inputs.to(x.device), [x]
    for h in range(H):
        change = mixed[h] @ _run(network, layers, inputs(x)).view(-1, R, D)
        x = walls.stop(x + shift + change.view_as(x))
        future.append(x)
    return torch.stack(future, dim=2).unflatten(1, (B, C))


def _layers(network: Mlp, center: Tensor, scale: Tensor) -> Layers:
    """Weights and biases, the input's scales in the first."""
    (weight, bias), *others = ((layer.weight, layer.bias) for layer in network.layers)
    first = weight / scale[:, None]
    return [(first.to(weight), (bias - (center @ first).unsqueeze(1)).to(weight)), *others]


def _compiles(network: Mlp) -> bool:
    return (network.inner_dtype == torch.bfloat16 and (network.activation is torch.relu or _smooth(network))
            and len(network.layers) > 1 and fused_bfloat16.available(network.layers[0].weight.device))


def _smooth(network: Mlp) -> bool:
    return network.activation is silu


def _narrowed(network: Mlp, layers: Layers) -> Layers:
    """The layers as they are multiplied."""
    first, *others = layers
    return [first, *((weight.to(network.inner_dtype), bias.to(network.inner_dtype)) for weight, bias in others)]


def _run(network: Mlp, layers: Layers, x: Tensor) -> Tensor:
    (weight, bias), *others = layers
    z = torch.baddbmm(bias, x, weight)
    for weight, bias in others:
        z = torch.baddbmm(bias, network.activation(z).to(weight), weight)
    return z.to(x)
