"""Observed against hand-made tables, dense tensors and loops over rows."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.tensor.observed import Observed

# A 2x2x2 tensor by hand: three entries are known, one of them is 0.
INDEX = [[0, 0, 0], [0, 1, 1], [1, 0, 1]]
VALUE = [5.0, 0.0, -2.0]
SHAPE = (2, 2, 2)

TABLE = {
    "agent": ["bob", "ann", "bob"],
    "drug": ["x", "y", "y"],
    "dose": [20, 10, 10],
    "effect": [1.5, 0.0, -3.0],
}
MODES = ["agent", "drug", "dose"]


@st.composite
def dense_with_mask(draw):
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = rng.random(shape) < draw(st.floats(0, 1))
    mask[tuple(rng.integers(shape))] = True   # at least one entry
    tensor = rng.standard_normal(shape)
    tensor[rng.random(shape) < 0.2] = 0.0
    return tensor, mask, rng


def test_hand_made_entries_and_zero_is_a_value():
    observed = Observed(INDEX, VALUE, SHAPE)
    nan = np.nan
    np.testing.assert_array_equal(observed.dense(), [[[5, nan], [nan, 0]], [[nan, -2], [nan, nan]]])
    np.testing.assert_array_equal(observed.dense(fill=7), [[[5, 7], [7, 0]], [[7, -2], [7, 7]]])
    np.testing.assert_array_equal(observed.mask(), [[[1, 0], [0, 1]], [[0, 1], [0, 0]]])
    assert len(observed) == 3
    assert observed.density == 3 / 8
    assert observed.labels == (None, None, None)


@settings(deadline=None, max_examples=60)
@given(dense_with_mask())
def test_dense_and_back(case):
    tensor, mask, rng = case
    observed = Observed.from_dense(tensor, mask)
    np.testing.assert_array_equal(observed.mask(), mask)
    np.testing.assert_array_equal(observed.dense(), np.where(mask, tensor, np.nan))
    for row, value in zip(observed.index, observed.value, strict=True):
        assert tensor[tuple(row)] == value
    assert observed.density == pytest.approx(mask.mean())

    order = rng.permutation(len(observed))   # the order of the rows says nothing
    shuffled = Observed(observed.index[order], observed.value[order], observed.shape)
    np.testing.assert_array_equal(shuffled.dense(), observed.dense())

    asked = Observed.from_dense(np.where(mask, tensor, np.nan), missing=np.nan)
    np.testing.assert_array_equal(asked.dense(), observed.dense())


def test_a_mask_hides_nan_and_no_mask_means_complete():
    tensor = np.array([[1.0, np.nan], [0.0, 3.0]])
    np.testing.assert_array_equal(Observed.from_dense(tensor, [[1, 0], [1, 1]]).value, [1, 0, 3])
    assert Observed.from_dense(np.zeros((2, 3))).density == 1


@pytest.mark.parametrize("array", [
    np.array, torch.tensor, list,
    lambda x: torch.tensor(x, dtype=torch.float32, requires_grad=True),
    lambda x: torch.tensor(x, dtype=torch.bfloat16),
])
def test_takes_arrays_tensors_and_lists(array):
    observed = Observed(array(INDEX) if array is not list else INDEX, array(VALUE), torch.Size(SHAPE))
    assert observed.index.dtype == np.int64
    assert observed.value.dtype == np.float64
    assert observed.shape == SHAPE
    np.testing.assert_array_equal(observed.index, INDEX)
    np.testing.assert_array_equal(observed.value, VALUE)


def test_takes_pandas_columns():
    frame = pd.DataFrame({"i": [0, 1], "j": [2, 0], "y": [1.0, 2.0]}, index=[7, 3])
    observed = Observed(frame[["i", "j"]], frame["y"], (2, 3))
    np.testing.assert_array_equal(observed.index, [[0, 2], [1, 0]])
    np.testing.assert_array_equal(observed.value, [1, 2])


def test_keeps_its_own_copies():
    index, value = np.array(INDEX), np.array(VALUE)
    observed = Observed(index, value, SHAPE)
    index[:], value[:] = 9, 9
    np.testing.assert_array_equal(observed.index, INDEX)
    np.testing.assert_array_equal(observed.value, VALUE)


@pytest.mark.parametrize("make", [dict, pd.DataFrame, pa.table], ids=["mapping", "pandas", "pyarrow"])
def test_table_and_back_to_labels(make):
    observed = Observed.from_table(make(TABLE), modes=MODES, value="effect")
    assert [list(labels) for labels in observed.labels] == [["ann", "bob"], ["x", "y"], [10, 20]]
    np.testing.assert_array_equal(observed.index, [[1, 0, 1], [0, 1, 0], [1, 1, 0]])
    np.testing.assert_array_equal(observed.value, TABLE["effect"])
    columns = observed.decode(observed.index)
    assert [list(column) for column in columns] == [TABLE[mode] for mode in MODES]
    np.testing.assert_array_equal(observed.encode(columns), observed.index)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(st.tuples(st.text(max_size=3), st.integers(-3, 3)), st.integers(-9, 9), min_size=1, max_size=8),
       st.randoms())
def test_table_round_trip_and_order_of_rows(entries, random):
    def observe(rows):
        table = {"a": [a for (a, _), _ in rows], "b": [b for (_, b), _ in rows], "y": [y for _, y in rows]}
        return Observed.from_table(table, ["a", "b"], "y")

    rows = list(entries.items())
    observed = observe(rows)
    back = dict(zip(zip(*observed.decode(observed.index), strict=True), observed.value, strict=True))
    assert back == entries
    random.shuffle(rows)
    np.testing.assert_array_equal(observe(rows).dense(), observed.dense())


def test_table_with_dates_categories_and_nullable_numbers():
    days = pd.to_datetime(["2024-03-02", "2024-03-01"])
    frame = pd.DataFrame({"day": days, "arm": pd.Categorical(["low", "high"], ["low", "high"]),
                          "id": pd.array([4, 2], dtype="Int64"), "y": pd.array([1, 2], dtype="Float64")})
    observed = Observed.from_table(frame, ["day", "arm", "id"], "y")
    np.testing.assert_array_equal(observed.index, [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(observed.encode([days, ["low", "high"], [4, 2]]), observed.index)


def test_labels_of_one_table_number_another():
    train = Observed.from_table(TABLE, MODES, "effect")
    test = Observed.from_table({"agent": ["ann"], "drug": ["x"], "dose": [20], "effect": [4.0]}, MODES, "effect",
                               labels=train.labels)
    assert test.shape == train.shape
    np.testing.assert_array_equal(test.index, [[0, 0, 1]])
    with pytest.raises(ValueError, match="column 'agent': unknown label 'zoe'; known: ann, bob"):
        Observed.from_table(TABLE | {"agent": ["ann", "zoe", "bob"]}, MODES, "effect", labels=train.labels)


def test_some_modes_labelled():
    observed = Observed([[0, 2], [1, 0]], [1.0, 2.0], (2, 3), labels=[["b", 1], None])
    names, numbers = observed.decode(observed.index)
    assert list(names) == ["b", 1]   # as given: neither sorted nor turned into text
    np.testing.assert_array_equal(numbers, [2, 0])
    np.testing.assert_array_equal(observed.encode([[1, "b"], [0, 2]]), [[1, 0], [0, 2]])


def test_repeats_are_averaged_when_asked():
    table = {"a": ["p", "q", "p", "p"], "b": [0, 0, 0, 1], "y": [1.0, 5.0, 4.0, 7.0]}
    observed = Observed.from_table(table, ["a", "b"], "y", duplicates="mean")
    np.testing.assert_array_equal(observed.dense(), [[2.5, 7], [5, np.nan]])
    with pytest.raises(ValueError, match=r"once, got 1 repeats, 1 of them .* 1.0 and 4.0 of entry \(p, 0\); drop them"):
        Observed.from_table(table, ["a", "b"], "y")


def test_averages_keep_how_many_rows_they_are_of():
    table = {"a": ["p", "q", "p", "p"], "b": [0, 0, 0, 1], "y": [1.0, 5.0, 4.0, 7.0], "n": [3, 1, 1, 2]}
    counted = Observed.from_table(table, ["a", "b"], "y", duplicates="mean")
    np.testing.assert_array_equal(counted.weight, [2, 1, 1])
    np.testing.assert_array_equal(counted.index, [[0, 0], [0, 1], [1, 0]])
    weighted = Observed.from_table(table, ["a", "b"], "y", weight="n", duplicates="mean")
    np.testing.assert_array_equal(weighted.value, [7 / 4, 7, 5])
    np.testing.assert_array_equal(weighted.weight, [4, 2, 1])
    tenth = Observed.from_table(table | {"y": [0.1] * 4}, ["a", "b"], "y", weight="n", duplicates="mean")
    assert tenth.value[1:].tolist() == [0.1, 0.1]   # entries that stand alone keep their bits
    unique = {name: column[1:] for name, column in table.items()}
    assert Observed.from_table(unique, ["a", "b"], "y", duplicates="mean").weight is None
    for duplicates in ("mean", "refuse"):
        kept = Observed.from_table(unique, ["a", "b"], "y", weight="n", duplicates=duplicates)
        assert dict(zip(kept.value, kept.weight, strict=True)) == {5: 1, 4: 1, 7: 2}


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(-9, 9), st.floats(0.1, 9)), min_size=1, max_size=20),
       st.booleans())
def test_means_and_weights_against_a_loop(rows, with_weights):
    a, b, y, w = zip(*rows, strict=True)
    w = w if with_weights else np.ones(len(rows))
    observed = Observed.from_table({"a": a, "b": b, "y": y, "w": w}, ["a", "b"], "y", duplicates="mean",
                                   weight="w" if with_weights else None)
    cells = {cell: [r for r in range(len(rows)) if (a[r], b[r]) == cell] for cell in zip(a, b, strict=True)}
    assert len(observed) == len(cells)
    if observed.weight is None:
        assert len(cells) == len(rows)
    weight = np.ones(len(cells)) if observed.weight is None else observed.weight
    for cell, value, total in zip(zip(*observed.decode(observed.index), strict=True), observed.value, weight, strict=True):
        assert total == pytest.approx(sum(w[r] for r in cells[cell]))
        assert value == pytest.approx(sum(w[r] * y[r] for r in cells[cell]) / total, abs=1e-12)


def test_the_first_contradiction_is_named():
    agree = {"a": ["p", "q", "q", "p"], "b": [0, 1, 1, 0], "y": [1.0, 2.0, 2.0, 1.0]}
    with pytest.raises(ValueError, match=r"got 2 repeats, 0 of them with another value, such as 1.0 and 1.0 of entry \(p, 0\)"):
        Observed.from_table(agree, ["a", "b"], "y")
    with pytest.raises(ValueError, match=r"got 2 repeats, 1 of them with another value, such as 2.0 and 3.0 of entry \(q, 1\)"):
        Observed.from_table(agree | {"y": [1.0, 2.0, 3.0, 1.0]}, ["a", "b"], "y")


def test_repeats_are_found_where_the_flattened_tensor_is_too_long_for_int64():
    shape = (2**40, 2**40)
    far = [[2**40 - 1, 3], [2**40 - 1, 4], [0, 3]]
    assert len(Observed(far, [1, 2, 3], shape)) == 3
    with pytest.raises(ValueError, match="each entry once"):
        Observed([*far, far[1]], [1, 2, 3, 4], shape)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.floats(0.05, 0.95), st.integers(0, 10**6))
def test_split_is_a_partition(n, fraction, seed):
    whole = Observed(np.column_stack([np.arange(n), np.arange(n)]), np.arange(n), (n, n), labels=[range(n), None])
    if not 0 < round(fraction * n) < n:
        with pytest.raises(ValueError, match="leaves entries on both sides"):
            whole.split(fraction, seed=seed)
        return
    train, held_out = whole.split(fraction, seed=seed)
    assert len(held_out) == round(fraction * n)
    assert sorted([*train.value, *held_out.value]) == list(range(n))
    for part in (train, held_out):
        assert part.shape == whole.shape
        np.testing.assert_array_equal(part.index[:, 0], part.value)   # values stay with their coordinates
        np.testing.assert_array_equal(part.labels[0], whole.labels[0])
    np.testing.assert_array_equal(whole.split(fraction, seed=seed)[1].value, held_out.value)


def test_split_depends_on_the_seed():
    whole = Observed.from_dense(np.ones((10, 10)))
    first, second = (whole.split(0.5, seed=seed)[0].index for seed in (0, 1))
    assert (first != second).any()


@st.composite
def weighted(draw):
    """Some entries of a small tensor, with weights or without."""
    tensor, mask, rng = draw(dense_with_mask())
    observed = Observed.from_dense(tensor, mask)
    weight = rng.uniform(0.5, 2, len(observed)) if draw(st.booleans()) else None
    return Observed(observed.index, observed.value, observed.shape, weight=weight)


@settings(deadline=None, max_examples=80)
@given(weighted(), st.integers(0, 10**6), st.data())
def test_split_by_groups(whole, seed, data):
    modes = range(len(whole.shape))
    by = data.draw(st.one_of(st.none(), st.sampled_from(modes), st.sets(st.sampled_from(modes), min_size=1).map(tuple)))
    group = [tuple(row[list(modes if by is None else np.atleast_1d(by))]) for row in whole.index]
    many = len({*group})
    if not 0 < round(0.4 * many) < many:
        what = "" if by is None else " groups"
        with pytest.raises(ValueError, match=f"both sides, got 0.4, which holds out . of {many}{what}$"):
            whole.split(0.4, seed=seed, by=by)
        return
    parts = whole.split(0.4, seed=seed, by=by)
    place = {tuple(row): b for b, row in enumerate(whole.index)}
    chosen = [[place[tuple(row)] for row in part.index] for part in parts]
    assert sorted([*chosen[0], *chosen[1]]) == list(range(len(whole)))   # each entry on one side
    assert not {group[b] for b in chosen[0]} & {group[b] for b in chosen[1]}   # and so each group
    assert len({group[b] for b in chosen[1]}) == round(0.4 * many)
    for part, entries in zip(parts, chosen, strict=True):
        assert entries == sorted(entries)   # in their old order
        np.testing.assert_array_equal(part.value, whole.value[entries])
        assert part.shape == whole.shape
        if whole.weight is None:
            assert part.weight is None
        else:
            np.testing.assert_array_equal(part.weight, whole.weight[entries])
    order = np.random.default_rng(seed).permutation(len(whole))   # the order of the entries does not say who is held out
    shuffled = Observed(whole.index[order], whole.value[order], whole.shape).split(0.4, seed=seed, by=by)
    np.testing.assert_array_equal(shuffled[1].dense(), parts[1].dense())


def test_split_by_rows_and_fibres_by_hand():
    whole = Observed.from_dense(np.arange(24.0).reshape(2, 3, 4))
    train, held_out = whole.split(0.5, seed=0, by=2)
    assert sorted([*train.unobserved(2), *held_out.unobserved(2)]) == [0, 1, 2, 3]
    assert held_out.counts(2).tolist().count(6) == 2
    _, held_out = whole.split(1 / 6, seed=0, by=[0, 1])   # one of 2 x 3 fibres along mode 2
    assert len(held_out) == 4
    assert len({tuple(row[:2]) for row in held_out.index}) == 1


@pytest.mark.parametrize("by", [3, -1, (), (0, 0), (0, 5), "agent", 1.5, None])
def test_modes_are_refused(by):
    whole = Observed(INDEX, VALUE, SHAPE)
    if by is not None:
        with pytest.raises(ValueError, match="by: expected different modes among 0..2, got"):
            whole.split(0.5, seed=0, by=by)
    for act in (whole.counts, whole.unobserved):
        with pytest.raises(ValueError, match="k: expected (a mode|different modes) among 0..2, got"):
            act(by)


@settings(deadline=None, max_examples=40)
@given(weighted())
def test_counts_against_the_mask(observed):
    for k in range(len(observed.shape)):
        counts = np.moveaxis(observed.mask(), k, 0).reshape(observed.shape[k], -1).sum(axis=1)
        np.testing.assert_array_equal(observed.counts(k), counts)
        np.testing.assert_array_equal(observed.unobserved(k), np.flatnonzero(counts == 0))


# Parquet

LABELS = st.one_of(
    *(st.lists(labels, min_size=4, max_size=4, unique=True) for labels in (
        st.text(max_size=4), st.integers(-2**63, 2**63 - 1), st.binary(max_size=3), st.floats(allow_nan=False, width=32))),
    st.lists(st.dates(), min_size=4, max_size=4, unique=True).map(lambda x: np.array(x, "datetime64[D]")),
    st.lists(st.integers(-10**9, 10**9), min_size=4, max_size=4, unique=True).map(lambda x: np.array(x, "datetime64[us]")),
    st.lists(st.text("ab\u00fc", max_size=4), min_size=4, max_size=4, unique_by=lambda x: x).map(lambda x: np.array(x, "U4")),
    st.none())


@settings(deadline=None, max_examples=80)
@given(weighted(), st.data())
def test_a_parquet_file_and_back(plain, data):
    labels = [None if names is None else names[:size]
              for names, size in zip((data.draw(LABELS) for _ in plain.shape), plain.shape, strict=True)]
    observed = Observed(plain.index, plain.value, plain.shape, labels, plain.weight)
    rows = [range(size) if names is None else names for names, size in zip(labels, plain.shape, strict=True)]
    modes = [f"mode_{k}" for k in range(len(plain.shape))]
    weight = None if plain.weight is None else "weight"
    with tempfile.TemporaryDirectory() as folder:
        observed.to_parquet(Path(folder) / "new" / "file")
        back = Observed.from_parquet(Path(folder) / "new" / "file", modes, "value", weight=weight, labels=rows)
        bare = Observed.from_parquet(Path(folder) / "new" / "file", modes, "value", weight=weight)
    again = Observed.from_table(observed.to_table(), modes, "value", weight=weight, labels=rows)
    for one in (back, again):
        np.testing.assert_array_equal(one.index, observed.index)
        np.testing.assert_array_equal(one.value, observed.value)
        assert one.shape == observed.shape
        np.testing.assert_array_equal(one.weight, observed.weight)
    by_table = Observed.from_table(observed.to_table(), modes, "value")
    np.testing.assert_array_equal(bare.index, by_table.index)   # the same sorted numbers, with labels of their own
    assert bare.shape == by_table.shape


FRAME = pd.DataFrame({"agent": ["bob", "ann", "bob", "zoe"],
                      "arm": pd.Categorical(["low", "mid", "mid", "low"], ["mid", "x", "low"]),
                      "day": pd.to_datetime(["2024-03-02", "2024-03-01", "2024-03-02", "2024-03-02"]),
                      "id": np.array([7, 2, 2, 5], np.int16), "y": [1.0, 2.0, 3.0, 4.0], "n": [1, 2, 3, 4], "junk": [None] * 4})


@pytest.mark.parametrize("row_group", [1, 3, 4])
@pytest.mark.parametrize("change", [{}, {"agent": "category", "id": "category"},
                                    {"agent": "string", "id": "Int64", "y": "Int32"}])
def test_parquet_is_read_as_the_table_is(tmp_path, row_group, change):
    frame = FRAME.astype(change)
    frame.to_parquet(tmp_path / "file", row_group_size=row_group)
    modes = ["agent", "arm", "day", "id"]
    observed = Observed.from_parquet(tmp_path / "file", modes, "y", weight="n")
    by_table = Observed.from_table(frame, modes, "y", weight="n")
    for one, other in zip(observed.labels, by_table.labels, strict=True):
        np.testing.assert_array_equal(one, other)
    for field in ("index", "value", "weight"):
        np.testing.assert_array_equal(getattr(observed, field), getattr(by_table, field))
    twice = Observed.from_parquet(tmp_path / "file", ["arm", "day"], "y", duplicates="mean")
    np.testing.assert_array_equal(twice.dense(), [[np.nan, 2.5], [2, 3]])


def test_odd_dictionaries(tmp_path):
    """Arrow allows a dictionary with labels that do not occur and with one label twice."""
    codes = pa.DictionaryArray.from_arrays(pa.array([3, 0, 2]), pa.array(["b", "unused", "a", "b"]))
    table = pa.table({"a": codes, "b": [1, 1, 2], "y": [1.0, 2.0, 3.0]})
    pq.write_table(table, tmp_path / "file")
    with pytest.raises(ValueError, match=r"got 1 repeats, 1 of them .* 1.0 and 2.0 of entry \(b, 1\)"):
        Observed.from_parquet(tmp_path / "file", ["a", "b"], "y")
    observed = Observed.from_parquet(tmp_path / "file", ["a", "b"], "y", duplicates="mean")
    assert [list(labels) for labels in observed.labels] == [["a", "b"], [1, 2]]
    np.testing.assert_array_equal(observed.dense(), [[np.nan, 3], [1.5, np.nan]])


@pytest.mark.parametrize(("change", "options", "text"), [
    ({}, {"value": "reward"}, "unknown column of .*file 'reward'; known: agent, drug, dose, effect"),
    ({}, {"modes": ["agent", "durg"]}, "unknown column of .*file 'durg'; known: agent"),
    ({}, {"weight": "agent"}, "modes: .* none of them 'effect' or 'agent'"),
    ({}, {"duplicates": "last"}, "unknown duplicates 'last'; known: refuse, mean"),
    ({"drug": ["x", None, "y"]}, {}, "file, column 'drug': expected no nulls, got 1 in row group 0; drop those rows"),
    ({"effect": [1.0, None, None]}, {}, "file, column 'effect': expected no nulls, got 2 in row group 0"),
    ({"effect": [1.0, np.nan, 2.0]}, {}, "column 'effect': 1 of 3 values are NaN or Inf"),
    ({"effect": ["1", "2", "3"]}, {}, "column 'effect': expected real numbers"),
    ({"dose": [1.0, np.nan, 2.0]}, {}, "column 'dose': expected a label in each row, got 1"),
    ({"drug": [[1], [2], [3]]}, {}, "column 'drug': expected labels such as text or numbers, got list"),
    ({"n": [1, 0, 1]}, {"weight": "n"}, "column 'n': expected positive finite weights, got 1 others, the first 0.0 in row 1"),
    ({name: [] for name in TABLE}, {}, "expected at least one observed entry, got none"),
])
def test_from_parquet_refuses(tmp_path, change, options, text):
    pq.write_table(pa.table(TABLE | change), tmp_path / "file")
    with pytest.raises(ValueError, match=text) as error:
        Observed.from_parquet(tmp_path / "file", **({"modes": MODES, "value": "effect"} | options))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def parquet_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("parquet") / "file"
    Observed.from_table(TABLE, MODES, "effect").to_parquet(path, MODES, "effect")
    return path


@settings(deadline=None, max_examples=100)
@given(st.floats(0, 1, exclude_max=True), st.one_of(st.none(), st.integers(1, 255)))
def test_spoiled_parquet_files(parquet_file, where, flip):
    """Cut short, or with one byte changed: never another number (pages have checksums; the footer's text type has not)."""
    content = parquet_file.read_bytes()
    at = int(where * len(content))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spoiled"
        path.write_bytes(content[:at] if flip is None else content[:at] + bytes([content[at] ^ flip]) + content[at + 1:])
        try:
            observed = Observed.from_parquet(path, MODES, "effect")
        except ValueError:
            return
    assert flip is not None
    np.testing.assert_array_equal(observed.dense(), Observed.from_table(TABLE, MODES, "effect").dense())


def test_what_is_said_about_parquet_files(parquet_file, tmp_path, monkeypatch):
    (tmp_path / "half").write_bytes(parquet_file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="half: expected a parquet file, got a corrupt or truncated one"):
        Observed.from_parquet(tmp_path / "half", MODES, "effect")
    for path, got in ((tmp_path / "none", "no such file"), (tmp_path, "a folder")):
        with pytest.raises(ValueError, match=f"{path.name}: expected a parquet file, got {got}"):
            Observed.from_parquet(path, MODES, "effect")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"expected the package pyarrow, got none; .* pip install 'lowrank_rl\[table\]'"):
        Observed.from_parquet(parquet_file, MODES, "effect")


