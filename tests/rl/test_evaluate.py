"""Prediction error and returns, against slow loops over the raw episodes (reference of PerSim's code, section 3)."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from stand_ins import balance, energy_pumping

from lowrank_rl.rl.data import agents, collect
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.evaluate import prediction_error, returns
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.unroll import rollout

CARTPOLE, MOUNTAINCAR = cartpole.ENVIRONMENT, mountaincar.ENVIRONMENT
FALL = balance(gain=(-0.1, -0.2, -1.0, -0.4), explore=0.7)     # episodes of about ten steps, some shorter


class Drift:
    """Two members that think that only two dimensions move, each by its own amount and by the agent's number."""

    members, past, noisy = 2, 0, False

    def context(self, view):
        assert view.past_state.shape[1] == 0
        return torch.stack([view.agent, -3 * view.agent])[..., None].double()

    def predict(self, context, state, action, generator=None):
        move = torch.zeros_like(state)
        move[..., 0] = 0.01 * context[..., 0] + 0.002 * action[..., 0].double()
        move[..., -1] = 0.05
        return state + move

    def rollout(self, context, state, actions, generator=None):
        return rollout(self, context, state, actions, generator)


class Push:
    """Always right: the pole falls within ten steps or so."""

    past = 0

    def reset(self, agent):
        pass

    def act(self, view, *, generators):
        return torch.ones((len(view.state), 1), dtype=torch.int64)


def slow(environment, policy, covariates, numbers, count, seed):
    """What ``Drift``'s error should be: lists and loops only."""
    agent = torch.tensor(numbers).repeat_interleave(count)
    real = collect(environment, covariates[agent], agent, policy, seed=seed, what="prediction-test", max_steps=60)
    found = {number: [] for number in numbers}
    for e, number in enumerate(agent.tolist()):
        a, b = real.start[e], real.start[e + 1]
        states = [*real.state[a:b], real.next_state[b - 1]]              # s_0 .. s_L
        if b - a <= 10:
            continue
        predicted = []
        for factor in (1, -3):                                           # the members run on their own
            state, path = states[9].copy(), []
            for t in range(9, min(60, b - a)):
                state[0] += 0.01 * factor * number + 0.002 * real.action[a + t, 0]
                state[-1] += 0.05
                path.append(state.copy())
            predicted.append(path)
        mean, true = np.mean(predicted, axis=0), np.array(states[10:61])
        found[number].append((math.sqrt(((mean - true) ** 2).mean()), r2_score(true, mean, multioutput="variance_weighted"),
                              mean - true, true, np.array(predicted)))
    return found


@pytest.mark.parametrize(("environment", "policy"), [(CARTPOLE, balance(explore=0.5)), (MOUNTAINCAR, energy_pumping()),
                                                     (CARTPOLE, FALL)])
def test_prediction_error_is_that_of_a_slow_loop(environment, policy):
    covariates, numbers = agents(environment, 6, seed=0), [1, 3, 0]
    found = prediction_error(environment, Drift(), covariates, numbers, policy, episodes=12, seed=5)
    expected = slow(environment, policy, covariates, numbers, 12, 5)
    assert list(found) == numbers
    for number, error in found.items():
        runs = expected[number]
        assert (error.episodes, error.dropped) == (len(runs), 12 - len(runs))
        assert error.rmse == pytest.approx(np.mean([run[0] for run in runs]), rel=1e-10)
        assert error.rmse_sd == pytest.approx(np.std([run[0] for run in runs]), rel=1e-8)
        assert error.r2 == pytest.approx(np.median([run[1] for run in runs]), rel=1e-8)
        by_step = [[(run[2][t] ** 2).mean() for run in runs if t < len(run[2])] for t in range(51)]
        by_step = [math.sqrt(np.mean(squares)) if squares else math.nan for squares in by_step]
        np.testing.assert_allclose(error.by_step, by_step, rtol=1e-10)
        true, predicted, alive = runs[0][3], runs[0][4], len(runs[0][3])
        assert error.true.shape == (51, len(environment.state_names))
        assert error.predicted.shape == (2, 51, len(environment.state_names))
        np.testing.assert_array_equal(error.true[:alive], true)
        assert np.isnan(error.true[alive:]).all()
        np.testing.assert_allclose(error.predicted[:, :alive], predicted, atol=1e-12)
    if policy is FALL:                                                   # the case has what it is there for
        assert any(error.dropped for error in found.values())
        assert any(np.isnan(error.by_step).any() for error in found.values())


@pytest.mark.parametrize(("environment", "policy"), [(CARTPOLE, balance()), (MOUNTAINCAR, energy_pumping()),
                                                     (CARTPOLE, Uniform(CARTPOLE.actions))])
