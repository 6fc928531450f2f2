"""Trained policies: the networks that log the data and that test the simulators (PerSim, section 5.1 and appendix E).

A data set's policy is, for each agent, the one trained on the nearest of a few policy-training agents. The test policy
was trained on the default agent and acts on everybody.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Box, Discrete, Environment, EpisodeView
from lowrank_rl.tensor import io

KIND = "policy"
TEST = "test"                # the purpose of the policy that tests the simulators; the others are named by their number
DQN_EXPLORES = 0.01          # share of random actions of a loaded DQN policy (reference code)
SHIPPED = Path(str(resources.files("lowrank_rl.rl.behaviour") / "weights"))


@dataclass(frozen=True)
class Network:
    """A policy's layers and the card that says where it comes from.

    For discrete actions the outputs are their values; for continuous ones, through tanh, the action.
    """
    weights: tuple[Tensor, ...]      # (inputs, outputs) each, float32
    biases: tuple[Tensor, ...]       # (outputs,) each
    card: dict                       # environment, purpose, agent, algorithm, steps, level, mean_return, seed, ...

    def __call__(self, state: Tensor) -> Tensor:
        """(B, D) -> (B, outputs), float32"""
        # summed in float64, since the last bits of a matrix product depend on how many rows it has
        out = state.double()
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            out = torch.addmm(bias.double(), out.relu() if number else out, weight.double())
        return out.float()


class Trained:
    """A Policy: each agent's network chooses; with chance ``explore`` the action is uniform instead.

    Args:
        networks: K of them. which: (N,) the network of each agent number.
    """

    past = 0

    def __init__(self, networks: Sequence[Network], which: Tensor, actions: Discrete | Box, explore: float = 0.0) -> None:
        check.within("which", which, len(networks))
        self.networks, self.which, self.actions, self.explore = networks, which, actions, explore

    def reset(self, agent: Tensor) -> None:
        check.within("agent", agent, len(self.which))

    @torch.no_grad()
    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        which = self.which[view.agent]
        discrete = isinstance(self.actions, Discrete)
        action = torch.zeros((len(which), self.actions.size), dtype=torch.int64 if discrete else torch.float64)
        for number in which.unique().tolist():
            rows = which == number
            out = self.networks[number](view.state[rows])
            action[rows] = out.argmax(1, keepdim=True) if discrete else self._inside(out.double())
        if self.explore:
            draws = torch.stack([torch.rand((), generator=generator) for generator in generators])
            other = torch.stack([self.actions.sample((), generator=generator) for generator in generators])
            action = torch.where((draws < self.explore)[:, None], other, action)
        return action

    def _inside(self, out: Tensor) -> Tensor:
        return self.actions.low + (self.actions.high - self.actions.low) * (1 + out.tanh()) / 2


def nearest(environment: Environment, covariates: Tensor) -> Tensor:
    """The policy-training agent closest to each agent, (N, E) -> (N,).

    The paper says "the closest parameter value". Distances here are Euclidean with each covariate divided by its range
    of Table 4; otherwise CartPole's force (16 N wide) would hide its length (0.7 m). Of equally close ones, the first.
    """
    low, high, training = (torch.tensor(x, dtype=torch.float64) for x in (
        environment.covariate_low, environment.covariate_high, environment.policy_training_agents))
    distance = ((covariates.double()[:, None] - training) / (high - low)).norm(dim=-1)
    return distance.round(decimals=9).argmin(1)      # HalfCheetah's middle agent is as far from all four


def purposes(environment: Environment) -> list[str]:
    """What its policies are for: each policy-training agent's number, and the test."""
    return [*(str(number) for number in range(1, len(environment.policy_training_agents) + 1)), TEST]


