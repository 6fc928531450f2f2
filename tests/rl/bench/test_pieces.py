import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lowrank_rl.rl.bench import cases, pieces, train, versions
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


def test_planners_of_older_records_kept_to_nothing():
    for each, same in ((CELL, True), (replace(CELL, environment="cartpole"), False)):
        recorded = copy.deepcopy(settings_of(each))
        del recorded["planning"]["planner"]["near"]
        assert same_settings(recorded, settings_of(each)) == same


def test_a_setting_that_is_gone_makes_a_difference():
    recorded = copy.deepcopy(settings_of(CELL))
    recorded["learning"]["old"] = 1
    assert not same_settings(recorded, settings_of(CELL))


@pytest.mark.parametrize(("stage", "changed"), [
    ("data", {"data", "model", "clone", "settings"}), ("persim", {"model", "settings"}), ("cloned", {"clone", "settings"}),
    ("planned", {"settings"}), ("tested", {"settings"}), ("bcq", set())])
def test_a_raised_version_makes_what_depends_on_it_anew(monkeypatch, stage, changed):
    cell = replace(CELL, environment="halfcheetah")

    def known():
        return {"data": pieces.data_path(Path(), cell), "model": pieces.model_path(Path(), cell),
                "clone": pieces.clone_path(Path(), cell), "settings": settings_of(cell)}
    before = known()
    monkeypatch.setitem(versions.VERSIONS, stage, 2)
    after = known()
    assert {name for name in before if after[name] != before[name]} == changed
    assert same_settings(before["settings"], after["settings"]) == ("settings" not in changed)


def test_few_agents_are_the_first_of_all_with_the_same_logs(tmp_path, monkeypatch):
    monkeypatch.setitem(cases.DATASETS, "random-of-6", cases.Logs("random", 6))
    whole = Cell("cartpole", "random", "persim", 1, 3, "best", "tiny")
    few = replace(whole, dataset="random-of-6")
    for cell in (whole, few):
        train.make_data(tmp_path, cell, lambda words, share: None)
    all_logs, logs = pieces.load_data(tmp_path, whole), pieces.load_data(tmp_path, few)
    end = logs.start[-1]
    assert (len(all_logs), len(logs)) == (8, 6)
    for name in ("state", "action", "next_state", "reward"):
        assert np.array_equal(getattr(logs, name), getattr(all_logs, name)[:end])
    assert np.array_equal(logs.covariates, all_logs.covariates[:6])
    assert settings_of(few)["budget"] == {**settings_of(whole)["budget"], "agents": 6}
    assert pieces.model_path(tmp_path, few) != pieces.model_path(tmp_path, whole)


def test_more_agents_than_the_budget_has_are_those_of_the_budget():
    few = Cell("cartpole", "random-of-25", "persim", 1, 0, "best", "tiny")
    assert settings_of(few) == settings_of(replace(few, dataset="random"))


@pytest.mark.parametrize(("settings", "epochs"), [("best", 12 * 20), ("paper", 150)])
def test_networks_of_few_logs_get_as_many_updates_in_our_settings(settings, epochs):
    few = Cell("halfcheetah", "random-of-25", "persim", 1, 0, settings, "small")
    whole, learned = pieces.learning(replace(few, dataset="random")), pieces.learning(few)
    assert learned == replace(whole, adam=replace(whole.adam, epochs=epochs))