def test_to_parquet_refuses_and_leaves_the_old_file(tmp_path):
    observed = Observed(INDEX, VALUE, SHAPE)
    observed.to_parquet(tmp_path / "file")
    content = (tmp_path / "file").read_bytes()
    with pytest.raises(ValueError, match="expected a place that can be written"):
        observed.to_parquet(tmp_path / "file" / "below")
    for names, text in ((["a", "b"], "modes: expected a name for each of 3 modes, got 2"),
                        (["a", "b", "value"], "modes: .* different")):
        with pytest.raises(ValueError, match=text):
            observed.to_parquet(tmp_path / "file", names)
    mixed = Observed(INDEX, VALUE, SHAPE, [["a", 1], None, None])
    with pytest.raises(ValueError, match="labels of mode_0: expected ones of a single type that parquet .*; convert") as error:
        mixed.to_parquet(tmp_path / "file")
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_to_table_by_hand():
    observed = Observed.from_table(TABLE, MODES, "effect")
    assert {name: list(column) for name, column in observed.to_table(MODES, "effect").items()} == TABLE
    weighted = Observed([[0, 1], [1, 0]], [1, 2], (2, 2), weight=[3, 4])
    assert {name: list(column) for name, column in weighted.to_table(weight="n").items()} == {
        "mode_0": [0, 1], "mode_1": [1, 0], "value": [1, 2], "n": [3, 4]}


