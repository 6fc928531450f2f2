"""Unseen agents: the rows and numbers that benchmarks/unseen.py finds, nothing trained for them, and settings that say how."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lowrank_rl.rl import data
from lowrank_rl.rl.bench import baselines, cases, newcomers, pieces, run, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.bench.suites import WAYS, Work
from lowrank_rl.rl.bench.tasks import shard, tasks
from lowrank_rl.rl.contracts import Box, Transitions, fresh_view
from lowrank_rl.rl.policies.cloned import CloneConfig, fit_cloned

CELL = Cell("mountaincar", "random", "persim", 6, 0, "best", "tiny")
BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def quiet(words, share):
    pass


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("newcomers")


@pytest.fixture(scope="module")
def script():
    """benchmarks/unseen.py"""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        spec = importlib.util.spec_from_file_location("benchmark_of_unseen_agents", BENCHMARKS / "unseen.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(importlib.sys.modules, spec.name, module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("settings", "way", "name"), [
    ("best", cases.Way(1.0), "best"), ("best", cases.Way(0.5), "best"), ("paper", cases.Way(1.0), "paper"),
    ("best", cases.Way(steps=5), "few-shot"), ("best", cases.Way(steps=100), "few-shot"), ("best", cases.Way(1.0, 10), "both")])
def test_rows_are_those_of_the_script(settings, way, name, out, script, monkeypatch):
    cell = replace(CELL, settings=settings, method="persim-p10-k10")
    monkeypatch.setitem(cases.METHODS, cell.method, replace(cases.METHODS[cell.method], unseen=way))
    train.make_data(out, cell, quiet)
    train.train(out, cell, "cpu", quiet)
    found, told = newcomers.simulated(cell, pieces.load_model(out, cell))
    wanted, how = script.extended(out, replace(cell, method="persim"), name, way.fraction, way.steps)
    assert found.rows.shape[1] == 8 + 5
    assert torch.equal(found.rows, wanted.rows)
    assert ("shown" in told) == bool(way.steps)
    if way.steps:
        assert told["shown"] == way.steps
        assert how["shown"] == " ".join([str(way.steps)] * 5)
    assert ("bases" in told) == bool(way.fraction and settings == "best")


def logged(environment, dataset):
    """The unseen agents' first hundred steps, as results/unseen.csv was made from: its fewer ones are the first of these."""
    where, agents = cases.ENVIRONMENTS[environment], torch.tensor(cases.UNSEEN[environment], dtype=torch.float64)
    return data.collect(where, agents, torch.arange(5), cases.BEHAVIOUR[dataset](where, agents), seed=0, what="unseen",
                        max_steps=100).transitions()


@pytest.mark.parametrize("dataset", ["random", "pure", "pure-of-25"])
def test_own_steps_are_the_first_of_a_longer_log(dataset):
    mine = newcomers.own_steps(replace(CELL, dataset=dataset, method="persim-k10"), 10)
    longer = logged("mountaincar", dataset.removesuffix("-of-25"))
    first = torch.cat([(longer.agent == agent).nonzero()[:10, 0] for agent in range(5)])
    for name in ("agent", "state", "action", "next_state"):
        assert torch.equal(getattr(mine, name), getattr(longer, name)[first])
    assert len(first) == 50


def test_an_episode_may_end_before_so_many_steps():
    """Poles fall under random actions."""
    cell = replace(CELL, environment="cartpole", method="persim-k100")
    lengths = torch.bincount(newcomers.own_steps(cell, 100).agent).tolist()
    assert lengths == torch.bincount(logged("cartpole", "random").agent).tolist()
    assert min(lengths) < 100


def test_a_cell_gives_the_scripts_numbers(out, script, monkeypatch):
    monkeypatch.setitem(script.EPISODES, "mountaincar", 2)
    cell = replace(CELL, method="persim-k25", agent=9)
    train.make_data(out, cell, quiet)
    train.train(out, cell, "cpu", quiet)
    record = run.run_cell(out, cell, "cpu", quiet)
    model, _ = script.extended(out, replace(cell, method="persim"), "few-shot", None, 25)
    assert f"{record.rmse:.3e}" == script.errors(cell, model)["rmse 4"]
    assert record.training["shown"] == 25
    assert record.config == pieces.settings_of(cell)
    assert pieces.trace_path(out, cell).exists()


def test_nothing_is_trained_for_them(tmp_path):
    cells = [replace(CELL, method=name) for name in (*WAYS, "vanilla-cadm", "bcq-p")]
    named = {task.name: task for task in tasks({"mountaincar": tmp_path}, Work(cells), "cpu")}
    assert {name for name in named if name.startswith("train")} == {
        f"train mountaincar/random/{name}/seed 0" for name in ("persim", "vanilla-cadm", "bcq-p")}
    assert {task.needs for name, task in named.items() if "/persim-" in name} == {
        frozenset(["train mountaincar/random/persim/seed 0"])}
    for name in ("vanilla-cadm", "bcq-p", *WAYS):
        alike = replace(CELL, method=name if name not in WAYS else "persim", agent=1)
        assert pieces.model_path(tmp_path, replace(CELL, method=name)) == pieces.model_path(tmp_path, alike)
    together = shard(Work([replace(CELL, agent=1), *cells]), 1, 2)       # with the simulators that they use
    assert {cell.method for cell in together.cells} in ({"persim", *WAYS}, {"vanilla-cadm", "bcq-p"})


