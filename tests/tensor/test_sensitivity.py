"""Derivatives: against finite differences and a known function, for every kind of mode."""

import numpy as np
import pytest
import torch

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.functional import FunctionalCP
from lowrank_rl.tensor.functional_adam import AdamConfig
from lowrank_rl.tensor.functional_als import ALSConfig
from lowrank_rl.tensor.modes import Categorical, Fourier, Neural, Polynomial, Spline
from lowrank_rl.tensor.sensitivity import derivative

KINDS = {"fourier": Fourier(2, 8), "spline": Spline(2, (2, 3)), "polynomial": Polynomial(2, 3),
         "neural": Neural(2, hidden=(8,), activation="tanh")}


def entries(n=100, outputs=2):
    """An agent, a state far from unit scale, and a push."""
    draw = numpy_stream(0, "sensitivity")
    agent, state, push = draw.integers(4, size=n), draw.uniform(-1, 1, (n, 2)) * [30, 0.02] + [500, 0], draw.uniform(0, 1, n)
    y = (1 + agent[:, None]) * np.sin((state - [500, 0]) @ [[0.05, 0.02], [30, 90]])[:, :outputs] * (1 + push[:, None])
    return (agent, state, push), y


def fit(kind, members=2, outputs=2):
    X, y = entries(outputs=outputs)
    solver = AdamConfig(epochs=2) if kind == "neural" else ALSConfig(sweeps=2)
    model = FunctionalCP([Categorical(4), KINDS[kind], Polynomial(1, 2)], rank=2, outputs=outputs, members=members,
                         solver=solver).fit(X, y)
    model.module_.double()      # finite differences need the digits
    return model, tuple(x[:30] for x in X)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("outputs", [1, 2])
def test_derivatives_are_finite_differences(kind, outputs):
    model, X = fit(kind, outputs=outputs)
    for mode, steps in ((1, (3e-3, 2e-6)), (2, (1e-4,))):
        got = derivative(model, X, mode)
        assert got.shape == (30, outputs, len(steps))
        for i, h in enumerate(steps):
            def moved(by, mode=mode, i=i):
                x = X[mode].reshape(30, -1).copy()
                x[:, i] += by
                return model.predict(tuple(x if k == mode else c for k, c in enumerate(X))).reshape(30, outputs)
            expected = (moved(h) - moved(-h)) / (2 * h)
            np.testing.assert_allclose(got[:, :, i], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_a_known_function_is_differentiated_exactly():
    draw = numpy_stream(1, "sensitivity")
    agent, x = draw.integers(3, size=200), draw.uniform(5, 9, 200)
    model = FunctionalCP([Categorical(3), Polynomial(1, 2)], rank=1, normalize=False,
                         solver=ALSConfig(regularization=1e-12, sweeps=12)).fit((agent, x), (1 + agent) * x ** 2)
    got = derivative(model, (np.array([0, 1, 2]), np.array([6.0, 7.0, 20.0])), 1)
    np.testing.assert_allclose(got[:, 0, 0], [12, 28, 120], rtol=1e-5)


def test_at_a_spline_s_ends_the_slope_goes_on_for_one_cell():
    x = np.linspace(-2, 2, 300)
    model = FunctionalCP([Categorical(1), Spline(1, 8)], rank=1, solver=ALSConfig(sweeps=4))
    model.fit((np.zeros(300, int), x), np.sin(x))
    at = derivative(model, (np.zeros(6, int), np.array([-2.4, -2.0, -1.999999, 1.999999, 2.0, 2.4])), 1)[:, 0, 0]
    np.testing.assert_allclose(at, np.cos(2), rtol=0.02)
    np.testing.assert_allclose(at[:3], at[1], rtol=1e-4)
    np.testing.assert_allclose(at[3:], at[4], rtol=1e-4)
    assert not derivative(model, (np.zeros(2, int), np.array([-5.0, 9.0])), 1).any()


def test_it_is_the_mean_over_members_and_leaves_the_model_alone():
    model, X = fit("polynomial", members=3)
    before = [p.detach().clone() for p in model.module_.parameters()]
    whole = derivative(model, X, 1)
    single = []
    for m in range(3):
        for p, old in zip(model.module_.parameters(), before, strict=True):
            p.data = old[m:m + 1].expand_as(old).clone()
        single.append(derivative(model, X, 1))
    np.testing.assert_allclose(whole, np.mean(single, axis=0), rtol=1e-10)
    assert all(p.grad is None for p in model.module_.parameters())


def test_tensors_in_tensors_out_even_where_gradients_are_off():
    model, X = fit("fourier")
    tensors = tuple(torch.from_numpy(x) for x in X)
    with torch.no_grad():
        got = derivative(model, tensors, 1)
    assert isinstance(got, torch.Tensor)
    assert not got.requires_grad
    assert not tensors[1].requires_grad
    np.testing.assert_array_equal(got, derivative(model, X, 1))


def test_what_is_refused():
    model, X = fit("polynomial")
    with pytest.raises(ValueError, match=r"mode: expected a continuous one \(1, 2\), got 0, which is Categorical"):
        derivative(model, X, 0)
    for mode in (3, -1, 1.5, True, "state"):
        with pytest.raises(ValueError, match=r"mode: expected 0..2, got"):
            derivative(model, X, mode)
    with pytest.raises(ValueError, match="call fit first"):
        derivative(FunctionalCP(model.modes, rank=2), X, 1)
    with pytest.raises(ValueError, match=r"X\[1\]: 1 of 60 values are NaN or Inf"):
        derivative(model, (X[0], np.where(np.arange(60).reshape(30, 2) == 4, np.nan, X[1]), X[2]), 1)
    tables = FunctionalCP([Categorical(2), Categorical(2)], rank=1).fit((np.array([0, 1]), np.array([0, 1])), np.ones(2))
    with pytest.raises(ValueError, match="this model has none"):
        derivative(tables, (np.array([0]), np.array([0])), 1)