def test_the_true_environment_predicts_itself(environment, policy):
    covariates = agents(environment, 5, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = prediction_error(environment, TrueEnv(environment, covariates), covariates, [0, 4], policy, episodes=5, seed=0)
    for error in found.values():
        assert error.rmse < 1e-12
        assert error.r2 == pytest.approx(1, abs=1e-12)
        assert np.nanmax(error.by_step) < 1e-12


class Backward(Drift):
    """Keeps the view that its context was asked for."""

    past = 12

    def context(self, view):
        self.view = view
        return torch.zeros(2, len(view.agent), 1, dtype=torch.float64)


def test_a_model_sees_the_burn_in():
    """Ten real states, so nine steps; where it wants more, the rest is unknown."""
    covariates, model = agents(MOUNTAINCAR, 5, seed=0), Backward()
    prediction_error(MOUNTAINCAR, model, covariates, [2, 0], Uniform(MOUNTAINCAR.actions), episodes=2, seed=3)
    agent = torch.tensor([2, 2, 0, 0])
    real = collect(MOUNTAINCAR, covariates[agent], agent, Uniform(MOUNTAINCAR.actions), seed=3, what="prediction-test",
                   max_steps=60)
    view = model.view
    assert view.agent.tolist() == agent.tolist()
    assert view.past_mask.tolist() == [[False] * 3 + [True] * 9] * 4
    for e, first in enumerate(real.start[:-1]):
        np.testing.assert_array_equal(view.state[e], real.state[first + 9])
        np.testing.assert_array_equal(view.past_state[e, 3:], real.state[first:first + 9])
        np.testing.assert_array_equal(view.past_action[e, 3:], real.action[first:first + 9])
        assert not view.past_state[e, :3].any()


def test_a_simulator_of_the_wrong_agent_errs():
    covariates = agents(CARTPOLE, 5, seed=0)
    wrong = TrueEnv(CARTPOLE, covariates.roll(1, 0))
    found = prediction_error(CARTPOLE, wrong, covariates, [0, 1], balance(), episodes=3, seed=0)
    assert min(error.rmse for error in found.values()) > 0.05


def test_too_short_episodes_only_are_refused():
    covariates = agents(CARTPOLE, 5, seed=0)
    with pytest.raises(ValueError, match="agent 2: expected test episodes longer than 10 steps, got none of 3"):
        prediction_error(CARTPOLE, TrueEnv(CARTPOLE, covariates), covariates, [2], Push(), episodes=3, seed=0)


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_predictions_that_are_no_numbers_are_refused(lost):
    class Lost(Drift):
        def rollout(self, context, state, actions, generator=None):
            future = super().rollout(context, state, actions)
            future[1, 0, 0, 3:] = lost
            return future

    covariates = agents(MOUNTAINCAR, 5, seed=0)
    with pytest.raises(ValueError, match="agent 1: expected finite predictions, got NaN or Inf in 1 of 2 episodes"):
        prediction_error(MOUNTAINCAR, Lost(), covariates, [1, 3], energy_pumping(), episodes=2, seed=0)


@pytest.mark.parametrize("ask", [prediction_error, returns])
def test_no_episodes_are_refused(ask):
    covariates = agents(CARTPOLE, 5, seed=0)
    first = (TrueEnv(CARTPOLE, covariates), covariates, [0], Push()) if ask is prediction_error else (Push(), covariates, [0])
    with pytest.raises(ValueError, match="episodes: expected a whole number >= 1, got 0"):
        ask(CARTPOLE, *first, episodes=0, seed=0)


def test_returns_are_summed_rewards_by_agent():
    covariates = agents(CARTPOLE, 6, seed=0)
    value, episodes = returns(CARTPOLE, Uniform(CARTPOLE.actions), covariates, [4, 1, 5], episodes=4, seed=0)
    assert value.shape == (3, 4)
    assert episodes.agent.tolist() == [4] * 4 + [1] * 4 + [5] * 4
    assert np.array_equal(episodes.covariates, covariates[episodes.agent].numpy())
    for e, total in enumerate(value.ravel()):
        assert total == sum(episodes.reward[episodes.start[e]:episodes.start[e + 1]].tolist())
    assert value.ravel().tolist() == episodes.lengths.tolist()          # CartPole pays 1 per step


def test_returns_cut_where_asked():
    covariates = agents(MOUNTAINCAR, 5, seed=0)
    value, episodes = returns(MOUNTAINCAR, Uniform(MOUNTAINCAR.actions), covariates, [3], episodes=2, seed=0, max_steps=7)
    assert value.tolist() == [[-7, -7]]
    assert not episodes.terminated.any()


def test_a_model_or_policy_without_what_it_promises_is_refused():
    class Mine:
        def reset(self, agent):
            pass

        def act(self, view, *, generators):
            return torch.ones((len(view.state), 1), dtype=torch.int64)

    class Half:
        members, past = 1, 0

    covariates = agents(CARTPOLE, 5, seed=0)
    with pytest.raises(ValueError, match=r"policy: expected one with past, reset, act \(contracts\.py\), got Mine without "
                                         "past; add past = 0, if it needs no"):
        returns(CARTPOLE, Mine(), covariates, [0], episodes=1, seed=0)
    with pytest.raises(ValueError, match="policy: .* got the class Push itself without"):
        returns(CARTPOLE, type("Push", (), {}), covariates, [0], episodes=1, seed=0)
    with pytest.raises(ValueError, match="model: expected one with members, past, context, rollout .*, got Half without "
                                         "context, rollout; add them"):
        prediction_error(CARTPOLE, Half(), covariates, [0], Push(), episodes=1, seed=0)
    with pytest.raises(ValueError, match="policy: .*, got Half without reset, act; add them"):
        prediction_error(CARTPOLE, TrueEnv(CARTPOLE, covariates), covariates, [0], Half(), episodes=1, seed=0)
