"""Errors on logged steps against a slow loop, and what is held out against numbers by hand."""

import math

import numpy as np
import pytest
import torch

from lowrank_rl.rl.data import Episodes
from lowrank_rl.rl.held_out import prediction_error, split
from lowrank_rl.rl.unroll import rollout

LENGTHS, AGENTS = (11, 4, 7, 25), (2, 0, 2, 5)


def logs():
    """Ragged episodes of no particular law; agent 2 has two."""
    draw, start = np.random.default_rng(0), np.concatenate([[0], np.cumsum(LENGTHS)])
    paths = [draw.normal(size=(length + 1, 2)) * [1, 10] for length in LENGTHS]
    return Episodes("own", "somebody", 0, np.zeros((4, 0)), np.array(AGENTS), start, np.concatenate([x[:-1] for x in paths]),
                    draw.integers(0, 2, (start[-1], 1)), np.concatenate([x[1:] for x in paths]), draw.normal(size=start[-1]),
                    np.array([True, True, False, True]))


class Drift:
    """Two members that think that only the first dimension moves, by the agent's number and the action."""

    members, past, noisy = 2, 0, False

    def context(self, view):
        return torch.stack([view.agent, -3 * view.agent])[..., None].double()

    def predict(self, context, state, action, generator=None):
        move = torch.zeros_like(state)
        move[..., 0] = 0.1 * context[..., 0] + 0.2 * action[..., 0].double()
        return state + move

    def rollout(self, context, state, actions, generator=None):
        return rollout(self, context, state, actions, generator)


def slow(episodes, horizon, after):
    """Errors of ``Drift``, by agent: of each stretch the predicted, true and first states."""
    found = {}
    for e, number in enumerate(episodes.agent.tolist()):
        a, b = int(episodes.start[e]), int(episodes.start[e + 1])
        for first in range(a + int(after[e]), b, horizon):
            x, predicted = episodes.state[first, 0], []
            for t in range(first, min(b, first + horizon)):
                x += 0.1 * number * (1 - 3) / 2 + 0.2 * episodes.action[t, 0]
                predicted.append([x, episodes.state[first, 1]])
            true = episodes.next_state[first:min(b, first + horizon)]
            found.setdefault(number, []).append((np.array(predicted), true, episodes.state[first]))
    return found


@pytest.mark.parametrize(("horizon", "after"), [(5, [0, 0, 0, 0]), (3, [8, 4, 2, 20]), (1, [9, 0, 7, 24]), (40, [3, 1, 0, 5])])
def test_errors_are_those_of_a_slow_loop(horizon, after):
    episodes = logs()
    found = prediction_error(Drift(), episodes, horizon=horizon, after=np.array(after))
    expected = slow(episodes, horizon, after)
    assert set(found) == set(expected)
    for number, error in found.items():
        runs = expected[number]
        off, true = np.concatenate([p - t for p, t, _ in runs]), np.concatenate([t for _, t, _ in runs])
        np.testing.assert_allclose(error.rmse, np.sqrt((off ** 2).mean(0)), rtol=1e-12)
        assert error.overall == pytest.approx(math.sqrt((off ** 2).mean()))
        np.testing.assert_allclose(error.still, np.sqrt(np.concatenate([(t - s) ** 2 for _, t, s in runs]).mean(0)))
        np.testing.assert_allclose(error.windows, [math.sqrt(((p - t) ** 2).mean()) for p, t, _ in runs])
        by_step = [[((p - t)[k] ** 2).mean() for p, t, _ in runs if k < len(t)] for k in range(horizon)]
        np.testing.assert_allclose(error.by_step, [math.sqrt(np.mean(x)) if x else math.nan for x in by_step])
        assert error.steps == len(off)
        spread = ((true - true.mean(0)) ** 2).sum()
        assert math.isnan(error.r2) if spread == 0 else error.r2 == pytest.approx(1 - (off ** 2).sum() / spread)


