import dataclasses

import numpy as np
import pytest

from lowrank_rl.tensor.solvers.anneal import AnnealConfig, anneal_start, random_start
from lowrank_rl.tensor.solvers.ccd import CCDConfig, solve_ccd
from lowrank_rl.tensor.solvers.lm import LMConfig, solve_lm
from lowrank_rl.tensor.solvers.multistart import MultistartConfig, _same_tensor, distance, solve
from lowrank_rl.tensor.solvers.problem import Fit, Problem


def problem(shape=(20, 20, 20), rank=3, entries=900, noise=1e-3, seed=0, **changes):
    g = np.random.default_rng(seed)
    factors = tuple(g.standard_normal((size, rank)) for size in shape)
    index = np.array(np.unravel_index(g.permutation(np.prod(shape))[:entries], shape), dtype=np.int32)
    K = len(shape)
    p = Problem(index, np.zeros(index.shape[1]), None, shape, rank, (0.0,) * K, (False,) * K, (False,) * K)
    value = p.predict(factors) + noise * g.standard_normal(index.shape[1])
    return dataclasses.replace(p, value=value, **changes), factors


def stream(seed):
    return np.random.default_rng([seed, 77])    # not the problem's stream: a random start from that one is the truth


def local(p, start):
    return solve_lm(p, start, LMConfig(max_iter=60, tolerance=1e-6))


def ccd(p, start):
    return solve_ccd(p, start, CCDConfig(max_iter=300, tolerance=1e-6))


def dense(factors):
    return np.einsum("ir,jr,kr->ijk", *factors)


def test_the_distance_is_that_of_the_dense_tensors():
    _, one = problem()
    _, two = problem(seed=1)
    expected = np.linalg.norm(dense(one) - dense(two)) / np.linalg.norm(dense(two))
    assert distance(one, two) == pytest.approx(expected)
    assert distance((one[0] * 2, one[1] / 2, one[2]), one) == pytest.approx(0, abs=1e-7)


def test_recovers_from_few_entries_what_single_random_starts_do_not():
    """3 entries per degree of freedom. Of 16 other problems: 0 by descent from a random start, 12 annealed once, 16 by all."""
    descent = annealed = many = 0
    for seed in range(10):
        p, truth = problem(entries=520, seed=seed)
        descent += distance(local(p, random_start(p, generator=stream(seed))).factors, truth) < 0.01
        annealed += distance(local(p, anneal_start(p, generator=stream(seed))).factors, truth) < 0.01
        many += distance(solve(p, local, seed=seed).factors, truth) < 0.01
    assert many >= 9
    assert annealed >= 4
    assert descent <= 2


def test_stops_when_the_data_are_explained():
    p, truth = problem(entries=4000)
    fit = solve(p, local, seed=0)
    assert fit.converged
    assert "explained after 1 start" in fit.stopped
    assert distance(fit.factors, truth) < 0.01


def test_stops_when_two_starts_agree_and_says_how_many():
    p, truth = problem(entries=4000, noise=0.5)
    fit = solve(p, local, seed=0)
    assert fit.converged
    assert f"2 of {len(fit.history)} starts agree" == fit.stopped
    assert fit.history[-1]["agreed"] == 2
    assert p.loss(fit.factors) == fit.history[-1]["best"] == min(entry["loss"] for entry in fit.history)
    assert p.loss(fit.factors) <= p.loss(local(p, truth).factors) * 1.001


@pytest.mark.parametrize("entries", [1300, 4000])
def test_fits_are_the_same_within_a_share_of_their_standard_error(entries):
    p, truth = problem(entries=entries, noise=0.7)       # a sixth of the mean square
    best, g = local(p, truth), np.random.default_rng(0)
    error = distance(best.factors, truth)
    left = 2 * p.loss(best.factors) / p.square()
    assert _same_tensor(p, MultistartConfig(noise=1.0), left) == pytest.approx(error, rel=0.3)

    def near_it(p, start):
        moved = tuple(f + 1e-4 * g.standard_normal(f.shape) for f in best.factors)
        step = 0.1 * error / distance(moved, best.factors)
        return Fit(tuple(f + step * (m - f) for f, m in zip(best.factors, moved, strict=True)), [], "made up", True)
    config = MultistartConfig(starts=4, anneal=AnnealConfig(sweeps=2))
    assert solve(p, near_it, config, seed=0).converged
    assert not solve(p, near_it, dataclasses.replace(config, noise=0.0), seed=0).converged


def test_a_minimum_that_nobody_else_finds_is_not_called_converged():
    p, _ = problem(entries=4000, noise=0.5)
    g = np.random.default_rng(0)

    def noise(p, start):
        return Fit(random_start(p, generator=g), [], "made up", True)
    fit = solve(p, noise, MultistartConfig(starts=4, anneal=AnnealConfig(sweeps=2)), seed=0)
    assert not fit.converged
    assert fit.stopped == "4 starts ran, 1 found the best loss"


