import copy

import pytest

from lowrank_rl.rl.bench.pieces import same_settings, settings_of
from lowrank_rl.rl.bench.store import Cell

CELL = Cell("mountaincar", "random", "persim", 1, 0, "best", "quick")


def test_settings_are_their_own():
    assert same_settings(settings_of(CELL), settings_of(CELL))


@pytest.mark.parametrize(("path", "value"), [
    (("budget", "agents"), 7), (("learning", "adam", "epochs"), 7), (("learning", "init"), "linear"),
    (("planning", "planner", "horizon"), 7)])
def test_another_value_is_another_setting(path, value):
    recorded = copy.deepcopy(settings_of(CELL))
    inner = recorded
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    assert not same_settings(recorded, settings_of(CELL))


def test_a_setting_added_since_then_is_the_same_at_its_default_only():
    paper = Cell("mountaincar", "random", "persim", 1, 0, "paper", "quick")    # looks for no walls
    for each, same in ((CELL, True), (paper, False)):
        recorded = copy.deepcopy(settings_of(each))
        del recorded["learning"]["walls"]
        assert same_settings(recorded, settings_of(each)) == same


def test_a_setting_that_is_gone_makes_a_difference():
    recorded = copy.deepcopy(settings_of(CELL))
    recorded["learning"]["old"] = 1
    assert not same_settings(recorded, settings_of(CELL))
