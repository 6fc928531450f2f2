"""Train one policy in the true environment with Stable-Baselines3 (the extra ``policies``), in pieces.

Each piece of steps begins a new episode with random streams named by the steps done, and ends with a checkpoint and an
evaluation; so a killed training goes on where it was and ends with the same policy.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.noise import NormalActionNoise
from torch import Tensor

from lowrank_rl import rng
from lowrank_rl.rl.behaviour.trained import DQN_EXPLORES, Network, Trained, agent_of
from lowrank_rl.rl.contracts import Environment
from lowrank_rl.rl.data import collect
from lowrank_rl.tensor import io

KIND = "unfinished policy"
FEW = 10     # episodes that must reach the level before all are run


@dataclass(frozen=True)
class Recipe:
    """How a policy is trained, and when it is good enough."""
    algorithm: str                   # "DQN" or "TD3"
    level: float                     # the return at which training for data ends
    test_level: float                # the same for the test policy
    piece: int                       # steps between evaluations
    limit: int                       # steps after which training ends at any level
    episodes: int                    # of an evaluation
    options: dict[str, Any] = field(default_factory=dict)      # Stable-Baselines3's
    explore: tuple[float, float, int] = (1.0, 0.05, 10_000)    # DQN: share of random steps, from, to, over so many steps


# Levels: PerSim, appendix E. Networks: 2 x 256 as in its code; the other options by Stable-Baselines3's model zoo, but for
# the older, smaller batch of TD3. CartPole's pieces: of 2,000 and 5,000 steps those whose pure data come nearer Table 5's.
RECIPES = {
    "mountaincar": Recipe("DQN", -200, -150, 5_000, 500_000, 500, explore=(1.0, 0.07, 24_000), options={
        "learning_rate": 4e-3, "batch_size": 128, "buffer_size": 50_000, "learning_starts": 1_000, "gamma": 0.98,
        "target_update_interval": 600, "train_freq": 16, "gradient_steps": 8}),
    "cartpole": Recipe("DQN", 120, 150, 5_000, 300_000, 500, explore=(1.0, 0.04, 8_000), options={
        "learning_rate": 2.3e-3, "batch_size": 64, "buffer_size": 100_000, "learning_starts": 1_000, "gamma": 0.99,
        "target_update_interval": 10, "train_freq": 256, "gradient_steps": 128}),
    "halfcheetah": Recipe("TD3", 3_000, 4_000, 10_000, 400_000, 100, options={
        "learning_rate": 1e-3, "batch_size": 100, "buffer_size": 1_000_000, "learning_starts": 10_000, "gamma": 0.99,
        "train_freq": 1, "gradient_steps": 1}),
}


def train(environment: Environment, purpose: str, recipe: Recipe, *, seed: int, checkpoint: Path,
          say: Callable[[str, float], None]) -> Network:
    """The first policy whose mean return over ``recipe.episodes`` episodes reaches the level; at the limit, the last one, and
    its card says what it reached.

    Args:
        purpose: "1", "2", ... the policy-training agent, or "test".
        checkpoint: kept after each piece; the caller removes it.
        say: told what is going on and the share of the limit.

    Raises:
        ValueError: a corrupt or foreign checkpoint.
    """
    agent = agent_of(environment, purpose)
    level = recipe.test_level if purpose == "test" else recipe.level
    labels = (environment.name, "policy", purpose)
    model = _model(recipe, _env(environment, agent), rng.integer(seed, *labels) % 2**32)
    if checkpoint.exists():
        _restore(model, checkpoint, environment, purpose, seed)
    while True:
        network = Network(*_layers(model), card={})
        found = evaluate(environment, network, agent, FEW, seed, recipe) if model.num_timesteps else np.array([-np.inf])
        last = model.num_timesteps >= recipe.limit
        if found.mean() >= level or last:
            found = evaluate(environment, network, agent, recipe.episodes, seed, recipe)
        if found.mean() >= level or last:
            card = {"environment": environment.name, "purpose": purpose, "agent": list(agent), "algorithm": recipe.algorithm,
                    "level": level, "steps": model.num_timesteps, "mean_return": float(found.mean()),
                    "sd_return": float(found.std()), "episodes": len(found), "seed": seed,
                    "versions": {name: version(name) for name in ("stable_baselines3", "torch", "gymnasium", "mujoco")}}
            return Network(network.weights, network.biases, card)
        say(f"step {model.num_timesteps}, return {found.mean():.4g} (to reach: {level:g})", model.num_timesteps / recipe.limit)
        model.set_random_seed(rng.integer(seed, *labels, model.num_timesteps) % 2**32)
        model._last_obs = None             # a piece begins a new episode, as it does after a kill
        model.learn(recipe.piece, reset_num_timesteps=model.num_timesteps == 0)
        _keep(model, checkpoint, environment, purpose, seed)


def evaluate(environment: Environment, network: Network, agent: tuple[float, ...], episodes: int, seed: int,
             recipe: Recipe) -> np.ndarray:
    """Returns of the policy as it will act, (episodes,)."""
    policy = Trained([network], torch.zeros(1, dtype=torch.int64), environment.actions,
                     DQN_EXPLORES if recipe.algorithm == "DQN" else 0.0)
    rows = torch.zeros(episodes, dtype=torch.int64)
    covariates = torch.tensor([agent], dtype=torch.float64).expand(episodes, -1)
    return collect(environment, covariates, rows, policy, seed=seed, what="policy-test").returns


def _env(environment: Environment, agent: tuple[float, ...]) -> gymnasium.Env:
    made = gymnasium.make(environment.gym_id, **dict(zip(environment.covariate_names, agent, strict=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # of infinite bounds, which lose nothing
        return gymnasium.wrappers.DtypeObservation(made, np.float32)


def _model(recipe: Recipe, env: gymnasium.Env, seed: int) -> DQN | TD3:
    """Its random streams begin anew; Stable-Baselines3 has only the global ones."""
    options = {"policy": "MlpPolicy", "env": env, "device": "cpu", "seed": seed, "policy_kwargs": {"net_arch": [256, 256]},
               **recipe.options}
    if recipe.algorithm == "TD3":
        size = env.action_space.shape[0]
        return TD3(**options, action_noise=NormalActionNoise(np.zeros(size), np.full(size, 0.1)))
    model = DQN(**options)
    high, low, steps = recipe.explore
    # by steps done; Stable-Baselines3's own goes by the share of this piece
    model.exploration_schedule = lambda _: low + (high - low) * max(0.0, 1 - model.num_timesteps / steps)
    return model


def _layers(model: DQN | TD3) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Weights (inputs, outputs) and biases of the network that acts."""
    stack = model.actor.mu if isinstance(model, TD3) else model.q_net.q_net
    linear = [layer for layer in stack if isinstance(layer, torch.nn.Linear)]
    return tuple(x.weight.detach().T.clone() for x in linear), tuple(x.bias.detach().clone() for x in linear)


