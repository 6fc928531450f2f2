"""CP against numbers by hand, einsum and loops over the dense tensor, and TensorLy."""

import string
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.cp_tensor import CPTensor, cp_norm, cp_to_tensor

from lowrank_rl.tensor import io
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


# Arithmetic

@st.composite
def pairs(draw):
    """Two of one shape, of other ranks."""
    one = draw(cps())
    return one, CP.random(one.shape, draw(st.integers(1, 4)), seed=draw(st.integers(0, 10**6)))


@settings(deadline=None, max_examples=60)
@given(pairs(), st.sampled_from([-2.5, 0, 3, np.float64(0.5), np.int64(4)]))
def test_arithmetic_is_that_of_dense_tensors(pair, c):
    a, b = pair
    x, y = by_einsum(a), by_einsum(b)
    atol = 1e-11 * (1 + np.abs(x).max())
    np.testing.assert_allclose((a + b).dense(), x + y, atol=atol)
    np.testing.assert_allclose((a - b).dense(), x - y, atol=atol)
    np.testing.assert_allclose((-a).dense(), -x, atol=atol)
    np.testing.assert_allclose((c * a).dense(), float(c) * x, atol=atol)
    np.testing.assert_allclose((a * c).dense(), float(c) * x, atol=atol)
    if c:
        np.testing.assert_allclose((a / c).dense(), x / float(c), atol=atol)
    assert (a + b).rank == a.rank + b.rank
    scale = np.linalg.norm(x) * np.linalg.norm(y)
    assert a.inner(b) == pytest.approx((x * y).sum(), abs=1e-9 * (1 + scale + np.abs(a.weights).sum()))
    assert a.inner(b) == pytest.approx(b.inner(a), rel=1e-9, abs=1e-9)
    assert (a - b).norm() == pytest.approx(np.linalg.norm(x - y), abs=1e-6 * (1 + np.abs(a.weights).sum()))
    assert (a - a).norm() <= 1e-6 * (1 + np.abs(a.weights).sum())


def test_arithmetic_by_hand():
    other = CP([2], ([[1], [0]], [[0], [1]], [[1], [0]]))   # 2 at (0, 1, 0) and 0 elsewhere
    assert HAND.inner(other) == 26
    np.testing.assert_array_equal((HAND - 3 * other).dense(), np.array(HAND_DENSE) - [[[0, 0], [6, 0]], [[0, 0], [0, 0]]])


@settings(deadline=None, max_examples=40)
@given(cps(), st.randoms())
def test_permuted_is_transpose(cp, random):
    modes = random.sample(range(len(cp.shape)), len(cp.shape))
    np.testing.assert_allclose(cp.permuted(modes).dense(), by_einsum(cp).transpose(modes), atol=1e-10)
    np.testing.assert_array_equal(cp.permuted(modes).permuted(np.argsort(modes)).dense(), cp.dense())


def test_arithmetic_refuses():
    other = CP.random((2, 2, 3), 1, seed=0)
    for act, what in ((lambda: HAND + other, r"a \+ b"), (lambda: HAND - other, r"a \+ b"),
                      (lambda: HAND.inner(other), r"a.inner\(b\)")):
        with pytest.raises(ValueError, match=what + r": expected tensors of one shape, got \(2, 2, 2\) and \(2, 2, 3\)"):
            act()
    with pytest.raises(ValueError, match="a / c: expected a number c other than 0, got 0"):
        HAND / 0
    with pytest.raises(ValueError, match="weights: 2 of 2 values are NaN or Inf"):
        HAND * np.nan
    for modes in ([0, 1], [0, 1, 1], [1, 2, 3], [0, 1, 2, 0]):
        with pytest.raises(ValueError, match="modes: expected each of 0..2 once, got"):
            HAND.permuted(modes)
    for act in (lambda: HAND + 1, lambda: 1 + HAND, lambda: HAND - 1, lambda: HAND * HAND, lambda: HAND / "2",
                lambda: np.ones(2) * HAND, lambda: 1 / HAND):
        with pytest.raises(TypeError, match="unsupported operand|can't multiply"):
            act()


# Other packages and files

@settings(deadline=None, max_examples=30)
@given(cps())
def test_pyttb_and_back(cp):
    pytest.importorskip("pyttb")
    tensor = cp.to_pyttb()
    np.testing.assert_allclose(tensor.full().data, by_einsum(cp), atol=1e-11 * (1 + np.abs(cp.weights).sum()))
    assert tensor.shape == cp.shape
    back = CP.from_pyttb(tensor)
    tensor.weights[:] = 7   # neither shares memory with the other
    for factor in tensor.factor_matrices:
        factor[:] = 7
    for one in (cp, back):
        np.testing.assert_allclose(one.dense(), by_einsum(cp), atol=1e-11 * (1 + np.abs(cp.weights).sum()))
        assert all(factor.flags.c_contiguous for factor in one.factors)
    np.testing.assert_array_equal(back.weights, cp.weights)


def test_pyttb_keeps_working_with_what_it_gets():
    pytest.importorskip("pyttb")
    tensor = HAND.to_pyttb()
    assert tensor.norm() == pytest.approx(HAND.norm())
    tensor.normalize()
    np.testing.assert_allclose(CP.from_pyttb(tensor).dense(), HAND_DENSE, atol=1e-12)
    np.testing.assert_array_equal(HAND.dense(), HAND_DENSE)
    with pytest.raises(ValueError, match="tensor: expected a pyttb.ktensor, got ndarray"):
        CP.from_pyttb(np.ones(3))


@settings(deadline=None, max_examples=30)
@given(cps())
def test_a_file_and_back(cp):
    with tempfile.TemporaryDirectory() as folder:
        cp.save(Path(folder) / "new" / "cp")
        back = CP.load(str(Path(folder) / "new" / "cp"))
    np.testing.assert_array_equal(back.weights, cp.weights)
    assert len(back.factors) == len(cp.factors)
    for factor, read in zip(cp.factors, back.factors, strict=True):
        np.testing.assert_array_equal(read, factor)


def test_other_files_are_refused(tmp_path):
    HAND.save(tmp_path / "cp")
    whole = (tmp_path / "cp").read_bytes()
    (tmp_path / "half").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="half: expected a saved CP, got a corrupt or truncated file"):
        CP.load(tmp_path / "half")
    with pytest.raises(ValueError, match="none: expected a saved CP, got no such file"):
        CP.load(tmp_path / "none")
    for name, tensors, header in (("few", {"weights": torch.ones(1)}, {"modes": 2}), ("bare", {}, {}),
                                  ("odd", {"weights": torch.ones(1)}, {"modes": "two"})):
        io.save(tmp_path / name, "CP", tensors, header)
        with pytest.raises(ValueError, match=f"{name}: expected a whole CP file, got one with missing or odd parts"):
            CP.load(tmp_path / name)
    io.save(tmp_path / "thing", "thing", {}, {})
    with pytest.raises(ValueError, match="thing: expected a CP of schema 1, got kind 'thing'"):
        CP.load(tmp_path / "thing")


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
