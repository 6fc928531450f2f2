"""Labels against Python's own sorting and looking up."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.tensor.labels import coded, label_array, label_column, numbered, places


def as_objects(items):
    return label_column("x", items)


COLUMNS = st.one_of(
    st.lists(st.text(max_size=3)).map(as_objects),
    st.lists(st.tuples(st.integers(0, 2), st.text("ab", max_size=1))).map(as_objects),
    st.lists(st.text("ab\u00fc", max_size=3)).map(lambda items: np.array(items, dtype="U3")),
    st.lists(st.binary(max_size=2)).map(lambda items: np.array(items, dtype="S2")),
    st.lists(st.floats(allow_nan=False)).map(lambda items: np.array(items, dtype=float)),
    st.lists(st.integers(-3, 3)).map(lambda items: np.array(items, dtype=np.int8)),
    st.lists(st.sampled_from([-128, 0, 127])).map(lambda items: np.array(items, dtype=np.int8)),
    st.lists(st.integers(-2**63, 2**63 - 1)).map(lambda items: np.array(items, dtype=np.int64)),
    st.lists(st.integers(2**64 - 4, 2**64 - 1)).map(lambda items: np.array(items, dtype=np.uint64)),
    st.lists(st.booleans()).map(lambda items: np.array(items, dtype=bool)),
    st.lists(st.integers(0, 10**6)).map(lambda items: np.array(items, dtype="datetime64[s]")),
)


@settings(deadline=None, max_examples=300)
@given(COLUMNS)
def test_codes_are_places_among_the_labels_that_occur(column):
    distinct, codes = coded("x", column)
    assert distinct.dtype == column.dtype
    assert len({*distinct.tolist()}) == len(distinct) == len({*column.tolist()})
    assert distinct[codes].tolist() == column.tolist()


@settings(deadline=None, max_examples=300)
@given(COLUMNS, st.data())
def test_parts_are_numbered_in_sorted_order_or_in_a_given_one(column, data):
    cut = data.draw(st.integers(0, len(column)))
    parts = [coded("x", part) for part in (column[:cut], column[cut:])]
    labels, codes = numbered("x", parts)
    assert labels.tolist() == sorted({*column.tolist()})
    assert codes.tolist() == [labels.tolist().index(label) for label in column.tolist()]
    given_order = labels[data.draw(st.permutations(range(len(labels))))] if len(labels) else labels
    kept, codes = numbered("x", parts, given_order)
    assert kept is given_order
    assert given_order[codes].tolist() == column.tolist()


@pytest.mark.parametrize(("wanted", "labels", "codes"), [
    (np.array([2.0, 1.0]), np.array([1, 2]), [1, 0]),                       # numbers are equal across types
    (np.array([2, 1], np.uint8), np.array([1, 2]), [1, 0]),
    (np.array(["b"]), np.array(["bb", "b", "a"]), [1]),
    (np.array(["b"]), np.array(["a", "b"], dtype=object), [1]),
    (np.array(["2024-03-01"], "M8[ns]"), np.array(["2024-03-02", "2024-03-01"], "M8[D]"), [1]),
    (np.array([]), np.array([], dtype=object), []),
])
def test_places_across_types(wanted, labels, codes):
    assert places("x", wanted, labels).tolist() == codes


@pytest.mark.parametrize(("wanted", "labels"), [
    (np.array([3]), np.array([1, 2])), (np.array([0]), np.array([1, 2])), (np.array([1.5]), np.array([1, 2])),
    (np.array(["c"]), np.array(["a", "b"])), (np.array([1]), np.array(["1", "2"])), (np.array([1]), np.array([], int)),
])
def test_unknown_labels_are_refused(wanted, labels):
    with pytest.raises(ValueError, match=f"x: unknown label '{wanted[0]}'; known: {', '.join(map(str, labels))}"):
        places("x", wanted, labels)


@pytest.mark.parametrize("column", [
    np.array([1, np.nan, 2, np.nan]), np.array(["2024", "NaT", "2025", "NaT"], "M8[D]"),
    np.array(["a", None, "b", np.nan], object),
    np.array(["a", pd.NA, "b", pd.NaT], object), np.array([1j, np.nan, 2, np.nan]),
])
def test_rows_without_a_label_are_counted(column):
    with pytest.raises(ValueError, match="x: expected a label in each row, got 2 without .* first in row 1; drop"):
        coded("x", column)
    with pytest.raises(ValueError, match="x: expected a label in each row"):
        label_array("x", column)
