"""Exact and damped steps against dense least squares; what rounding, zeros and many features must not break."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_rl.rng import stream
from lowrank_rl.tensor import functional_schur, functional_system
from lowrank_rl.tensor.functional_schur import Elimination
from lowrank_rl.tensor.functional_solve import Linearized, cholesky
from lowrank_rl.tensor.functional_system import Dense, Local, Penalty, Rows, System

R = 2
KINDS = ["rows", "dense", "own", "local"]      # "own": each member has features of its own, as networks do


class Problem:
    """Random features of the given kinds, weights, penalties and entries."""

    def __init__(self, kinds, output_mode=0, outputs=2, members=2, count=60, seed=0, weighted=True):
        draw = stream(seed, "solve", *kinds)

        def normal(*shape):
            return torch.randn(shape, generator=draw, dtype=torch.float64)

        self.output_mode, self.members, self.outputs = output_mode, members, outputs
        self.dense, make, self.weights, self.penalties = [], [], [], []
        for k, kind in enumerate(kinds):
            F = 4 + k
            if kind == "rows":
                index = torch.randint(F, (count,), generator=draw)
                make.append(lambda rows, index=index, F=F: Rows(index[rows], F))
                dense = torch.eye(F, dtype=torch.float64)[index]
            elif kind == "local":
                first, value = torch.randint(F - 1, (count,), generator=draw), normal(count, 2)
                make.append(lambda rows, first=first, value=value, F=F: Local(
                    torch.stack([first, first + 1], 1)[rows], value[rows], F))
                dense = torch.zeros(count, F, dtype=torch.float64).scatter(1, torch.stack([first, first + 1], 1), value)
            else:
                dense = normal(members, count, F) if kind == "own" else normal(count, F)
                make.append(lambda rows, dense=dense: Dense(dense[..., rows, :]))
            self.dense.append(dense.expand(members, count, F))
            self.weights.append(normal(members, F, outputs if k == output_mode else 1, R))
            half = normal(members, R, R) if kind == "rows" else normal(F, F)
            square = half @ half.mT + 0.1 * torch.eye(half.shape[-1])
            self.penalties.append(Penalty(normal(members, 1, 1, R), square) if kind == "rows" else Penalty(roughness=square))
        self.target = normal(count, outputs)
        self.weight = torch.rand((members, count), generator=draw, dtype=torch.float64) + 0.1 if weighted else None
        self.system = System(make, self.target, output_mode, 10, self.weight)

    def line(self, subset) -> Linearized:
        return Linearized(self.system, self.weights, self.penalties, subset, {})

    def penalized(self, weights) -> Tensor:
        return self.system.loss(weights) + sum(p.value(w) for p, w in zip(self.penalties, weights, strict=True))

    def residual(self, subset, m: int, some: list[Tensor]) -> Tensor:
        """A vector whose squared length is the penalised loss of member m, but for the penalties of other modes."""
        weights = [w[m] for w in self.weights]
        for k, w in zip(subset, some, strict=True):
            weights[k] = w
        factors = [torch.einsum("bf,fdr->bdr", phi[m], w) for phi, w in zip(self.dense, weights, strict=True)]
        error = math.prod(factors[1:], start=factors[0]).sum(-1) - self.target
        parts = [(error if self.weight is None else error * self.weight[m].sqrt()[:, None]).flatten()]
        for k in subset:
            penalty = self.penalties[k]
            if penalty.roughness is None:
                away = weights[k] - penalty.mean[m, 0, 0]
                parts.append((away @ torch.linalg.cholesky(penalty.precision[m])).flatten())
            else:
                root = torch.linalg.cholesky(penalty.roughness)
                parts.append(torch.einsum("fg,fdr->gdr", root, weights[k]).flatten())
        return torch.cat(parts)

    def linear(self, subset, m: int) -> tuple[np.ndarray, np.ndarray]:
        """Residual and its Jacobian in the subset's weights, by autograd."""
        here = [self.weights[k][m] for k in subset]
        jacobian = torch.autograd.functional.jacobian(lambda *w: self.residual(subset, m, list(w)), tuple(here))
        residual = self.residual(subset, m, here)
        return residual.numpy(), torch.cat([j.reshape(len(residual), -1) for j in jacobian], 1).numpy()


    def damped(self, subset, m: int, damping: float) -> np.ndarray:
        """The change that minimises the linearised loss, its normal matrix damped by each mode's mean diagonal (Levenberg)."""
        residual, jacobian = self.linear(subset, m)
        normal = jacobian.T @ jacobian
        sizes = [self.weights[k][m].numel() for k in subset]
        means = [part.mean() for part in np.split(normal.diagonal(), np.cumsum(sizes)[:-1])]
        return np.linalg.solve(normal + damping * np.diag(np.repeat(means, sizes)), -jacobian.T @ residual)


def flat(changes, m: int) -> np.ndarray:
    return torch.cat([c[m].flatten() for c in changes]).numpy()


