"""Fold-in: against dense ridge regression, planted rows, all observations at once, and at the door."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor import AdamConfig, Categorical, CPCompletion, FunctionalCP, Neural, foldin
from lowrank_rl.tensor.foldin import add_row, fold_in, fold_in_groups, set_row, update_row
from lowrank_rl.tensor.functional_als import ALSConfig
from lowrank_rl.tensor.modes import Polynomial, Spline

R, NOISE = 3, 1e-4
few = settings(max_examples=15, deadline=None, derandomize=True)


def planted(*, rows=None, agents=60, outputs=2, members=1, noise=NOISE, seed=0, device="cpu") -> FunctionalCP:
    """A model whose rows and noise we know: fitted for a moment, then overwritten."""
    draw = numpy_stream(seed, "foldin", "planted")
    X = (draw.integers(agents, size=300), draw.uniform(-1, 1, (300, 1)), draw.integers(3, size=300))
    model = FunctionalCP([Categorical(agents), Polynomial(1, 3), Categorical(3)], rank=R, outputs=outputs, output_mode=1,
                         members=members, solver=ALSConfig(sweeps=1), device=device)
    model.fit(X, draw.normal(loc=5, scale=3, size=(300, outputs)))
    rows = draw.normal(size=(members, agents, R)) * [1, 0.5, 2] + 1 if rows is None else rows
    with torch.no_grad():
        for table, values in ((model.module_.modes[0], rows), (model.module_.modes[2], draw.normal(size=(members, 3, R)))):
            table.table.copy_(torch.as_tensor(values))
            table.bias.zero_()
        weight = model.module_.modes[1].weight
        weight.copy_(torch.as_tensor(draw.normal(size=weight.shape)))
    model.module_.noise.fill_(noise)
    model.history_[-1]["loss"] = 1.0
    return model


def on_a_line(*, noise=NOISE) -> tuple[FunctionalCP, np.ndarray]:
    """Rows (1 - t) a + t b with t in [0, 1], as one hidden number makes them; and [a, b - a]."""
    line = np.array([[1.0, -1, 0.5], [0.7, 1.2, -2]])
    return planted(rows=np.stack([np.ones(60), np.linspace(0, 1, 60)], 1) @ line, noise=noise), line


def coordinates(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draw = numpy_stream(seed, "foldin", "coordinates")
    return draw.uniform(-1, 1, (count, 1)), draw.integers(3, size=count)


def outputs(model: FunctionalCP, row, X) -> np.ndarray:
    """What the category of this row would show without noise, (k, D); member 0."""
    other = FunctionalCP.unpack("", *model.pack())
    with torch.no_grad():
        other.module_.modes[0].table[:, 0] = torch.as_tensor(row)
    return other.predict_members((np.zeros(len(X[0]), dtype=int), *X))[0]


def noisy(model: FunctionalCP, y: np.ndarray, seed: int = 0) -> np.ndarray:
    scale = model.module_.scale.cpu().numpy() * float(model.module_.noise) ** 0.5
    return y + scale * numpy_stream(seed, "foldin", "noise").normal(size=y.shape)


def dense(model: FunctionalCP, X, y, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the row from the normal equations, with the prior's inverse."""
    scale = model.module_.scale.numpy()
    zero = outputs(model, np.zeros(R), X)
    design = np.stack([(outputs(model, unit, X) - zero) / scale for unit in np.eye(R)], -1).reshape(-1, R)
    rows = model.module_.modes[0].rows()[0].detach().numpy()
    precision = np.linalg.inv(np.cov(rows.T))
    covariance = np.linalg.inv(design.T @ design / noise + precision)
    return covariance @ (design.T @ ((y - zero) / scale).ravel() / noise + precision @ rows.mean(0)), covariance


# The row

