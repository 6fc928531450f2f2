"""Local identifiability against exact arithmetic modulo a prime, against re-solving, and known answers."""

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from lowrank_rl.tensor import bounds, nullspace, patterns
from lowrank_rl.tensor.bounds import cramer_rao
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.identify import degrees_of_freedom, identify
from lowrank_rl.tensor.nullspace import kernel_index, point_of
from lowrank_rl.tensor.observed import Observed
from lowrank_rl.tensor.pattern import Pattern
from lowrank_rl.tensor.solvers.lm import LMConfig, solve_lm
from lowrank_rl.tensor.solvers.problem import Problem

PRIME = 2**31 - 1
NAMES = ("agent", "state", "action")


# An independent witness: the Jacobian in whole numbers modulo a prime, where rank is exact. At random numbers it falls short
# of the generic rank with probability below P K / 2^31.

def prime_jacobian(index, shape, rank, seed):
    rng = np.random.default_rng(seed)
    factors = [rng.integers(1, PRIME, (size, rank)) for size in shape]
    J = np.zeros((len(index), sum(shape) * rank), dtype=np.int64)
    first = np.cumsum([0, *shape])
    for b, entry in enumerate(index):
        for k, i in enumerate(entry):
            d = np.ones(rank, dtype=np.int64)
            for j, other in enumerate(entry):
                if j != k:
                    d = d * factors[j][other] % PRIME
            begin = (first[k] + i) * rank
            J[b, begin:begin + rank] = d
    return J


def echelon(J):
    """Rows in echelon form, leading ones, and the columns of these."""
    J, pivots, done = J.copy(), [], 0
    for column in range(J.shape[1]):
        below = np.flatnonzero(J[done:, column])
        if len(below) == 0:
            continue
        J[[done, done + below[0]]] = J[[done + below[0], done]]
        J[done] = J[done] * pow(int(J[done, column]), -1, PRIME) % PRIME
        others = np.arange(len(J)) != done
        J[others] = (J[others] - J[others, column][:, None] * J[done]) % PRIME
        pivots.append(column)
        done += 1
        if done == len(J):
            break
    return J[:done], pivots


def prime_verdict(mask, rank, seed=0):
    """(rank of the Jacobian, verdict on every entry)"""
    every = np.argwhere(np.ones(mask.shape))
    J = prime_jacobian(every, mask.shape, rank, seed)
    basis, pivots = echelon(J[mask.reshape(-1)])
    left = J.copy()
    for row, pivot in zip(basis, pivots, strict=True):
        left = (left - left[:, pivot][:, None] * row) % PRIME
    return len(pivots), (left == 0).all(axis=1).reshape(mask.shape)


@st.composite
def problems(draw, most=90):
    shape = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4).filter(lambda s: np.prod(s) <= most))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    mask = rng.random(shape) < draw(st.sampled_from([0.1, 0.3, 0.5, 0.8]))
    if draw(st.booleans()):   # something is apart
        half = np.array(shape) // 2
        mask[: half[0], half[1]:] = False
        mask[half[0]:, : half[1]] = False
    mask.reshape(-1)[rng.integers(mask.size)] = True
    return mask, draw(st.integers(1, 4))


@settings(deadline=None, max_examples=120)
@given(problems())
@example((np.array([[[1, 0], [0, 0], [0, 0]], [[0, 0], [1, 1], [1, 1]]], dtype=bool), 3))   # a sample of entries missed one
def test_verdicts_agree_with_exact_arithmetic_by_both_methods(problem):
    mask, rank = problem
    pattern = Pattern.from_mask(mask)
    exact_rank, verdict = prime_verdict(mask, rank)
    freedom, _ = prime_verdict(np.ones_like(mask), rank)
    dense, sampled = (identify(pattern, rank, method=method) for method in ("dense", "sampled"))
    assert degrees_of_freedom(mask.shape, rank) == dense.freedom == freedom
    assert dense.jacobian_rank == exact_rank
    assert dense.exact
    np.testing.assert_array_equal(dense.mask(), verdict)
    np.testing.assert_array_equal(sampled.mask(), verdict)
    assert sampled.free == min(freedom - exact_rank, 8)
    assert sampled.exact == (freedom - exact_rank < 8)
    assert dense.everything == verdict.all() == sampled.everything
    assert verdict[mask].all()
    assert dense.share == pytest.approx(verdict.mean())
    for k in range(mask.ndim):
        others = tuple(j for j in range(mask.ndim) if j != k)
        np.testing.assert_allclose(dense.row_shares(k), verdict.mean(axis=others))
        failed = dense.short_rows(k)   # the necessary test is necessary
        assert not verdict.all(axis=others)[failed].any()


