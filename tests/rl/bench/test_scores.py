"""The ends of the scores' scales, against hand-made numbers and policies that everybody can check."""

import csv
from importlib.resources import files

import numpy as np
import pytest
import torch

from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.scores import Scale, scales
from lowrank_rl.rl.envs import mountaincar


def test_a_score_is_linear_between_both_ends():
    scale = Scale(random=-300.0, best=-100.0, source="by hand")
    assert scale.score(np.array([-300.0, -250.0, -100.0, -90.0])).tolist() == [0.0, 25.0, 100.0, 105.0]


@pytest.mark.parametrize("best", [-300.0, -400.0, float("nan")])
def test_a_best_that_is_none_is_refused(best):
    with pytest.raises(ValueError, match="best: expected a return above -300.0"):
        Scale(random=-300.0, best=best, source="by hand")


def test_every_agent_has_a_scale_where_a_best_is_known():
    assert set(scales()) == {(name, agent) for name in ("mountaincar", "cartpole") for agent in range(1, 6)}
    assert {scales()["cartpole", agent].best for agent in range(1, 6)} == {200.0}


def test_random_actions_were_measured_for_every_agent():
    with files("lowrank_rl.rl.bench").joinpath("reference_returns.csv").open() as file:
        measured = {(row["environment"], row["agent"]) for row in csv.DictReader(file) if row["what"] == "random"}
    assert measured == {(name, str(agent)) for name in cases.ENVIRONMENTS for agent in range(1, 6)}


@pytest.mark.parametrize(("agent", "known"), list(enumerate((37.4, 22.5, 16.6, 30.2, 11.1), start=1)))
def test_random_actions_on_cartpole(agent, known):
    """Known from an independent implementation."""
    assert scales()["cartpole", agent].random == pytest.approx(known, rel=0.1)


@pytest.mark.parametrize("agent", [1, 2, 3])
def test_mountaincars_best_is_to_push_right_where_gravity_is_weak(agent):
    """No policy beats the optimum, and these cars can climb at once."""
    start = -0.6 + 0.2 * (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    state, steps = torch.stack([start, torch.zeros_like(start)], dim=1), torch.full((1000,), 500)
    gravity = torch.full((1000, 1), mountaincar.ENVIRONMENT.test_agents[agent - 1][0])
    for t in range(100):
        state = mountaincar.step(gravity, state, torch.full((1000, 1), 2))
        steps[mountaincar.ended(state) & (steps > t)] = t + 1
    assert scales()["mountaincar", agent].best == pytest.approx(1 - steps.double().mean().item(), abs=1e-3)
