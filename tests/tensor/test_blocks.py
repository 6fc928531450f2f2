"""Block completion against numbers by hand, exact tensors, brute force over patterns, and Monte Carlo for standard errors,
intervals and p-values."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lowrank_rl.tensor.blocks import complete_blocks, find_blocks, placebo
from lowrank_rl.tensor.observed import Observed
from lowrank_rl.tensor.pcr import hard_threshold, median_threshold, predict, usable


def planted(shape: tuple[int, ...], rank: int, seed: int) -> np.ndarray:
    """A dense CP tensor with factors N(0, 1)."""
    rng = np.random.default_rng(seed)
    factors = [rng.standard_normal((size, rank)) for size in shape]
    return np.einsum(",".join(f"{mode}z" for mode in "abc"[:len(shape)]) + "->" + "abc"[:len(shape)], *factors)


def lacking(tensor: np.ndarray, units: int, interventions: tuple[int, ...], noise: float = 0.0, seed: int = 0) -> Observed:
    """Noisy measurements, without those of the first units under these interventions."""
    mask = np.ones(tensor.shape, dtype=bool)
    mask[:units, :, list(interventions)] = False
    return Observed.from_dense(tensor + noise * np.random.default_rng([seed, 7]).standard_normal(tensor.shape), mask)


@st.composite
def patterns(draw):
    """Three modes, units of a few kinds: each kind lacks some interventions, or the later measurements under one."""
    units, measurements, interventions = draw(st.integers(6, 14)), draw(st.integers(3, 6)), draw(st.integers(2, 4))
    mask = np.ones((units, measurements, interventions), dtype=bool)
    for _ in range(draw(st.integers(1, 3))):
        rows = draw(st.lists(st.integers(0, units - 1), min_size=1, max_size=units // 2, unique=True))
        mask[rows, draw(st.integers(0, measurements - 1)):, draw(st.integers(0, interventions - 1))] = False
    return mask


def test_by_hand():
    """Donors a, b = (1, 2, 3, 4), (2, 4, 6, 8); the unit is 5 (1, 2, 3), so 5 = w_a + 2 w_b with the shortest w = (1, 2)."""
    table = np.array([[1.0, 2, 3, 4], [2, 4, 6, 8], [5, 10, 15, np.nan]])
    completion = complete_blocks(Observed.from_dense(table, missing=np.nan), rank=1)
    block, fit = completion.blocks[0], completion.fits[0]
    assert (block.units.tolist(), block.measurements.tolist(), block.intervention) == ([2], [3], None)
    assert (block.donors.tolist(), block.overlap.tolist()) == ([0, 1], [[0], [1], [2]])
    np.testing.assert_allclose(fit.weights, [[1, 2]])
    np.testing.assert_allclose(completion.to_dense(), [[1, 2, 3, 4], [2, 4, 6, 8], [5, 10, 15, 20]])
    assert fit.standard_error.max() < 1e-12
    assert "unit 2 x measurement 3: 2 donors, overlap 3, rank 1" in completion.summary()


@settings(deadline=None, max_examples=60)
@given(patterns())
def test_blocks_tile_what_is_missing_and_their_donors_and_overlap_are_observed(mask):
    count = np.zeros(mask.shape, dtype=int)
    for block in find_blocks(Observed.from_dense(np.ones(mask.shape), mask)):
        count[np.ix_(block.units, block.measurements, [block.intervention])] += 1
        assert mask[np.ix_(block.donors, block.measurements, [block.intervention])].all()
        for unit in [*block.units, *block.donors]:
            assert mask[unit][tuple(block.overlap.T)].all()
    np.testing.assert_array_equal(count, ~mask)


@settings(deadline=None, max_examples=40)
@given(patterns())
def test_no_single_donor_is_a_better_anchor(mask):
    """Brute force over donors: the overlap with any donor, and all who share it, is never larger than what was taken."""
    for block in find_blocks(Observed.from_dense(np.ones(mask.shape), mask)):
        best = min(len(block.donors), len(block.overlap))
        own = mask[block.units[0]]
        for unit in np.flatnonzero(mask[:, block.measurements[0], block.intervention]):
            overlap = own & mask[unit]
            others = [j for j in range(len(mask)) if mask[j, block.measurements[0], block.intervention]
                      and mask[j][overlap].all()]
            assert min(int(overlap.sum()), len(others)) <= best


@settings(deadline=None, max_examples=60)
@given(patterns(), st.integers(1, 3), st.integers(0, 10**6))
def test_exact_tensors_come_back_wherever_a_block_is_determined(mask, rank, seed):
    tensor = planted(mask.shape, rank, seed)
    completion = complete_blocks(Observed.from_dense(tensor, mask), rank=rank)
    dense, told = completion.to_dense(), np.isfinite(completion.standard_error())
    well = [fit for fit in completion.fits if np.abs(fit.direction).max() < 1e4]   # not nearly singular by chance
    if len(well) == len(completion.fits):
        np.testing.assert_allclose(dense[mask | told], tensor[mask | told], atol=1e-6 * np.abs(tensor).max())
    np.testing.assert_array_equal(np.isnan(dense), ~(mask | told))
    assert (~mask).sum() == told.sum() + sum(len(b.units) * len(b.measurements) for b, _ in completion.undetermined)


def test_order_of_units_and_measurements_and_units_of_value_do_not_matter():
    tensor = planted((12, 9, 3), 2, seed=0)
    observed = lacking(tensor, 4, (2,), noise=0.1)
    one = complete_blocks(observed, rank=2)
    rng = np.random.default_rng(1)
    units, measurements = rng.permutation(12), rng.permutation(9)
    mixed = 1000 * observed.dense()[units][:, measurements]
    other = complete_blocks(Observed.from_dense(mixed, missing=np.nan), rank=2)
    np.testing.assert_allclose(other.to_dense(), 1000 * one.to_dense()[units][:, measurements])
    np.testing.assert_allclose(other.standard_error(), 1000 * one.standard_error()[units][:, measurements])


def test_agents_with_two_actions_each_find_the_donors_that_share_one():
    """Nobody has three of four actions: each missing block is told by agents who share one action and have the other."""
    tensor = planted((24, 10, 4), 2, seed=3)
    mask = np.zeros(tensor.shape, dtype=bool)
    pairs = list(combinations(range(4), 2))
    for unit in range(24):
        mask[unit, :, pairs[unit % 6]] = True
    completion = complete_blocks(Observed.from_dense(tensor, mask), rank=2)
    assert len(completion.fits) == 12
    assert not completion.undetermined
    assert all(len(block.donors) == 4 and len(block.overlap) == 10 for block in completion.blocks)
    np.testing.assert_allclose(completion.to_dense(), tensor, atol=1e-8)


def test_anchors_balance_donors_and_columns():
    """Unit 0 shares ten columns with 2 donors, six of them with 12 more, one with 20 more; all have column 10."""
    mask = np.zeros((35, 11), dtype=bool)
    mask[1:, 10] = mask[:, 0] = mask[:15, :6] = mask[:3, :10] = True
    block, = (b for b in find_blocks(Observed.from_dense(np.ones(mask.shape), mask)) if 0 in b.units and 10 in b.measurements)
    assert (len(block.donors), len(block.overlap)) == (14, 6)


def test_staggered_panel_by_hand():
    """Units 0..2 stop at 6, units 3..5 at 8, units 6..9 never."""
    table = planted((10, 12), 2, seed=0)
    mask = np.ones(table.shape, dtype=bool)
    mask[:3, 6:] = mask[3:6, 8:] = False
    blocks = {(b.units[0], b.measurements[0]): b for b in find_blocks(Observed.from_dense(table, mask))}
    assert set(blocks) == {(0, 6), (0, 8), (3, 8)}
    assert blocks[0, 6].donors.tolist() == [3, 4, 5, 6, 7, 8, 9]
    assert blocks[0, 8].donors.tolist() == [6, 7, 8, 9]
    assert (len(blocks[0, 8].overlap), len(blocks[3, 8].overlap)) == (6, 8)


def coverage(noise: float, runs: int) -> dict[str, float]:
    """Shares of 90% intervals that hold, over new tensors of 40 units, 30 measurements and 3 interventions, rank 2 given."""
    held = {"expected": [], "mean": [], "measured": [], "weights taken as known": []}
    for seed in range(runs):
        tensor = planted((40, 30, 3), 2, seed)
        completion = complete_blocks(lacking(tensor, 10, (2,), noise, seed), rank=2)
        if not completion.fits:
            continue
        fit, true = completion.fits[0], tensor[:10, :, 2]
        new = true + noise * np.random.default_rng([seed, 8]).standard_normal(true.shape)
        for name, (low, high), value in (("expected", fit.interval(), true), ("measured", fit.prediction_interval(), new),
                                         ("mean", fit.mean_interval(), true.mean(axis=1))):
            held[name].append(((low <= value) & (value <= high)).mean())
        half = 1.645 * fit.residual * np.linalg.norm(fit.weights, axis=1)
        held["weights taken as known"].append((np.abs(fit.value - true) <= half[:, None]).mean())
    assert len(held["mean"]) > 0.75 * runs   # the others are refused: a direction drowns in noise
    return {name: float(np.mean(shares)) for name, shares in held.items()}


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.0])
def test_ninety_percent_intervals_hold_ninety_percent(noise):
    share = coverage(noise, 400)
    assert share["expected"] == pytest.approx(0.9, abs=0.03)
    assert share["mean"] == pytest.approx(0.9, abs=0.03)
    assert share["measured"] == pytest.approx(0.9, abs=0.015)
    assert share["weights taken as known"] < 0.82   # why the error of the weights is part of the standard error


def test_standard_errors_are_the_spread_over_new_noise_and_the_mean_is_right():
    """One tensor, 600 draws of strong noise. Without undoing what noise does to singular values the slope is 0.88."""
    tensor = planted((30, 20, 3), 2, seed=2)
    fits = [complete_blocks(lacking(tensor, 6, (2,), 0.8, seed), rank=2).fits[0] for seed in range(600)]
    value, error = np.array([fit.value for fit in fits]), np.array([fit.standard_error for fit in fits])
    true = tensor[:6, :, 2]
    assert (value.mean(axis=0) * true).sum() / (true**2).sum() == pytest.approx(1, abs=0.02)
    assert math.sqrt((error**2).mean()) == pytest.approx(math.sqrt(value.var(axis=0).mean()), rel=0.08)
    mean = np.array([fit.mean for fit in fits])
    assert math.sqrt(np.mean([fit.mean_standard_error**2 for fit in fits])) == pytest.approx(
        math.sqrt(mean.var(axis=0).mean()), rel=0.08)


def test_surprise_is_chow_s_test_written_out():
    rng = np.random.default_rng(0)
    X, Z = rng.standard_normal((20, 3)), rng.standard_normal((6, 3))
    Y, new = rng.standard_normal((20, 2)), rng.standard_normal((2, 6))
    fit = predict(X, Y, Z, 3)   # all components and no spare donor: plain least squares
    w = np.linalg.lstsq(X, Y, rcond=None)[0]
    variance = ((Y - X @ w)**2).sum(axis=0) / 17
    spread = np.eye(6) + Z @ np.linalg.inv(X.T @ X) @ Z.T
    error = new - (Z @ w).T
    F = np.array([e @ np.linalg.inv(spread) @ e / (6 * s) for e, s in zip(error, variance, strict=True)])
    np.testing.assert_allclose(fit.surprise(new), stats.f.sf(F, 6, 17))
    np.testing.assert_allclose(fit.weights, w.T)
    half = fit.prediction_interval(0.9)[1] - fit.value
    np.testing.assert_allclose(half, stats.t.ppf(0.95, 17) * np.sqrt(np.outer(variance, np.diag(spread))))


def test_p_values_are_even_where_the_model_holds():
    inclusion, misfit, hidden = [], [], []
    for seed in range(250):
        completion = complete_blocks(lacking(planted((25, 15, 3), 2, seed), 5, (2,), 0.2, seed), rank=2)
        if completion.fits:
            inclusion.append(completion.fits[0].inclusion_p)
            misfit.extend(completion.fits[0].misfit_p)
            if seed < 40:
                hidden.extend(placebo(completion).p_value)
    for p in (inclusion, misfit, hidden):
        assert np.mean(np.array(p) < 0.2) == pytest.approx(0.2, abs=0.07)
        assert np.mean(np.array(p) < 0.02) < 0.05


def test_a_block_with_directions_of_its_own_is_named():
    """The second term acts under intervention 2 only: the overlap cannot know how units differ there."""
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((20, 2)), rng.standard_normal((15, 2))
    tensor = np.einsum("ir,jr,kr->ijk", u, v, np.array([[1.0, 0], [2, 0], [1, 1]]))
    completion = complete_blocks(lacking(tensor, 5, (2,), 0.1), rank=1)
    assert completion.fits[0].inclusion_p < 1e-6
    assert "subspace inclusion" in completion.summary()
    assert placebo(completion).p_value_of(0) < 1e-3
    for noise in (0.0, 0.1):
        for rank in (2, None):
            _, reason = complete_blocks(lacking(tensor, 5, (2,), noise), rank=rank).undetermined[0]
            assert "too little rank: its singular value 2" in reason


def test_a_unit_that_no_mix_of_donors_explains_is_named():
    tensor = planted((20, 15, 3), 2, seed=1)
    tensor[0] += 2 * np.random.default_rng(2).standard_normal((15, 3))
    completion = complete_blocks(lacking(tensor, 5, (2,), 0.1), rank=2)
    misfit = completion.fits[0].misfit_p
    assert misfit[0] < 1e-8 < misfit[1:].min()
    assert "donors do not explain 0 in the overlap" in completion.summary()


def test_placebo_finds_the_donor_whose_weights_do_not_carry_over():
    tensor = planted((25, 15, 3), 2, seed=4)
    tensor[17, :, 2] += 3 * np.random.default_rng(3).standard_normal(15)   # fits in the overlap, is another under 2
    check = placebo(complete_blocks(lacking(tensor, 5, (2,), 0.1), rank=2))
    assert check.unit.tolist() == list(range(5, 25))
    assert check.rank_of(0, 17) == 1 / 20
    assert check.p_value_of(0) < 1e-4
    good = placebo(complete_blocks(lacking(planted((25, 15, 3), 2, seed=4), 5, (2,), 0.1), rank=2))
    assert good.p_value_of(0) > 0.05
    assert good.covered.mean() == pytest.approx(0.9, abs=0.06)
    with pytest.raises(ValueError, match="expected a donor that was hidden in block 0, got 3"):
        check.rank_of(0, 3)


def test_placebo_hides_the_donor_as_if_it_were_a_unit():
    observed = lacking(planted((14, 12, 3), 2, seed=6), 4, (2,), 0.1)
    check = placebo(complete_blocks(observed, rank=2))
    for unit in (4, 9, 13):
        table = observed.dense()
        measured, table[unit, :, 2] = table[unit, :, 2].copy(), np.nan
        again = complete_blocks(Observed.from_dense(table, missing=np.nan), rank=2)
        low, high = again.prediction_interval(0.9)
        error, at = measured - again.to_dense()[unit, :, 2], check.unit == unit
        assert check.error[at] == pytest.approx(error.mean())
        assert check.covered[at] == ((low[unit, :, 2] <= measured) & (measured <= high[unit, :, 2])).mean()


def test_placebo_of_exact_data_is_not_surprised_by_rounding():
    check = placebo(complete_blocks(lacking(planted((12, 10, 3), 2, seed=0), 3, (2,)), rank=2))
    assert check.p_value.min() > 0.5


def test_thresholds_known_numbers_and_planted_ranks():
    assert hard_threshold(1.0) == pytest.approx(4 / math.sqrt(3))
    assert hard_threshold(1e-12) == pytest.approx(math.sqrt(2))
    for b in (0.2, 0.5, 1.0):   # the median singular value of noise, by the Marchenko-Pastur law
        low, high = (1 - math.sqrt(b))**2, (1 + math.sqrt(b))**2
        x = np.linspace(low, high, 200_001)[1:-1]
        mass = np.cumsum(np.sqrt((high - x) * (x - low)) / x)
        median = x[np.searchsorted(mass, mass[-1] / 2)]
        assert median_threshold(b) == pytest.approx(hard_threshold(b) / math.sqrt(median), abs=0.02)
    rng = np.random.default_rng(0)
    assert usable(rng.standard_normal((60, 40)), rng.standard_normal((9, 40)), None)[1].endswith("show nothing but noise")
    for rank in (1, 2, 4):
        for noise in (0.5, 0.0):
            both = rng.standard_normal((80, rank)) @ rng.standard_normal((rank, 40)) + noise * rng.standard_normal((80, 40))
            assert usable(both[:60], both[60:], None) == (rank, "")
            assert "too little rank" in usable(both[:60], both[60:], rank + 1)[1]


def test_three_columns_borrow_the_noise_level_from_the_block():
    """The median of three singular values is signal; the block's rows show what noise is."""
    rng = np.random.default_rng(1)
    both = rng.standard_normal((53, 2)) @ rng.standard_normal((2, 40)) + 0.1 * rng.standard_normal((53, 40))
    assert usable(both[:3], both[3:], None) == (2, "")