@pytest.mark.parametrize("method", ["dense", "sampled"])
def test_free_directions_are_counted_right_where_entries_are_sampled(method):
    """Nothing is observed of 2 rows of mode 0 and too little of another: 2 + 2 + 1 directions. More than 65536 entries."""
    mask = np.ones((40, 41, 42), dtype=bool)
    mask[:3] = False
    mask[2, 0, 0] = True
    found = identify(Pattern.from_mask(mask), 2, method=method)
    assert (found.free, found.exact) == (5, True)
    assert np.count_nonzero(~found.mask()) == 3 * 41 * 42 - 1
    entries, freed = found.suggest()
    assert len(entries) == 5
    assert freed.sum() == 3 * 41 * 42 - 1


def test_free_directions_of_many_rows_are_counted():
    mask = np.random.default_rng(0).random((12_000, 5, 5)) < 0.6
    mask[1:3] = False
    found = identify(Pattern.from_mask(mask), 2)
    assert (found.method, found.free, found.exact) == ("sampled", 4, True)
    assert np.flatnonzero(~found.mask().all(axis=(1, 2))).tolist() == [1, 2]


def poc(case):
    """The patterns of the first trial: 12 agents x 10 states x 8 actions."""
    rng = np.random.default_rng(0)
    mask = rng.random((12, 10, 8)) < 0.3
    if case == "one agent has one entry":
        mask[3] = False
        mask[3, 4, 5] = True
    if case.startswith("blocks"):
        mask = rng.random((12, 10, 8)) < 0.5
        mask[:6, :, 4:] = mask[6:, :, :4] = False
    if case == "blocks and one agent in both":
        mask[0] = rng.random((10, 8)) < 0.5
    return Pattern.from_mask(mask)


@pytest.mark.parametrize("method", ["dense", "sampled"])
@pytest.mark.parametrize(("case", "jacobian_rank", "unknown"), [
    ("uniform", 56, 0), ("one agent has one entry", 55, 79), ("blocks", 54, 480), ("blocks and one agent in both", 56, 0)])
def test_known_cases(case, jacobian_rank, unknown, method):
    found = identify(poc(case), 2, method=method)
    assert (found.freedom, found.jacobian_rank, found.exact) == (56, jacobian_rank, True)
    assert np.count_nonzero(~found.mask()) == unknown
    if case == "one agent has one entry":
        assert np.flatnonzero(~found.mask().all(axis=(1, 2))).tolist() == [3] == found.short_rows(0).tolist()
        assert found.row_ranks[0][3] == 1
    if case == "blocks":
        assert not found.mask()[:6, :, 4:].any()
        assert not found.mask()[6:, :, :4].any()
        assert [len(found.short_rows(k)) for k in range(3)] == [0, 0, 0]   # only the exact test sees this


def test_dimensions_known_from_the_literature():
    assert degrees_of_freedom((12, 10, 8), 2) == 56
    assert degrees_of_freedom((7, 5), 3) == 3 * (7 + 5 - 3)
    assert degrees_of_freedom((3, 3, 3), 4) == 26    # Strassen 1983: rank-4 tensors do not fill 27 dimensions
    assert degrees_of_freedom((3, 3, 3), 5) == 27
    assert degrees_of_freedom((2, 2, 2), 2) == 8
    assert degrees_of_freedom((2, 2, 2, 2), 3) == 14   # not 15: Catalisano, Geramita, Gimigliano 2005
    assert degrees_of_freedom((50, 2, 2), 7) == 200


