"""docs/results.md is what the committed records say."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_rl.rl.bench import cases, pieces, report, reports
from lowrank_rl.rl.bench.store import Cell, Record

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results_page", DOCS / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(results):
    return results.page()


def test_the_page_is_what_the_records_say(drawn):
    assert drawn == (DOCS / "results.md").read_text(), "python docs/results.py draws it anew"


def test_links_and_pictures_of_the_page_exist(drawn):
    targets = [part.split(")")[0] for part in drawn.split("](")[1:]]
    assert len(targets) >= 6
    for target in targets:
        assert (DOCS / target.partition("#")[0]).exists(), target


def test_what_is_done_and_what_is_left_add_up(results, drawn):
    lines = drawn.partition("## What has run")[2].partition("|---")[2].splitlines()[1:]
    rows = [line.strip("| ").split(" | ") for line in lines]
    known = [str(number) for number, suite in results.suites.TABLES.items() if suite.stage == "cells" and number > 2]
    assert [row[0] for row in rows] == known
    for _, counts, left in rows:
        missing = sum(int(all_) - int(done) for done, all_ in
                      ((words.split()[1], words.split()[3]) for words in counts.split(", ")))
        told = 0 if left == "nothing" else sum(int(words.split(" (")[0].split()[2]) for words in left.split(", "))
        assert told == missing


def one(method, agent, returns, seed=0, status="done"):
    cell = Cell("cartpole", "random", method, agent, seed, "best", "small")
    config = {"budget": {"agents": 500, "return_episodes": 2, "error_episodes": 50, "return_steps": None}}
    return Record(cell, status, returns=returns, config=config, message="" if status == "done" else "no")


def strength_of(results, *records):
    """The rows of CartPole's table, by method: what stands at each agent, and the verdict. These records are older ones."""
    found = {record.cell: record for record in records}
    built = report.build(cases.ENVIRONMENTS["cartpole"], sorted(found, key=reports.place), found)
    lines = results.strength({"cartpole": built})
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    by_method = {row[0].removesuffix(" (older)"): row[1:] for row in rows[1:]}
    return rows[0], by_method, next(line for line in lines if line.startswith("###"))


def test_verdicts_on_baselines(results):
    """Table 10, random: MOReL-A 35.8 ± .4, 20.7 ± 1, 14.3 ± 1.4, 27.5 ± .7, 10.6 ± .2."""
    head, rows, title = strength_of(results, *(one("morel-a", agent, [mean - 2, mean + 2]) for agent, mean in
                                               ((1, 36.3), (2, 21.6), (3, 12.8), (4, 28.2), (5, 10.39))))
    assert head[3:] == ["agent 1", "agent 2", "agent 3", "agent 4", "agent 5", "verdict"]
    assert rows["morel-a"][:3] == ["`random`", "1", "36.3 ± 2.8 (35.8 ± 0.4)"]
    assert rows["morel-a"][-1] == "stronger 1, as strong 2, **weaker: agent 3, agent 5**"
    assert title == "### CartPole: 3 of 5 cells at least as strong"


def test_rows_of_older_settings_are_marked(results):
    old = one("morel-a", 1, [36.0])
    new = replace(old, config=pieces.settings_of(old.cell))
    for record, label in ((old, "morel-a (older)"), (new, "morel-a")):
        built = report.build(cases.ENVIRONMENTS["cartpole"], [record.cell], {record.cell: record})
        assert any(line.startswith(f"| {label} | `random` |") for line in results.strength({"cartpole": built}))


def test_missing_and_failed_agents_keep_their_places(results):
    head, rows, title = strength_of(results, one("morel-p", 4, [200.0, 200.0]), one("morel-p", 5, [30.0, 10.0]),
                                 one("cql-p", 1, None, status="failed"), one("e-pets", 2, [100.0, 120.0]))
    assert head[3:] == ["agent 1", "agent 2", "agent 4", "agent 5", "verdict"]
    assert rows["morel-p"][1:] == ["1", "", "", "200 ± 0 (68.9 ± 17)", "20 ± 14 (40.4 ± 12)", "stronger 1, **weaker: agent 5**"]
    assert rows["cql-p"][1:] == ["0", "", "", "", "", "not run or failed"]
    assert rows["e-pets"][-1] == "not in the paper, not run or failed"
    assert title == "### CartPole: 1 of 2 cells at least as strong"


def test_suspect_numbers_are_shown_and_not_judged(results):
    found = [replace(record, cell=replace(record.cell, dataset="pure-eps-40")) for record in
             (one("morel-p", 1, [10.0, 10.0]), one("morel-p", 1, [30.0, 30.0], seed=1))]
    _, rows, title = strength_of(results, *found)
    assert rows["morel-p"][1:3] == ["2", "20 ± 14 (178.9 ± 19 *)"]
    assert rows["morel-p"][-1] == "suspect in the paper"
    assert title == "### CartPole: 0 of 0 cells at least as strong"
