"""Exact fits of a functional CP: each step against its law, whole fits against planted tensors and closed forms."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from lowrank_rl.rng import numpy_stream, stream
from lowrank_rl.tensor import AdamConfig, CPCompletion, functional_coarse, functional_starts, functional_state
from lowrank_rl.tensor.functional import FunctionalCP, FunctionalModule
from lowrank_rl.tensor.functional_adam import split
from lowrank_rl.tensor.functional_als import ALSConfig, fit_als
from lowrank_rl.tensor.functional_pace import Pace
from lowrank_rl.tensor.functional_starts import Starts, bootstrap
from lowrank_rl.tensor.functional_state import (
    TAIL,
    levenberg_marquardt,
    random_weights,
    rescale,
    set_aside_outliers,
    solve,
    start,
    store,
    sweep,
    update_prior,
)
from lowrank_rl.tensor.modes import Categorical, Fourier, Neural, Polynomial, Spline

TABLE, ACTION = Categorical(8), Categorical(3)
CONTINUOUS = {"polynomial": Polynomial(1, 3), "spline": Spline(1, 5), "fourier": Fourier(1, 12)}


def coordinates(modes, count: int, seed: int = 0) -> list[np.ndarray]:
    draw = numpy_stream(seed, "als", "coordinates")
    return [draw.integers(mode.size, size=count) if isinstance(mode, Categorical) else draw.uniform(-1, 1, (count, mode.inputs))
            for mode in modes]


def begun(modes, output_mode: int, outputs: int, copies: int, *, count: int = 80, rank: int = 2, seed: int = 0):
    """A module and the state of a fit of it to random numbers, copies 2, ... with weights of their own."""
    module = FunctionalModule(modes, rank, outputs, output_mode, copies, generator=stream(seed, "init")).double()
    x = [torch.from_numpy(one) for one in coordinates(modes, count, seed)]
    draw = stream(seed, "begun")
    target = torch.randn((count, outputs), generator=draw, dtype=torch.float64)
    module.prepare(x, target, normalize=False)
    weight = None if copies == 1 else torch.rand((copies, count), generator=draw, dtype=torch.float64)
    with torch.no_grad():
        return module, x, start(module, x, target, 1e-3, copies, weight, draw)


STATES = st.builds(lambda modes, output, outputs, copies, seed: begun([*modes, TABLE], output % (len(modes) + 1), outputs,
                                                                      copies, seed=seed)[2],
                   st.lists(st.sampled_from([TABLE, ACTION, *CONTINUOUS.values()]), min_size=1, max_size=3),
                   st.integers(0, 3), st.integers(1, 2), st.integers(1, 3), st.integers(0, 10**6))


# Steps

@settings(deadline=None, max_examples=30)
@given(STATES, st.floats(1e-6, 1e3))
def test_no_step_raises_the_penalised_loss(state, damping):
    state.damping.fill_(damping)
    before = state.penalized(state.weights)
    for k in [*range(len(state.weights)), 0, 1]:
        solve(state, k)
        after = state.penalized(state.weights)
        assert (after <= before * (1 + 1e-9)).all()
        before = after
    for _ in range(3):
        levenberg_marquardt(state)
        after = state.penalized(state.weights)
        assert (after <= before).all()
        before = after


def test_levenberg_marquardt_steps_only_members_that_gain_and_damps_the_others_more():
    """Full Gauss-Newton steps from random weights overshoot now and then."""
    seen = set()
    for seed in range(8):
        _, _, state = begun([TABLE, CONTINUOUS["polynomial"], ACTION], 1, 1, 3, rank=3, seed=seed)
        state.damping.fill_(1e-8)
        before, weights = state.penalized(state.weights), list(state.weights)
        levenberg_marquardt(state)
        gained = state.penalized(state.weights) < before
        seen |= set(gained.tolist())
        torch.testing.assert_close(state.damping[~gained], torch.full_like(state.damping[~gained], 2e-8))
        assert (state.damping[gained] <= 2e-8).all()
        torch.testing.assert_close(state.reluctance, torch.where(gained, 2.0, 4.0).double())
        for m in (~gained).nonzero()[:, 0]:
            assert all(torch.equal(new[m], old[m]) for new, old in zip(state.weights, weights, strict=True))
    assert seen == {True, False}


def test_damping_falls_where_the_promised_gain_comes_true():
    """Near an optimum the linear model is nearly exact."""
    _, _, state = begun([TABLE, CONTINUOUS["polynomial"]], 1, 1, 1)
    for _ in range(200):
        sweep(state)
    state.weights[1] = state.weights[1] + 1e-2
    state.damping.fill_(1e-9)
    levenberg_marquardt(state)
    assert 0.33e-9 < float(state.damping) < 0.4e-9


def test_levenberg_marquardt_leaves_the_valley_where_sweeps_creep():
    """Columns that are nearly parallel: sweeps need hundreds of rounds for what a few damped steps do."""
    def valley():
        modes = [Categorical(6), Categorical(6), Categorical(6)]
        draw = numpy_stream(3, "valley")
        factors = [np.stack([u, u + 0.5 * v], 1) for u, v in draw.normal(size=(3, 2, 6))]
        index = np.argwhere(np.ones((6, 6, 6)))
        target = np.prod([f[i] for f, i in zip(factors, index.T, strict=True)], 0).sum(1)
        module = FunctionalModule(modes, 2, 1, 2, 1, generator=stream(0)).double()
        x = list(torch.from_numpy(index).T)
        return start(module, x, torch.from_numpy(target)[:, None], 1e-12, 1, None, stream(5, "valley"))
    plain, stepped = valley(), valley()
    for _ in range(40):
        sweep(plain)
    for _ in range(20):
        sweep(stepped)
        levenberg_marquardt(stepped)
    assert stepped.penalized(stepped.weights) < 1e-3 * plain.penalized(plain.weights)


def test_a_sweep_gives_the_normal_matrices_at_each_solve():
    modes = [TABLE, CONTINUOUS["polynomial"], ACTION]
    _, _, state = begun(modes, 1, 2, 2)
    solve(state, 1)
    before = [w.clone() for w in state.weights]
    normal = sweep(state)
    assert list(normal) == [0, 2, 1]          # the outputs' last
    torch.testing.assert_close(normal[0], state.system.linearize(before, [0])[2][0])
    torch.testing.assert_close(normal[1], state.system.linearize(state.weights, [1])[2][0])


@settings(deadline=None, max_examples=20)
@given(STATES)
def test_rescaling_keeps_the_tensor_and_what_rows_cost(state):
    rows = [k for k, p in enumerate(state.penalties) if p.roughness is None and k != state.output_mode]
    for k in rows:
        state.penalties[k].mean += 0.3
    values = [error for *_, error in state.system.errors(state.weights)]
    costs = [state.penalties[k].value(state.weights[k]) for k in rows]
    rescale(state)
    for before, (*_, after) in zip(values, state.system.errors(state.weights), strict=True):
        torch.testing.assert_close(after, before)
    for before, k in zip(costs, rows, strict=True):
        torch.testing.assert_close(state.penalties[k].value(state.weights[k]), before)
    for k, w in enumerate(state.weights):
        if k != state.output_mode:
            size = w.square().mean((1, 2)) if k in rows else w.square().sum((1, 2))
            torch.testing.assert_close(size, torch.ones_like(size))


def test_rescaling_leaves_terms_of_zero_alone():
    _, _, state = begun([TABLE, CONTINUOUS["spline"]], 1, 1, 1)
    state.weights[0][..., 0] = 0
    rescale(state)
    assert all(w.isfinite().all() for w in state.weights)
    assert not state.weights[0][..., 0].any()


def test_the_prior_of_rows_follows_expectation_maximisation():
    """Dempster, Laird and Rubin for a Gaussian random effect: mean of the posterior means, their scatter plus their spread."""
    _, _, state = begun([TABLE, CONTINUOUS["polynomial"], ACTION], 1, 2, 2)
    solve(state, 1)
    normal = solve(state, 0)
    noise = torch.tensor([0.3, 2.0], dtype=torch.float64)
    rows, old = state.weights[0][:, :, 0].numpy().copy(), state.penalties[0].precision.numpy().copy()
    update_prior(state, 0, normal, noise)
    for m in range(2):
        mean = rows[m].mean(0)
        covariance = np.zeros((2, 2))
        for n in range(8):
            posterior = float(noise[m]) * np.linalg.inv(normal[m, n].numpy() + old[m])
            covariance += (np.outer(rows[m, n] - mean, rows[m, n] - mean) + posterior) / 8
        np.testing.assert_allclose(state.penalties[0].mean[m].flatten(), mean, rtol=1e-10)
        np.testing.assert_allclose(state.penalties[0].precision[m], float(noise[m]) * np.linalg.inv(covariance), rtol=1e-7)


def test_entries_count_as_students_t_says():
    """At the fixed point: noise = mean of weighted squares, weight = (nu + D) / (nu + squares / noise)."""
    _, _, state = begun([TABLE, ACTION], 1, 2, 3)
    state.system.target[5] += 1000
    base = state.system.weight
    noise, total = set_aside_outliers(state)
    square = torch.cat([error.square().sum(-1) for *_, error in state.system.errors(state.weights)], 1)
    torch.testing.assert_close(total, (base * square).sum(1))
    weight = state.system.robust
    torch.testing.assert_close(noise, (weight * square).mean(1) / 2, rtol=1e-6, atol=0)
    torch.testing.assert_close(weight, base * (TAIL + 2) / (TAIL + square / noise[:, None]), rtol=1e-3, atol=0)
    others = torch.arange(80) != 5
    assert (weight[:, 5] < 0.1 * base[:, 5]).all()
    assert (weight[:, others] > 0.5 * base[:, others]).all()


def test_what_is_solved_is_what_the_module_computes():
    modes = [TABLE, CONTINUOUS["spline"], ACTION]
    module, x, state = begun(modes, 1, 2, 2)
    sweep(state)
    store(module, state.weights)
    ordered = module([one.expand(2, *one.shape) for one in x]).detach()
    errors = torch.cat([error + state.system.target[rows] for rows, *_, error in state.system.errors(state.weights)], 1)
    torch.testing.assert_close(ordered.flatten(1).sort(1).values, errors.flatten(1).sort(1).values)   # entries by cell


# Whole fits

def planted(things: int, seed: int, noise: float = 0.0, count: int = 3000):
    """A rank-3 tensor of things, a coordinate and 4 actions: its entries, and a function that gives others."""
    draw = numpy_stream(seed, "planted")
    rows, curves, actions = draw.normal(size=(things, 3)), draw.normal(size=(4, 3)), draw.normal(size=(4, 3))

    def value(thing, x, action):
        return (rows[thing] * (chebyshev.chebvander(x, 3) @ curves) * actions[action]).sum(-1)

    def entries(n: int):
        X = draw.integers(things, size=n), draw.uniform(-1, 1, n), draw.integers(4, size=n)
        return X, value(*X)

    X, y = entries(count)
    return X, y + noise * draw.normal(size=count), entries(500)


def fitted(X, y, modes, rank: int = 3, config: ALSConfig | None = None, **settings) -> FunctionalCP:
    return FunctionalCP(modes, rank, solver=config or ALSConfig(), **{"normalize": False, **settings}).fit(X, y)


def things(n: int):
    return [Categorical(n), Polynomial(1, 3), Categorical(4)]


def relative(model: FunctionalCP, X, y) -> float:
    return float(np.sqrt(np.mean((model.predict(X) - y) ** 2)) / y.std())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_planted_tensor_is_recovered(seed):
    X, y, unseen = planted(40, seed)
    model = fitted(X, y, things(40), config=ALSConfig(regularization=1e-9))
    assert relative(model, *unseen) < 1e-6
    assert model.history_[-1]["loss"] < 1e-12
    below = fitted(X, y, things(40), rank=2, config=ALSConfig(regularization=1e-9, sweeps=15))
    assert relative(below, *unseen) > 1e-2


def test_noise_is_averaged_out():
    X, y, unseen = planted(40, 0, noise=0.3)
    model = fitted(X, y, things(40))
    unknowns = 3 * (40 + 4 + 4)
    assert relative(model, *unseen) * np.std(unseen[1]) < 1.2 * 0.3 * math.sqrt(unknowns / 3000)
    assert float(model.module_.noise) == pytest.approx(0.3 ** 2, rel=0.15)


def test_of_spare_starts_the_one_with_the_lowest_loss_stays():
    X, y, _ = planted(10, 3, count=300)
    alone = [fitted(X, y, things(10), config=ALSConfig(sweeps=2, spare=spare), members=1) for spare in (0, 1, 5)]
    errors = [float(((model.predict(X) - y) ** 2).mean()) for model in alone]
    assert errors[2] < errors[0]
    assert errors[2] == pytest.approx(alone[2].history_[-1]["loss"] * float(alone[2].module_.scale) ** 2, rel=1e-6)


def test_spare_starts_of_a_member_count_entries_alike():
    """Only members differ in how they count entries: with noise, the best of spare starts is the plain least-squares fit."""
    X, y, _ = planted(40, 0, noise=0.3)
    one = fitted(X, y, things(40), config=ALSConfig(tol=1e-6), members=1)
    spare = fitted(X, y, things(40), config=ALSConfig(tol=1e-6, spare=2), members=1)
    assert spare.history_[-1]["loss"] == pytest.approx(one.history_[-1]["loss"], rel=1e-2)


def test_thebootstrap_counts_entries_at_random_with_mean_one_but_for_the_first_member():
    weight = bootstrap(3, 20_000, stream(0), torch.device("cpu"))
    assert (weight[0] == 1).all()
    assert (weight > 0).all()
    torch.testing.assert_close(weight.mean(1), torch.ones(3, dtype=torch.float64))
    np.testing.assert_allclose(weight[1:].std(1), 1, atol=0.05)                    # exponential: Rubin's Bayesian bootstrap
    assert abs(np.corrcoef(weight[1:])[0, 1]) < 0.05
    assert bootstrap(1, 5, stream(0), torch.device("cpu")) is None


def test_members_disagree_about_as_much_as_noise_leaves_open():
    X, y, unseen = planted(40, 2, noise=0.3)
    few = ALSConfig(sweeps=40)
    three = fitted(X, y, things(40), config=few, members=3).predict_members(unseen[0])
    assert three.shape == (3, 500)
    spread = three.std(0).mean()
    assert 0.02 < spread < 0.3


def test_same_seed_same_bits_other_seed_others():
    X, y, unseen = planted(10, 0, noise=0.1, count=300)
    few = ALSConfig(sweeps=3)
    one, two, other = (fitted(X, y, things(10), config=few, members=2, random_state=s).predict(unseen[0]) for s in (5, 5, 6))
    assert np.array_equal(one, two)
    assert not np.allclose(one, other)


def test_a_row_without_enough_entries_falls_back_on_the_mean_row():
    """Rows far from zero, rank 2: thing 0 is never seen, thing 1 once, and neither is NaN or zero."""
    draw = numpy_stream(0, "few")
    rows = np.stack([5 + draw.normal(size=60), -2 + 0.5 * draw.normal(size=60)], 1)
    thing = np.concatenate([[1], np.repeat(np.arange(2, 60), 30)])
    x = draw.uniform(-1, 1, len(thing))
    y = rows[thing, 0] * np.cos(x) + rows[thing, 1] * x + 0.01 * draw.normal(size=len(thing))
    model = fitted((thing, x), y, [Categorical(60), Polynomial(1, 5)], rank=2)
    grid = np.linspace(-1, 1, 30)
    seen = np.stack([model.predict((np.full(30, n), grid)) for n in range(2, 60)])
    unseen, once = (model.predict((np.full(30, n), grid)) for n in (0, 1))
    np.testing.assert_allclose(unseen, seen.mean(0), atol=0.05)
    between = seen.std(0)
    assert (np.abs(once - seen.mean(0)) < 4 * between).all()
    assert abs(model.predict((thing[:1], x[:1]))[0] - y[0]) < 0.1      # its one entry counts
    row = model.module_.modes[0].rows()[0].detach().numpy()
    np.testing.assert_allclose(row[0], row[2:].mean(0), rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_rank_above_what_the_modes_can_carry_is_harmless(kind):
    """Two things and a curve: at most rank 2. The four further terms share what there is."""
    draw = numpy_stream(0, "rank")
    X = draw.integers(2, size=400), draw.uniform(-1, 1, 400)
    y = np.where(X[0] == 0, X[1], X[1] ** 2 - 0.5)
    model = fitted(X, y, [Categorical(2), CONTINUOUS[kind]], rank=6)
    grid = np.linspace(-0.9, 0.9, 50)
    atol = 1e-3 if kind == "polynomial" else 2e-2
    np.testing.assert_allclose(model.predict((np.zeros(50, dtype=int), grid)), grid, atol=atol)
    np.testing.assert_allclose(model.predict((np.ones(50, dtype=int), grid)), grid ** 2 - 0.5, atol=atol)


@pytest.mark.parametrize("modes", [[Categorical(30), Spline(1, 40)], [Categorical(2), Fourier(1, 200)],
                                   [Categorical(30), Polynomial(2, 8), Categorical(3)]])
@pytest.mark.parametrize("regularization", [1e-6, 1e-300])
def test_more_unknowns_than_entries_give_no_nan(modes, regularization):
    X = coordinates(modes, 15)
    y = numpy_stream(0, "singular").normal(size=15)
    model = fitted(X, y, modes, config=ALSConfig(sweeps=6, regularization=regularization), members=2)
    assert np.isfinite(model.predict_members(X)).all()
    assert np.isfinite(model.predict(coordinates(modes, 50, seed=1))).all()
    assert all(math.isfinite(entry["loss"]) for entry in model.history_)


@pytest.mark.parametrize("mode", [*CONTINUOUS.values(), Neural(1, (6,))])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("members", [1, 2])
def test_targets_without_news_are_fitted(mode, normalize, members):
    modes = [Categorical(12), mode, ACTION]
    X = coordinates(modes, 600)
    for y, rank, tolerance in ((np.zeros(600), 2, 1e-12), (np.full(600, 3.7), 1, 1e-3)):
        model = fitted(X, y, modes, rank=rank, config=ALSConfig(sweeps=30), normalize=normalize, members=members)
        np.testing.assert_allclose(model.predict(X), y, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*constant:UserWarning")
@pytest.mark.parametrize("mode", [*CONTINUOUS.values(), Neural(1, (6,))])
@pytest.mark.parametrize("normalize", [True, False])
def test_one_entry_is_fitted(mode, normalize):
    modes = [Categorical(12), mode, ACTION]
    X = coordinates(modes, 1)
    model = fitted(X, [2.5], modes, config=ALSConfig(sweeps=4), normalize=normalize)
    np.testing.assert_allclose(model.predict(X), 2.5, atol=1e-3)
    assert np.isfinite(model.predict(coordinates(modes, 20, seed=1))).all()


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_a_constant_coordinate_warns_where_fit_was_called(kind):
    modes = [Categorical(12), CONTINUOUS[kind]]
    X = coordinates(modes, 60)
    y = 1.0 + X[0]
    with pytest.warns(UserWarning, match=f"{kind.title()} mode: its coordinate is constant") as caught:
        model = FunctionalCP(modes, 1, solver=ALSConfig(sweeps=3)).fit((X[0], np.full(60, 0.1)), y)
    assert [warning.filename for warning in caught] == [__file__]
    np.testing.assert_allclose(model.predict((X[0], np.full(60, 0.1))), y, atol=1e-3)
    assert np.isfinite(model.predict(X)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FunctionalCP(modes, 1, solver=ALSConfig(sweeps=3)).fit(X, y)


def test_als_and_adam_reach_the_least_squares_of_a_convex_problem():
    """One thing, one term: a polynomial regression, which NumPy solves in closed form."""
    draw = numpy_stream(0, "convex")
    x = draw.uniform(-1, 1, 200)
    y = np.sin(2 * x) + 0.5 * draw.normal(size=200)
    X = np.zeros(200, dtype=int), x
    best = chebyshev.Chebyshev.fit(x, y, 3)(x)
    modes = [Categorical(1), Polynomial(1, 3)]
    np.testing.assert_allclose(fitted(X, y, modes, rank=1).predict(X), best, atol=1e-4)
    adam = FunctionalCP(modes, 1, normalize=False, solver=AdamConfig(epochs=200, batch=200, learning_rate=0.05)).fit(X, y)
    np.testing.assert_allclose(adam.predict(X), best, atol=1e-2)


def test_tables_alone_agree_with_discrete_completion():
    draw = numpy_stream(0, "tables")
    factors = [draw.normal(size=(n, 2)) for n in (6, 5, 4)]
    tensor = np.einsum("ir,jr,kr->ijk", *factors) + 0.1 * draw.normal(size=(6, 5, 4))
    index = np.argwhere(np.ones(tensor.shape))
    X = tuple(index.T)
    peer = CPCompletion(rank=2, shape=tensor.shape, regularization=1e-9).fit(index, tensor.ravel()).predict(index)
    ours = fitted(X, tensor.ravel(), [Categorical(n) for n in tensor.shape], rank=2,
                  config=ALSConfig(sweeps=300, tol=1e-9, regularization=1e-9)).predict(X)
    np.testing.assert_allclose(ours, peer, atol=1e-3)      # the noise is a hundred times that


def test_networks_learn_between_exact_solves():
    draw = numpy_stream(0, "network")
    X = draw.integers(6, size=400), draw.uniform(-1, 1, (400, 2))
    y = (1 + X[0]) * np.sin(2 * X[1][:, 0] + X[1][:, 1])
    modes = [Categorical(6), Neural(2, (4,), "tanh")]
    frozen = fitted(X, y, modes, rank=1, config=ALSConfig(sweeps=40, learning_rate=1e-12), normalize=True)
    learned = fitted(X, y, modes, rank=1, config=ALSConfig(sweeps=40, learning_rate=3e-2, batch=32), normalize=True)
    assert learned.history_[-1]["loss"] < 0.3 * frozen.history_[-1]["loss"]
    assert relative(learned, X, y) ** 2 == pytest.approx(learned.history_[-1]["loss"], rel=1e-2)


def test_early_stopping_keeps_the_weights_of_the_best_sweep():
    X, y, _ = planted(40, 1, noise=1.0, count=400)
    seen: list[dict] = []
    config = ALSConfig(sweeps=50, held_out=0.3, patience=4, regularization=1e-9, tol=0)
    model = FunctionalCP(things(40), 5, normalize=False, solver=config).fit(X, y, progress=seen.append)
    best = min(entry["held_out"] for entry in seen)
    assert "no better held-out loss for 4 sweeps" in model.stopped_
    assert seen[-5]["held_out"] == best
    assert (seen[0]["epoch"], seen[0]["step"]) == (1, "sweep")


@pytest.mark.parametrize("mode", [*CONTINUOUS.values(), Spline(2, (3, 4), 2), Neural(1, (6,)), Categorical(9)])
@pytest.mark.parametrize("solver", [ALSConfig(sweeps=3, regularization=(1e-6, 1e-5)), AdamConfig(epochs=1)])
@pytest.mark.parametrize("first", [True, False])
def test_a_saved_model_predicts_the_same_bits(mode, solver, first, tmp_path):
    modes = [mode, ACTION] if first else [ACTION, mode]
    X = coordinates(modes, 60)
    model = FunctionalCP(modes, 2, outputs=2, members=2, solver=solver).fit(X, numpy_stream(0, "y").normal(size=(60, 2)))
    model.save(tmp_path / "model")
    loaded = FunctionalCP.load(tmp_path / "model")
    assert (loaded.modes, loaded.solver) == (modes, solver)
    assert np.array_equal(loaded.predict_members(X), model.predict_members(X))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: ALSConfig(sweeps=0), "sweeps: expected a whole number >= 1, got 0"),
    (lambda: ALSConfig(spare=-1), "spare: expected a whole number >= 0, got -1"),
    (lambda: ALSConfig(regularization=0), "regularization: expected numbers above 0, got 0"),
    (lambda: ALSConfig(regularization=(1e-3, math.nan)), r"regularization: expected numbers above 0, got \(0.001, nan\)"),
    (lambda: ALSConfig(tol=1), r"tol: expected a share in \[0, 1\), got 1"),
    (lambda: ALSConfig(learning_rate=math.inf), "learning_rate: expected a number above 0, got inf"),
    (lambda: ALSConfig(held_out=1.5), r"held_out: expected a fraction in \[0, 1\), got 1.5"),
    (lambda: ALSConfig(patience=3), "patience: expected held_out > 0 beside it, got 0"),
    (lambda: fitted(*planted(5, 0, count=20)[:2], things(5), config=ALSConfig(regularization=(1e-3, 1e-3))),
     "regularization: expected one number or 3, one per mode, got 2"),
    (lambda: fitted(*planted(5, 0, count=20)[:2], [Categorical(5), Neural(1), Categorical(4)], config=ALSConfig(spare=1)),
     "spare: expected 0 where a mode is Neural, got 1"),
])
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_early_stopping_brings_the_hidden_layers_back_too():
    """The model that is kept scores what its best sweep scored: last layers fit the hidden layers that they were solved for."""
    rng = np.random.default_rng(0)
    thing, x = rng.integers(4, size=200), rng.uniform(-2, 2, 200)
    y = np.sin(2 * x) * (1 + thing) + 0.3 * rng.standard_normal(200)
    config = ALSConfig(sweeps=30, held_out=0.3, patience=2, learning_rate=0.03, batch=32)
    model = FunctionalCP([Categorical(4), Neural(1, hidden=(24,))], rank=2, solver=config).fit((thing, x), y)
    losses = [entry["held_out"] for entry in model.history_]
    assert len(losses) == int(np.argmin(losses)) + 3, "stopped two sweeps after the best"
    _, held_out = split(200, 0.3, 2, stream(0, "functional", "order"), torch.device("cpu"))
    held_out = held_out.numpy()
    error = (model.predict((thing[held_out], x[held_out])) - y[held_out]) / float(model.module_.scale)
    assert float((error ** 2).mean()) == pytest.approx(min(losses), rel=1e-3)


def test_a_member_in_a_false_minimum_begins_anew(monkeypatch):
    """At zero everywhere nothing moves; another member's loss tells that this cannot be all."""
    def stuck(*arguments):
        weights = random_weights(*arguments)
        for w in weights:
            w[1] = 0
        return weights
    monkeypatch.setattr(functional_state, "random_weights", stuck)
    X = coordinates([Categorical(9), Polynomial(1, 2)], 300)
    y = np.random.default_rng(0).normal(size=9)[X[0]] * (1 + X[1][:, 0] ** 2)
    modes = [Categorical(9), Polynomial(1, 2)]
    model = FunctionalCP(modes, rank=1, members=2, normalize=False, solver=ALSConfig(tol=0.01)).fit(X, y)
    np.testing.assert_allclose(model.predict_members(X)[1], y, atol=1e-3)
    few = FunctionalCP(modes, rank=1, members=2, normalize=False, solver=ALSConfig(tol=0.01, sweeps=4)).fit(X, y)
    assert few.history_[-1]["loss"] > 0.3                 # before it has had its time


