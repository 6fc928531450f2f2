"""The least-squares problem that every solver of discrete completion takes, and the fit that it gives back.

    loss(A) = 1/2 sum_b weight[b] (value[b] - sum_r prod_k A_k[index[k, b], r])^2 + 1/2 sum_k ridge[k] ||A_k||^2

A_k are the factors (I_k, R) of a CP with weights 1. A solver is ``solve_x(problem, start, config, progress=...) -> Fit``;
``start`` is a tuple of K factors, which it does not change.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg.blas import dnrm2

from lowrank_rl.tensor.solvers import derivatives
from lowrank_rl.tensor.solvers.compiled import compiled

Factors = tuple[np.ndarray, ...]
Progress = Callable[[dict, Factors], bool | None]   # a history entry and the factors so far (a copy); True: stop here


@dataclass(frozen=True, eq=False)
class Problem:
    """B observed entries of a tensor with K modes, each at most once, and what is asked of the factors.

    Trusts its input: the doors (``Observed``, ``CPCompletion``) check.
    """
    index: np.ndarray                 # (K, B) int32; the doors' is a (B, K) array transposed, and kernels are compiled for that
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
        for k, mode in enumerate(seen):
            _mark(self.index, k, mode)
        return seen

    def predict(self, factors: Factors) -> np.ndarray:
        """The model at the observed entries, (B,)."""
        sizes, model = np.array(self.shape), np.empty(len(self.value))
        derivatives.predict(self.index, np.cumsum(sizes) - sizes, np.concatenate(factors), model)
        return model

    def square(self, unit: float = 1.0) -> float:
        """sum_b weight[b] (value[b] / unit)^2, by BLAS' norm, in which squares neither overflow nor vanish."""
        value = self.value if self.weight is None else np.sqrt(self.weight) * self.value
        return (float(dnrm2(value)) / unit) ** 2 if len(value) else 0.0

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


@compiled()
def _mark(index: np.ndarray, k: int, seen: np.ndarray) -> None:
    """Rows of mode k that occur, until all do."""
    left = len(seen)
    for b in range(index.shape[1]):
        if not seen[index[k, b]]:
            seen[index[k, b]] = True
            left -= 1
            if left == 0:
                break
