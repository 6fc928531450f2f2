"""Only what belongs together is averaged: budgets, settings and versions apart; what is left out is said with the way out."""

from dataclasses import replace

import pytest

from lowrank_rl.rl.bench import cases, pieces, reports
from lowrank_rl.rl.bench.gather import gather
from lowrank_rl.rl.bench.notes import notes
from lowrank_rl.rl.bench.store import Cell, Record

CAR = cases.ENVIRONMENTS["mountaincar"]
OLD = {"budget": {"agents": 500, "return_steps": None}, "learning": {"rank": 2}}
VERSIONS = {"python": "3.11.7", "torch": "2.13.0+cpu", "mujoco": "4.0.0"}


def cell(seed=0, agent=1, **changes):
    return replace(Cell("mountaincar", "random", "persim", agent, seed, "best", "small"), **changes)


def done(where, config=OLD, value=-50.0, versions=VERSIONS):
    return Record(where, "done", returns=[value], config=config, versions=versions)


def gathered(*records, cells=None):
    return gather(CAR, cells or [r.cell for r in records], {r.cell: r for r in records})


def values(group, agent=1):
    return [record.returns[0] for record in group.done.get(agent, [])]


def test_todays_settings_win_over_older_ones_however_many():
    today = pieces.settings_of(cell())
    found = gathered(done(cell(0), today, -1.0), *(done(cell(seed), value=-9.0) for seed in (1, 2, 3)))
    group, = found.groups
    assert values(group) == [-1.0]
    assert [c.seed for c in group.cells[1]] == [0]            # the older seeds are not missing seeds of this row
    assert "3 record(s) of persim on random were made with other settings than the 1 shown" in found.left_out[0]
    assert "the same command with as many --seeds runs those cells anew" in found.left_out[0]


def test_a_setting_that_did_not_exist_then_is_no_other_setting():
    today = pieces.settings_of(cell())
    assert "precision" in today["learning"]
    before = {**today, "learning": {name: value for name, value in today["learning"].items() if name != "precision"}}
    found = gathered(done(cell(0), today), done(cell(1), before))
    assert len(values(found.groups[0])) == 2
    assert not found.left_out


def test_without_todays_the_largest_number_alike_stands():
    other = {**OLD, "learning": {"rank": 9}}
    found = gathered(done(cell(0), other, -9.0), done(cell(1), value=-1.0), done(cell(2), value=-2.0), done(cell(0, 2), other))
    group, = found.groups
    assert values(group) == [-1.0, -2.0]
    assert group.left_out == {1: 1, 2: 1}
    assert 2 not in group.done


def test_a_row_of_older_settings_alone_is_shown_and_said_to_be_so():
    today = pieces.settings_of(cell(method="pooled"))
    old, new = done(cell(), {**today, "learning": {"rank": 2}}), done(cell(method="pooled"), today)
    found = gathered(old, new)
    assert [group.older for group in found.groups] == [True, False]
    said = [f"{note.lead} {note.text}" for note in notes(CAR, found) if "Made with other" in note.lead]
    assert said == ["Made with other settings or code than today's: persim on random; a command that names these methods and "
                    "data sets runs them anew."]
    assert not any("Made with other" in note.lead for note in notes(CAR, gathered(new)))


def test_versions_are_never_mixed():
    new = {**VERSIONS, "torch": "2.14.0"}
    found = gathered(done(cell(0)), done(cell(1)), done(cell(0, method="pooled"), versions=new))
    assert [len(group.records) for group in found.groups] == [2, 0]
    assert found.left_out[0].startswith("1 record(s) made with torch 2.14.0 instead of torch 2.13.0 are left out")
    assert "another --out" in found.left_out[0]


def test_builds_and_pythons_of_one_version_go_together():
    other = {**VERSIONS, "python": "3.12.1", "torch": "2.13.0+cu128"}
    found = gathered(done(cell(0)), done(cell(1), versions=other))
    assert (len(found.records), found.left_out) == (2, [])


def test_other_budgets_are_named_with_the_command_that_reports_them():
    mine, other = done(cell()), done(cell(budget="paper"))
    found = gather(CAR, [mine.cell], {r.cell: r for r in (mine, other)})
    assert found.left_out == ["1 record(s) of mountaincar, budget paper, settings best are not in these tables; "
                              "--env mountaincar --budget paper --settings best reports them."]
    with pytest.raises(ValueError, match="cells: expected those of mountaincar with one budget and settings, got .*on its own"):
        gathered(mine, other)
    with pytest.raises(ValueError, match="expected those of mountaincar"):
        gathered(done(cell(environment="cartpole")))


def test_methods_of_another_version_are_told():
    found = gathered(done(cell()), done(cell(method="persim-9000")))
    assert [group.method for group in found.groups] == ["persim"]
    assert "persim-9000" in found.left_out[0]


def test_data_sets_of_another_version_are_told():
    odd = cell(dataset="random-of-75")
    found = gathered(done(cell()), done(odd))
    assert [group.dataset for group in found.groups] == ["random"]
    assert "Records of random-of-75 are left out: this version has no such data set" in found.left_out[0]
    assert reports.place(odd) > reports.place(cell(method="persim-cql-5", seed=9))


def test_failed_and_missing_cells_are_apart():
    mine = [cell(seed) for seed in range(3)]
    found = gathered(done(mine[0]), Record(mine[1], "failed", message="no"), cells=mine)
    group, = found.groups
    assert (len(group.done[1]), len(group.failed[1]), found.missing, len(found.failures)) == (1, 1, 1, 1)


def test_nothing_at_all():
    found = gather(CAR, [], {})
    assert (found.groups, found.records, found.left_out, found.datasets) == ([], [], [], [])
