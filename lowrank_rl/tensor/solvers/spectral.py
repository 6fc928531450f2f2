"""A start for CP completion from the leading eigenvectors of the unfoldings, on the observed entries only.

    G_k = M_k M_k' - (1 - p) diag(M_k M_k'),   M_k: the mode-k unfolding, 0 where nothing is observed, p: share observed

With entries missing at random, M_k M_k' is in the mean p^2 times the full tensor's Gram matrix, but p times on the diagonal.
Differs: Montanari & Sun 2016 and Cai, Li, Poor & Chen 2019 drop the diagonal, which is the same for p -> 0; this one is also
right where much is observed or a mode is short. Its R leading eigenvectors U_k estimate the span of the factor A_k.
Power iterations sharpen them (Xia, Yuan & Zhang 2021): U_k becomes the leading left singular vectors of M_k (U_j x U_l),
whose noise has R^2 columns instead of one per fibre.
The terms are those of a CP of the core, the tensor projected on the spans: Jennrich's algorithm, then dense ALS.
Needs O(B + sum_k I_k R^2) memory, and I_k^2 for modes up to DENSE rows.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import scipy.linalg

from lowrank_rl.tensor.solvers.compiled import compiled
from lowrank_rl.tensor.solvers.problem import Factors, Problem

Times = Callable[[np.ndarray], np.ndarray]   # a symmetric matrix times a block of columns

DENSE = 2000     # modes up to this size form G_k; larger ones multiply by it
EXACT = 150      # up to this size: all eigenvectors
CLIP = 2.0       # times the values' root mean square, over the share that is missing
DEPTH = 6        # products with G_k, else
SHARPEN = 1      # power iterations
WIDTH = 16       # directions of a span that a power iteration uses; half the rank, if that is more
TRIES = 8        # of Jennrich's algorithm, at most,
SAME = 1e-2      # until one ends in the best error so far again, nearly
SCALING = 2000   # entries per term that its scale is fitted to


def spectral_start(problem: Problem, *, generator: np.random.Generator) -> Factors:
    """Factors near the terms that the unfoldings show, at the data's scale; different generators, different guesses.

    Rows without data are zero. Non-negative modes get magnitudes. Fixed modes are guessed like the others: replace them.
    """
    K, R = len(problem.shape), problem.rank
    value = _clipped(problem)
    if problem.weight is not None:    # entries that are hardly trusted must not lead; the others count as they are
        value = value * np.minimum(1.0, problem.weight / problem.weight.mean())
    spans = [_span(problem, value, k, generator) for k in range(K)]
    for _ in range(SHARPEN):
        for k in range(K):
            others = [j for j in range(K) if j != k]
            spans[k] = _leading(_contracted(problem, value, spans, k, others, max(WIDTH, R // 2), generator), R)
    lead, *others = sorted(range(K), key=lambda k: -problem.shape[k])
    parts: list = [None] * K
    parts[lead], parts[others[0]], third = _terms(problem, value, spans, lead, others, generator)
    if K == 3:
        parts[others[1]] = third
    for k in others[1:] if K > 3 else ():
        slice_ = _slice(problem, value, spans, lead, k, generator)
        parts[k] = (np.linalg.pinv(parts[lead], rcond=1e-6) @ slice_).T
    factors = [_unit(span @ part) for span, part in zip(spans, parts, strict=True)]
    factors = [_widened(f, R, np.bincount(problem.index[k], minlength=f.shape[0]) > 0, generator)
               for k, f in enumerate(factors)]
    factors = [np.abs(f) if n else f for f, n in zip(factors, problem.non_negative, strict=True)]
    return _scaled(problem, factors)


def _clipped(problem: Problem) -> np.ndarray:
    """Products of factors have heavy tails, and where little is observed a few large values hide the rest."""
    value = problem.value
    missing = max(0.0, 1 - len(value) / math.prod(problem.shape))
    if missing == 0:
        return value
    largest = CLIP / missing * math.sqrt(value @ value / len(value))
    return np.clip(value, -largest, largest)


def _span(problem: Problem, value: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """(I_k, min(R, I_k)): leading eigenvectors of G_k."""
    size, width = problem.shape[k], min(problem.rank, problem.shape[k])
    seen, times, gram = _gram(problem, value, k)
    if gram is not None and size <= EXACT:
        return scipy.linalg.eigh(gram, subset_by_index=(size - width, size - 1))[1][:, ::-1]
    return _block_krylov(times, generator.standard_normal((size, width + 6)) * seen[:, None], width)


def _gram(problem: Problem, value: np.ndarray, k: int) -> tuple[np.ndarray, Times, np.ndarray | None]:
    """The rows with data, the product of G_k with a block of columns, and G_k itself if it is small."""
    size = problem.shape[k]
    order, start = _by_fibre(problem.index, k, problem.shape)
    row, value = problem.index[k][order], value[order]
    share = min(1.0, len(value) / math.prod(problem.shape))
    if size <= DENSE:
        gram = np.zeros((size, size))
        _add_gram(start, row, value, gram)
        seen = gram.diagonal() > 0
        gram.flat[::size + 1] *= share
        return seen, partial(np.matmul, gram), gram
    diagonal = np.bincount(row, value * value, size)

    def times(block: np.ndarray) -> np.ndarray:
        product = (share - 1) * diagonal[:, None] * block
        _add_gram_times(start, row, value, np.ascontiguousarray(block), product)
        return product
    return diagonal > 0, times, None


def _block_krylov(times: Times, block: np.ndarray, width: int) -> np.ndarray:
    """The ``width`` leading eigenvectors of a symmetric matrix, nearly (Musco & Musco 2015)."""
    blocks = [np.linalg.qr(block)[0]]
    for _ in range(DEPTH):
        blocks.append(np.linalg.qr(times(blocks[-1]))[0])
        if sum(b.shape[1] for b in blocks) + block.shape[1] > len(block):
            break
    basis = np.linalg.qr(np.concatenate(blocks, axis=1))[0]
    small = basis.T @ times(basis)
    size = len(small)
    return basis @ scipy.linalg.eigh(small + small.T, subset_by_index=(size - width, size - 1))[1][:, ::-1]


def _leading(matrix: np.ndarray, rank: int) -> np.ndarray:
    """The leading left singular vectors, as many as ``rank`` if the matrix has them; rows of zeros stay zero."""
    rows, columns = matrix.shape
    width = min(rank, rows)
    if columns >= rows or columns < width:
        return np.linalg.svd(matrix, full_matrices=columns < width)[0][:, :width]
    vectors = scipy.linalg.eigh(matrix.T @ matrix, subset_by_index=(columns - width, columns - 1))[1][:, ::-1]
    return np.linalg.qr(matrix @ vectors)[0]


def _contracted(problem: Problem, value: np.ndarray, spans: list[np.ndarray], k: int, others: list[int], limit: int,
                generator: np.random.Generator) -> np.ndarray:
    """(I_k, columns): M_k times at most ``limit`` directions of the first other span, each with as many of the rest.

    If the rest is one mode and its span not wider than ``limit``, these are all pairs.
    """
    one, *rest = others
    parts = [_narrowed(spans[m], limit, generator) if len(rest) == 1 else
             spans[m] @ generator.standard_normal((spans[m].shape[1], limit)) for m in rest]
    return _products(problem, value, k, one, rest, _narrowed(spans[one], limit, generator), parts)


def _products(problem: Problem, value: np.ndarray, k: int, one: int, rest: list[int], first: np.ndarray,
              parts: list[np.ndarray]) -> np.ndarray:
    """(I_k, columns): M_k times each column of ``first``, mode one's, with each column that ``parts`` make, the rest's."""
    second = np.concatenate(parts or [np.ones((1, 1))])
    offset = np.cumsum([0, *map(len, parts)])[:-1]
    out = np.zeros((problem.shape[k], first.shape[1] * second.shape[1]))
    _contract(problem.index, value, k, one, np.array(rest, np.int64), np.ascontiguousarray(first), second, offset, out)
    return out


def _narrowed(span: np.ndarray, limit: int, generator: np.random.Generator) -> np.ndarray:
    if span.shape[1] <= limit:
        return span
    return span @ np.linalg.qr(generator.standard_normal((span.shape[1], limit)))[0]


def _slice(problem: Problem, value: np.ndarray, spans: list[np.ndarray], j: int, k: int,
           generator: np.random.Generator) -> np.ndarray:
    """U_j' X U_k, X the tensor with every other mode contracted with a random vector of its span."""
    contracted = value.copy()
    for other, span in enumerate(spans):
        if other not in (j, k):
            contracted *= (span @ generator.standard_normal(span.shape[1]))[problem.index[other]]
    return spans[j].T @ _products(problem, contracted, j, k, [], spans[k], [])


