"""What offline learners of policies share: runs side by side, the loop that trains them, the trained policy.

A run learns one policy, from everybody's steps (the paper's "-P") or from one agent's own ("-A"). G runs are a batch axis:
their networks are stacked, their minibatches are drawn from steps that stay on the device. Each has random streams of its
own, so that it learns the same whoever runs beside it, up to rounding.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from lowrank_rl import check, rng
from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView, Experience
from lowrank_rl.rl.policies.batches import Batch, Logs
from lowrank_rl.tensor import io
from lowrank_rl.tensor.functional_checkpoint import EVERY, Checkpoint, load_moments, moments, named, part

TOLD = 500       # updates between two entries of the history
WATCHED = 10     # looks at the unfinished policy, evenly spread
JUDGED = 20      # and where the best of them is kept


class Learner(Protocol):
    """G runs of an algorithm, and how they learn from a batch."""
    modules: dict[str, nn.Module]                    # all that is trained or follows what is trained
    optimizers: dict[str, torch.optim.Optimizer]
    draws: list[torch.Generator]                     # of noise within updates

    def update(self, batch: Batch, number: int) -> Tensor:
        """One update in place, the ``number``-th from 0; its loss by run, (G,)."""

    def acting(self) -> dict[str, Mlp]:
        """The networks that the policy needs."""


class Learned:
    """A Policy without memory: each agent acts by its run's networks.

    ``choose`` (networks of one run in float64, state (B, D) in units, generators, **options) -> actions (B, A).
    """

    past = 0

    def __init__(self, choose: Callable[..., Tensor], options: dict[str, float], networks: dict[str, Mlp], center: Tensor,
                 scale: Tensor, run: Tensor, failed: Tensor, actions: Discrete | Box, history: list[dict]) -> None:
        """center, scale: (G, D) of states. run: (N,) of each agent, or -1. failed: (G,) the update that diverged, or -1."""
        self.choose, self.options, self.networks, self.center, self.scale = choose, options, networks, center, scale
        self.run, self.failed, self.actions, self.history = run, failed, actions, history
        # in float64, since the last bits of a matrix product depend on how many rows it has
        self._own = [{name: network.alone(g).double() for name, network in networks.items()} for g in range(len(center))]

    def able(self, agent: int) -> bool:
        """Whether it has a policy for the agent."""
        run = int(self.run[agent])
        return run >= 0 and int(self.failed[run]) < 0

    def taking(self, runs: Tensor, networks: dict[str, Mlp]) -> Self:
        """The same with other networks for these ``runs``, (G,) bool."""
        mixed = deepcopy(self.networks)
        _copy(mixed, networks, runs)
        return type(self)(self.choose, self.options, mixed, self.center, self.scale, self.run, self.failed, self.actions,
                          self.history)

    def reset(self, agent: Tensor) -> None:
        check.within("agent", agent, len(self.run))
        for number in agent.unique().tolist():
            run = int(self.run[number])
            if run < 0:
                raise ValueError(f"agent {number}: expected one whose steps were learned from, got another; "
                                 f"there are policies for {(self.run >= 0).nonzero()[:, 0].tolist()}")
            if self.failed[run] >= 0:
                raise ValueError(f"agent {number}: expected a trained policy, got one whose loss was NaN or Inf at update "
                                 f"{int(self.failed[run])}; train it with a smaller learning rate")

    @torch.no_grad()
    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        run = self.run[view.agent]
        kind = torch.int64 if isinstance(self.actions, Discrete) else torch.float64
        action = torch.zeros((len(run), self.actions.size), dtype=kind)
        for g in run.unique().tolist():
            rows = (run == g).nonzero()[:, 0]
            state = (view.state[rows].double() - self.center[g]) / self.scale[g]
            action[rows] = self.choose(self._own[g], state, [generators[i] for i in rows.tolist()],
                                       **self.options)
        if isinstance(self.actions, Discrete):
            return action
        # rounded, since on some processors the last bits in float64 depend on the number of rows, too
        return action.float().double().clamp(self.actions.low, self.actions.high)

    def save(self, path: str | Path, kind: str) -> None:
        """Raises ValueError where the file cannot be written."""
        tensors = {name: getattr(self, name) for name in ("center", "scale", "run", "failed")}
        for name, network in self.networks.items():
            tensors |= named(name, network.state_dict())
        shapes = {name: network.activation.__name__ for name, network in self.networks.items()}
        discrete = isinstance(self.actions, Discrete)
        io.save(path, kind, tensors, {"networks": shapes, "discrete": discrete, "actions": vars(self.actions),
                                      "options": self.options, "history": self.history})

    @classmethod
    def load(cls, path: str | Path, kind: str, choose: Callable[..., Tensor]) -> Self:
        """Raises ValueError for a missing, corrupt or foreign file."""
        tensors, header = io.load(path, kind)
        networks = {name: Mlp.of(part(name, tensors), activation) for name, activation in header["networks"].items()}
        actions = (Discrete if header["discrete"] else Box)(**header["actions"])
        parts = (tensors[name] for name in ("center", "scale", "run", "failed"))
        return cls(choose, header["options"], networks, *parts, actions, header["history"])


class Looks:
    """What the policies of an unfinished training were worth at each look, and each run's networks at its best."""

    def __init__(self, networks: dict[str, Mlp], runs: int) -> None:
        self.networks = deepcopy(networks)
        self.done = torch.zeros(0, dtype=torch.int64)                  # updates before each look
        self.worth = torch.zeros((0, runs), dtype=torch.float64)       # -Inf where a run had nothing to judge

    def look(self, done: int, networks: dict[str, Mlp], worth: Tensor) -> None:
        """worth: (G,), higher is better; of equal looks the later is kept."""
        if not isinstance(worth, Tensor) or worth.shape != self.worth.shape[1:]:
            raise ValueError(f"judge: expected a tensor with a number for each of {self.worth.shape[1]} runs, got {worth!r}")
        worth = torch.where(worth.isnan(), -torch.inf, worth.double())[None]
        self.done, self.worth = torch.cat([self.done, torch.tensor([done])]), torch.cat([self.worth, worth])
        _copy(self.networks, networks, worth[0] >= self.worth.amax(0))

    def best(self, last: Learned) -> Learned:
        """Each run's best policy. Of runs that diverged, or never had anything to judge, the last one."""
        found = last.taking((last.failed < 0) & (self.worth > -torch.inf).any(0), self.networks)
        worth = [[x if math.isfinite(x) else None for x in each] for each in self.worth.tolist()]
        found.history = [*last.history, {"looks": dict(zip(map(str, self.done.tolist()), worth, strict=True))}]
        return found

    def tensors(self) -> dict[str, Tensor]:
        kept = {"looks": self.done, "worth": self.worth}
        for name, network in self.networks.items():
            kept |= named(f"best {name}", network.state_dict())
        return kept

    def restore(self, kept: dict[str, Tensor]) -> None:
        self.done, self.worth = kept["looks"], kept["worth"]
        for name, network in self.networks.items():
            network.load_state_dict(part(f"best {name}", kept))