def test_settings_say_how_and_of_test_agents_nothing():
    def found(**changes):
        return pieces.settings_of(replace(CELL, **changes)).get("unseen")
    cars = [[0.00005], [0.00008], [0.002], [0.0037], [0.004]]            # Table 12
    assert found(method="persim-p50", budget="small") == {
        "covariates": cars, "fraction": 0.5, "known": 250, "regression": "polynomial"}
    assert found(method="persim-p10", budget="small", settings="paper")["regression"]["network"]["hidden"] == [64, 64]
    assert found(method="persim-k5") == {"covariates": cars, "steps": 5}
    assert found(method="persim-p10-k10", budget="paper") == {
        "covariates": cars, "steps": 10, "fraction": 0.1, "known": 50, "regression": "polynomial"}
    assert found(method="vanilla-cadm") == {"covariates": cars}
    assert found(agent=1) is None
    assert found(method="vanilla-cadm", agent=5) is None
    # of eight agents a tenth is none: as many as a plane and its error need
    assert (found(method="persim-p10")["known"], found(method="persim-p10", environment="cartpole")["known"]) == (4, 5)
    assert pieces.settings_of(replace(CELL, method="persim-k5"))["learning"] == pieces.settings_of(replace(CELL, agent=1))[
        "learning"]


def test_everybody_is_behind_the_logged_agents():
    tests, number = newcomers.everybody(replace(CELL, agent=4))
    assert (len(tests), number) == (8, 3)
    everybody, number = newcomers.everybody(replace(CELL, agent=7, method="bcq-p"))
    assert (len(everybody), number) == (13, 9)
    assert torch.equal(everybody[:8], tests)
    assert everybody[number].tolist() == [0.00008] == list(cases.covariates("mountaincar", 7))


def test_everybodys_policy_acts_for_them(out):
    cell = replace(CELL, method="bcq-p", agent=10)
    train.make_data(out, cell, quiet)
    train.train(out, cell, "cpu", quiet)
    record = run.run_cell(out, cell, "cpu", quiet)
    assert record.status == "done"
    assert len(record.returns) == 2
    assert record.rmse is None
    trained = pieces.load_policy(out, cell)
    assert newcomers.learned(replace(cell, agent=1), trained) is trained
    policy, state = newcomers.learned(cell, trained), torch.tensor([[-0.5, 0.0]], dtype=torch.float64)
    policy.reset(torch.tensor([12]))
    draws = [torch.Generator().manual_seed(0)], [torch.Generator().manual_seed(0)]
    first, last = (policy.act(fresh_view(torch.tensor([agent]), state, 1), generators=draw)
                   for agent, draw in zip((0, 12), draws, strict=True))
    assert torch.equal(first, last)
    with pytest.raises(ValueError, match="agent"):
        trained.reset(torch.tensor([12]))


def test_cadm_and_the_pooled_model_take_them_as_they_are(out):
    for method in ("pooled", "vanilla-cadm"):
        cell = replace(CELL, method=method, agent=6)
        train.make_data(out, cell, quiet)
        train.train(out, cell, "cpu", quiet)
        trained = pieces.load_model(out, cell)
        model, told = newcomers.simulated(cell, trained)
        assert told == {}
        assert newcomers.simulated(replace(cell, agent=1), trained)[0] is trained
        contexts = [model.context(fresh_view(torch.tensor([agent]), torch.zeros(1, 2, dtype=torch.float64), 1))
                    for agent in (0, 12)]
        assert torch.equal(*contexts)


def test_plans_for_them_follow_the_typical_pilots():
    draw = torch.Generator().manual_seed(0)
    agent, state = torch.arange(240) % 8, torch.randn(240, 3, generator=draw, dtype=torch.float64)
    action = (state[:, :1] * torch.where(agent % 2 == 0, 0.5, -0.5)[:, None]).clamp(-1, 1)
    guide = fit_cloned(Transitions(agent, state, action, state), 8, Box(-1.0, 1.0, 1),
                       CloneConfig(rank=2, hidden=(8,), epochs=2, skills=2), seed=0)
    cell = replace(CELL, environment="halfcheetah", method="persim-k5")
    more = newcomers.piloted(cell, guide)
    assert torch.allclose(more.rows[:8], guide.rows)
    assert torch.allclose(more.rows[8:], guide.skills[:1].expand(5, -1))
    assert torch.equal(more.skills, guide.skills)
    assert more.pull == guide.pull
    one = more.act(fresh_view(torch.tensor([12]), state[:1], 1), generators=[])
    assert torch.allclose(one, guide.choose(guide.skills[:1], state[:1]))
    assert newcomers.piloted(replace(cell, agent=1), guide) is guide


def test_who_serves_whom():
    for name in cases.METHODS:
        assert cases.serves(name, False) == (name not in WAYS)
    assert {name for name in cases.METHODS if cases.serves(name, True)} == {
        *WAYS, "vanilla-cadm", "pe-ts-cadm", "bcq-p", "cql-p", "morel-p", "pooled", "true-env-mpc", "uniform"}
    assert all(baselines.budget_of(replace(CELL, method=name)) == baselines.budget_of(replace(CELL, agent=1)) for name in WAYS)
