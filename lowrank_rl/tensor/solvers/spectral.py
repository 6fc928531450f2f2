"""A start for CP completion from the leading eigenvectors of the unfoldings, on the observed entries only.

    G_k = M_k M_k' - (1 - p) diag(M_k M_k'),   M_k: the mode-k unfolding, 0 where nothing is observed, p: share observed

With entries missing at random, M_k M_k' is in the mean p^2 times the full tensor's Gram matrix, but p times on the diagonal.
Differs: Montanari & Sun 2016 and Cai, Li, Poor & Chen 2019 drop the diagonal, which is the same for p -> 0; this one is also
right where much is observed or a mode is short. Its R leading eigenvectors U_k estimate the span of the factor A_k.
The terms within the spans come from two random slices, as in Jennrich's algorithm: contracting every mode but two with
random vectors of their spans gives X = A_j D A_k', and A_j diagonalises X_1 pinv(X_2).
Needs O(B R) memory.
"""

import math

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from lowrank_rl.tensor.solvers.problem import Factors, Problem

DENSE = 500   # modes up to this size take a dense eigenvalue solver


def spectral_start(problem: Problem, *, generator: np.random.Generator) -> Factors:
    """Factors near the terms that the unfoldings show, at the data's scale; different generators, different slices.

    Rows without data are zero. Terms that cannot be told apart in this way (R above the size of the second largest mode)
    are small random ones. Non-negative modes get magnitudes. Fixed modes are guessed like the others: replace them.
    """
    K, R = len(problem.shape), problem.rank
    value = problem.value
    if problem.weight is not None:    # entries that are hardly trusted must not lead; the others count as they are
        value = value * np.minimum(1.0, problem.weight / problem.weight.mean())
    spans = [_span(problem, value, k, generator) for k in range(K)]
    lead, *others = sorted(range(K), key=lambda k: -problem.shape[k])
    core: list = [None] * K                                                 # (width of span k, terms)
    core[lead] = _terms(problem, value, spans, lead, others[0], generator)
    for k in others:
        slice_ = _slice(problem, value, spans, lead, k, generator)
        core[k] = (np.linalg.pinv(core[lead], rcond=1e-6) @ slice_).T
    factors = [_unit(span @ c) for span, c in zip(spans, core, strict=True)]
    factors = [_widened(f, R, np.bincount(problem.index[k], minlength=f.shape[0]) > 0, generator)
               for k, f in enumerate(factors)]
    factors = [np.abs(f) if n else f for f, n in zip(factors, problem.non_negative, strict=True)]
    return _scaled(problem, factors)


def _unfolding(problem: Problem, value: np.ndarray, k: int) -> scipy.sparse.csr_array:
    """(I_k, number of columns with data): columns are counted where there is data, so any shape fits."""
    column = np.zeros(len(value), dtype=np.int64)
    for j, size in enumerate(problem.shape):
        if j != k:
            column = np.unique(column * size + problem.index[j], return_inverse=True)[1]
    return scipy.sparse.csr_array((value, (problem.index[k], column)), shape=(problem.shape[k], int(column.max()) + 1))


