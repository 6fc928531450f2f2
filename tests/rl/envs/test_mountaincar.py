"""MountainCar against gymnasium's own, step by step, and against the returns known of simple policies."""

import gymnasium
import numpy as np
import pytest
import torch

from lowrank_rl.rl.envs.mountaincar import ENVIRONMENT, FORCE, GOAL, LEFT, TOP_SPEED, ended, reset, reward, step

AGENTS = torch.tensor(ENVIRONMENT.test_agents, dtype=torch.float64)


def row(*numbers):
    return torch.tensor([numbers], dtype=torch.float64)


def returns(choose, episodes, generator):
    """Mean return of each test agent, all episodes in lockstep."""
    covariates = AGENTS.repeat_interleave(episodes, dim=0)
    state = reset(len(covariates), generator=generator)
    total, alive = torch.zeros(len(covariates), dtype=torch.float64), torch.ones(len(covariates), dtype=torch.bool)
    for _ in range(ENVIRONMENT.max_steps):
        action = choose(state)
        next_state = step(covariates, state, action)
        total += reward(state, action, next_state) * alive
        alive &= ~ended(next_state)
        state = next_state
    return total.reshape(len(AGENTS), episodes).mean(1)


@pytest.mark.parametrize("gravity", [0.0025, 0.0001, 0.0035])
def test_follows_gymnasium_step_by_step(gravity):
    original = gymnasium.make("MountainCar-v0").unwrapped
    original.gravity = gravity
    generator = torch.Generator().manual_seed(0)
    walls = goals = fast = 0
    for seed in range(4):
        original.reset(seed=seed)
        if seed == 3:
            original.state = np.array([-0.6, 0.0695])       # so fast that the limit binds
        state = torch.tensor(original.state)[None]
        push = 2 * (seed % 2)                     # half of the cars set out to the left, into the wall
        for t in range(250):
            if seed < 2 and t > 30:               # swing: push the way it moves
                push = 2 if float(state[0, 1]) >= 0 else 0
            elif seed >= 2 and t % 8 == 0:
                push = int(torch.randint(3, (1,), generator=generator))
            _, _, terminated, _, _ = original.step(push)
            before, state = state, step(row(gravity), state, torch.tensor([[push]]))
            torch.testing.assert_close(state[0], torch.tensor([float(x) for x in original.state], dtype=torch.float64),
                                       rtol=0, atol=1e-13)
            assert bool(ended(state)[0]) == terminated
            assert float(reward(before, torch.tensor([[push]]), state)[0]) == (0 if terminated else -1)
            walls += float(state[0, 0]) == LEFT
            fast += abs(float(state[0, 1])) == TOP_SPEED
            goals += terminated
            if terminated:
                break
    assert goals
    assert fast
    assert walls or gravity > 0.001


def test_hand_made_steps():
    level = torch.pi / 6                                        # cos(3 x) = 0: no slope
    torch.testing.assert_close(step(row(0.002), row(level, 0.01), torch.tensor([[2]])),
                               row(level + 0.01 + FORCE, 0.01 + FORCE), rtol=0, atol=1e-15)
    assert step(row(0.002), row(-1.19, -0.06), torch.tensor([[0]])).tolist() == [[LEFT, 0.0]]     # stopped by the wall
    assert step(row(0.002), row(0.0, 0.9), torch.tensor([[1]])).tolist() == [[TOP_SPEED, TOP_SPEED]]     # no faster
    states = torch.tensor([[GOAL, 0.0], [GOAL, -0.01], [GOAL - 1e-9, 0.05]], dtype=torch.float64)
    assert ended(states).tolist() == [True, False, False]
    assert reward(states, torch.zeros(3, 1), states).tolist() == [0, -1, -1]
    assert reward(states[0], torch.zeros(1), torch.tensor([torch.nan, 0.0])).isnan()


def test_a_batch_is_its_rows_in_any_order():
    generator = torch.Generator().manual_seed(1)
    state, covariates = reset(20, generator=generator), AGENTS.repeat(4, 1)
    action = ENVIRONMENT.actions.sample((20,), generator=generator)
    future = step(covariates, state, action)
    assert future.dtype == torch.float64
    alone = torch.cat([step(covariates[i:i + 1], state[i:i + 1], action[i:i + 1]) for i in range(20)])
    torch.testing.assert_close(future, alone, rtol=0, atol=1e-15)
    order = torch.randperm(20, generator=generator)
    torch.testing.assert_close(step(covariates[order], state[order], action[order]), future[order], rtol=0, atol=1e-15)


def test_reset_is_uniform_and_seeded():
    state = reset(4000, generator=torch.Generator().manual_seed(2))
    assert state.shape == (4000, 2)
    assert torch.equal(state, reset(4000, generator=torch.Generator().manual_seed(2)))
    assert float(state[:, 0].min()) >= -0.6
    assert float(state[:, 0].max()) <= -0.4
    assert abs(float(state[:, 0].mean()) + 0.5) < 0.004
    assert not state[:, 1].any()


def test_pushing_right_gives_the_published_returns():
    """The CQL and MOReL rows of PerSim's tables, which had collapsed to this policy."""
    mean = returns(lambda state: torch.full((len(state), 1), 2), 300, torch.Generator().manual_seed(3))
    torch.testing.assert_close(mean[:3], torch.tensor([-44.7, -49.7, -63.0], dtype=torch.float64), rtol=0, atol=0.6)
    assert mean[3:].tolist() == [-500, -500]


def test_random_pushes_hardly_ever_reach_the_goal():
    generator = torch.Generator().manual_seed(4)
    mean = returns(lambda state: ENVIRONMENT.actions.sample((len(state),), generator=generator), 100, generator)
    assert (mean[1:] < -490).all()
    assert mean[0] < -400
