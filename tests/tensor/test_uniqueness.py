from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lowrank_rl.tensor import CP
from lowrank_rl.tensor.uniqueness import freedom, k_rank, kruskal, uniqueness


def k_rank_by_hand(factor: np.ndarray) -> int:
    R = factor.shape[1]
    k = 0
    while k < R and all(np.linalg.matrix_rank(factor[:, list(s)]) == k + 1 for s in combinations(range(R), k + 1)):
        k += 1
    return k


def jacobian_rank(cp: CP) -> int:
    """Of all entries by all factors, column by column from dense tensors: an entry is linear in each factor."""
    columns = []
    for k, factor in enumerate(cp.factors):
        for i, r in np.ndindex(*factor.shape):
            unit = np.zeros_like(factor)
            unit[i, r] = 1
            factors = [unit if j == k else f for j, f in enumerate(cp.factors)]
            columns.append(CP(np.ones(cp.rank), tuple(factors)).dense().ravel())
    return int(np.linalg.matrix_rank(np.stack(columns, axis=1), tol=1e-9))


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float64, arrays.array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.integers(-2, 2)))
def test_k_rank_is_that_of_all_subsets(factor):
    assert k_rank(factor) == k_rank_by_hand(factor)


def test_k_rank_by_example():
    assert k_rank(np.eye(4)) == 4
    assert k_rank(np.array([[1, 0, 1], [0, 1, 1.0]])) == 2
    assert k_rank(np.array([[1, 2, 0], [0, 0, 1.0]])) == 1
    assert k_rank(np.array([[1, 0], [0, 0.0]])) == 0
    assert k_rank(np.random.default_rng(0).standard_normal((15, 40))) < 15   # too many subsets: a smaller one that is sure


@pytest.mark.parametrize(("shape", "rank", "sums", "verdict"), [
    ((6, 7, 4), 4, (12, 10), "unique"),
    ((4, 4, 4), 5, (12, 12), "unique"),
    ((4, 4, 4), 6, (12, 14), "locally unique"),
    ((4, 4, 4), 7, (12, 16), "undecided"),       # 70 free numbers, 64 entries
    ((3, 3, 3, 3), 4, (12, 11), "unique"),       # the general-order form
    ((2, 2, 2, 2, 2), 3, (10, 10), "unique"),
    ((9, 9), 3, (6, 7), "not unique"),
    ((9, 9, 9), 1, (3, 4), "unique"),
])
def test_verdicts_of_generic_terms(shape, rank, sums, verdict):
    cp = CP.random(shape, rank, seed=0)
    found = uniqueness(cp)
    assert found.verdict == verdict
    assert found.kruskal == sums == kruskal(cp)[1:]
    assert found.reasons
    assert str(found).startswith(verdict)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 4), min_size=3, max_size=4).map(tuple), st.integers(1, 4), st.integers(0, 2),
       st.integers(0, 10**6))
def test_freedom_is_what_the_jacobian_leaves(shape, rank, parallel, seed):
    cp = CP.random(shape, rank, seed=seed)
    for factor in cp.factors[:parallel]:
        factor[:, -1] = -2 * factor[:, 0]
    assert freedom(cp) == rank * (sum(shape) - len(shape) + 1) - jacobian_rank(cp)


def test_parallel_columns_let_terms_be_mixed():
    a, b, c = (f.copy() for f in CP.random((5, 6, 4), 3, seed=0).factors)
    c[:, 2] = 3 * c[:, 0]
    cp = CP(np.ones(3), (a, b, c))
    found = uniqueness(cp)
    assert found.verdict == "not unique"
    assert found.reasons[0].startswith("Terms 1 and 3 have parallel columns in mode 2")
    assert found.freedom == 2
    turn = np.array([[1, 2.0], [0.5, -1]])   # and indeed: another choice of both
    other_a, other_b = a.copy(), b.copy()
    other_a[:, [0, 2]] = (a[:, [0, 2]] * [1, 3]) @ turn
    other_b[:, [0, 2]] = b[:, [0, 2]] @ np.linalg.inv(turn).T
    c[:, 2] = c[:, 0]
    np.testing.assert_allclose(CP(np.ones(3), (other_a, other_b, c)).dense(), cp.dense(), atol=1e-12)


def test_columns_parallel_in_one_of_four_modes_do_no_harm_and_in_two_they_do():
    factors = [f.copy() for f in CP.random((4, 4, 4, 4), 3, seed=0).factors]
    factors[0][:, 1] = factors[0][:, 0]
    assert uniqueness(CP(np.ones(3), tuple(factors))).verdict == "unique"
    factors[3][:, 1] = factors[3][:, 0]
    found = uniqueness(CP(np.ones(3), tuple(factors)))
    assert found.verdict == "not unique"
    assert "Terms 1 and 2 have parallel columns in modes 0 and 3, so together they are a matrix" in found.reasons[0]
    factors[1][:, 1] = factors[1][:, 0]
    assert "merged into one" in uniqueness(CP(np.ones(3), tuple(factors))).reasons[0]


def test_terms_that_are_zero_or_dependent_are_not_unique():
    cp = CP.random((3, 4, 5), 3, seed=0)
    assert "A term is zero" in uniqueness(CP([1, 0, 1], cp.factors)).reasons[0]
    a = np.array([[1, 0, 1, 1], [0, 1, 1, -1.0]])
    b = np.array([[1, 0, 1, 1], [0, 1, 1, 2.0]])
    c = np.random.default_rng(0).standard_normal((5, 4))
    assert uniqueness(CP(np.ones(4), (a, b, c))).verdict in ("undecided", "locally unique")   # four products in four dimensions
    b[:, 3] = [1, -1]   # now the four products are dependent: symmetric 2 x 2 matrices
    found = uniqueness(CP(np.ones(4), (a, b, c)))
    assert found.reasons == ("The terms without mode 2 are dependent, so the columns of mode 2 are not determined.",
                             *found.reasons[1:])
    assert found.verdict == "not unique"


def test_many_groups_are_counted_and_a_large_jacobian_is_left_out():
    factor = np.repeat(np.eye(6), 2, axis=1)
    found = uniqueness(CP(np.ones(12), (factor, *CP.random((12, 12), 12, seed=0).factors)))
    assert "So have 2 more groups of terms." in found.reasons
    assert freedom(CP.random((30, 30, 30), 30, seed=0)) is None


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"factor: expected a finite matrix, got shape \(3,\)"):
        k_rank(np.ones(3))
