"""The least-squares problem of a functional CP against dense features, and Jacobians that autograd builds."""

import math
import warnings

import pytest
import torch
from torch import Tensor

from lowrank_rl.rng import stream
from lowrank_rl.tensor import functional_system
from lowrank_rl.tensor.bases import SplineBasis
from lowrank_rl.tensor.functional import FunctionalModule
from lowrank_rl.tensor.functional_state import features_of, weights_of
from lowrank_rl.tensor.functional_system import Local, Penalty, System
from lowrank_rl.tensor.modes import Categorical, Fourier, Neural, Polynomial, Spline

TABLE, SPLINE, PLANE, POLYNOMIAL = Categorical(5), Spline(1, 4), Spline(2, (3, 2), degree=2), Polynomial(2, 2)
FOURIER, NEURAL, CONSTANT = Fourier(1, 6), Neural(2, (4,), "tanh"), Polynomial(1, 0)
# modes, output mode, outputs, members
CASES = [
    ((TABLE, SPLINE), 0, 2, 1), ((TABLE, SPLINE), 1, 2, 2), ((POLYNOMIAL, TABLE, Categorical(2)), 2, 3, 2),
    ((TABLE, POLYNOMIAL, PLANE), 1, 2, 1), ((PLANE, FOURIER, TABLE), 0, 2, 2), ((TABLE, NEURAL, Categorical(3)), 1, 2, 2),
    ((NEURAL, TABLE), 1, 2, 2), ((SPLINE, TABLE, FOURIER, Categorical(3)), 3, 1, 2), ((FOURIER, CONSTANT), 0, 1, 1),
]
R, B = 2, 40
IDS = ["-".join(type(mode).__name__ for mode in case[0]) + f"-{case[1]}" for case in CASES]


class Case:
    """A module with random entries: its system, and the same by dense features."""

    def __init__(self, modes, output_mode, outputs, members, weight=None, count=B):
        draw = stream(0, "system", output_mode, len(modes))
        self.modes, self.output_mode, self.outputs, self.members = modes, output_mode, outputs, members
        self.module = FunctionalModule(modes, R, outputs, output_mode, members, generator=draw).double()
        x = [torch.randint(mode.size, (count,), generator=draw) if isinstance(mode, Categorical) else
             torch.randn((count, mode.inputs), generator=draw, dtype=torch.float64) for mode in modes]
        self.target = torch.randn((count, outputs), generator=draw, dtype=torch.float64)
        self.module.prepare(x, self.target, normalize=False)
        self.x = x
        with torch.no_grad():
            self.weights = [weights_of(mode, outputs if k == output_mode else 1) for k, mode in enumerate(self.module.modes)]
        if weight == "shared":
            self.weight = torch.rand(count, generator=draw, dtype=torch.float64)
        else:
            self.weight = torch.rand((members, count), generator=draw, dtype=torch.float64) if weight else None
        self.draw = draw

    def system(self) -> System:
        with torch.no_grad():
            features = [features_of(mode, x) for mode, x in zip(self.module.modes, self.x, strict=True)]
        return System(features, self.target, self.output_mode, 100, self.weight)

    def count(self) -> Tensor:
        """How often each entry counts, (M, B)"""
        one = torch.ones(self.members, len(self.target), dtype=torch.float64)
        return one if self.weight is None else one * self.weight

    def features(self, k: int) -> Tensor:
        """Mode k's, (M, B, F), by hand."""
        built, x = self.module.modes[k], self.x[k]
        if isinstance(self.modes[k], Categorical):
            dense = torch.eye(self.modes[k].size, dtype=torch.float64)[x]
        elif isinstance(self.modes[k], Neural):
            first = built.layers[0]
            dense = torch.cat([(x @ first.weight + first.bias).tanh(), torch.ones(self.members, len(x), 1)], -1).detach()
        else:
            dense = built.basis(x)
        return dense.expand(self.members, -1, -1)

    def predict(self, weights) -> Tensor:
        factors = [torch.einsum("mbf,mfdr->mbdr", self.features(k), w) for k, w in enumerate(weights)]
        return math.prod(factors[1:], start=factors[0]).sum(-1)                    # (M, B, D)

    def jacobian(self, subset) -> list[Tensor]:
        """Of each member, (B D, unknowns of the subset one after another in the order F, D, R)."""
        def of(*some):
            weights = list(self.weights)
            for k, w in zip(subset, some, strict=True):
                weights[k] = w
            return self.predict(weights)
        blocks = torch.autograd.functional.jacobian(of, tuple(self.weights[k] for k in subset))    # (M, B, D, M, F, D_k, R)
        return [torch.cat([block[m, :, :, m].reshape(self.target.numel(), -1) for block in blocks], 1)
                for m in range(self.members)]

    def rows_count(self, m: int) -> Tensor:
        """How often each row of the Jacobian counts."""
        return self.count()[m].repeat_interleave(self.outputs)


