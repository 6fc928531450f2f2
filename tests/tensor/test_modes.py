"""What one mode can be: its door, its module against a loop, its start."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lowrank_rl.nets import ACTIVATIONS
from lowrank_rl.rng import stream
from lowrank_rl.tensor.modes import INITS, Categorical, Fourier, Neural, Polynomial, Spline, describe, from_description

CATEGORICALS = st.builds(Categorical, st.integers(1, 9), st.sampled_from(INITS))
NEURALS = st.builds(Neural, st.integers(1, 4), st.lists(st.integers(1, 5), max_size=3).map(tuple),
                    st.sampled_from(sorted(ACTIVATIONS)))
FOURIERS = st.builds(Fourier, st.integers(1, 4), st.integers(2, 30), st.one_of(st.none(), st.floats(0.01, 9)))
SPLINES = st.integers(1, 3).flatmap(lambda n: st.builds(
    Spline, st.just(n), st.one_of(st.integers(1, 6), st.tuples(*[st.integers(1, 5)] * n)), st.integers(1, 4)))
POLYNOMIALS = st.builds(Polynomial, st.integers(1, 4), st.integers(0, 4))


@settings(deadline=None, max_examples=30)
@given(st.one_of(CATEGORICALS, NEURALS, FOURIERS, SPLINES, POLYNOMIALS))
def test_a_description_is_plain_and_goes_back(mode):
    described = describe(mode)
    assert from_description(json.loads(json.dumps(described))) == mode


def test_unknown_descriptions_are_refused():
    with pytest.raises(ValueError, match="unknown mode 'Wavelet'; known: Categorical, Fourier, Spline, Polynomial, Neural"):
        from_description({"kind": "Wavelet"})


@pytest.mark.parametrize("init", INITS)
def test_rows_are_bias_plus_table(init):
    rows = Categorical(5, init).build(3, 4, generator=stream(0, "rows"))
    x = torch.randint(5, (3, 11), generator=stream(0, "x"))
    out = rows(x)
    for m in range(3):
        for b in range(11):
            assert torch.equal(out[m, b], rows.bias[m, 0] + rows.table[m, x[m, b]])
    assert torch.equal(rows.rows(), rows(torch.arange(5).expand(3, 5)))
    assert not torch.equal(rows.table[0], rows.table[1])


def test_linear_start_is_nn_linear_on_one_hot_input():
    rows = Categorical(400, "linear").build(2, 30, generator=stream(1, "rows"))
    peer = nn.Linear(400, 30)
    peer.load_state_dict({"weight": rows.table[1].T, "bias": rows.bias[1, 0]})
    x = torch.tensor([0, 7, 399])
    torch.testing.assert_close(rows(x.expand(2, 3))[1], peer(nn.functional.one_hot(x, 400).float()))
    bound = 1 / math.sqrt(400)   # that of nn.Linear's weights and biases
    assert 0.98 * bound < rows.table.abs().max().item() <= bound
    assert rows.table.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert 0.8 * bound < rows.bias.abs().max().item() <= bound


def test_nearly_equal_start_is_one_and_a_tenth_of_noise():
    rows = Categorical(400).build(2, 30, generator=stream(2, "rows")).rows()
    assert rows.mean().item() == pytest.approx(1, abs=5 * 0.1 / math.sqrt(rows.numel()))
    assert rows.std().item() == pytest.approx(0.1, rel=0.03)


def test_neural_mode_is_a_network_of_its_sizes():
    net = Neural(3, hidden=(8, 6), activation="tanh").build(2, 5, generator=stream(3))
    assert [tuple(layer.weight.shape) for layer in net.layers] == [(2, 3, 8), (2, 8, 6), (2, 6, 5)]
    assert net(torch.zeros(2, 4, 3)).shape == (2, 4, 5)


@pytest.mark.parametrize(("mode", "features"), [
    (Fourier(2, 30), 31), (Fourier(1, 7), 7), (Polynomial(3, 2), 10), (Polynomial(2, 0), 1), (Spline(1, 16), 19),
    (Spline(2, (3, 5), degree=2), 35), (Spline(3, 2, degree=1), 27),
])
def test_a_continuous_mode_has_so_many_features(mode, features):
    built = mode.build(3, 4, generator=stream(0))
    assert built.weight.shape == (3, features, 4)
    assert built(torch.zeros(3, 5, mode.inputs)).shape == (3, 5, 4)


def test_the_same_generator_builds_the_same_waves_and_weights():
    one, two, other = (Fourier(2, 8).build(2, 3, generator=stream(seed)) for seed in (0, 0, 1))
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
    assert not torch.equal(one.basis.direction, other.basis.direction)
    assert not torch.equal(one.weight[0], one.weight[1])


def test_coordinates_that_pass():
    for x in (torch.tensor([0, 4]), torch.tensor([0.0, 4.0]), torch.tensor([0, 4], dtype=torch.uint8)):
        out = Categorical(5).coordinate("x", x)
        assert out.dtype == torch.int64
        assert out.tolist() == [0, 4]
    for mode in (Neural(1), Fourier(1), Spline(1), Polynomial(1)):
        assert mode.coordinate("x", torch.tensor([1.0, 2.0])).tolist() == [[1], [2]]
    whole = Neural(2).coordinate("x", torch.tensor([[1, 2]]))
    assert whole.is_floating_point()
    assert whole.tolist() == [[1, 2]]
    double = torch.tensor([[0.1, 0.2]], dtype=torch.float64)
    assert torch.equal(Neural(2).coordinate("x", double), double)


@pytest.mark.parametrize(("mode", "x", "message"), [
    (Categorical(5), [0, 5], r"x: expected integers 0\.\.4, got values 0\.\.5"),
    (Categorical(5), [0, -1], r"x: expected integers 0\.\.4, got values -1\.\.0"),
    (Categorical(5), [0.0, 1e30], r"x: expected integers 0\.\.4"),
    (Categorical(5), [0, 0.5], r"x: expected integers 0\.\.4 for a Categorical mode, got fractions"),
    (Categorical(5), [0, math.nan], "x: 1 of 2 values are NaN or Inf"),
    (Categorical(5), [[0], [1]], r"x: expected axes \(B\), got shape \(2, 1\)"),
    (Neural(2), [[0.0, math.inf]], r"x: 1 of 2 values are NaN or Inf, the first at \(0, 1\)"),
    (Neural(2), [[0.0, 1.0, 2.0]], "x: expected 2 columns for this Neural mode, got 3"),
    (Spline(1), [[0.0, 1.0]], "x: expected 1 columns for this Spline mode, got 2"),
    (Polynomial(1), [0.0, math.nan], "x: 1 of 2 values are NaN or Inf"),
    (Fourier(2), [[0.0]], "x: expected 2 columns for this Fourier mode, got 1"),
    (Neural(2), [0.0, 1.0], r"x: expected axes \(B inputs\), got shape \(2,\)"),
])
def test_coordinates_that_are_refused(mode, x, message):
    with pytest.raises(ValueError, match=message):
        mode.coordinate("x", torch.tensor(x))


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Categorical(0), "Categorical size: expected a whole number >= 1, got 0"),
    (lambda: Categorical(2.5), "Categorical size: expected a whole number >= 1, got 2.5"),
    (lambda: Categorical(3, "normal"), "unknown init of a Categorical mode 'normal'; known: nearly_equal, linear"),
    (lambda: Neural(0), "Neural inputs: expected a whole number >= 1, got 0"),
    (lambda: Neural(2, hidden=(8, 0)), "Neural hidden size: expected a whole number >= 1, got 0"),
    (lambda: Neural(2, hidden=8), r"Neural hidden: expected sizes such as \(8,\), got 8"),
    (lambda: Neural(2, hidden=np.int64(8)), r"Neural hidden: expected sizes such as \(8,\), got 8"),
    (lambda: Neural(2, activation="gelu"), "unknown activation 'gelu'; known: relu, silu, tanh"),
    (lambda: Fourier(0), "Fourier inputs: expected a whole number >= 1, got 0"),
    (lambda: Fourier(1, 1), "Fourier features: expected a whole number >= 2, got 1"),
    (lambda: Fourier(1, bandwidth=0), "Fourier bandwidth: expected a number above 0, or None to take it from the data, got 0"),
    (lambda: Fourier(1, bandwidth=math.nan), "Fourier bandwidth: expected a number above 0.*, got nan"),
    (lambda: Fourier(1, bandwidth="auto"), "Fourier bandwidth: expected a number above 0.*, got 'auto'"),
    (lambda: Spline(0), "Spline inputs: expected a whole number >= 1, got 0"),
    (lambda: Spline(2, (3,)), r"Spline cells: expected one number or 2, one per input, got \(3,\)"),
    (lambda: Spline(1, 0), "Spline cells: expected a whole number >= 1, got 0"),
    (lambda: Spline(2, 2.5), "Spline cells: expected a whole number >= 1, got 2.5"),
    (lambda: Spline(1, degree=0), "Spline degree: expected a whole number >= 1, got 0"),
    (lambda: Spline(4), r"Spline: expected at most 10000 features, got 130321 for \(16, 16, 16, 16\) cells of degree 3"),
    (lambda: Polynomial(1, -1), "Polynomial degree: expected a whole number >= 0, got -1"),
    (lambda: Polynomial(20, 5), "Polynomial: expected at most 10000 features, got 53130 for degree 5 in 20 inputs; lower"),
])
def test_impossible_modes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_may_be_numpy_integers_and_hidden_a_list():
    assert Categorical(np.arange(5).max() + 1) == Categorical(5)
    assert Neural(2, hidden=[3, 4]) == Neural(2, hidden=(3, 4))
    assert Spline(2, np.int64(4)) == Spline(2, [4, 4]) == Spline(2, (4, 4))
    assert json.dumps(describe(Spline(2, np.int64(4))))
