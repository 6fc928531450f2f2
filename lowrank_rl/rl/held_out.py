"""Is a simulator of one's own machines any good? Its errors on logged steps that it did not learn from.

No true environment is needed: the model starts from a logged state, is given the actions that were logged, and is fed on its
own predictions. Of each stretch of at most H steps, with f_m the members' rollouts,

    error_t = mean over members of f_m(state_0, action_0 .. action_{t-1}) - state_t        t = 1 .. H

Stretches follow each other without overlap; the last one of an episode may be shorter. A simulator that cannot beat the
prediction that nothing changes (``still``) has learned nothing that helps over this horizon.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import MODEL, DynamicsModel, EpisodeView, keeps
from lowrank_rl.rl.data import Episodes

CHUNK = 4096      # stretches that are predicted at once


@dataclass(frozen=True, eq=False)
class LoggedError:
    """Of one agent, in the units of the state; Inf where a prediction was no finite number."""
    rmse: np.ndarray        # (D,) root mean squared error of each dimension, over all predicted steps
    overall: float          # the same over all dimensions
    still: np.ndarray       # (D,) what ``rmse`` were if the state stayed as it was at the start of each stretch
    r2: float               # of the predicted states about the agent's mean, dimensions weighted by variance; NaN: none varies
    by_step: np.ndarray     # (H,) as ``overall``, after 1, 2, ... steps; NaN where no stretch is that long
    windows: np.ndarray     # (W,) of each stretch, the root of its mean squared error over steps and dimensions
    steps: int              # predicted


def split(episodes: Episodes, share: float = 0.2, *, longest: int | None = None,
          agents: Collection[int] | None = None) -> tuple[Episodes, np.ndarray]:
    """The episodes without the last ``share`` of each, to learn from, and how many steps of each that leaves, (E,).

    ``prediction_error(model, episodes, after=...)`` takes the latter. Episodes too short to give up a step stay whole; so do
    those of agents who are not among ``agents`` (None: all give). ``longest``: at most so many steps of each are held out.

    Raises:
        ValueError: a share outside (0, 1), or nothing is held out.
    """
    if not 0 < share < 1:
        raise ValueError(f"share: expected a number between 0 and 1, got {share!r}")
    lengths = episodes.lengths
    tail = np.floor(share * lengths + 1e-9).astype(np.int64)      # 0.29 * 100 is 28.999999999999996
    if longest is not None:
        check.count("longest", longest)
        tail = np.minimum(tail, longest)
    if agents is not None:
        tail[~np.isin(episodes.agent, list(agents))] = 0
    if not tail.any():
        raise ValueError(f"share: expected to hold out a step of some episode, got none of {len(episodes)} episodes of at most "
                         f"{lengths.max()} steps; hold out a larger share, or whole episodes")
    after = lengths - tail
    kept = np.arange(len(episodes.state)) - np.repeat(episodes.start[:-1], lengths) < np.repeat(after, lengths)
    rows = {name: getattr(episodes, name)[kept] for name in ("state", "action", "next_state", "reward")}
    return replace(episodes, **rows, start=np.concatenate([[0], np.cumsum(after)]),
                   terminated=episodes.terminated & (tail == 0)), after


@torch.no_grad()
def prediction_error(model: DynamicsModel, episodes: Episodes, *, horizon: int,
                     after: np.ndarray | int = 0) -> dict[int, LoggedError]:
    """How far a model is off over ``horizon`` steps of logged episodes under the logged actions, by agent.

    Args:
        episodes: logs, whole. What the model learned from them should be what stands before ``after``, or other episodes.
        horizon: H, steps that are predicted from one logged state.
        after: the steps at the beginning of each episode that are not predicted, (E,) or one number. A model that recognises
            agents by their past is shown those before each stretch.

    Agents with no step left to predict are left out.

    Raises:
        ValueError: nothing to predict, another shape of ``after``, an agent that the model does not know, a model without what
            ``DynamicsModel`` promises.
    """
    keeps("model", model, MODEL)
    check.count("horizon", horizon)
    agent, rows, live, age = _stretches(episodes, horizon, np.asarray(after))
    parts = [_errors(model, episodes, *part) for part in zip(
        *(torch.from_numpy(x).split(CHUNK) for x in (agent, rows, age)), strict=True)]
    error = np.concatenate(parts)
    state, true = episodes.state[rows[:, :1]], episodes.next_state[rows]
    return {int(number): _summarize(*(x[agent == number] for x in (error, true - state, true, live)))
            for number in np.unique(agent)}


def _stretches(episodes: Episodes, H: int, after: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of W stretches: agent (W,), rows (W, H), which of them exist (W, H), steps of the episode before (W,)."""
    if after.shape not in ((), (len(episodes),)) or after.dtype.kind not in "iu" or (after < 0).any():
        raise ValueError(f"after: expected a number of steps >= 0 for each of {len(episodes)} episodes, got {after.dtype} of "
                         f"shape {after.shape}; split gives it")
    first, episode = [], []
    for e, (begin, end) in enumerate(zip(episodes.start[:-1] + after, episodes.start[1:], strict=True)):
        first.append(np.arange(begin, end, H))
        episode.append(np.full(len(first[-1]), e))
    first, episode = np.concatenate(first), np.concatenate(episode)
    if len(first) == 0:
        raise ValueError(f"after: expected steps left to predict, got none in {len(episodes)} episodes; hold out more")
    rows, end = first[:, None] + np.arange(H), episodes.start[episode + 1][:, None]
    return episodes.agent[episode], np.minimum(rows, end - 1), rows < end, first - episodes.start[episode]


def _errors(model: DynamicsModel, episodes: Episodes, agent: Tensor, rows: Tensor, age: Tensor) -> np.ndarray:
    """Predicted less logged states of some stretches, (W, H, D)."""
    first, log = rows[:, 0], episodes.transitions()
    back = torch.arange(model.past, 0, -1)
    known = back <= age[:, None]                                         # (W, K)
    past, shown = (first[:, None] - back).clamp_min(0), known[..., None]
    view = EpisodeView(torch.arange(len(first)), agent, log.state[first], torch.where(shown, log.state[past], 0),
                       torch.where(shown, log.action[past], 0), known)
    start = log.state[first].expand(model.members, *log.state[first].shape)
    future = model.rollout(model.context(view), start, log.action[rows][:, None])[:, :, 0, 1:].double().cpu().mean(0)
    return (future - log.next_state[rows]).numpy()


def _summarize(error: np.ndarray, moved: np.ndarray, true: np.ndarray, live: np.ndarray) -> LoggedError:
    """error, moved, true: (W, H, D) of one agent, meaningful where live (W, H)."""
    square = np.square(np.where(np.isfinite(error), error, np.inf))
    each = np.where(live, square.mean(-1), 0)
    reached, seen = live.sum(0), true[live]
    spread = np.square(seen - seen.mean(0)).sum()
    by_step = np.sqrt(np.divide(each.sum(0), reached, out=np.full(len(reached), np.nan), where=reached > 0))
    return LoggedError(rmse=np.sqrt(square[live].mean(0)), overall=float(np.sqrt(square[live].mean())),
                       still=np.sqrt(np.square(moved[live]).mean(0)),
                       r2=float(1 - square[live].sum() / spread) if spread > 0 else float("nan"),
                       by_step=by_step, windows=np.sqrt(each.sum(1) / live.sum(1)), steps=int(live.sum()))
