"""What true-model planning does with HalfCheetah: the returns of 36344 to 66675 in the paper's Table 11 are somersaults.

    python benchmarks/halfcheetah_tumbling.py [--agents 2 3 5] [--steps 300] [--planner paper]

Plans with the true physics, prints how fast the body moves and how often it has turned over, appends to nothing and writes
results/halfcheetah_tumbling.csv and a strip of rendered frames, docs/images/halfcheetah-tumbling.png (rendering needs OpenGL:
set MUJOCO_GL=egl where there is no screen). A planner's decision takes 36,000 simulated steps (``paper``) or 7,900 (``icem``).
"""

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tables import show, write

from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.envs.halfcheetah import ENVIRONMENT, PITCH, SECONDS, MujocoSimulator
from lowrank_rl.rl.models.true_env import TrueEnv
from lowrank_rl.rl.plan import CEMConfig, ICEMConfig, cem, icem
from lowrank_rl.rl.policies.mpc import MPC
from lowrank_rl.rl.score import total_reward

PLANNERS = {"paper": partial(cem, config=CEMConfig()), "icem": partial(icem, config=ICEMConfig())}
SPEED = 0      # of the state
FRAMES = 10
EVERY = 2                # steps between frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, nargs="+", default=[2, 3, 5], choices=range(1, 6))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--planner", default="paper", choices=PLANNERS)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    covariates = data.agents(ENVIRONMENT, 5, seed=0)
    rows, strips = [], []
    for agent in options.agents:
        policy = MPC(TrueEnv(ENVIRONMENT, covariates), partial(PLANNERS[options.planner], actions=ENVIRONMENT.actions),
                     total_reward(ENVIRONMENT))
        started = time.monotonic()
        _, episode = evaluate.returns(ENVIRONMENT, policy, covariates, [agent - 1], episodes=1, seed=0, max_steps=options.steps,
                                      progress=lambda t, limit: print(f"step {t}/{limit}", file=sys.stderr, flush=True))
        state, total = episode.next_state, np.cumsum(episode.reward)
        for step in range(100, options.steps + 1, 100):
            rows.append({"agent": agent, "planner": options.planner, "steps": step, "return": f"{total[step - 1]:.0f}",
                         "speed, m/s, last 100 steps": f"{state[step - 100:step, SPEED].mean():.1f}",
                         "turns of the body": f"{state[step - 1, PITCH] / (2 * math.pi):.1f}",
                         "seconds": f"{time.monotonic() - started:.0f}"})
            show(rows[-1])
        strips.append(frames(covariates[[agent - 1]], state[-FRAMES * EVERY::EVERY]))
    write(Path("results/halfcheetah_tumbling.csv"), rows)
    draw(options.agents, strips)


def frames(covariates: torch.Tensor, states: np.ndarray) -> np.ndarray:
    """Pictures of states side by side."""
    simulator, pictures = MujocoSimulator(), []
    for state in states:
        simulator.start(covariates, torch.from_numpy(state)[None])
        pictures.append(simulator.image()[:, 40:440])
    return np.concatenate(pictures, axis=1)


def draw(agents: list[int], strips: list[np.ndarray]) -> None:
    import matplotlib  # here, because it sets the backend
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    figure, axes = plt.subplots(len(strips), 1, figsize=(14, 1.9 * len(strips)), squeeze=False)
    for axis, agent, strip in zip(axes[:, 0], agents, strips, strict=True):
        axis.imshow(strip)
        axis.set_axis_off()
        mass, damping = ENVIRONMENT.test_agents[agent - 1]
        axis.set_title(f"agent {agent}: mass {mass:g}, damping {damping:g}; every {EVERY * SECONDS:g} s", loc="left")
    figure.tight_layout()
    figure.savefig("docs/images/halfcheetah-tumbling.png", dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    main()
