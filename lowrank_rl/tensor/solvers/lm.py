"""Damped Gauss-Newton (Levenberg-Marquardt) for CP completion: all factors at once, on the observed entries only.

    (J'WJ + diag(ridge) + damping D) step = J'W(y - f(x)) - ridge x,   D = diag(J'WJ + ridge), at least 1e-6 of its largest

The damping follows the gain ratio (Nielsen 1999; Madsen, Nielsen & Tingleff 2004, algorithm 3.16). A small problem solves
this system by a dense Cholesky; a large one by conjugate gradients that never form it, preconditioned by the Cholesky
factors of the rows' R x R blocks and stopped early far from the optimum (Eisenstat & Walker 1996, choice 2).
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from lowrank_rl import check
from lowrank_rl.tensor.solvers import derivatives
from lowrank_rl.tensor.solvers.problem import Factors, Fit, Problem, Progress

LEAST, MOST = 1e-8, 1e12   # damping: below, rows with fewer entries than terms are singular; above, no step moves anything


@dataclass(frozen=True)
class LMConfig:
    max_iter: int = 200                # steps, refused ones included
    tolerance: float = 1e-10           # stop when an accepted step lowers the loss by less than this fraction
    gradient_tolerance: float = 1e-8   # stop when no parameter's gradient g_j exceeds this times sqrt(H_jj 2 loss)
    damping: float = 1e-2              # at the start, relative to D
    dense_below: int = 1000            # up to so many free parameters: dense Cholesky (3 ms a step at 600 parameters, as CG;
                                       # at 1200 CG is 2 times as fast, at 2900 4-6 times); above: conjugate gradients
    cg_max_iter: int = 200             # per step

    def __post_init__(self) -> None:
        check.count("max_iter", self.max_iter, 0)
        check.count("dense_below", self.dense_below, 0)
        check.count("cg_max_iter", self.cg_max_iter)
        for name in ("tolerance", "gradient_tolerance"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)!r}")
        if not 0 < self.damping < math.inf:
            raise ValueError(f"damping: expected a number above 0, got {self.damping!r}")


def solve_lm(problem: Problem, start: Factors, config: LMConfig = LMConfig(), *,
             progress: Progress | None = None) -> Fit:
    """A local minimum of the problem's loss near ``start``; the loss never rises.

    The history's entries also hold damping, gradient (the scale-free norm that stops it), cg (iterations of the step;
    0: dense) and accepted.

    Raises:
        ValueError: a free mode is non-negative.
    """
    if any(n and not f for n, f in zip(problem.non_negative, problem.fixed, strict=True)):
        raise ValueError("non_negative: expected no non-negative mode for the solver lm, whose steps may change a sign; "
                         "use als or ccd")
    system = _System(problem)
    rows = np.concatenate(balanced(problem, start))
    loss, gradient, stiffness = system.at(rows)
    damping, growth, started = config.damping, 2.0, time.monotonic()
    first_gradient = float(np.linalg.norm(gradient))
    dense = system.parameters <= config.dense_below
    linear_solve = system.solve_dense if dense else system.solve_cg
    history: list[dict] = []

    def entry(cg: int, accepted: bool) -> dict:
        return {"iteration": len(history), "loss": loss, "seconds": time.monotonic() - started, "damping": damping,
                "gradient": _relative_gradient(gradient, stiffness, loss), "cg": cg, "accepted": accepted}

    history.append(entry(0, True))
    for _ in range(config.max_iter):
        if loss <= system.rounding:
            return Fit(system.split(rows), history, "the loss is zero to rounding", True)
        if history[-1]["gradient"] <= config.gradient_tolerance:
            return Fit(system.split(rows), history, "the gradient is below its tolerance", True)
        if damping > MOST:
            return Fit(system.split(rows), history, "no step lowers the loss: rounding is reached", True)
        scale = np.maximum(stiffness, 1e-6 * stiffness.max()) * system.moves
        forcing = min(0.1, math.sqrt(np.linalg.norm(gradient) / first_gradient))
        step, left, cg = linear_solve(rows, gradient, damping * scale, forcing, config.cg_max_iter)
        expected = 0.5 * float(np.vdot(step, gradient + left + damping * scale * step))
        tried = rows + step
        tried_loss = system.loss(tried)
        gain = (loss - tried_loss) / expected if expected > 0 else -1.0
        if accepted := gain > 1e-4:
            decrease, rows = loss - tried_loss, tried
            loss, gradient, stiffness = system.at(rows)
            damping, growth = max(LEAST, damping * max(1 / 3, 1 - (2 * gain - 1) ** 3)), 2.0
        else:
            damping, growth = damping * growth, 2 * growth
        history.append(entry(cg, accepted))
        if progress and progress(history[-1], system.split(rows)):
            return Fit(system.split(rows), history, "the callback asked to stop", False)
        if accepted and decrease <= config.tolerance * loss and gain > 0.25:
            return Fit(system.split(rows), history, "the loss falls by less than its tolerance", True)
    return Fit(system.split(rows), history, "reached max_iter", False)


def balanced(problem: Problem, factors: Factors) -> Factors:
    """The same tensor with each term's scale shared out over the free modes where the penalty is least.

    That is ridge[k] ||column of mode k||^2 equal over k, and equal norms without ridge (any split costs the same then,
    but an equal one is best conditioned). Left as it is where only some free modes have a ridge, and terms that are zero.
    """
    free = [k for k in range(len(factors)) if not problem.fixed[k]]
    ridge = np.array([problem.ridge[k] for k in free])
    out = [f.copy() for f in factors]
    if not free or (ridge.any() and not ridge.all()):
        return tuple(out)
    norms = np.stack([np.linalg.norm(out[k], axis=0) for k in free])            # (free modes, R)
    wanted = norms.copy()
    alive = (norms > 0).all(0)
    target = np.log(norms[:, alive]).mean(0)
    share = -0.5 * np.log(ridge) if ridge.all() else np.zeros(len(free))
    wanted[:, alive] = np.exp(target + (share - share.mean())[:, None])
    ratio = np.divide(wanted, norms, out=np.ones_like(norms), where=norms > 0)
    for k, r in zip(free, ratio, strict=True):
        out[k] *= r
    return tuple(out)


def _relative_gradient(gradient: np.ndarray, stiffness: np.ndarray, loss: float) -> float:
    """max_j |g_j| / sqrt(H_jj 2 loss): with no ridge the largest cosine of the residual with a column of J (MINPACK)."""
    size = np.sqrt(stiffness * 2 * loss)
    return float(np.divide(np.abs(gradient), size, out=np.zeros_like(size), where=size > 0).max(initial=0.0))


class _System:
    """The problem with its factors stacked to (S, R), as the kernels take them."""

    def __init__(self, problem: Problem) -> None:
        sizes = np.array(problem.shape)
        self.ends = np.cumsum(sizes)
        self.R = problem.rank
        first = self.ends - sizes
        self.index, self.value, self.weighted = problem.index, problem.value, problem.weight is not None
        self.first = first
        self.weight = problem.weight if self.weighted else np.ones(len(problem.value))
        self.ridge = np.repeat(np.array(problem.ridge, dtype=float), sizes)[:, None]
        moves = ~np.array(problem.fixed)
        self.moves = np.repeat(moves, sizes)[:, None]                            # (S, 1)
        self.free = np.where(moves, np.cumsum(sizes * moves) - sizes * moves, -1) * self.R
        self.free[~moves] = -1
        self.parameters = int((sizes * moves).sum()) * self.R
        self.error = np.empty(len(self.value))
        self.rounding = 1e-30 * float(self.weight @ self.value**2)

    def split(self, rows: np.ndarray) -> Factors:
        return tuple(part.copy() for part in np.split(rows, self.ends[:-1]))

    def loss(self, rows: np.ndarray) -> float:
        derivatives.predict(self.index, self.first, rows, self.error)
        np.subtract(self.value, self.error, out=self.error)
        return 0.5 * float((self.weight * self.error) @ self.error + (self.ridge * rows * rows).sum())

    def at(self, rows: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Loss, downhill gradient (S, R) and the diagonal of J'WJ + ridge (S, R); both are zero at fixed rows."""
        loss = self.loss(rows)
        gradient = np.empty_like(rows)
        derivatives.transpose_times(self.index, self.first, rows, self.weight * self.error, gradient)
        self.blocks = np.empty((*rows.shape, self.R))
        derivatives.row_blocks(self.index, self.first, rows, self.weight, self.blocks)
        stiffness = np.einsum("srr->sr", self.blocks) + self.ridge
        return loss, (gradient - self.ridge * rows) * self.moves, stiffness * self.moves

    def solve_dense(self, rows: np.ndarray, gradient: np.ndarray, added: np.ndarray, forcing: float,
                    max_iter: int) -> tuple[np.ndarray, np.ndarray, int]:
        """(J'WJ + ridge + added) step = gradient: the step, what is left of the gradient (zero), 0."""
        moves = self.moves[:, 0]
        matrix = np.empty((self.parameters, self.parameters))
        derivatives.gauss_newton(self.index, self.first, rows, self.weight, self.free, matrix)
        matrix.flat[::len(matrix) + 1] += (self.ridge + added)[moves].ravel()
        step = np.zeros_like(rows)
        try:
            # the transpose of a C-ordered lower triangle is an upper one in Fortran's order, which LAPACK takes uncopied
            factor = scipy.linalg.cho_factor(matrix.T, lower=False, overwrite_a=True, check_finite=False)
        except np.linalg.LinAlgError:
            return step, gradient, 0
        step[moves] = scipy.linalg.cho_solve(factor, gradient[moves].ravel(), check_finite=False).reshape(-1, self.R)
        return step, np.zeros_like(rows), 0

    def solve_cg(self, rows: np.ndarray, gradient: np.ndarray, added: np.ndarray, forcing: float,
                 max_iter: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The same, until the residual's norm in the preconditioner's metric is ``forcing`` times the first."""
        extra = self.ridge + added
        extra = np.where(self.moves & (extra > 0), extra, 1.0 * ~self.moves)     # rows without data stay where they are
        invert = np.linalg.inv(self.blocks * self.moves[:, :, None] + extra[:, :, None] * np.eye(self.R))
        step, left, product = np.zeros_like(rows), gradient.copy(), np.empty_like(rows)
        z = np.einsum("srt,st->sr", invert, left)
        direction, size = z.copy(), float(np.vdot(left, z))
        enough, iteration = forcing**2 * size, 0
        while iteration < max_iter and size > enough:
            iteration += 1
            derivatives.gauss_newton_times(self.index, self.first, rows, self.weight, direction, product)
            product += extra * direction
            product *= self.moves
            along = size / float(np.vdot(direction, product))
            step += along * direction
            left -= along * product
            z = np.einsum("srt,st->sr", invert, left)
            old, size = size, float(np.vdot(left, z))
            direction = z + (size / old) * direction
        return step, left, iteration
