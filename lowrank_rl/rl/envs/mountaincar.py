"""MountainCar with its own gravity per agent (PerSim, section 5.1 and Table 4; Moore 1990).

    v' = clip(v + (a - 1) force - gravity cos(3 x)),   x' = clip(x + v'),   and v' = 0 at the left wall

A state is (position, velocity); actions 0, 1, 2 push left, not at all, right. Positions are in the task's own length
unit, velocities in that unit per step, force and gravity in that unit per step squared.
"""

import numpy as np
import torch
from torch import Tensor

from lowrank_rl.rl.contracts import Discrete, Environment
from lowrank_rl.rl.envs import drawing
from lowrank_rl.rl.envs.gym_env import HeteroEnv, PureSimulator

FORCE = 0.001              # of the motor, length per step squared
LEFT, RIGHT = -1.2, 0.6    # position
TOP_SPEED = 0.07           # length per step
GOAL = 0.5                 # position
START = (-0.6, -0.4)       # position at reset, uniform; at rest
BOUNDS = (LEFT, -TOP_SPEED), (RIGHT, TOP_SPEED)    # of the state


def step(covariates: Tensor, state: Tensor, action: Tensor) -> Tensor:
    """The next state, float64. covariates (B, 1) gravity, state (B, 2), action (B, 1) in {0, 1, 2} -> (B, 2)"""
    position, velocity = state.double().unbind(-1)
    push = (action[..., 0].double() - 1) * FORCE
    slope = torch.cos(3 * position)
    velocity = (velocity + push - covariates[..., 0].double() * slope).clamp(-TOP_SPEED, TOP_SPEED)
    position = (position + velocity).clamp(LEFT, RIGHT)
    at_wall = (position == LEFT) & (velocity < 0)
    return torch.stack([position, velocity.masked_fill(at_wall, 0)], dim=-1)


def reward(state: Tensor, action: Tensor, next_state: Tensor) -> Tensor:
    """-1 per step, 0 for the step that reaches the goal, NaN for a NaN state. (..., 2), (..., 1), (..., 2) -> (...)

    Differs: appendix E prints +1 at the goal, which the paper's own Table 5 rules out (lengths and returns differ by
    the fraction of successes).
    """
    position, velocity = next_state.unbind(-1)
    return torch.where((position + velocity).isnan(), torch.nan, ended(next_state).to(next_state.dtype) - 1)


def ended(state: Tensor) -> Tensor:
    """At the goal, and not moving back. (..., 2) -> (...)"""
    return (state[..., 0] >= GOAL) & (state[..., 1] >= 0)


def reset(count: int, *, generator: torch.Generator) -> Tensor:
    """Cars at rest near the valley's floor, (count, 2)."""
    unit = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    position = START[0] + (START[1] - START[0]) * unit
    return torch.stack([position, torch.zeros_like(position)], dim=-1)


ENVIRONMENT = Environment(
    name="mountaincar",
    gym_id="lowrank_rl/HeteroMountainCar-v0",
    state_names=("position", "velocity"),
    actions=Discrete(3),
    covariate_names=("gravity",),
    covariate_low=(0.0001,),
    covariate_high=(0.0035,),
    test_agents=((0.0001,), (0.0005,), (0.001,), (0.0025,), (0.0035,)),
    policy_training_agents=((0.0003,), (0.00075,), (0.00175,), (0.0025,), (0.003,)),
    default_agent=(0.0025,),
    max_steps=500,
    reset=reset,
    step=step,
    reward=reward,
    ended=ended,
)


def make(render_mode: str | None = None, **covariates: float) -> HeteroEnv:
    """The Gymnasium environment of the agent with this ``gravity``."""
    return HeteroEnv(ENVIRONMENT, PureSimulator(ENVIRONMENT, draw), BOUNDS, 30, covariates, render_mode)


def draw(covariates: Tensor, state: Tensor) -> np.ndarray:
    """The valley, the goal's flag and the car. covariates (1,), state (2,) -> (400, 600, 3)"""
    def place(position: float | np.ndarray) -> tuple[float | np.ndarray, float | np.ndarray]:
        """Column and row of the car's middle."""
        return (position - LEFT) / (RIGHT - LEFT) * drawing.WIDTH, 210 - 130 * np.sin(3 * position)

    image = drawing.blank()
    ground = place(np.linspace(LEFT, RIGHT, drawing.WIDTH))[1] + 12
    drawing.fill_below(image, ground, drawing.GROUND)
    x, y = place(GOAL)
    drawing.stroke(image, (x, y + 12), (x, y - 50), 3, drawing.RED)
    car = place(float(state[0]))
    drawing.stroke(image, car, car, 24, drawing.BLUE)
    return image