@pytest.mark.parametrize("seed", range(4))
def test_a_lost_member_goes_on_from_the_best_ones_weights(monkeypatch, seed):
    """It starts at zero, and would find nothing but zero by starting anew; yet it ends where the best one does."""
    def stuck(*arguments):
        weights = random_weights(*arguments)
        for w in weights:
            w[1] = 0
        return weights
    monkeypatch.setattr(functional_state, "random_weights", stuck)
    monkeypatch.setattr(functional_starts, "random_weights", lambda *what: [0 * w for w in random_weights(*what)])
    modes = [Categorical(9), Polynomial(1, 2)]
    X = coordinates(modes, 300)
    y = np.random.default_rng(seed).normal(size=9)[X[0]] * (1 + X[1][:, 0] ** 2)

    def losses(members):
        model = FunctionalCP(modes, rank=1, members=members, normalize=False, solver=ALSConfig(tol=0.01), random_state=seed)
        return ((model.fit(X, y).predict_members(X) - y) ** 2).mean(1)
    together = losses(2)
    assert together[1] < 1e-6 > together[0]
    monkeypatch.setattr(Pace, "lost", lambda pace, lowest, number: False)
    left_alone = losses(2)
    assert left_alone[1] == pytest.approx((y ** 2).mean(), rel=1e-6)


