"""A point on a line that actions push: logs of it, and what a policy learned from them does."""

import torch

from lowrank_rl.rl.contracts import Box, Experience, fresh_view
from lowrank_rl.rng import stream

BOX = Box(-2.0, 4.0, 1)


def logs(counts=(200,), low=BOX.low, reward=None, seed=0):
    """Points that uniform actions push around [-1, 1], each agent's ``counts`` steps; by default the price of a step is where
    it begins, so that a good action shows in the next state's value only.
    """
    draw, agent = stream(seed, "points"), torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    state = 2 * torch.rand((len(agent), 1), generator=draw, dtype=torch.float64) - 1
    action = low + (BOX.high - low) * torch.rand((len(agent), 1), generator=draw, dtype=torch.float64)
    after = push(state, action)
    paid = -state[:, 0].square() if reward is None else reward(action[:, 0])
    return Experience(agent, state, action, after, paid, torch.full((len(agent),), reward is not None))


def push(state, action):
    """Best from state x is 1 - x."""
    return (state + action - 1).clamp(-1, 1)


def acted(policy, state, agent=0, seed=0):
    """Its actions in states (B,)."""
    state = torch.as_tensor(state, dtype=torch.float64)[:, None]
    view = fresh_view(torch.full((len(state),), agent), state, 1)
    policy.reset(view.agent)
    return policy.act(view, generators=[stream(seed, "row", row) for row in range(len(state))])[:, 0]


def one(network, member, *parts):
    """A member's outputs for one input, as numbers."""
    return network.alone(member)(torch.cat(parts)[None, None])[0, 0].tolist()