def test_many_stretches_are_predicted_in_parts(monkeypatch):
    whole = prediction_error(Drift(), logs(), horizon=2)
    monkeypatch.setattr("lowrank_rl.rl.held_out.CHUNK", 3)
    for number, error in prediction_error(Drift(), logs(), horizon=2).items():
        np.testing.assert_array_equal(error.windows, whole[number].windows)


def test_a_share_of_each_episode_is_held_out():
    episodes = logs()
    train, after = split(episodes, 0.25)
    assert after.tolist() == [9, 3, 6, 19]
    assert train.start.tolist() == [0, 9, 12, 18, 37]
    assert train.terminated.tolist() == [False] * 4
    for e, (a, n) in enumerate(zip(episodes.start, after, strict=False)):
        for name in ("state", "action", "next_state", "reward"):
            np.testing.assert_array_equal(getattr(train, name)[train.start[e]:train.start[e + 1]],
                                          getattr(episodes, name)[a:a + n])
    some, after = split(episodes, 0.29, longest=2, agents=[2, 5])
    assert after.tolist() == [9, 4, 5, 23]
    assert some.terminated.tolist() == [False, True, False, False]         # agent 0's is whole
    held = prediction_error(Drift(), episodes, horizon=4, after=after)
    assert set(held) == {2, 5}
    assert (held[2].steps, held[5].steps) == (4, 2)


class Backward(Drift):
    """Keeps the view that its context was asked for."""

    past = 3

    def context(self, view):
        self.view = view
        return super().context(view)


def test_a_model_sees_the_steps_before_each_stretch_and_of_no_other_episode():
    episodes, model = logs(), Backward()
    prediction_error(model, episodes, horizon=30, after=np.array([5, 1, 7, 0]))
    view = model.view
    assert view.agent.tolist() == [2, 0, 5]
    assert view.past_mask.tolist() == [[True] * 3, [False, False, True], [False] * 3]
    np.testing.assert_array_equal(view.state, episodes.state[[5, 12, 22]])
    np.testing.assert_array_equal(view.past_state[0], episodes.state[2:5])
    np.testing.assert_array_equal(view.past_action[0], episodes.action[2:5])
    np.testing.assert_array_equal(view.past_state[1, 2], episodes.state[11])
    assert not view.past_state[1, :2].any()


@pytest.mark.parametrize("lost", [math.nan, math.inf])
def test_a_prediction_that_is_no_number_is_infinitely_wrong(lost):
    class Lost(Drift):
        def predict(self, context, state, action, generator=None):
            after = super().predict(context, state, action)
            after[:, 0, 1] = lost                                          # the first stretch, agent 2's
            return after
    found = prediction_error(Lost(), logs(), horizon=30)
    assert (found[2].overall, found[2].r2, found[2].rmse[1], found[2].windows[0]) == (math.inf, -math.inf, math.inf, math.inf)
    assert math.isfinite(found[2].rmse[0])
    assert math.isfinite(found[2].windows[1])
    assert math.isfinite(found[5].overall)


def test_bad_input_is_refused():
    episodes = logs()
    for share in (0, 1, -0.1, math.nan):
        with pytest.raises(ValueError, match="share: expected a number between 0 and 1, got"):
            split(episodes, share)
    with pytest.raises(ValueError, match="share: expected to hold out a step .* got none of 4 episodes of at most 25 steps"):
        split(episodes, 0.03)
    for after in (np.zeros(3, dtype=int), np.zeros(4), -1):
        with pytest.raises(ValueError, match="after: expected a number of steps >= 0 for each of 4 episodes"):
            prediction_error(Drift(), episodes, horizon=3, after=after)
    with pytest.raises(ValueError, match="after: expected steps left to predict, got none in 4 episodes"):
        prediction_error(Drift(), episodes, horizon=3, after=25)
    with pytest.raises(ValueError, match="horizon: expected a whole number >= 1, got 0"):
        prediction_error(Drift(), episodes, horizon=0)

    class Mine:
        members = 1
    with pytest.raises(ValueError, match="model: expected one with .*, got Mine without past, context, rollout; add them"):
        prediction_error(Mine(), episodes, horizon=3)