def test_a_lost_spare_start_begins_anew_at_random(monkeypatch):
    """From the weights of the best of the same member it would only find what is found; another member's lost start does go
    on from them."""
    monkeypatch.setattr(Pace, "lost", lambda pace, lowest, number: number == 6 and float(pace.total) > lowest)
    modes = [Categorical(20), CONTINUOUS["polynomial"], ACTION]
    module, x, _ = begun(modes, 1, 2, 2)
    target = torch.randn((len(x[0]), 2), generator=stream(1), dtype=torch.float64)
    renewed = []
    monkeypatch.setattr(functional_state.State, "renew", lambda state, weights, beginning: renewed.append((state, weights)))
    starts = Starts(module, x, target, None, stream(0), regularization=1e-3, sweeps=20, tol=0.0, each=2, networks=False,
                    priors=True)
    with torch.no_grad():
        starts.begin()
        for number in range(1, 6):
            starts.improve(number)
        assert renewed == []
        starts.improve(6)
    best = int(starts.losses().argmin())
    assert len(renewed) == 3                                # all but the best
    for state, weights in renewed:
        number = next(i for i, group in enumerate(starts.groups) if group is state)
        from_best = all(a is b for a, b in zip(weights, starts.groups[best].weights, strict=True))
        assert from_best == (number // 2 != best // 2)


def test_who_begins_anew_keeps_nothing_but_other_weights(monkeypatch):
    monkeypatch.setattr(Pace, "lost", lambda pace, lowest, number: number == 6)
    modes = [Categorical(20), CONTINUOUS["polynomial"], ACTION]
    module, x, _ = begun(modes, 1, 2, 3)
    target = torch.randn((len(x[0]), 2), generator=stream(1), dtype=torch.float64)

    def starts(sweeps: int) -> dict[str, torch.Tensor]:
        those = Starts(module, x, target, None, stream(0), regularization=1e-3, sweeps=20, tol=0.0, each=1, networks=False,
                       priors=True)
        with torch.no_grad():
            those.begin()
            for number in range(1, sweeps + 1):
                those.improve(number)
        return those.tensors()
    fresh, anew = starts(0), starts(6)
    assert set(anew) == set(fresh)
    for name, value in anew.items():
        if "weight" in name:
            assert not torch.allclose(value, fresh[name])
        elif not any(word in name for word in ("used", "total", "_slow", "_wait", "began")):
            assert torch.equal(value, fresh[name]), name


# Interrupted and resumed

LONG_FITS = {
    "two phases": ([Categorical(20), Spline(1, 5), ACTION], ALSConfig(sweeps=12, tol=0.5, spare=1), 2),
    "few cells first": ([Categorical(20), Spline(1, 24), ACTION], ALSConfig(sweeps=12, tol=0, spare=1), 2),
    "steps": ([TABLE, CONTINUOUS["polynomial"], ACTION], ALSConfig(sweeps=9, tol=0), 1),
    "networks": ([TABLE, Neural(1, hidden=(8,)), ACTION], ALSConfig(sweeps=9, tol=0), 2),
    "networks and early stopping": ([TABLE, Neural(1, hidden=(8,)), ACTION],
                                    ALSConfig(sweeps=12, tol=0, held_out=0.2, patience=5, learning_rate=0.05), 1)}


def run(name: str, **options) -> torch.Tensor:
    """All bits of a fit of a planted tensor, and its losses."""
    modes, config, members = LONG_FITS[name]
    x = [torch.from_numpy(one).float() if one.dtype == float else torch.from_numpy(one) for one in coordinates(modes, 300)]
    draw = stream(1, "long")
    target = torch.cos(3 * x[1]) * torch.randn(20, generator=draw)[x[0], None] + 0.1 * torch.randn((300, 1), generator=draw)
    module = FunctionalModule(modes, 2, 1, 1, members, generator=stream(0))
    if not any(isinstance(mode, Neural) for mode in modes):
        module, x, target = module.double(), [one.double() if one.is_floating_point() else one for one in x], target.double()
    module.prepare(x, target, normalize=False)
    fit = fit_als(module, x, target, config, generator=stream(2), checkpoint_seconds=0, **options)
    return torch.cat([*(p.flatten() for p in module.state_dict().values()), torch.tensor([e["loss"] for e in fit.history])])


@pytest.mark.parametrize("name", LONG_FITS)
def test_a_killed_fit_goes_on_to_the_same_bits(name, tmp_path, monkeypatch):
    if name == "few cells first":
        monkeypatch.setattr(functional_coarse, "FEW", 30)
    def kill(at: int):
        def progress(entry: dict) -> None:
            if entry["epoch"] == at:
                raise KeyboardInterrupt
        return progress
    whole = run(name)
    for at in (3, 6, 7):
        with pytest.raises(KeyboardInterrupt):
            run(name, checkpoint=tmp_path / "fit", progress=kill(at))
    epochs = []
    assert torch.equal(run(name, checkpoint=tmp_path / "fit", progress=lambda entry: epochs.append(entry["epoch"])), whole)
    assert epochs[0] == 7
    assert list(tmp_path.iterdir()) == []


def test_a_fit_of_other_data_starts_anew(tmp_path):
    def stop(entry: dict) -> None:
        if entry["epoch"] == 4:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        run("steps", checkpoint=tmp_path / "fit", progress=stop)
    epochs = []
    run("two phases", checkpoint=tmp_path / "fit", progress=lambda entry: epochs.append(entry["epoch"]))
    assert epochs[0] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_comes_to_the_same_fit():
    """There, members are one batch instead of side by side."""
    X = coordinates([Categorical(20), Spline(1, 6), ACTION], 400)
    y = np.random.default_rng(0).normal(size=20)[X[0]] * np.sin(3 * X[1][:, 0]) * (1 + X[2])
    models = [FunctionalCP([Categorical(20), Spline(1, 6), ACTION], rank=2, members=2, device=device,
                           solver=ALSConfig(sweeps=10, tol=0)).fit(X, y) for device in ("cpu", "cuda")]
    losses = [[entry["loss"] for entry in model.history_] for model in models]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    np.testing.assert_allclose(models[1].predict(X), models[0].predict(X), atol=1e-4)
