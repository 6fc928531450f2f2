"""Episodes to write and read: real ones, and any that could be."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowrank_rl.rl.data import Episodes, agents, collect
from lowrank_rl.rl.envs import cartpole, halfcheetah, mountaincar
from lowrank_rl.rl.policies.uniform import Uniform

CARTPOLE, MOUNTAINCAR, HALFCHEETAH = cartpole.ENVIRONMENT, mountaincar.ENVIRONMENT, halfcheetah.ENVIRONMENT
NUMBER = st.floats(-1e300, 1e300)


def some(environment, steps=40, agent=(0, 5, 2, 5)):
    """A few episodes, two of them of one agent, whose numbers are neither sorted nor complete."""
    agent = torch.tensor(agent)
    return collect(environment, agents(environment, 6, seed=1)[agent], agent, Uniform(environment.actions), seed=3,
                   what="random", max_steps=steps)


def equal(a, b):
    """Bit for bit, dtypes too."""
    return all(np.array_equal(x, y) and x.dtype == y.dtype if isinstance(x, np.ndarray) else x == y
               for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in fields(Episodes)))


@st.composite
def fakes(draw):
    """Episodes of no environment, with any numbers."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    count, rows = len(lengths), sum(lengths)
    start = np.concatenate([[0], np.cumsum(lengths)])
    state = draw(arrays(np.float64, (rows, 2), elements=NUMBER))
    last = draw(arrays(np.float64, (count, 2), elements=NUMBER))
    next_state = np.concatenate([np.append(state[a + 1:b], last[e:e + 1], axis=0)
                                 for e, (a, b) in enumerate(pairwise(start))])
    action = draw(arrays(np.int64, (rows, 1)) | arrays(np.float64, (rows, 3), elements=NUMBER))
    agent = draw(arrays(np.int64, (count,), elements=st.integers(0, 2 ** 62)))
    return Episodes(draw(st.text(max_size=9)), draw(st.text(max_size=9)), draw(st.integers(0, 2 ** 63)),
                    draw(arrays(np.float64, (count, 1), elements=NUMBER)), agent, start, state, action, next_state,
                    draw(arrays(np.float64, (rows,), elements=NUMBER)), draw(arrays(np.bool_, (count,))))
