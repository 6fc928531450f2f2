import math
from dataclasses import replace

import numpy as np
import pytest

from lowrank_rl.tensor import CP, CPCompletion, Observed
from lowrank_rl.tensor.rank import RankChoice, choose_rank, deal, one_standard_error

FAST = CPCompletion(n_restarts=2, tol=1e-4, max_iter=100)


def planted(shape: tuple[int, ...], rank: int, *, noise: float, count: int, seed: int) -> Observed:
    """Entries of a random CP of unit variance, plus noise."""
    rng = np.random.default_rng(seed)
    index = np.stack(np.unravel_index(rng.choice(math.prod(shape), count, replace=False), shape), axis=1)
    value = CP.random(shape, rank, seed=seed).at(index) / math.sqrt(rank)
    return Observed(index, value + noise * rng.standard_normal(count), shape)


def shuffled(observed: Observed, seed: int) -> Observed:
    order = np.random.default_rng(seed).permutation(len(observed))
    return Observed(observed.index[order], observed.value[order], observed.shape,
                    weight=None if observed.weight is None else observed.weight[order])


def same(a: RankChoice, b: RankChoice) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True)
               for name in ("ranks", "errors", "train_errors", "baseline", "stability", "converged"))


@pytest.mark.parametrize(("shape", "rank", "noise", "count"), [
    ((15, 14, 13), 3, 0.1, 900),
    pytest.param((40, 30), 2, 0.3, 700, marks=pytest.mark.slow),
    pytest.param((15, 14, 13), 1, 0.5, 600, marks=pytest.mark.slow),
    pytest.param((12, 12, 12), 3, 0.5, 1100, marks=pytest.mark.slow),
    pytest.param((8, 7, 6, 9), 2, 0.3, 700, marks=pytest.mark.slow),
])
def test_planted_rank_is_found(shape, rank, noise, count):
    found = [choose_rank(planted(shape, rank, noise=noise, count=count, seed=seed), range(1, rank + 3), model=FAST,
                         seed=seed).chosen for seed in range(5)]
    assert found.count(rank) >= 4, found


def test_noise_alone_gets_the_smallest_rank_and_a_caution():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(5):
        choice = choose_rank(Observed.from_dense(rng.standard_normal((9, 8, 7))), [1, 2, 3], model=FAST, seed=0)
        found.append(choice.chosen)
        assert choice.errors.mean() > 0.9
    assert found.count(1) >= 4, found
    assert "no low-rank structure" in choice.table()


def test_a_constant_tensor_has_rank_one():
    choice = choose_rank(Observed.from_dense(np.full((5, 4, 3), 7.0)), [3, 1, 2], seed=0)
    assert choice.chosen == 1
    assert choice.mean[0] < 1e-3    # of 7; what the ridge takes


def test_the_rule_on_a_table_made_by_hand():
    errors = np.array([[5.0, 7.0], [3.0, 3.4], [2.0, 4.0], [2.9, 2.9], [2.9, 3.5]])
    choice = RankChoice((1, 2, 3, 4, 5), errors, errors, np.ones(2), np.ones(5), errors > 0, 0, "one standard error")
    assert choice.mean.tolist() == pytest.approx([6, 3.2, 3, 2.9, 3.2])
    assert choice.standard_error.tolist() == pytest.approx([1, 0.2, 1, 0, 0.3])   # |a - b| / 2 for two folds
    assert (choice.best, choice.chosen) == (4, 4)   # the best one's own standard error counts, and it is 0
    assert one_standard_error((1, 2, 3), np.array([3.0, 2.0, 1.5]), np.array([0.0, 0.0, 0.5])) == 2   # the bound included
    assert one_standard_error((1, 2, 3), np.array([3.0, 2.01, 1.5]), np.array([0.0, 0.0, 0.5])) == 3
    assert RankChoice((1, 2), errors[1:3], errors, np.ones(2), np.ones(2), errors > 0, 0, "best").chosen == 2


