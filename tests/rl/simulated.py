"""A walk on a line, a model of it whose members differ beyond x = 2, and logs: all that a Simulator needs, by hand."""

import numpy as np
import torch

from lowrank_rl.rl.contracts import Box, Discrete, Environment
from lowrank_rl.rl.data import Episodes

LINE = Environment(
    name="line", gym_id="", state_names=("x",), actions=Discrete(3), covariate_names=("c",), covariate_low=(0.0,),
    covariate_high=(1.0,), test_agents=((1.0,),), policy_training_agents=(), default_agent=(1.0,), max_steps=4,
    reset=lambda count, *, generator: torch.rand((count, 1), generator=generator, dtype=torch.float64),
    step=lambda covariates, state, action: state + (action - 1),
    reward=lambda state, action, next_state: next_state[..., 0] - 10,
    ended=lambda state: state[..., 0] <= -3)


class Walk:
    """x moves by action - 1, agent a by 0.25 a more; beyond x = 2 the members are off by 0, 1, -2 (deviation sqrt(7 / 3))."""

    members, past, noisy = 3, 0, False

    def __init__(self, agents=5):
        self.agents = agents

    def context(self, view):
        if int(view.agent.max()) >= self.agents:
            raise ValueError(f"agent: expected integers 0..{self.agents - 1}")
        return view.agent.double().expand(self.members, -1)[..., None]

    def predict(self, context, state, action, generator=None):
        B = len(action)
        assert state.shape == context.shape == (self.members, B, 1)
        assert action.shape == (B, 1)
        off = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)[:self.members, None, None]
        return state + (action - 1) + 0.25 * context + off * (state > 2)


class Noisy(Walk):
    """The same with noise of deviation 0.1."""

    noisy = True

    def predict(self, context, state, action, generator=None):
        mean = super().predict(context, state, action)
        return mean if generator is None else mean + 0.1 * torch.randn(mean.shape, generator=generator, dtype=mean.dtype)


class Recogniser(Walk):
    """Knows an agent only by its last two steps: its context is how far they went beyond their actions, over 0.25."""

    past = 2

    def context(self, view):
        assert view.past_mask.all()
        went = view.state - view.past_state[:, 0] - (view.past_action - 1).sum(1)
        return (went / 2 / 0.25).expand(self.members, *went.shape)


class Alone(Walk):
    members = 1


def logs(x=((0.0, 1.0, 2.0, 3.0), (5.0, 6.25)), agents=(0, 1), environment=LINE, reward=None):
    """Episodes that walk right, each row of x one."""
    state = np.concatenate([row[:-1] for row in x])[:, None]
    after = np.concatenate([row[1:] for row in x])[:, None]
    length = [len(row) - 1 for row in x]
    action = np.full((len(state), 1), 1.0 if isinstance(environment.actions, Box) else 2)
    earned = environment.reward(*(torch.from_numpy(a) for a in (state, action, after))).numpy() if reward is None else \
        np.full(len(state), reward)
    return Episodes("line", "right", 0, np.ones((len(x), 1)), np.array(agents), np.concatenate([[0], np.cumsum(length)]), state,
                    action, after, earned, np.zeros(len(x), dtype=bool))
