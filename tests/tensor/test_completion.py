"""CPCompletion: laws against independent witnesses, what it tells, and what it refuses."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor import CP, CPCompletion, Observed, Stream, factor_match_score, search

# ``quick`` has 3 starts
pytestmark = pytest.mark.filterwarnings("ignore:. of . starts found the best fit:sklearn.exceptions.ConvergenceWarning")

SHAPES = {2: (15, 12), 3: (9, 8, 7), 4: (6, 5, 6, 5)}


def planted(shape=(9, 8, 7), rank=2, share=0.6, noise=0.0, seed=0, positive=False):
    """Coordinates of a random share of all entries, their values and the CP they come from."""
    draw = numpy_stream(seed, "completion", "planted")
    X = np.argwhere(np.ones(shape))[draw.permutation(int(np.prod(shape)))[:int(share * np.prod(shape))]]
    truth = CP.random(shape, rank, seed=seed)
    truth = CP(truth.weights, tuple(map(np.abs, truth.factors))) if positive else truth
    return X, truth.at(X) + noise * draw.standard_normal(len(X)), truth


def quick(**changes) -> CPCompletion:
    return CPCompletion(**{"rank": 2, "shape": (9, 8, 7), "n_restarts": 3, **changes})


def start(seed=7, positive=False, shape=(9, 8, 7), rank=2) -> CP:
    cp = CP.random(shape, rank, seed=seed)
    return CP(cp.weights, tuple(map(np.abs, cp.factors))) if positive else cp


def everywhere(model: CPCompletion) -> np.ndarray:
    return model.predict(np.argwhere(np.ones(model.shape_)))


def objective(model: CPCompletion, X, y, weight=1.0, ridge=1e-3) -> float:
    """The documented one, in squared units of y, by the best scaling of the terms: a witness for history_."""
    scale = np.sqrt(np.average(y**2, weights=weight * np.ones(len(y))))
    lengths = np.prod([np.linalg.norm(f, axis=0) for f in model.factors_], axis=0) * model.cp_.weights / scale
    penalty = ridge * sum(len(model.shape_) * np.abs(lengths) ** (2 / len(model.shape_)))
    return 0.5 * float(np.sum(weight * (y - model.predict(X)) ** 2) + scale**2 * penalty)


# What is fitted

@pytest.mark.parametrize("solver", ["als", "lm", "ccd"])
@pytest.mark.parametrize("modes", [2, 3, 4])
def test_a_noise_free_planted_tensor_comes_back(modes, solver):
    X, y, truth = planted(SHAPES[modes], rank=2 if modes > 2 else 1)
    model = CPCompletion(truth.rank, solver=solver, regularization=0, tol=1e-12, max_iter=2000).fit(X, y)
    error = np.linalg.norm(everywhere(model) - truth.dense().ravel()) / np.linalg.norm(truth.dense())
    assert error < (1e-6 if solver != "ccd" else 1e-4)
    if modes > 2:
        assert factor_match_score(model.cp_, truth)[0] > 1 - 1e-4


@pytest.mark.filterwarnings("ignore:in 2 of 15 rows")
def test_predictions_are_those_of_the_dense_cp():
    for modes, shape in SHAPES.items():
        X, y, _ = planted(shape, noise=1.0)
        model = CPCompletion(3, n_restarts=1, shape=shape).fit(X, y)
        assert model.cp_.factors is model.factors_
        assert (model.shape_, model.n_features_in_) == (shape, modes)
        dense = model.cp_.dense()
        np.testing.assert_allclose(everywhere(model), dense.ravel(), rtol=1e-10, atol=1e-12)
        np.testing.assert_array_equal(model.predict(X[:1]), model.predict(X)[:1])


def test_all_solvers_reach_the_same_loss():
    X, y, _ = planted(noise=0.3)
    models = [quick(solver=solver, tol=1e-10, regularization=1e-3, max_iter=3000).fit(X, y) for solver in ("als", "lm", "ccd")]
    losses = [model.history_[-1]["loss"] for model in models]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-6)
    for model in models:
        assert model.converged_
        np.testing.assert_allclose(everywhere(model), everywhere(models[0]), atol=1e-3)


@pytest.mark.parametrize("solver", ["als", "lm", "ccd"])
def test_the_last_loss_is_the_documented_objective(solver):
    X, y, _ = planted(noise=0.3)
    weight = numpy_stream(0, "weights").random(len(y)) + 0.5
    model = quick(solver=solver, regularization=0.5, tol=1e-11, max_iter=3000).fit(X, y, weight)
    assert model.history_[-1]["loss"] == pytest.approx(objective(model, X, y, weight, 0.5), rel=1e-5)
    losses = [entry["loss"] for entry in model.history_]
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in zip(losses, losses[1:], strict=False))


@settings(deadline=None, max_examples=8)
@given(st.sampled_from([1e-200, 1e-9, 3.0, -2.5, 1e12, 1e200]))
def test_scaled_values_give_scaled_predictions(c):
    X, y, _ = planted(noise=0.1)
    np.testing.assert_allclose(everywhere(quick().fit(X, c * y)) / c, everywhere(quick().fit(X, y)), rtol=1e-6, atol=1e-6)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10**6), st.sampled_from(["als", "lm", "ccd"]))
def test_the_order_of_the_entries_does_not_matter(seed, solver):
    X, y, _ = planted(noise=0.1)
    order = np.random.default_rng(seed).permutation(len(y))
    plain, other = quick(solver=solver).fit(X, y), quick(solver=solver).fit(X[order], y[order])
    np.testing.assert_allclose(everywhere(other), everywhere(plain), atol=1e-8)


@settings(deadline=None, max_examples=6)
@given(st.permutations(range(8)))
def test_permuted_rows_of_a_mode_are_permuted_rows_of_its_factor(order):
    X, y, _ = planted(noise=0.1)
    moved = X.copy()
    moved[:, 1] = np.array(order)[X[:, 1]]
    plain, other = (quick(tol=1e-12, max_iter=5000, regularization=1e-3).fit(x, y) for x in (X, moved))
    np.testing.assert_allclose(other.predict(moved), plain.predict(X), atol=1e-6)
    np.testing.assert_allclose(np.abs(other.factors_[1][list(order)]), np.abs(plain.factors_[1]), atol=1e-6)


def test_permuted_modes_are_permuted_factors():
    X, y, _ = planted(noise=0.1)
    options = {"tol": 1e-14, "max_iter": 5000, "regularization": 1e-3}
    plain, other = quick(**options).fit(X, y), quick(**options).set_params(shape=(7, 9, 8)).fit(X[:, [2, 0, 1]], y)
    np.testing.assert_allclose(other.predict(X[:, [2, 0, 1]]), plain.predict(X), atol=1e-6)


# Weights

@pytest.mark.filterwarnings("ignore:the fit reached", "ignore:in 1 of 9 rows")
@pytest.mark.parametrize("solver", ["als", "lm", "ccd"])
def test_weight_2_is_an_entry_twice_and_weight_0_is_none(solver):
    X, y, _ = planted(noise=0.5)
    weight = numpy_stream(0, "weights").integers(0, 4, len(y))
    options = {"solver": solver, "init": start(), "tol": 1e-13, "max_iter": 5000, "regularization": 1e-2}
    weighted = quick(**options).fit(X, y, weight)
    repeated = quick(**options).fit(np.repeat(X, weight, axis=0), np.repeat(y, weight))
    np.testing.assert_allclose(everywhere(weighted), everywhere(repeated), atol=1e-6)
    left_out = quick(**options).fit(X[weight > 0], y[weight > 0], weight[weight > 0])
    np.testing.assert_array_equal(everywhere(weighted), everywhere(left_out))


def test_equal_weights_are_no_weights():
    X, y, _ = planted(noise=0.5)
    plain = quick().fit(X, y)
    for ones in (np.ones(len(y)), 1, 1.0, torch.ones(len(y)), [1] * len(y)):
        np.testing.assert_array_equal(everywhere(quick().fit(X, y, ones)), everywhere(plain))


def test_an_observed_brings_shape_and_weights_along():
    X, y, _ = planted(noise=0.5)
    weight = numpy_stream(0, "weights").random(len(y)) + 0.1
    observed = Observed(X, y, (10, 8, 7), weight=weight)
    with pytest.warns(UserWarning, match=r"mode 0: 1 of 10 rows have no observed entry \(9\); they get the mean"):
        model = quick(shape=None, tol=1e-12).fit(observed)
    assert model.shape_ == (10, 8, 7)
    np.testing.assert_allclose(model.predict(X), quick(tol=1e-12).fit(X, y, weight).predict(X), atol=1e-5)
    np.testing.assert_array_equal(model.predict(observed), model.predict(X))
    other = quick(shape=None).fit(replace(observed, shape=(9, 8, 7)), sample_weight=np.ones(len(y)))
    np.testing.assert_array_equal(other.predict(X), quick().fit(X, y).predict(X))   # a given weight wins


# Constraints

@pytest.mark.parametrize("solver", ["als", "ccd"])
@pytest.mark.parametrize("non_negative", [True, [True, False, True], np.array([False, False, True])])
def test_non_negative_modes_are_non_negative(solver, non_negative):
    X, y, _ = planted(noise=1.0)
    model = quick(solver=solver, non_negative=non_negative).fit(X, y)
    for factor, bounded in zip(model.factors_, np.broadcast_to(non_negative, 3), strict=True):
        assert (factor.min() >= 0) == bounded    # those left free do use negative numbers here
    assert model.cp_.weights.min() >= 0


def test_non_negative_data_come_back_non_negative():
    X, y, truth = planted(positive=True)
    model = quick(non_negative=True, tol=1e-12, regularization=0, max_iter=3000).fit(X, y)
    np.testing.assert_allclose(everywhere(model), truth.dense().ravel(), rtol=1e-3, atol=1e-3)


def test_values_that_no_non_negative_model_reaches_are_told():
    X, y, _ = planted(positive=True)
    with pytest.warns(UserWarning, match=r"non_negative: 100% of the values' sum of squares are negative .*, or fit -y"):
        quick(non_negative=True).fit(X, -y)
    half = np.where(np.arange(len(y)) % 2, 1.0, -1.0)     # half of the squares are of negative values
    with pytest.warns(UserWarning, match=r"non_negative: 50% of the .* pass non_negative=False$"):
        quick(non_negative=True).fit(X, half)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        quick(non_negative=True).fit(X, y - 0.05)         # some noise around 0
        quick(non_negative=[True, True, False]).fit(X, -y)
    assert not [w for w in told if "sum of squares" in str(w.message)]


def test_regularization_shrinks_and_can_differ_by_mode():
    X, y, _ = planted(noise=0.5)
    sizes = [quick(regularization=ridge, tol=1e-9).fit(X, y).cp_.norm() for ridge in (0.0, 1.0, 10.0, 1e4)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-6 * sizes[0]
    equal = quick(regularization=0.5, tol=1e-13, max_iter=5000).fit(X, y)
    uneven = quick(regularization=(0.05, 0.5, 5.0), tol=1e-13, max_iter=5000).fit(X, y)
    # only the product of the three counts, since scale moves between modes for free
    np.testing.assert_allclose(everywhere(uneven), everywhere(equal), atol=1e-4)


@pytest.mark.parametrize("solver", ["als", "lm", "ccd"])
@pytest.mark.parametrize("weights", [[1.0, 1.0], [-3.0, 0.25]])
def test_fixed_modes_come_back_bit_for_bit(solver, weights):
    X, y, truth = planted()
    init = CP(weights, (*truth.factors[:2], start().factors[2]))
    kept = [f.copy() for f in init.factors]
    model = quick(solver=solver, init=init, fixed_modes=[0, -2], regularization=0, tol=1e-14, max_iter=2000).fit(X, y)
    for k in (0, 1):
        np.testing.assert_array_equal(model.factors_[k], truth.factors[k])
    np.testing.assert_allclose(everywhere(model), truth.dense().ravel(), atol=1e-6)
    np.testing.assert_array_equal(init.factors[2], kept[2])
    again = quick(solver=solver, init=init, fixed_modes=[0, 1], warm_start=True, regularization=0).fit(X, y).fit(X, 2 * y)
    np.testing.assert_array_equal(again.factors_[0], truth.factors[0])
    np.testing.assert_allclose(everywhere(again), 2 * truth.dense().ravel(), atol=1e-5)


def test_with_fixed_modes_other_starts_run_too():
    X, y, truth = planted(rank=3)
    init = CP(np.ones(3), (truth.factors[0], *start(rank=3).factors[1:]))
    model = quick(rank=3, init=init, fixed_modes=[0], regularization=0, tol=1e-12, n_restarts=20, max_iter=3000).fit(X, y)
    assert model.starts_[0]["kind"] == "given"
    np.testing.assert_allclose(everywhere(model), truth.dense().ravel(), atol=1e-4)
    alone = quick(rank=3, init=init, max_iter=2)
    with pytest.warns(ConvergenceWarning):
        assert alone.fit(X, y).starts_ == []


# Starts, seeds and continuing

def test_the_seed_decides_whatever_ran_before():
    X, y, _ = planted(noise=0.5)
    first = quick(random_state=3).fit(X, y)
    state = np.random.get_state()[1].copy()  # noqa: NPY002 (that it is left alone)
    quick(random_state=8, rank=3).fit(X, -y)
    again = quick(random_state=3).fit(X, y)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    np.testing.assert_array_equal(first.cp_.weights, again.cp_.weights)
    for one, two in zip(first.factors_, again.factors_, strict=True):
        np.testing.assert_array_equal(one, two)
    assert [e["loss"] for e in first.history_] == [e["loss"] for e in again.history_]


def test_init_random_leaves_the_spectral_start_out():
    X, y, _ = planted(noise=0.5)
    assert quick().fit(X, y).starts_[0]["kind"] == "spectral"
    assert "spectral" not in [start["kind"] for start in quick(init="random").fit(X, y).starts_]


def test_warm_start_goes_on_where_the_last_fit_ended():
    X, y, _ = planted(noise=0.3)
    cold = quick(init=start(), tol=1e-9, max_iter=2000, regularization=1e-6).fit(X, y)
    model = quick(init=start(), tol=1e-9, max_iter=2, warm_start=True, regularization=1e-6)
    with pytest.warns(ConvergenceWarning, match=r"the fit reached 2 sweeps; raise max_iter or tol"):
        loss = model.fit(X, y).history_[-1]["loss"]
    model.set_params(max_iter=2000).fit(X, y)
    assert model.history_[-1]["loss"] <= loss
    assert model.starts_ == []
    assert model.history_[-1]["loss"] == pytest.approx(cold.history_[-1]["loss"], rel=1e-6)
    model.fit(X, y + 1e-6)
    assert model.n_iter_ <= max(3, cold.n_iter_ // 2)
    with pytest.raises(ValueError, match=r"warm_start: expected a CP of shape \(9, 8, 7\) and rank 3, got .* rank 2; fit anew"):
        model.set_params(rank=3).fit(X, y)
    assert model.cp_.rank == 2


def test_a_fit_begun_on_a_sample_is_as_good(monkeypatch):
    X, y, truth = planted((30, 29, 28), 3, 0.8, noise=0.1)
    weight = numpy_stream(0, "weights").random(len(y)) + 0.5
    options = {"rank": 3, "shape": (30, 29, 28), "tol": 1e-10, "regularization": 1.0}
    full = quick(**options).fit(X, y, weight)
    monkeypatch.setattr(search, "SMALLEST", 3000)
    monkeypatch.setattr(search, "SAMPLE", 10)
    sampled = quick(**options).fit(X, y, weight)
    assert sampled.starts_[0]["loss"] < 0.5 * full.starts_[0]["loss"]       # the starts did see less
    assert sampled.history_[-1]["loss"] == pytest.approx(full.history_[-1]["loss"], rel=1e-7)
    np.testing.assert_allclose(everywhere(sampled), everywhere(full), atol=1e-3)
    assert factor_match_score(sampled.cp_, truth)[0] > 0.99


def test_a_strong_ridge_is_as_strong_on_the_sample(monkeypatch):
    """A ridge that all entries can bear would shrink the factors of a tenth of them to 0, a point that descent cannot leave."""
    X, y, _ = planted((30, 29, 28), 1, 0.8)
    monkeypatch.setattr(search, "SMALLEST", 1000)
    monkeypatch.setattr(search, "SAMPLE", 1)
    model = quick(rank=1, shape=(30, 29, 28), regularization=100.0).fit(X, y)
    monkeypatch.undo()
    assert model.cp_.norm() > 0
    expected = quick(rank=1, shape=(30, 29, 28), regularization=100.0).fit(X, y).cp_.norm()
    assert model.cp_.norm() == pytest.approx(expected, rel=1e-2)


# What it tells

def test_the_callback_sees_each_sweep_and_can_stop():
    X, y, _ = planted(noise=0.3)
    seen = []

    def callback(entry, cp):
        seen.append((entry, cp))
        cp.factors[0][:] = np.nan     # its own copy
        return len(seen) == 4

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = quick(init=start(), callback=callback).fit(X, y)
    assert len(seen) == 4
    assert all(isinstance(entry, dict) and isinstance(cp, CP) and cp.shape == (9, 8, 7) for entry, cp in seen)
    assert (model.stopped_, model.converged_, model.n_iter_) == ("the callback asked to stop", False, 4)
    assert [entry["loss"] for entry, _ in seen] == [entry["loss"] for entry in model.history_]
    assert np.isfinite(everywhere(model)).all()


@pytest.mark.parametrize("solver", ["als", "lm", "ccd"])
def test_a_listener_changes_no_number(solver):
    X, y, _ = planted(noise=0.3)
    losses = []
    settings = {"solver": solver, "init": start(), "tol": 1e-8, "regularization": 1e-6}
    silent = quick(**settings).fit(X, y)
    told = quick(**settings, keep_interrupted=True, callback=lambda e, cp: losses.append(e["loss"]))
    np.testing.assert_array_equal(everywhere(told.fit(X, y)), everywhere(silent))
    assert losses[-1] == told.history_[-1]["loss"]
    assert losses[-1] == pytest.approx(objective(told, X, y, ridge=1e-6), rel=1e-4)


def test_a_torch_device_gives_the_same_fit():
    X, y, _ = planted(noise=0.3)
    weight = np.linspace(0.5, 2, len(y))
    model = quick(device="cpu:0", tol=1e-10).fit(X, y, weight)     # torch's engine, since it is not called "cpu"
    np.testing.assert_allclose(everywhere(model), everywhere(quick(tol=1e-10).fit(X, y, weight)), atol=1e-7)


@pytest.mark.parametrize("sweeps", [1, 5, 40])
def test_a_callback_may_stop_in_any_sweep_of_the_starts(sweeps):
    """40 sweeps are beyond the repair of the first start, and the local solver's."""
    X, y, _ = planted(noise=2.0)
    seen = []

    def callback(entry, cp):
        seen.append((entry["loss"], cp))
        return len(seen) == sweeps
    model = quick(callback=callback, n_restarts=20, tol=1e-12).fit(X, y)
    assert len(seen) == sweeps
    assert (model.stopped_, model.converged_) == ("the callback asked to stop", False)
    assert (model.history_, model.n_iter_) == ([], 1)      # no sweep of the last run
    best = min(seen, key=lambda pair: pair[0])[1]
    np.testing.assert_allclose(everywhere(model), best.dense().ravel(), rtol=1e-9, atol=1e-12)


