import dataclasses

import numpy as np
import pytest
import scipy.linalg

from lowrank_rl.tensor.solvers import spectral
from lowrank_rl.tensor.solvers.anneal import random_start
from lowrank_rl.tensor.solvers.problem import Problem
from lowrank_rl.tensor.solvers.spectral import spectral_start


def problem(shape=(30, 25, 20), rank=3, share=0.4, noise=0.05, seed=0, **changes):
    g = np.random.default_rng(seed)
    factors = tuple(g.standard_normal((size, rank)) for size in shape)
    index = np.array(np.unravel_index(g.permutation(np.prod(shape))[:int(share * np.prod(shape))], shape), dtype=np.int32)
    K = len(shape)
    p = Problem(index, np.zeros(index.shape[1]), None, shape, rank, (0.0,) * K, (False,) * K, (False,) * K)
    value = p.predict(factors) + noise * g.standard_normal(index.shape[1])
    return dataclasses.replace(p, value=value, **changes), factors


def stream(seed=1):
    return np.random.default_rng([seed, 77])    # not the problem's stream: a random start from that one is the truth


def overlap(start, truth):
    """Mean squared cosine of the factors' spans: 1 where they are the same, R / I_k in the mean for random ones."""
    return np.mean([np.cos(scipy.linalg.subspace_angles(a, b)) ** 2 for a, b in zip(start, truth, strict=True)])


@pytest.mark.parametrize("shape", [(30, 25, 20), (14, 13, 12, 11), (200, 8, 90)])
def test_finds_the_spans_of_the_factors_and_nearly_the_terms(shape):
    found, loss = [], []
    for seed in range(5):
        p, truth = problem(shape, seed=seed)
        start = spectral_start(p, generator=stream())
        assert [f.shape for f in start] == [f.shape for f in truth]
        found.append(overlap(start, truth))
        loss.append(p.loss(start) / p.loss(tuple(0 * f for f in start)))
    assert np.mean(found) > 0.85
    assert np.mean(loss) < 0.75


def test_is_exact_where_everything_is_observed_without_noise():
    for shape in ((9, 8, 7), (5, 4, 6, 3), (4, 12, 3)):
        p, truth = problem(shape, share=1.0, noise=0.0)
        start = spectral_start(p, generator=stream())
        assert overlap(start, truth) > 1 - 1e-9
        assert p.loss(start) < 0.02 * p.loss(tuple(0 * f for f in start))    # the terms' scale is ridged


def test_beats_random_starts_in_loss():
    for seed in range(5):
        p, _ = problem(share=0.15, seed=seed)
        best_random = min(p.loss(random_start(p, generator=stream(s))) for s in range(20))
        assert p.loss(spectral_start(p, generator=stream())) < 0.7 * best_random


def test_the_sparse_eigensolver_finds_the_dense_one_s_span(monkeypatch):
    p, _ = problem((60, 50, 40), share=0.2)
    dense = spectral._span(p, p.value, 0, stream())
    monkeypatch.setattr(spectral, "DENSE", 0)
    assert scipy.linalg.subspace_angles(dense, spectral._span(p, p.value, 0, stream())).max() < 1e-2


def test_the_gram_matrix_is_that_of_the_dense_unfolding(monkeypatch):
    p, _ = problem((6, 5, 4), rank=2)
    full = np.zeros(p.shape)
    full[tuple(p.index)] = p.value
    unfolding = full.transpose(1, 0, 2).reshape(5, -1)
    expected = unfolding @ unfolding.T
    expected -= (1 - len(p.value) / full.size) * np.diag(np.diag(expected))
    np.testing.assert_allclose(spectral._gram(p, p.value, 1)[2], expected, atol=1e-12)
    monkeypatch.setattr(spectral, "DENSE", 0)
    np.testing.assert_allclose(spectral._gram(p, p.value, 1)[1](np.eye(5)), expected, atol=1e-12)


def test_same_stream_same_bits_and_another_stream_another_start():
    p, _ = problem()
    one, two, other = (spectral_start(p, generator=stream(s)) for s in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not np.allclose(one[0], other[0])


@pytest.mark.parametrize(("shape", "rank"), [((12, 2, 3), 5), ((3, 2, 2), 6), ((9, 8), 3), ((2, 1, 3), 2)])
def test_more_terms_than_rows_and_odd_shapes(shape, rank):
    p, _ = problem(shape, rank, share=0.9)
    start = spectral_start(p, generator=stream())
    assert [f.shape for f in start] == [(size, rank) for size in shape]
    assert np.isfinite(np.concatenate(start)).all()
    assert all((np.linalg.norm(f, axis=0) > 0).all() for f in start)


def test_rows_without_data_are_zero():
    p, _ = problem()
    keep = p.index[1] != 7
    p = dataclasses.replace(p, index=p.index[:, keep], value=p.value[keep])
    start = spectral_start(p, generator=stream())
    assert np.array_equal(start[1][7], np.zeros(3))


def test_entries_of_hardly_any_weight_do_not_lead():
    p, truth = problem()
    broken = np.arange(len(p.value)) % 50 == 0
    p = dataclasses.replace(p, value=np.where(broken, 100.0, p.value), weight=np.where(broken, 1e-6, 1.0))
    assert overlap(spectral_start(p, generator=stream()), truth) > 0.85
    assert overlap(spectral_start(dataclasses.replace(p, weight=None), generator=stream()), truth) < 0.7


def test_non_negative_modes_and_all_zero_data():
    p, _ = problem(non_negative=(True, True, True))
    assert all((f >= 0).all() for f in spectral_start(p, generator=stream()))
    p = dataclasses.replace(p, value=np.zeros_like(p.value))
    assert np.isfinite(np.concatenate(spectral_start(p, generator=stream()))).all()
