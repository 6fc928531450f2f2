"""Conservative Q-learning of continuous actions (Kumar and others, NeurIPS 2020): soft actor-critic, low values off the logs.

    target = r + gamma min_j Q'_j(s', tanh m(s'))
    gap_j  = mean of log [sum over actions a of exp Q_j(s, a) / density(a)] - Q_j(s, logged action)
    loss of Q      = sum_j mean (Q_j - target)^2 + alpha w (gap_j - threshold),   alpha grows while gaps exceed the threshold
    loss of policy = mean  tau log pi(a | s) - min_j Q_j(s, a),                   tau such that the entropy of pi is -A

with a policy pi that is the tanh of a Gaussian of mean m, and Q' the slowly following copy of Q. The actions of the gap are
draws of pi in s, of pi in s', and uniform ones. It acts by tanh m. Actions are scaled to [-1, 1].
This is CQL(H), equation 4, with a Lagrange multiplier alpha, as d3rlpy has it (w before the gap, no 1/2 before the squares, no
entropy in the target), with PerSim's learning rates and threshold.
Differs: states are standardised; d3rlpy's default is not to.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank_rl import check
from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Box, Experience
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.actor_critic import adam, descend, from_unit, normal, to_unit, values
from lowrank_rl.rl.policies.batches import Batch
from lowrank_rl.rl.policies.offline import Learned

KIND = "ContinuousCQL"
LOG_STD = (-20.0, 2.0)        # of the policy
MOST = 1e6                    # of the multiplier


@dataclass(frozen=True)
class ContinuousCQLConfig:
    """As d3rlpy's defaults and PerSim's changes; updates as those of BCQ, as PerSim's are not stated."""
    updates: int = 550_000
    batch: int = 256
    hidden: tuple[int, ...] = (256, 256)       # of policy and twin Q
    value_rate: float = 3e-4                   # learning rates
    policy_rate: float = 3e-5
    temperature_rate: float = 1e-4
    alpha_rate: float = 1e-4
    discount: float = 0.99
    follow: float = 0.005        # share of the way that the target network moves at each update
    threshold: float = 5.0       # of the gap
    weight: float = 5.0          # w
    temperature: float = 1.0     # tau at first
    alpha: float = 1.0           # at first
    samples: int = 10            # actions of each of the three kinds

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "samples"):
            check.count(name, getattr(self, name))
        offline.positive(**{name: getattr(self, name) for name in (
            "value_rate", "policy_rate", "temperature_rate", "alpha_rate", "weight", "temperature", "alpha")})
        offline.shares(discount=self.discount, follow=self.follow)
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold: expected a finite number, got {self.threshold!r}")


