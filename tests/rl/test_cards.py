"""The card of a data set: what it says, and what the paper's Table 5 has beside it."""

from dataclasses import replace

import numpy as np
import pytest

from lowrank_rl.rl.cards import card, paper_numbers
from lowrank_rl.rl.data import Episodes
from lowrank_rl.rl.envs import cartpole, halfcheetah, mountaincar

CARTPOLE, MOUNTAINCAR = cartpole.ENVIRONMENT, mountaincar.ENVIRONMENT


def cars(lengths, agents, policy="random"):
    """Episodes of MountainCars that stand still at places 0, 1, 2, ..., -1 for each step."""
    rows = sum(lengths)
    state = np.arange(2.0 * rows).reshape(rows, 2)
    return Episodes("mountaincar", policy, 7, np.arange(1.0, 1 + len(agents))[:, None], np.array(agents),
                    np.concatenate([[0], np.cumsum(lengths)]), state, np.ones((rows, 1), dtype=np.int64), state,
                    np.full(rows, -1.0), np.arange(len(agents)) == 0)


def test_the_card_says_what_is_in_the_data():
    text = card(cars([3, 1, 4], [1, 0, 1], "mine"), MOUNTAINCAR)
    for words in ("mountaincar / mine, seed 7", "agents        2, episodes 3, transitions 8", "mean 2.7, from 1 to 4 steps",
                  "33.3% reached an end", "mean -2.67, sd 1.25, from -4 to -1"):
        assert words in text
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines()[4:]}
    assert lines["ours"] == ["-1.00", "-3.50", "-", "-", "-", "-2.67", "2.67"]      # agent 2's mean over its two episodes
    assert lines["position"] == ["0", "..", "14", "mean", "7", "sd", f"{np.std(np.arange(0, 16, 2)):.4g}"]
    assert lines["gravity"][:3] == ["1", "..", "3"]
    assert lines["action"][:4] == ["0", "1", "..", "1"]
    assert "Table 5" not in text


def test_the_paper_s_numbers_stand_under_ours():
    lines = card(cars([2] * 5, range(5)), MOUNTAINCAR).splitlines()
    i = next(i for i, line in enumerate(lines) if line.startswith("test agents"))
    assert lines[i].split()[-2:] == ["average", "length"]
    assert lines[i + 1].split() == ["ours", *["-2.00"] * 6, "2.00"]
    assert lines[i + 2].split() == ["paper,", "Table", "5", *["-500.00"] * 5, "-496.32", "496.34"]
    assert len({len(line) for line in lines[i:i + 3]}) == 1


def test_cartpole_s_missing_step_is_noted():
    fallen = replace(cars([2] * 5, range(5), "pure-eps-40"), environment="cartpole", state=np.zeros((10, 4)),
                     covariates=np.ones((5, 2)))
    assert "omit one step of each episode" in card(fallen, CARTPOLE)
    assert "omit one step" not in card(replace(fallen, policy="mine"), CARTPOLE)


def test_logs_without_covariates_have_a_card():
    text = card(replace(cars([2], [0]), covariates=np.zeros((1, 0))), MOUNTAINCAR)
    assert "velocity" in text
    assert "gravity" not in text


@pytest.mark.parametrize("environment", [MOUNTAINCAR, CARTPOLE, halfcheetah.ENVIRONMENT])
def test_table_5_is_whole_and_agrees_with_what_is_known_of_it(environment):
    """CartPole's lengths exceed its returns by 1, MountainCar's by the share that arrives; HalfCheetah never ends."""
    for dataset in ("pure", "random", "pure-eps-20", "pure-eps-40"):
        *agents, average, length = paper_numbers()[environment.name, dataset]
        assert len(agents) == 5
        if environment is CARTPOLE:
            assert length - average == pytest.approx(1)
        elif environment is MOUNTAINCAR:
            assert 500 * (length + average) == pytest.approx(round(500 * (length + average)))    # arrivals, a whole number
            assert 0 < length + average < 1
        else:
            assert length == 1000
    assert len(paper_numbers()) == 12
