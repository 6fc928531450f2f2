"""Planning scores of trajectories whose worth can be counted by hand."""

import math
from dataclasses import replace

import pytest
import torch

from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.score import cartpole_margin, mountaincar_bonus, total_reward, upright


def poles(*angles):
    """A cart in the middle with these pole angles (rad), the first one real: (H + 1, 4)."""
    return torch.tensor([[0, 0, angle, 0] for angle in angles], dtype=torch.float64)


def cars(*positions, velocity=0.01):
    return torch.tensor([[x, velocity] for x in positions], dtype=torch.float64)


def still(states):
    return torch.ones((*states.shape[:-2], states.shape[-2] - 1, 1), dtype=torch.int64)


@pytest.mark.parametrize(("angles", "worth"), [
    ((0, 0, 0, 0, 0), 4),
    ((0, 0, 0, 0, 0.3), 3),              # falls with the last step: below one that stands
    ((0, 0.3, 0, 0, 0), 0),              # nothing counts after the fall, though the model stands up again
    ((0, 0, -0.3, -1, 0), 1),
    ((0.3, 0, 0, 0, 0), 4),              # the first state is a fact, not a prediction
])
def test_cartpole_counts_the_steps_before_the_fall(angles, worth):
    states = poles(*angles)
    assert float(total_reward(cartpole.ENVIRONMENT)(states, still(states))) == worth


def test_the_cartpole_margin_breaks_ties_and_nothing_else():
    limit = 12 * math.pi / 180
    middle, leaning, fallen = poles(0, 0, 0, 0), poles(0, 0, limit / 2, 0), poles(0, 0, 0, 0.3)
    far = middle.clone()
    far[1:, 0] = 1.2                                                    # half way to the end of the track, three times
    worth = [float(cartpole_margin(states, still(states))) for states in (middle, leaning, far, fallen)]
    assert worth == pytest.approx([3, 3 - 0.05 / 4, 3 - 3 * 0.05 / 4, 2])
    assert cartpole_margin(poles(0, 0, 0.3, math.nan), still(middle)) == 1
    assert cartpole_margin(poles(0, 0, math.nan, 0.3), still(middle)).isnan()


def test_a_turned_body_costs_its_weight():
    """A right angle once, upside down twice, whole turns nothing; the first state is a fact."""
    body = replace(mountaincar.ENVIRONMENT, state_names=("speed", "pitch"), reward=lambda s, a, n: n[..., 0],
                   ended=lambda s: torch.zeros_like(s[..., 0], dtype=torch.bool))
    states = torch.tensor([[0, math.pi], [3, 0], [3, math.pi / 2], [3, -math.pi], [3, 6 * math.pi]], dtype=torch.float64)
    assert float(upright(body, 0.5)(states, still(states))) == pytest.approx(12 - 0.5 * (1 + 2))
    with pytest.raises(ValueError, match="upright: expected a state called pitch"):
        upright(mountaincar.ENVIRONMENT, 1.0)


@pytest.mark.parametrize(("positions", "velocity", "worth"), [
    ((-0.5, -0.4, -0.3, -0.4), 0.01, -3),
    ((-0.5, 0.4, 0.5, 0.3), 0.01, -1),     # the goal step is worth 0 and ends it
    ((-0.5, 0.4, 0.5, 0.3), -0.01, -3),    # moving back through the goal is no arrival
])
def test_mountaincar_counts_the_steps_to_the_goal(positions, velocity, worth):
    states = cars(*positions, velocity=velocity)
    assert float(total_reward(mountaincar.ENVIRONMENT)(states, still(states))) == worth


def test_a_prediction_counts_until_its_end_only():
    lost = math.nan
    states = torch.stack([poles(0, 0, 0.3, lost), poles(0, 0, lost, 0.3), poles(0, 0, 0, 0)])
    value = total_reward(cartpole.ENVIRONMENT)(states, still(states))
    assert value[0] == 1                   # the model went wrong after the fall, which is no matter
    assert value[1].isnan()                # before it, it is
    assert value[2] == 3


@pytest.mark.mujoco
def test_halfcheetah_is_paid_for_speed_and_charged_for_torque():
    halfcheetah = pytest.importorskip("lowrank_rl.rl.envs.halfcheetah")
    states, actions = torch.zeros(3, 18), torch.zeros(2, 6)
    states[:, 0] = torch.tensor([9.0, 2.0, -0.5])
    actions[0, :2] = torch.tensor([1.0, -0.5])
    torch.testing.assert_close(total_reward(halfcheetah.ENVIRONMENT)(states, actions), torch.tensor(1.5 - 0.1 * 1.25))


@pytest.mark.parametrize(("positions", "worth"), [
    ((-0.5, -0.3, 0.55, 0.6), -3 + 2 + 0.5 * 0.6),     # at x >= 0.5 after 2 of 3 steps
    ((-0.5, -0.3, 0.5, 0.4), -3 + 1 + 0.5 * 0.5),      # predictions run on through the goal, and back
    ((-0.2, -0.3, -0.4, -0.5), -3 + 0.5 * -0.2),       # the highest position may be the first
    ((0.6, 0.4, 0.4, 0.4), -3 + 0.5 * 0.6),            # but the first earns no step
])
def test_mountaincar_bonus_by_hand(positions, worth):
    states = cars(*positions, velocity=-0.01)
    assert float(mountaincar_bonus(states, still(states))) == pytest.approx(worth, abs=1e-12)


def test_mountaincar_bonus_keeps_nan():
    states = cars(-0.5, math.nan, 0.6)
    assert mountaincar_bonus(states, still(states)).isnan()


@pytest.mark.parametrize("score", [mountaincar_bonus, total_reward(mountaincar.ENVIRONMENT)])
def test_leading_axes_are_scored_one_by_one(score):
    states = torch.rand((2, 3, 4, 6, 2), generator=torch.Generator().manual_seed(0))
    value = score(states, still(states))
    assert value.shape == (2, 3, 4)
    torch.testing.assert_close(value[1, 2, 3], score(states[1, 2, 3], still(states[1, 2, 3])))