@torch.no_grad()
def _copy(mine: dict[str, Mlp], yours: dict[str, Mlp], runs: Tensor) -> None:
    """These runs' (G,) parameters, in place."""
    for name, network in mine.items():
        for to, whence in zip(network.parameters(), yours[name].parameters(), strict=True):
            to[runs] = whence[runs]


def streams(seed: int, runs: int, *labels: object, device: str | torch.device = "cpu") -> list[torch.Generator]:
    """A generator for each run that does not depend on how many there are."""
    return [rng.stream(seed, *labels, run, device=device) for run in range(runs)]


def networks(sizes: tuple[int, ...], generators: Sequence[torch.Generator], activation: str = "relu", heads: int = 1) -> Mlp:
    """``heads`` networks for each run, drawn from its generator; run g's are members g heads ... (g + 1) heads - 1."""
    return Mlp.stack([Mlp(heads, sizes, activation, generator=generator) for generator in generators])


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, share: float) -> None:
    """Move a target's parameters this share of the way (Polyak); 1 copies."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast, share)


def possible(value: Tensor, batch: Batch, discount: float) -> Tensor:
    """Values (G, B), cut where logged rewards cannot add up to them: at a run's lowest and highest reward for ever, which
    count as 0 where they are above and below it. Nothing is cut where the discount is 1."""
    if discount == 1:
        return value
    low, high = (batch.extremes / (1 - discount))[..., None].unbind(1)
    return value.clamp(low.clamp(max=0), high.clamp(min=0))


def positive(**named: float) -> None:
    """Refuse what is not a finite number above 0."""
    for name, value in named.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a number above 0, got {value!r}")


def shares(**named: float) -> None:
    """Refuse what is not within 0..1."""
    for name, value in named.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: expected a share in [0, 1], got {value!r}")


def of_kind(actions: Discrete | Box, kind: type) -> None:
    """Refuse actions of the other kind, for a learner of one."""
    if not isinstance(actions, kind):
        wanted, other = ("a Box of continuous ones", "discrete") if kind is Box else ("Discrete ones", "continuous")
        raise ValueError(f"actions: expected {wanted}, got {actions}; take the learner of {other} actions")


def checked(data: Experience, run: Tensor, actions: Discrete | Box) -> None:
    """Refuse what no policy can be learned from; the errors of ``fit``."""
    check.shapes(agent=(data.agent, "B"), state=(data.state, "B D"), action=(data.action, "B A"),
                 next_state=(data.next_state, "B D"), reward=(data.reward, "B"), terminated=(data.terminated, "B"))
    check.within("agent", data.agent, len(run))
    actions.check(data.action, len(data.action))
    for name in ("state", "next_state", "reward"):
        check.finite(name, getattr(data, name))
    own, runs = run[data.agent], int(run.max()) + 1
    empty = sorted(set(range(runs)) - set(own.tolist()))
    if runs == 0 or empty:
        who = f"run {empty[0]} (of agents {(run == empty[0]).nonzero()[:, 0].tolist()[:5]})" if empty else "any"
        raise ValueError(f"run: expected logged steps for each, got none for {who}; leave these agents out")


def fit(make: Callable[..., Learner], choose: Callable[..., Tensor], options: dict[str, float], data: Experience, run: Tensor,
        actions: Discrete | Box, config: Any, *, seed: int, device: str = "cpu", checkpoint: str | Path | None = None,
        progress: Callable[[dict], None] | None = None, watch: Callable[[int, Learned], None] | None = None,
        judge: Callable[[Learned], Tensor] | None = None) -> Learned:
    """Learn the policies of all runs by an algorithm.

    Args:
        make: (D, number of actions or A, config, seed, runs, device) -> Learner. choose, options: ``Learned``'s.
        data: logged steps of N agents. run: (N,) int64 which run learns from each agent's steps, -1 for none.
        config: with ``updates`` and ``batch``.
        checkpoint: a file for unfinished training; the same call goes on to the same bits, and removes it.
        progress: called with each entry of the history ("update", "loss", "seconds").
        watch: called ``WATCHED`` times (``JUDGED`` with a judge), evenly spread, with the number of updates done and the
            policy so far.
        judge: what each run's policy so far is worth, (G,), higher is better. Each run then ends with the policy of its best
            look, not with the last, and the history with {"looks": {updates done: worth of each run}}.

    Raises:
        ValueError: shapes that disagree, NaN or Inf, an agent out of range, actions of another kind or outside the bounds,
            a run without steps, a judge's word that is no number for each run.
    """
    checked(data, run, actions)
    discrete = isinstance(actions, Discrete)
    logs = Logs(data, run, discrete, device)
    learner = make(data.state.shape[1], actions.n if discrete else actions.size, config, seed, logs.runs, device)

    def policy(failed: Tensor, history: list[dict]) -> Learned:
        return Learned(choose, options, {name: network.cpu() for name, network in deepcopy(learner.acting()).items()},
                       logs.center, logs.scale, run, failed, actions, history)
    looks = Looks(policy(torch.full((logs.runs,), -1), []).networks, logs.runs) if judge else None

    def look(done: int, failed: Tensor) -> None:
        now = policy(failed, [])
        if looks:
            looks.look(done, now.networks, judge(now))
        if watch:
            watch(done, now)
    history, failed = _train(learner, logs, config, seed, checkpoint, progress, look if watch or judge else None, looks)
    last = policy(failed, history)
    return looks.best(last) if looks else last


def _train(learner: Learner, logs: Logs, config: Any, seed: int, checkpoint: str | Path | None,
           progress: Callable[[dict], None] | None, look: Callable[[int, Tensor], None] | None,
           looks: Looks | None) -> tuple[list[dict], Tensor]:
    """The history, and (G,) the update at which a run's loss became NaN or Inf, -1 where none did."""
    generators = streams(seed, logs.runs, "batches")
    failed = torch.full((logs.runs,), -1, device=logs.device)
    history: list[dict] = []
    keep = Checkpoint(checkpoint, EVERY, _job(learner, logs, config, seed, looks) if checkpoint else "")
    drawn = [*generators, *learner.draws]
    found = keep.resume()
    if found:
        kept, history = found
        failed = kept["failed"].to(logs.device)
        for name, module in learner.modules.items():
            module.load_state_dict(part(name, kept))
        for name, optimizer in learner.optimizers.items():
            load_moments(optimizer, part(f"optimizer {name}", kept))
        for number, generator in enumerate(drawn):
            generator.set_state(kept[f"stream {number}"])
        if looks:
            looks.restore(kept)

    def tensors() -> dict[str, Tensor]:
        out = {"failed": failed, **{f"stream {number}": g.get_state() for number, g in enumerate(drawn)},
               **(looks.tensors() if looks else {})}
        for name, module in learner.modules.items():
            out |= named(name, module.state_dict())
        for name, optimizer in learner.optimizers.items():
            out |= named(f"optimizer {name}", moments(optimizer))
        return out

    started, total = time.monotonic() - (history[-1]["seconds"] if history else 0.0), 0.0
    count = JUDGED if looks else WATCHED
    stops = {math.ceil(config.updates * k / count) for k in range(1, count + 1)} if look else set()
    begin = history[-1]["update"] if history else 0
    since = begin
    for number in range(begin, config.updates):
        loss = learner.update(logs.draw(config.batch, generators), number)
        failed = torch.where((failed < 0) & ~loss.isfinite(), number + 1, failed)
        total = total + loss
        done = number + 1
        if done in stops:     # before it is kept, so that a killed training comes here again
            look(done, failed.cpu())
        if done % TOLD == 0 or done == config.updates:
            mean = (total / (done - since))[failed < 0]
            history.append({"update": done, "loss": float(mean.mean()) if len(mean) else None,
                            "seconds": time.monotonic() - started})
            total, since = 0.0, done
            if progress:
                progress(history[-1])
            keep.save(tensors, history)
        if bool((failed >= 0).all()) and done % TOLD == 0:
            break
    for network in learner.acting().values():         # the last update may have spoiled them after its loss was taken
        for parameter in network.parameters():
            fine = parameter.detach().isfinite().flatten(1).all(1).view(logs.runs, -1).all(1)
            failed = torch.where((failed < 0) & ~fine, config.updates, failed)
    keep.remove()
    return history, failed.cpu()


def _job(learner: Learner, logs: Logs, config: Any, seed: int, looks: Looks | None) -> str:
    """Changes with the algorithm, its settings, the data or the seed, and with whether looks are judged."""
    digest = hashlib.blake2b(f"{type(learner).__name__} {[(f.name, getattr(config, f.name)) for f in fields(config)]} {seed} "
                             f"{learner.modules}{' judged' if looks else ''}".encode(), digest_size=16)
    for values in (*logs._parts.values(), logs.count):
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()