def mixed(length: int):
    return [tuple(KINDS[(start + i) % 4] for i in range(length)) for start in range(4)]


@pytest.mark.parametrize("kinds", mixed(2) + mixed(3) + [("rows", "rows"), ("own", "own", "rows")])
@pytest.mark.parametrize("output_mode", [0, 1])
@pytest.mark.parametrize("weighted", [False, True])
def test_one_mode_is_solved_as_least_squares(kinds, output_mode, weighted):
    problem = Problem(kinds, output_mode, weighted=weighted)
    for k in range(len(kinds)):
        change = problem.line([k]).solve()
        for m in range(problem.members):
            residual, jacobian = problem.linear([k], m)
            expected = np.linalg.lstsq(jacobian, -residual, rcond=None)[0]
            np.testing.assert_allclose(flat(change, m), expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kinds", mixed(2) + mixed(4))
@pytest.mark.parametrize("output_mode", [0, 1])
def test_all_modes_at_once_are_solved_as_damped_least_squares(kinds, output_mode):
    """Damping adds so many times the mean diagonal of each mode's own normal matrix (Levenberg)."""
    problem = Problem(kinds, output_mode)
    subset = list(range(len(kinds)))
    damping = torch.tensor([0.03, 2.0], dtype=torch.float64)
    line = problem.line(subset)
    change = line.solve(line.ridges(damping), iterations=2000, tolerance=1e-11)
    for m in range(problem.members):
        np.testing.assert_allclose(flat(change, m), problem.damped(subset, m, float(damping[m])), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kinds", [*mixed(2), *mixed(3), *mixed(4), ("rows", "rows", "rows"), ("rows", "rows", "local"),
                                   ("own", "dense")])
@pytest.mark.parametrize("output_mode", [0, 1])
@pytest.mark.parametrize("each", [1, 2, 100])
def test_elimination_solves_the_same_equations_at_once(kinds, output_mode, each, monkeypatch):
    """Whatever number of rows is eliminated at a time; a row without entries is no exception."""
    problem = Problem(kinds, output_mode, count=17)
    subset = list(range(len(kinds)))
    line, damping = problem.line(subset), torch.tensor([0.03, 2.0], dtype=torch.float64)
    left = sum(w[0].numel() for w in problem.weights)
    monkeypatch.setattr(functional_schur, "GROUP", each * R * left)
    elimination = Elimination.of(line)
    rows = [k for k, kind in enumerate(kinds) if kind == "rows" and k != output_mode]
    assert elimination.mode == (max(rows) if rows else None)
    change = elimination.solve(line, line.ridges(damping))
    for m in range(problem.members):
        np.testing.assert_allclose(flat(change, m), problem.damped(subset, m, float(damping[m])), rtol=1e-8, atol=1e-10)


def test_elimination_is_left_where_it_would_take_too_much(monkeypatch):
    line = Problem(("rows", "dense", "local")).line([0, 1, 2])
    assert Elimination.of(line)
    for name, value in (("LARGEST", 10), ("PAIRED", 4)):
        with monkeypatch.context() as patch:
            patch.setattr(functional_schur, name, value)
            assert Elimination.of(line) is None
    monkeypatch.setattr(functional_system, "EXACT", 0)
    assert Elimination.of(Problem(("rows", "dense", "local")).line([0, 1, 2])) is None


@pytest.fixture
def many(monkeypatch):
    """Every mode counts as one of many features, whose normal matrix is not formed."""
    monkeypatch.setattr(functional_system, "EXACT", 0)
    monkeypatch.setattr(functional_system, "EXACT_LOCAL", 0)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("kinds", mixed(2) + mixed(3))
@pytest.mark.parametrize("output_mode", [0, 1])
def test_of_many_features_the_solution_is_the_same(kinds, output_mode):
    problem = Problem(kinds, output_mode)
    for k in range(len(kinds)):
        change = problem.line([k]).solve(iterations=500, tolerance=1e-12)
        for m in range(problem.members):
            residual, jacobian = problem.linear([k], m)
            expected = np.linalg.lstsq(jacobian, -residual, rcond=None)[0]
            np.testing.assert_allclose(flat(change, m), expected, rtol=1e-7, atol=1e-8)


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize("damping", [None, 0.5])
def test_on_a_grid_the_preconditioner_is_exact(damping):
    """Where every coordinate meets every other equally often, one iteration gives the solution."""
    draw = stream(0, "grid")
    phi = torch.randn((7, 5), generator=draw, dtype=torch.float64)
    i, j = torch.cartesian_prod(torch.arange(7), torch.arange(6)).T
    system = System([lambda rows: Dense(phi[i[rows]]), lambda rows: Rows(j[rows], 6)],
                    torch.randn((42, 3), generator=draw, dtype=torch.float64), 1, 10)
    weights = [torch.randn((2, 5, 1, R), generator=draw, dtype=torch.float64),
               torch.randn((2, 6, 3, R), generator=draw, dtype=torch.float64)]
    prior = Penalty(torch.zeros(2, 1, 1, R, dtype=torch.float64), torch.eye(R, dtype=torch.float64).expand(2, R, R))
    line = Linearized(system, weights, [Penalty(roughness=torch.eye(5, dtype=torch.float64)), prior], [0], {})
    damping = None if damping is None else torch.full((2,), damping, dtype=torch.float64)
    ridges = None if damping is None else line.ridges(damping)
    once, often = (line.solve(ridges, iterations=n, tolerance=1e-12)[0] for n in (1, 100))
    torch.testing.assert_close(once, often)
    assert often.abs().max() > 1e-3


