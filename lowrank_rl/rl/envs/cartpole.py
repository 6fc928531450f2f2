"""CartPole with its own push and pole length per agent (PerSim, section 5.1 and Table 4; Barto and others 1983).

    u        = (+-force + m l theta_dot^2 sin theta) / (M + m)
    theta_dd = (g sin theta - u cos theta) / (l (4/3 - m cos^2 theta / (M + m)))
    x_dd     = u - m l theta_dd cos theta / (M + m)

by explicit Euler steps. A state is (x in m, x_dot in m/s, theta in rad, theta_dot in rad/s); actions 0, 1 push left
and right.
"""

import math

import numpy as np
import torch
from torch import Tensor

from lowrank_rl.rl.contracts import Discrete, Environment
from lowrank_rl.rl.envs import drawing
from lowrank_rl.rl.envs.gym_env import HeteroEnv, PureSimulator

GRAVITY = 9.8                       # m/s^2
CART_MASS, POLE_MASS = 1.0, 0.1     # kg
SECONDS = 0.02                      # per step
FAR = 2.4                           # m from the middle at which the episode ends
TILT = 12 * 2 * math.pi / 360       # rad from upright at which the episode ends
START = 0.05                        # each component of the first state is uniform in +-START
# Of the state; the one that ends the episode is inside, too
BOUNDS = (-2 * FAR, -math.inf, -2 * TILT, -math.inf), (2 * FAR, math.inf, 2 * TILT, math.inf)


def step(covariates: Tensor, state: Tensor, action: Tensor) -> Tensor:
    """The next state, float64. covariates (B, 2), state (B, 4), action (B, 1) in {0, 1} -> (B, 4)

    The covariates are the push in N and HALF the pole's length in m.
    """
    force, length = covariates.double().unbind(-1)
    x, x_dot, theta, theta_dot = state.double().unbind(-1)
    total, moment = CART_MASS + POLE_MASS, POLE_MASS * length
    sin, cos = theta.sin(), theta.cos()
    u = (torch.where(action[..., 0] == 1, force, -force) + moment * theta_dot**2 * sin) / total
    theta_dd = (GRAVITY * sin - u * cos) / (length * (4 / 3 - POLE_MASS * cos**2 / total))
    x_dd = u - moment * theta_dd * cos / total
    return torch.stack([x + SECONDS * x_dot, x_dot + SECONDS * x_dd,
                        theta + SECONDS * theta_dot, theta_dot + SECONDS * theta_dd], dim=-1)


def reward(state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """+1 for every step, that which ends the episode too; NaN for a NaN state. (..., 4), (..., 1), (..., 4) -> (...)"""
    x, x_dot, theta, theta_dot = next_state.unbind(-1)
    return torch.where((x + x_dot + theta + theta_dot).isnan(), torch.nan, torch.ones_like(x))


def ended(state: Tensor) -> Tensor:
    """The cart is too far out or the pole too far down. (..., 4) -> (...)"""
    return (state[..., 0].abs() > FAR) | (state[..., 2].abs() > TILT)


def reset(count: int, *, generator: torch.Generator) -> Tensor:
    """Nearly upright and at rest, (count, 4)."""
    unit = torch.rand((count, 4), generator=generator, device=generator.device, dtype=torch.float64)
    return START * (2 * unit - 1)


ENVIRONMENT = Environment(
    name="cartpole",
    gym_id="lowrank_rl/HeteroCartPole-v0",
    state_names=("x", "x_dot", "theta", "theta_dot"),
    actions=Discrete(2),
    covariate_names=("force", "length"),
    covariate_low=(2.0, 0.15),
    covariate_high=(18.0, 0.85),
    test_agents=((2.0, 0.5), (10.0, 0.5), (18.0, 0.5), (10.0, 0.85), (10.0, 0.15)),
    policy_training_agents=((6.0, 0.5), (14.0, 0.5), (10.0, 0.5), (10.0, 0.675), (10.0, 0.325)),
    default_agent=(10.0, 0.5),
    max_steps=200,
    reset=reset,
    step=step,
    reward=reward,
    ended=ended,
)


def make(render_mode: str | None = None, **covariates: float) -> HeteroEnv:
    """The Gymnasium environment of the agent with this ``force`` and ``length``."""
    return HeteroEnv(ENVIRONMENT, PureSimulator(ENVIRONMENT, draw), BOUNDS, round(1 / SECONDS), covariates, render_mode)


def draw(covariates: Tensor, state: Tensor) -> np.ndarray:
    """The track, the cart and the pole in its own length. covariates (2,), state (4,) -> (400, 600, 3)"""
    pixels = drawing.WIDTH / (2 * FAR)     # per metre
    x, _, theta, _ = state.tolist()
    middle, pole = drawing.WIDTH / 2 + pixels * x, 2 * float(covariates[1]) * pixels
    image = drawing.blank()
    drawing.fill_below(image, 320, drawing.GROUND)
    drawing.stroke(image, (middle - 25, 305), (middle + 25, 305), 30, drawing.DARK)
    tip = middle + pole * math.sin(theta), 300 - pole * math.cos(theta)
    drawing.stroke(image, (middle, 300), tip, 8, drawing.RED)
    return image
