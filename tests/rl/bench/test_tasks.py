"""Shards are a partition of the work that never trains the same thing twice and gives every shard its share of each method."""

from collections import Counter
from dataclasses import replace

import pytest

from lowrank_rl.rl.bench.options import Options, part
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.bench.suites import work
from lowrank_rl.rl.bench.tasks import shard, tasks

EVERYTHING = work(Options(suite="all", seeds=3))
OUT = dict.fromkeys(("mountaincar", "cartpole", "halfcheetah"), None)


def cut(of, whole=EVERYTHING):
    return [shard(whole, k + 1, of) for k in range(of)]


@pytest.mark.parametrize("of", [1, 2, 3, 7, 50])
def test_every_cell_is_in_one_shard_in_its_order(of):
    parts = cut(of)
    assert Counter(cell for one in parts for cell in one.cells) == Counter(EVERYTHING.cells)
    for one in parts:
        assert one.cells == [cell for cell in EVERYTHING.cells if cell in set(one.cells)]


@pytest.mark.parametrize("of", [2, 5])
def test_nothing_is_trained_twice_but_what_is_cloned(of, tmp_path):
    out = dict.fromkeys(OUT, tmp_path)
    trained = Counter(task.name for one in cut(of) for task in tasks(out, one, "cpu") if task.name.startswith("train"))
    whole = {task.name for task in tasks(out, EVERYTHING, "cpu") if task.name.startswith("train")}
    assert set(trained) == whole
    assert {name.split("/")[2] for name, times in trained.items() if times > 1} <= {"cloned"}


def test_each_shard_has_its_share_of_each_method():
    parts = cut(6)
    for environment in OUT:
        for method in ("persim", "bcq-p", "pe-ts-cadm", "true-env-mpc"):
            sizes = [sum((cell.environment, cell.method) == (environment, method) for cell in one.cells) for one in parts]
            assert max(sizes) - min(sizes) <= 5     # a training's agents stay together
    sizes = [len(one.cells) for one in parts]
    assert max(sizes) - min(sizes) < 0.1 * sum(sizes) / len(sizes)


def test_what_learned_nothing_can_be_cut_and_what_flies_stays_with_its_simulator():
    free = work(Options("halfcheetah", methods=("true-env-mpc",), seeds=1))
    assert [len(one.cells) for one in cut(5, free)] == [1] * 5
    flown = work(Options("cartpole", methods=("persim", "persim-bcq-5", "persim-cql-5"), datasets=("random",), seeds=2))
    for one in cut(2, flown):
        assert Counter(cell.method for cell in one.cells) == {"persim": 5, "persim-bcq-5": 5, "persim-cql-5": 5}
        assert len({cell.seed for cell in one.cells}) == 1


def test_more_shards_than_units_leaves_some_empty():
    few = work(Options("cartpole", methods=("persim",), datasets=("random",), seeds=2))
    assert sorted(len(one.cells) for one in cut(4, few)) == [0, 0, 5, 5]


@pytest.mark.parametrize("words", ["0/3", "4/3", "1", "1/0", "a/b", "1/", "-1/3", "1/2/3", ""])
def test_bad_shards(words):
    with pytest.raises(ValueError, match="--shard: expected i/n with i from 1 to n, such as 2/5, got "):
        part(words)
    assert part("2/5") == (2, 5)


def test_the_cloned_policy_is_made_once_before_whoever_uses_it(tmp_path):
    cell = Cell("halfcheetah", "pure", "persim", 1, 0, "best", "tiny")
    found = work(Options("halfcheetah", budget="tiny", methods=("persim", "cloned", "pooled"), datasets=("pure",), seeds=1))
    by_name = {task.name: task for task in tasks(dict.fromkeys(OUT, tmp_path), found, "cpu")}
    stage = "train halfcheetah/pure/cloned/seed 0"
    assert stage in by_name["train halfcheetah/pure/persim/seed 0"].needs
    assert stage not in by_name["train halfcheetah/pure/pooled/seed 0"].needs      # it has its own
    assert by_name[str(cell)].needs == {"train halfcheetah/pure/persim/seed 0"}
    assert by_name[str(replace(cell, method="cloned"))].needs == {stage}
    assert not by_name[next(name for name in by_name if name.startswith("data"))].gpu
    assert by_name[str(cell)].gpu


def test_tasks_share_what_is_shared(tmp_path):
    found = tasks({"cartpole": tmp_path}, work(Options("cartpole", budget="tiny", seeds=2, datasets=("random",))), "cpu")
    assert len(found) == 2 + 2 * 2 + 2 * 4 * 5       # data per seed, a training per seed and learner, the cells
    by_name = {task.name: task for task in found}
    assert len(by_name) == len(found)
    assert by_name["cartpole/random/pooled/agent 3/seed 1"].needs == {"train cartpole/random/pooled/seed 1"}
    assert by_name["train cartpole/random/pooled/seed 1"].needs == {"data cartpole-random-8-seed1"}
    assert by_name["cartpole/none/uniform/agent 3/seed 1"].needs == frozenset()