PROBLEMS = st.builds(
    lambda kinds, output, count, seed: Problem(tuple(kinds), output % len(kinds), 1 + seed % 3, 2, count, seed),
    st.lists(st.sampled_from(KINDS), min_size=2, max_size=4), st.integers(0, 3), st.integers(1, 40), st.integers(0, 10**6))


@settings(deadline=None, max_examples=40)
@given(PROBLEMS, st.integers(1, 4), st.booleans())
def test_an_exact_step_never_raises_the_penalised_loss(problem, iterations, exact):
    """However early conjugate gradients stop, and whatever stands in for the normal matrix."""
    with pytest.MonkeyPatch.context() as patch:
        if not exact:
            patch.setattr(functional_system, "EXACT", 0)
            patch.setattr(functional_system, "EXACT_LOCAL", 0)
        for k in range(len(problem.weights)):
            before = problem.penalized(problem.weights)
            torch.testing.assert_close(problem.line([k]).loss, before)
            problem.weights[k] = problem.weights[k] + problem.line([k]).solve(iterations=iterations)[0]
            assert (problem.penalized(problem.weights) <= before * (1 + 1e-9)).all()


@pytest.mark.parametrize("kinds", mixed(3))
def test_at_the_optimum_nothing_moves(kinds):
    problem = Problem(kinds)
    problem.weights[1] = problem.weights[1] + problem.line([1]).solve()[0]
    assert problem.line([1]).solve()[0].abs().max() < 1e-9


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kinds", mixed(3))
def test_zeros_everywhere_and_almost_no_penalty_give_no_nan(kinds, exact, monkeypatch):
    """Without the other modes' values, nothing but the penalty says what this mode's weights are."""
    if not exact:
        monkeypatch.setattr(functional_system, "EXACT", 0)
        monkeypatch.setattr(functional_system, "EXACT_LOCAL", 0)
    problem = Problem(kinds)
    problem.weights = [torch.zeros_like(w) for w in problem.weights]
    for penalty in problem.penalties:
        for name in ("mean", "precision", "roughness"):
            if getattr(penalty, name) is not None:
                setattr(penalty, name, getattr(penalty, name) * (0 if name == "mean" else 1e-300))
    for subset in ([0], [1], [2], [0, 1, 2]):
        for damping in (None, torch.ones(2, dtype=torch.float64)):
            line = problem.line(subset)
            changes = line.solve(None if damping is None else line.ridges(damping))
            assert all(torch.equal(c, torch.zeros_like(c)) for c in changes)


def test_grams_are_made_once(monkeypatch):
    monkeypatch.setattr(functional_system, "EXACT", 0)
    problem = Problem(("dense", "rows"))
    grams: dict[int, Tensor] = {}
    Linearized(problem.system, problem.weights, problem.penalties, [0], grams)
    kept = grams[0]
    torch.testing.assert_close(kept[0], problem.dense[0][0].T @ problem.dense[0][0])
    Linearized(problem.system, problem.weights, problem.penalties, [0, 1], grams)
    assert grams == {0: kept}


# Singular matrices

def test_only_matrices_that_need_it_get_something_added():
    good, singular = torch.tensor([[4.0, 2.0], [2.0, 3.0]]).double(), torch.ones(2, 2).double()
    slightly_negative = torch.tensor([[1.0, 1.0], [1.0, 1.0 - 1e-13]]).double()
    factor = cholesky(torch.stack([good, singular, slightly_negative, torch.zeros(2, 2).double()])[None])[0]
    assert torch.equal(factor[0], torch.linalg.cholesky(good))
    torch.testing.assert_close(factor[1] @ factor[1].T, singular, atol=1e-11, rtol=0)
    torch.testing.assert_close(factor[2] @ factor[2].T, singular, atol=1e-11, rtol=0)
    assert factor.isfinite().all()
    assert (factor.diagonal(dim1=1, dim2=2) > 0).all()


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_a_matrix_that_is_not_one_of_normal_equations_is_refused(bad):
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 1] = bad
    with pytest.raises(ValueError, match="normal equations: expected a positive definite matrix"):
        cholesky(matrix[None, None])
