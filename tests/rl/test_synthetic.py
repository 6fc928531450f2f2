"""Trajectories flown in simulators: the true model's are true ones, each as long as it should be."""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from lowrank_rl.rl.data import agents
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.plan import ShootingConfig, random_shooting
from lowrank_rl.rl.policies.mpc import MPC
from lowrank_rl.rl.score import total_reward
from lowrank_rl.rl.synthetic import fly, join
from lowrank_rl.rng import stream

POLE, CAR = cartpole.ENVIRONMENT, replace(mountaincar.ENVIRONMENT, max_steps=23)


def pilot(environment, horizon=5, candidates=10):
    search = partial(random_shooting, actions=environment.actions, config=ShootingConfig(horizon, candidates))
    return MPC(TrueEnv(environment, agents(environment, 5, seed=0)), search, total_reward(environment))


def starts(environment, count=4):
    return torch.cat([environment.reset(1, generator=stream(0, "starts", k)) for k in range(count)])


def episodes(flown):
    """(agent, rows) of each trajectory, found by what follows what."""
    left, found = dict(enumerate(zip(flown.agent.tolist(), flown.state, flown.next_state, strict=True))), []
    for i, (agent, state, _) in list(left.items()):
        if not any(agent == a and torch.equal(state, after) for a, _, after in left.values()):
            rows = [i]
            while True:
                following = [j for j, (a, s, _) in left.items() if a == agent and torch.equal(s, flown.next_state[rows[-1]])]
                if not following:
                    break
                rows.append(following[0])
            found.append((agent, rows))
    return found


@pytest.mark.parametrize("environment", [POLE, CAR])
def test_the_true_model_flies_true_trajectories(environment):
    start = starts(environment)
    flown = fly(environment, pilot(environment), [0, 3], start, count=3, seed=0)
    covariates = agents(environment, 5, seed=0)[flown.agent]
    torch.testing.assert_close(environment.step(covariates, flown.state, flown.action), flown.next_state, atol=1e-12, rtol=0)
    torch.testing.assert_close(environment.reward(flown.state, flown.action, flown.next_state), flown.reward)
    assert torch.equal(environment.ended(flown.next_state), flown.terminated)
    found = episodes(flown)
    assert sorted(agent for agent, _ in found) == [0, 0, 0, 3, 3, 3]
    for _, rows in found:
        assert any(torch.equal(flown.state[rows[0]], first) for first in start)
        over = flown.terminated[rows].tolist()
        assert not any(over[:-1])                                              # nothing is flown beyond an end
        assert over[-1] or len(rows) == environment.max_steps                  # nor stopped before


def test_an_agents_trajectories_do_not_depend_on_company():
    both, alone = (fly(POLE, pilot(POLE), who, starts(POLE), count=2, seed=1) for who in ([2, 4], [4]))
    mine = both.agent == 4
    for name, values in vars(alone).items():
        assert torch.equal(getattr(both, name)[mine], values), name


def test_an_agents_trajectories_start_far_apart():
    """Of a line of first states, wherever the first is drawn."""
    line = torch.zeros((11, 2), dtype=torch.float64)
    line[:, 0] = torch.arange(-6, -3.8, 0.2, dtype=torch.float64) / 10
    for seed in range(4):
        flown = fly(CAR, pilot(CAR), [0, 3], line, count=4, seed=seed)
        for agent in (0, 3):
            first = sorted(float(flown.state[rows[0], 0]) for who, rows in episodes(flown) if who == agent)
            assert len(first) == 4
            assert first[-1] - first[0] > 0.159
            assert min(after - before for before, after in pairwise(first)) > 0.039
    twice = fly(POLE, pilot(POLE), [1], starts(POLE)[:1], count=2, seed=0)      # there is but one
    assert len({tuple(twice.state[rows[0]].tolist()) for _, rows in episodes(twice)}) == 1


def test_seeds_differ_and_repeat():
    one, again, other = (fly(POLE, pilot(POLE), [1], starts(POLE), count=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.action, again.action)
    assert one.action.shape != other.action.shape or not torch.equal(one.action, other.action)


def test_parts_are_joined_in_order():
    one, two = (fly(POLE, pilot(POLE), [agent], starts(POLE), count=1, seed=0) for agent in (1, 2))
    both = join([one, two])
    assert both.agent.tolist() == [1] * len(one.agent) + [2] * len(two.agent)
    assert torch.equal(both.reward, torch.cat([one.reward, two.reward]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="start: expected logged first states, got none"):
        fly(POLE, pilot(POLE), [0], starts(POLE)[:0], count=1, seed=0)
    with pytest.raises(ValueError, match="count: expected a whole number >= 1, got 0"):
        fly(POLE, pilot(POLE), [0], starts(POLE), count=0, seed=0)
    with pytest.raises(ValueError, match="NaN or Inf"):
        fly(POLE, pilot(POLE), [0], starts(POLE) * torch.nan, count=1, seed=0)
