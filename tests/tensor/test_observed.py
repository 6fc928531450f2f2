"""Observed against hand-made tables, dense tensors and loops over rows."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
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
    with pytest.raises(ValueError, match=r"each entry once, got 1 repeats, the first of entry \(p, 0\); drop them"):
        Observed.from_table(table, ["a", "b"], "y")


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
    ({name: [] for name in TABLE}, {}, "expected at least one observed entry, got none"),
])
def test_from_table_refuses(change, options, text):
    with pytest.raises(ValueError, match=text):
        Observed.from_table(TABLE | change, **({"modes": MODES, "value": "effect"} | options))


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
