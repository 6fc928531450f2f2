"""What a table runs is what the paper prints: every cell with a published number, and no other."""

import csv
import math
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.options import Options, checked
from lowrank_rl.rl.bench.suites import FIGURES, TABLES, WITHOUT, work


def printed(table):
    """(environment, dataset, method, agent) of the paper's numbers, blank ones too: some were lost, but were measured."""
    known = {"": "", "1.0": "-p100", "0.5": "-p50", "0.25": "-p25", "0.1": "-p10"}
    with files("lowrank_rl.rl.bench").joinpath("paper_results.csv").open() as file:
        return {(row["environment"], row["dataset"] + (f"-of-{row['n_agents']}" if table >= 14 else ""),
                 row["method"] + known[row["covariate_fraction"]],
                 str(int(row["agent"]) + 5) if table in (12, 13) else row["agent"])
                for row in csv.DictReader(file) if row["table"] == str(table)}


def runs(**options):
    return work(checked(Options(**options)))


@pytest.mark.parametrize("table", [1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16])
def test_a_table_runs_exactly_the_cells_with_a_printed_number(table):
    found = runs(table=table, budget="paper")
    cells = {(cell.environment, cell.dataset, cell.method, str(cell.agent)) for cell in found.cells}
    lost = cells - printed(table)
    assert printed(table) <= cells
    # some rows of Table 9 were lost when the paper was read; Table 2 has them for three of the agents
    # and one of seven numbers of a place in Table 13, nobody knows which: they are read as all but BCQ-P's
    assert not lost or (table == 9 and {cell[:3] for cell in lost} <= {cell[:3] for cell in printed(2)}) or (
        table == 13 and lost == {("mountaincar", "random", "bcq-p", "8")})
    assert {cell.seed for cell in found.cells} == set(range(5))
    assert (found.trained, found.logged) == ([], [])


def test_table_5_is_of_the_data_alone():
    found = runs(table=5)
    assert (found.cells, found.trained) == ([], [])
    assert {(cell.environment, cell.dataset) for cell in found.logged} == {
        (environment, dataset) for environment, dataset, *_ in printed(5)}
    assert len(found.logged) == 12


def test_figures():
    assert [(cell.environment, cell.method, cell.dataset) for cell in runs(figure=5).trained] == [
        (name, "persim", "random") for name in cases.ENVIRONMENTS]
    assert runs(figure=1) == runs(figure=5)
    assert {(cell.environment, cell.method) for cell in runs(figure=2).cells} == {
        ("cartpole", name) for name in ("persim", "vanilla-cadm", "pe-ts-cadm")}
    assert {cell.environment for cell in runs(figure=4).cells} == {"mountaincar", "cartpole"}
    assert {cell.seed for number in FIGURES for cell in runs(figure=number, budget="paper").all} == {0}


def test_every_table_and_figure_runs_or_says_why_not():
    told = {("table", number) for number in TABLES} | {("figure", number) for number in FIGURES} | set(WITHOUT)
    assert told == {("table", number) for number in range(1, 17)} | {("figure", number) for number in range(1, 6)}


def test_suite_paper_is_all_of_them_and_suite_all_is_more():
    paper, everything = runs(suite="paper"), runs(suite="all")
    assert set(paper.cells) == {cell for kind, known in (("table", TABLES), ("figure", FIGURES)) for number in known
                                for cell in runs(**{kind: number}).cells}
    assert set(paper.cells) < set(everything.cells)
    assert {cell.method for cell in everything.cells} == set(cases.METHODS)
    assert "cloned" not in {cell.method for cell in everything.cells if cell.environment != "halfcheetah"}
    assert {cell.dataset for cell in everything.cells if cell.method == "persim-bcq-5"} == {"random"}
    assert {cell.environment for cell in everything.cells if cell.dataset == "random-of-10"} == {"mountaincar", "halfcheetah"}
    assert {cell.dataset for cell in everything.cells if cell.method == "e-pets" and cell.environment == "cartpole"} == {
        *cases.BEHAVIOUR, *(f"pure-of-{count}" for count in (250, 100, 50, 25, 10))}
    new = {(cell.environment, cell.dataset, cell.method) for cell in everything.cells if cell.agent > 5}
    assert {(name, data, f"persim-k{count}") for name in cases.ENVIRONMENTS for data in ("random", "pure")
            for count in (5, 10, 25, 100)} <= new
    assert {data for _, data, _ in new} == {"random", "pure", "none"}
    assert not {cell for cell in everything.cells if not cases.serves(cell.method, cell.agent > 5)}
    for found in (paper, everything):
        assert len(set(found.cells)) == len(found.cells)
    assert set(runs(suite="all", env="cartpole").cells) == {c for c in everything.cells if c.environment == "cartpole"}


def test_a_suite_can_be_narrowed():
    found = runs(table=9, methods=("persim", "bcq-p"), datasets=("pure",), agents=(5, 2), seeds=2).cells
    assert {(c.environment, c.dataset, c.method, c.agent, c.seed) for c in found} == {
        ("mountaincar", "pure", method, agent, seed) for method in ("persim", "bcq-p") for agent in (2, 5) for seed in (0, 1)}
    assert {c.environment for c in runs(table=1, env="cartpole").cells} == {"cartpole"}


