"""The sums in torch are those of the compiled kernels."""

import numpy as np
import pytest
import torch

from lowrank_rl.tensor.solvers import engine_torch
from lowrank_rl.tensor.solvers.als import ALSConfig, InMemory, solve_als
from lowrank_rl.tensor.solvers.engine_torch import TorchEngine
from lowrank_rl.tensor.solvers.kernels import packed_size
from lowrank_rl.tensor.solvers.problem import Problem

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(),
                                                                                  reason="needs a GPU")])]


def make(shape=(8, 9, 7), rank=2, count=300, weighted=False, ridge=0.0, non_negative=False, seed=0):
    rng = np.random.default_rng(seed)
    cells = rng.choice(int(np.prod(shape)), min(count, int(np.prod(shape)) // 2), replace=False)
    index = np.stack(np.unravel_index(cells, shape)).astype(np.int32)
    truth = [rng.random((n, rank)) for n in shape]
    value = np.prod([f[i] for f, i in zip(truth, index, strict=True)], axis=0).sum(1) + 0.1 * rng.standard_normal(len(cells))
    K = len(shape)
    problem = Problem(index, value, rng.random(len(cells)) + 0.5 if weighted else None, shape, rank, (ridge,) * K,
                      (non_negative,) * K, (False,) * K)
    return problem, tuple(rng.random((n, rank)) for n in shape)


def normal(engine, factors, k):
    """All blocks in one, copied."""
    size, rank = factors[k].shape
    gram, rhs = np.full((size, packed_size(rank)), np.nan), np.full((size, rank), np.nan)
    for where, G, h in engine.normal(factors, k):
        assert G.flags.c_contiguous
        assert h.flags.c_contiguous
        gram[where], rhs[where] = G, h
    return gram, rhs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(30, 20), (8, 9, 7), (5, 6, 4, 5), (900, 3, 4), (2, 400, 400)])
def test_normal_equations_and_errors_are_those_of_the_kernels(shape, weighted, small, device, monkeypatch):
    if small:   # many blocks of rows, and cuts within rows
        monkeypatch.setattr(engine_torch, "HOST_BYTES", 2000)
        monkeypatch.setattr(engine_torch, "DEVICE_BYTES", 2000)
        monkeypatch.setattr(engine_torch, "BLOCK_BYTES", 600)
    problem, factors = make(shape, 3, 3000, weighted)
    memory, engine = InMemory(problem), TorchEngine(problem, device)
    assert engine.square == pytest.approx(memory.square, rel=1e-13)
    assert engine.squared_error(factors) == pytest.approx(memory.squared_error(factors), rel=1e-12)
    for k in range(len(shape)):
        for one, two in zip(normal(engine, factors, k), normal(memory, factors, k), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("non_negative", [False, True])
def test_als_gives_the_same_factors(non_negative, ridge, device):
    problem, start = make(weighted=True, ridge=ridge, non_negative=non_negative)
    config = ALSConfig(max_iter=10, tol=0.0)
    one, two = solve_als(problem, start, config), solve_als(problem, start, config, engine=TorchEngine(problem, device))
    assert one.history[-1]["loss"] == pytest.approx(two.history[-1]["loss"], rel=1e-10)
    for a, b in zip(one.factors, two.factors, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("device", DEVICES)
def test_the_same_sums_twice_are_the_same_bits(device):
    problem, factors = make((20, 30, 40), 4, 5000)
    engine = TorchEngine(problem, device)
    for k in range(3):
        for one, two in zip(normal(engine, factors, k), normal(engine, factors, k), strict=True):
            assert (one == two).all()


def test_bad_devices_are_refused():
    problem, _ = make()
    with pytest.raises(ValueError, match="device 'abacus'"):
        TorchEngine(problem, "abacus")
