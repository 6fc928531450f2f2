"""CP against numbers by hand, einsum and loops over the dense tensor, and TensorLy."""

import string

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.cp_tensor import CPTensor, cp_norm, cp_to_tensor

from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.observed import Observed

# [1, 2] o [1, 3] o [1, 0]  +  10 [1, 0] o [0, 1] o [1, 1], a 2x2x2 tensor by hand.
HAND = CP([1, 10], ([[1, 1], [2, 0]], [[1, 0], [3, 1]], [[1, 1], [0, 1]]))
HAND_DENSE = [[[1, 0], [13, 10]], [[2, 0], [6, 0]]]


def by_einsum(cp: CP) -> np.ndarray:
    modes = string.ascii_lowercase[:len(cp.shape)]
    return np.einsum("Z," + ",".join(f"{mode}Z" for mode in modes) + "->" + modes, cp.weights, *cp.factors)


@st.composite
def cps(draw):
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    cp = CP.random(shape, draw(st.integers(1, 6)), seed=draw(st.integers(0, 10**6)))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return CP(rng.normal(size=cp.rank) * rng.choice([0, 1, 100], cp.rank), cp.factors)


def test_hand_made_tensor():
    np.testing.assert_array_equal(HAND.dense(), HAND_DENSE)
    np.testing.assert_array_equal(HAND.at([[0, 1, 0], [0, 1, 1], [1, 1, 0], [0, 1, 0]]), [13, 10, 6, 13])
    assert HAND.norm() == pytest.approx(np.sqrt(1 + 169 + 100 + 4 + 36))
    assert (HAND.rank, HAND.shape) == (2, (2, 2, 2))


@settings(deadline=None, max_examples=80)
@given(cps())
def test_dense_at_and_norm_agree_with_einsum_and_tensorly(cp):
    dense = by_einsum(cp)
    scale = 1e-12 * (1 + np.abs(cp.weights).sum())
    np.testing.assert_allclose(cp.dense(), dense, atol=scale)
    np.testing.assert_allclose(cp.dense(), cp_to_tensor(cp.to_tensorly()), atol=scale)
    np.testing.assert_allclose(cp.at(np.argwhere(np.ones(cp.shape))), dense.reshape(-1), atol=scale)
    np.testing.assert_allclose(cp.norm()**2, (dense**2).sum(), rtol=1e-9, atol=scale**2)
    np.testing.assert_allclose(cp.norm(), cp_norm(cp.to_tensorly()), rtol=1e-9, atol=1e-6 * scale)


