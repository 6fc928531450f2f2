import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.tensor import CP
from lowrank_rl.tensor.approximate import best_cps, core_of, errors, exact_cps
from lowrank_rl.tensor.rank_bounds import lower_bound, upper_bound
from lowrank_rl.tensor.unfoldings import estimate_sigma, unfold, unfoldings

SMALL = settings(max_examples=15, deadline=None)
PLANTED = st.tuples(st.lists(st.integers(3, 6), min_size=3, max_size=4).map(tuple), st.integers(1, 3), st.integers(0, 10**6))


def matrix_product() -> np.ndarray:
    """The tensor of 2 x 2 matrix multiplication: rank 7 (Strassen 1969, Winograd 1971), border rank 7, unfoldings of rank 4."""
    eye = np.eye(2)
    return np.einsum("ab,cd,ef->abcdef", eye, eye, eye).transpose(0, 2, 3, 4, 5, 1).reshape(4, 4, 4)


def from_slices(*slices) -> np.ndarray:
    return np.stack([np.array(s, dtype=float) for s in slices], axis=2)


def noise(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_unfolding_puts_every_entry_in_its_row_and_column():
    tensor = noise((2, 3, 4, 5), 0)
    matrix = unfold(tensor, (3, 1))
    for i, j, k, l in np.ndindex(*tensor.shape):
        assert matrix[l * 3 + j, i * 4 + k] == tensor[i, j, k, l]


@SMALL
@given(PLANTED)
def test_unfoldings_of_planted_terms_have_their_rank(planted):
    shape, rank, seed = planted
    tensor = CP.random(shape, rank, seed=seed).dense()
    found = unfoldings(tensor)
    assert len(found) == 2 ** (len(shape) - 1) - 1   # every split once
    for u in found:
        assert u.rank == rank
        assert sorted(u.rows + u.columns) == list(range(len(shape)))
        assert np.linalg.norm(u.singular) == pytest.approx(np.linalg.norm(tensor))
        assert u.tail(rank - 1) == pytest.approx(u.singular[rank - 1])


def test_pairs_of_modes_show_more_than_single_ones():
    found = unfoldings(CP.random((3, 3, 3, 3), 5, seed=0).dense())
    assert [u.rank for u in found] == [3, 3, 3, 3, 5, 5, 5]
    assert [u.full for u in found] == [True] * 4 + [False] * 3
    bound = lower_bound(CP.random((3, 3, 3, 3), 5, seed=0).dense())
    assert (bound.rank, len(bound.unfolding.rows)) == (5, 2)


def test_noise_raises_no_rank_and_its_threshold_follows_sigma():
    for seed in range(40):
        shape = [(20, 30, 10), (8, 8, 8), (4, 100, 3)][seed % 3]
        for scale in (1.0, 1e-6):
            found = unfoldings(scale * noise(shape, seed), sigma=scale)
            assert [u.rank for u in found] == [0, 0, 0]
            assert all(u.singular[0] > 0.6 * u.threshold for u in found)   # no looser than it must be


def test_threshold_is_the_edge_of_noise_plus_its_confidence():
    u = unfoldings(noise((9, 4, 4), 0), sigma=2.0)[0]
    assert u.threshold == pytest.approx(2 * (3 + 4 + math.sqrt(2 * math.log(3 / 0.001))))


def test_rank_beneath_noise_is_the_rank_of_strong_terms_only():
    strong, weak = CP.random((20, 25, 15), 3, seed=1), 1e-3 * CP.random((20, 25, 15), 2, seed=2)
    tensor = (strong + weak).dense()
    assert max(u.rank for u in unfoldings(tensor)) == 5
    assert [u.rank for u in unfoldings(tensor + 0.1 * noise(tensor.shape, 0), sigma=0.1)] == [3, 3, 3]


@pytest.mark.parametrize(("shape", "rank"), [((30, 40, 20), 2), ((60, 8, 8), 1), ((25, 25, 4, 3), 1)])
def test_noise_level_is_estimated_from_the_median(shape, rank):
    tensor = 5 * CP.random(shape, rank, seed=0).dense() + 0.3 * noise(shape, 3)
    assert estimate_sigma(tensor) == pytest.approx(0.3, rel=0.06)


@SMALL
@given(PLANTED)
def test_lower_bound_shows_a_minor_of_the_tensor_that_is_not_singular(planted):
    shape, rank, seed = planted
    tensor = CP.random(shape, rank, seed=seed).dense()
    bound = lower_bound(tensor)
    assert bound.rank == rank
    for a, row in enumerate(bound.rows):
        for b, column in enumerate(bound.columns):
            place = np.empty(len(shape), dtype=int)
            place[list(bound.unfolding.rows)], place[list(bound.unfolding.columns)] = row, column
            assert bound.minor[a, b] == tensor[tuple(place)]
    assert abs(np.linalg.det(bound.minor / np.abs(bound.minor).max())) > 0
    assert 0 < bound.strength <= 1
    assert np.linalg.matrix_rank(bound.minor) == rank
    assert "at least" in str(bound)


@SMALL
@given(PLANTED)
def test_upper_bound_finds_planted_terms(planted):
    shape, rank, seed = planted
    tensor = CP.random(shape, rank, seed=seed).dense()
    bound = upper_bound(tensor, seed=0)
    assert bound.rank == rank == bound.cp.rank
    np.testing.assert_allclose(bound.cp.dense(), tensor, atol=1e-7 * np.abs(tensor).max())
    assert bound.worst == pytest.approx(np.abs(bound.cp.dense() - tensor).max())
    assert bound.error == pytest.approx(np.linalg.norm(bound.cp.dense() - tensor) / np.linalg.norm(tensor), abs=1e-15)


@pytest.mark.parametrize(("tensor", "least", "most"), [
    (matrix_product(), 4, 7),
    (from_slices([[1, 0], [0, 1]], [[0, 1], [-1, 0]]), 2, 3),          # complex eigenvalues
    (from_slices([[0, 1], [1, 0]], [[1, 0], [0, 0]]), 2, 3),           # border rank 2: rank 2 comes as near as you like
    (CP.random((4, 4, 4), 6, seed=0).dense(), 4, 6),
    (np.arange(12.0).reshape(3, 4), 2, 2),
], ids=["2x2 matrix product", "complex", "border", "six in 4x4x4", "matrix"])
def test_known_ranks(tensor, least, most):
    assert lower_bound(tensor).rank == least
    bound = upper_bound(tensor, at_least=least, seed=0)
    assert bound.rank == most
    assert bound.error < 1e-9


def test_terms_of_very_different_size_are_found():
    agent = np.stack([np.ones(9), np.linspace(1, 3, 9), np.ones(9)], axis=1)
    action = np.array([[1, 1, -1.0], [1, 1, 0], [1, 1, 1]])
    tensor = CP(np.array([1, 1e-5, 1e-4]), (agent, noise((12, 3), 0), action)).dense()   # no Jennrich: ranks 2, 3, 2
    bound = upper_bound(tensor, at_least=3, seed=0)
    assert (bound.rank, bound.how) == (3, "found by least squares")
    assert bound.error < 1e-12


def test_terms_of_your_own_are_taken_if_they_suffice():
    cp = CP.random((4, 5, 3), 2, seed=0)
    taken = upper_bound(cp.dense(), cp=cp, at_least=2, seed=0)
    assert (taken.rank, taken.how) == (2, "that you gave")
    wrong = CP(cp.weights * [1, 1.001], cp.factors)
    assert upper_bound(cp.dense(), cp=wrong, at_least=2, seed=0).how != "that you gave"
    first = CP(np.ones(1), tuple(f[:, :1] for f in cp.factors))
    longer = cp + first - first
    assert upper_bound(cp.dense(), cp=longer, at_least=1, seed=0).rank == 2


def test_fewest_terms_that_explain_a_tensor_to_within_its_noise():
    tensor = CP.random((12, 10, 8), 3, seed=4).dense() + 0.2 * noise((12, 10, 8), 5)
    bound = upper_bound(tensor, sigma=0.2, seed=0)
    assert bound.rank == 3
    assert upper_bound(tensor, sigma=0.17, seed=0, at_least=3, most=3).rank > 3   # with less noise three do not suffice
    assert upper_bound(0.2 * noise((6, 7, 8), 0), sigma=0.2, seed=0).rank == 0
    assert upper_bound(np.zeros((2, 3, 4)), seed=0).rank == lower_bound(np.zeros((2, 3, 4))).rank == 0


def test_terms_that_nearly_cancel_are_told():
    n = 1000.0
    one, tilted = np.array([[1.0], [0.0]]), np.array([[1.0], [1 / n]])
    border = CP([n], (tilted,) * 3) - CP([n], (one,) * 3)   # nearly the tensor of border rank 2 above
    bound = upper_bound(border.dense(), cp=border, at_least=2, most=2, seed=0)
    assert bound.rank == 2
    assert bound.cancels == pytest.approx(2 * n / np.sqrt(3), rel=0.01)
    assert "nearly cancel: their norms sum to 115" in str(bound)
    assert "cancel" not in str(upper_bound(matrix_product(), at_least=7, seed=0))


def test_without_a_search_fibres_bound_the_rank():
    tensor = noise((3, 4, 5), 0)
    bound = upper_bound(tensor, at_least=5, most=5, seed=0)
    assert bound.rank in (5, 12)   # 5 is a typical rank too
    tensor = noise((18, 18, 18), 0)
    bound = upper_bound(tensor, at_least=18, seed=0)
    assert (bound.rank, bound.error < 1e-12) == (18 * 18, True)


def test_best_approximations_of_a_matrix_are_those_of_its_singular_values():
    matrix = noise((9, 7), 0)
    singular = np.linalg.svd(matrix, compute_uv=False)
    for cp in best_cps(matrix, range(1, 8), seed=0):
        assert np.linalg.norm(matrix - cp.dense()) <= 1.011 * np.linalg.norm(singular[cp.rank:]) + 1e-10


def test_errors_of_best_approximations_fall_to_zero_at_the_rank():
    tensor = CP.random((7, 6, 8), 4, seed=1).dense()
    found = [errors(tensor, cp)[0] for cp in best_cps(tensor, range(1, 6), seed=0)]
    assert all(b <= a * (1 + 1e-12) for a, b in zip(found, found[1:], strict=False))
    assert found[2] > 0.1
    assert found[3] < 1e-12
    least = [max(u.tail(r) for u in unfoldings(tensor)) / math.sqrt(tensor.size) for r in range(1, 6)]
    assert all(e >= l - 1e-14 for e, l in zip(found, least, strict=True))
    again = [errors(tensor, cp)[0] for cp in best_cps(tensor, range(1, 6), seed=0)]
    assert found == again


def test_exact_terms_and_the_core():
    tensor = CP.random((6, 5, 7), 2, seed=0).dense()
    core = core_of(tensor)
    assert core.tensor.shape == (2, 2, 2)
    np.testing.assert_allclose(np.einsum("abc,ia,jb,kc->ijk", core.tensor, *core.bases), tensor, atol=1e-12)
    one, two = exact_cps(tensor, [1, 2], seed=0)
    assert errors(tensor, one)[0] > 0.1
    assert errors(tensor, two)[1] < 1e-10


@pytest.mark.parametrize(("call", "message"), [
    (lambda: unfoldings(np.array([[1.0, np.nan]])), "tensor: expected finite entries, got 1 NaN or Inf, the first at "
                                                    r"\(0, 1\); a tensor with holes is Observed"),
    (lambda: unfoldings(np.ones(3)), "shape: expected at least two modes"),
    (lambda: unfoldings(np.ones((1,) * 9)), "tensor: expected at most 8 modes"),
    (lambda: unfoldings(np.ones((2, 2)), sigma=0), "sigma: expected a standard deviation above 0, .* got 0"),
    (lambda: lower_bound([["a"]]), "tensor: expected real numbers"),
    (lambda: upper_bound(np.ones((2, 2)), cp=CP.random((2, 3), 1, seed=0), seed=0), r"cp: expected the tensor's shape"),
    (lambda: upper_bound(np.ones((2, 2)), at_least=0, seed=0), "at_least: expected a whole number >= 1, got 0"),
    (lambda: upper_bound(np.ones((2, 2)), at_least=3, most=2, seed=0), "most: expected a whole number >= 3, got 2"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
