"""The least-squares problem that every solver of discrete completion takes, and the fit that it gives back.

    loss(A) = 1/2 sum_b weight[b] (value[b] - sum_r prod_k A_k[index[k, b], r])^2 + 1/2 sum_k ridge[k] ||A_k||^2

A_k are the factors (I_k, R) of a CP with weights 1. A solver is ``solve_x(problem, start, config, progress=...) -> Fit``;
``start`` is a tuple of K factors, which it does not change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Factors = tuple[np.ndarray, ...]
Progress = Callable[[dict, Factors], bool | None]   # a history entry and the factors so far (a copy); True: stop here


@dataclass(frozen=True, eq=False)
class Problem:
    """B observed entries of a tensor with K modes, each at most once, and what is asked of the factors.

    Trusts its input: the doors (``Observed``, ``CPCompletion``) check.
    """
    index: np.ndarray                 # (K, B) int32
    value: np.ndarray                 # (B,) float64
    weight: np.ndarray | None         # (B,) float64 above 0; None: all 1
    shape: tuple[int, ...]            # (K,)
    rank: int                         # R
    ridge: tuple[float, ...]          # (K,) >= 0
    non_negative: tuple[bool, ...]    # (K,)
    fixed: tuple[bool, ...]           # (K,) factors that stay as in the start

    @property
    def free_numbers(self) -> int:
        """Parameters of the free modes less the scales that may move between modes."""
        free = [n for n, fixed in zip(self.shape, self.fixed, strict=True) if not fixed]
        return self.rank * (sum(free) - len(free) + 1)

    def seen(self) -> tuple[np.ndarray, ...]:
        """For each mode which rows have entries, (I_k,) bool."""
        seen = tuple(np.zeros(n, np.bool_) for n in self.shape)
        for mode, index in zip(seen, self.index, strict=True):
            mode[index] = True
        return seen

    def predict(self, factors: Factors) -> np.ndarray:
        """The model at the observed entries, (B,)."""
        terms = factors[0][self.index[0]]
        for factor, i in zip(factors[1:], self.index[1:], strict=True):
            terms *= factor[i]
        return terms.sum(1)

    def loss(self, factors: Factors) -> float:
        """The objective above, by a pass over the entries."""
        error = self.value - self.predict(factors)
        square = error @ error if self.weight is None else (self.weight * error) @ error
        return 0.5 * float(square) + self.penalty(factors)

    def penalty(self, factors: Factors) -> float:
        """The ridge's part of the loss."""
        return 0.5 * sum(r * float(np.square(f).sum()) for r, f in zip(self.ridge, factors, strict=True) if r)


@dataclass(frozen=True)
class Fit:
    """What a solver gives."""
    factors: Factors
    history: list[dict]     # one per sweep or step: iteration, loss, seconds since the start, and the solver's own
    stopped: str            # why, in words
    converged: bool
