"""CP: a tensor as a weighted sum of R outer products (canonical polyadic decomposition).

    X[i_0, ..., i_K-1] = sum_r weights[r] * factors[0][i_0, r] * ... * factors[K-1][i_K-1, r]

Source: T. G. Kolda, B. W. Bader, "Tensor Decompositions and Applications", SIAM Review 51(3), 2009; "K&B" below.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.observed import numbers, rows, sizes


@dataclass(frozen=True, eq=False)
class CP:
    """[[weights; factors[0], ..., factors[K-1]]]: K modes, rank R (K&B sec. 3).

    Takes NumPy arrays, torch tensors or lists and keeps its own float64 copies.

    Raises:
        ValueError: fewer than two factors, NaN or Inf, or factors whose numbers of columns disagree with the weights.
    """

    weights: np.ndarray               # (R,)
    factors: tuple[np.ndarray, ...]   # factors[k]: (size of mode k, R)

    def __post_init__(self) -> None:
        weights = numbers("weights", self.weights)
        factors = tuple(numbers(f"factors[{k}]", factor) for k, factor in enumerate(self.factors))
        check.shapes(weights=(weights, "R"),
                     **{f"factors[{k}]": (factor, f"I{k} R") for k, factor in enumerate(factors)})
        if len(weights) == 0:
            raise ValueError("weights: expected rank >= 1, got no weight; a zero tensor is one weight 0")
        sizes([len(factor) for factor in factors])
        check.finite("weights", weights)
        for k, factor in enumerate(factors):
            check.finite(f"factors[{k}]", factor)
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "factors", factors)

    @classmethod
    def random(cls, shape: Sequence[int], rank: int, *, seed: int) -> CP:
        """Factors drawn from N(0, 1), weights 1: entries have mean 0 and variance ``rank``."""
        shape = sizes(shape)
        try:
            count = operator.index(rank)
        except TypeError:
            count = 0
        if count < 1:
            raise ValueError(f"rank: expected a whole number >= 1, got {rank!r}")
        rng = numpy_stream(seed, "cp", "random")
        return cls(np.ones(count), tuple(rng.standard_normal((size, count)) for size in shape))

    @classmethod
    def from_tensorly(cls, tensor: Any) -> CP:
        """From TensorLy's ``CPTensor`` or a pair (weights, factors), NumPy or torch; weights None means 1."""
        try:
            weights, factors = tensor
        except (TypeError, ValueError) as error:
            raise ValueError("tensor: expected a CPTensor or a pair (weights, factors), "
                             f"got {type(tensor).__name__}") from error
        factors = tuple(numbers(f"factors[{k}]", factor) for k, factor in enumerate(factors))
        if weights is None:
            weights = np.ones(factors[0].shape[-1] if factors and factors[0].ndim else 1)
        return cls(weights, factors)

    def to_tensorly(self) -> Any:
        """The same as TensorLy's ``CPTensor``, in arrays of TensorLy's current backend."""
        import tensorly  # here, because it takes half a second and most users never need it

        return tensorly.cp_tensor.CPTensor((tensorly.tensor(self.weights), [tensorly.tensor(f) for f in self.factors]))

    @property
    def rank(self) -> int:
        """R, the number of terms. The tensor's own rank may be less (K&B sec. 3.1)."""
        return len(self.weights)

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the modes."""
        return tuple(len(factor) for factor in self.factors)

    def at(self, index: Any) -> np.ndarray:
        """Entries at coordinates (B, K) -> (B,), in O(B K R) and without forming the tensor (K&B sec. 3)."""
        index = rows("index", index, self.shape)
        terms = self.factors[0][index[:, 0]]   # (B, R)
        for factor, i in zip(self.factors[1:], index.T[1:], strict=True):
            terms *= factor[i]
        return terms @ self.weights

    def dense(self) -> np.ndarray:
        """All entries: the first modes as a Khatri-Rao product, times the last factor (K&B sec. 2.6 and 3)."""
        left = self.factors[0] * self.weights
        for factor in self.factors[1:-1]:
            left = (left[:, None, :] * factor).reshape(-1, self.rank)
        return (left @ self.factors[-1].T).reshape(self.shape)

    def norm(self) -> float:
        """Frobenius norm, from the factors' Gram matrices: ||X||^2 = w' (A_0'A_0 * ... * A_K-1'A_K-1) w (K&B sec. 2.6).

        Where large terms cancel, digits are lost: the absolute error is about 1e-8 times the norm of the largest term.
        """
        gram = np.outer(self.weights, self.weights)
        for factor in self.factors:
            gram *= factor.T @ factor
        return float(np.sqrt(max(gram.sum(), 0.0)))   # rounding may leave a small negative number

    def normalized(self) -> CP:
        """The same tensor with columns of length 1 and weights >= 0 in descending order (K&B sec. 3).

        A negative weight changes the sign of its column in the first factor. A zero column becomes a unit vector, its
        term a weight of 0.
        """
        units, weights = [], self.weights
        for factor in self.factors:
            unit, length = _unit_columns(factor)
            units.append(unit)
            weights = weights * length
        units[0] = np.where(weights < 0, -units[0], units[0])
        order = np.argsort(-np.abs(weights), kind="stable")
        return CP(np.abs(weights)[order], tuple(unit[:, order] for unit in units))


def _unit_columns(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of length 1, and the lengths they had."""
    peak = np.abs(factor).max(axis=0)   # first, so that squares neither overflow nor vanish
    unit = factor / np.where(peak > 0, peak, 1)
    unit[0, peak == 0] = 1
    length = np.linalg.norm(unit, axis=0)
    return unit / length, peak * length