def test_a_free_entry_really_moves_and_a_determined_one_does_not():
    """Push the factors off and solve for the observed entries again: all that fits must agree where it is determined."""
    pattern = poc("one agent has one entry")
    truth = CP.random(pattern.shape, 2, seed=1)
    wanted = truth.at(pattern.index)
    ends = np.cumsum([2 * size for size in pattern.shape])[:-1]

    def dense(x):
        return np.einsum("ar,br,cr->abc", *(part.reshape(-1, 2) for part in np.split(x, ends)))

    start = np.concatenate([factor.ravel() for factor in truth.factors])
    push = 0.05 * np.random.default_rng(0).standard_normal(start.shape)
    solved = least_squares(lambda x: dense(x)[tuple(pattern.index.T)] - wanted, start + push, xtol=1e-15, ftol=1e-15,
                           gtol=1e-15)
    assert np.abs(solved.fun).max() < 1e-9
    change = np.abs(dense(solved.x) - truth.dense())
    verdict = identify(pattern, 2).mask()
    assert change[verdict].max() < 1e-7
    assert change[~verdict].min() > 1e-6


@settings(deadline=None, max_examples=30)
@given(problems(), st.integers(0, 5))
def test_row_ranks_are_those_of_the_design(problem, seed):
    mask, rank = problem
    found = identify(Pattern.from_mask(mask), rank, seed=seed)
    factors = np.split(found.point.rows, found.point.first[1:])
    for k, ranks in enumerate(found.row_ranks):
        for i in range(mask.shape[k]):
            entries = found.pattern.index[found.pattern.index[:, k] == i]
            design = np.prod([factors[j][entries[:, j]] for j in range(mask.ndim) if j != k], axis=0)
            assert ranks[i] == (np.linalg.matrix_rank(design, tol=1e-7) if len(entries) else 0)


def test_row_ranks_tell_nearly_equal_designs_from_equal_ones():
    index = np.array([[0, 0, 1, 1, 2], [0, 1, 0, 2, 0]], dtype=np.int32)   # row 0 sees rows 0, 1 of mode 1; row 1 sees 0, 2
    rows = np.array([[1.0, 1], [1, 1], [1, 1], [1, 0], [1, 1e-5], [1, 0]])
    assert nullspace.row_ranks(index, nullspace.Point(rows, np.array([0, 3])))[:3].tolist() == [2, 1, 1]


def test_larger_problem_by_both_methods():
    rng = np.random.default_rng(1)
    mask = rng.random((60, 50, 6)) < 0.1
    mask[:20, :, 3:] = mask[20:, :, :3] = False
    mask[40, 5:] = False
    pattern = Pattern.from_mask(mask)
    dense, sampled = (identify(pattern, 4, method=method) for method in ("dense", "sampled"))
    np.testing.assert_array_equal(dense.mask(), sampled.mask())
    assert 4 <= dense.free < 8
    assert (sampled.free, sampled.exact) == (dense.free, True)
    index = rng.integers(0, mask.shape, (1000, 3))
    np.testing.assert_array_equal(dense.at(index), dense.mask()[tuple(index.T)])


def test_a_hard_system_is_warned_of_and_never_called_determined_by_mistake():
    n = 300   # a chain of blocks that share just enough: directions that are nearly free
    pattern = patterns.blocks((n, n), [(range(i, min(i + 4, n)),) * 2 for i in range(0, n, 2)])
    with pytest.warns(UserWarning, match="conjugate gradients did not converge.*method=\"dense\""):
        sampled = identify(pattern, 2, method="sampled")
    dense = identify(pattern, 2, method="dense")
    index = np.random.default_rng(0).integers(0, n, (2000, 2))
    assert not (sampled.at(index) & ~dense.at(index)).any()


def test_methods_are_chosen_by_size_and_seeds_do_not_matter():
    assert identify(poc("uniform"), 2).method == "dense"
    big = patterns.uniform((400, 400, 10), 0.02, seed=0)
    found = identify(big, 3)
    assert (found.method, found.free, found.exact) == ("sampled", 0, True)
    for seed in range(5):
        assert np.count_nonzero(~identify(poc("blocks"), 2, seed=seed).mask()) == 480


def test_a_large_tensor_is_judged_by_a_sample():
    pattern = patterns.uniform((300, 300, 300), 40_000, seed=0).index
    pattern = Pattern(pattern[pattern[:, 0] >= 30], (300, 300, 300))   # 30 rows without entry
    found = identify(pattern, 2, method="sampled")
    assert found.share == pytest.approx(0.9, abs=0.002)
    assert "entries drawn at random are locally identifiable" in found.explain()
    assert found.free == 8
    assert not found.exact
    assert "rank at most 1788 of 1796: at least 8 directions are free" in found.explain()
    shares = found.row_shares(0)
    assert (shares[:30] == 0).all()
    assert (shares[30:] == 1).all()
    assert len(found.suggest()[0]) == 7


