import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.tensor import CP, factor_match_score
from lowrank_rl.tensor.jennrich import jennrich

SHARED = np.array([[1, 1, 1, 1.0], [1, 1, 2, 3]])   # of four third columns two are parallel


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.tuples(st.integers(4, 6), st.integers(4, 7), st.integers(2, 5)), st.integers(0, 2),
       st.integers(0, 10**6))
def test_planted_terms_are_found_whatever_the_order_of_the_modes(rank, shape, turn, seed):
    planted = CP.random(tuple(np.roll(shape, turn)), rank, seed=seed)
    found = jennrich(planted.dense(), seed=0)
    assert found.unique
    assert found.clusters == (1,) * rank
    assert factor_match_score(planted, found.cp)[0] > 1 - 1e-6
    assert found.error == pytest.approx(np.linalg.norm(found.cp.dense() - planted.dense()) / np.linalg.norm(planted.dense()),
                                        abs=1e-15)


@pytest.mark.parametrize(("shape", "rank"), [((3, 3, 3, 3, 2), 6), ((2, 3, 2, 3, 4), 5), ((4, 4, 2, 2), 4)])
def test_modes_are_merged_and_split_again_when_no_two_alone_have_the_rank(shape, rank):
    planted = CP.random(shape, rank, seed=1)
    found = jennrich(planted.dense(), seed=0)
    assert found.unique
    assert factor_match_score(planted, found.cp)[0] > 1 - 1e-6
    assert sorted(k for group in found.groups for k in group) == list(range(len(shape)))


def test_terms_with_parallel_columns_share_an_eigenvalue():
    planted = CP(np.ones(4), (*CP.random((5, 6), 4, seed=0).factors, SHARED))
    found = jennrich(planted.dense(), seed=0)
    assert found.works
    assert not found.unique
    assert found.clusters == (2, 1, 1)
    assert factor_match_score(planted, found.cp)[0] < 0.99   # another choice, yet as exact
    assert "groups of 2 terms share an eigenvalue" in found.reason


def test_what_has_no_such_terms_is_refuted_or_left_open():
    rotation = np.stack([np.eye(2), [[0, 1], [-1, 0]]], axis=2)
    found = jennrich(rotation, seed=0)
    assert found.refuted
    assert not found.works
    assert "complex" in found.reason
    border = np.stack([[[0, 1], [1, 0]], [[1, 0], [0, 0.0]]], axis=2)
    found = jennrich(border, seed=0)
    assert not found.refuted
    assert not found.works
    over = jennrich(CP.random((3, 3, 4), 4, seed=3).dense(), seed=0)   # rank 4, unfoldings 3, 3, 4
    assert over.refuted or over.cp is None
    rng = np.random.default_rng(0)
    slices = [a @ np.diag(rng.uniform(1, 3, 3)) @ np.linalg.inv(a) for a in rng.standard_normal((3, 3, 3))]
    found = jennrich(np.stack([np.eye(3), *slices], axis=2), rank=3, seed=0)   # real eigenvalues, no common eigenvectors
    assert found.refuted
    assert not jennrich(np.stack([np.eye(3), slices[0]], axis=2), rank=3, seed=0).refuted
    eye = np.eye(2)   # the product of 2 x 2 matrices: rank 7, pairs of equal eigenvalues with eigenvectors enough
    product = np.einsum("ab,cd,ef->abcdef", eye, eye, eye).transpose(0, 2, 3, 4, 5, 1).reshape(4, 4, 4)
    assert jennrich(product, seed=0).refuted
    nearly = SHARED + 3e-7 * np.array([[0, 1, 0, 0], [0, 0, 0, 0]])   # eigenvalues that only seem to coincide
    assert not jennrich(CP(np.ones(4), (*CP.random((5, 6), 4, seed=0).factors, nearly)).dense(), seed=0).refuted


def test_noise_moves_terms_a_little_and_links_eigenvalues_that_are_near():
    planted = CP.random((20, 25, 15), 4, seed=0)
    rng = np.random.default_rng(1)
    found = jennrich(planted.dense() + 0.1 * rng.standard_normal(planted.shape), sigma=0.1, seed=0)
    assert found.unique
    assert factor_match_score(planted, found.cp)[0] > 0.95
    near = CP(np.ones(3), (*CP.random((20, 25), 3, seed=0).factors, np.array([[1, 1.0, 1], [1, 1.01, -1]])))
    assert jennrich(near.dense(), seed=0).clusters == (1, 1, 1)
    noisy = jennrich(near.dense() + 0.1 * rng.standard_normal(near.shape), sigma=0.1, seed=0)
    assert noisy.clusters == (2, 1)
    assert noisy.works
    assert jennrich(rng.standard_normal((5, 6, 7)), sigma=1.0, seed=0).cp is None


def test_it_says_when_it_does_not_apply():
    agent = np.stack([np.ones(9), np.linspace(1, 3, 9), np.ones(9)], axis=1)
    tensor = CP(np.ones(3), (agent, CP.random((12, 2), 3, seed=0).factors[0], np.array([[1, 1, 0], [1, 1, 1.0]]))).dense()
    found = jennrich(tensor, seed=0)
    assert found.cp is None
    assert found.reason == "Jennrich's method needs two groups of modes of rank 3 each; the modes have ranks 2, 3, 2."


@pytest.mark.parametrize(("call", "message"), [
    (lambda: jennrich(np.ones((3, 3)), seed=0), "tensor: expected three modes or more, got 2"),
    (lambda: jennrich(np.zeros((3, 3, 3)), seed=0), "tensor: expected one that is not all zeros"),
    (lambda: jennrich(np.ones((3, 3, 3)), rank=0, seed=0), "rank: expected a whole number >= 1, got 0"),
    (lambda: jennrich(np.full((3, 3, 3), np.inf), seed=0), "tensor: expected finite entries, got 27 NaN or Inf"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