def _span(problem: Problem, value: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    """(I_k, min(R, I_k)): leading eigenvectors of G_k."""
    size, width = problem.shape[k], min(problem.rank, problem.shape[k])
    unfolding = _unfolding(problem, value, k)
    diagonal = np.asarray(unfolding.multiply(unfolding).sum(1)).ravel()
    excess = (1 - min(1.0, len(value) / math.prod(problem.shape))) * diagonal
    guess = generator.standard_normal(size)
    if size <= max(DENSE, 2 * width):
        gram = (unfolding @ unfolding.T).toarray() - np.diag(excess)
        vectors = np.linalg.eigh(gram)[1][:, ::-1][:, :width]
    else:
        gram = scipy.sparse.linalg.LinearOperator(
            (size, size), dtype=np.float64, matvec=lambda v: unfolding @ (unfolding.T @ v.ravel()) - excess * v.ravel())
        try:
            vectors = scipy.sparse.linalg.eigsh(gram, width, which="LA", v0=guess, tol=1e-3, maxiter=50 * width + 500)[1]
        except scipy.sparse.linalg.ArpackNoConvergence as error:   # those that have converged; a start needs no more
            rest = generator.standard_normal((size, width - error.eigenvectors.shape[1]))
            vectors = np.linalg.qr(np.concatenate([error.eigenvectors, rest], axis=1))[0]
    vectors[diagonal == 0] = 0
    return vectors


def _slice(problem: Problem, value: np.ndarray, spans: list[np.ndarray], j: int, k: int,
           generator: np.random.Generator) -> np.ndarray:
    """U_j' X U_k, X the tensor with every other mode contracted with a random vector of its span."""
    contracted = value.copy()
    for other, span in enumerate(spans):
        if other not in (j, k):
            contracted *= (span @ generator.standard_normal(span.shape[1]))[problem.index[other]]
    matrix = scipy.sparse.coo_array((contracted, (problem.index[j], problem.index[k])),
                                    shape=(problem.shape[j], problem.shape[k])).tocsr()
    return spans[j].T @ (matrix @ spans[k])


def _terms(problem: Problem, value: np.ndarray, spans: list[np.ndarray], lead: int, second: int,
           generator: np.random.Generator) -> np.ndarray:
    """(width of the leading span, terms): eigenvectors of X_1 pinv(X_2); real parts where a pair is complex."""
    width = min(spans[lead].shape[1], spans[second].shape[1])
    if len(spans) == 2:                      # a matrix has no own terms: take the singular vectors'
        return np.eye(spans[lead].shape[1])[:, :width]
    one, two = (_slice(problem, value, spans, lead, second, generator) for _ in range(2))
    values, vectors = np.linalg.eig(one @ np.linalg.pinv(two, rcond=1e-6))
    order = np.argsort(-np.abs(values), kind="stable")[:width]
    real = np.where(values.imag[order] < 0, vectors.imag[:, order], vectors.real[:, order])   # a pair spans a plane
    return _unit(real)


def _unit(columns: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(columns, axis=0)
    return columns / np.where(norm > 0, norm, 1.0)


def _widened(factor: np.ndarray, rank: int, seen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """R unit columns: random ones where the spans gave none."""
    missing = np.flatnonzero(np.linalg.norm(factor, axis=0) == 0)
    factor[:, missing] = _unit(generator.standard_normal((len(factor), len(missing))) * seen[:, None])
    extra = generator.standard_normal((len(factor), rank - factor.shape[1])) * seen[:, None]
    return np.concatenate([factor, _unit(extra)], axis=1)


def _scaled(problem: Problem, factors: list[np.ndarray]) -> Factors:
    """Each term times a number, shared over the modes: least squares on the observed entries, slightly ridged."""
    terms = np.ones((len(problem.value), problem.rank))
    for factor, i in zip(factors, problem.index, strict=True):
        terms *= factor[i]
    weighted = terms if problem.weight is None else terms * problem.weight[:, None]
    gram, K = weighted.T @ terms, len(factors)
    size = gram.diagonal().mean()
    if not size > 0:
        return tuple(factors)
    scale = np.linalg.solve(gram + 1e-3 * size * np.eye(len(gram)), weighted.T @ problem.value)
    share = np.maximum(np.abs(scale), 1e-3 * np.abs(scale).max(initial=0)) ** (1 / K)
    out = [factor * share for factor in factors]
    free = next((k for k in range(K) if not problem.non_negative[k]), None)
    if free is not None:
        out[free] = out[free] * np.where(scale < 0, -1.0, 1.0)
    return tuple(np.ascontiguousarray(f) for f in out) if math.isfinite(share.sum()) else tuple(factors)
