"""How good is a simulator, and how good a policy: prediction error over a horizon, and return in the true environment."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.metrics import r2_score
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import MODEL, DynamicsModel, Environment, EpisodeView, Policy, keeps
from lowrank_rl.rl.data import Episodes, collect

BURN_IN = 10     # real steps before a prediction starts
WINDOW = 51      # predicted states: indices 10..60 of an episode


@dataclass(frozen=True)
class PredictionError:
    """Open-loop prediction of one agent's episodes, in the units of the state."""
    rmse: float                 # mean over episodes of sqrt(mean over steps and dimensions of the squared error)
    rmse_sd: float              # over episodes
    r2: float                   # median over episodes of the variance-weighted R2
    episodes: int               # those long enough to count
    dropped: int                # those that ended before the window
    by_step: np.ndarray         # (WINDOW,) root mean squared error over episodes and dimensions after 1, 2, ... steps
    true: np.ndarray            # (WINDOW, D) states of the first counted episode, NaN after its end
    predicted: np.ndarray       # (M, WINDOW, D) each member's prediction of them


@torch.no_grad()
def prediction_error(environment: Environment, model: DynamicsModel, covariates: Tensor, agents: list[int],
                     policy: Policy, *, episodes: int, seed: int) -> dict[int, PredictionError]:
    """The paper's test (section 5.2): 50-step open-loop error on trajectories of an unseen policy, by agent.

    ``policy`` acts in the true environment; after ``BURN_IN`` real steps the model predicts the next ``WINDOW`` states
    from one true state and the true actions. The prediction is the mean of the members' own rollouts, without draws. A model
    that wants to see the past is shown the steps of the burn-in.

    Args:
        covariates: (N, E) of all agents. agents: which of them to test.

    Raises:
        ValueError: a model or policy without what its contract promises, unknown agents, episodes that are all too short, a
            prediction that is NaN or Inf.
    """
    keeps("model", model, MODEL)
    agent = _rows(covariates, agents, episodes)
    steps = BURN_IN + WINDOW - 1
    real = collect(environment, covariates[agent], agent, policy, seed=seed, what="prediction-test", max_steps=steps)
    kept = np.flatnonzero(real.lengths > BURN_IN)
    first = torch.from_numpy(real.start[kept] + BURN_IN - 1)
    rows = first[:, None] + torch.arange(WINDOW)
    end = torch.from_numpy(real.start[kept + 1])[:, None]
    live = rows < end                                                     # (episodes kept, WINDOW)
    rows = torch.minimum(rows, end - 1)
    state, action = torch.from_numpy(real.state), torch.from_numpy(real.action)
    true = torch.from_numpy(real.next_state)[rows]
    start = state[first]
    context = model.context(_view_before(agent[kept], state, action, first, model.past))
    future = model.rollout(context, start.expand(model.members, *start.shape), action[rows][:, None])[:, :, 0, 1:].double()
    error = (future.mean(0) - true).numpy()
    return {number: _summarize(number, agent[kept].numpy(), error, true.numpy(), future.numpy(), live.numpy(), episodes)
            for number in agents}


def returns(environment: Environment, policy: Policy, covariates: Tensor, agents: list[int], *, episodes: int, seed: int,
            max_steps: int | None = None, progress: Callable[[int, int], None] | None = None) -> tuple[np.ndarray, Episodes]:
    """Undiscounted returns in the true environment, (agents, episodes), and the episodes themselves.

    All episodes of all agents step in lockstep.

    Raises:
        ValueError: a policy without what its contract promises, unknown agents, an action outside the bounds.
    """
    agent = _rows(covariates, agents, episodes)
    real = collect(environment, covariates[agent], agent, policy, seed=seed, what="return-test", max_steps=max_steps,
                   progress=progress)
    return real.returns.reshape(len(agents), episodes), real


def _view_before(agent: Tensor, state: Tensor, action: Tensor, first: Tensor, past: int) -> EpisodeView:
    """What a model may see at the rows ``first`` (B,) of logged steps: of each, the ``past`` steps before, as far as the
    burn-in goes back."""
    back = torch.arange(past, 0, -1)
    known = (back < BURN_IN).expand(len(first), -1)                       # the start of the episode is BURN_IN - 1 rows before
    rows = (first[:, None] - back).clamp_min(0)
    hide = known[..., None]
    return EpisodeView(torch.arange(len(first)), agent, state[first], torch.where(hide, state[rows], 0),
                       torch.where(hide, action[rows], 0), known)


def _rows(covariates: Tensor, agents: list[int], episodes: int) -> Tensor:
    """The agent of each of the episodes to run."""
    check.count("episodes", episodes)
    agent = torch.tensor(agents, dtype=torch.int64)
    if len(agent) == 0:
        raise ValueError("agents: expected at least one, got none")
    check.within("agents", agent, len(covariates))
    return agent.repeat_interleave(episodes)


def _summarize(number: int, agent: np.ndarray, error: np.ndarray, true: np.ndarray, future: np.ndarray,
               live: np.ndarray, episodes: int) -> PredictionError:
    mine = np.flatnonzero(agent == number)
    if len(mine) == 0:
        raise ValueError(f"agent {number}: expected test episodes longer than {BURN_IN} steps, got none of {episodes}; "
                         "test with more episodes or another policy")
    lost = (~np.isfinite(error[mine]).all(-1) & live[mine]).any(1).sum()
    if lost:
        raise ValueError(f"agent {number}: expected finite predictions, got NaN or Inf in {lost} of {len(mine)} episodes; "
                         "train longer or check the model's data")
    error, true, live = error[mine], np.where(live[mine][..., None], true[mine], np.nan), live[mine]
    square = np.where(live, np.square(np.where(live[..., None], error, 0)).mean(-1), np.nan)
    rmse = np.sqrt(np.nanmean(square, axis=1))
    r2 = [r2_score(t[ok], t[ok] + e[ok], multioutput="variance_weighted")
          for t, e, ok in zip(true, error, live, strict=True)]
    alive = live.any(0)
    by_step = np.full(live.shape[1], np.nan)
    by_step[alive] = np.sqrt(np.nanmean(square[:, alive], axis=0))
    return PredictionError(rmse=float(rmse.mean()), rmse_sd=float(rmse.std()), r2=float(np.median(r2)),
                           episodes=len(mine), dropped=episodes - len(mine), by_step=by_step, true=true[0],
                           predicted=future[:, mine[0]])
