"""Intervals: draws against dense matrices, the factor against counting, coverage on problems whose law is known."""

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt

from lowrank_rl.rl import data
from lowrank_rl.rl.bench import cases
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor import CPCompletion
from lowrank_rl.tensor.functional import FunctionalCP
from lowrank_rl.tensor.functional_adam import AdamConfig
from lowrank_rl.tensor.functional_als import ALSConfig
from lowrank_rl.tensor.modes import Categorical, Fourier, Neural, Polynomial, Spline
from lowrank_rl.tensor.plots.uncertainty import plot_calibration
from lowrank_rl.tensor.posterior import posterior
from lowrank_rl.tensor.sensitivity import derivative
from lowrank_rl.tensor.support import Support
from lowrank_rl.tensor.uncertainty import METHODS, Intervals

SOLVER = ALSConfig(regularization=1e-3, sweeps=40)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cut(X, y, *lengths):
    """(X, y) in consecutive parts."""
    ends = np.cumsum(lengths)
    return [(tuple(x[end - n:end] for x in X), y[end - n:end]) for n, end in zip(lengths, ends, strict=True)]


def mixed(seed, n, agents=40):
    """Agent x cubic polynomial x action, rank 2, noise 0.3."""
    draw = numpy_stream(seed, "mixed")
    u, w, c = draw.normal(size=(agents, 2)), draw.normal(size=(3, 2)), draw.normal(size=(4, 2))
    agent, x, action = draw.integers(agents, size=n), draw.uniform(-1, 1, n), draw.integers(3, size=n)
    mean = (u[agent] * (np.vander(x, 4) @ c) * w[action]).sum(1)
    return (agent, x, action), mean + 0.3 * draw.normal(size=n), [Categorical(agents), Polynomial(1, 3), Categorical(3)], 2


def discrete(seed, n):
    """20 x 20 x 10 tensor of rank 3, noise 0.5."""
    draw = numpy_stream(seed, "discrete")
    factors = [draw.normal(size=(m, 3)) for m in (20, 20, 10)]
    X = tuple(draw.integers(len(f), size=n) for f in factors)
    mean = np.prod([f[x] for f, x in zip(factors, X, strict=True)], axis=0).sum(1)
    return X, mean + 0.5 * draw.normal(size=n), [Categorical(len(f)) for f in factors], 3


def misfit(seed, n):
    """Two outputs whose noise has heavy tails and other sizes, and a function that the features only come near."""
    draw = numpy_stream(seed, "misfit")
    u, w, c = draw.normal(size=(30, 2)), draw.normal(size=(3, 2)), draw.normal(size=(2, 2, 2))
    agent, x, action = draw.integers(30, size=n), draw.uniform(-1, 1, (n, 2)), draw.integers(3, size=n)
    mean = (u[agent, None] * np.einsum("bi,iod->bod", np.abs(x), c) * w[action, None]).sum(-1)
    return (agent, x, action), mean + draw.standard_t(4, size=(n, 2)) * [0.1, 0.5], \
        [Categorical(30), Fourier(2, 40), Categorical(3)], 2


def fitted(problem, seed, n, held, test, **settings):
    X, y, modes, rank = problem(seed, n + held + test)
    parts = cut(X, y, n, held, test)
    model = FunctionalCP(modes, rank=rank, outputs=1 if y.ndim == 1 else y.shape[1],
                         **{"members": 2, "solver": SOLVER, "random_state": seed, **settings})
    return model.fit(*parts[0]), parts


# The posterior

