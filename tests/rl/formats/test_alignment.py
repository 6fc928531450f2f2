"""What a known environment contradicts is refused: wrong ends, wrong rewards, and whatever stands one step off."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from logged import CARTPOLE, HALFCHEETAH, MOUNTAINCAR, some
from stand_ins import energy_pumping

from lowrank_rl.rl.data import agents, collect
from lowrank_rl.rl.formats.alignment import check_environment

LATE, EARLY = 1, -1


def arrived():
    """Two MountainCars that reach the goal."""
    return collect(MOUNTAINCAR, agents(MOUNTAINCAR, 5, seed=0)[:2], torch.arange(2), energy_pumping(), seed=0, what="test")


def shifted(episodes, name, by):
    """That array one row later or earlier within each episode; the row left over keeps what it had."""
    array = getattr(episodes, name).copy()
    for begin, end in zip(episodes.start[:-1], episodes.start[1:], strict=True):
        if by == LATE:
            array[begin + 1:end] = getattr(episodes, name)[begin:end - 1]
        else:
            array[begin:end - 1] = getattr(episodes, name)[begin + 1:end]
    return replace(episodes, **{name: array})


def checked(episodes, environment):
    check_environment(episodes, environment, lambda row: f"row {row}")


@pytest.mark.parametrize("episodes", [some(CARTPOLE), some(MOUNTAINCAR), some(HALFCHEETAH, 6), arrived()])
def test_what_happened_passes(episodes):
    environment = {e.name: e for e in (CARTPOLE, MOUNTAINCAR, HALFCHEETAH)}[episodes.environment]
    checked(episodes, environment)
    checked(replace(episodes, covariates=np.empty((len(episodes), 0))), environment)


@pytest.mark.parametrize(("by", "word"), [(LATE, "late"), (EARLY, "early")])
def test_shifted_rewards_are_refused(by, word):
    logs = [(some(HALFCHEETAH, 6), HALFCHEETAH), (arrived(), MOUNTAINCAR)]
    for episodes, environment in logs[:1] if by == LATE else logs:      # late, all that is left of MountainCar's are -1
        with pytest.raises(ValueError, match=rf"reward: expected {environment.name}'s reward\(state, action, next_state\), "
                                             rf"got others in .* rows, as if rewards stood one row too {word}, the first at "
                                             "row .*; shift the column, or leave rewards out"):
            checked(shifted(episodes, "reward", by), environment)


@pytest.mark.parametrize(("by", "word"), [(LATE, "late"), (EARLY, "early")])
def test_shifted_actions_are_refused(by, word):
    """HalfCheetah's rewards tell; elsewhere, and where rewards were computed anew, it takes the covariates."""
    moved = shifted(some(HALFCHEETAH, 6), "action", by)
    with pytest.raises(ValueError, match=f"reward: expected .*, as if actions stood one row too {word}, the first"):
        checked(moved, HALFCHEETAH)
    anew = HALFCHEETAH.reward(*map(torch.from_numpy, (moved.state, moved.action, moved.next_state))).numpy()
    for episodes, environment in ((replace(moved, reward=anew), HALFCHEETAH),
                                  (shifted(some(CARTPOLE), "action", by), CARTPOLE),
                                  (shifted(some(MOUNTAINCAR), "action", by), MOUNTAINCAR)):
        with pytest.raises(ValueError, match="action: expected what led from each state to the next, got others, as if "
                                             f"actions stood one row too {word}; shift the column"):
            checked(episodes, environment)
        checked(replace(episodes, covariates=np.empty((len(episodes), 0))), environment)      # nobody could tell


def test_other_physics_are_no_shift():
    episodes = some(CARTPOLE)
    checked(replace(episodes, covariates=1.1 * episodes.covariates), CARTPOLE)


def test_rewards_of_another_convention_are_refused_without_a_guess():
    """The paper's CartPole gives nothing for the last step; Gymnasium's MountainCar takes 1 for the step to the goal."""
    episodes = some(CARTPOLE)
    last = episodes.start[1:] - 1
    silent = episodes.reward.copy()
    silent[last] = 0
    with pytest.raises(ValueError, match=rf"in 4 of {len(silent)} rows, the first at row {last[0]} \(0 for 1\);"):
        checked(replace(episodes, reward=silent), CARTPOLE)
    episodes = arrived()
    with pytest.raises(ValueError, match=r"got others in 2 of \d+ rows, the first at row \d+ \(-1 for 0\);"):
        checked(replace(episodes, reward=np.full_like(episodes.reward, -1)), MOUNTAINCAR)


def test_ends_and_limits_are_told_apart():
    fallen, driving = some(CARTPOLE), some(MOUNTAINCAR)
    assert fallen.terminated.any()
    with pytest.raises(ValueError, match="terminated: expected True only where mountaincar ends, got others in 4 of 160 "
                                         "rows, the first at row 39; what a step limit cuts off is truncated, not terminated"):
        checked(replace(driving, terminated=~driving.terminated), MOUNTAINCAR)
    with pytest.raises(ValueError, match="terminated: expected True wherever cartpole ends, .*; mark these steps and let"):
        checked(replace(fallen, terminated=np.zeros(4, dtype=bool)), CARTPOLE)
    with pytest.raises(ValueError, match="terminated: expected True wherever cartpole ends"):      # went on after the end
        checked(replace(fallen, start=fallen.start[[0, -1]], terminated=fallen.terminated[-1:], agent=fallen.agent[:1],
                        covariates=fallen.covariates[:1]), CARTPOLE)
