"""Bases against SciPy's B-splines, NumPy's Chebyshev series, the kernel that random features stand for, and autograd."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev
from scipy.interpolate import BSpline
from scipy.spatial.distance import pdist

from lowrank_rl.rng import numpy_stream, stream
from lowrank_rl.tensor.bases import SAMPLE, Expansion, FourierBasis, PolynomialBasis, SplineBasis

SHAPES = [((5,), 1), ((7,), 2), ((4,), 3), ((1,), 3), ((3,), 5), ((3, 4), 1), ((4, 2), 3), ((2, 3, 2), 2)]   # cells, degree


def points(count: int, inputs: int, *labels) -> torch.Tensor:
    return torch.from_numpy(numpy_stream(0, "bases", *labels).uniform(-3, 5, (count, inputs)))


def prepared(basis, x):
    basis.prepare(x)
    return basis


def scipy_splines(x: np.ndarray, low: float, high: float, cells: int, degree: int) -> np.ndarray:
    """All splines on equal knots that run on beyond the ends, (B, cells + degree)."""
    knots = low + (high - low) / cells * np.arange(-degree, cells + degree + 1)
    return BSpline.design_matrix(x, knots, degree).toarray()


# B-splines

@pytest.mark.parametrize(("cells", "degree"), SHAPES)
def test_splines_are_scipys(cells, degree):
    x = points(60, len(cells), cells, degree)
    basis = prepared(SplineBasis(cells, degree), x)
    inside = x[1:]
    inside = inside[((inside < x.amax(0)) & (inside > x.amin(0))).all(1)]
    alone = [scipy_splines(inside[:, i].numpy(), float(x[:, i].min()), float(x[:, i].max()), n, degree)
             for i, n in enumerate(cells)]
    expected = alone[0]
    for other in alone[1:]:
        expected = np.einsum("bi,bj->bij", expected, other).reshape(len(inside), -1)
    np.testing.assert_allclose(basis(inside), expected, atol=1e-12)
    assert basis.size == expected.shape[1]


@pytest.mark.parametrize(("cells", "degree"), SHAPES)
def test_splines_sum_to_one_also_at_and_beyond_the_ends(cells, degree):
    x = points(50, len(cells), "sum")
    basis = prepared(SplineBasis(cells, degree), x)
    everywhere = torch.cat([x, x.amin(0)[None], x.amax(0)[None], 4 * x, x.amax(0)[None] + 1e-9])
    torch.testing.assert_close(basis(everywhere).sum(-1), torch.ones(len(everywhere), dtype=torch.float64))


def test_few_splines_meet_at_a_place_and_those_that_do_share_a_cell():
    basis = prepared(SplineBasis((4, 3), 2), points(80, 2))
    index, value = basis.local(points(80, 2))
    assert index.shape == value.shape == (80, 9)
    assert (index.diff(dim=1) > 0).all()
    for first in index[:, 0].unique():
        assert (index[index[:, 0] == first] == index[index[:, 0] == first][0]).all()


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_a_spline_goes_on_as_a_straight_line_for_one_cell(degree):
    """Beyond the coordinates seen, with the value and slope that SciPy gives at the end; farther out it stays."""
    x = points(40, 1)
    basis = prepared(SplineBasis((6,), degree), x)
    weight = numpy_stream(0, "line").normal(size=basis.size)
    low, high = float(x.min()), float(x.max())
    knots = low + (high - low) / 6 * np.arange(-degree, 6 + degree + 1)
    spline = BSpline(knots, weight, degree)
    for end, inward, outside in ((low, 1e-12, low - np.array([0.1, 0.3, 50])), (high, -1e-12, high + np.array([0.1, 0.3, 50]))):
        cell = (high - low) / 6
        line = spline(end + inward) + spline.derivative()(end + inward) * np.clip(outside - end, -cell, cell)
        np.testing.assert_allclose(basis(torch.from_numpy(outside)[:, None]).numpy() @ weight, line, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_derivatives_are_scipys_and_do_not_jump_at_knots_or_ends(degree):
    x = points(40, 1)
    basis = prepared(SplineBasis((5,), degree), x)
    weight = torch.from_numpy(numpy_stream(0, "slope").normal(size=basis.size))
    low, high = float(x.min()), float(x.max())

    def slope(places):
        at = torch.as_tensor(places, dtype=torch.float64)[:, None].requires_grad_()
        return torch.autograd.grad((basis(at) @ weight).sum(), at)[0][:, 0]

    knots = low + (high - low) / 5 * np.arange(-degree, 6 + degree)
    inside = np.sort(x[:, 0].numpy())[1:-1]
    np.testing.assert_allclose(slope(inside), BSpline(knots, weight.numpy(), degree).derivative()(inside), rtol=1e-8)
    joints = np.linspace(low, high, 6)
    torch.testing.assert_close(slope(joints - 1e-10), slope(joints + 1e-10), atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(slope(joints), slope(joints + 1e-10), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("cells", [(1,), (4,), (2, 3), (1, 2, 2)])
def test_roughness_sums_squared_second_differences(cells):
    degree = 2 if len(cells) < 3 else 1
    basis = SplineBasis(cells, degree)
    sizes = [n + degree for n in cells]
    weight = numpy_stream(0, "rough", cells).normal(size=sizes)
    expected = len(cells) * 1e-6 * (weight ** 2).sum()
    for place in np.ndindex(*sizes):
        for axis, n in enumerate(sizes):
            line = [tuple(p + (step if i == axis else 0) for i, p in enumerate(place)) for step in range(3)]
            if n == 2 and place[axis] == 0:              # too short for a second difference: the first
                expected += (weight[line[1]] - weight[line[0]]) ** 2
            elif place[axis] + 2 < n:
                expected += (weight[line[0]] - 2 * weight[line[1]] + weight[line[2]]) ** 2
    flat = torch.from_numpy(weight.flatten())
    assert float(flat @ basis.roughness() @ flat) == pytest.approx(expected)


# Chebyshev polynomials

@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(0, 5), st.integers(0, 10**6))
def test_polynomials_are_numpys_chebyshev_series(inputs, degree, seed):
    x = torch.from_numpy(numpy_stream(seed, "chebyshev").uniform(-2, 9, (12, inputs)))
    basis = prepared(PolynomialBasis(inputs, degree), x)
    powers = [tuple(p) for p in basis.power.tolist()]
    assert sorted(powers) == sorted(p for p in np.ndindex(*(degree + 1,) * inputs) if sum(p) <= degree)
    assert powers[0] == (0,) * inputs
    low, high = x.amin(0).numpy(), x.amax(0).numpy()
    t = (2 * x.numpy() - low - high) / (high - low)
    for column, power in enumerate(powers):
        single = [chebyshev.chebval(t[:, i], np.eye(degree + 1)[p]) for i, p in enumerate(power)]
        np.testing.assert_allclose(basis(x)[:, column], np.prod(single, 0), atol=1e-10)


def test_many_inputs_of_low_degree_are_quick():
    assert PolynomialBasis(18, 2).size == 190      # 3^18 candidates would take minutes


# Fourier features

@pytest.mark.parametrize(("inputs", "bandwidth"), [(1, 0.7), (3, 2.5)])
def test_fourier_features_approximate_the_gaussian_kernel(inputs, bandwidth):
    basis = FourierBasis(inputs, 20_000, bandwidth, generator=stream(0, "kernel"))
    x = points(15, inputs, "kernel")
    features = prepared(basis, x)(x)
    kernel = torch.exp(-torch.cdist(x, x) ** 2 / (2 * bandwidth ** 2))
    assert (features[:, 0] == 1).all()
    product = features[:, 1:] @ features[:, 1:].T
    torch.testing.assert_close(product.diagonal(), torch.ones(15, dtype=torch.float64))
    torch.testing.assert_close(product, kernel, atol=0.03, rtol=0)


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 30), st.integers(1, 3), st.integers(0, 10**6))
def test_automatic_bandwidth_is_the_median_distance(count, inputs, seed):
    x = numpy_stream(seed, "bandwidth").normal(size=(count, inputs))
    basis = FourierBasis(inputs, 3, None, generator=stream(0))
    repeated = torch.from_numpy(np.concatenate([x, x]))     # the same points twice: their distance of 0 says nothing
    distance = np.sort(pdist(np.concatenate([x, x])))
    distance = distance[distance > 0]
    basis.prepare(repeated)
    assert float(basis.bandwidth) == pytest.approx(distance[(len(distance) - 1) // 2])


def test_bandwidth_of_many_points_follows_their_spread_whatever_their_order():
    """Log entries come in cycles: points taken at equal steps may all stand at one place of a cycle."""
    x = torch.from_numpy(np.tile(np.linspace(-1, 1, 50), SAMPLE))[:50 * (SAMPLE - 1) + 1, None]
    basis = prepared(FourierBasis(1, 3, None, generator=stream(0)), x)
    assert float(basis.bandwidth) == pytest.approx(2 * (1 - np.sqrt(0.5)), rel=0.1)


def test_a_given_bandwidth_stays():
    basis = prepared(FourierBasis(2, 3, 0.25, generator=stream(0)), points(30, 2))
    assert float(basis.bandwidth) == 0.25


# All

BASES = {"fourier": lambda n: FourierBasis(n, 8, None, generator=stream(1)), "polynomial": lambda n: PolynomialBasis(n, 3),
         "spline": lambda n: SplineBasis((4,) * n, 3)}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("value", [0.0, 0.1, -7.7, 1e6 + 0.3, 1e20, -1e-30])
def test_constant_coordinates_warn_and_give_finite_features(kind, value):
    x = torch.full((20, 1), value, dtype=torch.float64)
    basis = BASES[kind](1)
    with pytest.warns(UserWarning, match="mode: its coordinate is constant, so nothing can be learned of how values change"):
        basis.prepare(x)
    assert basis(x).isfinite().all()
    assert basis(x + 1).isfinite().all()
    assert (basis(x) == basis(x)[0]).all()


@pytest.mark.parametrize("kind", BASES)
def test_one_constant_column_is_named_and_the_others_are_fitted(kind):
    x = points(20, 3)
    basis = BASES[kind](3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        basis.prepare(x)
    x[:, 1] = 0.1
    with pytest.warns(UserWarning, match=r"of its columns 0\.\.2, \[1\] are constant"):
        basis.prepare(x)
    assert basis(x).isfinite().all()
    assert len(basis(x).unique(dim=0)) == 20


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("inputs", [1, 2])
def test_an_expansion_is_features_times_weight_for_each_member(kind, inputs):
    x = points(30, inputs, "expansion")
    expansion = Expansion(prepared(BASES[kind](inputs), x), 3, 4, generator=stream(2)).double()
    here = torch.stack([x, 0.5 * x, 0.1 * x]).requires_grad_()
    out = expansion(here)
    expected = torch.stack([expansion.basis(here[m]) @ expansion.weight[m] for m in range(3)])
    torch.testing.assert_close(out, expected)
    ours, theirs = (torch.autograd.grad(y.square().sum(), (here, expansion.weight), retain_graph=True) for y in (out, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", BASES)
def test_an_expansion_starts_near_one_everywhere(kind):
    x = points(200, 2, "start")
    expansion = Expansion(prepared(BASES[kind](2), x), 2, 50, generator=stream(3)).double()
    out = expansion(x.expand(2, -1, -1))
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    assert 0.01 < out.std().item() < 0.4
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("kind", BASES)
def test_roughness_is_positive_definite_and_spares_the_constant(kind):
    basis = prepared(BASES[kind](2), points(30, 2))
    rough = basis.roughness()
    assert torch.equal(rough, rough.T)
    assert torch.linalg.eigvalsh(rough)[0] > 0
    constant = torch.linalg.lstsq(basis(points(500, 2)), torch.ones(500, 1, dtype=torch.float64)).solution[:, 0]
    assert constant @ rough @ constant < 1e-3 * rough.diagonal().mean() * constant.square().sum()


def test_a_bases_print_says_what_it_computes():
    assert "cells=(4, 2), degree=3" in str(SplineBasis((4, 2), 3))
    assert "inputs=2, degree=3" in str(PolynomialBasis(2, 3))
    assert "pairs=8, bandwidth=0.5" in str(FourierBasis(1, 8, 0.5, generator=stream(0)))
    assert "bandwidth=automatic" in str(prepared(FourierBasis(1, 8, None, generator=stream(0)), points(9, 1)))