def dense_posterior(model, X, noise):
    """Covariance of the first member's weights, and a function that gives the Jacobian at coordinates: all in matrices."""
    module, share, B = model.module_, model.solver.regularization, len(X[0])
    tables = [mode.rows() if hasattr(mode, "table") else mode.weight for mode in module.modes]
    weights = [table.detach()[0].unflatten(-1, (-1, module.rank)) for table in tables]                  # (F, D or 1, R)
    sizes = [w.numel() for w in weights]

    def jacobian(X):
        x = [module.scaled(k, torch.as_tensor(x)) for k, x in enumerate(X)]
        features = [mode.basis(c[:, None]) if hasattr(mode, "basis") else torch.eye(mode.table.shape[1], dtype=torch.float64)[c]
                    for mode, c in zip(module.modes, x, strict=True)]

        def predict(flat):
            parts = [p.view_as(w) for p, w in zip(flat.split(sizes), weights, strict=True)]
            first, second, third = (torch.einsum("bf,fdr->bdr", f, p) for f, p in zip(features, parts, strict=True))
            return (first * second * third).sum(-1)

        return torch.autograd.functional.jacobian(predict, torch.cat([w.flatten() for w in weights]))   # (B, D, weights)

    blocks = []
    for mode, w in zip(module.modes, weights, strict=True):
        matrix = B * mode.basis.roughness() if hasattr(mode, "basis") else B / len(w) * torch.eye(len(w), dtype=torch.float64)
        blocks.append(torch.kron(share * matrix, torch.eye(w[0].numel(), dtype=torch.float64)))
    penalty, J = torch.block_diag(*blocks), jacobian(X)
    inverse = torch.linalg.inv(torch.einsum("bdi,bdj->ij", J, J) + penalty)
    middle = torch.einsum("bdi,d,bdj->ij", J, noise, J) + noise.mean() * penalty
    return inverse @ middle @ inverse, jacobian


@pytest.mark.parametrize("outputs", [1, 2])
def test_draws_have_the_dense_covariance(outputs):
    draw, n, same = numpy_stream(outputs, "dense"), 60, 250
    X = (draw.integers(6, size=n), draw.uniform(-1, 1, n), draw.integers(2, size=n))
    y = draw.normal(size=(n, outputs)) + np.sin(X[1])[:, None] * (1 + X[0][:, None])
    model = FunctionalCP([Categorical(6), Polynomial(1, 2), Categorical(2)], rank=2, outputs=outputs, members=same,
                         solver=ALSConfig(regularization=0.05, sweeps=3)).fit(X, y)
    for parameter in model.module_.parameters():
        parameter.data[:] = parameter.data[:1].clone()       # equal members: one posterior, many draws at once
    noise = torch.tensor([0.5, 0.02], dtype=torch.float64)[:outputs]
    covariance, jacobian = dense_posterior(model, X, noise)
    found = posterior(model, [model.module_.scaled(k, torch.as_tensor(x)[:, None] if k == 1 else torch.as_tensor(x))
                              for k, x in enumerate(X)], noise, draws=4000, seed=0)
    new = (np.array([0, 1, 5, 3, 2]), np.array([-0.9, 0.1, 2.0, 0.7, -3.0]), np.array([0, 1, 1, 0, 1]))
    J = jacobian(new)
    expected = torch.einsum("bdi,ij,bdj->bd", J, covariance, J)
    got = found.variance([model.module_.scaled(k, torch.as_tensor(x)[:, None] if k == 1 else torch.as_tensor(x))
                          for k, x in enumerate(new)])
    np.testing.assert_allclose(got, expected, rtol=0.08)      # 4000 draws: 2.2% standard error each


def test_a_row_without_entries_varies_as_the_rows_do():
    X, y, modes, rank = mixed(0, 6000, agents=60)
    known = X[0] < 59
    model = FunctionalCP(modes, rank=rank, solver=SOLVER).fit(tuple(x[known] for x in X), y[known])
    intervals = Intervals.fit(model, tuple(x[known] for x in X), y[known], cut(X, y, 500)[0][0], y[:500])
    grid = np.linspace(-1, 1, 9)

    def at(agent):
        return np.full(9, agent), grid, np.zeros(9, dtype=int)
    spread = np.std([model.predict(at(agent)) for agent in range(59)], axis=0)
    sd = intervals.deviation(at(59))
    assert np.all(np.abs(np.log(sd / np.hypot(spread, 0.3))) < np.log(1.35))
    assert np.median(intervals.deviation(at(3))) < 0.4       # one with a hundred entries: noise, mostly


