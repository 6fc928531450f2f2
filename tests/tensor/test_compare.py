"""The factor match score against a search over all permutations, hand-made numbers and known optima."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.tensor.compare import factor_match_score
from lowrank_rl.tensor.cp import CP


@st.composite
def pairs(draw):
    shape = draw(st.lists(st.integers(2, 5), min_size=2, max_size=4))
    a, b = (CP.random(shape, draw(st.integers(1, 4)), seed=draw(st.integers(0, 10**6))) for _ in range(2))
    signs = np.random.default_rng(draw(st.integers(0, 10**6))).normal(size=b.rank)
    return a, CP(signs, b.factors)


def term(cp: CP, r: int) -> np.ndarray:
    return CP(cp.weights[[r]], [factor[:, [r]] for factor in cp.factors]).dense()


def by_search(a: CP, b: CP, weights: bool) -> float:
    """From the dense terms: their cosine as vectors is the product of the cosines of their columns."""
    if a.rank > b.rank:
        a, b = b, a

    def match(x, y):
        sizes = np.linalg.norm(x), np.linalg.norm(y)
        return (x * y).sum() / np.prod(sizes) * (1 - abs(sizes[0] - sizes[1]) / max(sizes) if weights else 1)

    table = [[match(term(a, r), term(b, s)) for s in range(b.rank)] for r in range(a.rank)]
    return max(np.mean([table[r][s] for r, s in enumerate(chosen)]) for chosen in permutations(range(b.rank), a.rank))


@settings(deadline=None, max_examples=60)
@given(pairs(), st.booleans())
def test_against_all_permutations_of_dense_terms(pair, weights):
    a, b = pair
    score, permutation = factor_match_score(a, b, weights=weights)
    assert score == pytest.approx(by_search(a, b, weights), abs=1e-9)
    assert score == pytest.approx(factor_match_score(b, a, weights=weights)[0], abs=1e-9)
    assert permutation.shape == (a.rank,)
    assert (permutation < 0).sum() == max(0, a.rank - b.rank)
    matched = permutation[permutation >= 0]
    assert len({*matched}) == len(matched) == min(a.rank, b.rank)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(0, 10**6), st.data())
def test_order_scale_and_two_flips_do_not_matter(rank, seed, data):
    cp = CP.random((5, 6, 7), rank, seed=seed)
    order = np.array(data.draw(st.permutations(range(rank))))
    signs = np.random.default_rng(seed).choice([-1, 1], rank)
    factors = (cp.factors[0] * 4 * signs, cp.factors[1] / 2, cp.factors[2] * signs / 2)
    other = CP(cp.weights[order], [factor[:, order] for factor in factors])
    score, permutation = factor_match_score(cp, other)
    assert score == pytest.approx(1)
    np.testing.assert_array_equal(order[permutation], np.arange(rank))


def test_by_hand():
    a = CP([2, 5], ([[1, 0], [0, 1]], [[1, 0], [0, 1]]))
    b = CP([5, 1], ([[0, 3], [1, 4]], [[0, 1], [1, 0]]))   # its second term is 5 long, at cosines 0.6 and 1
    assert factor_match_score(a, b)[0] == pytest.approx((1 + 0.6 * 2 / 5) / 2)
    assert factor_match_score(a, b, weights=False)[0] == pytest.approx((1 + 0.6) / 2)
    np.testing.assert_array_equal(factor_match_score(a, b)[1], [1, 0])


def test_a_negative_is_an_opposite_wherever_its_sign_stands():
    a = CP.random((4, 5, 6), 1, seed=0)
    one_column = CP(a.weights, (-a.factors[0], *a.factors[1:]))
    for other in (-a, one_column):
        assert factor_match_score(a, other)[0] == pytest.approx(-1)
    assert factor_match_score(a, -one_column)[0] == pytest.approx(1)


def test_the_smaller_rank_counts():
    a = CP.random((6, 6, 6), 3, seed=1)
    part = CP(a.weights[[2, 0]], [factor[:, [2, 0]] for factor in a.factors])
    score, permutation = factor_match_score(a, part)
    assert score == pytest.approx(1)
    np.testing.assert_array_equal(permutation, [1, -1, 0])
    np.testing.assert_array_equal(factor_match_score(part, a)[1], [2, 0])


def test_zero_terms():
    a = CP([1, 0], ([[1, 1], [0, 1]], [[1, 0], [0, 2]]))
    assert factor_match_score(a, a)[0] == pytest.approx(1)   # weight 0, but with a direction
    empty = CP([1], ([[0], [0]], [[1], [0]]))
    assert factor_match_score(empty, empty)[0] == 0
    assert factor_match_score(a, empty)[0] == 0


def test_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"a and b: expected tensors of one shape, got \(2, 2\) and \(2, 3\)"):
        factor_match_score(CP.random((2, 2), 1, seed=0), CP.random((2, 3), 1, seed=0))
