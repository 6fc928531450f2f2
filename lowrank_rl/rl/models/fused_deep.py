"""Loops over simulators with deep networks by few calls: what the plans, or the agents, alone decide is computed beforehand.

Layers behind the first work in the network's ``inner_dtype``, compiled where that is bfloat16 and the processor has it.
"""

import torch
from torch import Tensor
from torch.nn.functional import silu

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.inputs import Inputs
from lowrank_rl.rl.models import fused_bfloat16, fused_gaussian
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


def rollout_joint(network: Mlp, center: Tensor, scale: Tensor, rows: Tensor, unit: Tensor, shift: Tensor, walls: Contacts,
                  inputs: Inputs, state: Tensor, actions: Tensor) -> Tensor:
    """state += unit * sum_r rows[r] network(([inputs(state), action] - center) / scale)[:, r] + shift, stopped at the walls.

    center, scale (I + A,), rows (M, B, R) of agents, unit, shift (D,), state (M, B, D), actions (B, C, H, A)
    -> start and next states (M, B, C, H + 1, D), in the parameters' dtype. Each agent's row is folded into the last layer, so
    that the rank costs nothing.
    """
    _, C, H, _ = actions.shape
    *layers, (weight, bias) = _layers(network, center, scale)
    state, actions = state.to(weight), actions.to(weight)
    out = state.new_empty((*state.shape[:2], C, H + 1, len(shift)))
    walls, inputs = walls.to(state.device), inputs.to(state.device)
    agents, whose = rows.transpose(0, 1).unique(dim=0, return_inverse=True)
    for number, row in enumerate(agents.to(weight)):
        mine = whose == number
        folded = [((x.unflatten(-1, (len(shift), -1)) @ row[:, None, :, None])[..., 0] * unit.to(x)) for x in (weight, bias)]
        own = [*layers, (folded[0], folded[1] + shift.to(weight))]
        if _compiles(network) and len(walls.sign) == 0:
            out[:, mine] = fused_gaussian.follow(own, _smooth(network), inputs, state[:, mine], actions[mine])
        else:
            out[:, mine] = _follow(network, _narrowed(network, own), walls, inputs, state[:, mine], actions[mine])
    return out


def _follow(network: Mlp, layers: Layers, walls: Contacts, inputs: Inputs, state: Tensor, actions: Tensor) -> Tensor:
    """state (M, B, D), actions (B, C, H, A) -> (M, B, C, H + 1, D)"""
    B, C, _, _ = actions.shape
    x = state.repeat_interleave(C, dim=1)
    future = [x]
    for action in actions.flatten(0, 1).unbind(1):
        x = walls.stop(x + _run(network, layers, torch.cat([inputs(x), action.expand(len(x), -1, -1)], dim=-1)))
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
