"""Normal equations and squared errors against dense NumPy."""

import numpy as np
import pytest

from lowrank_rl.tensor.solvers import rows
from lowrank_rl.tensor.solvers.kernels import OtherRows, packed_size
from lowrank_rl.tensor.solvers.layout import sort_by_mode


def entries(shape, rank, count, weighted, seed=0):
    rng = np.random.default_rng(seed)
    index = np.stack([rng.integers(0, n, count) for n in shape]).astype(np.int32)
    weight = rng.random(count) + 0.5 if weighted else None
    return index, rng.standard_normal(count), weight, tuple(rng.standard_normal((n, rank)) for n in shape)


def witness(index, value, weight, factors, k):
    """G (I_k, R, R) and h (I_k, R), row by row."""
    size, rank = factors[k].shape
    weight = np.ones(len(value)) if weight is None else weight
    C = np.prod([factors[m][index[m]] for m in range(len(factors)) if m != k], axis=0)
    G, h = np.zeros((size, rank, rank)), np.zeros((size, rank))
    for i in range(size):
        here = index[k] == i
        G[i] = (C[here] * weight[here, None]).T @ C[here]
        h[i] = C[here].T @ (weight * value)[here]
    return G, h


def blank(size, rank):
    return np.zeros((size, packed_size(rank))), np.zeros((size, rank))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rank", [*range(1, 19), 23, 24, 25, 31, 32, 33, 64])
def test_every_rank_gives_the_dense_normal_equations(rank, weighted):
    index, value, weight, factors = entries((4, 6, 5), rank, 200, weighted)
    gram, rhs = blank(6, rank)
    OtherRows(sort_by_mode(index, value, weight, (4, 6, 5), 1), factors).add_normal(0, gram, rhs)
    G, h = witness(index, value, weight, factors, 1)
    np.testing.assert_allclose(rows.unpack(gram, rank), G, atol=1e-10)
    np.testing.assert_allclose(rhs, h, atol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (4, 6, 5), (3, 4, 5, 6), (3, 4, 2, 5, 3), (3, 2, 3, 4, 2, 3), (70_000, 3, 70_000)])
def test_every_order_and_mode(shape, weighted):
    index, value, weight, factors = entries(shape, 5, 150, weighted)
    model = np.prod([f[i] for f, i in zip(factors, index, strict=True)], axis=0).sum(1)
    square = ((1 if weight is None else weight) * (value - model) ** 2).sum()
    for k, size in enumerate(shape):
        others = OtherRows(sort_by_mode(index, value, weight, shape, k), factors)
        assert others.squared_error(factors[k]) == pytest.approx(square, rel=1e-12)
        if size < 100:
            gram, rhs = blank(size, 5)
            others.add_normal(0, gram, rhs)
            G, h = witness(index, value, weight, factors, k)
            np.testing.assert_allclose(rows.unpack(gram, 5), G, atol=1e-10)
            np.testing.assert_allclose(rhs, h, atol=1e-10)


def test_blocks_of_rows_and_chunks_of_entries_add_up_to_the_whole():
    shape = (9, 6, 5)
    index, value, weight, factors = entries(shape, 4, 500, True)
    gram, rhs = blank(9, 4)
    others = OtherRows(sort_by_mode(index, value, weight, shape, 0), factors)
    others.add_normal(0, gram, rhs)
    parts, sides = blank(9, 4)
    for first in range(0, 9, 4):
        others.add_normal(first, parts[first:first + 4], sides[first:first + 4])
    assert (parts == gram).all()
    assert (sides == rhs).all()
    parts, sides = blank(9, 4)
    for chunk in np.array_split(np.random.default_rng(1).permutation(500), 7):
        sort = sort_by_mode(index[:, chunk], value[chunk], weight[chunk], shape, 0)
        OtherRows(sort, factors).add_normal(0, parts, sides)
    np.testing.assert_allclose(parts, gram, rtol=1e-12)
    np.testing.assert_allclose(sides, rhs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_rows_solve_their_least_squares_problem(ridge):
    rng = np.random.default_rng(0)
    gram, rhs = blank(5, 6)
    designs = [rng.standard_normal((n, 6)) for n in (20, 6, 3, 1, 0)]
    values = [rng.standard_normal(len(C)) for C in designs]
    a, b = np.triu_indices(6)
    for i, (C, y) in enumerate(zip(designs, values, strict=True)):
        gram[i], rhs[i] = (C.T @ C)[a, b], C.T @ y
    factor = rng.standard_normal((5, 6))
    gain = rows.solve(gram, rhs, ridge, factor)
    for C, y, row in zip(designs, values, factor, strict=True):
        tall = np.vstack([C, np.sqrt(ridge) * np.eye(6)])
        best = np.linalg.lstsq(tall, np.append(y, np.zeros(6)), rcond=None)[0]   # of least norm where many are best
        np.testing.assert_allclose(row, best, atol=1e-6)
    error = sum(((y - C @ row) ** 2).sum() - y @ y for C, y, row in zip(designs, values, factor, strict=True))
    assert gain == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("warm", [False, True])
def test_non_negative_rows_agree_with_scipy(ridge, warm):
    from scipy.optimize import nnls
    rng = np.random.default_rng(0)
    n, rank = 60, 7
    gram, rhs = blank(n, rank)
    designs = [rng.standard_normal((rng.integers(0, 25), rank)) + 0.5 for _ in range(n)]
    values = [rng.standard_normal(len(C)) for C in designs]
    a, b = np.triu_indices(rank)
    for i, (C, y) in enumerate(zip(designs, values, strict=True)):
        gram[i], rhs[i] = (C.T @ C)[a, b], C.T @ y
    factor = np.abs(rng.standard_normal((n, rank))) if warm else np.zeros((n, rank))
    rows.solve_non_negative(gram, rhs, ridge, factor)
    assert (factor >= 0).all()
    for C, y, row in zip(designs, values, factor, strict=True):
        tall, high = np.vstack([C, np.sqrt(ridge) * np.eye(rank)]), np.append(y, np.zeros(rank))
        assert np.linalg.norm(tall @ row - high) <= nnls(tall, high)[1] + 1e-7


def test_kernels_compile_where_no_cache_can_be_written(monkeypatch):
    from numba.core import caching

    from lowrank_rl.tensor.solvers.compiled import compiled
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert compiled()(_double)(2) == 4


def _double(x):
    return 2 * x
