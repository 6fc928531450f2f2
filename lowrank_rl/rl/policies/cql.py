"""Discrete conservative Q-learning (Kumar and others, 2020): actions that the logs lack are made to look worse than they do.

    target = r + gamma min over critics of Q'(s', a'),   a' = argmax over actions of the mean critic at s'
    loss   = sum over critics of Huber(Q(s, a) - target) + alpha [log sum over actions of exp(mean Q(s, .)) - mean Q(s, a)]

with Q' a copy of the critics that is taken every so many updates. The policy takes the action that the mean critic likes best.
The second term is CQL(H) of the paper, equation 4, on the mean of the critics as d3rlpy has it, which PerSim used.
Differs: states are standardised; d3rlpy feeds them raw unless told otherwise, and PerSim tells of no scaling. Its first copy
is taken after the first update, then every ``follow``; ours after each ``follow``. And it copies every 8000 updates: rewards
come one step nearer to their causes with each copy, so that a few copies teach next to nothing (docs/baselines.md).
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from lowrank_rl import check
from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Discrete, Experience
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.batches import Batch, Distinct
from lowrank_rl.rl.policies.offline import Learned

KIND = "CQL"


@dataclass(frozen=True)
class CQLConfig:
    """PerSim's, appendix D, and d3rlpy's where that is silent, but for updates and copies: PerSim gives no numbers."""
    updates: int = 100_000
    batch: int = 512
    hidden: tuple[int, ...] = (256, 256)
    critics: int = 3
    learning_rate: float = 1e-4
    discount: float = 0.99
    follow: int = 300              # updates between two copies to the target networks
    alpha: float = 1.0             # weight of the conservative term

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "critics", "follow"):
            check.count(name, getattr(self, name))
        offline.positive(learning_rate=self.learning_rate)
        offline.shares(discount=self.discount)
        if not 0 <= self.alpha < float("inf"):
            raise ValueError(f"alpha: expected a number >= 0, got {self.alpha!r}")


class CQL:
    """A Learner."""

    def __init__(self, dims: int, actions: int, config: CQLConfig, seed: int, runs: int, device: str) -> None:
        sizes, generators = (dims, *config.hidden, actions), offline.streams(seed, runs, "networks")
        self.config, self.draws = config, []
        # one network by critic, not one stack of all: what a product of a single run touches then stays in a core's cache
        value = nn.ModuleList(offline.networks(sizes, generators) for _ in range(config.critics)).to(device)
        self.modules = {"value": value, "target": deepcopy(value)}
        self.optimizers = {"adam": torch.optim.Adam(value.parameters(), lr=config.learning_rate, fused=True)}
        self._copied: tuple[Distinct, Tensor] | None = None      # what the present copies say of distinct states

    def update(self, batch: Batch, number: int) -> Tensor:
        losses = self.losses(batch)
        self.optimizers["adam"].zero_grad(set_to_none=True)
        losses.sum().backward()                                    # runs do not share parameters
        self.optimizers["adam"].step()
        if (number + 1) % self.config.follow == 0:
            offline.follow(self.modules["target"], self.modules["value"], 1)
            self._copied = None
        return losses.detach()

    def losses(self, batch: Batch) -> Tensor:
        """Of each run, (G,)."""
        value, *following = self._seen(batch)
        target = self._target(batch, *following)
        error = functional.smooth_l1_loss(_at(value, batch.action), target[:, None].expand(value.shape[:3]), reduction="none")
        mean = value.mean(1)
        excess = mean.logsumexp(2) - mean.gather(2, batch.action[..., None])[..., 0]
        return batch.mean(error.sum(1) + self.config.alpha * excess)

    def target(self, batch: Batch) -> Tensor:
        """What the value of each logged action should be, (G, B)."""
        return self._target(batch, *self._seen(batch)[1:])

    def _target(self, batch: Batch, value: Tensor, copied: Tensor) -> Tensor:
        """From what the critics and their copies say of next states, (G, critics, B, actions)."""
        following = _at(copied, value.mean(1).argmax(2)).amin(1)
        return batch.reward + batch.going * self.config.discount * following

    def _seen(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """What the critics say of states and, without gradients, they and their copies of next ones: (G, critics, B, actions).

        Each distinct state is looked at once, which saves two fifths of the products where batches are whole episodes.
        """
        distinct = batch.distinct
        if distinct is None:
            value = self._values("value", batch.state)
            with torch.no_grad():
                return value, self._values("value", batch.next_state), self._values("target", batch.next_state)
        if self._copied is None or self._copied[0] is not distinct:
            with torch.no_grad():
                self._copied = distinct, self._values("target", distinct.state)
        value = self._values("value", distinct.state)
        return _rows(value, distinct.now), _rows(value.detach(), distinct.then), _rows(self._copied[1], distinct.then)

    def acting(self) -> dict[str, Mlp]:
        return {f"value {critic}": network for critic, network in enumerate(self.modules["value"])}

    def _values(self, name: str, state: Tensor) -> Tensor:
        """(G, B, D) -> (G, critics, B, actions)."""
        return torch.stack([network(state) for network in self.modules[name]], dim=1)


def _at(value: Tensor, action: Tensor) -> Tensor:
    """The value of an action to each critic: (G, critics, B, actions), (G, B) -> (G, critics, B)."""
    return value.gather(3, action[:, None, :, None].expand(-1, value.shape[1], -1, 1))[..., 0]


def _rows(value: Tensor, index: Tensor) -> Tensor:
    """(G, critics, S, actions), (G, B) -> (G, critics, B, actions)."""
    return value.gather(2, index[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[3]))


def choose(networks: dict[str, Mlp], state: Tensor, generators: list[torch.Generator]) -> Tensor:
    """Actions (B, 1) of one run in states (B, D)."""
    return torch.stack([network(state[None])[0] for network in networks.values()]).mean(0).argmax(1, keepdim=True)


def fit_cql(data: Experience, run: Tensor, actions: Discrete, config: CQLConfig, *, seed: int, **options) -> Learned:
    """Arguments and errors: ``offline.fit``; actions that are not Discrete are refused too."""
    offline.of_kind(actions, Discrete)
    return offline.fit(CQL, choose, {}, data, run, actions, config, seed=seed, **options)


load = partial(Learned.load, kind=KIND, choose=choose)