def _terms(problem: Problem, value: np.ndarray, spans: list[np.ndarray], lead: int, others: list[int],
           generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The terms in the spans of the two largest modes, and of the third (if there are more: of random mixtures)."""
    one, two = spans[lead].shape[1], spans[others[0]].shape[1]
    core = (spans[lead].T @ _contracted(problem, value, spans, lead, others, problem.rank, generator)).reshape(one, two, -1)
    if len(spans) == 2:                      # a matrix has no own terms: take the singular vectors'
        left, _, right = np.linalg.svd(core[:, :, 0])
        width = min(one, two)
        return left[:, :width], right.T[:, :width], np.ones((1, width))
    core /= np.linalg.norm(core) or 1.0
    best, terms = math.inf, None
    for _ in range(TRIES):
        before, (error, found) = best, _als(core, _jennrich(core, problem.rank, generator))
        if terms is None or error < best:
            best, terms = error, found
        if abs(error - before) < SAME * best:
            break
    return terms


def _jennrich(core: np.ndarray, rank: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Three factors: eigenvectors of X_1 pinv(X_2), two random slices; real parts where a pair is complex."""
    one, two = (core @ generator.standard_normal(core.shape[2]) for _ in range(2))
    values, vectors = np.linalg.eig(one @ np.linalg.pinv(two, rcond=1e-6))
    order = np.argsort(-np.abs(values), kind="stable")[:min(rank, *core.shape[:2])]
    real = _unit(np.where(values.imag[order] < 0, vectors.imag[:, order], vectors.real[:, order]))   # a pair spans a plane
    second = _unit((np.linalg.pinv(real, rcond=1e-6) @ one).T)
    extra = rank - real.shape[1]
    factors = [np.concatenate([f, _unit(generator.standard_normal((len(f), extra)))], axis=1) for f in (real, second)]
    return [*factors, np.zeros((core.shape[2], rank))]


def _als(core: np.ndarray, factors: list[np.ndarray], sweeps: int = 20) -> tuple[float, list[np.ndarray]]:
    """Dense alternating least squares: squared error, and factors with unit columns but the third's."""
    unfolded = [np.moveaxis(core, k, 0).reshape(core.shape[k], -1) for k in range(3)]
    error = math.inf
    for sweep in range(sweeps):
        for k in ((2, 0, 1) if sweep + 1 < sweeps else (2,)):
            a, b = (factors[j] for j in range(3) if j != k)
            gram = (a.T @ a) * (b.T @ b)
            gram.flat[::len(gram) + 1] += 1e-9 * gram.trace() / len(gram) + 1e-300
            products = (a[:, None] * b[None]).reshape(-1, a.shape[1])
            right = unfolded[k] @ products
            factors[k] = np.linalg.solve(gram, right.T).T
            if k < 2:
                factors[k] = _unit(factors[k])
            else:
                before, error = error, 1 - 2 * (right * factors[2]).sum() + ((factors[2].T @ factors[2]) * gram).sum()
        if error > before * (1 - 1e-3) or error < 1e-12:
            break
    return error, factors


def _unit(columns: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(columns, axis=0)
    return columns / np.where(norm > 0, norm, 1.0)


def _widened(factor: np.ndarray, rank: int, seen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """R unit columns: random ones where the spans gave none."""
    factor[~seen] = 0
    missing = np.flatnonzero(np.linalg.norm(factor, axis=0) == 0)
    factor[:, missing] = _unit(generator.standard_normal((len(factor), len(missing))) * seen[:, None])
    extra = generator.standard_normal((len(factor), rank - factor.shape[1])) * seen[:, None]
    return np.concatenate([factor, _unit(extra)], axis=1)


def _scaled(problem: Problem, factors: list[np.ndarray]) -> Factors:
    """Each term times a number, shared over the modes: least squares on some observed entries, slightly ridged."""
    some = slice(None, None, max(1, len(problem.value) // (SCALING * problem.rank)))
    terms = np.ones((len(problem.value[some]), problem.rank))
    for factor, i in zip(factors, problem.index, strict=True):
        terms *= factor[i[some]]
    weighted = terms if problem.weight is None else terms * problem.weight[some, None]
    gram, K = weighted.T @ terms, len(factors)
    size = gram.diagonal().mean()
    if not size > 0:
        return tuple(factors)
    scale = np.linalg.solve(gram + 1e-3 * size * np.eye(len(gram)), weighted.T @ problem.value[some])
    share = np.maximum(np.abs(scale), 1e-3 * np.abs(scale).max(initial=0)) ** (1 / K)
    out = [factor * share for factor in factors]
    free = next((k for k in range(K) if not problem.non_negative[k]), None)
    if free is not None:
        out[free] = out[free] * np.where(scale < 0, -1.0, 1.0)
    return tuple(np.ascontiguousarray(f) for f in out) if math.isfinite(share.sum()) else tuple(factors)


def _by_fibre(index: np.ndarray, k: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """An order of the entries in which those of a mode-k fibre stand together, and where each fibre starts."""
    order = np.arange(index.shape[1], dtype=np.int32 if index.shape[1] < 2**31 else np.int64)
    for j in range(len(shape)):
        if j != k:
            order = _stably_sorted(index, j, order, shape[j])
    return order, _starts(index, k, order)


@compiled()
def _stably_sorted(index: np.ndarray, k: int, order: np.ndarray, size: int) -> np.ndarray:
    place = np.zeros(size + 1, np.int64)
    for b in range(len(order)):
        place[index[k, b] + 1] += 1
    for i in range(1, size + 1):
        place[i] += place[i - 1]
    out = np.empty_like(order)
    for b in order:
        i = index[k, b]
        out[place[i]] = b
        place[i] += 1
    return out


@compiled()
def _starts(index: np.ndarray, k: int, order: np.ndarray) -> np.ndarray:
    start = np.empty(len(order) + 1, order.dtype)
    count = 0
    for q in range(len(order)):
        new = q == 0
        for j in range(len(index)):
            new |= j != k and index[j, order[q]] != index[j, order[q - 1]]
        if new:
            start[count] = q
            count += 1
    start[count] = len(order)
    return start[:count + 1]


@compiled()
def _add_gram(start: np.ndarray, row: np.ndarray, value: np.ndarray, gram: np.ndarray) -> None:
    for f in range(len(start) - 1):
        for p in range(start[f], start[f + 1]):
            into = gram[row[p]]
            into[row[p]] += value[p] ** 2
            for q in range(start[f], p):
                into[row[q]] += value[p] * value[q]
    for i in range(len(gram)):
        for j in range(i):
            both = gram[i, j] + gram[j, i]
            gram[i, j] = both
            gram[j, i] = both


@compiled(fastmath={"reassoc", "contract", "nsz"})
def _add_gram_times(start: np.ndarray, row: np.ndarray, value: np.ndarray, block: np.ndarray, product: np.ndarray) -> None:
    width = block.shape[1]
    sums = np.empty(width)
    for f in range(len(start) - 1):
        sums[:] = 0.0
        for p in range(start[f], start[f + 1]):
            for c in range(width):
                sums[c] += value[p] * block[row[p], c]
        for p in range(start[f], start[f + 1]):
            for c in range(width):
                product[row[p], c] += value[p] * sums[c]


@compiled(fastmath={"reassoc", "contract", "nsz"})
def _contract(index: np.ndarray, value: np.ndarray, k: int, one: int, rest: np.ndarray, first: np.ndarray, second: np.ndarray,
              offset: np.ndarray, out: np.ndarray) -> None:
    """out[index[k, b], (a, c)] += value[b] first[index[one, b], a] prod_m second[offset[m] + index[rest[m], b], c]"""
    width, depth = first.shape[1], second.shape[1]
    right = np.empty(depth)
    for b in range(len(value)):
        for c in range(depth):
            right[c] = value[b]
        for m in range(len(rest)):
            row = offset[m] + index[rest[m], b]
            for c in range(depth):
                right[c] *= second[row, c]
        i, o = index[k, b], index[one, b]
        for a in range(width):
            left = first[o, a]
            for c in range(depth):
                out[i, a * depth + c] += left * right[c]
