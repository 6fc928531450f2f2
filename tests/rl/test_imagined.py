"""Environments as simulators imagine them: the true model's are the true ones."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from stand_ins import balance, energy_pumping

from lowrank_rl.rl.data import agents
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.evaluate import returns
from lowrank_rl.rl.imagined import Diverged, imagined
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rng import stream

POLE, CAR = cartpole.ENVIRONMENT, mountaincar.ENVIRONMENT


def starts(environment, count=7):
    return torch.cat([environment.reset(1, generator=stream(0, "starts", k)) for k in range(count)])


@pytest.mark.parametrize(("environment", "policy"), [(POLE, balance()), (CAR, energy_pumping())])
def test_the_true_model_imagines_true_episodes(environment, policy):
    covariates, start = agents(environment, 5, seed=0), starts(environment)
    inside, numbers = imagined(environment, TrueEnv(environment, covariates), start, count=5)
    found, episodes = returns(inside, policy, numbers, [1, 4], episodes=3, seed=0)
    first = episodes.state[episodes.start[:-1]]
    assert {tuple(row) for row in first} <= {tuple(row) for row in start.tolist()}
    assert len({tuple(row) for row in first}) > 1
    after = environment.step(covariates[np.repeat(episodes.agent, episodes.lengths)], torch.from_numpy(episodes.state),
                             torch.from_numpy(episodes.action))
    torch.testing.assert_close(after, torch.from_numpy(episodes.next_state), atol=1e-12, rtol=0)
    assert np.abs(found).ravel().tolist() == (episodes.lengths - (environment is CAR)).tolist()    # the goal costs nothing
    assert (numbers[:, 0].tolist(), episodes.covariates[:, 0].tolist()) == ([0, 1, 2, 3, 4], [1, 1, 1, 4, 4, 4])


class Members:
    """Members that add their own number; the second agent's state becomes NaN."""
    members, past, noisy = 3, 0, False

    def context(self, view):
        return view.agent.expand(3, -1)[..., None]

    def predict(self, context, state, action, generator=None):
        moved = state + torch.arange(3.0)[:, None, None]
        return torch.where(context == 1, torch.nan, moved)


def test_each_step_is_the_mean_of_the_members():
    inside, numbers = imagined(CAR, Members(), np.zeros((2, 2)), count=2)
    after = inside.step(numbers[:1], torch.tensor([[0.5, 1.0]]).double(), torch.zeros((1, 1), dtype=torch.int64))
    assert after.tolist() == [[1.5, 2.0]]


def test_a_prediction_that_is_no_number_names_the_agent():
    inside, numbers = imagined(CAR, Members(), np.zeros((2, 2)), count=3)
    with pytest.raises(Diverged, match=r"agents \[1\]: expected predictions that are finite .*, got NaN or Inf; leave") as told:
        returns(inside, energy_pumping(), numbers, [0, 1, 2], episodes=2, seed=0)
    assert told.value.agents == {1}


def test_its_agents_are_numbers():
    inside, numbers = imagined(POLE, Members(), np.zeros((2, 4)), count=3)
    assert torch.equal(agents(inside, 3, seed=0), numbers)
    assert (inside.covariate_names, inside.max_steps) == (("agent",), POLE.max_steps)


@pytest.mark.parametrize(("start", "words"), [
    (torch.zeros((0, 2)), r"start: expected logged first states .*, got shape \(0, 2\)"),
    (torch.zeros((3, 4)), r"start: expected logged first states .*, got shape \(3, 4\)"),
    (torch.tensor([[0.0, np.nan]]), "start"),
    (torch.zeros(2), "start")])
def test_bad_starts(start, words):
    with pytest.raises(ValueError, match=words):
        imagined(CAR, Members(), start, count=2)


def test_bad_models():
    with pytest.raises(ValueError, match=r"their last 10 steps, .*; ask Simulator\.counterfactual"):
        imagined(CAR, SimpleNamespace(past=10, members=1), np.zeros((1, 2)), count=2)
    with pytest.raises(ValueError, match="count"):
        imagined(CAR, Members(), np.zeros((1, 2)), count=0)
