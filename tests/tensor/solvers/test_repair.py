import dataclasses

import numpy as np
import pytest

from lowrank_rl.tensor.solvers.als import ALSConfig, solve_als
from lowrank_rl.tensor.solvers.anneal import random_start
from lowrank_rl.tensor.solvers.layout import Layouts
from lowrank_rl.tensor.solvers.multistart import distance
from lowrank_rl.tensor.solvers.problem import Problem
from lowrank_rl.tensor.solvers.repair import RepairConfig, _exchanged, _ridged, _suspects, _worth, solve_repaired


def problem(shape=(30, 25, 20), rank=4, share=0.2, noise=1e-3, seed=0, common=0.0, **changes):
    g = np.random.default_rng(seed)
    factors = tuple(np.sqrt(common) * g.standard_normal((size, 1)) + np.sqrt(1 - common) * g.standard_normal((size, rank))
                    for size in shape)
    index = np.array(np.unravel_index(g.permutation(np.prod(shape))[:int(share * np.prod(shape))], shape), dtype=np.int32)
    K = len(shape)
    p = Problem(index, np.zeros(index.shape[1]), None, shape, rank, (1e-6,) * K, (False,) * K, (False,) * K)
    value = p.predict(factors) + noise * g.standard_normal(index.shape[1])
    return dataclasses.replace(p, value=value, **changes), factors


def stream(seed=1):
    return np.random.default_rng([seed, 77])    # not the problem's stream: a random start from that one is the truth


def planted(truth, seed=3):
    """The last term is missing: noise has its place."""
    g = np.random.default_rng(seed)
    return tuple(np.concatenate([f[:, :-1], 0.2 * g.standard_normal((len(f), 1))], axis=1) for f in truth)


def cancelling(truth):
    """The last term is missing: the first is there twice, large, nearly opposite."""
    g, out = np.random.default_rng(4), []
    for k, f in enumerate(truth):
        first = 5 * f[:, :1] if k == 0 else f[:, :1]
        second = (-4 if k == 0 else 1) * f[:, :1] + 0.01 * g.standard_normal((len(f), 1))
        out.append(np.concatenate([first, f[:, 1:-1], second], axis=1))
    return tuple(out)


@pytest.mark.parametrize("spoilt", [planted, cancelling])
@pytest.mark.parametrize("noise", [1e-3, 0.5])
def test_one_exchange_mends_a_missing_term_and_a_cancelling_pair(spoilt, noise):
    p, truth = problem(noise=noise)
    layouts, config = Layouts(p), RepairConfig()
    start = spoilt(truth)
    best = min((solve_als(p, _exchanged(p, start, terms, layouts, stream()), ALSConfig(tol=1e-4)) for terms
                in _suspects(p, start, 2 * p.loss(start), config)), key=lambda fit: p.loss(fit.factors))
    assert distance(best.factors, truth) < 0.01 + 0.3 * noise
    assert p.loss(best.factors) <= p.loss(solve_als(p, truth, ALSConfig(tol=1e-6)).factors) * 1.01


def test_recovers_where_plain_descent_does_not():
    plain = repaired = 0
    for seed in range(10):
        p, truth = problem(share=0.1, seed=seed)     # 5 entries per free number
        start = random_start(p, generator=stream(seed))
        plain += distance(solve_als(p, start, ALSConfig(tol=1e-6)).factors, truth) < 0.01
        fit = solve_repaired(p, start, generator=stream(seed))
        repaired += distance(fit.factors, truth) < 0.05
    assert repaired >= 8
    assert plain <= 3


def test_collinear_terms():
    found = 0
    for seed in range(6):
        p, truth = problem(common=0.5, seed=seed)
        fit = solve_repaired(p, random_start(p, generator=stream(seed)), generator=stream(seed))
        found += distance(fit.factors, truth) < 0.05
    assert found == 6


@pytest.mark.parametrize("noise", [1e-3, 0.5])
def test_the_loss_never_rises_and_is_that_of_the_factors(noise):
    p, _ = problem(share=0.06, noise=noise)
    start = random_start(p, generator=stream())
    fit = solve_repaired(p, start, generator=stream())
    losses = [entry["loss"] for entry in fit.history]
    assert all(b <= a for a, b in zip([p.loss(start), *losses[:-1]], losses, strict=True))
    assert losses[-1] == pytest.approx(p.loss(fit.factors), rel=1e-6)