@settings(deadline=None, max_examples=60)
@given(cps(), st.randoms())
def test_order_of_terms_and_scale_do_not_matter(cp, random):
    order = random.sample(range(cp.rank), cp.rank)
    scale = np.linspace(0.5, 3, cp.rank)
    first, *rest = cp.factors
    factors = [first * scale, rest[0] / scale, *rest[1:]]
    other = CP(cp.weights[order], [factor[:, order] for factor in factors])
    np.testing.assert_allclose(other.dense(), cp.dense(), atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(cps(), st.integers(0, 10**6))
def test_at_follows_its_rows(cp, seed):
    rng = np.random.default_rng(seed)
    index = rng.integers(cp.shape, size=(20, len(cp.shape)))
    order = rng.permutation(20)
    np.testing.assert_allclose(cp.at(index)[order], cp.at(index[order]), rtol=1e-12)
    np.testing.assert_allclose(cp.at(index), [by_einsum(cp)[tuple(row)] for row in index], atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(cps())
def test_normalized_is_the_same_tensor_in_standard_form(cp):
    normal = cp.normalized()
    np.testing.assert_allclose(normal.dense(), cp.dense(), atol=1e-9)
    for factor in normal.factors:
        np.testing.assert_allclose((factor**2).sum(axis=0), 1)
    assert (normal.weights >= 0).all()
    assert (np.diff(normal.weights) <= 0).all()
    again = normal.normalized()
    np.testing.assert_allclose(again.weights, normal.weights)
    for factor, repeated in zip(normal.factors, again.factors, strict=True):
        np.testing.assert_allclose(repeated, factor, atol=1e-12)


def test_normalized_by_hand():
    normal = CP([2, -1], ([[3, 0], [4, 1]], [[1, 0], [0, 20]])).normalized()
    np.testing.assert_allclose(normal.weights, [20, 10])
    np.testing.assert_allclose(normal.factors[0], [[0, 0.6], [-1, 0.8]])
    np.testing.assert_allclose(normal.factors[1], [[0, 1], [1, 0]])


def test_normalized_keeps_zero_huge_and_tiny_columns_sound():
    cp = CP([1, 1, 1], ([[0, 1e200, 3e-200], [0, 1e200, 4e-200]], [[1, 1e-200, 1e200], [1, 0, 0]]))
    normal = cp.normalized()
    np.testing.assert_allclose(normal.weights, [5, np.sqrt(2), 0])
    np.testing.assert_allclose(normal.dense(), cp.dense())
    for factor in normal.factors:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1)


def test_norm_of_terms_that_cancel():
    column = np.array([[1.0, 1.0], [0.1, 0.1]])
    assert CP([1, -1], (column, column)).norm() == pytest.approx(0, abs=1e-7)


@settings(deadline=None, max_examples=30)
@given(cps())
def test_tensorly_and_back(cp):
    back = CP.from_tensorly(cp.to_tensorly())
    np.testing.assert_array_equal(back.weights, cp.weights)
    for factor, given_back in zip(cp.factors, back.factors, strict=True):
        np.testing.assert_array_equal(given_back, factor)


def test_tensorly_without_weights_and_with_torch():
    factors = [np.array(factor) for factor in HAND.factors]
    np.testing.assert_array_equal(CP.from_tensorly((None, factors)).dense(), cp_to_tensor((None, factors)))
    with tensorly.backend_context("pytorch"):
        tensor = HAND.to_tensorly()
        assert isinstance(tensor, CPTensor)
        assert isinstance(tensor.factors[0], torch.Tensor)
        np.testing.assert_array_equal(CP.from_tensorly(tensor).dense(), HAND_DENSE)


def test_random_has_the_shape_and_depends_on_the_seed_only():
    cp = CP.random((3, 4, 5), 2, seed=1)
    assert (cp.shape, cp.rank) == ((3, 4, 5), 2)
    np.testing.assert_array_equal(cp.dense(), CP.random([3, 4, 5], 2, seed=1).dense())
    assert (cp.dense() != CP.random((3, 4, 5), 2, seed=2).dense()).all()
    entries = CP.random((60, 60, 60), 9, seed=0).dense()
    assert entries.var() == pytest.approx(9, rel=0.25)


def test_at_reads_observed_entries():
    observed = Observed.from_dense(HAND_DENSE, np.array(HAND_DENSE) > 0)
    np.testing.assert_array_equal(HAND.at(observed.index), observed.value)
    np.testing.assert_array_equal(HAND.at(torch.tensor([[0, 1, 0]])), [13])
    assert HAND.at(np.empty((0, 3), int)).shape == (0,)


def test_keeps_its_own_float64_copies():
    factor = torch.ones(2, 1, dtype=torch.float32)
    cp = CP([1], (factor, factor))
    factor[:] = 5
    assert {cp.weights.dtype, *(f.dtype for f in cp.factors)} == {np.dtype(np.float64)}
    np.testing.assert_array_equal(cp.dense(), np.ones((2, 2)))


@pytest.mark.parametrize(("weights", "factors", "text"), [
    ([1], (np.ones((2, 1)),), "shape: expected at least two modes"),
    ([1], (np.ones((2, 1)), np.ones((0, 1))), "shape: expected at least two modes, each of a whole size >= 1"),
    ([], (np.ones((2, 0)), np.ones((2, 0))), "weights: expected rank >= 1"),
    ([1, 1], (np.ones((2, 2)), np.ones((2, 3))), r"factors\[1\]: axis R is 3, earlier inputs say R=2"),
    ([[1]], (np.ones((2, 1)), np.ones((2, 1))), r"weights: expected axes \(R\), got shape \(1, 1\)"),
    ([1], (np.ones(2), np.ones((2, 1))), r"factors\[0\]: expected axes \(I0 R\), got shape \(2,\)"),
    ([np.nan], (np.ones((2, 1)), np.ones((2, 1))), "weights: 1 of 1 values are NaN or Inf"),
    ([1], (np.ones((2, 1)), [[1], [np.inf]]), r"factors\[1\]: 1 of 2 values are NaN or Inf"),
    ([1], (np.ones((2, 1)), [["a"]]), r"factors\[1\]: expected real numbers, got dtype <U1"),
])
def test_refuses_with_one_sentence(weights, factors, text):
    with pytest.raises(ValueError, match=text):
        CP(weights, factors)


@pytest.mark.parametrize(("index", "text"), [
    ([[0, 0]], r"index: expected one column for each of 3 modes, got shape \(1, 2\)"),
    ([0, 0, 0], r"index: expected axes \(B K\), got shape \(3,\)"),
    ([[0, 0, 2]], r"index, mode 2: expected integers 0..1, got values 2..2"),
    ([[0, -1, 0]], r"index, mode 1: expected integers 0..1, got values -1..-1"),
    ([[0, 0.5, 0]], "index: expected whole numbers"),
])
def test_at_refuses(index, text):
    with pytest.raises(ValueError, match=text):
        HAND.at(index)


def test_other_doors_refuse():
    for rank in (0, -1, 1.5, "2"):
        with pytest.raises(ValueError, match="rank: expected a whole number >= 1, got"):
            CP.random((2, 2), rank, seed=0)
    with pytest.raises(ValueError, match="shape: expected at least two modes"):
        CP.random((2,), 1, seed=0)
    with pytest.raises(ValueError, match=r"tensor: expected a CPTensor or a pair \(weights, factors\), got ndarray"):
        CP.from_tensorly(np.ones(3))
