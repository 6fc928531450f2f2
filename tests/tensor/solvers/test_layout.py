import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.tensor.solvers.layout import Layouts, sort_by_mode, unsort
from lowrank_rl.tensor.solvers.problem import Problem


def test_hand_made_entries_are_grouped_by_row_in_their_order():
    index = np.array([[1, 0, 1], [0, 2, 1]], np.int32)
    layout = sort_by_mode(index, np.array([5.0, 6.0, 7.0]), None, (2, 3), 0)
    assert layout.start.tolist() == [0, 1, 3]
    back, value, weight = unsort(layout)
    assert back.tolist() == [[0, 1, 1], [2, 0, 1]]
    assert value.tolist() == [6.0, 5.0, 7.0]
    assert weight is None


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6), st.integers(0, 40), st.booleans(), st.sampled_from([5, 70_000]), st.integers(0, 10_000))
def test_sorting_is_a_stable_permutation(modes, entries, weighted, size, seed):
    rng = np.random.default_rng(seed)
    shape = (size, *rng.integers(1, 6, modes - 1).tolist())
    index = np.stack([rng.integers(0, n, entries) for n in shape]).astype(np.int32)
    value, weight = rng.standard_normal(entries), rng.random(entries) + 0.5 if weighted else None
    for k in range(modes):
        back, y, w = unsort(sort_by_mode(index, value, weight, shape, k))
        order = np.argsort(index[k], kind="stable")
        assert (back == index[:, order]).all()
        np.testing.assert_allclose(y, value[order], rtol=1e-15)
        assert (w is None) == (weight is None)
        if weighted:
            np.testing.assert_allclose(w, weight[order], rtol=1e-14)


def test_strided_input_and_memory():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 9, (50, 3)).astype(np.int32)
    one, two = (sort_by_mode(x, np.arange(50.0), None, (9, 9, 9), 1) for x in (X.T, np.ascontiguousarray(X.T)))
    assert (one.record == two.record).all()
    assert one.record.nbytes == 12 * 50


def test_layouts_are_built_once():
    problem = Problem(np.zeros((2, 1), np.int32), np.ones(1), None, (1, 1), 1, (0.0, 0.0), (False, False), (False, False))
    layouts = Layouts(problem)
    assert layouts[1] is layouts[1]
    with pytest.raises(IndexError):
        layouts[2]