def flat(tensors, m: int) -> Tensor:
    return torch.cat([t[m].flatten() for t in tensors])


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_features_times_weights_are_what_the_module_computes(case):
    problem = Case(*case)
    out = problem.module([x.expand(problem.members, *x.shape) for x in problem.x]).detach()
    torch.testing.assert_close(problem.predict(problem.weights), out)
    for rows, features, factors, error in problem.system().errors(problem.weights):
        torch.testing.assert_close(error, out[:, rows] - problem.target[rows])
        for k, (one, factor) in enumerate(zip(features, factors, strict=True)):
            torch.testing.assert_close(factor, torch.einsum("mbf,mfdr->mbdr", problem.features(k), problem.weights[k]))
            if not isinstance(problem.modes[k], Categorical):
                torch.testing.assert_close(one.dense().expand(problem.members, -1, -1), problem.features(k))


@pytest.mark.parametrize("weight", [None, "shared", "own"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_loss_gradient_and_products_are_those_of_the_dense_jacobian(case, weight):
    problem = Case(*case, weight)
    system, weights = problem.system(), problem.weights
    error = problem.predict(weights) - problem.target
    loss = (problem.count()[..., None] * error.square()).sum((1, 2))
    torch.testing.assert_close(system.loss(weights), loss)
    for subset in ([k] for k in range(len(weights))), (list(range(len(weights))), [len(weights) - 1, 0]):
        for some in subset:
            found, gradient, _ = system.linearize(weights, some)
            torch.testing.assert_close(found, loss)
            vectors = [torch.randn(w.shape, generator=problem.draw, dtype=torch.float64) for w in (weights[k] for k in some)]
            product = system.product(weights, some, vectors)
            for m, jacobian in enumerate(problem.jacobian(some)):
                counted = jacobian * problem.rows_count(m)[:, None]
                torch.testing.assert_close(flat(gradient, m), counted.T @ error[m].flatten())
                torch.testing.assert_close(flat(product, m), counted.T @ (jacobian @ flat(vectors, m)))


def normals(problem: Case, k: int) -> Tensor:
    """J'J of mode k, (M, F, D_k, R, F, D_k, R)"""
    _, F, D, _ = problem.weights[k].shape
    dense = [jacobian.T @ (jacobian * problem.rows_count(m)[:, None]) for m, jacobian in enumerate(problem.jacobian([k]))]
    return torch.stack(dense).view(-1, F, D, R, F, D, R)


@pytest.mark.parametrize("weight", [None, "own"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_blocks_are_the_normal_matrices(case, weight):
    problem = Case(*case, weight)
    _, _, blocks = problem.system().linearize(problem.weights, range(len(problem.weights)))
    for k, block in enumerate(blocks):
        expected = normals(problem, k)
        F, D = expected.shape[1:3]
        for d in range(D):                    # each output has the same matrix, and none with another
            own = expected[:, :, d, :, :, d]                                          # (M, F, R, F, R)
            if isinstance(problem.modes[k], Categorical):
                for f in range(F):
                    torch.testing.assert_close(block[:, f], own[:, f, :, f])
            else:
                torch.testing.assert_close(block, own.reshape(-1, F * R, F * R))
            for other in set(range(D)) - {d}:
                assert not expected[:, :, d, :, :, other].any()


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_of_many_features_the_block_sums_what_multiplies_them(case, monkeypatch):
    monkeypatch.setattr(functional_system, "EXACT", 0)
    monkeypatch.setattr(functional_system, "EXACT_LOCAL", 0)
    problem = Case(*case, "own")
    _, _, blocks = problem.system().linearize(problem.weights, range(len(problem.weights)))
    for k, block in enumerate(blocks):
        if isinstance(problem.modes[k], Categorical) or problem.modes[k] == CONSTANT:
            continue
        others = [torch.einsum("mbf,mfdr->mbdr", problem.features(j), w) for j, w in enumerate(problem.weights) if j != k]
        slope = math.prod(others[1:], start=others[0])
        torch.testing.assert_close(block, torch.einsum("mb,mbdr,mbds->mrs", problem.count(), slope, slope))


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_gram_is_features_by_features(case):
    problem = Case(*case)
    for k, mode in enumerate(problem.modes):
        if not isinstance(mode, Categorical):
            dense = problem.features(k)
            torch.testing.assert_close(problem.system().gram(k).expand(problem.members, -1, -1), dense.mT @ dense)


@pytest.mark.parametrize("case", CASES, ids=IDS)
@pytest.mark.parametrize("cache", [0, 3000, 1 << 29])
def test_chunks_and_what_is_kept_of_them_do_not_matter(case, cache, monkeypatch):
    monkeypatch.setattr(functional_system, "CACHE", cache)
    problem = Case(*case, "own")
    whole, system = problem.system(), problem.system()
    system.chunk = 7
    subset = list(range(len(problem.weights)))
    for _ in range(2):
        torch.testing.assert_close(system.loss(problem.weights), whole.loss(problem.weights))
        torch.testing.assert_close(system.linearize(problem.weights, subset), whole.linearize(problem.weights, subset))
        torch.testing.assert_close(system.product(problem.weights, subset, problem.weights),
                                   whole.product(problem.weights, subset, problem.weights))
    assert sum(1 for _ in system.chunks()) == math.ceil(B / 7)


def test_memory_is_bounded_by_chunks_of_so_many_numbers():
    one = torch.zeros(10**6, dtype=torch.int64)
    system = System([lambda rows: functional_system.Rows(one[rows], 1)] * 2, torch.zeros(10**6, 1), 0, numbers=100)
    sizes = [rows.stop - rows.start for rows, _ in system.chunks()]
    assert max(sizes) * 100 <= functional_system.CHUNK
    assert sum(sizes) == 10**6


def test_features_are_made_once_and_anew_when_told_to_forget():
    problem = Case(*CASES[1])
    made = []
    system = problem.system()
    system.features = [lambda rows, make=make, k=k: made.append(k) or make(rows) for k, make in enumerate(system.features)]
    before = system.loss(problem.weights)
    system.loss(problem.weights)
    assert made == [0, 1]
    problem.x[1].neg_()
    system.forget()
    after = system.loss(problem.weights)
    assert made == [0, 1, 0, 1]
    assert not torch.equal(before, after)


def test_robust_weights_take_the_place_of_the_others():
    problem = Case(*CASES[1], "own")
    system = problem.system()
    system.robust = torch.rand((problem.members, B), generator=problem.draw, dtype=torch.float64)
    problem.weight = system.robust
    torch.testing.assert_close(system.loss(problem.weights), problem.system().loss(problem.weights))


def test_splines_bring_no_warning_about_sparse_matrices():
    """Torch says once per process that they are new; nobody who fits a spline can do anything about it."""
    basis = SplineBasis((4,), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Local(*basis.local(torch.zeros(3, 1, dtype=torch.float64)), basis.size)


# Penalties

def quadratic(penalty: Penalty, weight: Tensor) -> Tensor:
    """Of each member, entry by entry."""
    total = torch.zeros(len(weight), dtype=torch.float64)
    for m, f, d in torch.cartesian_prod(*(torch.arange(n) for n in weight.shape[:3])).tolist():
        if penalty.roughness is None:
            away = weight[m, f, d] - penalty.mean[m, 0, 0]
            total[m] += away @ penalty.precision[m] @ away
        else:
            total[m] += sum(penalty.roughness[f, g] * weight[m, f, d] @ weight[m, g, d] for g in range(weight.shape[1]))
    return total


def penalties(draw):
    half = torch.randn((2, R, R), generator=draw, dtype=torch.float64)
    prior = Penalty(torch.randn((2, 1, 1, R), generator=draw, dtype=torch.float64), half @ half.mT)
    rough = torch.randn((4, 4), generator=draw, dtype=torch.float64)
    return {"rows": prior, "features": Penalty(roughness=rough @ rough.T)}


@pytest.mark.parametrize("kind", ["rows", "features"])
def test_a_penalty_is_its_quadratic_form(kind):
    draw = stream(0, "penalty")
    penalty = penalties(draw)[kind]
    weight = torch.randn((2, 4, 3, R), generator=draw, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(penalty.value(weight), quadratic(penalty, weight))
    half_gradient, = torch.autograd.grad(quadratic(penalty, weight).sum() / 2, weight)
    torch.testing.assert_close(penalty.slope(weight), half_gradient)
    other = torch.randn(weight.shape, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(penalty.product(other), penalty.slope(weight + other) - half_gradient)


def test_a_prior_costs_the_same_for_rows_in_other_units():
    draw = stream(0, "units")
    penalty = penalties(draw)["rows"]
    weight = torch.randn((2, 4, 1, R), generator=draw, dtype=torch.float64)
    size = torch.rand((2, 1, 1, R), generator=draw, dtype=torch.float64) + 0.5
    before = penalty.value(weight)
    penalty.rescale(size)
    torch.testing.assert_close(penalty.value(weight / size), before)
