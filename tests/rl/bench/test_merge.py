"""Records of several folders in one: each once, none lost, none mixed, and what contradicts itself said."""

import errno
import json
import math
from dataclasses import asdict, replace

import pytest

from lowrank_rl.rl.bench import pieces
from lowrank_rl.rl.bench.merge import merge
from lowrank_rl.rl.bench.store import Cell, Record, Store, locked

CELL = Cell("cartpole", "random", "persim", 1, 0, "best", "quick")
OTHER = replace(CELL, agent=2)
TODAY = pieces.settings_of(CELL)
OLD = {**TODAY, "budget": {**TODAY["budget"], "agents": 7}}
VERSIONS = {"python": "3.11", "torch": "2.5.0+cpu"}
GOOD = Record(CELL, "done", returns=[1.0, math.nan], config=TODAY, versions=VERSIONS)


@pytest.fixture
def folders(tmp_path):
    """Folders with these records each."""
    def make(*contents):
        paths = [tmp_path / "abc"[i] for i in range(len(contents))]
        for path, records in zip(paths, contents, strict=True):
            path.mkdir()
            (path / "records.jsonl").touch()
            Store(path).extend(records)
        return paths
    return make


def kept(out):
    return {cell: json.dumps(asdict(record)) for cell, record in Store(out).load().items()}


def test_each_once_and_again_nothing(folders, tmp_path):
    failed = Record(OTHER, "failed", message="x", versions={})
    paths = folders([GOOD], [GOOD, failed])
    words = merge(tmp_path / "out", paths)
    assert "2 cells, 2 of them new from 2 folder(s), 1 failed; 0 files" in words
    assert kept(tmp_path / "out") == {record.cell: json.dumps(asdict(record)) for record in (GOOD, failed)}
    before = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert "0 of them new" in merge(tmp_path / "out", [*paths, tmp_path / "out"])
    assert (tmp_path / "out" / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(("first", "second", "wins"), [
    (Record(CELL, "failed"), GOOD, 1),
    (GOOD, Record(CELL, "failed"), 0),
    (Record(CELL, "failed", message="a"), Record(CELL, "failed", message="b"), 0),
    (GOOD, replace(GOOD, seconds=9.0, device="other", commit="z"), 0),     # the same numbers, measured twice
    (replace(GOOD, config=OLD, returns=[2.0]), GOOD, 1),                   # today's settings
    (GOOD, replace(GOOD, config=OLD, returns=[2.0]), 0),
    (replace(GOOD, config=OLD), replace(GOOD, config={}, returns=[2.0]), 0),
    (replace(GOOD, cell=replace(CELL, method="gone")), replace(GOOD, cell=replace(CELL, method="gone")), 0),
])
def test_which_of_two_is_kept(folders, tmp_path, first, second, wins):
    """Whether they come from two folders or one is there already."""
    paths = folders([first], [second])
    merge(tmp_path / "out", paths)
    merge(paths[0], paths[1:])
    wanted = {first.cell: json.dumps(asdict((first, second)[wins]))}
    assert kept(tmp_path / "out") == kept(paths[0]) == wanted


def test_other_numbers_from_the_same_settings_are_refused_or_the_first_kept(folders, tmp_path):
    paths = folders([GOOD, replace(GOOD, cell=OTHER)], [replace(GOOD, returns=[1.5]), replace(GOOD, cell=OTHER, rmse=1.0)])
    with pytest.raises(ValueError, match=r"cartpole/random/persim/agent 1/seed 0, budget quick, .*expected the same numbers, "
                                         r"got others in .*a and .*b \(and 1 more cells\); leave one away, or --keep-first"):
        merge(tmp_path / "out", paths)
    assert not (tmp_path / "out" / "records.jsonl").exists()
    merge(tmp_path / "out", paths, keep_first=True)
    assert kept(tmp_path / "out") == kept(paths[0])


def test_versions_are_never_mixed_but_builds_are_one(folders, tmp_path):
    paths = folders([GOOD], [replace(GOOD, cell=OTHER, versions={"python": "3.12", "torch": "2.5.0+cu121"})],
                    [replace(GOOD, cell=replace(CELL, agent=3), versions={**VERSIONS, "torch": "2.6.0"})])
    merge(tmp_path / "out", paths[:2])
    with pytest.raises(ValueError, match="expected records made with the same versions, got torch 2.5.0 in .*out and torch "
                                         "2.6.0 in .*c; a table never mixes versions, so merge those of each into"):
        merge(tmp_path / "out", paths[2:])
    assert set(kept(tmp_path / "out")) == {CELL, OTHER}


def test_a_cut_line_is_dropped_and_another_schema_refused(folders, tmp_path):
    one, two = folders([GOOD], [replace(GOOD, cell=OTHER)])
    with (one / "records.jsonl").open("ab") as file:
        file.write(b'{"cell": {"environment": "cartp')
    merge(tmp_path / "out", [one, two])
    assert set(kept(tmp_path / "out")) == {CELL, OTHER}
    (two / "records.jsonl").write_text(json.dumps({**asdict(GOOD), "schema": 2}) + "\n")
    with pytest.raises(ValueError, match="b/records.jsonl, line 1: expected a record of schema 1, got schema 2"):
        merge(tmp_path / "out", [one, two])


def test_files_come_along(folders, tmp_path):
    """Data and models that are missing, and the trace of each record that is taken, even over a failed one's."""
    paths = folders([Record(CELL, "failed"), replace(GOOD, cell=OTHER)], [GOOD])
    for i, path in enumerate(paths):
        for file in (path / "data" / "d.npz", path / "models" / f"m{i}.safetensors", path / "models" / f"m{i}.checkpoint",
                     pieces.trace_path(path, CELL)):
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"of {i}")
    assert "4 files beside them" in merge(tmp_path / "out", paths)
    out = tmp_path / "out"
    assert {str(path.relative_to(out)): path.read_text() for path in out.rglob("*/*") if path.is_file()} == {
        "data/d.npz": "of 0", "models/m0.safetensors": "of 0", "models/m1.safetensors": "of 1",
        str(pieces.trace_path(out, CELL).relative_to(out)): "of 1"}
    merge(paths[0], paths[1:])
    assert pieces.trace_path(paths[0], CELL).read_text() == "of 1"
    assert pieces.trace_path(paths[1], CELL).read_text() == "of 1"


