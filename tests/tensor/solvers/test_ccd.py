import dataclasses
import itertools

import numpy as np
import pytest

from lowrank_rl.tensor.solvers.ccd import CCDConfig, solve_ccd
from lowrank_rl.tensor.solvers.problem import Problem


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


def loop_sweep(p, factors, inner):
    """One sweep as the paper writes it: one number after the other, everything computed afresh."""
    factors = [np.maximum(f, 0) if n and not x else f.copy()
               for f, n, x in zip(factors, p.non_negative, p.fixed, strict=True)]
    weight = np.ones(len(p.value)) if p.weight is None else p.weight
    for r in range(p.rank):
        for _ in range(inner):
            for k in range(len(factors)):
                if p.fixed[k]:
                    continue
                others = np.prod([f[i, r] for j, (f, i) in enumerate(zip(factors, p.index, strict=True)) if j != k], axis=0)
                error = p.value - p.predict(tuple(factors)) + others * factors[k][p.index[k], r]
                for i in range(p.shape[k]):
                    at = p.index[k] == i
                    bottom = p.ridge[k] + weight[at] @ others[at]**2
                    if bottom > 0:
                        x = (weight[at] * error[at]) @ others[at] / bottom
                        factors[k][i, r] = max(x, 0) if p.non_negative[k] else x
    return factors


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 4), (3, 4, 2, 3)])
@pytest.mark.parametrize("changes", [{}, {"non_negative": True}, {"fixed": True}])
def test_a_sweep_equals_the_loop(shape, changes):
    K = len(shape)
    changes = dict.fromkeys(changes, (True, *(False,) * (K - 1)))
    p, start = problem(shape, weighted=True, ridge=(0.1, 0.0, 0.2, 0.3)[:K], **changes)
    before = [f.copy() for f in start]
    fit = solve_ccd(p, start, CCDConfig(max_iter=1, inner=3))
    for ours, witness in zip(fit.factors, loop_sweep(p, start, 3), strict=True):
        np.testing.assert_allclose(ours, witness, atol=1e-10)
    assert all(np.array_equal(a, b) for a, b in zip(start, before, strict=True))


def test_the_loss_never_rises_and_is_that_of_the_factors():
    p, start = problem(weighted=True, ridge=(0.1, 0.2, 0.3), non_negative=(False, True, False))
    fit = solve_ccd(p, start)
    losses = [entry["loss"] for entry in fit.history]
    assert all(late <= early * (1 + 1e-12) for early, late in itertools.pairwise(losses))
    assert losses[-1] == pytest.approx(p.loss(fit.factors), rel=1e-9)
    assert (fit.factors[1] >= 0).all()
    assert fit.converged


def test_rank_one_is_alternating_least_squares():
    p, start = problem(rank=1, ridge=(0.1, 0.1, 0.1))
    fit = solve_ccd(p, start, CCDConfig(max_iter=2000, tolerance=0.0, inner=1))
    factors = [f[:, 0].copy() for f in start]
    for _ in range(2000):
        for k in range(3):
            i, j = (m for m in range(3) if m != k)
            d = factors[i][p.index[i]] * factors[j][p.index[j]]
            factors[k] = np.bincount(p.index[k], d * p.value, p.shape[k]) / (0.1 + np.bincount(p.index[k], d * d, p.shape[k]))
    assert fit.history[-1]["loss"] == pytest.approx(p.loss(tuple(f[:, None] for f in factors)), rel=1e-10)


def test_reaches_a_stationary_point_in_the_bounds():
    p, start = problem((8, 7, 6), ridge=(0.1, 0.1, 0.1), non_negative=(True, True, True))
    fit = solve_ccd(p, start, CCDConfig(max_iter=5000, tolerance=1e-15))
    error = p.value - p.predict(fit.factors)
    for k, factor in enumerate(fit.factors):
        others = np.prod([f[i] for j, (f, i) in enumerate(zip(fit.factors, p.index, strict=True)) if j != k], axis=0)
        gradient = 0.1 * factor
        np.subtract.at(gradient, p.index[k], error[:, None] * others)
        assert (np.abs(gradient[factor > 0]) < 1e-4).all()
        assert (gradient[factor == 0] > -1e-4).all()


def test_a_weight_of_two_is_the_entry_twice():
    p, start = problem()
    twice = dataclasses.replace(p, weight=np.where(np.arange(len(p.value)) < 10, 2.0, 1.0))
    again = dataclasses.replace(p, index=np.concatenate([p.index, p.index[:, :10]], axis=1),
                                value=np.concatenate([p.value, p.value[:10]]))
    one, two = (solve_ccd(q, start, CCDConfig(max_iter=20)) for q in (twice, again))
    for a, b in zip(one.factors, two.factors, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_recovers_held_out_entries():
    p, _ = problem((20, 20, 20), noise=0.0, share=0.4)
    whole, start = problem((20, 20, 20), noise=0.0, share=1.0)
    fit = solve_ccd(p, start, CCDConfig(tolerance=1e-10))
    assert np.sqrt(np.mean((whole.predict(fit.factors) - whole.value)**2)) < 1e-3


def test_rows_without_data_keep_their_start_or_shrink_to_zero():
    p, start = problem()
    keep = p.index[0] != 3
    p = dataclasses.replace(p, index=p.index[:, keep], value=p.value[keep])
    assert np.array_equal(solve_ccd(p, start).factors[0][3], start[0][3])
    ridged = dataclasses.replace(p, ridge=(0.1, 0.1, 0.1))
    assert np.array_equal(solve_ccd(ridged, start).factors[0][3], np.zeros(2))


def test_the_callback_stops_it():
    p, start = problem()
    fit = solve_ccd(p, start, progress=lambda entry, factors: entry["iteration"] == 3)
    assert len(fit.history) == 4
    assert "callback" in fit.stopped


@pytest.mark.parametrize(("change", "text"), [({"max_iter": -1}, "max_iter"), ({"tolerance": -1.0}, "tolerance"),
                                              ({"inner": 0}, "inner")])
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        CCDConfig(**change)
