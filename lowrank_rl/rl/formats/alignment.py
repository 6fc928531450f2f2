"""Whether logged steps are what they say: each action and reward in its own step, one end per episode.

A log shifted by one step trains without a complaint and predicts nothing, so doors refuse it here.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from lowrank_rl.rl.contracts import Box, Discrete, Environment
from lowrank_rl.rl.data import Episodes

TOLERANCE = 1e-5      # of rewards and states, absolute and relative: logs are often float32
SIMULATED = 1000      # steps that are simulated to find shifted actions

Where = Callable[[int], str]      # names a row as its owner knows it: "agent 'anna', time 7"


def refuse(bad: np.ndarray, where: Where, expected: str, remedy: str) -> None:
    """Raise a ValueError that says how many rows are bad and which is the first. bad: (rows,) bool"""
    if bad.any():
        raise ValueError(f"{expected}, got others in {int(bad.sum())} of {len(bad)} rows, the first at "
                         f"{where(int(bad.argmax()))}; {remedy}")


def chosen(action: np.ndarray, kind: Discrete | Box | None, where: Where) -> np.ndarray:
    """Actions (rows, A) of this kind, int64 or float64; without a kind one column of whole numbers is discrete.

    Raises:
        ValueError: actions outside the bounds, fractions among discrete ones, or another number of components.
    """
    whole = action.dtype.kind in "biu"
    if kind is None:
        return action.astype(np.int64 if whole and action.shape[1] == 1 else np.float64)
    if action.shape[1] != kind.size:
        raise ValueError(f"action: expected {kind.size} components, got {action.shape[1]}; give all and no others")
    low, high = (0, kind.n - 1) if isinstance(kind, Discrete) else (kind.low, kind.high)
    fits = (action >= low) & (action <= high)
    if isinstance(kind, Discrete):
        refuse(~(fits & (action == np.floor(action))).all(axis=1), where, f"action: expected whole numbers {low}..{high}",
               "number the choices from 0")
        return action.astype(np.int64)
    refuse(~fits.all(axis=1), where, f"action: expected numbers in [{low:g}, {high:g}]", "rescale or clip them")
    return action.astype(np.float64)


def ends(start: np.ndarray, terminated: np.ndarray, truncated: np.ndarray, where: Where) -> np.ndarray:
    """Whether each episode reached an end, (E,); any other was cut off. terminated, truncated: (rows,) bool

    Raises:
        ValueError: an end before the last step of an episode.
    """
    inside = _has_next(start)
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        refuse(flag & inside, where, f"{name}: expected True in the last step of an episode only",
               "number what follows as another episode")
    return terminated[start[1:] - 1]


def check_chain(episodes: Episodes, where: Where) -> None:
    """Refuse a step that does not begin where the one before it ended."""
    broken = np.zeros(len(episodes.state), dtype=bool)
    broken[:-1] = (episodes.next_state[:-1] != episodes.state[1:]).any(axis=1)
    refuse(broken & _has_next(episodes.start), where, "next_state: expected the state of the episode's next step",
           "number what follows a gap as another episode")


def check_environment(episodes: Episodes, environment: Environment, where: Where) -> None:
    """Refuse what the environment contradicts: ends that are none, other rewards, and actions shifted by a step.

    Rewards tell where they depend on what happened. Where the agents' covariates are known, the first steps are
    simulated too; logs of other physics fit at no shift and pass.
    """
    name, ended = environment.name, environment.ended(*_tensors(episodes.next_state)).numpy()
    terminated = np.zeros_like(ended)
    terminated[episodes.start[1:] - 1] = episodes.terminated
    refuse(terminated & ~ended, where, f"terminated: expected True only where {name} ends",
           "what a step limit cuts off is truncated, not terminated")
    refuse(ended & ~terminated, where, f"terminated: expected True wherever {name} ends",
           "mark these steps and let another episode begin behind them")
    _check_reward(episodes, environment, where)
    if environment.covariate_names and episodes.covariates.shape[1] == len(environment.covariate_names):
        _check_simulated(episodes, environment)


def _check_reward(episodes: Episodes, environment: Environment, where: Where) -> None:
    state, action, next_state = _tensors(episodes.state, episodes.action, episodes.next_state)
    due, got = environment.reward(state, action, next_state).numpy(), episodes.reward
    wrong = ~_close(got, due)
    if not wrong.any():
        return
    guess = ""
    for row, found, time in _shifts(episodes.start):
        varied = wrong[found].any() and np.ptp(got[found]) > 0      # constant rewards fit any shift
        if varied and _close(got[found], due[row]).all():
            guess = f", as if rewards stood one row too {time}"
        elif wrong[row].any() and _close(got[row], environment.reward(state[row], action[found], next_state[row])).all():
            guess = f", as if actions stood one row too {time}"
    first = int(wrong.argmax())
    raise ValueError(f"reward: expected {environment.name}'s reward(state, action, next_state), got others in "
                     f"{int(wrong.sum())} of {len(wrong)} rows{guess}, the first at {where(first)} ({got[first]:g} for "
                     f"{due[first]:g}); shift the column, or leave rewards out to have them computed")


def _check_simulated(episodes: Episodes, environment: Environment) -> None:
    covariates = np.repeat(episodes.covariates, episodes.lengths, axis=0)

    def fits(row: np.ndarray, found: np.ndarray) -> bool:
        after = environment.step(*_tensors(covariates[row], episodes.state[row], episodes.action[found]))
        return bool(_close(after, episodes.next_state[row]).all())

    for row, found, time in _shifts(episodes.start):
        row, found = row[:SIMULATED], found[:SIMULATED]
        if len(row) and not fits(row, row) and fits(row, found):
            raise ValueError("action: expected what led from each state to the next, got others, as if actions stood one row "
                             f"too {time}; shift the column within each episode")


def _shifts(start: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Rows, the neighbour of each in which its action or reward would stand, and what that is called."""
    earlier = np.flatnonzero(_has_next(start))
    yield earlier, earlier + 1, "late"
    yield earlier + 1, earlier, "early"


def _has_next(start: np.ndarray) -> np.ndarray:
    """Which rows are not the last of their episode, (rows,)."""
    inside = np.ones(start[-1], dtype=bool)
    inside[start[1:] - 1] = False
    return inside


def _close(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.isclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


def _tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)
