"""Records: whole or not there, the newest wins, and nothing that was written is ever lost."""

import errno
import fcntl
import json
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.rl.bench.store import Cell, Record, Store, locked, resting

CELL = Cell("cartpole", "random", "persim", 1, 0, "best", "quick")
OTHER = replace(CELL, agent=2)

number = st.floats(allow_nan=False)     # JSON as Python writes it has the infinities
name = st.text(max_size=8)              # with newlines, quotes, NUL and lone surrogates
cells = st.builds(Cell, name, name, name, st.integers(1, 5), st.integers(0, 9), name, name)
settings_dict = st.dictionaries(name, st.one_of(st.none(), st.booleans(), st.integers(), number, name), max_size=3)
records = st.builds(
    Record, cells, st.sampled_from(["done", "failed"]), message=st.text(), returns=st.lists(number, min_size=1, max_size=3),
    lengths=st.lists(st.integers(0, 1000), max_size=3), rmse=st.none() | number, r2=st.none() | number,
    error_episodes=st.integers(0, 200), error_by_step=st.lists(st.none() | number, max_size=3), non_finite=st.integers(0, 9),
    config=settings_dict, training=settings_dict, commit=name, versions=settings_dict, device=name, seconds=number)


def line(record: Record, **changes) -> bytes:
    return json.dumps({**asdict(record), **changes}).encode() + b"\n"


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(records, min_size=1, max_size=3, unique_by=lambda record: (record.cell, record.commit)))
def test_what_goes_in_comes_out(tmp_path_factory, batch):
    store = Store(tmp_path_factory.mktemp("records"))
    for record in batch:
        store.append(record)
    assert store.load() == {record.cell: record for record in batch}
    assert len(store.path.read_bytes().splitlines()) == len(batch)      # nothing edited, only added


def test_nothing_there_is_no_record(tmp_path):
    assert Store(tmp_path / "nowhere").load() == {}


def test_several_at_once_are_one_write(tmp_path, monkeypatch):
    store, synced = Store(tmp_path), []
    monkeypatch.setattr(os, "fsync", synced.append)
    store.extend(Record(replace(CELL, seed=i), "done", returns=[0.0]) for i in range(20))
    assert len(synced) == 1
    assert [cell.seed for cell in store.load()] == list(range(20))
    store.extend([])
    assert len(store.load()) == 20


@pytest.mark.parametrize("size", [0, 1, 60_000, 66_000, 200_000])
def test_a_cut_line_of_any_length_behind_many(tmp_path, size):
    """The last newline is looked for from the end, block by block."""
    store = Store(tmp_path)
    store.extend(Record(replace(CELL, seed=i), "failed", message="m" * 1000) for i in range(100))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + b"x" * size)
    store.append(Record(OTHER, "done", returns=[0.0]))
    assert store.path.read_bytes() == whole + line(Record(OTHER, "done", returns=[0.0]))


def test_equal_settings_are_kept_once_and_others_apart(tmp_path):
    store = Store(tmp_path)
    for seed, config in enumerate([{"a": 1}, {"a": 1}, {"a": True}, {"a": 1.0}]):
        store.append(Record(replace(CELL, seed=seed), "done", returns=[0.0], config=config))
    one, same, true, real = (record.config["a"] for record in store.load().values())
    assert [type(x) for x in (one, same, true, real)] == [int, int, bool, float]
    first, second, *_ = store.load().values()
    assert first.config is second.config


def test_settings_are_found_in_lines_of_any_order(tmp_path):
    """Of other writers too, where what looks like the settings of the line before stands within something else."""
    first = Record(CELL, "done", returns=[0.0], message='a quote, "config": {"a": 1}, "training": ',
                   config={"a": 1}, training={"b": 2})
    inner = replace(first, cell=OTHER, config={"a": 3}, training={"x": 0, "config": {"a": 1}, "training": 5})
    values = asdict(inner)
    turned = {name: values[name] for name in ("cell", "training", *(set(values) - {"cell", "training"}))}
    for text in (line(inner), json.dumps(turned).encode() + b"\n", json.dumps(values, separators=(",", ":")).encode() + b"\n",
                 json.dumps(values, sort_keys=True).encode() + b"\n"):
        Store(tmp_path).path.write_bytes(line(first) + line(replace(first, cell=replace(CELL, seed=1))) + text)
        assert list(Store(tmp_path).load().values()) == [first, replace(first, cell=replace(CELL, seed=1)), inner]


def test_newest_record_of_a_cell_wins(tmp_path):
    store = Store(tmp_path)
    for record in (Record(CELL, "failed", message="memory"), Record(OTHER, "done", returns=[0.0]),
                   Record(CELL, "done", returns=[1.0])):
        store.append(record)
    assert store.load() == {CELL: Record(CELL, "done", returns=[1.0]), OTHER: Record(OTHER, "done", returns=[0.0])}


