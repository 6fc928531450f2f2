"""ALS against the laws it must obey: each mode's exact optimum, a falling loss, and symmetries of the problem."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.tensor.solvers.als import ALSConfig, InMemory, fill_empty_rows, solve_als
from lowrank_rl.tensor.solvers.kernels import OtherRows, packed_size
from lowrank_rl.tensor.solvers.layout import Layouts, sort_by_mode
from lowrank_rl.tensor.solvers.problem import Problem


def make(shape=(8, 9, 7), rank=2, count=300, noise=0.1, ridge=0.0, non_negative=False, weighted=False, seed=0):
    rng = np.random.default_rng(seed)
    truth = [rng.random((n, rank)) if non_negative else rng.standard_normal((n, rank)) for n in shape]
    cells = rng.choice(int(np.prod(shape)), min(count, int(np.prod(shape))), replace=False)
    index = np.stack(np.unravel_index(cells, shape)).astype(np.int32)
    value = np.prod([f[i] for f, i in zip(truth, index, strict=True)], axis=0).sum(1) + noise * rng.standard_normal(len(cells))
    K = len(shape)
    problem = Problem(index, value, rng.random(len(cells)) + 0.5 if weighted else None, shape, rank, (ridge,) * K,
                      (non_negative,) * K, (False,) * K)
    start = tuple(rng.random((n, rank)) if non_negative else rng.standard_normal((n, rank)) for n in shape)
    return problem, start


def losses(fit):
    return np.array([entry["loss"] for entry in fit.history])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.2])
def test_one_free_mode_reaches_its_least_squares_solution(ridge, weighted):
    problem, start = make(ridge=ridge, weighted=weighted)
    fit = solve_als(replace(problem, fixed=(True, False, True)), start, ALSConfig())
    root = np.sqrt(problem.weight) if weighted else np.ones(len(problem.value))
    C = start[0][problem.index[0]] * start[2][problem.index[2]] * root[:, None]
    for i, row in enumerate(fit.factors[1]):
        here = problem.index[1] == i
        tall = np.vstack([C[here], np.sqrt(ridge) * np.eye(2)])
        best = np.linalg.lstsq(tall, np.append((root * problem.value)[here], np.zeros(2)), rcond=None)[0]
        np.testing.assert_allclose(row, best, rtol=1e-8, atol=1e-10)
    assert (fit.factors[0] == start[0]).all()
    assert (fit.factors[2] == start[2]).all()


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("non_negative", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
@pytest.mark.parametrize("shape", [(30, 20), (8, 9, 7), (5, 6, 4, 5), (4, 3, 5, 3, 4)])
def test_the_loss_falls_and_is_the_problems(shape, ridge, non_negative, momentum):
    problem, start = make(shape, 3, 250, ridge=ridge, non_negative=non_negative)
    fit = solve_als(problem, start, ALSConfig(max_iter=60, momentum=momentum))
    trace = losses(fit)
    assert (np.diff(trace) <= 1e-9 * trace[:-1]).all()
    assert trace[-1] == pytest.approx(problem.loss(fit.factors), rel=1e-7)
    assert trace[-1] < problem.loss(start)
    if non_negative:
        assert all((f >= 0).all() for f in fit.factors)


def test_exact_data_are_fitted_to_rounding():
    problem, start = make(noise=0.0, count=400)
    fit = solve_als(problem, start, ALSConfig(max_iter=2000, tol=0.0))
    assert fit.converged
    np.testing.assert_allclose(problem.predict(fit.factors), problem.value, atol=1e-10)


def test_weights_are_repeated_entries():
    problem, start = make(count=120)
    times = np.random.default_rng(1).integers(1, 4, len(problem.value))
    repeated = replace(problem, index=np.repeat(problem.index, times, axis=1), value=np.repeat(problem.value, times))
    one, two = (solve_als(p, start, ALSConfig(max_iter=5)) for p in (replace(problem, weight=times.astype(float)), repeated))
    for a, b in zip(one.factors, two.factors, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_order_of_entries_rows_and_scale_do_not_matter(seed, scale):
    problem, start = make(seed=seed)
    rng = np.random.default_rng(seed)
    config = ALSConfig(max_iter=4)
    fit = solve_als(problem, start, config)
    order, rows = rng.permutation(len(problem.value)), rng.permutation(problem.shape[0])
    moved = np.concatenate([rows[problem.index[:1]], problem.index[1:]])[:, order].astype(np.int32)
    other = solve_als(replace(problem, index=moved, value=scale * problem.value[order]),
                      (start[0][np.argsort(rows)], start[1], start[2]), config)
    np.testing.assert_allclose(losses(other), scale ** 2 * losses(fit), rtol=1e-5)


def test_rows_without_entries_are_zero_then_the_mean():
    problem, start = make()
    keep = problem.index[1] != 4
    problem = replace(problem, index=problem.index[:, keep], value=problem.value[keep])
    fit = solve_als(problem, start, ALSConfig(max_iter=10))
    assert (fit.factors[1][4] == 0).all()
    filled = fill_empty_rows(fit.factors, problem.seen(), problem.fixed)
    np.testing.assert_allclose(filled[1][4], np.delete(fit.factors[1], 4, axis=0).mean(0))
    assert (filled[0] == fit.factors[0]).all()


def test_rows_with_fewer_entries_than_components_stay_finite():
    problem, start = make(rank=5, count=40)
    fit = solve_als(problem, start, ALSConfig(max_iter=50))
    assert all(np.isfinite(f).all() for f in fit.factors)
    assert (np.diff(losses(fit)) <= 1e-9 * losses(fit)[0]).all()


def test_scale_is_spread_over_the_modes():
    problem, start = make(ridge=0.1)
    problem = replace(problem, ridge=(0.1, 0.4, 0.2))
    fit = solve_als(problem, start, ALSConfig(max_iter=3))
    terms = [r * np.square(f).sum(0) for r, f in zip(problem.ridge, fit.factors, strict=True)]
    np.testing.assert_allclose(terms[0], terms[1])
    np.testing.assert_allclose(terms[0], terms[2])


def test_another_engine_gives_the_same_fit():
    class Streaming:
        """Sums over chunks, as if the entries did not fit in memory."""
        square = property(lambda self: float(problem.value @ problem.value))

        def normal(self, factors, k):
            gram, rhs = np.zeros((len(factors[k]), packed_size(2))), np.zeros((len(factors[k]), 2))
            for b in range(0, len(problem.value), 77):
                chunk = sort_by_mode(problem.index[:, b:b + 77], problem.value[b:b + 77], None, problem.shape, k)
                OtherRows(chunk, factors).add_normal(0, gram, rhs)
            yield slice(0, len(gram)), gram, rhs

        def squared_error(self, factors):
            return float(np.square(problem.value - problem.predict(factors)).sum())

    problem, start = make()
    one = solve_als(problem, start, ALSConfig(max_iter=8))
    two = solve_als(problem, start, ALSConfig(max_iter=8), engine=Streaming())
    np.testing.assert_allclose(losses(one), losses(two), rtol=1e-9)


def test_layouts_are_shared_and_the_start_is_kept():
    problem, start = make()
    layouts, copies = Layouts(problem), [f.copy() for f in start]
    one = solve_als(problem, start, ALSConfig(max_iter=5), layouts=layouts)
    two = solve_als(replace(problem, ridge=(0.0,) * 3), start, ALSConfig(max_iter=5), layouts=layouts)
    assert InMemory(problem, layouts).layouts is layouts
    assert all((a == b).all() for a, b in zip(one.factors, two.factors, strict=True))
    assert all((a == b).all() for a, b in zip(start, copies, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
def test_values_in_another_unit_need_no_copy(weighted):
    problem, start = make(weighted=weighted)
    scaled = replace(problem, value=problem.value / 3.7)
    engines = InMemory(problem, unit=3.7), InMemory(scaled)
    assert engines[0].square == pytest.approx(engines[1].square, rel=1e-13)
    one, two = (solve_als(scaled, start, ALSConfig(max_iter=5), engine=engine) for engine in engines)
    for a, b in zip(one.factors, two.factors, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    assert engines[0].squared_error(one.factors) == pytest.approx(engines[1].squared_error(two.factors), rel=1e-9)


def test_progress_sees_each_sweep_and_may_stop():
    problem, start = make()
    seen = []
    fit = solve_als(problem, start, ALSConfig(), progress=lambda entry, factors: seen.append(entry) or len(seen) == 3)
    assert fit.stopped == "progress asked to stop"
    assert [entry["iteration"] for entry in seen] == [1, 2, 3]
    assert not fit.converged


def test_all_modes_fixed_changes_nothing():
    problem, start = make()
    fit = solve_als(replace(problem, fixed=(True,) * 3), start, ALSConfig())
    assert all((a == b).all() for a, b in zip(start, fit.factors, strict=True))


@pytest.mark.parametrize(("field", "value"), [("max_iter", 0), ("tol", 1.0), ("tol", -1e-3)])
def test_config_refuses(field, value):
    with pytest.raises(ValueError, match=field):
        ALSConfig(**{field: value})


def test_momentum_needs_fewer_sweeps_in_a_swamp():
    rng = np.random.default_rng(0)
    truth = [np.sqrt(0.9) * rng.standard_normal((20, 1)) + np.sqrt(0.1) * rng.standard_normal((20, 3)) for _ in range(3)]
    full = np.einsum("ir,jr,kr->ijk", *truth)
    index = np.stack(np.unravel_index(rng.choice(8000, 4000, replace=False), full.shape)).astype(np.int32)
    problem = Problem(index, full[tuple(index)] + 1e-3 * rng.standard_normal(4000), None, full.shape, 3, (0.0,) * 3,
                      (False,) * 3, (False,) * 3)
    start = tuple(rng.standard_normal((20, 3)) for _ in range(3))
    fast, slow = (solve_als(problem, start, ALSConfig(max_iter=3000, momentum=m)) for m in (True, False))
    assert losses(fast)[-1] <= 1.01 * losses(slow)[-1]
    assert 2 * len(fast.history) < len(slow.history)