def test_agents_by_default_are_those_whom_the_methods_serve():
    def found(**options):
        return {(cell.method, cell.agent) for cell in runs(env="cartpole", datasets=("random",), **options).cells}
    usual = found()
    assert {agent for _, agent in usual} == {1, 2, 3, 4, 5}
    assert not {name for name, _ in usual if cases.METHODS[name].unseen}
    assert found(methods=("persim-k5",)) == {("persim-k5", agent) for agent in range(6, 11)}
    assert found(methods=("vanilla-cadm", "persim", "persim-k5")) == {
        *(("persim-k5", agent) for agent in range(6, 11)),
        *((name, agent) for name in ("vanilla-cadm", "persim") for agent in range(1, 6))}
    assert found(methods=("vanilla-cadm", "bcq-p"), agents=(1, 8)) == {
        (name, agent) for name in ("vanilla-cadm", "bcq-p") for agent in (1, 8)}
    new = found(agents=(6,))
    assert {"persim-p10", "persim-k100", "persim-p10-k10", "uniform", "true-env-mpc"} <= {name for name, _ in new}
    assert not {"persim", "bcq-p"} & {name for name, _ in new}
    assert found(agents=(2, 6)) == {*new, *((name, 2) for name, agent in usual if agent == 2)}


def test_tables_of_unseen_agents_use_one_training():
    cells = runs(table=13, budget="small").cells
    assert {replace(cell, agent=6, seed=0) for cell in cells} >= {replace(cell, agent=6, seed=0)
                                                                 for cell in runs(table=12, budget="small").cells}
    assert {c.agent for c in runs(table=12, agents=(7,)).cells} == {7}


@pytest.mark.parametrize(("options", "sentence"), [
    ({}, "--env: expected an environment, got none; known: mountaincar, cartpole, halfcheetah; or ask for a --table"),
    ({"table": 9, "env": "cartpole"}, r"--env: expected one that table 9 is about \(mountaincar\), got 'cartpole'; leave it"),
    ({"table": 12, "agents": (1,)}, "unknown agent of table 12 1; known: 6, 7, 8, 9, 10"),
    ({"table": 12, "env": "cartpole"}, r"--env: expected one that table 12 is about \(mountaincar\), got 'cartpole'"),
    ({"env": "cartpole", "methods": ("persim",), "agents": (6,)}, "agent 6 of persim: expected one of 1, 2, 3, 4, 5, since it "
     "needs the agent's own logs; for this agent there are pooled, true-env-mpc, uniform, persim-p100"),
    ({"env": "cartpole", "methods": ("e-pets",), "agents": (1, 7)}, "agent 7 of e-pets: expected one of 1, 2, 3, 4, 5, since"),
    ({"env": "cartpole", "methods": ("persim-k5",), "agents": (1,)}, "agent 1 of persim-k5: expected one of 6, 7, 8, 9, 10, "
     "since it is for agents that no data come from; for this agent there are persim, pooled"),
    ({"env": "cartpole", "agents": (11,)}, "unknown agent 11; known: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
    ({"table": 4}, "--table 4: .*, got one about the ranges of the agents' parameters"),
    ({"figure": 3}, "--figure 3: expected one of 1, 2, 4, 5, got one about the networks, a drawing"),
    ({"table": 17}, "unknown table 17; known: 1, 2, 3, 5"),
    ({"figure": 6}, "unknown figure 6; known: 1, 2, 4, 5"),
    ({"suite": "most"}, "unknown suite 'most'; known: paper, all"),
    ({"table": 1, "figure": 1}, "--table and --figure: expected one of them, got 2"),
    ({"table": 6, "methods": ("bcq-p",)}, "unknown method of table 6 'bcq-p'; known: persim, vanilla-cadm, pe-ts-cadm"),
    ({"table": 3, "datasets": ("pure",)}, "unknown data set of table 3 'pure'; known: random"),
    ({"table": 2, "env": "halfcheetah", "agents": (5,)}, "unknown agent of table 2 5; known: 1, 2, 3"),
    ({"suite": "all", "methods": ("magic",)}, "unknown method 'magic'; known: persim"),
    ({"env": "cartpole", "methods": ()}, "--methods: expected at least one, got none"),
    ({"env": "cartpole", "merge": ()}, "--merge: expected at least one folder, got none"),
    ({"merge": ("a",)}, "--merge: expected --out beside it, got none"),
    ({"env": "cartpole", "keep_first": True}, "--keep-first: expected --merge beside it"),
    ({"env": "cartpole", "executor": "slurm"}, "unknown executor 'slurm'; known: local, ray"),
    ({"env": "cartpole", "ray_address": "auto"}, "--ray-address: expected --executor ray beside it, got --executor local"),
    ({"env": "cartpole", "executor": "ray", "gpus_per_task": 0.5}, "--gpus-per-task: expected --device cuda beside it"),
    ({"env": "cartpole", "executor": "ray", "gpus_per_task": 1.5, "device": "cuda"}, r"expected a share in \(0, 1\] or a"),
    ({"env": "cartpole", "executor": "ray", "gpus_per_task": math.inf, "device": "cuda"}, r"expected a share in \(0, 1\] or a"),
    ({"env": "cartpole", "executor": "ray", "device": "gpu"}, "--device: expected cpu or cuda, got 'gpu'"),
    ({"merge": ("a",), "out": Path("b"), "jobs": 7}, "--merge: expected no --jobs beside it"),
    ({"merge": ("a",), "out": Path("b"), "executor": "ray"}, "--merge: expected no --executor beside it"),
])
def test_bad_input(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        runs(**options)


def test_seeds_are_cells_of_their_own():
    cells = work(Options("cartpole", budget="tiny", seeds=3, methods=("persim", "uniform"), agents=(2,),
                         datasets=("random",))).cells
    assert [(c.method, c.seed, c.dataset) for c in cells] == [("persim", s, "random") for s in range(3)] + [
        ("uniform", s, "none") for s in range(3)]