def test_same_seed_same_bits_and_later_starts_change_no_earlier_one():
    p, _ = problem(entries=700)
    few, more = (MultistartConfig(starts=n, explained=0.0, agree=9, anneal=AnnealConfig(sweeps=30)) for n in (3, 5))
    one, two, three = solve(p, local, more, seed=4), solve(p, local, more, seed=4), solve(p, local, few, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(one.factors, two.factors, strict=True))
    losses = [[entry["loss"] for entry in fit.history] for fit in (one, three)]
    assert losses[0][:3] == losses[1]
    assert len({*losses[0]}) > 1


def test_non_negative_fits_by_ccd():
    p, truth = problem(entries=2500, non_negative=(True, True, True))
    truth = tuple(np.abs(f) for f in truth)
    p = dataclasses.replace(p, value=p.predict(truth))
    fit = solve(p, ccd, MultistartConfig(starts=6, anneal=AnnealConfig(sweeps=200)), seed=0)
    assert all((f >= 0).all() for f in fit.factors)
    assert distance(fit.factors, truth) < 0.05


def test_fixed_modes_stay_through_every_kind_of_start():
    p, truth = problem(entries=700, noise=0.3, fixed=(False, True, False))
    given = tuple(np.ones_like(f) if k != 1 else f for k, f in enumerate(truth))
    fit = solve(p, local, MultistartConfig(starts=5, agree=9, anneal=AnnealConfig(sweeps=50)), seed=0, start=given)
    assert np.array_equal(fit.factors[1], truth[1])
    assert [entry["kind"] for entry in fit.history] == ["given", "spectral", "random", "random", "annealed, heat 2"]
    with pytest.raises(ValueError, match="hold the fixed modes"):
        solve(p, local, seed=0)


@pytest.mark.parametrize("shape", [(12, 9), (6, 5, 4, 7)])
def test_other_numbers_of_modes_and_weights(shape):
    p, _ = problem(shape, 2, int(0.8 * np.prod(shape)), noise=0.1)
    p = dataclasses.replace(p, weight=np.random.default_rng(0).uniform(0.5, 2, len(p.value)), ridge=(0.1,) * len(shape))
    fit = solve(p, local, MultistartConfig(starts=6, anneal=AnnealConfig(sweeps=100)), seed=0)
    assert fit.converged
    assert p.loss(fit.factors) < 0.1 * p.loss(tuple(0 * f for f in fit.factors))


def test_annealing_with_a_weight_of_two_is_the_entry_twice():
    p, _ = problem()
    twice = dataclasses.replace(p, weight=np.full(len(p.value), 2.0))
    again = dataclasses.replace(p, index=np.concatenate([p.index] * 2, axis=1), value=np.concatenate([p.value] * 2))
    one, two = (anneal_start(q, AnnealConfig(sweeps=3), generator=np.random.default_rng(0)) for q in (twice, again))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_a_cold_chain_is_alternating_least_squares_with_the_prior():
    """heat -> 0: the noise and the prior vanish, so a sweep is one ALS sweep from the same random start."""
    p, _ = problem(entries=3000)
    ours = anneal_start(p, AnnealConfig(sweeps=1, heat=1e-16), generator=np.random.default_rng(3))
    factors = list(random_start(p, generator=np.random.default_rng(3)))
    for k in range(3):
        i, j = (m for m in range(3) if m != k)
        d = factors[i][p.index[i]] * factors[j][p.index[j]]
        for row in range(p.shape[k]):
            at = p.index[k] == row
            factors[k][row] = np.linalg.lstsq(d[at], p.value[at], rcond=None)[0]
    assert distance(ours, tuple(factors)) < 1e-5


def test_listeners_hear_of_every_start_and_sweep_and_change_no_number():
    p, _ = problem(entries=700, noise=0.5, ridge=(0.1, 0.1, 0.1))
    starts, sweeps = [], []

    def listen(entry, factors):
        sweeps.append((len(starts), entry, p.loss(factors)))
        factors[0][:] = np.nan     # its own copy
    config = MultistartConfig(starts=4, agree=9, anneal=AnnealConfig(sweeps=20))
    told = solve(p, local, config, seed=0, progress=starts.append, listener=listen)
    silent = solve(p, local, config, seed=0)
    assert all(np.array_equal(a, b) for a, b in zip(told.factors, silent.factors, strict=True))
    assert [entry["loss"] for entry in starts] == [entry["loss"] for entry in silent.history]
    assert {number for number, _, _ in sweeps} == {0, 1, 2, 3}
    for _, entry, loss in sweeps:
        assert entry["loss"] == pytest.approx(loss, rel=1e-6)
        assert entry["seconds"] >= 0
    assert {"kept" in entry for _, entry, _ in sweeps} == {True, False}   # ALS' own, and those that are ridged or annealed
    annealed = [entry["iteration"] for number, entry, _ in sweeps if number == 3]
    assert annealed[:20] == list(range(1, 21))


@pytest.mark.parametrize(("change", "text"), [({"starts": 0}, "starts"), ({"agree": 0}, "agree"), ({"same": 1.0}, "same"),
                                              ({"heats": ()}, "heats"), ({"cheap": -1}, "cheap")])
def test_bad_settings(change, text):
    with pytest.raises(ValueError, match=text):
        MultistartConfig(**change)
    with pytest.raises(ValueError, match="heat"):
        AnnealConfig(heat=0.0)