def data_policy(environment: Environment, covariates: Tensor, share: float = 0.0, folder: Path = SHIPPED) -> Trained:
    """What logs ``pure`` data, and ``pure-eps``: with chance ``share`` uniform, otherwise pure.

    Raises:
        ValueError: policies missing, corrupt, of another version or for another environment.
    """
    networks = [load(folder, environment, purpose) for purpose in purposes(environment) if purpose != TEST]
    own = _explores(environment)
    return Trained(networks, nearest(environment, covariates), environment.actions, 1 - (1 - share) * (1 - own))


def tester(environment: Environment, agents: int, folder: Path = SHIPPED) -> Trained:  # noqa: PT028 (no test of ours)
    """What acts while simulators are tested, the same on all agents. Raises ValueError as ``data_policy``."""
    return Trained([load(folder, environment, TEST)], torch.zeros(agents, dtype=torch.int64), environment.actions,
                   _explores(environment))


def _explores(environment: Environment) -> float:
    return DQN_EXPLORES if isinstance(environment.actions, Discrete) else 0.0


@cache
def fingerprint(environment: Environment, test: bool, folder: Path = SHIPPED) -> str:
    """Changes with any weight of the test policy, or of any policy that logs this environment's data.

    Raises:
        ValueError: as ``load``.
    """
    digest = hashlib.blake2b(digest_size=4)
    for purpose in purposes(environment):
        if (purpose == TEST) == test:
            network = load(folder, environment, purpose)
            for tensor in network.weights + network.biases:     # not the file, whose header comes in any order
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def cards(environment: Environment, folder: Path = SHIPPED) -> str:
    """A table of the policies in a folder, in Markdown."""
    lines = ["| policy | trained on | algorithm | steps | mean return | sd | episodes | level | seed |", "|" + "---|" * 9]
    for purpose in purposes(environment):
        card = load(folder, environment, purpose).card
        agent = ", ".join(f"{name} {value:g}" for name, value in zip(environment.covariate_names, card["agent"], strict=True))
        lines.append(f"| {environment.name} {purpose} | {agent} | {card['algorithm']} | {card['steps']} | "
                     f"{card['mean_return']:.1f} | {card['sd_return']:.1f} | {card['episodes']} | {card['level']:g} | "
                     f"{card['seed']} |")
    return "\n".join(lines)


def path_of(folder: Path, environment: Environment, purpose: str) -> Path:
    return folder / f"{environment.name}-{purpose}.safetensors"


def agent_of(environment: Environment, purpose: str) -> tuple[float, ...]:
    """The covariates of the agent that a policy is trained on."""
    return environment.default_agent if purpose == TEST else environment.policy_training_agents[int(purpose) - 1]


def save(folder: Path, environment: Environment, purpose: str, network: Network) -> None:
    """Raises ValueError where the folder cannot be written."""
    tensors = {f"weight{i}": weight for i, weight in enumerate(network.weights)}
    tensors |= {f"bias{i}": bias for i, bias in enumerate(network.biases)}
    io.save(path_of(folder, environment, purpose), KIND, tensors, {"layers": len(network.weights), "card": network.card})


def load(folder: Path, environment: Environment, purpose: str) -> Network:
    """A policy for this environment.

    Raises:
        ValueError: missing, corrupt, of another version, or trained for another environment or agent.
    """
    path = path_of(folder, environment, purpose)
    tensors, header = io.load(path, KIND)
    layers, card = range(header["layers"]), header["card"]
    weights, biases = (tuple(tensors[f"{name}{i}"] for i in layers) for name in ("weight", "bias"))
    outputs = environment.actions.n if isinstance(environment.actions, Discrete) else environment.actions.size
    wanted = (environment.name, purpose, list(agent_of(environment, purpose)), len(environment.state_names), outputs)
    got = (card["environment"], card["purpose"], list(card["agent"]), len(weights[0]), len(biases[-1]))
    if got != wanted:
        raise ValueError(f"{path}: expected a policy for {wanted} (environment, purpose, agent, inputs, outputs), got {got}; "
                         f"train it anew: python -m lowrank_rl.rl.bench.policies --env {environment.name}")
    return Network(weights, biases, card)
