import numpy as np
import pytest

from lowrank_rl.tensor.epsilon_rank import EpsilonRank, epsilon_rank, grid


def waves(rng: np.random.Generator) -> np.ndarray:
    """cos(x + y + z) = a sum of four products of sines and cosines; rank 2 over the complex numbers, 3 over the reals."""
    return grid(lambda x, y, z: np.cos(x + y + z), [rng.uniform(0, 6, n) for n in (9, 8, 7)])


def test_grid_is_the_function_at_every_combination():
    x, y, z = np.arange(3.0), np.array([[1.0, 2], [3, 4]]), np.array([5.0, 7])
    tensor = grid(lambda a, b, c: a * b[:, 0] + b[:, 1] * c, [x, y, z])
    for i, j, k in np.ndindex(3, 2, 2):
        assert tensor[i, j, k] == x[i] * y[j, 0] + y[j, 1] * z[k]


def test_outputs_stand_side_by_side_in_their_mode():
    x, y = np.arange(3.0), np.arange(4.0)
    both = grid(lambda a, b: np.stack([a + b, a * b], axis=1), [x, y], outputs=1)
    assert both.shape == (3, 8)
    np.testing.assert_array_equal(both[:, 0::2], x[:, None] + y)
    np.testing.assert_array_equal(both[:, 1::2], x[:, None] * y)
    first = grid(lambda a, b: np.stack([a + b, a * b], axis=1), [x, y], outputs=0)
    np.testing.assert_array_equal(first[1::2], x[:, None] * y)


def test_an_exact_rank_is_where_the_error_vanishes():
    curve = epsilon_rank(waves, range(1, 5), samples=4, seed=0)
    assert (curve.rms[:, 1] > 1e-3).all()
    assert (curve.rms[:, 2:] < 1e-12).all()
    at_least, at_most = curve.rank_for(1e-9)
    assert at_least.tolist() == [2] * 4   # its unfoldings have rank 2
    assert at_most.tolist() == [3] * 4
    assert curve.rank_for(10)[1].tolist() == [1] * 4
    assert curve.rank_for(0)[1].tolist() == [-1] * 4   # not even rounding


def test_the_bound_from_below_holds_and_bands_are_ordered():
    def sample(rng):
        x, y, z = rng.uniform(-1, 1, 12), rng.uniform(-1, 1, 12), rng.uniform(0, 2, 5)
        return grid(lambda x, y, z: np.exp(-z * (x - y) ** 2), [x, y, z])

    curve = epsilon_rank(sample, [3, 1, 2], samples=3, seed=1)
    assert curve.ranks == (1, 2, 3)
    assert (curve.least <= curve.rms * (1 + 1e-12)).all()
    assert (curve.rms <= curve.sup).all()
    assert (np.diff(curve.rms, axis=1) <= 0).all()
    low, middle, high = curve.band()
    assert (low <= middle).all()
    assert (middle <= high).all()
    least, most = curve.rank_for(float(curve.rms[1, 1]))
    assert least[1] <= most[1] == 2
    assert curve.table().count("\n") == 4
    matrix = epsilon_rank(lambda rng: rng.standard_normal((6, 9)), range(1, 4), samples=1, seed=0)
    np.testing.assert_allclose(matrix.rms, matrix.least, rtol=0.012)   # Eckart-Young is attained


def test_relative_errors_do_not_depend_on_units():
    ours = epsilon_rank(lambda rng: 1e-4 * waves(rng), [1, 2], samples=2, relative=True, seed=0)
    plain = epsilon_rank(waves, [1, 2], samples=2, seed=0)
    np.testing.assert_allclose(ours.rms, plain.rms / plain.scale[:, None], rtol=1e-3)
    np.testing.assert_allclose(ours.least, plain.least / plain.scale[:, None], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours.scale, 1e-4 * plain.scale)


def test_same_seed_same_numbers_and_more_samples_begin_alike():
    two, three = (epsilon_rank(waves, [1, 2], samples=s, seed=5) for s in (2, 3))
    np.testing.assert_array_equal(two.rms, three.rms[:2])
    assert not np.array_equal(two.rms, epsilon_rank(waves, [1, 2], samples=2, seed=6).rms)
    assert len({float(x) for x in three.rms[:, 0]}) == 3


def test_the_bracket_on_numbers_made_by_hand():
    rms, sup, least = np.array([[[3.0, 2, 1]], [[9.0, 8, 7]], [[2.5, 1.5, 0]]])
    curve = EpsilonRank((1, 2, 3), rms, sup, least, np.ones(1), False)
    assert [int(x[0]) for x in curve.rank_for(2)] == [2, 2]
    assert [int(x[0]) for x in curve.rank_for(1.9)] == [2, 3]
    assert [int(x[0]) for x in curve.rank_for(1.9, error="sup")] == [2, -1]
    assert curve.band("sup")[1].tolist() == [9, 8, 7]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: epsilon_rank(waves, [], seed=0), "ranks: expected at least one rank"),
    (lambda: epsilon_rank(waves, [0], seed=0), "ranks: expected a whole number >= 1, got 0"),
    (lambda: epsilon_rank(waves, [1], samples=0, seed=0), "samples: expected a whole number >= 1, got 0"),
    (lambda: epsilon_rank(lambda rng: np.full((2, 2), np.nan), [1], seed=0), "tensor: expected finite entries"),
    (lambda: epsilon_rank(lambda rng: np.ones((2, rng.integers(2, 9))), [1], seed=0), "sample: expected tensors of one shape"),
    (lambda: epsilon_rank(lambda rng: np.zeros((2, 2)), [1], relative=True, seed=0), "sample: expected values other than 0"),
    (lambda: epsilon_rank(waves, [1, 3], samples=1, seed=0).rank_for(0.1), "ranks: expected 1, 2, 3, ..."),
    (lambda: epsilon_rank(waves, [1], samples=1, seed=0).rank_for(-1), "epsilon: expected an error >= 0, got -1"),
    (lambda: epsilon_rank(waves, [1], samples=1, seed=0).rank_for(1, error="max"), "unknown error 'max'; known: rms, sup"),
    (lambda: epsilon_rank(waves, [1], samples=1, seed=0).band(share=1), r"share: expected one in \(0, 1\), got 1"),
    (lambda: grid(lambda x: x, [np.ones(3)]), "coordinates: expected two modes or more"),
    (lambda: grid(lambda x, y: x, [np.ones(3), np.ones(0)]), r"coordinates: .* got sizes \[3, 0\]"),
    (lambda: grid(lambda x, y: x[:2], [np.ones(3), np.ones(2)]), "function's values: axis B is 2, earlier inputs say B=6"),
    (lambda: grid(lambda x, y: x, [np.ones(3), np.ones(2)], outputs=1), r"function's values: expected axes \(B D\)"),
    (lambda: grid(lambda x, y: np.ones((6, 2)), [np.ones(3), np.ones(2)], outputs=2), "outputs: expected integers 0..1"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
