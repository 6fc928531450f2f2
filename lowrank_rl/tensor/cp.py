"""CP: a tensor as a weighted sum of R outer products (canonical polyadic decomposition).

    X[i_0, ..., i_K-1] = sum_r weights[r] * factors[0][i_0, r] * ... * factors[K-1][i_K-1, r]

Source: T. G. Kolda, B. W. Bader, "Tensor Decompositions and Applications", SIAM Review 51(3), 2009; "K&B" below.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.observed import numbers, rows, sizes

CHUNK = 1 << 14   # entries gathered at once, to stay in the cache


@dataclass(frozen=True, eq=False)
class CP:
    """[[weights; factors[0], ..., factors[K-1]]]: K modes, rank R (K&B sec. 3).

    Takes NumPy arrays, torch tensors or lists and keeps its own float64 copies. ``a + b``, ``a - b``, ``-a``, ``c * a``
    and ``a / c`` are those of tensors; a sum has the terms of both, so its rank is the sum of the ranks.

    Raises:
        ValueError: fewer than two factors, NaN or Inf, or factors whose numbers of columns disagree with the weights.
    """

    weights: np.ndarray               # (R,)
    factors: tuple[np.ndarray, ...]   # factors[k]: (size of mode k, R)

    __array_ufunc__ = None   # so that a NumPy number leaves c * a to CP

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

    @classmethod
    def from_pyttb(cls, tensor: Any) -> CP:
        """From pyttb's ``ktensor``, by copies."""
        try:
            return cls(tensor.weights, tensor.factor_matrices)
        except AttributeError as error:
            raise ValueError(f"tensor: expected a pyttb.ktensor, got {type(tensor).__name__}") from error

    def to_pyttb(self) -> Any:
        """The same as pyttb's ``ktensor``, in its own copies (Fortran order, as pyttb keeps them)."""
        import pyttb  # here, because it is optional

        return pyttb.ktensor([np.array(factor, order="F") for factor in self.factors], self.weights.copy(), copy=False)

    def save(self, path: str | Path) -> None:
        """Write one file, whole or not at all.

        Raises:
            ValueError: the folder cannot be written or the disk is full; an older file of that name is untouched.
        """
        import torch  # here, because it takes a second and 200 MB

        from lowrank_rl.tensor import io

        factors = {f"factor {k}": torch.from_numpy(factor) for k, factor in enumerate(self.factors)}
        io.save(path, "CP", {"weights": torch.from_numpy(self.weights), **factors}, {"modes": len(self.factors)})

    @classmethod
    def load(cls, path: str | Path) -> CP:
        """Read what ``save`` wrote, bit for bit.

        Raises:
            ValueError: missing, corrupt or truncated file, or one of another kind or schema.
        """
        from lowrank_rl.tensor import io  # here, because it brings torch

        tensors, header = io.load(path, "CP")
        try:
            return cls(tensors["weights"], tuple(tensors[f"factor {k}"] for k in range(header["modes"])))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected a whole CP file, got one with missing or odd parts ({error}); "
                             "restore it or make it again") from error

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
        value = np.empty(len(index))
        for first in range(0, len(index), CHUNK):
            some = slice(first, first + CHUNK)
            terms = self.factors[0][index[some, 0]]   # (CHUNK, R)
            for factor, i in zip(self.factors[1:], index[some].T[1:], strict=True):
                terms *= factor[i]
            value[some] = terms @ self.weights
        return value

    def dense(self) -> np.ndarray:
        """All entries: the first modes as a Khatri-Rao product, times the last factor (K&B sec. 2.6 and 3)."""
        left = self.factors[0] * self.weights
        for factor in self.factors[1:-1]:
            left = (left[:, None, :] * factor).reshape(-1, self.rank)
        return (left @ self.factors[-1].T).reshape(self.shape)

    def norm(self) -> float:
        """Frobenius norm: ||X||^2 = <X, X>, so without forming the tensor.

        Where large terms cancel, digits are lost: the absolute error is about 1e-8 times the norm of the largest term.
        So ``(a - b).norm()`` cannot tell distances below 1e-8 ``a.norm()`` from 0; compare ``at`` some entries for those.
        """
        return float(np.sqrt(max(self.inner(self), 0.0)))   # rounding may leave a small negative number

    def inner(self, other: CP) -> float:
        """<X, Y>, the sum over all entries of X * Y, from w_X' (A_0'B_0 * ... * A_K-1'B_K-1) w_Y (K&B sec. 2.6).

        The absolute error is about 1e-16 times the sum over pairs of terms of the products of their norms.
        """
        self._refuse_other_shape("a.inner(b)", other)
        gram = np.outer(self.weights, other.weights)
        for mine, theirs in zip(self.factors, other.factors, strict=True):
            gram *= mine.T @ theirs
        return float(gram.sum())

    def permuted(self, modes: Sequence[int]) -> CP:
        """Its modes in another order, as ``numpy.transpose(dense, modes)``."""
        if len(modes) != len(self.shape) or {*modes} != {*range(len(self.shape))}:
            raise ValueError(f"modes: expected each of 0..{len(self.shape) - 1} once, got {modes!r}")
        return CP(self.weights, tuple(self.factors[int(k)] for k in modes))

    def __add__(self, other: CP) -> CP:
        if not isinstance(other, CP):
            return NotImplemented
        self._refuse_other_shape("a + b", other)
        return CP(np.concatenate([self.weights, other.weights]),
                  tuple(np.hstack(pair) for pair in zip(self.factors, other.factors, strict=True)))

    def __sub__(self, other: CP) -> CP:
        return self + -other if isinstance(other, CP) else NotImplemented

    def __neg__(self) -> CP:
        return CP(-self.weights, self.factors)

    def __mul__(self, number: float) -> CP:
        return CP(self.weights * float(number), self.factors) if isinstance(number, Real) else NotImplemented

    __rmul__ = __mul__

    def __truediv__(self, number: float) -> CP:
        if not isinstance(number, Real):
            return NotImplemented
        if number == 0:
            raise ValueError("a / c: expected a number c other than 0, got 0")
        return CP(self.weights / float(number), self.factors)

    def normalized(self) -> CP:
        """The same tensor with columns of length 1 and weights >= 0 in descending order (K&B sec. 3).

        A negative weight changes the sign of its column in the first factor. A zero column becomes a unit vector, its
        term a weight of 0.
        """
        units, weights = [], self.weights
        for factor in self.factors:
            unit, length = unit_columns(factor)
            units.append(unit)
            weights = weights * length
        units[0] = np.where(weights < 0, -units[0], units[0])
        order = np.argsort(-np.abs(weights), kind="stable")
        return CP(np.abs(weights)[order], tuple(unit[:, order] for unit in units))

    def _refuse_other_shape(self, what: str, other: CP) -> None:
        if other.shape != self.shape:
            raise ValueError(f"{what}: expected tensors of one shape, got {self.shape} and {other.shape}")


def unit_columns(factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns of length 1, and the lengths they had."""
    peak = np.abs(factor).max(axis=0)   # first, so that squares neither overflow nor vanish
    unit = factor / np.where(peak > 0, peak, 1)
    unit[0, peak == 0] = 1
    length = np.linalg.norm(unit, axis=0)
    return unit / length, peak * length
