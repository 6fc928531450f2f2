"""Five places in a row, walked at random by agents of two worlds; what is best there is known."""

import numpy as np
import torch

from lowrank_rl.rl.contracts import Discrete, Experience, fresh_view
from lowrank_rl.rng import stream

ACTIONS = Discrete(2)              # to the left, to the right
PRIZES = ((6.0, 10.0), (10.0, 6.0))      # at the left and right end, where episodes terminate, in worlds of agents 0 and 1
DISCOUNT = 0.7
WORLDS = torch.tensor([0, 1])      # one run each


def walks(steps=(600, 500), seed=0):
    """Random steps from places 1, 2, 3 of either world; the state is the place, a second component never changes."""
    agent = torch.arange(2).repeat_interleave(torch.tensor(steps))
    draw = stream(seed, "walks")
    place = torch.randint(1, 4, (len(agent),), generator=draw)
    action = ACTIONS.sample((len(agent),), generator=draw)
    after = place + 2 * action[:, 0] - 1
    prize = torch.tensor(PRIZES)[agent, (after == 4).long()]
    end = (after == 0) | (after == 4)

    def state(x):
        return torch.stack([x, torch.full_like(x, 7)], 1).double()
    return Experience(agent, state(place), action, state(after), torch.where(end, prize, 0.0).double(), end)


def best(world):
    """Actions in places 1, 2, 3 by value iteration."""
    value = np.zeros(5)
    for _ in range(100):
        worth = np.array([[PRIZES[world][0] if s == 1 else DISCOUNT * value[s - 1],
                           PRIZES[world][1] if s == 3 else DISCOUNT * value[s + 1]] for s in (1, 2, 3)])
        value[1:4] = worth.max(1)
    return worth.argmax(1).tolist()


def acts(policy, agent):
    """What a policy does in places 1, 2, 3."""
    agents = torch.full((3,), agent)
    policy.reset(agents)
    state = torch.tensor([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]]).double()
    return policy.act(fresh_view(agents, state, 1), generators=[stream(0)] * 3)[:, 0].tolist()


def weights(policy):
    """All parameters by run, (G, ...) each."""
    return {f"{name} {key}": value for name, network in policy.networks.items() for key, value in network.state_dict().items()}
