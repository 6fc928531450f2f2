import dataclasses
import itertools

import numpy as np
import pytest
import scipy.optimize

from lowrank_rl.tensor.solvers import derivatives
from lowrank_rl.tensor.solvers.lm import LMConfig, balanced, solve_lm
from lowrank_rl.tensor.solvers.problem import Problem

DENSE, CG = LMConfig(dense_below=10**6, tolerance=0.0), LMConfig(dense_below=0, tolerance=0.0)


def problem(shape=(6, 5, 4), rank=2, share=0.7, noise=0.1, seed=0, weighted=False, **changes):
    g = np.random.default_rng(seed)
    factors = [g.standard_normal((size, rank)) for size in shape]
    index = np.array(np.unravel_index(g.permutation(np.prod(shape))[:int(share * np.prod(shape))], shape), dtype=np.int32)
    K = len(shape)
    p = Problem(index, np.zeros(index.shape[1]), g.uniform(0.2, 3, index.shape[1]) if weighted else None, shape, rank,
                (0.0,) * K, (False,) * K, (False,) * K)
    value = p.predict(tuple(factors)) + noise * g.standard_normal(index.shape[1])
    start = tuple(f + 0.3 * g.standard_normal(f.shape) for f in factors)
    return dataclasses.replace(p, value=value, **changes), start


def stacked(p, factors):
    return np.concatenate(factors), np.cumsum(p.shape) - np.array(p.shape)


def dense_jacobian(p, factors):
    """By loops: (entries, parameters)."""
    rows, first = stacked(p, factors)
    J = np.zeros((p.index.shape[1], *rows.shape))
    for b, index in enumerate(p.index.T):
        for k in range(len(factors)):
            others = [factors[j][index[j]] for j in range(len(factors)) if j != k]
            J[b, first[k] + index[k]] = np.prod(others, axis=0)
    return J.reshape(len(J), -1)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (3, 4, 2, 3)])
def test_kernels_equal_the_dense_jacobian(shape):
    p, factors = problem(shape, weighted=True)
    rows, first = stacked(p, factors)
    J, g = dense_jacobian(p, factors), np.random.default_rng(1)
    v, u = g.standard_normal(rows.shape), g.standard_normal(len(p.value))
    out = np.empty_like(rows)
    derivatives.transpose_times(p.index, first, rows, u, out)
    np.testing.assert_allclose(out.ravel(), J.T @ u, atol=1e-12)
    H = J.T @ (p.weight[:, None] * J)
    derivatives.gauss_newton_times(p.index, first, rows, p.weight, v, out)
    np.testing.assert_allclose(out.ravel(), H @ v.ravel(), atol=1e-11)
    blocks = np.empty((len(rows), p.rank, p.rank))
    derivatives.row_blocks(p.index, first, rows, p.weight, blocks)
    for s, block in enumerate(blocks):
        at = slice(s * p.rank, (s + 1) * p.rank)
        np.testing.assert_allclose(block, H[at, at], atol=1e-11)
    whole = np.empty_like(H)
    derivatives.gauss_newton(p.index, first, rows, p.weight, first * p.rank, whole)
    np.testing.assert_allclose(np.tril(whole), np.tril(H), atol=1e-11)


def test_gauss_newton_of_some_modes_is_the_sub_matrix():
    p, factors = problem()
    rows, first = stacked(p, factors)
    H = dense_jacobian(p, factors)
    H = H.T @ H
    keep = np.r_[0:12, 22:30]                                    # modes 0 and 2 of (6, 5, 4), rank 2
    out = np.empty((20, 20))
    derivatives.gauss_newton(p.index, first, rows, np.ones(len(p.value)), np.array([0, -1, 12]), out)
    np.testing.assert_allclose(np.tril(out), np.tril(H[np.ix_(keep, keep)]), atol=1e-11)


def test_the_gradient_is_that_of_the_loss_by_finite_differences():
    p, factors = problem(weighted=True, ridge=(0.3, 0.1, 0.2))
    rows, first = stacked(p, factors)
    out = np.empty_like(rows)
    derivatives.transpose_times(p.index, first, rows, p.weight * (p.value - p.predict(factors)), out)
    out -= np.repeat(p.ridge, p.shape)[:, None] * rows

    def loss(x):
        return p.loss(tuple(np.split(x.reshape(rows.shape), first[1:])))
    np.testing.assert_allclose(-out.ravel(), scipy.optimize.approx_fprime(rows.ravel(), loss, 1e-7), atol=1e-5)