# What to observe next

@settings(deadline=None, max_examples=25)
@given(problems(60))
def test_suggestions_add_one_rank_each_until_everything_is_determined(problem):
    mask, rank = problem
    pattern = Pattern.from_mask(mask)
    found = identify(pattern, rank, method="dense")
    entries, freed = found.suggest()
    assert len(entries) == found.free
    assert freed.sum() == np.count_nonzero(~found.mask())
    for entry, number in zip(entries, freed, strict=True):
        more = identify(pattern.adding([entry]), rank, method="dense")
        assert more.free == found.free - 1
        assert np.count_nonzero(more.mask()) - np.count_nonzero(found.mask()) == number
        pattern, found = pattern.adding([entry]), more
    assert found.everything


@pytest.mark.parametrize("case", ["one agent has one entry", "blocks"])
def test_the_first_suggestion_frees_as_many_as_any_entry_could(case):
    found = identify(poc(case), 2)
    _, (freed, *_) = found.suggest()
    determined = np.count_nonzero(found.mask())
    for entry in np.argwhere(~found.mask())[::23]:
        assert np.count_nonzero(identify(found.pattern.adding([entry]), 2).mask()) - determined <= freed


def test_greedy_frees_a_whole_row_before_single_entries():
    mask = np.ones((8, 7, 6), dtype=bool)
    mask[0] = False                              # agent 0 lacks both of its numbers: its first entry frees itself alone
    mask[1, 1:], mask[1, 0, 1:] = False, False   # agent 1 lacks one of two: one entry frees all of it
    entries, freed = identify(Pattern.from_mask(mask), 2).suggest()
    assert [entry[0] for entry in entries.tolist()] == [1, 0, 0]
    assert freed.tolist() == [41, 1, 41]


def test_candidates_are_kept_to_and_order_does_not_matter():
    found = identify(poc("blocks"), 2)
    candidates = [[0, 0, 0], [0, 1, 5], [7, 2, 1]]
    entries, freed = found.suggest(candidates=candidates)
    assert {tuple(entry) for entry in entries} == {(0, 1, 5), (7, 2, 1)}   # (0, 0, 0) is determined already
    assert freed.sum() == 480
    assert len(found.suggest(1, candidates=candidates)[0]) == 1
    assert found.suggest(candidates=[[0, 0, 0]])[0].shape == (0, 3)
    assert identify(poc("uniform"), 2).suggest()[0].shape == (0, 3)
    first, second = (found.suggest(seed=3) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])


# Words

def test_explain_names_what_is_missing():
    assert identify(poc("uniform"), 2).explain() == (
        "12 x 10 x 8 at rank 2, 267 entries observed: 960 of 960 entries are locally identifiable.\n"
        "The Jacobian has rank 56 of 56: no direction is free.")
    text = identify(poc("one agent has one entry"), 2).explain(NAMES)
    assert "881 of 960 entries are locally identifiable" in text
    assert "rank 55 of 56: 1 direction is free" in text
    assert "agent: row 3 determines 1 of its 2 numbers" in text
    assert "observe (agent 3, state" in text
    assert "it frees 79 entries" in text
    text = identify(poc("blocks"), 2).explain(NAMES)
    assert "agent and action fall into 2 groups that never meet: 6 agent and 4 action; 6 agent and 4 action" in text
    mask = poc("uniform").mask()
    mask[:, 2] = False
    assert "state: row 2 without any entry" in identify(Pattern.from_mask(mask), 2).explain(NAMES)
    assert "3 observations cannot determine 9 numbers" in identify(Pattern.from_mask(np.eye(3)), 3).explain()
    # enough entries everywhere and nothing apart, but two blocks of a matrix of rank 3 that share two rows only
    overlapping = patterns.blocks((10, 10), [(range(6), range(5)), (range(4, 10), range(5, 10))])
    assert "they meet in too few places" in identify(overlapping, 3).explain()
    for found in (identify(poc("blocks"), 2), identify(overlapping, 3)):
        assert "identifiable" not in found.explain().replace("locally identifiable", "")