@few
@given(count=st.integers(1, 20), seed=st.integers(0, 99))
def test_row_and_covariance_are_those_of_dense_ridge_regression(count, seed):
    model, X = planted(), coordinates(count, seed)
    y = noisy(model, outputs(model, [1.5, 0.2, -1], X), seed)
    new = fold_in(model, 0, X, y, cut=math.inf)
    row, covariance = dense(model, X, y, float(new.noise[0]))
    np.testing.assert_allclose(new.row[0], row, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(new.covariance[0], covariance, rtol=1e-6, atol=1e-11)


def test_planted_rows_are_found_as_well_as_their_covariance_says():
    model, X = planted(), coordinates(300 * 8)
    draw = numpy_stream(0, "foldin", "rows")
    trained = model.module_.modes[0].rows()[0].detach().numpy()
    true = draw.multivariate_normal(trained.mean(0), np.cov(trained.T), size=300)
    group = np.repeat(np.arange(300), 8)
    y = np.concatenate([outputs(model, row, [x[group == g] for x in X]) for g, row in enumerate(true)])
    new = fold_in_groups(model, 0, X, noisy(model, y), group, cut=math.inf)
    away = np.stack([new[g].row[0] for g in range(300)]) - true
    square = np.array([a @ np.linalg.solve(new[g].covariance[0].numpy(), a) for g, a in enumerate(away)])
    assert 0.75 * R < square.mean() < 1.1 * R     # R, or less where a row's few errors make it take more noise than there is


@few
@given(st.floats(-2, 3))
def test_rows_off_the_trained_range_stay_on_the_line(t):
    model, line = on_a_line()
    X = coordinates(25)
    true = np.array([1, t]) @ line
    new = fold_in(model, 0, X, noisy(model, outputs(model, true, X)))
    np.testing.assert_allclose(new.row[0], true, atol=0.02)
    assert new.enough
    assert new.determined == 1
    if not -0.05 < t < 1.05 or 0.01 < t < 0.99:      # in between it may go either way
        assert any("extrapolates" in caution for caution in new.cautions) == (not 0 < t < 1)


def test_noise_of_its_own_widens_the_covariance_and_is_told():
    model, X = planted(), coordinates(200)
    clean = outputs(model, [1.5, 0.2, -1], X)
    model.module_.noise.fill_(100 * NOISE)
    y = noisy(model, clean)
    model.module_.noise.fill_(NOISE)
    new, calm = fold_in(model, 0, X, y), fold_in(model, 0, X, noisy(model, clean))
    assert new.misfit == pytest.approx(10, rel=0.1)
    assert any("fits it badly" in caution for caution in new.cautions)
    np.testing.assert_allclose((new.covariance / calm.covariance)[0].diagonal(), 100, rtol=0.2)
    group = np.arange(2000) // 4                             # of 8 numbers each, the row takes about 3
    X = coordinates(2000)
    model.module_.noise.fill_(100 * NOISE)
    y = noisy(model, outputs(model, [1.5, 0.2, -1], X))
    model.module_.noise.fill_(NOISE)
    noise = np.mean([float(row.noise) for row in fold_in_groups(model, 0, X, y, group, cut=math.inf).values()])
    assert noise == pytest.approx(100 * NOISE, rel=0.1)
    assert calm.misfit == pytest.approx(1, rel=0.1)
    assert not calm.cautions


def test_a_row_unlike_all_trained_ones_is_told():
    model, line = on_a_line()
    X = coordinates(25)
    new = fold_in(model, 0, X, outputs(model, line[0] + [1, 1, 1], X))
    assert new.misfit > 10
    assert "fits it badly" in new.summary()


def test_perfect_data_give_the_perfect_row():
    model, X = planted(noise=0.0), coordinates(10)
    new = fold_in(model, 0, X, outputs(model, [1.5, 0.2, -1], X))
    np.testing.assert_allclose(new.row[0], [1.5, 0.2, -1], atol=1e-6)
    assert new.covariance.isfinite().all()


def test_directions_without_data_stay_with_the_prior_however_small_the_noise():
    model = planted(noise=0.0, outputs=1)
    X = np.full((10, 1), 0.3), np.ones(10, dtype=int)
    y = outputs(model, [1.5, 0.2, -1], X)
    np.testing.assert_allclose(fold_in(model, 0, X, y).row[0], dense(model, X, y, 1e-8)[0], atol=1e-4)


def test_members_are_models_of_their_own():
    model, X = planted(members=3), coordinates(12)
    y = noisy(model, outputs(model, [1.5, 0.2, -1], X))
    new = fold_in(model, 0, X, y)
    assert new.row.shape == (3, R)
    for m in range(3):
        one = planted()
        tensors = {k: v[m:m + 1] if k.startswith("modes") and v.ndim == 3 else v for k, v in model.module_.state_dict().items()}
        one.module_.load_state_dict(tensors)
        alone = fold_in(one, 0, X, y)
        np.testing.assert_allclose(new.row[m], alone.row[0], rtol=1e-9)
        np.testing.assert_allclose(new.covariance[m], alone.covariance[0], rtol=1e-6, atol=1e-14)


def test_any_mode_but_that_of_the_outputs_takes_a_row():
    model, (x, _) = planted(), coordinates(15)
    agent = np.arange(15)
    action = model.module_.modes[2].rows()[0, 1].detach()
    y = model.predict((agent, x, np.ones(15, dtype=int)))
    np.testing.assert_allclose(fold_in(model, 2, (agent, x), y).row[0], action, atol=1e-3)


# Enough?

def test_eigenvalues_say_what_the_data_add_to_the_prior():
    model, X = planted(), coordinates(4)
    new = fold_in(model, 0, X, noisy(model, outputs(model, [1.5, 0.2, -1], X)))
    rows = model.module_.modes[0].rows()[0].detach().numpy()
    shrunk = np.linalg.det(new.covariance[0]) / np.linalg.det(np.cov(rows.T))
    assert shrunk == pytest.approx(float((1 / (1 + new.eigenvalues[0])).prod()), rel=1e-6)
    assert bool((new.eigenvalues[0].diff() < 0).all())
    assert new.enough
    assert new.determined == R


def test_many_observations_at_one_place_are_not_enough():
    model = planted(outputs=1)
    X = np.full((100, 1), 0.3), np.ones(100, dtype=int)
    new = fold_in(model, 0, X, outputs(model, [1.5, 0.2, -1], X))
    assert new.determined == 1
    assert not new.enough
    assert any("stays open" in reason for reason in new.reasons)
    assert 0.1 < new.open < 1
    assert "not enough" in new.summary()


def test_fewer_observations_than_the_rank_fall_back_on_the_prior_and_are_flagged():
    model, X = planted(outputs=1, noise=1e6), coordinates(2)
    model.history_[-1]["loss"] = 1e6
    new = fold_in(model, 0, X, np.zeros(2))
    np.testing.assert_allclose(new.row[0], model.module_.modes[0].rows()[0].detach().mean(0), atol=1e-3)
    assert not new.enough
    assert "2 observations, fewer than the rank 3" in new.reasons[0]
    named = fold_in_groups(model, 0, X, np.zeros(2), [7, 7])[7]
    assert named.summary().startswith("new row 7 of mode 0 from 2 observations: not enough")


def test_few_trained_rows_are_a_prior_in_size_only():
    model = planted(agents=4)
    X = coordinates(20)
    new = fold_in(model, 0, X, outputs(model, [5.0, -2, 1], X))
    np.testing.assert_allclose(new.row[0], [5, -2, 1], atol=0.01)      # not held to the plane of four rows
    assert any("too few or too alike" in caution for caution in new.cautions)
    alike = planted(rows=np.ones((60, R)))
    np.testing.assert_allclose(fold_in(alike, 0, X, outputs(alike, [5.0, -2, 1], X)).row[0], [5, -2, 1], atol=0.01)


# Outliers

@few
@example(62, (1e2, 3))       # hard ones: from one first guess alone, the wrong half wins
@example(176, (1e2, 3))
@example(157, (1.0, 1))
@given(seed=st.integers(0, 999), size_and_reach=st.sampled_from([(1.0, 1), (1e2, 3), (1e5, 3)]))
def test_a_few_outliers_do_not_spoil_the_row(seed, size_and_reach):
    size, reach = size_and_reach
    model, X = planted(), coordinates(25, seed)
    true = numpy_stream(seed, "foldin", "true").normal(size=R) * [1, 0.5, 2] + 1
    X[0][:3] *= reach                                    # far out, cubic polynomials have great leverage
    y = noisy(model, outputs(model, true, X), seed)
    y[:3] += size * model.module_.scale.numpy()
    new = fold_in(model, 0, X, y)
    clean = fold_in(model, 0, [x[3:] for x in X], y[3:])
    assert new.outliers == 3
    np.testing.assert_allclose(new.row, clean.row, atol=1e-6)
    spoilt = fold_in(model, 0, X, y, cut=math.inf)
    assert (spoilt.row[0] - clean.row[0]).norm() > 3 * (new.row[0] - torch.as_tensor(true)).norm()


def test_errors_within_the_noise_are_no_outliers_and_two_observations_tell_none():
    model, X = planted(), coordinates(25)
    y = outputs(model, [1.5, 0.2, -1], X)
    y[15:] += 4 * NOISE ** 0.5 * model.module_.scale.numpy() * [1, -1]
    assert fold_in(model, 0, X, y).outliers == 0            # though most of the errors are 0
    y[0] += 100
    assert fold_in(model, 0, [x[:2] for x in X], y[:2]).outliers == 0
    assert fold_in(model, 0, [x[:15] for x in X], y[:15]).outliers == 1


def test_later_outliers_are_set_aside_too():
    model, X = planted(), coordinates(30)
    y = noisy(model, outputs(model, [1.5, 0.2, -1], X))
    y[[12, 20]] += 100
    new = fold_in(model, 0, [x[:10] for x in X], y[:10])
    for start in range(10, 30):
        new = update_row(model, new, [x[start:start + 1] for x in X], y[start:start + 1])
    keep = np.delete(np.arange(30), [12, 20])
    clean = fold_in(model, 0, [x[keep] for x in X], y[keep])
    assert (new.observations, new.outliers) == (30, 2)
    np.testing.assert_allclose(new.row, clean.row, rtol=1e-8)


# Streams and groups

@few
@given(cuts=st.lists(st.integers(1, 24), unique=True, max_size=5), seed=st.integers(0, 99), aside=st.booleans())
def test_batches_in_any_order_give_what_all_at_once_gives(cuts, seed, aside):
    model, X = planted(), coordinates(25)
    y = noisy(model, outputs(model, [1.5, 0.2, -1], X))
    cut = foldin.CUT if aside else math.inf
    whole = fold_in(model, 0, X, y, cut=cut)
    order = numpy_stream(seed, "foldin", "order").permutation(25)
    batches = [order[a:b] for a, b in pairwise([0, *sorted(cuts), 25])]
    new = fold_in(model, 0, [x[batches[0]] for x in X], y[batches[0]], cut=cut)
    for batch in batches[1:]:
        new = update_row(model, new, [x[batch] for x in X], y[batch], cut=cut)
    assert (new.observations, new.outliers) == (25, 0)
    for name in ("row", "covariance", "eigenvalues", "noise"):
        np.testing.assert_allclose(getattr(new, name), getattr(whole, name), rtol=1e-7, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("chunk", [1, 1 << 22])
def test_groups_are_rows_one_by_one(monkeypatch, chunk):
    monkeypatch.setattr(foldin, "CHUNK", chunk)
    model, X = planted(members=2), coordinates(60)
    group = np.repeat([5, -3, 900, 2], [25, 2, 32, 1])[numpy_stream(0, "foldin", "group").permutation(60)]
    y = noisy(model, outputs(model, [1.5, 0.2, -1], X))
    y[np.flatnonzero(group == 5)[0]] += 50
    new = fold_in_groups(model, 0, X, y, group)
    assert list(new) == [-3, 2, 5, 900]
    for g, row in new.items():
        alone = fold_in(model, 0, [x[group == g] for x in X], y[group == g])
        assert (row.observations, row.outliers) == (alone.observations, alone.outliers) == ((group == g).sum(), g == 5)
        np.testing.assert_allclose(row.row, alone.row, rtol=1e-9)
        np.testing.assert_allclose(row.covariance, alone.covariance, rtol=1e-6, atol=1e-14)


# Models

def test_a_new_model_has_the_row_and_the_old_one_does_not(tmp_path):
    model, X = planted(), coordinates(25)
    before = {k: v.clone() for k, v in model.module_.state_dict().items()}
    true = np.array([1.5, 0.2, -1])
    new = fold_in(model, 0, X, noisy(model, outputs(model, true, X)))
    other = fold_in(model, 0, X, noisy(model, outputs(model, -true, X)))
    more = add_row(model, new, other)
    more.save(tmp_path / "more.safetensors")
    again = FunctionalCP.load(tmp_path / "more.safetensors")
    fresh = coordinates(50, seed=1)
    for grown in (more, again):
        assert grown.modes[0].size == 62
        for number, row in ((60, new.row[0]), (61, other.row[0])):
            np.testing.assert_allclose(grown.predict((np.full(50, number), *fresh)), outputs(model, row, fresh), rtol=1e-9)
        old = (np.arange(50), *fresh)
        np.testing.assert_array_equal(grown.predict(old), model.predict(old))
    changed = set_row(more, 3, new)
    np.testing.assert_allclose(changed.predict((np.full(50, 3), *fresh)), outputs(model, new.row[0], fresh), rtol=1e-9)
    assert all(torch.equal(v, before[k]) for k, v in model.module_.state_dict().items())
    assert model.modes[0].size == 60
    assert not torch.equal(changed.module_.modes[0].rows()[0, 3], more.module_.modes[0].rows()[0, 3])
    with pytest.raises(ValueError, match="0..59"):
        model.predict((np.array([60]), *coordinates(1)))


@pytest.mark.parametrize("modes", [[Categorical(30), Spline(1, 4), Categorical(2)], [Categorical(30), Neural(1, hidden=(16,))]])
def test_unseen_categories_of_fitted_models(modes):
    """y = sin(3 x) + a_n x, (and doubled by the second action), with a new a."""
    draw = numpy_stream(0, "foldin", "unseen")
    a = np.append(np.linspace(-1, 1, 30), 0.4321)

    def data(agent):
        x, action = draw.uniform(-1, 1, len(agent)), draw.integers(2, size=len(agent)) * (len(modes) - 2)
        return (x, action)[:len(modes) - 1], (np.sin(3 * x) + a[agent] * x) * (1 + action)

    agent = np.repeat(np.arange(30), 60)
    X, y = data(agent)
    solver = AdamConfig(epochs=40, batch=64, learning_rate=1e-2) if isinstance(modes[1], Neural) else ALSConfig(sweeps=15)
    model = FunctionalCP(modes, rank=2, solver=solver).fit((agent, *X), y)
    new = fold_in(model, 0, *data(np.full(25, 30)))
    model = add_row(model, new)
    X, y = data(np.full(200, 30))
    seen, truth = data(np.repeat(np.arange(30), 60))
    error = np.abs(model.predict((np.full(200, 30), *X)) - y).mean()
    assert error < 1.5 * np.abs(model.predict((agent, *seen)) - truth).mean() + 1e-3
    assert new.enough


# Bad input

def wrong(**changes):
    arguments = {"mode": 0, "X_others": coordinates(5), "y": np.zeros((5, 2)), **changes}
    return fold_in(planted(), arguments.pop("mode"), arguments.pop("X_others"), arguments.pop("y"), **arguments)


@pytest.mark.parametrize(("changes", "message"), [
    ({"mode": 1}, "mode: expected a Categorical one, got 1, which is Polynomial"),
    ({"mode": 3}, "mode: expected integers 0..2"),
    ({"mode": -1}, "mode: expected a whole number >= 0"),
    ({"X_others": coordinates(5)[:1]}, r"X_others: expected a list of 2 coordinate arrays, those of modes \[1, 2\], got 1"),
    ({"X_others": 3}, "X_others: expected a list .* got int"),
    ({"X_others": (np.zeros((4, 1)), np.zeros(5))}, "mode 1: expected 5 coordinates, one for each observation in y, got 4"),
    ({"X_others": (np.zeros((5, 2)), np.zeros(5))}, "mode 1: expected 1 columns"),
    ({"X_others": (np.full((5, 1), np.nan), np.zeros(5))}, "mode 1: 5 of 5 values are NaN"),
    ({"X_others": (np.zeros((5, 1)), np.full(5, 3))}, r"mode 2: expected integers 0..2"),
    ({"X_others": (np.zeros((5, 1)), np.full(5, 0.5))}, "mode 2: expected integers .* got fractions"),
    ({"X_others": (np.zeros((5, 1)), ["a"] * 5)}, "mode 2: expected real numbers"),
    ({"y": np.zeros(5)}, r"y: expected shape \(observations, 2\), got \(5,\)"),
    ({"y": np.full((5, 2), np.inf)}, "y: 10 of 10 values are NaN or Inf"),
    ({"y": np.zeros((0, 2)), "X_others": (np.zeros((0, 1)), np.zeros(0))}, "at least one observation of the new row, got none"),
    ({"cut": 0}, "cut: expected a number of standard deviations above 0"),
    ({"cut": math.nan}, "cut: expected a number of standard deviations above 0"),
])
def test_bad_input_is_one_sentence(changes, message):
    with pytest.raises(ValueError, match=message):
        wrong(**changes)


def test_other_bad_input_is_one_sentence():
    model, X, y = planted(), coordinates(5), np.zeros((5, 2))
    new = fold_in(model, 0, X, y)
    bare = FunctionalCP([Categorical(3), Categorical(3)], rank=1)
    with pytest.raises(ValueError, match="FunctionalCP: expected a fitted model, got one without data; call fit first"):
        fold_in(bare, 0, [[0]], [1.0])
    table = CPCompletion(1, n_restarts=1).fit([[0, 0], [0, 1], [1, 0]], [1.0, 2, 3])
    with pytest.raises(ValueError, match="model: expected a FunctionalCP, got CPCompletion; a table of categories is one, too"):
        fold_in(table, 0, [[0]], [1.0])
    tables = FunctionalCP([Categorical(3), Categorical(3)], rank=1).fit(([0, 1, 2], [0, 1, 2]), [1.0, 2, 3])
    with pytest.raises(ValueError, match="mode: expected one that does not carry the outputs, got 1"):
        fold_in(tables, 1, [[0]], [1.0])
    for group, message in (([0.5] * 5, "whole number per observation"), ([1, 2], "axis B"), ([np.nan] * 5, "NaN")):
        with pytest.raises(ValueError, match=message):
            fold_in_groups(model, 0, X, y, group)
    for grown in (lambda: add_row(tables, new), lambda: set_row(tables, 0, new), lambda: update_row(tables, new, X, y)):
        with pytest.raises(ValueError, match="new: expected a row of a Categorical mode of this model"):
            grown()
    with pytest.raises(ValueError, match="new: expected what fold_in returns, got Tensor"):
        update_row(model, new.row, X, y)
    for grown in (lambda: add_row(model, np.zeros(3)), lambda: set_row(model, 0, np.zeros(3))):
        with pytest.raises(ValueError, match="new: expected what fold_in returns, got ndarray"):
            grown()
    with pytest.raises(ValueError, match="expected rows of one mode, got 0"):
        add_row(model)
    with pytest.raises(ValueError, match=r"number: expected integers 0..59, got values 60..60"):
        set_row(model, 60, new)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_agrees():
    X = coordinates(25)
    y = noisy(planted(), outputs(planted(), [1.5, 0.2, -1], X))
    y[0] += 100
    model = planted(device="cuda")
    here, there = fold_in(planted(), 0, X, y), fold_in(model, 0, X, y)
    assert there.row.device.type == "cuda"
    assert here.outliers == there.outliers == 1
    np.testing.assert_allclose(here.row, there.row.cpu(), rtol=1e-6)
    assert here.summary() == there.summary()
    later = update_row(model, there, X, y)
    assert add_row(model, later).predict((np.full(25, 60), *X)).shape == (25, 2)