def test_the_best_so_far_of_a_sample_has_no_empty_rows(monkeypatch):
    X, y, _ = planted((30, 29, 28), 2, 0.8)
    once = np.flatnonzero(X[:, 0] == 29)[1:]               # row 29 has one entry left, which few samples have
    X, y = np.delete(X, once, axis=0), np.delete(y, once)
    monkeypatch.setattr(search, "SMALLEST", 100)
    monkeypatch.setattr(search, "SAMPLE", 1)
    model = quick(shape=(30, 29, 28), callback=lambda entry, cp: True).fit(X, y)
    assert model.unobserved_[0].tolist() == []
    np.testing.assert_allclose(model.factors_[0][29], model.factors_[0][:29].mean(0))   # a guess, not zero


@pytest.mark.parametrize("sweeps", [1, 4, 30])
@pytest.mark.parametrize("init", ["spectral", start()])
def test_an_interrupted_fit_raises_or_keeps_the_best(init, sweeps):
    X, y, _ = planted(noise=0.5)
    earlier = quick().fit(X, -y)
    kept, seen = earlier.cp_, []

    def press(entry, cp):
        seen.append((entry["loss"], cp))
        if len(seen) == sweeps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        earlier.set_params(init=init, callback=press, tol=0.0).fit(X[:, [0, 1, 2]], y)
    assert earlier.cp_ is kept
    seen.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = quick(init=init, callback=press, keep_interrupted=True, tol=0.0).fit(X, y)
    assert model.stopped_ == "interrupted; these are the best factors so far"
    assert not model.converged_
    assert min(np.abs(model.cp_.dense() - cp.dense()).max() for _, cp in seen) < 1e-12   # one of those that were shown
    assert model.score(X, y) > -1