def test_errors_are_those_of_fits_by_hand():
    observed = planted((7, 6, 5), 1, noise=0.2, count=150, seed=1)
    observed = Observed(observed.index, observed.value, observed.shape, weight=np.linspace(0.5, 2, 150))
    fold = deal(observed, 3, seed=4)
    choice = choose_rank(observed, [1], folds=3, model=CPCompletion(tol=1e-9), seed=4)
    for f in range(3):
        train, test = fold != f, fold == f
        fit = CPCompletion(rank=1, tol=1e-9).fit(observed.index[train], observed.value[train], observed.weight[train])
        squares, weight = (observed.value[test] - fit.predict(observed.index[test]))**2, observed.weight[test]
        assert choice.errors[0, f] == pytest.approx(math.sqrt((weight * squares).sum() / weight.sum()), rel=1e-4)
        mean = (observed.weight * observed.value)[train].sum() / observed.weight[train].sum()
        expected = math.sqrt((weight * (observed.value[test] - mean)**2).sum() / weight.sum())
        assert choice.baseline[f] == pytest.approx(expected)
        squares, weight = (observed.value[train] - fit.predict(observed.index[train]))**2, observed.weight[train]
        assert choice.train_errors[0, f] == pytest.approx(math.sqrt((weight * squares).sum() / weight.sum()), rel=1e-4)


def test_weights_that_silence_bad_entries_bring_the_rank_back():
    observed = planted((12, 11, 10), 2, noise=0.05, count=900, seed=2)
    bad = np.random.default_rng(3).random(900) < 0.15
    value = np.where(bad, 10 * np.random.default_rng(4).standard_normal(900), observed.value)
    weight = np.where(bad, 1e-8, 1.0)
    bare = Observed(observed.index, value, observed.shape)
    assert choose_rank(replace(bare, weight=weight), [1, 2, 3], model=FAST, seed=0).chosen == 2
    assert choose_rank(bare, [1, 2, 3], model=FAST, seed=0).mean.min() > 1


def test_same_seed_same_bits_whatever_the_order_of_the_entries():
    observed = planted((9, 8, 7), 2, noise=0.3, count=300, seed=5)
    observed = Observed(observed.index, observed.value, observed.shape, weight=np.linspace(1, 2, 300))
    one = choose_rank(observed, [1, 2, 3], folds=3, model=FAST, seed=7)
    assert same(one, choose_rank(observed, [3, 2, 1, 2], folds=3, model=FAST, seed=7))
    assert same(one, choose_rank(shuffled(observed, 1), [1, 2, 3], folds=3, model=FAST, seed=7))
    assert not same(one, choose_rank(observed, [1, 2, 3], folds=3, model=FAST, seed=8))


def test_a_rank_s_numbers_do_not_depend_on_the_other_ranks():
    observed = planted((9, 8, 7), 2, noise=0.3, count=300, seed=5)
    both = choose_rank(observed, [2, 3], folds=3, model=FAST, seed=7)
    assert choose_rank(observed, [3], folds=3, model=FAST, seed=7).errors.tolist() == both.errors[1:].tolist()


def test_folds_are_even_and_keep_groups_together():
    observed = planted((9, 8, 7), 2, noise=0, count=400, seed=5)
    assert np.ptp(np.bincount(deal(observed, 7, seed=0))) <= 1
    fold = deal(observed, 5, by=(0, 2), seed=0)
    groups = {}
    for (i, _, k), f in zip(observed.index.tolist(), fold.tolist(), strict=True):
        groups.setdefault((i, k), set()).add(f)
    assert {len(folds) for folds in groups.values()} == {1}
    assert np.ptp(np.bincount([min(folds) for folds in groups.values()])) <= 1


def test_fibres_held_out_can_have_another_error_than_entries():
    """Noise shared by a fibre leaks from its other entries; held out as a whole it cannot."""
    rng = np.random.default_rng(0)
    tensor = CP.random((20, 6, 12), 1, seed=0).dense() + np.einsum("ik,j->ijk", rng.standard_normal((20, 12)), np.ones(6))
    observed = Observed.from_dense(tensor)
    entries = choose_rank(observed, [8], model=FAST, seed=0)
    fibres = choose_rank(observed, [8], by=(0, 2), model=FAST, seed=0)
    assert fibres.mean[0] > 1.3 * entries.mean[0]


