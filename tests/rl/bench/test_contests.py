"""Wins, ties and losses counted by hand: against the paper's published numbers, and among our own methods."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from lowrank_rl.rl.bench import cases, contests, published
from lowrank_rl.rl.bench.gather import gather
from lowrank_rl.rl.bench.statistics import Estimate, mean_interval, verdict
from lowrank_rl.rl.bench.store import Cell, Record

CAR = cases.ENVIRONMENTS["mountaincar"]
WHOLE = {"budget": {"agents": 500, "return_episodes": 3, "error_episodes": 50, "return_steps": None}}


def made(returns, config=WHOLE, **more):
    """Gathered from (method, dataset, agent) -> the means of its seeds."""
    records = {}
    for (method, dataset, agent), means in returns.items():
        for seed, mean in enumerate(means):
            cell = Cell("mountaincar", dataset, method, agent, seed, "best", "small")
            records[cell] = Record(cell, "done", returns=[mean], config=config, **more)
    return gather(CAR, records, records)


def counts(table):
    return {row.labels: [int(entry.text) for entry in row.entries] for row in table.rows}


def test_students_interval_is_scipys():
    for runs in ([[1.0, 2.0, 6.0, 7.0]], [[1.0, 3.0], [4.0], [9.0, 9.0]]):
        values = runs[0] if len(runs) == 1 else [np.mean(run) for run in runs]
        assert mean_interval(runs) == pytest.approx(tuple(ttest_1samp(values, 0).confidence_interval(0.95)))
    assert mean_interval([[5.0]]) is None
    assert mean_interval([[np.inf, 1.0]]) is None


@pytest.mark.parametrize(("ours", "theirs", "higher", "lower"), [
    ((2.0, 1.5, 2.5), (1.0, 0.8, 1.2), "better", "worse"), ((2.0, 0.9, 3.1), (1.0, 0.8, 1.2), "within", "within"),
    ((1.0, 0.8, 1.2), (2.0, 0.9, 3.1), "within", "within"),       # the other's interval counts too
    ((1.3, 1.0, 1.6), (2.0, 1.5, 2.5), "worse", "better"),        # intervals that only touch are no tie
    ((np.nan, np.nan, np.nan), (1.0, 0.0, 2.0), "worse", "worse"), ((-np.inf,) * 3, (1.0, 0.0, 2.0), "worse", "worse")])
def test_verdicts(ours, theirs, higher, lower):
    assert verdict(Estimate(*ours), Estimate(*theirs), higher=True) == higher
    assert verdict(Estimate(*ours), Estimate(*theirs), higher=False) == lower


def test_published_numbers_have_their_interval():
    """Table 9, random, agent 1: -57.70 ± 5.63 over 5 repeats; t(4) at 97.5 % is 2.776. Table 6 prints 0.004 and no ±."""
    cell = Cell("mountaincar", "random", "persim", 1, 0, "best", "small")
    found = published.estimate(cell, "reward")
    assert (found.mean, found.high - found.mean) == (-57.7, pytest.approx(2.776 * 5.63 / 5**0.5, rel=1e-3))
    found = published.estimate(cell, "rmse")
    assert (found.mean, found.low, found.high) == (0.004, pytest.approx(0.0035), pytest.approx(0.0045))
    true = published.estimate(Cell("mountaincar", "none", "true-env-mpc", 1, 0, "best", "small"), "reward")
    assert (true.mean, true.high) == (-53.95, pytest.approx(-53.945))       # its ± is over unknown many episodes


def test_the_papers_best_baseline():
    """Table 9, pure-eps-20, agent 1: CQL-A's -44.70 is beaten by MOReL-A's -44.60; PerSim's and True env's do not count."""
    cell = Cell("mountaincar", "pure-eps-20", "persim", 1, 0, "best", "small")
    assert published.best_baseline(cell, "reward").method == "morel-a"
    best = published.best_baseline(cell, "rmse")
    other, = {"vanilla-cadm", "pe-ts-cadm"} - {best.method}
    assert published.paper(best, "rmse")[0] <= published.paper(replace(best, method=other), "rmse")[0]


def test_wins_against_the_paper():
    """Random data, agents 1, 2, 4: the paper's PerSim has -57.7, -74.3, -186.6, its best baselines -44.7, -49.8, -479.3."""
    ours = {("persim", "random", 1): [-44.0, -44.1, -44.2], ("persim", "random", 2): [-74.0, -75.0, -76.0],
            ("persim", "random", 4): [-400.0, -401.0, -402.0], ("uniform", "none", 1): [-500.0, -500.0]}
    found = counts(contests.wins(made(ours)))
    assert found["persim", "return", "persim"][:4] == [1, 1, 1, 3]
    assert found["persim", "return", "best baseline"][:4] == [2, 0, 1, 3]
    assert not [key for key in found if key[0] == "uniform"]                 # the paper has none, and it learns nothing


def test_errors_count_as_wins_when_they_are_smaller():
    ours = {("persim", "random", 1): [-50.0, -51.0]}
    found = counts(contests.wins(made(ours, rmse=0.001, r2=0.9)))
    assert found["persim", "RMSE", "persim"][:4] == [1, 0, 0, 1]             # 0.004 in Table 6
    assert found["persim", "R2", "persim"][:4] == [0, 0, 1, 1]               # 0.999


def test_returns_of_cut_episodes_are_held_against_nothing():
    cut = {"budget": {**WHOLE["budget"], "return_steps": 30}}
    assert contests.wins(made({("persim", "random", 1): [-30.0, -30.0]}, cut)) is None


def test_numbers_that_are_suspect_are_counted():
    found = counts(contests.wins(made({("morel-a", "pure-eps-20", 1): [-45.0, -45.1, -44.9]})))
    assert found["morel-a", "return", "morel-a"] == [0, 0, 1, 1, 1]          # "suspect: equals CQL row"
    assert found["morel-a", "return", "persim"] == [1, 0, 0, 1, 0]


def test_leaders_among_our_methods():
    """Agent 1: persim alone; agent 2: level; agent 4: behind; the true environment's planner stands beside."""
    ours = {("persim", "random", 1): [-45.0, -45.1], ("pooled", "random", 1): [-60.0, -60.1],
            ("persim", "random", 2): [-50.0, -52.0], ("pooled", "random", 2): [-51.0, -53.0],
            ("persim", "random", 4): [-200.0, -200.1], ("pooled", "random", 4): [-100.0, -100.1],
            ("true-env-mpc", "none", 1): [-40.0, -40.1], ("persim", "random", 5): [-200.0, -200.1]}
    gathered = made(ours)
    places = contests.leaders(gathered)
    assert places == {("random", 1): {"persim": "first", "pooled": "behind"},
                      ("random", 2): {"persim": "tied", "pooled": "tied"},
                      ("random", 4): {"persim": "behind", "pooled": "first"}}
    table = contests.ranks(places)
    assert counts(table) == {("persim",): [1, 1, 1, 3], ("pooled",): [1, 1, 1, 3]}
    assert "PerSim is behind in random agent 4 (pooled)." in table.notes


def test_one_method_is_no_contest():
    assert contests.ranks(contests.leaders(made({("persim", "random", 1): [-45.0]}))) is None
