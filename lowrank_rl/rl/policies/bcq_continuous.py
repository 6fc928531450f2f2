"""Batch-constrained Q-learning of continuous actions (Fujimoto, Meger & Precup, ICML 2019): only actions like the logged ones.

    a_i = G(s, z_i) + phi tanh xi(s, G(s, z_i)),    z_i ~ N(0, 1) clipped to +-0.5,    pi(s) = the a_i of highest Q_1(s, a_i)
    target = r + gamma max_i [lambda min_j Q'_j(s', a'_i) + (1 - lambda) max_j Q'_j(s', a'_i)]

with G the decoder of a variational autoencoder of logged actions, xi a small perturbation that climbs Q_1, and a'_i by the
slowly following copy of xi. The losses are, one after the other: squared error of the reconstructed action plus half its KL
divergence, squared error of both Q against the target, and -Q_1 of a perturbed action for xi. Actions are scaled to [-1, 1].
Differs: states are standardised; the released code feeds them raw.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Box, Experience
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.actor_critic import adam, descend, from_unit, normal, to_unit, values
from lowrank_rl.rl.policies.batches import Batch
from lowrank_rl.rl.policies.offline import Learned

KIND = "ContinuousBCQ"
LATENT = 2                    # latent dimensions per action dimension
CLIP = 0.5                    # of latent draws, when actions are sampled
LOG_STD = (-4.0, 15.0)        # of the encoder


@dataclass(frozen=True)
class ContinuousBCQConfig:
    """As released by its authors; updates as PerSim's."""
    updates: int = 550_000
    batch: int = 100
    hidden: tuple[int, ...] = (400, 300)          # of the twin Q and of the perturbation
    autoencoder: tuple[int, ...] = (750, 750)     # of encoder and decoder
    learning_rate: float = 1e-3
    discount: float = 0.99
    follow: float = 0.005          # share of the way that target networks move at each update
    kl: float = 0.5                # weight of the divergence
    perturbation: float = 0.05     # phi, of actions in [-1, 1]
    caution: float = 0.75          # lambda, weight of the lower of the two Q
    samples: int = 10              # actions of each next state in the target
    choices: int = 100             # actions of which the policy takes the best

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "samples", "choices"):
            check.count(name, getattr(self, name))
        offline.positive(learning_rate=self.learning_rate, kl=self.kl)
        offline.shares(discount=self.discount, follow=self.follow, perturbation=self.perturbation, caution=self.caution)