def test_deviations_shrink_with_entries_and_grow_beyond_them():
    few, parts = fitted(mixed, 1, 300, 200, 1, members=1)
    many, more = fitted(mixed, 1, 3000, 200, 1, members=1)
    inside, beyond = cut(*mixed(1, 500)[:2], 500)[0][0], (np.zeros(5, int), np.linspace(2, 3, 5), np.zeros(5, int))
    small, large = (Intervals.fit(m, *p[0], *p[1], draws=12) for m, p in ((few, parts), (many, more)))
    excess = [np.mean(i.deviation(inside) ** 2 - float(i.noise[0] * i.model.module_.scale[0] ** 2)) for i in (small, large)]
    assert excess[0] > 5 * excess[1] > 0
    assert large.deviation(beyond).min() > 1.5 * large.deviation(inside).max()


# The factor

@given(n=st.integers(1, 60), level=st.floats(0.01, 0.99))
def test_whatever_its_rank_a_new_score_is_covered_often_enough(n, level):
    """All n + 1 ranks of a new score among distinct ones are equally likely: count those whose score is inside."""
    def inside(rank):
        held = np.delete(np.arange(n + 1.0), rank)[:, None]
        return rank <= Intervals(None, "both", torch.ones(1), None, held).factor(level)[0]

    if level > n / (n + 1):
        with pytest.raises(ValueError, match="hold out more"):
            inside(0)
    else:
        assert level - 1e-6 <= np.mean([inside(rank) for rank in range(n + 1)]) < level + 1 / (n + 1) + 1e-6


def test_the_factor_of_99_scores_by_hand():
    held = np.stack([np.arange(1.0, 100), 10 * np.arange(1.0, 100)], 1)
    intervals = Intervals(None, "both", torch.ones(2), None, held)
    np.testing.assert_array_equal(intervals.factor(0.9), [90, 900])
    np.testing.assert_array_equal(intervals.factor(0.99), [99, 990])
    with pytest.raises(ValueError, match=r"expected at most 0.99 with 99 held-out entries, got 0.991; hold out more"):
        intervals.factor(0.991)


# Coverage

@pytest.mark.parametrize(("problem", "n"), [(mixed, 250), (mixed, 2000), (discrete, 1500), (misfit, 1000)])
@pytest.mark.parametrize("seed", [0, 1])
def test_ninety_percent_intervals_cover_ninety_percent(problem, n, seed):
    model, (train, held, new) = fitted(problem, seed, n, 1500, 4000)
    for method in METHODS:
        intervals = Intervals.fit(model, *train, *held, method=method, draws=12)
        assert np.all(np.abs(intervals.coverage(*new) - 0.9) < 0.03)
        assert np.all(np.abs(intervals.coverage(*new, 0.5) - 0.5) < 0.05)


def test_the_posterior_knows_which_entries_are_uncertain():
    """Where it is least sure, its intervals still hold; those of one width for all do not."""
    model, (train, held, new) = fitted(mixed, 0, 300, 1500, 4000, members=1)
    intervals = Intervals.fit(model, *train, *held)
    low, high = intervals.predict(new[0])
    worst = high - low > np.quantile(high - low, 0.9)
    one_width = np.quantile(np.abs(held[1] - model.predict(held[0])), 0.9)
    assert ((low <= new[1]) & (new[1] <= high))[worst].mean() > 0.8
    assert (np.abs(new[1] - model.predict(new[0])) <= one_width)[worst].mean() < 0.7
    assert 1 < intervals.factor(0.9)[0] / 1.645 < 1.5         # nearly right before any held-out entry is seen


SPACES = {"mountaincar": (40, Spline(2, (8, 8)), 3, ALSConfig(tol=0.01, sweeps=8)),
          "cartpole": (400, Polynomial(4, 3), 5, ALSConfig(regularization=1e-10, sweeps=10))}


