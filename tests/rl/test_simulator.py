"""A Simulator against hand-made numbers: disagreement, the limit of what the logs cover, who an agent is, what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from simulated import LINE, Alone, Recogniser, Walk, logs

from lowrank_rl.rl.contracts import Box
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.simulator import Simulator

OFF = math.sqrt(7 / 3)      # deviation of 0, 1, -2


def test_disagreement_is_the_mean_over_dimensions_in_logged_deviations():
    made = Simulator(Walk(), LINE, logs())
    made.unit = torch.tensor([2.0, 0.5], dtype=torch.float64)
    predicted = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]], [[-2.0, 4.0]]], dtype=torch.float64)
    assert made.disagreement(predicted).item() == pytest.approx((OFF / 2 + math.sqrt(3) / 0.5) / 2)


def test_the_unit_is_the_deviation_of_logged_differences_and_1_where_none_differ():
    assert Simulator(Walk(), LINE, logs(((0.0, 1.0, 2.0),), (0,))).unit.tolist() == [1.0]
    assert Simulator(Walk(), LINE, logs()).unit.item() == pytest.approx(np.std([1, 1, 1, 1.25]))


@pytest.mark.parametrize("coverage", [0.0, 2.0])
def test_the_limit_is_mean_plus_deviations_over_the_logged_steps(coverage, monkeypatch):
    """One step of four begins beyond 2."""
    data = logs(((0.0, 1.0, 2.0, 2.5, 3.5),), (0,))
    apart = np.array([0, 0, 0, OFF]) / np.std([1, 1, 0.5, 1])
    made = Simulator(Walk(), LINE, data, coverage=coverage)
    assert made.limit == pytest.approx(apart.mean() + coverage * apart.std())
    monkeypatch.setattr("lowrank_rl.rl.simulator.CHUNK", 3)
    assert Simulator(Walk(), LINE, data, coverage=coverage).limit == pytest.approx(made.limit)
    assert Simulator(Walk(), LINE, data).limit == math.inf


@pytest.mark.parametrize(("reward", "worst"), [(-3.0, -3.0), (2.0, 0.0)])
def test_the_worst_step_is_never_better_than_none(reward, worst):
    assert Simulator(Walk(), LINE, logs(reward=reward)).worst == worst


def test_a_model_that_recognises_agents_is_shown_the_last_steps_of_their_longest_episode():
    data = logs(((0.0, 1.0, 2.0), (7.0, 9.0), (0.0, 2.0, 3.25, 4.5)), (0, 1, 1))
    assert Simulator(Recogniser(), LINE, data).who([1, 0])[0, :, 0].tolist() == [1.0, 0.0]


def test_short_logs_are_shown_masked():
    class Looker(Recogniser):
        def context(self, view):
            self.seen = view
            return view.agent.double().expand(3, -1)[..., None]
    looker = Looker()
    Simulator(looker, LINE, logs()).who([1])
    assert looker.seen.past_mask.tolist() == [[False, True]]
    assert looker.seen.past_state.tolist() == [[[0.0], [5.0]]]
    assert looker.seen.past_action.tolist() == [[[0], [2]]]
    assert looker.seen.state.tolist() == [[6.25]]


@pytest.mark.parametrize(("options", "said"), [
    ({"starts": "here"}, "unknown starts 'here'; known: reset, logged"),
    ({"pessimism": -1.0}, "pessimism: expected a number >= 0, got -1.0"),
    ({"pessimism": "a"}, "pessimism: expected a number >= 0, got 'a'"),
    ({"coverage": "5"}, "coverage: expected a finite number or None, got '5'"),
    ({"pessimism": math.nan}, "pessimism: expected a number >= 0, got nan"),
    ({"coverage": math.inf}, "coverage: expected a finite number or None, got inf"),
    ({"coverage": 5.0, "penalty": math.nan}, "penalty: expected a finite number or None, got nan"),
    ({"penalty": -5.0}, "penalty: expected None without coverage")])
def test_bad_options_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Simulator(Walk(), LINE, logs(), **options)


@pytest.mark.parametrize("options", [{"pessimism": 1.0}, {"coverage": 5.0}])
def test_a_single_member_cannot_disagree(options):
    with pytest.raises(ValueError, match=r"expected none with a model of one member.*members=5"):
        Simulator(Alone(), LINE, logs(), **options)


def test_what_does_not_fit_together_is_refused():
    car, pole = mountaincar.ENVIRONMENT, cartpole.ENVIRONMENT
    with pytest.raises(ValueError, match=r"logged: expected states .*'velocity'\) \(mountaincar\), got 1 dimensions"):
        Simulator(Walk(), car, logs())
    with pytest.raises(ValueError, match="action: expected 1 components"):
        Simulator(Walk(), replace(LINE, actions=Box(-1.0, 1.0, 1)), replace(logs(), action=np.full((4, 1), 2.0)))
    bad = logs()
    bad.reward[1] = math.nan
    with pytest.raises(ValueError, match="reward: 1 of 4 values are NaN"):
        Simulator(Walk(), LINE, bad)
    with pytest.raises(ValueError, match=r"model: expected one of 1 state dimensions and the actions of line, got .*give"):
        Simulator(TrueEnv(pole, torch.tensor(pole.test_agents)), LINE, logs())

    class Wide(Walk):
        def predict(self, context, state, action, generator=None):
            return state.expand(3, len(action), 1).repeat(1, 1, 2)
    with pytest.raises(ValueError, match=r"got a prediction of shape \(3, 1, 2\)"):
        Simulator(Wide(), LINE, logs())

    class TwoActions(Walk):
        def predict(self, context, state, action, generator=None):
            return state + torch.zeros(2)[action]
    with pytest.raises(ValueError, match="got 'index 2 is out of bounds"):
        Simulator(TwoActions(), LINE, logs())


@pytest.mark.parametrize(("agent", "said"), [(-1, "agent: expected a whole number >= 0, got -1"), (5, r"integers 0\.\.4"),
                                             (1.5, "got 1.5"), (True, "got True")])
def test_an_unknown_agent_is_refused(agent, said):
    made = Simulator(Walk(), LINE, logs())
    for ask in (made.env, lambda a: made.vector_env([0, a]), lambda a: made.counterfactual(a, np.array([1]))):
        with pytest.raises(ValueError, match=said):
            ask(agent)


def test_a_model_that_recognises_agents_needs_their_logs():
    with pytest.raises(ValueError, match="got 7 without; 2 have some"):
        Simulator(Recogniser(), LINE, logs(((0.0, 1.0, 2.0), (0.0, 1.0, 2.0)))).env(7)