@pytest.mark.parametrize("config", [DENSE, CG], ids=["dense", "cg"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reaches_the_optimum_of_a_general_least_squares_solver(config, weighted):
    p, start = problem(weighted=weighted, ridge=(0.02, 0.01, 0.03))
    weight = np.ones(len(p.value)) if p.weight is None else p.weight
    ends = np.cumsum(p.shape)[:-1]

    def residuals(x):
        factors = np.split(x.reshape(-1, p.rank), ends)
        return np.concatenate([np.sqrt(weight) * (p.value - p.predict(tuple(factors))),
                               *(np.sqrt(r) * f.ravel() for r, f in zip(p.ridge, factors, strict=True))])
    witness = scipy.optimize.least_squares(residuals, np.concatenate(start).ravel(), xtol=1e-14, ftol=1e-14, gtol=1e-12)
    fit = solve_lm(p, start, config)
    assert fit.converged, fit.stopped
    assert fit.history[-1]["loss"] == pytest.approx(witness.cost, rel=1e-8)
    assert fit.history[-1]["loss"] == pytest.approx(p.loss(fit.factors), rel=1e-10)


@pytest.mark.parametrize("config", [DENSE, CG], ids=["dense", "cg"])
def test_the_loss_never_rises_even_from_a_bad_start_with_too_many_terms(config):
    p, _ = problem(rank=2, share=0.4)
    g = np.random.default_rng(5)
    wide = dataclasses.replace(p, rank=4)
    fit = solve_lm(wide, tuple(10 * g.standard_normal((size, 4)) for size in p.shape), config)
    losses = [entry["loss"] for entry in fit.history]
    assert all(late <= early for early, late in itertools.pairwise(losses))
    assert np.isfinite(losses).all()


def test_noise_free_data_are_fitted_to_rounding():
    p, start = problem((12, 10, 8), noise=0.0, share=0.5)
    for config in (DENSE, CG):
        fit = solve_lm(p, start, config)
        assert fit.converged
        assert fit.history[-1]["loss"] < 1e-20


@pytest.mark.parametrize("config", [DENSE, CG], ids=["dense", "cg"])
def test_fixed_modes_keep_their_bits_and_the_rest_is_a_linear_problem(config):
    p, start = problem(fixed=(True, False, True), ridge=(0.5, 0.1, 0.5))
    fit = solve_lm(p, start, config)
    assert np.array_equal(fit.factors[0], start[0])
    assert np.array_equal(fit.factors[2], start[2])
    design = (start[0][p.index[0]] * start[2][p.index[2]])
    for i in range(p.shape[1]):
        d = design[p.index[1] == i]
        row = np.linalg.solve(d.T @ d + 0.1 * np.eye(2), d.T @ p.value[p.index[1] == i])
        np.testing.assert_allclose(fit.factors[1][i], row, rtol=1e-4, atol=1e-6)


def test_a_weight_of_two_is_the_entry_twice():
    p, start = problem()
    twice = dataclasses.replace(p, weight=np.where(np.arange(len(p.value)) < 10, 2.0, 1.0))
    again = dataclasses.replace(p, index=np.concatenate([p.index, p.index[:, :10]], axis=1),
                                value=np.concatenate([p.value, p.value[:10]]))
    one, two = (solve_lm(q, start, DENSE) for q in (twice, again))
    assert one.history[-1]["loss"] == pytest.approx(two.history[-1]["loss"], rel=1e-9)


@pytest.mark.parametrize("ridge", [(0.0, 0.0, 0.0), (0.3, 0.1, 0.7)])
def test_balancing_keeps_the_tensor_and_lowers_the_penalty(ridge):
    p, start = problem(ridge=ridge)
    start = (start[0] * 10, start[1] * [0.1, 3], start[2] * [-1, 0.01])
    even = balanced(p, start)
    np.testing.assert_allclose(p.predict(even), p.predict(start), rtol=1e-10)
    assert p.loss(even) <= p.loss(start)
    penalty = [(r or 1.0) * np.square(f).sum(0) for r, f in zip(ridge, even, strict=True)]
    np.testing.assert_allclose(penalty[1], penalty[0])
    np.testing.assert_allclose(penalty[2], penalty[0])


def test_rows_without_data_stay_where_they_are():
    p, start = problem()
    keep = p.index[0] != 3
    p = dataclasses.replace(p, index=p.index[:, keep], value=p.value[keep])
    for config in (DENSE, CG):
        fit = solve_lm(p, start, config)
        assert np.isfinite(np.concatenate(fit.factors)).all()
        np.testing.assert_allclose(fit.factors[0][3], balanced(p, start)[0][3])


def test_a_free_non_negative_mode_is_refused_and_a_fixed_one_is_not():
    p, start = problem(non_negative=(True, False, False))
    with pytest.raises(ValueError, match="use als or ccd"):
        solve_lm(p, start)
    solve_lm(dataclasses.replace(p, fixed=(True, False, False)), start)


def test_the_callback_stops_it_and_gets_copies():
    p, start = problem()
    seen = []

    def progress(entry, factors):
        seen.append(entry["iteration"])
        for f in factors:
            f[:] = np.nan
        return len(seen) == 2
    fit = solve_lm(p, start, progress=progress)
    assert seen == [1, 2]
    assert not fit.converged
    assert "callback" in fit.stopped
    assert np.isfinite(np.concatenate(fit.factors)).all()


@pytest.mark.parametrize(("change", "text"), [({"max_iter": -1}, "max_iter"), ({"tolerance": 1.0}, "tolerance"),
                                              ({"damping": 0.0}, "damping"), ({"cg_max_iter": 0}, "cg_max_iter")])
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        LMConfig(**change)