def test_rows_without_data_get_the_mean_and_a_warning():
    X, y, _ = planted(share=0.9)
    X, y = X[~np.isin(X[:, 1], (2, 5))], y[~np.isin(X[:, 1], (2, 5))]
    with pytest.warns(UserWarning, match=r"mode 1: 2 of 8 rows have no observed entry \(2, 5\); they get the mean of"):
        model = quick(tol=1e-10).fit(X, y)
    assert [rows.tolist() for rows in model.unobserved_] == [[], [2, 5], []]
    rest = np.delete(model.factors_[1], (2, 5), axis=0).mean(0)
    np.testing.assert_allclose(model.factors_[1][[2, 5]], [rest, rest], rtol=1e-12)
    full = model.cp_.dense()
    np.testing.assert_allclose(full[:, 2], np.delete(full, (2, 5), axis=1).mean(1), rtol=1e-9)   # so are predictions


def test_a_rank_above_the_data_is_said():
    X, y, _ = planted(share=0.1)
    with pytest.warns(UserWarning, match=r"rank 3 has 66 free numbers, more than the 50 observed entries: .* lower the rank"):
        quick(rank=3, n_restarts=1).fit(X, y)


def test_verbose_tells_starts_and_sweeps(capsys):
    X, y, _ = planted(noise=0.3)
    quick().fit(X, y)
    assert capsys.readouterr().out == ""
    model = quick(verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(model.starts_)
    assert lines[0].startswith("start 1 (spectral): loss ")
    model = quick(verbose=2, init=start()).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == model.n_iter_
    assert all(line.startswith("  sweep ") and "loss" in line for line in lines)


@pytest.mark.parametrize("solver", ["als", "lm", "ccd"])
def test_learned_attributes_mean_what_is_documented(solver):
    X, y, _ = planted(noise=0.3)
    model = quick(solver=solver, max_iter=2000).fit(X, y)
    assert model.converged_
    assert isinstance(model.stopped_, str)
    assert model.n_iter_ == model.history_[-1]["iteration"]
    assert {"iteration", "loss", "seconds"} <= set(model.history_[0])
    assert {"kind", "loss", "best", "agreed", "seconds"} <= set(model.starts_[0])
    assert model.starts_[-1]["best"] == min(entry["loss"] for entry in model.starts_)
    assert model.history_[-1]["loss"] <= model.starts_[-1]["best"] * (1 + 1e-9)     # no sample was drawn: the same loss
    for factor in model.factors_:
        np.testing.assert_allclose(np.linalg.norm(factor, axis=0), 1)
    with pytest.warns(ConvergenceWarning, match="raise max_iter or tol"):
        model = quick(solver=solver, max_iter=2, tol=0.0).fit(X, y)
    assert (model.converged_, model.n_iter_) == (False, 2)


@pytest.mark.filterwarnings("ignore:the fit reached")
def test_all_zero_values_are_a_zero_tensor():
    X, y, _ = planted()
    for model in (quick(), quick(non_negative=True), quick(init=start(), tol=1e-12)):
        np.testing.assert_allclose(everywhere(model.fit(X, 0 * y)), 0, atol=1e-5)


def test_repeated_coordinates_are_repeated_measurements():
    X, y, _ = planted(noise=0.3)
    options = {"init": start(), "tol": 1e-13, "max_iter": 5000, "regularization": 1e-2}
    twice = quick(**options).fit(np.concatenate([X, X]), np.concatenate([y + 0.5, y - 0.5]))
    weighted = quick(**options).fit(X, y, 2)
    # the unit, and with it the ridge, is that of all values: close, not equal
    np.testing.assert_allclose(everywhere(twice), everywhere(weighted), atol=1e-2)


def test_a_shape_may_reserve_rows_and_be_beyond_counting():
    X, y, _ = planted(noise=0.1)
    shape = (60_000,) * 4           # 1.3e19 entries: more than int64 counts
    init = CP.random(shape, 1, seed=0)
    X = np.column_stack([X, X[:, 0]])
    with pytest.warns(UserWarning, match="rows have no observed entry|free numbers"):
        model = CPCompletion(1, shape=shape, init=init, regularization=0.1, tol=1e-2).fit(X, y)
    assert model.shape_ == shape
    assert np.isfinite(model.predict([[59_999] * 4])).all()


def test_coordinates_may_lie_in_memory_as_they_like():
    X, y, _ = planted(noise=0.3)
    plain = quick().fit(X, y)
    for kind in (np.int32, np.uint8, float):
        for other in (X.astype(kind), np.asfortranarray(X.astype(kind)), np.repeat(X.astype(kind), 2, axis=0)[::2]):
            np.testing.assert_array_equal(everywhere(quick().fit(other, np.repeat(y, 2)[::2])), everywhere(plain))


def test_the_callers_arrays_are_left_alone():
    X, y, _ = planted(noise=0.3)
    weight, init = np.linspace(0, 2, len(y)), start()
    kept = [a.copy() for a in (X, y, weight, *init.factors)]
    model = quick(init=init).fit(X, y, weight)
    model.predict(X)
    model.score(X, y, weight)
    for before, after in zip(kept, (X, y, weight, *init.factors), strict=True):
        np.testing.assert_array_equal(before, after)


# Files

def test_saved_models_come_back_bit_for_bit(tmp_path):
    X, y, _ = planted(noise=0.3)
    model = quick(init=start(), regularization=np.array([1e-3, 1e-3, 0]), callback=lambda entry, cp: None, max_iter=1000)
    model.fit(X, y)
    model.save(tmp_path / "model")
    again = CPCompletion.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    np.testing.assert_array_equal(again.cp_.weights, model.cp_.weights)
    for name in ("history_", "starts_", "stopped_", "converged_", "n_iter_", "shape_", "n_features_in_"):
        assert getattr(again, name) == getattr(model, name)
    np.testing.assert_array_equal(again.init.factors[1], model.init.factors[1])
    assert again.callback is None
    np.testing.assert_array_equal(again.fit(X, y).predict(X), model.predict(X))
    plain = quick().fit(X, y)
    plain.save(tmp_path / "model")
    assert CPCompletion.load(tmp_path / "model").get_params() == plain.get_params()
    plain.cp_.save(tmp_path / "cp")
    with pytest.raises(ValueError, match="expected a CPCompletion of schema 1, got kind 'CP'"):
        CPCompletion.load(tmp_path / "cp")
    with pytest.raises(ValueError, match="expected a saved CPCompletion, got no such file"):
        CPCompletion.load(tmp_path / "none")


# What is refused

SETTINGS = [
    ({"rank": 0}, "rank: expected a whole number >= 1, got 0"),
    ({"rank": -1}, "rank: expected a whole number >= 1, got -1"),
    ({"rank": 2.5}, "rank: expected a whole number >= 1, got 2.5"),
    ({"rank": True}, "rank: expected a whole number >= 1, got True"),
    ({"rank": "2"}, "rank: expected a whole number >= 1, got '2'"),
    ({"n_restarts": 0}, "n_restarts: expected a whole number >= 1, got 0"),
    ({"max_iter": 0}, "max_iter: expected a whole number >= 1, got 0"),
    ({"tol": -1e-9}, r"tol: expected a share in \[0, 1\), got -1e-09"),
    ({"tol": np.nan}, r"tol: expected a share in \[0, 1\), got nan"),
    ({"tol": 1}, r"tol: expected a share in \[0, 1\), got 1"),
    ({"random_state": None}, "random_state: expected a whole number >= 0, got None"),
    ({"solver": "adam"}, "unknown solver 'adam'; known: als, lm, ccd"),
    ({"init": "svd"}, "unknown init 'svd'; known: spectral, random, a CP"),
    ({"init": start(shape=(9, 8, 6))}, r"init: expected a CP of shape \(9, 8, 7\) and rank 2, got \(9, 8, 6\) and rank 2"),
    ({"init": start(rank=3)}, r"init: expected a CP of shape \(9, 8, 7\) and rank 2, got \(9, 8, 7\) and rank 3"),
    ({"init": start(), "non_negative": True}, "init: expected factors >= 0 in the non-negative modes, got negative"),
    ({"regularization": -1e-3}, "regularization: expected a number >= 0, got -0.001"),
    ({"regularization": np.inf}, "regularization: expected a number >= 0, got inf"),
    ({"regularization": "much"}, "regularization: expected a number >= 0, got 'much'"),
    ({"regularization": [1.0, 1.0]}, "regularization: expected one value or one for each of 3 modes, got 2"),
    ({"regularization": [1.0, np.nan, 1.0]}, "regularization: expected a number >= 0, got .*nan"),
    ({"regularization": True}, "regularization: expected a number >= 0, got True"),
    ({"non_negative": [True]}, "non_negative: expected one value or one for each of 3 modes, got 1"),
    ({"non_negative": 1}, "non_negative: expected True or False, got 1"),
    ({"non_negative": True, "solver": "lm"}, 'non_negative: expected False with solver "lm", got True; use solver "als"'),
    ({"fixed_modes": [0]}, r"fixed_modes: expected init=CP\(...\) that holds their factors, .* got init='spectral'"),
    ({"fixed_modes": [0, 1, 2], "init": start()}, "fixed_modes: expected at least one mode of 3 left to fit, got all of them"),
    ({"fixed_modes": [3], "init": start()}, r"fixed_modes: expected a list of modes among 0..2, got \[3\]"),
    ({"fixed_modes": [0.5], "init": start()}, r"fixed_modes: expected a list of modes among 0..2, got \[0.5\]"),
    ({"fixed_modes": 1, "init": start()}, "fixed_modes: expected a list of modes among 0..2, got 1"),
    ({"device": "abacus"}, "device 'abacus': expected one that torch can use here, got .*; use 'cpu'"),
    ({"device": "meta", "solver": "lm"}, "device"),
    ({"shape": (9, 8)}, "X: expected one column for each of 2 modes, got 3"),
    ({"shape": (9,)}, "shape: expected at least two modes, each of a whole size >= 1, got"),
    ({"shape": (9, 8, 0)}, "shape: expected at least two modes, each of a whole size >= 1, got"),
    ({"shape": 9}, "shape: expected at least two modes, each of a whole size >= 1, got 9"),
    ({"shape": (9, 8, 2**31)}, r"shape: expected modes of at most 2147483647 rows, got \(9, 8, 2147483648\)"),
    ({"shape": (9, 8, 6)}, "X: expected coordinates below 6 in column 2, got 6; as the given shape has it"),
    ({"callback": 3}, r"callback: expected a function of \(entry, cp\), or None, got 3"),
]


@pytest.mark.parametrize(("changes", "message"), SETTINGS, ids=[str(list(c.items())[0])[:40] for c, _ in SETTINGS])  # noqa: RUF015
def test_impossible_settings_are_refused_and_nothing_is_lost(changes, message):
    X, y, _ = planted()
    model = quick(n_restarts=1).fit(X, y)
    before = vars(model).copy()
    with pytest.raises(ValueError, match=message) as caught:
        model.set_params(**changes).fit(X, y)
    assert "\n" not in str(caught.value)
    assert {name: x for name, x in vars(model).items() if name.endswith("_")} == \
        {name: x for name, x in before.items() if name.endswith("_")}
    np.testing.assert_array_equal(model.predict(X[:3]), CPCompletion.predict(model, X[:3]))


def put(where, value, dtype=float):
    def spoil(X):
        X = X.astype(dtype)
        X[where] = value
        return X
    return spoil


COORDINATES = [
    (put((4, 1), np.nan), "X, column 1: 1 of 302 values are NaN or Inf, the first at .*4.*; expected finite numbers"),
    (put((4, 1), np.inf), "X, column 1: 1 of 302 values are NaN or Inf"),
    (put((4, 1), 2.5), "X: expected whole numbers as coordinates, got 2.5 in column 1; number the labels, .* FunctionalCP"),
    (put((4, 1), -1, int), "X: expected coordinates >= 0, got -1 in column 1"),
    (put((4, 1), 8, int), "X: expected coordinates below 8 in column 1, got 8"),
    (put((4, 1), 2**40, int), "X: expected coordinates below 8 in column 1, got 1099511627776"),
    (put((4, 1), 2**63 + 5, np.uint64), "X: expected coordinates below 8 in column 1, got 9223372036854775813"),
    (put((4, 1), 1e300), r"X: expected coordinates below 8 in column 1, got 1e\+300"),
    (put((4, 1), "a", object), r"X: expected row numbers, got text or dates \(dtype object\); number labels with Observed"),
    (put((4, 1), None, object), "X: expected row numbers, got objects .*; number labels with Observed.from_table|NaN or Inf"),
    (lambda X: X.astype(str), r"X: expected row numbers, got text or dates \(dtype <U\d+\); number labels with Observed"),
    (lambda X: X.astype("datetime64[s]"), "X: expected row numbers, got text or dates"),
    (lambda X: X.astype(complex), "X: expected row numbers, got complex numbers"),
    (lambda X: X > 3, r"X: expected row numbers, got bool; a mask goes through Observed.from_dense, else pass X.astype\(int\)"),
    (lambda X: X[:, 0], r"X: expected coordinates \(B, K\), got shape \(302,\); Reshape your data"),
    (lambda X: np.ones((4, 3, 2)), r"X: expected coordinates \(B, K\), got shape \(4, 3, 2\); .* Observed.from_dense"),
    (lambda X: 3, r"X: expected coordinates \(B, K\), got shape \(\)"),
    (lambda X: None, r"X: expected coordinates \(B, K\), got shape \(\)"),
    (lambda X: [[1, 2, 3], [1, 2]], "X: expected a rectangular array, got rows of different lengths"),
    (lambda X: X[:0], "X: expected at least one entry, got none"),
    (lambda X: scipy.sparse.csr_array(X), r"X: expected coordinates \(B, K\), got a sparse matrix; with M = X.tocoo\(\) pass"),
]


@pytest.mark.parametrize(("spoil", "message"), COORDINATES)
def test_bad_coordinates_are_refused_by_fit_predict_and_score(spoil, message):
    X, y, _ = planted()
    model = quick(n_restarts=1).fit(X, y)
    before = vars(model).copy()
    bad = spoil(X)
    for call in (lambda: model.fit(bad, y), lambda: model.predict(bad), lambda: model.score(bad, y)):
        with pytest.raises((ValueError, TypeError), match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert vars(model) == before


def test_coordinates_that_look_like_labels_are_refused():
    X, y, _ = planted()
    for number, message in ((2**31, "X: expected coordinates below 2147483647 in column 2, got 2147483648; number labels with"),
                            (1_700_000_000, "got 1700000000 in column 2 of only 302 entries; number labels with")):
        labels = X.copy()
        labels[:, 2] += number - labels[:, 2].max()
        with pytest.raises(ValueError, match=message):
            quick(shape=None, n_restarts=1).fit(labels, y)


def test_one_mode_is_refused():
    with pytest.raises(ValueError, match=r"X: expected a column for each mode, got 1 feature\(s\)"):
        CPCompletion().fit(np.arange(5)[:, None], np.arange(5.0))


VALUES = [
    (lambda y: np.where(np.arange(len(y)) == 7, np.nan, y), r"y: 1 of 302 values are NaN or Inf, the first at \(7,\)"),
    (lambda y: np.where(np.arange(len(y)) == 7, -np.inf, y), "y: 1 of 302 values are NaN or Inf"),
    (lambda y: y[:-1], "y: axis B is 301, earlier inputs say B=302|inconsistent numbers of samples"),
    (lambda y: y.astype(str), "y: expected real numbers, got dtype <U"),
    (lambda y: y.astype(complex), "y: expected real numbers, got dtype complex128"),
    (lambda y: np.column_stack([y, y]), "y should be a 1d array"),
    (lambda y: None, "y: CPCompletion requires y to be passed, but the target y is None; pass values, or an Observed as X"),
]
WEIGHTS = [
    (lambda w: -w, "sample_weight: expected weights >= 0, not all zero, got -1.0; drop entries"),
    (lambda w: 0 * w, "sample_weight: expected weights >= 0, not all zero, got only zeros"),
    (lambda w: np.where(np.arange(len(w)) == 7, np.nan, w), "sample_weight: 1 of 302 values are NaN or Inf"),
    (lambda w: np.where(np.arange(len(w)) == 7, np.inf, w), "sample_weight: 1 of 302 values are NaN or Inf"),
    (lambda w: w[:-1], r"sample_weight: expected shape \(302,\), one for each entry, got \(301,\)"),
    (lambda w: w[:, None], r"sample_weight: expected shape \(302,\), one for each entry, got \(302, 1\)"),
    (lambda w: w.astype(str), "sample_weight: expected real numbers"),
]


@pytest.mark.parametrize(("spoil", "message"), VALUES)
def test_bad_values_are_refused(spoil, message):
    X, y, _ = planted()
    model = quick(n_restarts=1).fit(X, y)
    before = vars(model).copy()
    for call in (model.fit, model.score):
        with pytest.raises(ValueError, match=message):
            call(X, spoil(y))
    assert vars(model) == before


@pytest.mark.parametrize(("spoil", "message"), WEIGHTS)
def test_bad_weights_are_refused(spoil, message):
    X, y, _ = planted()
    model = quick(n_restarts=1).fit(X, y)
    before = vars(model).copy()
    for call in (model.fit, model.score):
        with pytest.raises(ValueError, match=message):
            call(X, y, spoil(np.ones(len(y))))
    assert vars(model) == before


def test_an_observed_of_another_kind_is_refused():
    X, y, _ = planted()
    observed = Observed(X, y, (9, 8, 7))
    with pytest.raises(ValueError, match=r"shape: expected that of the Observed, \(9, 8, 7\), or None, got \(9, 8, 8\)"):
        quick(shape=(9, 8, 8)).fit(observed)
    model = quick(n_restarts=1)
    with pytest.raises(ValueError, match="y: expected None beside an Observed, which holds the values, got an array"):
        model.fit(observed, y)
    model.fit(observed)
    with pytest.raises(ValueError, match="y: expected None beside an Observed"):
        model.score(observed, y)
    with pytest.raises(ValueError, match="X: expected coordinates below 9 in column 0, got 9; the fitted mode has no"):
        model.predict(Observed([[9, 0, 0]], [1.0], (10, 8, 7)))
    with pytest.raises(ValueError, match=r"mask: expected the tensor's shape \(9, 8, 7\), got \(9, 8\)"):
        model.fit(Observed.from_dense(np.ones((9, 8, 7)), np.ones((9, 8))))


# Entries elsewhere

@pytest.mark.parametrize("sampled", [False, True])
def test_a_stream_gives_what_its_entries_in_memory_give(sampled, monkeypatch):
    X, y, _ = planted((30, 29, 28), 3, 0.5, noise=0.1)
    weight = numpy_stream(0, "weights").random(len(y)) + 0.5
    if sampled:
        monkeypatch.setattr(search, "SMALLEST", 3000)
        monkeypatch.setattr(search, "SAMPLE", 10)
    options = {"rank": 3, "shape": (30, 29, 28), "tol": 1e-12, "regularization": 0.1}
    memory = quick(**options).fit(X, y, weight)
    stream = Stream.from_arrays(X, y, (30, 29, 28), weight, chunk=1000)
    model = quick(**options).fit(stream)
    np.testing.assert_allclose(everywhere(model), everywhere(memory), atol=1e-4 * y.std())
    assert model.history_[-1]["loss"] == pytest.approx(memory.history_[-1]["loss"], rel=1e-8)
    assert model.n_features_in_ == 3


def test_a_stream_s_unobserved_rows_are_those_of_all_its_entries(monkeypatch):
    monkeypatch.setattr(search, "SMALLEST", 200)
    monkeypatch.setattr(search, "SAMPLE", 1)
    X, y, _ = planted((30, 29, 28), 1, 0.5)
    keep = (X[:, 0] != 4) & (numpy_stream(0, "thin").random(len(y)) < np.where(X[:, 1] == 3, 0.02, 1))   # row 3: few
    with pytest.warns(UserWarning, match=r"mode 0: 1 of 30 rows have no observed entry \(4\)"):
        model = quick(rank=1, shape=None).fit(Stream.from_arrays(X[keep], y[keep], (30, 29, 28)))
    assert [rows.tolist() for rows in model.unobserved_] == [[4], [], []]
    np.testing.assert_allclose(model.factors_[0][4], np.delete(model.factors_[0], 4, axis=0).mean(0))


@pytest.mark.parametrize(("params", "arguments", "message"), [
    ({"solver": "lm"}, {}, r'solver: expected "als" with a Stream, got \'lm\''),
    ({"device": "cpu:0"}, {}, r'device: expected "cpu" with a Stream, got \'cpu:0\''),
    ({"shape": (9, 8, 8)}, {}, r"shape: expected that of the Stream, \(9, 8, 7\), or None, got \(9, 8, 8\)"),
    ({}, {"y": np.ones(3)}, "y: expected None beside"),
    ({}, {"sample_weight": np.ones(3)}, "sample_weight: expected None beside a Stream, got an array; give the Stream weights")])
def test_what_a_stream_cannot_be_fitted_with(params, arguments, message):
    X, y, _ = planted()
    with pytest.raises(ValueError, match=message):
        quick(**params).fit(Stream.from_arrays(X, y, (9, 8, 7)), **arguments)


@pytest.mark.parametrize(("params", "message"), [
    ({"engine": "spark"}, "unknown engine 'spark'; known: local, ray"),
    ({"n_workers": 0}, "n_workers: expected a whole number >= 1, got 0"),
    ({"engine": "ray", "solver": "ccd"}, r"solver: expected \"als\" with engine 'ray', got 'ccd'"),
    ({"engine": "ray", "device": "cpu:0"}, r"device: expected \"cpu\" with engine 'ray', got 'cpu:0'")])
def test_engines_that_cannot_be(params, message):
    X, y, _ = planted()
    with pytest.raises(ValueError, match=message):
        quick(**params).fit(X, y)


@pytest.mark.slow
def test_ray_gives_the_same_factors():
    pytest.importorskip("ray")
    X, y, _ = planted((30, 29, 28), 2, 0.5, noise=0.1)
    local = quick(shape=(30, 29, 28)).fit(X, y)
    shared = quick(shape=(30, 29, 28), engine="ray", n_workers=2).fit(X, y)
    for one, other in zip(local.factors_, shared.factors_, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-8)


def test_predictions_beyond_all_data_are_warned_of():
    X, y, _ = planted((20, 19, 18), 3, 0.05, noise=2.0)
    options = {"rank": 3, "shape": (20, 19, 18)}
    with pytest.warns(ConvergenceWarning, match=r"rows of a mode the root mean square of what is predicted is beyond all known "
                      r"values, by a factor of up to \d\S*: the data leave it open; raise regularization or lower") as caught:
        model = quick(**options).fit(X, y)
    told = next(str(w.message) for w in caught if "beyond" in str(w.message))
    squares = [np.sqrt(np.mean(model.cp_.dense() ** 2, axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
    worst = max(squares, key=np.max) / np.abs(y).max()
    assert told.startswith(f"in {np.count_nonzero(worst > 2)} of {len(worst)} rows")
    assert f"up to {worst.max():.2g} times" in told or f"up to {worst.max():.2g}:" in told
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*beyond all known values")
        quick(**options, regularization=3.0).fit(X, y)
        quick(**options, regularization=3.0).fit(X, 1e200 * y)
        quick(**options).fit(X, 0 * y)
        X, y, _ = planted((20, 19, 18), 3, 0.3)
        quick(**options).fit(X, np.sign(y) * np.abs(y) ** 3)    # heavy tails


@pytest.mark.filterwarnings("ignore:in 1 of 8 rows")
def test_starts_that_do_not_agree_are_told():
    draw = numpy_stream(0, "completion", "noise")
    X = np.argwhere(np.ones((9, 8, 7)))[draw.permutation(504)[:200]]
    with pytest.warns(UserWarning, match="1 of 2 starts found the best fit, too few to be sure: it may be a local minimum"):
        CPCompletion(3, shape=(9, 8, 7), n_restarts=2).fit(X, draw.standard_normal(200))
