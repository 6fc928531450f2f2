"""Discrete batch-constrained Q-learning (Fujimoto and others, 2019): never an action that the logs make unlikely.

    pi(s) = argmax over a with G(a | s) / max G(. | s) >= threshold  of  Q(s, a)
    target = r + gamma Q'(s', pi(s'))

with G the imitated policy of the logs and Q' the slowly following copy of Q. The loss is Huber's of Q against the target, the
negative log likelihood of G, and a small price on G's logits.
Differs: states are standardised; the released code feeds them raw. Q' is cut where the logged rewards cannot add up to it:
without that it runs away on some logs (docs/baselines.md).
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lowrank_rl import check
from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Discrete, Experience
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.batches import Batch
from lowrank_rl.rl.policies.offline import Learned

KIND = "BCQ"


@dataclass(frozen=True)
class BCQConfig:
    """As released by its authors for low-dimensional states; updates as PerSim's."""
    updates: int = 550_000
    batch: int = 64
    hidden: tuple[int, ...] = (256, 256)
    learning_rate: float = 3e-4
    discount: float = 0.99
    follow: float = 0.005          # share of the way that the target network moves at each update
    threshold: float = 0.3         # least share of the likeliest action's probability
    logits: float = 0.01           # price on the mean square of imitation's logits

    def __post_init__(self) -> None:
        check.count("updates", self.updates)
        check.count("batch", self.batch)
        offline.positive(learning_rate=self.learning_rate)
        offline.shares(discount=self.discount, follow=self.follow, threshold=self.threshold)


class BCQ:
    """A Learner."""

    def __init__(self, dims: int, actions: int, config: BCQConfig, seed: int, runs: int, device: str) -> None:
        sizes, generators = (dims, *config.hidden, actions), offline.streams(seed, runs, "networks")
        self.config, self.draws = config, []
        value, imitation = (offline.networks(sizes, generators).to(device) for _ in range(2))
        self.modules = {"value": value, "imitation": imitation, "target": Mlp.stack([value])}
        self.optimizers = {"adam": torch.optim.Adam([*value.parameters(), *imitation.parameters()], lr=config.learning_rate,
                                                    fused=True)}

    def update(self, batch: Batch, number: int) -> Tensor:
        losses = self.losses(batch)
        self.optimizers["adam"].zero_grad(set_to_none=True)
        losses.sum().backward()                                    # runs do not share parameters
        self.optimizers["adam"].step()
        offline.follow(self.modules["target"], self.modules["value"], self.config.follow)
        return losses.detach()

    def losses(self, batch: Batch) -> Tensor:
        """Of each run, (G,)."""
        imitated = self.modules["imitation"](batch.state)                                         # (G, B, actions)
        value = self.modules["value"](batch.state).gather(2, batch.action[..., None])[..., 0]
        error = functional.smooth_l1_loss(value, self.target(batch), reduction="none")
        unlikely = functional.nll_loss(imitated.log_softmax(2).movedim(2, 1), batch.action, reduction="none")
        return batch.mean(error + unlikely + self.config.logits * imitated.square().mean(2))

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """What the value of each logged action should be, (G, B)."""
        modules = self.modules
        best = _best(modules["value"](batch.next_state), modules["imitation"](batch.next_state), self.config.threshold)
        following = modules["target"](batch.next_state).gather(2, best[..., None])[..., 0]
        return batch.reward + batch.going * self.config.discount * offline.possible(following, batch, self.config.discount)

    def acting(self) -> dict[str, Mlp]:
        return {name: self.modules[name] for name in ("value", "imitation")}


def _best(value: Tensor, imitated: Tensor, threshold: float) -> Tensor:
    """The action of highest value among the likely ones, (..., actions) -> (...)."""
    chance = imitated.softmax(-1)
    likely = chance >= threshold * chance.amax(-1, keepdim=True)      # so that 1 leaves the likeliest
    return value.masked_fill(~likely, -torch.inf).argmax(-1)


def choose(networks: dict[str, Mlp], state: Tensor, generators: list[torch.Generator], *, threshold: float) -> Tensor:
    """Actions (B, 1) of one run in states (B, D)."""
    value, imitated = (networks[name](state[None])[0] for name in ("value", "imitation"))
    return _best(value, imitated, threshold)[:, None]


def fit_bcq(data: Experience, run: Tensor, actions: Discrete, config: BCQConfig, *, seed: int, **options) -> Learned:
    """Arguments and errors: ``offline.fit``; actions that are not Discrete are refused too."""
    offline.of_kind(actions, Discrete)
    return offline.fit(BCQ, choose, {"threshold": config.threshold}, data, run, actions, config, seed=seed, **options)


load = partial(Learned.load, kind=KIND, choose=choose)