def test_entries_alone_in_their_row_are_counted_and_not_scored():
    observed = planted((9, 8, 7), 1, noise=0.1, count=300, seed=5)
    index = np.vstack([observed.index, [[9, 0, 0], [10, 1, 1]]])   # two rows of one entry each
    value = np.append(observed.value, [1e6, 1e6])                  # would drown all else
    with pytest.warns(UserWarning, match="2 of 302 entries are the only ones of their row"):
        choice = choose_rank(Observed(index, value, (11, 8, 7)), [1], folds=4, model=FAST, seed=0)
    assert choice.left_out == 2
    assert "2 held-out entries are not scored" in choice.table()


def test_stability_tells_a_true_rank_from_one_too_high():
    choice = choose_rank(planted((15, 14, 13), 2, noise=0.3, count=900, seed=1), [1, 2, 4], model=FAST, seed=0)
    assert choice.stability[1] > 0.98 > choice.stability[2] + 0.2
    assert np.isnan(choose_rank(planted((20, 20), 1, noise=0.3, count=200, seed=1), [1], model=FAST, seed=0).stability[0])


def test_an_interrupted_call_goes_on_where_it_was():
    observed = planted((9, 8, 7), 2, noise=0.3, count=300, seed=5)
    settings = {"folds": 3, "model": FAST, "seed": 7}
    done, told = {}, []

    def tell(entry: dict) -> None:
        told.append(entry)
        if len(told) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        choose_rank(observed, [1, 2], progress=tell, done=done, **settings)
    assert len(done) == 4
    assert [entry["fits_left"] for entry in told] == [5, 4, 3, 2]
    told.clear()
    resumed = choose_rank(observed, [1, 2, 3], progress=lambda entry: told.append((entry["rank"], entry["fold"])), done=done,
                          **settings)
    assert told == [(2, 1), (2, 2), (3, 0), (3, 1), (3, 2)]
    assert same(resumed, choose_rank(observed, [1, 2, 3], **settings))
    told.clear()   # other data must not meet the old fits
    choose_rank(Observed(observed.index, observed.value + 1, observed.shape), [1], progress=told.append, done=done, **settings)
    assert len(told) == 3


def test_table_shows_every_rank_and_marks():
    choice = choose_rank(planted((9, 8, 7), 2, noise=0.3, count=400, seed=5), [1, 2], model=FAST, seed=7)
    lines = choice.table().splitlines()
    assert lines[0].split()[:3] == ["rank", "held", "out"]
    assert lines[2].endswith("best, chosen")
    assert f"{choice.mean[1]:.4g}" in lines[2]
    assert "try larger ones" in lines[-1]


@pytest.mark.parametrize(("change", "message"), [
    ({"ranks": []}, "ranks: expected at least one"),
    ({"ranks": [0, 1]}, "ranks: expected a whole number >= 1, got 0"),
    ({"ranks": [1.5]}, "ranks: expected a whole number"),
    ({"folds": 1}, "folds: expected a whole number >= 2"),
    ({"folds": 1000}, "folds: expected at most 60, the number of entries"),
    ({"folds": 6, "by": (0,)}, "folds: expected at most 5, the number of groups"),
    ({"by": 0}, "by: expected held-out entries whose rows keep other entries"),
    ({"by": (0, 3)}, "by: expected different modes among 0..2"),
    ({"rule": "elbow"}, "unknown rule 'elbow'; known: one standard error, best"),
    ({"model": 3}, "model: expected a CPCompletion, got int"),
    ({"model": CPCompletion(init=CP.random((5, 4, 3), 2, seed=0))}, 'model: expected init "spectral" or "random"'),
])
def test_bad_input_is_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        choose_rank(**{"observed": Observed.from_dense(np.ones((5, 4, 3))), "ranks": [1], "seed": 0, **change})