def test_cells_differ_by_budget_and_settings(tmp_path):
    store = Store(tmp_path)
    mine = [CELL, replace(CELL, budget="paper"), replace(CELL, settings="paper")]
    for cell in mine:
        store.append(Record(cell, "done", returns=[0.0]))
    assert list(store.load()) == mine


def test_not_a_number_survives(tmp_path):
    Store(tmp_path).append(Record(CELL, "done", returns=[math.nan, math.inf]))
    back = Store(tmp_path).load()[CELL].returns
    assert math.isnan(back[0])
    assert back[1] == math.inf


def test_a_cut_last_line_loses_only_its_own_record(tmp_path):
    """A kill can stop the writing at any byte."""
    store, first, last = Store(tmp_path), Record(CELL, "done", returns=[1.5]), Record(OTHER, "done", returns=[0.0])
    whole, cut = line(first), line(last)
    for size in range(len(cut)):
        store.path.write_bytes(whole + cut[:size])
        assert store.load() == {CELL: first}, size
    for size in (0, 1, len(cut) // 2, len(cut) - 1):
        store.path.write_bytes(whole + cut[:size])
        store.append(last)
        assert store.path.read_bytes() == whole + cut, size


def test_a_cut_first_line_is_no_record(tmp_path):
    store = Store(tmp_path)
    store.path.write_bytes(line(Record(CELL, "done", returns=[0.0]))[:-1])
    assert store.load() == {}
    store.append(Record(OTHER, "done", returns=[0.0]))
    assert store.load() == {OTHER: Record(OTHER, "done", returns=[0.0])}


GOOD = Record(CELL, "done", returns=[0.0])


@pytest.mark.parametrize(("bad", "words"), [
    (b"{not json\n", "line 2: expected a record, got a corrupt line; remove that line or use another --out"),
    (b"\n", "line 2: expected a record, got a corrupt line"),
    (b"[1, 2]\n", "line 2: expected a record, got a corrupt line"),
    (b'"text"\n', "line 2: expected a record, got a corrupt line"),
    (b"null\n", "line 2: expected a record, got a corrupt line"),
    (b"{}\n", "line 2: expected a record, got a corrupt line"),
    (b"\xff\xfe\x00\n", "line 2: expected a record, got a corrupt line"),
    (line(GOOD)[:-20] + b"\n", "line 2: expected a record, got a corrupt line"),
    (line(GOOD, schema=99), "line 2: expected a record of schema 1, got schema 99 .*use another --out"),
    (line(GOOD, schema="1"), "line 2: expected a record of schema 1, got schema '1'"),
    (b'{"schema": 7}\n', "line 2: expected a record of schema 1, got schema 7"),
    (line(GOOD, mood="good"), r"line 2: expected a record of schema 1, .*\['mood'\] odd"),
    (line(GOOD, cell={"environment": "cartpole"}), "line 2: expected a record of schema 1, .*'agent', 'budget'"),
    (line(GOOD, cell={**asdict(CELL), "colour": "red"}), r"line 2: .*\['colour'\] odd"),
    (line(GOOD, cell={**asdict(CELL), "agent": [1]}), r"line 2: .*\['cell'\] odd"),
    (line(GOOD, cell="cartpole"), r"line 2: .*\['cell'\] odd"),
    (line(GOOD, cell=None), r"line 2: .*\['cell'\] odd"),
    (line(GOOD, cell={**asdict(CELL), "agent": "1"}), r"line 2: .*\['cell'\] odd"),
    (line(GOOD, cell={**asdict(CELL), "seed": True}), r"line 2: .*\['cell'\] odd"),
    (line(GOOD, versions=None), r"line 2: .*\['versions'\] odd"),
    (line(GOOD, returns="abc"), r"line 2: .*\['returns'\] odd"),
    (line(GOOD, returns=["a"]), r"line 2: .*\['returns'\] odd"),
    (line(GOOD, returns=None), r"line 2: .*\['returns'\] odd"),
    (line(GOOD, returns=[]), r"line 2: .*\['returns'\] odd"),
    (line(GOOD, rmse="x"), r"line 2: .*\['rmse'\] odd"),
    (line(GOOD, status="weird"), r"line 2: .*\['status'\] odd"),
])
def test_a_bad_line_in_the_middle_is_refused_and_kept(tmp_path, bad, words):
    store = Store(tmp_path)
    content = line(Record(OTHER, "done", returns=[0.0])) + bad + line(GOOD)
    store.path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        store.load()
    assert str(store.path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.path.read_bytes() == content


def test_a_record_older_than_a_field_is_taken(tmp_path):
    values = asdict(GOOD)
    del values["same_action"]
    Store(tmp_path).path.write_text(json.dumps(values) + "\n")
    record, = Store(tmp_path).load().values()
    assert record.same_action is None


@pytest.mark.parametrize("lost", [f.name for f in fields(Record) if f.name != "same_action"])
def test_a_record_without_a_field_is_refused(tmp_path, lost):
    values = asdict(GOOD)
    del values[lost]
    Store(tmp_path).path.write_text(json.dumps(values) + "\n")
    with pytest.raises(ValueError, match="line 1: expected a record"):
        Store(tmp_path).load()


def test_a_folder_in_the_place_of_the_records(tmp_path):
    (tmp_path / "records.jsonl").mkdir()
    with pytest.raises(ValueError, match="expected a file of records, got 'Is a directory'"):
        Store(tmp_path).load()
    with pytest.raises(ValueError, match="expected a file that can be written, got 'Is a directory'"):
        Store(tmp_path).append(GOOD)


def test_no_way_to_sync_leaves_the_earlier_bytes(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.append(GOOD)
    before = store.path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ValueError, match="expected a file that can be written, got 'No space left on device'; earlier"):
            store.append(Record(OTHER, "done", returns=[0.0]))
    assert store.path.read_bytes() == before
    store.append(Record(OTHER, "done", returns=[0.0]))
    assert set(store.load()) == {CELL, OTHER}


def test_a_real_limit_in_the_middle_of_a_line_leaves_the_earlier_bytes(tmp_path):
    """The kernel lets 100 bytes of the second record through and no more, as a disk does that fills up."""
    store = Store(tmp_path)
    store.append(GOOD)
    before = store.path.read_bytes()
    script = f"""
        import resource
        from pathlib import Path
        from lowrank_rl.rl.bench.store import Cell, Record, Store
        resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 100}, resource.RLIM_INFINITY))
        try:
            cell = Cell("cartpole", "random", "persim", 2, 0, "best", "quick")
            Store(Path({str(tmp_path)!r})).append(Record(cell, "done", returns=[0.0]))
        except ValueError as error:
            print(error)
    """
    told = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert "expected a file that can be written, got 'File too large'; earlier records are kept" in told.stdout, told.stderr
    assert store.path.read_bytes() == before


def test_a_lock_on_a_full_disk_tells_others_less(tmp_path, monkeypatch):
    def full(*what):
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with locked(tmp_path), pytest.raises(ValueError, match="expected no other run in it"), locked(tmp_path):
            pass
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith("process ")


def test_two_runs_in_one_folder(tmp_path):
    who = f"expected no other run in it, got one at work; wait for it .*process {os.getpid()} on "
    with locked(tmp_path), pytest.raises(ValueError, match=who), locked(tmp_path):
        pass
    with locked(tmp_path):      # free again
        pass


def test_a_run_in_another_process_holds_the_folder_until_it_dies(tmp_path):
    script = f"from pathlib import Path\nfrom lowrank_rl.rl.bench.store import locked\n" \
             f"with locked(Path({str(tmp_path)!r})):\n    print('held', flush=True)\n    input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="expected no other run in it"), locked(tmp_path):
            pass
        other.kill()
        other.wait()
    with locked(tmp_path):
        pass


def test_a_folder_is_read_while_no_run_is_at_work_in_it(tmp_path):
    with resting(tmp_path):     # where no run ever was
        assert list(tmp_path.iterdir()) == []
    with locked(tmp_path), pytest.raises(ValueError, match="expected no other run in it, got one at work"), resting(tmp_path):
        pass
    with resting(tmp_path), resting(tmp_path), pytest.raises(ValueError, match="got one at work"), locked(tmp_path):
        pass


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def unable(*what):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr(fcntl, "flock", unable)
    with pytest.raises(ValueError, match="expected a file system with locks, got 'No locks available'; name another --out"), \
            locked(tmp_path):
        pass


@pytest.mark.parametrize("below", ["", "sub/folder"])
def test_a_file_where_the_folder_should_be(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="folder .*file.*: expected one that can be written, got '.*'; name another"), \
            locked(tmp_path / "file" / below):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_missing_folder_is_made(tmp_path):
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize(("commit", "changes", "refused"), [
    ("abc", {}, True), ("abc", {"commit": "abd"}, False), ("abc", {"config": {"x": 2}}, False), ("abc", {"device": "b"}, False),
    ("abc", {"versions": {"torch": "3"}}, False), ("abc+", {}, False), ("", {}, False)])
def test_contradictions_are_refused(tmp_path, commit, changes, refused):
    """The same code, settings and machine give the same numbers; anything else may have changed them."""
    first = Record(CELL, "done", returns=[1.0, math.nan], config={"x": 1}, commit=commit, versions={"torch": "2"}, device="a")
    store = Store(tmp_path)
    store.extend([first, replace(first, seconds=9.0)])                   # the same numbers once more
    assert str(store.load()[CELL].returns) == "[1.0, nan]"
    store.append(replace(first, returns=[2.0, math.nan], **changes))
    if refused:
        with pytest.raises(ValueError, match=r"line 3: expected what an earlier line says of cartpole/random/persim/agent 1/"
                                             r".*seed 0.*remove the line that is wrong or use another --out"):
            store.load()
    else:
        assert store.load()[CELL].returns[0] == 2.0