@pytest.mark.parametrize(("weight", "text"), [
    ([1, 2], "weight: axis B is 2, earlier inputs say B=3"),
    ([1, 0, -1], "weight: expected positive finite weights, got 2 others, the first 0.0 in row 1; drop entries"),
    ([1, np.nan, 1], "weight: expected positive finite weights, got 1 others, the first nan in row 1"),
    ([1, np.inf, 1], "weight: .* the first inf in row 1"),
    (["a", "b", "c"], "weight: expected real numbers"),
    ([[1], [1], [1]], r"weight: expected axes \(B\), got shape \(3, 1\)"),
])
def test_weights_are_refused(weight, text):
    with pytest.raises(ValueError, match=text):
        Observed(INDEX, VALUE, SHAPE, weight=weight)


@pytest.mark.parametrize(("index", "value", "shape", "labels", "text"), [
    (INDEX, [1, np.nan, np.inf], SHAPE, None, r"value: 2 of 3 values are NaN or Inf, the first at \(1,\)"),
    (INDEX, [1, 2], SHAPE, None, "value: axis B is 2, earlier inputs say B=3"),
    (INDEX, [[1], [2], [3]], SHAPE, None, r"value: expected axes \(B\), got shape \(3, 1\)"),
    (INDEX, ["a", "b", "c"], SHAPE, None, "value: expected real numbers, got dtype <U1; convert them"),
    (INDEX, [1j, 1, 1], SHAPE, None, "value: expected real numbers, got dtype complex128"),
    (INDEX, pd.array([1, 2, None], dtype="Int64"), SHAPE, None, "value: .*(NaN|expected real numbers)"),
    (np.empty((0, 3), int), [], SHAPE, None, "value: expected at least one observed entry, got none"),
    ([[0, 0, -1]], [1], SHAPE, None, r"index, mode 2: expected integers 0..1, got values -1..-1"),
    ([[0, 2, 0]], [1], SHAPE, None, r"index, mode 1: expected integers 0..1, got values 2..2"),
    (np.array([[0, 2**64 - 1, 0]], dtype=np.uint64), [1], SHAPE, None, "index, mode 1: expected integers 0..1, got"),
    ([[0, 1e300, 0]], [1], SHAPE, None, "index, mode 1: expected integers 0..1, got"),
    ([[0, 0.5, 0]], [1], SHAPE, None, "index: expected whole numbers, got fractions such as 0.5; use FunctionalCP"),
    ([[0, np.nan, 0]], [1], SHAPE, None, "index: 1 of 3 values are NaN or Inf"),
    ([["a", "b", "c"]], [1], SHAPE, None, "index: expected real numbers, got dtype <U1"),
    ([[0, 0], [0]], [1, 2], SHAPE, None, "index: expected a rectangular array"),
    ([0, 0, 0], [1], SHAPE, None, r"index: expected axes \(B K\), got shape \(3,\)"),
    ([[0, 0]], [1], SHAPE, None, r"index: expected one column for each of 3 modes, got shape \(1, 2\)"),
    ([[0]], [1], (2,), None, r"shape: expected at least two modes, each of a whole size >= 1, got \(2,\)"),
    ([[0, 0]], [1], (2, 0), None, r"shape: .* got \(2, 0\)"),
    ([[0, 0]], [1], (2, 2.5), None, r"shape: .* got \(2, 2.5\)"),
    ([[0, 0]], [1], 4, None, "shape: .* got 4"),
    ([[0, 1], [1, 1], [0, 1]], [1, 2, 3], (2, 2), None, r"index: expected each entry once, got 1 repeats, .* \(0, 1\)"),
    ([[0, 1]], [1], (2, 2), [["a", "b"]], "labels: expected one item .* for each of 2 modes, got 1"),
    ([[0, 1]], [1], (2, 2), [["a"], None], "labels of mode 0: expected 2, the size of the mode, got 1"),
    ([[0, 1]], [1], (2, 2), [None, ["a", "a"]], "labels of mode 1: expected different labels, got 2 .* 1 differ"),
    ([[0, 1]], [1], (2, 2), [None, ["a", None]], "labels of mode 1: expected a label in each row, got 1 without"),
])
def test_refuses_with_one_sentence(index, value, shape, labels, text):
    with pytest.raises(ValueError, match=text) as error:
        Observed(index, value, shape, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("tensor", "options", "text"), [
    (np.ones((2, 3)), {"mask": np.ones((3, 2))}, r"mask: expected the tensor's shape \(2, 3\), got \(3, 2\)"),
    (np.ones((2, 2)), {"mask": [[1, 0], [1, 2]]}, "mask: expected 1 or True"),
    (np.ones((2, 2)), {"mask": np.zeros((2, 2))}, "expected at least one observed entry"),
    (np.ones((2, 2)), {"missing": 0}, r"missing: expected np.nan, got 0; .* pass mask=\(tensor != 0\)"),
    (np.ones((2, 2)), {"mask": np.ones((2, 2)), "missing": np.nan}, "mask and missing: expected one of them, got both"),
    ([[1, np.nan]], {}, r"tensor: .* got 1 NaN or Inf, the first at \(0, 1\); .* pass missing=np.nan"),
    ([[1, np.inf]], {"missing": np.nan}, "tensor: expected finite observed entries, got 1 NaN or Inf"),
    (np.ones(3), {}, "shape: expected at least two modes"),
])
def test_from_dense_refuses(tensor, options, text):
    with pytest.raises(ValueError, match=text):
        Observed.from_dense(tensor, **options)