def test_what_cannot_be_told_says_why():
    tensor = planted((8, 4, 3), 1, seed=0)
    mask = np.ones(tensor.shape, dtype=bool)
    mask[0] = False          # nothing known of unit 0
    mask[:, :, 2] = False    # nobody has intervention 2
    mask[1:4, 1:, 1] = mask[1:4, :, 0] = False   # units 1..3 share one column with the others
    completion = complete_blocks(Observed.from_dense(tensor, mask), rank=1)
    assert not completion.fits
    reasons = [reason for _, reason in completion.undetermined]
    assert sum("no unit has both" in reason for reason in reasons) >= 4
    assert any("rank 1 needs at least 1 donors and 2 shared columns, got 4 and 1" in reason for reason in reasons)
    assert np.isnan(completion.to_dense()).sum() == (~mask).sum()
    with pytest.raises(ValueError, match="expected a predicted block with more donors than its rank, got none"):
        placebo(completion)


def test_labels_appear_in_the_summary():
    labels = [[f"patient {i}" for i in range(6)], None, ["none", "drug"]]
    tensor = planted((6, 9, 2), 1, seed=0)
    mask = np.ones(tensor.shape, dtype=bool)
    mask[4, :, 1] = False
    text = complete_blocks(Observed.from_dense(tensor, mask, labels=labels), rank=1).summary()
    assert "9 entries missing in 1 blocks; 9 predicted, 0 not determined" in text
    assert "unit patient 4 x measurement 0..8 x intervention drug: 5 donors, overlap 9, rank 1" in text


