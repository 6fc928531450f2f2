"""What a model's members say would happen, as trajectories with intervals.

Each member follows its own trajectory to the end; of a model that draws next states, several. Quantiles of M members promise
little: even if the truth were one more of their kind, it would lie between the least and the greatest with probability
(M - 1) / (M + 1), 2/3 for five. So an interval is where a normal distribution's next draw lies that was seen M times, and
the spread of a member's own draws comes on top:

    mean +- sqrt(t(q, M - 1)^2 (1 + 1 / M) between + z(q)^2 within)

with Student's t and normal quantiles, and the variances of the members' means and of draws about their member's mean.
Members err alike where no member's form fits or none has seen data; that no spread among them shows.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lowrank_rl import check, rng
from lowrank_rl.rl.contracts import Box, DynamicsModel, Environment, EpisodeView, Policy


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """P trajectories of one agent, those of a member side by side. After a trajectory's end its numbers are NaN.

    Mean and intervals are over the trajectories that still run; T is the longest one's length. Intervals are NaN where only one
    member's run, unless its model draws next states: one trajectory has no spread.
    """
    agent: int
    quantiles: tuple[float, float]
    members: int
    states: np.ndarray           # (P, T + 1, D), the first one given
    actions: np.ndarray          # (P, T, A), as taken
    rewards: np.ndarray          # (P, T)
    mean: np.ndarray             # (T + 1, D)
    low: np.ndarray              # (T + 1, D)
    high: np.ndarray             # (T + 1, D)
    running: np.ndarray          # (T + 1,) share of the trajectories that have not ended before this state
    returns: np.ndarray          # (P,) sums of rewards
    expected: float              # mean return
    interval: tuple[float, float]      # of the return


def imagine(model: DynamicsModel, environment: Environment, context: Tensor, agent: int, wanted: Tensor | Policy,
            start: np.ndarray | Tensor, *, quantiles: tuple[float, float], steps: int, draws: int, seed: int) -> Counterfactual:
    """Trajectories from ``start`` (D,) under actions (T, A) or a policy, with intervals. context (M, 1, E)

    Warns of a model of one member that draws nothing: its intervals are NaN.

    Raises:
        ValueError: bad start, quantiles, counts, seed or actions of the policy, a prediction that is NaN or Inf.
    """
    ends = np.asarray(quantiles)
    if ends.shape != (2,) or ends.dtype.kind not in "iuf" or not 0 < ends[0] < ends[1] < 1:
        raise ValueError(f"quantiles: expected two probabilities 0 < low < high < 1, got {quantiles!r}")
    check.count("steps", steps)
    check.count("draws", draws)
    check.count("seed", seed, 0)
    given = np.asarray(start)
    if given.dtype.kind not in "biuf":
        raise ValueError(f"start: expected one state of numbers {environment.state_names}, got {start!r}")
    first = torch.from_numpy(given.astype(np.float64))
    if first.shape != (len(environment.state_names),):
        raise ValueError(f"start: expected one state {environment.state_names}, got shape {tuple(first.shape)}")
    check.finite("start", first)
    planned = isinstance(wanted, Tensor)
    each, T = draws if model.noisy else 1, len(wanted) if planned else steps
    P = model.members * each
    if P == 1:
        warnings.warn("intervals: expected an ensemble, got a model of one member, which has no spread: low, high and interval "
                      "are NaN; train several (members=5) if you need them", stacklevel=4)
    noise, player = rng.stream(seed, "counterfactual", agent), None if planned else _Player(wanted, environment, agent, P, seed)
    context, state, rows = context.expand(-1, P, -1), first.expand(P, -1), torch.arange(P)
    own = rows // each
    alive = torch.ones(P, dtype=torch.bool)
    states, actions, rewards = [state], [], []
    for t in range(T):
        action = wanted[t].expand(P, -1) if planned else player.act(state, alive)
        # one action per row is for all members, so each answers for all rows, and is asked only about its own
        after = model.predict(context, state.expand(model.members, -1, -1), action, noise if model.noisy else None)[own, rows]
        bad = alive & ~after.isfinite().all(1)
        if bad.any():
            raise ValueError(f"agent {agent}: expected finite predictions, got NaN or Inf in {int(bad.sum())} of {P} "
                             f"trajectories after {t + 1} steps; ask for fewer steps or train on more data")
        reward = environment.reward(state, action, after)
        for kept, new in ((states, after), (actions, action.double()), (rewards, reward.double())):
            kept.append(torch.where(alive.view(-1, *[1] * (new.ndim - 1)), new, torch.nan))
        # who has ended stays where it is: what a model says from there on may be anything
        state, alive = torch.where(alive[:, None], after, state), alive & ~environment.ended(after)
        if not alive.any():
            break
    seen, taken, earned = (torch.stack(kept, dim=1).numpy() for kept in (states, actions, rewards))
    returns = np.nansum(earned, axis=1)
    mean, low, high = _interval(seen, quantiles, each)
    expected, least, greatest = (float(x) for x in _interval(returns, quantiles, each))
    return Counterfactual(agent, tuple(quantiles), model.members, seen, taken, earned, mean, low, high,
                          (~np.isnan(seen[..., 0])).mean(0), returns, expected, (least, greatest))


class _Player:
    """A policy in P simulated episodes, which sees of each what EpisodeView says."""

    def __init__(self, policy: Policy, environment: Environment, agent: int, count: int, seed: int) -> None:
        self.policy, self.actions = policy, environment.actions
        self.agent = torch.full((count,), agent, dtype=torch.int64)
        D, kind = len(environment.state_names), environment.actions
        self.past_state = torch.zeros((count, policy.past, D), dtype=torch.float64)
        self.past_action = torch.zeros((count, policy.past, kind.size),
                                       dtype=torch.float64 if isinstance(kind, Box) else torch.int64)
        self.past_mask = torch.zeros((count, policy.past), dtype=torch.bool)
        self.generators = [rng.stream(seed, "counterfactual", agent, "policy", k) for k in range(count)]
        policy.reset(self.agent)

    def act(self, state: Tensor, alive: Tensor) -> Tensor:
        rows = alive.nonzero()[:, 0]
        view = EpisodeView(rows, self.agent[rows], state[rows], self.past_state[rows], self.past_action[rows],
                           self.past_mask[rows])
        chosen = self.policy.act(view, generators=[self.generators[i] for i in rows.tolist()]).cpu()
        self.actions.check(chosen, len(rows))
        action = torch.zeros((len(state), self.actions.size), dtype=self.past_action.dtype)
        action[rows] = chosen.to(action)
        for name, new in (("past_state", state), ("past_action", action), ("past_mask", alive)):
            setattr(self, name, torch.cat([getattr(self, name), new[:, None]], dim=1)[:, 1:] if self.policy.past
                    else getattr(self, name))
        return action


def _interval(x: np.ndarray, quantiles: tuple[float, float], each: int) -> tuple[np.ndarray, ...]:
    """Mean, low and high over the first axis of P numbers, ``each`` of a member; NaN is left out."""
    x = x.reshape(-1, each, *x.shape[1:])
    count = np.isfinite(x).sum(1)                                                  # of each member, (M, ...)
    total = count.sum(0)
    means = np.nansum(x, axis=1) / np.where(count, count, np.nan)
    M = (count > 0).sum(0)
    within = np.nansum(np.square(x - means[:, None]), axis=(0, 1)) / np.maximum(total - M, 1)
    center = np.nansum(means, axis=0) / M
    between = np.nansum(np.square(means - center), axis=0) / np.where(M > 1, M - 1, np.nan)
    if each > 1:
        between = np.nan_to_num(between)      # a single member's draws have a spread of their own
    ends = []
    for q in quantiles:
        far = np.square(stats.t.ppf(q, np.maximum(M - 1, 1))) * (1 + 1 / M) * between + np.square(stats.norm.ppf(q)) * within
        ends.append(center + np.sign(q - 0.5) * np.sqrt(far))
    return center, *ends