@pytest.mark.parametrize(("change", "options", "text"), [
    ({}, {"value": "reward"}, "unknown column 'reward'; known: agent, drug, dose, effect"),
    ({}, {"modes": ["agent", "durg"]}, "unknown column 'durg'; known: agent, drug, dose, effect"),
    ({}, {"modes": "agent"}, "modes: expected a list of at least two columns, .* got 'agent'"),
    ({}, {"modes": ["agent"]}, "modes: expected a list of at least two columns"),
    ({}, {"modes": ["agent", "agent"]}, "modes: .* all different"),
    ({}, {"modes": ["agent", "effect"]}, "modes: .* none of them 'effect'"),
    ({}, {"duplicates": "last"}, "unknown duplicates 'last'; known: refuse, mean"),
    ({}, {"labels": [None]}, "labels: expected one item .* for each of 3 modes, got 1"),
    ({"drug": ["x", "y"]}, {}, "column 'drug': axis B is 2, earlier inputs say B=3"),
    ({"drug": ["x", None, "y"]}, {}, "column 'drug': expected a label in each row, got 1 .* first in row 1"),
    ({"drug": pd.array([1, None, 2], dtype="Int64")}, {}, "column 'drug': expected a label in each row"),
    ({"dose": [1.0, np.nan, 2.0]}, {}, "column 'dose': expected a label in each row"),
    ({"drug": ["x", 1, "y"]}, {}, "column 'drug': expected labels that sort, got int, str"),
    ({"drug": [{}, {}, {}]}, {}, "column 'drug': expected labels such as text or numbers"),
    ({"effect": [1.0, np.nan, 2.0]}, {}, "column 'effect': 1 of 3 values are NaN or Inf"),
    ({"effect": ["1", "2", "n/a"]}, {}, "column 'effect': expected real numbers"),
    ({"effect": pd.Series(["1", "2", "3"])}, {}, "column 'effect': expected real numbers"),
    ({"effect": [1.0, None, 2.0]}, {}, "column 'effect': 1 of 3 values are NaN or Inf"),
    ({"n": [1, -1, 1]}, {"weight": "n"}, "column 'n': expected positive finite weights, got 1 others, the first -1.0 in row 1"),
    ({"n": [1, 1]}, {"weight": "n"}, "column 'n': axis B is 2, earlier inputs say B=3"),
    ({}, {"weight": "n"}, "unknown column 'n'; known: agent"),
    ({}, {"weight": "effect"}, "modes: .* none of them 'effect' or 'effect'"),
    ({name: [] for name in TABLE}, {}, "expected at least one observed entry, got none"),
])
def test_from_table_refuses(change, options, text):
    with pytest.raises(ValueError, match=text):
        Observed.from_table(TABLE | change, **({"modes": MODES, "value": "effect"} | options))