class ContinuousBCQ:
    """A Learner of actions within ``box``."""

    def __init__(self, dims: int, size: int, config: ContinuousBCQConfig, seed: int, runs: int, device: str, *,
                 box: Box) -> None:
        self.config, self.size, self.box = config, size, box
        self.draws = offline.streams(seed, runs, "noise", device=device)
        generators, latent = offline.streams(seed, runs, "networks"), LATENT * size

        def network(inputs: int, hidden: tuple[int, ...], outputs: int, heads: int = 1) -> Mlp:
            return offline.networks((dims + inputs, *hidden, outputs), generators, heads=heads).to(device)
        encoder = network(size, config.autoencoder, 2 * latent)          # mean and log deviation
        decoder = network(latent, config.autoencoder, size)
        value = network(size, config.hidden, 1, heads=2)
        perturb = network(size, config.hidden, size)
        self.modules = {"encoder": encoder, "decoder": decoder, "value": value, "perturb": perturb,
                        "value target": Mlp.stack([value]), "perturb target": Mlp.stack([perturb])}
        self.optimizers = {name: adam(config.learning_rate, *(self.modules[part] for part in parts)) for name, parts in
                           {"autoencoder": ("encoder", "decoder"), "value": ("value",), "perturb": ("perturb",)}.items()}

    def update(self, batch: Batch, number: int) -> Tensor:
        action, noise = to_unit(batch.action, self.box), self._noise(batch)
        unlike = self.imitation_losses(batch, action, noise[:, :, 0])
        descend(self.optimizers["autoencoder"], unlike)
        error = self.value_losses(batch, action, self.target(batch, noise[:, :, 1:-1]))
        descend(self.optimizers["value"], error)
        descend(self.optimizers["perturb"], self.perturb_losses(batch, noise[:, :, -1]))
        for name in ("value", "perturb"):
            offline.follow(self.modules[f"{name} target"], self.modules[name], self.config.follow)
        return (unlike + error).detach()

    def _noise(self, batch: Batch) -> Tensor:
        """Of one encoding, of the target's samples and of the action to perturb: (G, B, 1 + samples + 1, Z)."""
        # as many rows as are asked for, that a short run beside a longer one gets those it gets alone
        shape = (self.config.batch, self.config.samples + 2, LATENT * self.size)
        return normal(self.draws, *shape)[:, :batch.reward.shape[1]]

    def imitation_losses(self, batch: Batch, action: Tensor, noise: Tensor) -> Tensor:
        """Of the autoencoder, (G,). noise: (G, B, Z)"""
        mean, log_std = self.modules["encoder"](torch.cat([batch.state, action], 2)).chunk(2, dim=2)
        log_std = log_std.clamp(*LOG_STD)
        std = log_std.exp()
        again = _decode(self.modules["decoder"], batch.state, mean + std * noise)
        divergence = (mean.square() + std.square() - 1) / 2 - log_std
        return batch.mean((again - action).square().mean(2) + self.config.kl * divergence.mean(2))

    @torch.no_grad()
    def target(self, batch: Batch, noise: Tensor) -> Tensor:
        """What the value of each logged action should be, (G, B). noise: (G, B, samples, Z)"""
        modules, caution, samples = self.modules, self.config.caution, noise.shape[2]
        state = batch.next_state.repeat_interleave(samples, dim=1)                                # (G, B samples, D)
        action = _decode(modules["decoder"], state, noise.flatten(1, 2).clamp(-CLIP, CLIP))
        action = _perturbed(modules["perturb target"], state, action, self.config.perturbation)
        low, high = values(modules["value target"], state, action).aminmax(dim=1)                 # (G, B samples)
        best = (caution * low + (1 - caution) * high).unflatten(1, (-1, samples)).amax(2)
        return batch.reward + batch.going * self.config.discount * best

    def value_losses(self, batch: Batch, action: Tensor, target: Tensor) -> Tensor:
        """Of both Q, (G,). target: (G, B)"""
        error = values(self.modules["value"], batch.state, action) - target[:, None]
        return batch.mean(error.square().sum(1))

    def perturb_losses(self, batch: Batch, noise: Tensor) -> Tensor:
        """Of the perturbation, (G,). noise: (G, B, Z)"""
        with torch.no_grad():
            action = _decode(self.modules["decoder"], batch.state, noise.clamp(-CLIP, CLIP))
        action = _perturbed(self.modules["perturb"], batch.state, action, self.config.perturbation)
        return -batch.mean(values(self.modules["value"], batch.state, action)[:, 0])

    def acting(self) -> dict[str, Mlp]:
        value = self.modules["value"]
        first = Mlp.stack([value.alone(2 * run) for run in range(len(self.draws))])
        return {"decoder": self.modules["decoder"], "perturb": self.modules["perturb"], "value": first}


def _decode(decoder: Mlp, state: Tensor, latent: Tensor) -> Tensor:
    """The autoencoder's actions (G, B, A) in [-1, 1]."""
    return decoder(torch.cat([state, latent], 2)).tanh()


def _perturbed(perturb: Mlp, state: Tensor, action: Tensor, most: float) -> Tensor:
    """Actions moved by no more than ``most``, and still in [-1, 1]."""
    return (action + most * perturb(torch.cat([state, action], 2)).tanh()).clamp(-1, 1)


def choose(networks: dict[str, Mlp], state: Tensor, generators: list[torch.Generator], *, perturbation: float, choices: int,
           low: float, high: float) -> Tensor:
    """Actions (B, A) of one run in states (B, D); each row draws from its own generator."""
    width = networks["decoder"].layers[0].weight.shape[1] - state.shape[1]
    latent = torch.stack([torch.randn((choices, width), generator=generator, dtype=state.dtype) for generator in generators])
    state = state.repeat_interleave(choices, dim=0)[None]                                         # (1, B choices, D)
    action = _decode(networks["decoder"], state, latent.clamp(-CLIP, CLIP).flatten(0, 1)[None])
    action = _perturbed(networks["perturb"], state, action, perturbation)
    best = values(networks["value"], state, action).view(-1, choices).argmax(1)                   # (B,)
    action = action.view(len(best), choices, -1)[torch.arange(len(best)), best]
    return from_unit(action, low, high)


def fit_bcq_continuous(data: Experience, run: Tensor, actions: Box, config: ContinuousBCQConfig, *, seed: int,
                       **options) -> Learned:
    """Arguments and errors: ``offline.fit``; actions that are not of a Box are refused too."""
    offline.of_kind(actions, Box)
    bounds = {"low": actions.low, "high": actions.high}
    return offline.fit(partial(ContinuousBCQ, box=actions), choose,
                       {"perturbation": config.perturbation, "choices": config.choices, **bounds}, data, run, actions, config,
                       seed=seed, **options)


load = partial(Learned.load, kind=KIND, choose=choose)