def _optimizers(model: DQN | TD3) -> dict[str, torch.optim.Optimizer]:
    if isinstance(model, TD3):
        return {"actor": model.actor.optimizer, "critic": model.critic.optimizer}
    return {"q": model.policy.optimizer}


_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def _keep(model: DQN | TD3, path: Path, environment: Environment, purpose: str, seed: int) -> None:
    tensors = {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    for name, optimizer in _optimizers(model).items():
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    buffer = model.replay_buffer
    tensors |= {f"buffer.{name}": torch.from_numpy(getattr(buffer, name)[:buffer.size()]) for name in _BUFFER}
    header = {"environment": environment.name, "purpose": purpose, "seed": seed, "steps": model.num_timesteps,
              "updates": model._n_updates, "calls": getattr(model, "_n_calls", 0), "episodes": model._episode_num,
              "position": buffer.pos, "full": buffer.full}
    io.save(path, KIND, tensors, header)


def _restore(model: DQN | TD3, path: Path, environment: Environment, purpose: str, seed: int) -> None:
    tensors, header = io.load(path, KIND)
    began = header.get("seed", seed)     # the first checkpoints did not say
    if (header["environment"], header["purpose"], began) != (environment.name, purpose, seed):
        raise ValueError(f"{path}: expected the training of {environment.name} {purpose} with seed {seed}, got that of "
                         f"{header['environment']} {header['purpose']} with seed {began}; remove it")
    part = {name: {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
            for name in ("policy", "buffer", *_optimizers(model))}
    model.policy.load_state_dict(part["policy"])
    for name, optimizer in _optimizers(model).items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part[name].items():
            number, what = key.split(".", 1)
            state.setdefault(int(number), {})[what] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    buffer = model.replay_buffer
    for name in _BUFFER:
        getattr(buffer, name)[:len(part["buffer"][name])] = part["buffer"][name].numpy()
    buffer.pos, buffer.full = header["position"], header["full"]
    model.num_timesteps, model._n_updates, model._episode_num = header["steps"], header["updates"], header["episodes"]
    if isinstance(model, DQN):
        model._n_calls = header["calls"]
        model.exploration_rate = model.exploration_schedule(0)     # of the next step; otherwise only the one after it explores