def test_folders_that_only_made_data_and_models(tmp_path):
    """Shards of what a table is drawn from. What a killed process was writing stays behind."""
    for name in ("one", "two"):
        (tmp_path / name / "models").mkdir(parents=True)
        for file in (f"{name}.safetensors", f".{name}.7.partial.safetensors"):
            (tmp_path / name / "models" / file).write_text(name)
    assert "0 cells, 0 of them new from 2 folder(s), 0 failed; 2 files" in merge(
        tmp_path / "out", [tmp_path / "one", tmp_path / "two"])
    assert sorted(path.name for path in (tmp_path / "out" / "models").iterdir()) == ["one.safetensors", "two.safetensors"]


def test_a_file_that_cannot_be_read_is_named_and_nothing_is_taken(folders, tmp_path, monkeypatch):
    one, = folders([GOOD])
    for name in ("a", "b"):
        (one / f"models/{name}.safetensors").parent.mkdir(exist_ok=True)
        (one / f"models/{name}.safetensors").touch()
    really = type(one).open

    def guarded(path, mode="r", **options):
        if path.name == "b.safetensors":
            raise PermissionError(errno.EACCES, "Permission denied")
        return really(path, mode, **options)
    monkeypatch.setattr(type(one), "open", guarded)
    with pytest.raises(ValueError, match=r"a/models/b\.safetensors: expected a file that can be read, got 'Permission denied'"):
        merge(tmp_path / "out", [one])
    assert not (tmp_path / "out" / "models").exists()
    assert Store(tmp_path / "out").load() == {}


def test_folders_at_work_or_without_records(folders, tmp_path):
    one, two = folders([GOOD], [GOOD])
    with locked(two), pytest.raises(ValueError, match="b: expected no other run in it, got one at work"):
        merge(tmp_path / "out", [one, two])
    with locked(tmp_path / "out"), pytest.raises(ValueError, match="out: expected no other run in it, got one at work"):
        merge(tmp_path / "out", [one])
    with pytest.raises(ValueError, match="--merge .*nowhere: expected an output folder, got one without records.jsonl"):
        merge(tmp_path / "out", [one, tmp_path / "nowhere"])
