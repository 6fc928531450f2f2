"""Means, spreads and intervals against scipy, hand-made numbers, and how often intervals hold what they should."""

import numpy as np
import pytest
from scipy.stats import bootstrap, trim_mean

from lowrank_rl import rng
from lowrank_rl.rl.bench import statistics
from lowrank_rl.rl.bench.statistics import iqm, iqm_interval, mean_interval, mean_sd


def draws(*name):
    return rng.numpy_stream(0, "test", *name)


def test_mean_and_sd_are_of_the_repeats_means():
    assert mean_sd([[0.0, 2.0], [3.0, 3.0], [8.0]]) == (4.0, np.std([1, 3, 8], ddof=1))


def test_of_one_repeat_they_are_of_its_episodes():
    assert mean_sd([[1.0, 2.0, 6.0]]) == (3.0, np.sqrt(7))
    assert mean_sd([[5.0]]) == (5.0, None)


def test_iqm_is_the_mean_of_the_middle_half():
    assert iqm([[[1.0, 100.0, 3.0, 5.0]]]) == 4.0
    assert iqm([[[1.0], [100.0]], [[3.0, 5.0]]]) == 4.0        # whoever they belong to
    values = draws("iqm").normal(size=(5, 20))
    assert iqm([list(values)]) == pytest.approx(trim_mean(values.ravel(), 0.25))


def test_interval_of_one_repeat_is_scipys():
    values = draws("one").exponential(size=30)
    ours = iqm_interval([[values]], generator=draws("ours"), draws=20_000)
    theirs = bootstrap((values,), lambda x, axis: trim_mean(x, 0.25, axis=axis), n_resamples=20_000, method="percentile",
                       rng=draws("theirs")).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.02)


def test_interval_of_single_episodes_is_scipys_over_repeats():
    values = draws("repeats").normal(size=12)
    ours = iqm_interval([values[:, None]], generator=draws("ours"), draws=20_000)
    theirs = bootstrap((values,), lambda x, axis: trim_mean(x, 0.25, axis=axis), n_resamples=20_000, method="percentile",
                       rng=draws("theirs")).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.02)


def test_every_stratum_keeps_its_share():
    """Two agents far apart: a bootstrap that mixed them would swing between their returns."""
    strata = [[[0.0, 0.0], [0.0, 0.0]], [[100.0, 100.0], [100.0, 100.0]]]
    assert iqm_interval(strata, generator=draws()) == (50.0, 50.0)


def test_repeats_are_redrawn_too():
    """Episodes that agree within a repeat leave the repeats' spread, which redrawing episodes alone would miss."""
    assert iqm_interval([[[0.0] * 20, [1.0] * 20]], generator=draws()) == (0.0, 1.0)


@pytest.mark.parametrize(("repeats", "episodes", "between", "within", "low", "high"), [
    (1, 30, 0.0, 1.0, 0.90, 0.99), (10, 20, 1.0, 1.0, 0.87, 0.98), (5, 20, 0.0, 1.0, 0.95, 1.0),
    (5, 20, 1.0, 0.1, 0.75, 0.95)])     # few repeats: narrow, as the docstring says
def test_intervals_hold_the_true_value(repeats, episodes, between, within, low, high):
    generator, held = draws(repeats, between), 0
    for _ in range(200):
        means = between * generator.normal(size=(repeats, 1))
        below, above = iqm_interval([means + within * generator.normal(size=(repeats, episodes))], generator=generator,
                                    draws=300)
        held += below <= 0 <= above
    assert low <= held / 200 <= high


def test_same_stream_same_interval_and_a_higher_level_is_wider():
    runs = [draws("runs").normal(size=(3, 10))]
    first = iqm_interval(runs, generator=draws("a"))
    assert iqm_interval(runs, generator=draws("a")) == first
    assert iqm_interval(runs, generator=draws("a"), level=0.5)[0] > first[0]


def test_short_repeats_weigh_as_much_as_long_ones():
    low, high = iqm_interval([[[0.0], [1.0] * 50]], generator=draws())
    assert (low, high) == (0.0, 1.0)


def test_one_number_has_no_interval():
    assert iqm_interval([[[3.0]]], generator=draws()) is None
    assert iqm_interval([[[3.0]], [[4.0]]], generator=draws()) == (3.5, 3.5)


@pytest.mark.parametrize("runs", [[], [[]], [[1.0], []]])
def test_no_numbers_are_refused(runs):
    for call in (lambda: mean_sd(runs), lambda: iqm([runs]), lambda: iqm_interval([runs], generator=draws())):
        with pytest.raises(ValueError, match="runs: expected repeats of one or more episodes"):
            call()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_trimming_would_hide_is_refused(bad):
    with pytest.raises(ValueError, match="runs: expected finite numbers, got 1 NaN or Inf of 5"):
        iqm([[[1.0, 2.0, 3.0, 4.0, bad]]])


@pytest.mark.parametrize(("strata", "repeats", "between"), [(1, 20, 1.0), (3, 25, 0.3), (1, 60, 0.0)])
def test_many_repeats_give_the_limit_of_the_bootstrap(monkeypatch, strata, repeats, between):
    generator = draws("limit", strata, repeats)
    runs = [between * generator.normal(size=(repeats, 1)) + generator.exponential(size=(repeats, 12)) for _ in range(strata)]
    limit = iqm_interval(runs, generator=draws("a"))
    monkeypatch.setattr(statistics, "MANY", 10**9)
    drawn = iqm_interval(runs, generator=draws("a"), draws=4000)
    width = drawn[1] - drawn[0]
    assert limit == pytest.approx(drawn, abs=0.08 * width)
    assert sum(limit) / 2 == pytest.approx(iqm(runs))


def test_arrays_and_lists_of_runs_say_the_same():
    runs = draws("same").normal(size=(4, 6))
    for call in (mean_sd, mean_interval, lambda r: iqm([r]), lambda r: iqm_interval([r], generator=draws("b"))):
        assert call(runs) == pytest.approx(call([list(run) for run in runs]))