@pytest.mark.parametrize("make", [pd.DataFrame, pa.table, dict], ids=["pandas", "pyarrow", "dict"])
def test_a_table_of_labels_is_encoded_as_its_columns_are(make):
    observed = Observed.from_table(TABLE, MODES, "effect")
    table = make({name: TABLE[name] for name in MODES})
    np.testing.assert_array_equal(observed.encode(table), observed.index)
    with pytest.raises(ValueError, match="columns: expected one for each of 3 modes, got 4"):
        observed.encode(make(TABLE))


def test_encode_and_decode_refuse():
    observed = Observed.from_table(TABLE, MODES, "effect")
    with pytest.raises(ValueError, match="columns: expected one for each of 3 modes, got 1"):
        observed.encode([["ann"]])
    with pytest.raises(ValueError, match="column 2: unknown label '15'; known: 10, 20"):
        observed.encode([["ann"], ["x"], [15]])
    with pytest.raises(ValueError, match=r"index, mode 0: expected integers 0..1"):
        observed.decode([[5, 0, 0]])
    many = Observed([[0, 0]], [1], (30, 1), labels=[range(30), None])
    with pytest.raises(ValueError, match=r"known: 0, 1, .*, 19, \.\.\. \(30 in all\)"):
        many.encode([[99], [0]])


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, np.nan])
def test_split_refuses(fraction):
    with pytest.raises(ValueError, match="fraction: expected the share to hold out, between 0 and 1"):
        Observed(INDEX, VALUE, SHAPE).split(fraction, seed=0)


def test_needs_neither_pandas_nor_pyarrow_nor_tensorly_at_import():
    code = ("import sys, lowrank_rl.tensor.observed, lowrank_rl.tensor.cp; "
            "print([name for name in ('pandas', 'pyarrow', 'tensorly') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
