"""CartPole against gymnasium's own, step by step, and against the returns known of simple policies."""

import gymnasium
import pytest
import torch

from lowrank_rl.rl.envs.cartpole import ENVIRONMENT, FAR, TILT, ended, reset, reward, step

AGENTS = torch.tensor(ENVIRONMENT.test_agents, dtype=torch.float64)


def returns(choose, episodes, generator):
    """Mean return of each test agent, all episodes in lockstep."""
    covariates = AGENTS.repeat_interleave(episodes, dim=0)
    state = reset(len(covariates), generator=generator)
    total, alive = torch.zeros(len(covariates), dtype=torch.float64), torch.ones(len(covariates), dtype=torch.bool)
    for _ in range(ENVIRONMENT.max_steps):
        action = choose(state)
        next_state = step(covariates, state, action)
        total += torch.where(alive, reward(state, action, next_state), 0)
        alive &= ~ended(next_state)
        state = next_state
    return total.reshape(len(AGENTS), episodes).mean(1)


@pytest.mark.parametrize(("force", "length"), [(10.0, 0.5), (2.0, 0.5), (18.0, 0.85), (10.0, 0.15)])
def test_follows_gymnasium_step_by_step(force, length):
    original = gymnasium.make("CartPole-v1").unwrapped
    original.force_mag, original.length, original.polemass_length = force, length, original.masspole * length
    generator = torch.Generator().manual_seed(0)
    covariates, ends = torch.tensor([[force, length]], dtype=torch.float64), 0
    for seed in range(6):
        original.reset(seed=seed)
        state = torch.tensor(original.state)[None]
        for _ in range(200):
            lean = float(state[0] @ torch.tensor([0.0, 0.1, 1.0, 0.4], dtype=torch.float64))
            push = int(torch.randint(2, (1,), generator=generator)) if seed % 2 else int(lean > 0)
            _, gained, terminated, _, _ = original.step(push)
            action = torch.tensor([[push]])
            next_state = step(covariates, state, action)
            torch.testing.assert_close(next_state[0], torch.tensor(original.state), rtol=0, atol=1e-10)
            assert bool(ended(next_state)[0]) == terminated
            assert float(reward(state, action, next_state)[0]) == gained == 1
            state = next_state
            if terminated:
                ends += 1
                break
    assert ends >= 3


def test_hand_made_ends_and_rewards():
    states = torch.tensor([[0.0, 0, 0, 0], [FAR + 0.01, 0, 0, 0], [-FAR - 0.01, 0, 0, 0], [0, 9, TILT + 0.01, 9],
                           [0, 0, -TILT - 0.01, 0], [FAR - 0.01, 9, TILT - 0.01, 9]])
    assert ended(states).tolist() == [False, True, True, True, True, False]
    assert ended(states.reshape(2, 3, 4)).shape == (2, 3)
    assert reward(states, torch.zeros(6, 1), states).tolist() == [1] * 6
    assert reward(states[0], torch.zeros(1), torch.tensor([0, torch.nan, 0, 0])).isnan()


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


def test_mirrored_states_have_mirrored_futures():
    generator = torch.Generator().manual_seed(2)
    state = reset(5, generator=generator)
    left, right = torch.zeros(5, 1, dtype=torch.long), torch.ones(5, 1, dtype=torch.long)
    torch.testing.assert_close(step(AGENTS, -state, left), -step(AGENTS, state, right), rtol=0, atol=1e-15)


def test_reset_is_uniform_and_seeded():
    state = reset(4000, generator=torch.Generator().manual_seed(2))
    assert state.shape == (4000, 4)
    assert torch.equal(state, reset(4000, generator=torch.Generator().manual_seed(2)))
    assert float(state.abs().max()) <= 0.05
    assert float(state.mean(0).abs().max()) < 0.002
    assert float((state.std(0) - 0.1 / 12**0.5).abs().max()) < 0.001


@pytest.mark.parametrize("push", [0, 1])
def test_a_constant_push_falls_in_the_known_number_of_steps(push):
    mean = returns(lambda state: torch.full((len(state), 1), push), 500, torch.Generator().manual_seed(3))
    torch.testing.assert_close(mean, torch.tensor([18.9, 9.4, 7.3, 11.9, 5.6], dtype=torch.float64), rtol=0, atol=0.25)


def test_random_pushes_fall_in_the_known_number_of_steps():
    generator = torch.Generator().manual_seed(4)
    mean = returns(lambda state: ENVIRONMENT.actions.sample((len(state),), generator=generator), 500, generator)
    known = torch.tensor([37.4, 22.5, 16.6, 30.2, 11.1], dtype=torch.float64)
    torch.testing.assert_close(mean, known, rtol=0.09, atol=0)     # four standard errors of 500 episodes
