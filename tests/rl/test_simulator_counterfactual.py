"""Counterfactual trajectories against hand-made numbers, and intervals against the distribution that they are for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from simulated import LINE, Alone, Noisy, Recogniser, Walk, logs

from lowrank_rl.rl.simulator import Simulator
from lowrank_rl.rl.simulator_counterfactual import _interval

LONG = replace(LINE, max_steps=9)


def world(model=None, environment=LONG):
    return Simulator(model or Walk(), environment, logs())


class Follows:
    """Goes left from beyond ``turn``, else right; remembers what it saw."""

    past = 2

    def __init__(self, turn):
        self.turn, self.seen = turn, []

    def reset(self, agent):
        self.agent = agent

    def act(self, view, *, generators):
        assert len(generators) == len(view.agent)
        self.seen.append(view)
        return torch.where(view.state > self.turn, 0, 2)


def test_each_member_follows_its_own_trajectory():
    made = world().counterfactual(1, np.array([2, 2, 1, 0]))
    assert made.actions.tolist() == [[[2], [2], [1], [0]]] * 3
    assert made.states[0, :, 0].tolist() == [5, 6.25, 7.5, 7.75, 7.0]                       # from where its log begins
    assert made.states[1, :, 0].tolist() == [5, 7.25, 9.5, 10.75, 11.0]
    assert made.states[2, :, 0].tolist() == [5, 4.25, 3.5, 1.75, 1.0]                       # below 2 it errs no more
    assert made.rewards.tolist() == (made.states[:, 1:, 0] - 10).tolist()
    assert made.returns.tolist() == pytest.approx([28.5 - 40, 38.5 - 40, 10.5 - 40])
    assert made.expected == pytest.approx(77.5 / 3 - 40)
    assert made.running.tolist() == [1] * 5


def test_intervals_are_those_of_one_more_draw():
    made = world().counterfactual(0, np.array([1]), start=np.array([2.5]), quantiles=(0.1, 0.95))
    middle, deviation = 2.5 - 1 / 3, np.std([0, 1, -2], ddof=1) * np.sqrt(4 / 3)
    assert made.mean[1] == pytest.approx(middle)
    assert made.low[1] == pytest.approx(middle + stats.t.ppf(0.1, 2) * deviation)
    assert made.high[1] == pytest.approx(middle + stats.t.ppf(0.95, 2) * deviation)
    assert made.low[0] == made.high[0] == 2.5
    assert made.interval == pytest.approx((made.low[1, 0] - 10, made.high[1, 0] - 10))


@pytest.mark.parametrize(("members", "each"), [(5, 1), (3, 400)])
def test_a_draw_like_the_others_lies_inside_as_often_as_said(members, each):
    """Members and truth about one center, draws about their member."""
    draw, trials = np.random.default_rng(0), 4000
    center = draw.normal(size=(members + 1, 1, trials))
    x = (center + (0 if each == 1 else draw.normal(size=(members + 1, each, trials))))
    truth, x = x[-1, 0], x[:-1].reshape(-1, trials)
    _, low, high = _interval(x, (0.05, 0.95), each)
    found = ((low <= truth) & (truth <= high)).mean()
    assert found == pytest.approx(0.9, abs=0.015) if each == 1 else 0.9 < found < 0.98     # the sum of both is on the safe side
    if each == 1:
        assert ((x.min(0) <= truth) & (truth <= x.max(0))).mean() == pytest.approx(2 / 3, abs=0.02)


def test_a_policy_acts_by_what_each_trajectory_shows_it():
    player = Follows(7)
    made = world().counterfactual(1, player, steps=3)
    assert made.states[:, :, 0].tolist() == [[5, 6.25, 7.5, 6.75], [5, 7.25, 7.5, 7.75], [5, 4.25, 3.5, 2.75]]
    assert made.actions[:, :, 0].tolist() == [[2, 2, 0], [2, 0, 0], [2, 2, 2]]
    assert player.agent.tolist() == [1, 1, 1]
    third = player.seen[2]
    assert third.past_mask.all()
    assert third.past_state[:, :, 0].tolist() == [[5, 6.25], [5, 7.25], [5, 4.25]]
    assert third.past_action[:, :, 0].tolist() == [[2, 2], [2, 0], [2, 2]]
    assert player.seen[1].past_mask.tolist() == [[False, True]] * 3
    assert world().counterfactual(1, Follows(7)).states.shape == (3, 10, 1)                 # the environment's limit


def test_a_trajectory_that_has_ended_is_blank_and_earns_no_more():
    """Ends at or below -3; beyond 2 the second member thinks that left leads nowhere, the third that it leads far."""
    made = world().counterfactual(0, np.zeros(9, dtype=int), start=np.array([2.5]))
    assert [int(np.isfinite(row).sum()) for row in made.states[..., 0]] == [7, 10, 5]
    assert made.running.tolist() == pytest.approx([1] * 5 + [2 / 3] * 2 + [1 / 3] * 3)
    assert made.returns.tolist() == pytest.approx([sum(np.arange(1.5, -4, -1)) - 60, 9 * 2.5 - 90,
                                                   sum([-0.5, -1.5, -2.5, -3.5]) - 40])
    assert made.mean[6, 0] == pytest.approx((-3.5 + 2.5) / 2)
    assert np.isnan(made.low[7, 0])                                                         # one is left, which has no spread
    short = world().counterfactual(0, np.zeros(9, dtype=int), start=np.array([-1.0]))
    assert short.states[0, :, 0].tolist() == [-1, -2, -3]                                   # no longer than the longest


def test_a_policy_is_asked_for_those_that_run():
    player = Follows(-9)      # always left
    world().counterfactual(0, player, start=np.array([2.5]))
    assert [view.episode.tolist() for view in player.seen] == [[0, 1, 2]] * 4 + [[0, 1]] * 2 + [[1]] * 3


def test_a_noisy_models_draws_repeat_with_the_seed():
    def ask(seed):
        return world(Noisy()).counterfactual(0, np.ones(3, dtype=int), start=np.array([-1.0]), draws=200, seed=seed)
    one, same, other = ask(0), ask(0), ask(1)
    assert one.states.shape == (600, 4, 1)
    assert np.array_equal(one.states, same.states)
    assert not np.array_equal(one.states, other.states)
    assert one.states[:, 3, 0].std() == pytest.approx(0.1 * np.sqrt(3), rel=0.1)
    assert one.high[3, 0] - one.low[3, 0] == pytest.approx(2 * 1.645 * 0.1 * np.sqrt(3), rel=0.15)


def test_agents_are_recognised_by_their_logs():
    data = logs(((0.0, 2.0, 3.25, 4.5), (0.0, 1.0, 2.0)), (1, 0))
    made = Simulator(Recogniser(), LONG, data)
    assert made.counterfactual(1, np.array([1]), start=[0.0]).states[:, 1, 0].tolist() == [0.25] * 3
    assert made.counterfactual(0, np.array([1]), start=[0.0]).states[:, 1, 0].tolist() == [0.0] * 3


@pytest.mark.parametrize(("action", "options", "said"), [
    (np.array([3]), {}, r"action: expected integers 0\.\.2 of shape \(1,\), got \[3\]"),
    (np.array([1.0]), {}, "action: expected integers"),
    (np.zeros((2, 2), dtype=int), {}, "action: expected integers"),
    (np.zeros(0, dtype=int), {}, "action: expected integers"),
    (np.array(1), {}, "action: expected integers"),
    (np.array([1]), {"start": [np.nan]}, "start: 1 of 1 values are NaN"),
    (np.array([1]), {"start": [0.0, 1.0]}, r"start: expected one state \('x',\), got shape \(2,\)"),
    (np.array([1]), {"quantiles": (0.9, 0.1)}, "quantiles: expected two probabilities"),
    (np.array([1]), {"quantiles": (0.0, 0.5)}, "quantiles: expected two probabilities"),
    (np.array([1]), {"quantiles": 0.5}, "quantiles: expected two probabilities"),
    (np.array([1]), {"quantiles": ("a", "b")}, "quantiles: expected two probabilities"),
    (np.array([1]), {"start": "a"}, r"start: expected one state of numbers \('x',\), got 'a'"),
    (np.array([1]), {"seed": 1.5}, "seed: expected a whole number >= 0, got 1.5"),
    (np.array([1]), {"seed": "1"}, "seed: expected a whole number >= 0, got '1'"),
    (1, {}, r"action: expected actions \(T, 1\) or a policy, got 1"),
    ("abc", {}, r"action: expected actions \(T, 1\) or a policy, got 'abc'"),
    (None, {}, r"action: expected actions \(T, 1\) or a policy, got None"),
    (np.array([1]), {"steps": 3}, "steps: expected None beside 1 actions, got 3"),
    (Follows(0), {"steps": 0}, "steps: expected a whole number >= 1, got 0"),
    (np.array([1]), {"draws": 0}, "draws: expected a whole number >= 1, got 0")])
def test_bad_input_is_refused(action, options, said):
    with pytest.raises(ValueError, match=said):
        world().counterfactual(0, action, **options)


def test_no_start_and_no_number():
    with pytest.raises(ValueError, match="start: expected a state, since agent 4 has no log to begin with, got None"):
        world().counterfactual(4, np.array([1]))

    class Broken(Walk):
        def predict(self, context, state, action, generator=None):
            return torch.where(state > 2, torch.nan, super().predict(context, state, action))
    with pytest.raises(ValueError, match="agent 0: expected finite predictions, got NaN or Inf in 3 of 3 trajectories after 4"):
        world(Broken()).counterfactual(0, np.full(6, 2))


def test_a_single_member_has_no_intervals_and_says_so(recwarn):
    world().counterfactual(0, np.ones(3, dtype=int))
    single = type("Single", (Noisy,), {"members": 1})
    assert np.isfinite(world(single()).counterfactual(0, np.ones(3, dtype=int)).interval).all()      # its draws spread
    assert not recwarn.list
    with pytest.warns(UserWarning, match="intervals: expected an ensemble, got a model of one member, .* NaN; train") as told:
        made = world(Alone()).counterfactual(0, np.ones(3, dtype=int))
    assert told[0].filename == __file__
    assert np.isnan(made.interval).all()
    assert np.isfinite(made.mean).all()