@pytest.mark.parametrize("name", SPACES)
def test_one_step_of_a_simulator_is_covered(name):
    agents, state_mode, rank, solver = SPACES[name]
    environment = cases.ENVIRONMENTS[name]
    covariates = data.agents(environment, agents, seed=0)
    steps = data.collect(environment, covariates, torch.arange(agents),
                         cases.BEHAVIOUR["random"](environment, covariates), seed=0, what="random", max_steps=150).transitions()
    order = torch.from_numpy(numpy_stream(0, "split").permutation(len(steps.agent)))
    X, y = (steps.agent[order], steps.state[order], steps.action[order, 0]), (steps.next_state - steps.state)[order]
    train, held, new = cut(X, y, len(y) - 5000, 2000, 3000)
    model = FunctionalCP([Categorical(agents), state_mode, Categorical(environment.actions.n)], rank=rank,
                         outputs=y.shape[1], output_mode=1, members=2, solver=solver).fit(*train)
    intervals = Intervals.fit(model, *train, *held, draws=8)
    assert np.all(np.abs(intervals.coverage(*new) - 0.9) < 0.03)


# What goes in and out

def test_both_adds_the_variances():
    model, (train, held, new) = fitted(misfit, 0, 500, 300, 50)
    by = {method: Intervals.fit(model, *train, *held, method=method, draws=6) for method in METHODS}
    noise = (by["both"].noise * model.module_.scale ** 2).numpy()
    square = {method: by[method].deviation(new[0]) ** 2 - noise for method in METHODS}
    members = model.predict_members(new[0])
    np.testing.assert_allclose(square["ensemble"], members.var(0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(square["both"], square["laplace"] + square["ensemble"], rtol=1e-9)


def test_of_one_member_both_is_the_posterior_alone():
    model, (train, held, new) = fitted(mixed, 0, 300, 200, 20, members=1)
    one, two = (Intervals.fit(model, *train, *held, method=method, draws=4) for method in ("both", "laplace"))
    np.testing.assert_array_equal(one.deviation(new[0]), two.deviation(new[0]))


def test_noise_is_that_of_most_entries_per_output():
    model, (train, held, _) = fitted(misfit, 0, 3000, 200, 1)
    spoiled = train[1].copy()
    spoiled[:30] += 1000
    sound, odd = (Intervals.fit(model, train[0], y, *held, method="ensemble") for y in (train[1], spoiled))
    np.testing.assert_allclose(odd.noise, sound.noise, rtol=0.1)
    sd = (sound.noise.sqrt() * model.module_.scale).numpy()
    np.testing.assert_allclose(sd, np.quantile(np.abs(train[1] - model.predict(train[0])), 0.6827, axis=0), rtol=0.01)


def test_the_same_seed_gives_the_same_intervals():
    model, (train, held, new) = fitted(mixed, 0, 300, 200, 20)
    first, again, other = (Intervals.fit(model, *train, *held, draws=4, seed=seed).predict(new[0])[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("problem", [mixed, misfit])
def test_tensors_in_tensors_out_and_shaped_as_predictions(problem):
    model, (train, held, new) = fitted(problem, 0, 300, 200, 20)
    intervals = Intervals.fit(model, *train, *held, draws=4)
    low, high = intervals.predict(new[0])
    assert isinstance(low, np.ndarray)
    assert low.shape == high.shape == new[1].shape
    np.testing.assert_allclose((low + high) / 2, model.predict(new[0]), atol=1e-12)
    tensors = tuple(map(torch.from_numpy, new[0]))
    for mine, theirs in zip(intervals.predict(tensors), (low, high), strict=True):
        assert isinstance(mine, torch.Tensor)
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
    inside = ((low <= new[1]) & (new[1] <= high)).mean(0)
    np.testing.assert_allclose(intervals.coverage(*new), inside)
    assert intervals.coverage(*new).shape == (model.outputs,)


def test_a_refit_model_leaves_its_intervals_alone():
    model, (train, held, new) = fitted(mixed, 0, 300, 200, 20)
    intervals = Intervals.fit(model, *train, *held)
    before = intervals.predict(new[0])[0]
    model.fit(train[0], -train[1])
    np.testing.assert_array_equal(intervals.predict(new[0])[0], before)


def test_networks_have_intervals_from_their_last_layer():
    X, y, modes, rank = mixed(0, 2500)
    train, held, new = cut(X, y, 1000, 500, 1000)
    model = FunctionalCP([modes[0], Neural(1, hidden=(16,), activation="tanh"), modes[2]], rank=rank,
                         solver=AdamConfig(epochs=3, batch=64, learning_rate=1e-2)).fit(*train)
    assert abs(Intervals.fit(model, *train, *held, draws=4).coverage(*new)[0] - 0.9) < 0.03


def test_what_is_refused():
    model, (train, held, new) = fitted(mixed, 0, 300, 200, 20, members=1)
    with pytest.raises(ValueError, match="call fit first"):
        Intervals.fit(FunctionalCP(model.modes, rank=2), *train, *held)
    table = CPCompletion(1, n_restarts=1).fit([[0, 0], [0, 1], [1, 0]], [1.0, 2, 3])
    for use in (lambda: Intervals.fit(table, *train, *held), lambda: Support.of(train[0], table),
                lambda: derivative(table, train[0], 1)):
        with pytest.raises(ValueError, match="model: expected a FunctionalCP, got CPCompletion; a table of categories is one"):
            use()
    with pytest.raises(ValueError, match="unknown method 'bayes'; known: both, laplace, ensemble"):
        Intervals.fit(model, *train, *held, method="bayes")
    with pytest.raises(ValueError, match="for a model of one member, got 'ensemble'; fit with members=5"):
        Intervals.fit(model, *train, *held, method="ensemble")
    with pytest.raises(ValueError, match="draws: expected a whole number >= 2, got 1"):
        Intervals.fit(model, *train, *held, draws=1)
    with pytest.raises(ValueError, match="not fitted to, got the 300 training entries; hold some out"):
        Intervals.fit(model, *train, *train)
    with pytest.raises(ValueError, match="y: 1 of 200 values are NaN or Inf"):
        Intervals.fit(model, *train, held[0], np.where(np.arange(200) == 7, np.nan, held[1]))
    with pytest.raises(ValueError, match="expected at least one entry, got none"):
        Intervals.fit(model, *train, *cut(*held, 0)[0])
    intervals = Intervals.fit(model, *train, *held)
    for level in (0, 1, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="coverage: expected a share between 0 and 1"):
            intervals.predict(new[0], level)
    with pytest.raises(ValueError, match="expected 3 coordinate arrays"):
        intervals.predict(new[0][:2])
    with pytest.raises(ValueError, match="names: expected 1, one per output, got 2"):
        plot_calibration(intervals, *new, names=["a", "b"])


# The picture

def test_the_calibration_plot_shows_shares_inside_and_what_chance_may_do():
    matplotlib.use("Agg")
    model, (train, held, new) = fitted(misfit, 0, 500, 400, 1000)
    intervals = Intervals.fit(model, *train, *held, draws=4)
    figure = plot_calibration(intervals, *new, names=["angle", "speed"])
    _diagonal, *lines = figure.axes[0].lines
    assert [line.get_label() for line in lines] == ["angle", "speed"]
    for d, line in enumerate(lines):
        for level, share in zip(*line.get_data(), strict=True):
            assert share == intervals.coverage(*new, level)[d]
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    at_half = band[np.abs(band[:, 0] - 0.5) < 0.02, 1]
    chance = np.sqrt(0.25 / 400 + 0.25 / 1000)      # of the factor's entries and of the new ones
    assert np.ptp(at_half) == pytest.approx(2 * 1.96 * chance, rel=0.35)
    plt.close(figure)