def test_identify_takes_observed_and_refuses_the_rest():
    pattern = poc("uniform")
    observed = pattern.observe(CP.random(pattern.shape, 2, seed=0), seed=0)
    assert identify(observed, 2).jacobian_rank == 56
    with pytest.raises(ValueError, match="pattern: expected a Pattern or an Observed, got ndarray"):
        identify(pattern.mask(), 2)
    for rank in (0, 1.5, True):
        with pytest.raises(ValueError, match="rank: expected a whole number >= 1"):
            identify(pattern, rank)
    with pytest.raises(ValueError, match="unknown method 'exact'; known: auto, dense, sampled"):
        identify(pattern, 2, method="exact")
    found = identify(pattern, 2)
    with pytest.raises(ValueError, match="index, mode 2: expected integers 0..7, got values 8..8"):
        found.at([[0, 0, 8]])
    with pytest.raises(ValueError, match="candidates, mode 0: expected integers 0..11"):
        found.suggest(candidates=[[12, 0, 0]])
    with pytest.raises(ValueError, match="count: expected a whole number >= 1"):
        found.suggest(0)
    with pytest.raises(ValueError, match="modes: expected a name for each of 3 modes, got 2"):
        found.explain(["a", "b"])


# The Cramer-Rao bound

def jacobian(cp, index):
    factors = [factor * (np.abs(cp.weights) ** (1 / 3) if k else np.cbrt(cp.weights)) for k, factor in enumerate(cp.factors)]
    J = np.zeros((len(index), sum(cp.shape), cp.rank))
    first = np.cumsum([0, *cp.shape])
    for b, entry in enumerate(index):
        for k, i in enumerate(entry):
            J[b, first[k] + i] = np.prod([factors[j][entry[j]] for j in range(3) if j != k], axis=0)
    return J.reshape(len(index), -1)


@pytest.mark.parametrize("dense_below", [3000, 0])
def test_bound_is_that_of_the_pseudo_inverse(dense_below, monkeypatch):
    monkeypatch.setattr(bounds, "DENSE", dense_below)
    shape, sigma = (8, 7, 6), 0.3
    cp = CP([2.0, -0.5], CP.random(shape, 2, seed=0).factors)
    pattern = patterns.uniform(shape, 110, seed=0)
    entries = np.argwhere(np.ones(shape))[::5]
    J, G = jacobian(cp, pattern.index), jacobian(cp, entries)
    weight = np.random.default_rng(0).uniform(0.2, 5, len(pattern))
    for observed, W in ((pattern, np.ones(len(pattern))),
                        (Observed(pattern.index, np.zeros(len(pattern)), shape, weight=weight), weight)):
        inverse = np.linalg.pinv(J.T @ (W[:, None] * J), rcond=1e-12)
        expected = sigma**2 * np.einsum("qp,pr,qr->q", G, inverse, G)
        np.testing.assert_allclose(cramer_rao(observed, cp, sigma, entries), expected, rtol=1e-8)
    scaled = CP(cp.weights, [cp.factors[0] * [10, 0.2], cp.factors[1] / [10, 1], cp.factors[2] / [1, 0.2]])
    np.testing.assert_allclose(cramer_rao(pattern, scaled, sigma, entries), cramer_rao(pattern, cp, sigma, entries), rtol=1e-8)


@pytest.mark.parametrize("dense_below", [3000, 0])
@pytest.mark.parametrize("case", ["uniform", "one agent has one entry", "blocks"])
def test_bound_is_infinite_where_not_locally_identifiable(case, dense_below, monkeypatch):
    monkeypatch.setattr(bounds, "DENSE", dense_below)
    pattern = poc(case)
    every = np.argwhere(np.ones(pattern.shape))
    bound = cramer_rao(pattern, CP.random(pattern.shape, 2, seed=3), 1.0, every[::9])
    np.testing.assert_array_equal(np.isfinite(bound), identify(pattern, 2).at(every[::9]))
    assert (bound > 0).all()