def test_a_good_fit_of_noisy_data_costs_few_rounds():
    for seed in range(5):
        p, truth = problem(noise=1.0, seed=seed)
        fit = solve_repaired(p, truth, generator=stream(seed))
        assert fit.stopped == "no exchange helps"
        assert len(fit.history) <= 4


def test_same_stream_same_bits():
    p, _ = problem(share=0.06)
    start = random_start(p, generator=stream())
    one, two = (solve_repaired(p, start, generator=stream(5)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(one.factors, two.factors, strict=True))


def test_the_start_is_left_as_it_is():
    p, _ = problem()
    start = random_start(p, generator=stream())
    copy = tuple(f.copy() for f in start)
    solve_repaired(p, start, generator=stream())
    assert all(np.array_equal(a, b) for a, b in zip(start, copy, strict=True))


def test_fixed_modes_stay_and_end_in_plain_descent():
    p, truth = problem(fixed=(False, True, False))
    start = tuple(f if k == 1 else np.ones_like(f) + 0.1 * np.random.default_rng(k).standard_normal(f.shape)
                  for k, f in enumerate(truth))
    fit = solve_repaired(p, start, generator=stream())
    assert np.array_equal(fit.factors[1], truth[1])
    assert fit.stopped == "a mode is fixed"
    assert len(fit.history) == 1


def test_non_negative_modes_stay_so_through_exchanges():
    p, truth = problem(non_negative=(True, True, True))
    truth = tuple(np.abs(f) for f in truth)
    p = dataclasses.replace(p, value=p.predict(truth))
    fit = solve_repaired(p, tuple(np.abs(f) for f in planted(truth)), RepairConfig(explained=0.0), generator=stream())
    assert all((f >= 0).all() for f in fit.factors)
    assert any(entry["exchanged"] for entry in fit.history)
    assert distance(fit.factors, truth) < 0.05


def test_worth_is_what_the_best_rescaling_of_the_others_leaves():
    p, truth = problem(noise=0.0)
    terms = np.stack([np.prod([f[i, r] for f, i in zip(truth, p.index, strict=True)], axis=0) for r in range(4)], axis=1)
    worth, square = _worth(p, truth)
    for r in range(4):
        others = np.delete(terms, r, axis=1)
        left = terms[:, r] - others @ np.linalg.lstsq(others, terms[:, r], rcond=None)[0]
        assert worth[r] == pytest.approx(left @ left / len(terms))
        assert square[r] == pytest.approx(terms[:, r] @ terms[:, r] / len(terms))


def test_the_ridge_lets_needless_terms_shrink():
    p, _ = problem(rank=2, noise=0.3)
    more = dataclasses.replace(p, rank=4)
    ridged, left = _ridged(more, random_start(more, generator=stream()), RepairConfig(ridged=40), Layouts(p))
    worth, square = _worth(more, ridged)
    assert left == pytest.approx(((more.value - more.predict(ridged)) ** 2).sum())
    assert (worth > 0.5 * square).all()          # and none cancels another
    assert np.sort(worth)[1] < 0.2 * np.sort(worth)[2]


@pytest.mark.parametrize(("shape", "rank"), [((12, 9), 2), ((9, 8, 7, 6), 3), ((12, 2, 3), 5), ((9, 8, 7), 1)])
def test_other_shapes_ranks_and_weights(shape, rank):
    p, _ = problem(shape, rank, share=0.8, noise=0.1)
    p = dataclasses.replace(p, weight=np.random.default_rng(0).uniform(0.5, 2, len(p.value)))
    fit = solve_repaired(p, random_start(p, generator=stream()), generator=stream())
    assert [f.shape for f in fit.factors] == [(size, rank) for size in shape]
    assert p.loss(fit.factors) < 0.2 * p.loss(tuple(0 * f for f in fit.factors))


def test_all_zero_data():
    p, _ = problem()
    p = dataclasses.replace(p, value=np.zeros_like(p.value))
    fit = solve_repaired(p, random_start(p, generator=stream()), generator=stream())
    assert np.isfinite(np.concatenate(fit.factors)).all()


@pytest.mark.parametrize(("change", "text"), [({"rounds": -1}, "rounds"), ({"sweeps": 0}, "sweeps"), ({"weak": 1.0}, "weak")])
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        RepairConfig(**change)
