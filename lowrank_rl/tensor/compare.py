"""Compare two CP tensors term by term, whatever the order, signs and scales of their factors."""

import numpy as np

from lowrank_rl.tensor.cp import CP, unit_columns


def factor_match_score(a: CP, b: CP, *, weights: bool = True) -> tuple[float, np.ndarray]:
    """(score, term of b for each term of a): 1 if the terms agree, about 0 if they have nothing to do with each other.

        score = 1/R sum_r (1 - |x_r - y_r| / max(x_r, y_r)) prod_k cos(a's column r, b's column p(r) in mode k)

    x and y are the norms of the terms; without ``weights`` that first factor is 1. The permutation p, the best of all,
    is given as (rank of a,) integers. With different ranks R is the smaller one: the terms left over do not count, so a
    score of 1 does not mean that the tensors are equal; those of a have -1 there.

    Two columns of a term that change sign together change nothing. A term and its negative are opposites, of score -1.
    A term with a column of zeros has no direction: its score is 0.

    Source: E. Acar, D. M. Dunlavy, T. G. Kolda, "A scalable optimization approach for fitting canonical tensor
    decompositions", Journal of Chemometrics 25(2), 2011, sec. 4.
    Differs: there each cosine is taken by its size, so that a term matches its negative.

    Raises:
        ValueError: tensors of different shapes.
    """
    from scipy.optimize import linear_sum_assignment  # here, because it is slow to import

    if a.shape != b.shape:
        raise ValueError(f"a and b: expected tensors of one shape, got {a.shape} and {b.shape}")
    x, y = np.abs(a.weights), np.abs(b.weights)   # norms of the terms
    match = np.outer(np.where(a.weights < 0, -1, 1), np.where(b.weights < 0, -1, 1)).astype(float)   # (R of a, R of b)
    for mine, theirs in zip(a.factors, b.factors, strict=True):
        (mine, length), (theirs, other_length) = unit_columns(mine), unit_columns(theirs)
        match *= (mine * (length > 0)).T @ (theirs * (other_length > 0))
        x, y = x * length, y * other_length
    if weights:
        low, high = np.minimum.outer(x, y), np.maximum.outer(x, y)
        match *= np.divide(low, high, out=np.ones_like(low), where=high > 0)   # = 1 - |x - y| / max(x, y)
    mine, theirs = linear_sum_assignment(match, maximize=True)
    permutation = np.full(a.rank, -1)
    permutation[mine] = theirs
    return float(match[mine, theirs].mean()), permutation