def test_least_squares_reaches_the_bound_at_low_noise():
    shape, sigma, repeats = (6, 5, 4), 1e-3, 300
    cp = CP.random(shape, 2, seed=4)
    pattern = patterns.uniform(shape, 70, seed=1)
    every = np.argwhere(np.ones(shape))
    start = tuple(np.split(point_of(cp).rows, np.cumsum(shape)[:-1]))
    rng = np.random.default_rng(0)
    square = np.zeros(len(every))
    for _ in range(repeats):
        value = cp.at(pattern.index) + sigma * rng.standard_normal(len(pattern))
        problem = Problem(kernel_index(pattern.index), value, None, shape, 2, (0.0,) * 3, (False,) * 3, (False,) * 3)
        fit = solve_lm(problem, start, LMConfig(max_iter=30))
        square += (CP(np.ones(2), fit.factors).at(every) - cp.at(every)) ** 2 / repeats
    ratio = square / cramer_rao(pattern, cp, sigma, every)
    assert ratio.mean() == pytest.approx(1, abs=0.1)
    assert 0.6 < ratio.min() < ratio.max() < 1.5


def test_a_term_twice_or_of_weight_zero_leaves_the_bound_of_one():
    """There J loses more rank; what it still determines keeps a finite bound."""
    one = CP.random((5, 4, 3), 1, seed=0)
    pattern = patterns.uniform((5, 4, 3), 55, seed=0)
    twice = CP([0.5, 0.5], [np.hstack([factor] * 2) for factor in one.factors])
    weightless = CP([1.0, 0.0], [np.hstack([factor, 1 + factor**2]) for factor in one.factors])
    observed = pattern.index[:5]
    for cp in (twice, weightless):
        np.testing.assert_allclose(cramer_rao(pattern, cp, 1.0, observed), cramer_rao(pattern, one, 1.0, observed), rtol=1e-6)


def test_bound_refuses_and_warns():
    pattern, cp = poc("uniform"), CP.random((12, 10, 8), 2, seed=0)
    with pytest.raises(ValueError, match=r"cp: expected the observed tensor's shape \(12, 10, 8\), got \(3, 3\)"):
        cramer_rao(pattern, CP.random((3, 3), 1, seed=0), 1.0, [[0, 0, 0]])
    for sigma in (0, -1, np.inf, np.nan):
        with pytest.raises(ValueError, match="sigma: expected a standard deviation above 0"):
            cramer_rao(pattern, cp, sigma, [[0, 0, 0]])
    with pytest.raises(ValueError, match="entries, mode 0: expected integers 0..11"):
        cramer_rao(pattern, cp, 1.0, [[12, 0, 0]])
    with pytest.raises(ValueError, match="observed: expected an Observed or a Pattern, got ndarray"):
        cramer_rao(pattern.mask(), cp, 1.0, [[0, 0, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cramer_rao(pattern, cp, 1.0, np.empty((0, 3), int)).shape == (0,)


def test_nearly_free_directions_are_told_from_free_ones():
    """Singular values down to 1e-8 of the largest count: J'J alone could not tell them from rounding."""
    small = 1e-7
    factors = [np.ones((3, 1)), np.ones((3, 1))]
    factors[0][2] = small
    mask = np.array([[1, 1, 0], [1, 1, 0], [1, 1, 1]])
    # entry (0, 2) is x_22 / x_2: noise 1 in x_22 = small, and noise 1/2 in x_2 = small, which two entries see
    index = np.argwhere(mask)
    for weight in (1.0, 4.0):
        observed = Observed(index, np.zeros(7), (3, 3), weight=np.full(7, weight))
        bound = cramer_rao(observed, CP([1.0], factors), 1.0, [[0, 2]])
        assert bound[0] == pytest.approx(1.5 / small**2 / weight, rel=1e-6)


def test_movement_is_the_derivative_along_a_direction():
    cp = CP.random((4, 3, 2), 2, seed=0)
    point = nullspace.Point(np.concatenate(cp.factors), np.array([0, 4, 7]))
    index = kernel_index(np.argwhere(np.ones(cp.shape)))
    directions = np.random.default_rng(0).standard_normal((9, 2, 3))
    moved, size = nullspace.movement(index, point, directions)
    for q in range(3):
        ahead, behind = (CP([1, 1], np.split(point.rows + step * directions[:, :, q], [4, 7])).dense()
                         for step in (1e-5, -1e-5))
        np.testing.assert_allclose(moved[:, q], (ahead - behind).ravel() / 2e-5, atol=1e-7)
    np.testing.assert_allclose(np.einsum("srb,srq->bq", nullspace.gradients(index, point), directions), moved, atol=1e-12)
    assert (np.abs(moved).max(axis=1) <= size + 1e-12).all()
