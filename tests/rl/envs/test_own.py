"""One's own machines as an Environment: what is asked of it works, and what nobody knows is said."""

import numpy as np
import pandas as pd
import pytest
import torch

from lowrank_rl.rl.cards import card
from lowrank_rl.rl.contracts import Box, Discrete
from lowrank_rl.rl.envs.own import own_environment
from lowrank_rl.rl.formats.table import Columns, from_frame
from lowrank_rl.rl.score import total_reward
from lowrank_rl.rl.simulator import Simulator


def reward(state, action, next_state):
    return -(next_state[..., 0] - 3).abs()


def oven(actions=None, **options):
    return own_environment("oven", ["warmth"], actions or Discrete(2), **{"reward": reward, "max_steps": 5, **options})


class Heats:
    """Each step adds the action and a tenth of the agent's number."""

    members, past, noisy = 1, 0, False

    def context(self, view):
        return view.agent.double()[None, :, None]

    def predict(self, context, state, action, generator=None):
        return state + action.double() + 0.1 * context


def logged(environment):
    rows = [[f"oven-{oven}", t, float(t), 1.0 if t < 3 else np.nan] for oven in "ba" for t in range(4)]
    frame = pd.DataFrame(rows, columns=["agent", "time", "warmth", "heater"]).assign(terminated=False)
    return from_frame(frame, Columns(["warmth"], ["heater"]), environment=environment)


def test_logs_simulators_and_scores_take_it():
    environment = oven()
    episodes, names = logged(environment)
    assert (episodes.environment, names) == ("oven", {0: "oven-a", 1: "oven-b"})
    assert episodes.reward.tolist() == [-2, -1, 0] * 2                            # computed
    assert "warmth" in card(episodes, environment)
    env = Simulator(Heats(), environment, episodes, starts="logged").env(1)
    assert env.reset(seed=0)[0].tolist() == [0]
    taken = [env.step(1) for _ in range(5)]
    assert [step[0][0] for step in taken] == pytest.approx([1.1, 2.2, 3.3, 4.4, 5.5])
    assert [step[1] for step in taken] == pytest.approx([-1.9, -0.8, -0.3, -1.4, -2.5])
    assert [step[2:4] for step in taken] == [(False, False)] * 4 + [(False, True)]       # no end but the limit
    path = torch.tensor([[[0.0], [1.0], [3.0]]])
    assert total_reward(environment)(path, torch.ones((1, 2, 1))).tolist() == [-2]


def test_ends_and_starts_may_be_given():
    environment = oven(ended=lambda state: state[..., 0] > 2, reset=lambda count, *, generator: torch.full((count, 1), 1.5))
    episodes, _ = logged(oven())
    env = Simulator(Heats(), environment, episodes).env(0)
    assert env.reset(seed=0)[0].tolist() == [1.5]
    assert env.step(1)[2]


def test_what_nobody_knows_is_said():
    environment = oven(Box(0.0, 1.0, 1))
    with pytest.raises(ValueError, match="oven: expected a learned model, since nobody knows its dynamics .* use Simulator"):
        environment.step(None, torch.zeros(1, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="oven: expected a learned model"):
        Simulator(Heats(), oven(), logged(oven())[0]).env(0).reset(seed=0)               # starts="reset"


@pytest.mark.parametrize(("options", "said"), [
    ({"reward": lambda state, action, after: 1.0}, r"reward: expected one number per state, a tensor .* got float"),
    ({"reward": lambda state, action, after: -after}, r"reward: expected one number per state, .* got shape \(2, 3, 1\)"),
    ({"ended": lambda state: state[:, 0] > 2}, r"ended: expected one number per state, .* got shape \(2, 1\)"),
    ({"max_steps": 0}, "max_steps: expected a whole number >= 1, got 0")])
def test_bad_input_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        oven(**options)
    with pytest.raises(ValueError, match="state_names: expected a list of names, got 'warmth'"):
        own_environment("oven", "warmth", Discrete(2), reward=reward, max_steps=5)


def test_an_agents_name_is_refused_with_the_way_to_its_number():
    made = Simulator(Heats(), oven(), logged(oven())[0], starts="logged")
    for ask in (lambda: made.env("oven-b"), lambda: made.vector_env([0, "oven-b"]), lambda: made.counterfactual("oven-b", [1])):
        with pytest.raises(ValueError, match=r"agent: expected a number, got 'oven-b'; with .*items\(\)}\['oven-b'\]"):
            ask()
