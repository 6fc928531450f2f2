"""What a planner maximises: functions of whole predicted trajectories.

A score takes states (..., H + 1, D), the first one real, and actions (..., H, A), and gives one number per trajectory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lowrank_rl.rl.contracts import Environment
from lowrank_rl.rl.envs import cartpole

Score = Callable[[Tensor, Tensor], Tensor]


def total_reward(environment: Environment) -> Score:
    """The sum of rewards until the predicted end; the step that ends the episode counts nothing.

    So a CartPole plan that falls on its last step scores below one that stands; MountainCar's goal step is worth 0 anyway.
    """
    def score(states: Tensor, actions: Tensor) -> Tensor:
        next_state = states[..., 1:, :]
        over = environment.ended(next_state).cummax(-1).values
        return torch.where(over, 0, environment.reward(states[..., :-1, :], actions, next_state)).sum(-1)
    return score


def cartpole_margin(states: Tensor, actions: Tensor) -> Tensor:
    """CartPole's steps before the predicted end, each worth up to a tenth less the nearer it comes to a limit.

        sum_t alive_t (1 - 0.05 ((position / limit)^2 + (angle / limit)^2))

    Plain rewards tie among all plans that stand, so the cart drifts to where no data are and the simulators are wrong.
    """
    next_state = states[..., 1:, :]
    over = cartpole.ended(next_state).cummax(-1).values
    near = (next_state[..., 0] / cartpole.FAR).square() + (next_state[..., 2] / cartpole.TILT).square()
    return torch.where(over, 0, 1 - 0.05 * near).sum(-1)


def upright(environment: Environment, weight: float) -> Score:
    """Rewards less a weight on how far the body is turned, sum_t reward_t - weight (1 - cos pitch_t).

    A cheetah that falls forward moves fast for a second and then lies on its back, farther ahead than plans look.
    The environment needs a state called pitch, in radians.

    Raises:
        ValueError: it has none.
    """
    if "pitch" not in environment.state_names:
        raise ValueError(f"upright: expected a state called pitch, got {environment.state_names}; use total_reward")
    reward, pitch = total_reward(environment), environment.state_names.index("pitch")

    def score(states: Tensor, actions: Tensor) -> Tensor:
        return reward(states, actions) - weight * (1 - states[..., 1:, pitch].cos()).sum(-1)
    return score


def mountaincar_bonus(states: Tensor, actions: Tensor) -> Tensor:
    """The score that PerSim's authors plan MountainCar with: -1 per step short of the goal, + 0.5 max_t position.

    The bonus is not in the paper but in its code; without it plans that do not reach the goal within the horizon all
    tie. Predicted trajectories go on through the goal.
    """
    position = states[..., 0]
    return (position[..., 1:] >= 0.5).to(states.dtype).sum(-1) - actions.shape[-2] + 0.5 * position.amax(-1)