class ContinuousCQL:
    """A Learner of actions within ``box``."""

    def __init__(self, dims: int, size: int, config: ContinuousCQLConfig, seed: int, runs: int, device: str, *,
                 box: Box) -> None:
        self.config, self.size, self.box = config, size, box
        self.draws = offline.streams(seed, runs, "noise", device=device)
        generators = offline.streams(seed, runs, "networks")
        policy = offline.networks((dims, *config.hidden, 2 * size), generators).to(device)         # mean and log deviation
        value = offline.networks((dims + size, *config.hidden, 1), generators, heads=2).to(device)
        price = nn.ParameterDict({name: torch.full((runs,), math.log(getattr(config, name)), device=device)
                                  for name in ("temperature", "alpha")})                          # logarithms
        self.modules = {"policy": policy, "value": value, "target": Mlp.stack([value]), "price": price}
        self.optimizers = {"policy": adam(config.policy_rate, policy), "value": adam(config.value_rate, value)}
        for name, log in price.items():
            self.optimizers[name] = torch.optim.Adam([log], lr=getattr(config, f"{name}_rate"), fused=True)

    def update(self, batch: Batch, number: int) -> Tensor:
        action, noise, uniform = to_unit(batch.action, self.box), *self._noise(batch)
        mean, log_std = self.policy(torch.cat([batch.state, batch.next_state], 1))                # (G, 2 B, A)
        here, after = (part.chunk(2, dim=1) for part in (mean, log_std))
        now, then = (here[0], after[0]), (here[1], after[1])

        with torch.no_grad():
            target = self.target(batch, then[0])
            drawn = [sample(*now, noise[:, :, :self.config.samples]), sample(*then, noise[:, :, self.config.samples:-1]),
                     (uniform, uniform.new_full(uniform.shape[:3], -self.size * math.log(2)))]
        value = values(self.modules["value"], *_beside(batch.state, action, [actions for actions, _ in drawn]))
        logged, gap = gaps(batch, value, torch.cat([density for _, density in drawn], 2))
        excess = self.config.weight * (gap - self.config.threshold)                               # (G, 2)
        descend(self.optimizers["alpha"], -self.alpha() * excess.detach().mean(1))
        error = batch.mean((logged - target[:, None]).square().sum(1)) + self.alpha().detach() * excess.sum(1)
        descend(self.optimizers["value"], error)

        tried, density = sample(*now, noise[:, :, -1:])
        self._learn_policy(batch, tried[:, :, 0], density[:, :, 0])
        offline.follow(self.modules["target"], self.modules["value"], self.config.follow)
        return error.detach()

    def _learn_policy(self, batch: Batch, action: Tensor, density: Tensor) -> None:
        """From one action (G, B, A) of the policy in each state, with its log density (G, B)."""
        log = self.modules["price"]["temperature"]
        descend(self.optimizers["temperature"], -log.exp() * batch.mean(density.detach() - self.size))
        value = values(self.modules["value"], batch.state, action).amin(1)
        descend(self.optimizers["policy"], batch.mean(log.detach().exp()[:, None] * density - value))

    def _noise(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Normal (G, B, 2 samples + 1, A) for the gap and the policy's loss, uniform (G, B, samples, A) in [-1, 1]."""
        # as many rows as are asked for, that a short run beside a longer one gets those it gets alone
        B, rows, samples = batch.reward.shape[1], self.config.batch, self.config.samples
        noise = normal(self.draws, rows, 2 * samples + 1, self.size)
        uniform = torch.stack([torch.rand((rows, samples, self.size), generator=generator, device=generator.device)
                               for generator in self.draws])
        return noise[:, :B], 2 * uniform[:, :B] - 1

    def policy(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log deviation, (G, B, A) each, before the tanh."""
        mean, log_std = self.modules["policy"](state).chunk(2, dim=2)
        return mean, log_std.clamp(*LOG_STD)

    @torch.no_grad()
    def target(self, batch: Batch, mean: Tensor) -> Tensor:
        """What the value of each logged action should be, (G, B). mean: of the policy in the next state."""
        best = values(self.modules["target"], batch.next_state, mean.tanh()).amin(1)
        return batch.reward + batch.going * self.config.discount * best

    def alpha(self) -> Tensor:
        """(G,)"""
        return self.modules["price"]["alpha"].exp().clamp(max=MOST)

    def acting(self) -> dict[str, Mlp]:
        return {"policy": self.modules["policy"]}


def sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions (G, B, n, A) of a policy (G, B, A), and their log densities (G, B, n). noise: (G, B, n, A)"""
    raw = mean[:, :, None] + log_std.exp()[:, :, None] * noise
    gaussian = -noise.square() / 2 - log_std[:, :, None] - math.log(2 * math.pi) / 2
    shrunk = 2 * (math.log(2) - raw - functional.softplus(-2 * raw))          # log of the derivative of tanh
    return raw.tanh(), (gaussian - shrunk).sum(3)


def gaps(batch: Batch, value: Tensor, density: Tensor) -> tuple[Tensor, Tensor]:
    """Values of the logged actions (G, Q, B), and by how much others exceed them (G, Q).

    value: (G, Q, B (1 + n)), of the logged action and n others in each state. density: log densities of the others, (G, B, n)
    """
    G, B, n = density.shape
    logged, others = value.view(G, -1, B, 1 + n).split([1, n], dim=3)
    logged = logged[..., 0]
    exceed = (others - density[:, None]).logsumexp(3) - logged
    return logged, (exceed * batch.weight[:, None]).sum(2)


def _beside(state: Tensor, action: Tensor, others: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Each state as often as it has actions, and these, the logged one first: (G, B (1 + n), D) and (G, B (1 + n), A)."""
    actions = torch.cat([action[:, :, None], *others], 2)
    return state.repeat_interleave(actions.shape[2], dim=1), actions.flatten(1, 2)


def choose(networks: dict[str, Mlp], state: Tensor, generators: list[torch.Generator], *, low: float, high: float) -> Tensor:
    """Actions (B, A) of one run in states (B, D)."""
    return from_unit(networks["policy"](state[None])[0].chunk(2, dim=1)[0].tanh(), low, high)


def fit_cql_continuous(data: Experience, run: Tensor, actions: Box, config: ContinuousCQLConfig, *, seed: int,
                       **options) -> Learned:
    """Arguments and errors: ``offline.fit``; actions that are not of a Box are refused too."""
    offline.of_kind(actions, Box)
    return offline.fit(partial(ContinuousCQL, box=actions), choose, {"low": actions.low, "high": actions.high}, data, run,
                       actions, config, seed=seed, **options)


load = partial(Learned.load, kind=KIND, choose=choose)
