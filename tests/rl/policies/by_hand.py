"""Networks and learners computed number by number in NumPy."""

import numpy as np
import torch

from lowrank_rl.rl.policies.batches import Batch
from lowrank_rl.rng import stream

G, B, D, ACTIONS = 2, 20, 3, 3


def batch():
    """Random steps, some of which terminate, of unequal weight."""
    draw = stream(0, "by hand")

    def normal(*shape):
        return torch.randn((G, B, *shape), generator=draw)
    weight = torch.rand((G, B), generator=draw)
    return Batch(normal(D), torch.randint(ACTIONS, (G, B), generator=draw), 3 * normal(), normal(D),
                 (torch.rand((G, B), generator=draw) > 0.4).float(), weight / weight.sum(1, keepdim=True),
                 torch.tensor([[-10.0, 10.0]]).expand(G, 2))


def shaken(module, seed=0):
    """Parameters drawn anew, larger, so that targets differ from what they follow and errors pass Huber's corner."""
    draw = stream(seed, "shaken")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.2 if name.endswith("bias") else 1.2
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))


def outputs(network, member, state):
    """ReLU layers, of one state."""
    x = np.asarray(state, dtype=float)
    for number, layer in enumerate(network.layers):
        x = x @ layer.weight[member].detach().double().numpy() + layer.bias[member, 0].detach().double().numpy()
        if number < len(network.layers) - 1:
            x = np.maximum(x, 0)
    return x


def huber(error):
    return error ** 2 / 2 if abs(error) < 1 else abs(error) - 0.5


def log_sum(x):
    return np.log(np.exp(x).sum())