def test_bad_input_is_one_clear_sentence():
    tensor = planted((6, 5, 2), 1, seed=0)
    observed = lacking(tensor, 2, (1,))
    with pytest.raises(ValueError, match=r"expected an Observed, got ndarray; make one by Observed.from_dense"):
        complete_blocks(tensor)
    with pytest.raises(ValueError, match="expected missing entries, got a complete tensor"):
        complete_blocks(Observed.from_dense(tensor))
    with pytest.raises(ValueError, match="expected modes unit x measurement"):
        complete_blocks(Observed.from_dense(np.ones((2, 2, 2, 2))))
    with pytest.raises(ValueError, match="rank: expected a whole number >= 1, got 0"):
        complete_blocks(observed, rank=0)
    with pytest.raises(ValueError, match="rank: expected at most 5"):
        complete_blocks(observed, rank=6)
    with pytest.raises(ValueError, match="expected entries that count alike, got weights"):
        complete_blocks(Observed(observed.index, observed.value, observed.shape, weight=np.ones(len(observed))), rank=1)
    with pytest.raises(ValueError, match="level: expected a chance between 0 and 1"):
        complete_blocks(observed, rank=1).interval(90)
    scattered = np.random.default_rng(0).random((60, 50)) < 0.5
    with pytest.raises(ValueError, match="scattered entries are for CPCompletion"):
        find_blocks(Observed.from_dense(np.ones((60, 50)), scattered))


def test_pictures_draw():
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib import pyplot as plt

    from lowrank_rl.tensor.plots.blocks import plot_block_predictions, plot_blocks

    tensor = planted((20, 15, 3), 2, seed=0)
    completion = complete_blocks(lacking(tensor, 5, (2,), 0.1), rank=2)
    figure = plot_blocks(completion)
    figure.canvas.draw()
    state = figure.axes[0].images[0].get_array()
    assert state.shape == (20, 45)
    assert (state[:5, 30:] == 1).all()
    assert state.sum() == 75
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["observed", "predicted"]
    figure = plot_block_predictions(completion, tensor)
    figure.canvas.draw()
    low, high = completion.interval()
    share = ((low <= tensor) & (tensor <= high))[np.isfinite(low)].mean()
    assert f"holds the truth: {share:.1%}" in figure.axes[0].get_legend().get_texts()[0].get_text()
    with pytest.raises(ValueError, match="true: expected the shape"):
        plot_block_predictions(completion, tensor[1:])
    with pytest.raises(ValueError, match="expected a number for every predicted entry, got 75 NaN"):
        plot_block_predictions(completion, completion.observed.dense())
    plt.close("all")
