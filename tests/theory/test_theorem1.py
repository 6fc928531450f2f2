"""Theorem 1's construction, for random functions, dimensions and cells. Each bound is also shown to be attained, so that a
smaller constant, or fewer terms, would fail."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.rank_bounds import lower_bound
from theory.theorem1 import (
    Cells,
    cells,
    cones,
    covering,
    exact,
    least_constant,
    sampled,
    stepped,
    sup_bound,
    sup_error,
    terms_for,
    terms_within,
    waves,
    worst,
)

DIMENSIONS = st.tuples(*[st.integers(1, 6)] * 3)
DELTAS = st.floats(0.02, 1)
CONSTANTS = st.floats(0.01, 100)
SEEDS = st.integers(0, 10**6)
FAMILIES = st.sampled_from([waves, cones])


@settings(deadline=None, max_examples=60)
@given(DIMENSIONS, CONSTANTS, SEEDS, FAMILIES)
def test_functions_are_lipschitz_in_each_argument(dims, constant, seed, family):
    """Assumption 1, at pairs of points near and far."""
    rng = np.random.default_rng(seed)
    f = family(dims, constant, rng)
    one = [rng.uniform(size=(200, d)) for d in dims]
    step = 10.0 ** rng.uniform(-6, 0, (200, 1))
    other = [np.clip(p + step * rng.normal(size=p.shape), 0, 1) for p in one]
    distance = sum(np.linalg.norm(p - q, axis=1) for p, q in zip(one, other, strict=True))
    assert (np.abs(f(*one) - f(*other)) <= constant * distance * (1 + 1e-9) + 1e-12 * constant).all()


@settings(deadline=None, max_examples=60)
@given(DIMENSIONS, DELTAS, SEEDS, FAMILIES)
def test_the_explicit_cp_is_h(dims, delta, seed, family):
    rng = np.random.default_rng(seed)
    f, latents = family(dims, 1.0, rng), sampled(dims, (8, 5, 7), rng)
    agents, actions = cells(delta, dims[0]), cells(delta, dims[2])
    cp = covering(f, latents, agents, actions)
    np.testing.assert_allclose(cp.dense(), stepped(f, latents, agents, actions), atol=1e-13)
    for factor in (cp.factors[0], cp.factors[2]):
        assert set(np.unique(factor)) <= {0.0, 1.0}
    assert cp.rank <= min(agents.count * actions.count, 8 * 7)
    assert agents.count * actions.count <= (2 / delta)**(dims[0] + dims[2])   # ceil(1 / delta) <= 2 / delta


@settings(deadline=None, max_examples=80)
@given(DIMENSIONS, DELTAS, CONSTANTS, SEEDS, FAMILIES)
def test_no_entry_is_missed_by_more_than_the_bound(dims, delta, constant, seed, family):
    rng = np.random.default_rng(seed)
    f, latents = family(dims, constant, rng), sampled(dims, (8, 5, 7), rng)
    agents, actions = cells(delta, dims[0]), cells(delta, dims[2])
    error = sup_error(f, latents, agents, actions)
    assert error <= sup_bound(constant, agents, actions) * (1 + 1e-9)
    assert error <= constant * delta * (math.sqrt(dims[0]) + math.sqrt(dims[2])) / 2 * (1 + 1e-9)
    if math.sqrt(dims[0]) + math.sqrt(dims[2]) <= 4:
        assert error <= 2 * constant * delta * (1 + 1e-9)   # where the paper's bound does hold


@settings(deadline=None, max_examples=60)
@given(DIMENSIONS, st.integers(1, 30), CONSTANTS, SEEDS)
def test_the_bound_is_attained(dims, per_axis, constant, seed):
    agents, actions = Cells(per_axis, dims[0]), Cells(per_axis, dims[2])
    f = worst(constant, agents, actions)
    rng = np.random.default_rng(seed)
    latents = sampled(dims, (6, 2, 5), rng)
    assert sup_error(f, latents, agents, actions) == pytest.approx(sup_bound(constant, agents, actions), rel=1e-9)
    one, other = (tuple(rng.uniform(size=(100, d)) for d in dims) for _ in range(2))   # and it is L-Lipschitz
    distance = sum(np.linalg.norm(p - q, axis=1) for p, q in zip(one, other, strict=True))
    assert (np.abs(f(*one) - f(*other)) <= constant * distance * (1 + 1e-9)).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(5, 9), st.integers(5, 9), st.integers(1, 20))
def test_the_paper_s_bound_is_exceeded_from_five_dimensions_on(d1, d3, per_axis):
    """Cells of side delta = 1 / per_axis, as in its proof: 2 L delta is not enough."""
    agents, actions = Cells(per_axis, d1), Cells(per_axis, d3)
    latents = sampled((d1, 1, d3), (3, 2, 3), np.random.default_rng(0))
    assert sup_error(worst(1.0, agents, actions), latents, agents, actions) > 2 / per_axis * 1.1
    below = Cells(per_axis, 4)
    latents = sampled((4, 1, 4), (3, 2, 3), np.random.default_rng(0))
    assert sup_error(worst(1.0, below, below), latents, below, below) <= 2 / per_axis * (1 + 1e-9)


@settings(deadline=None, max_examples=20)
@given(st.tuples(st.integers(1, 2), st.integers(1, 2)).filter(lambda d: sum(d) < 4), st.integers(2, 3), SEEDS)
def test_the_count_of_terms_is_attained(dims, per_axis, seed):
    """A function with kinks, one agent and one action in each cell: h has no CP of fewer terms."""
    d1, d3 = dims
    agents, actions = Cells(per_axis, d1), Cells(per_axis, d3)
    everywhere = [np.stack(np.meshgrid(*[(np.arange(per_axis) + 0.5) / per_axis] * d), axis=-1).reshape(-1, d) for d in dims]
    rng = np.random.default_rng(seed)
    f = cones((d1, 3, d3), 1.0, rng, terms=400)
    h = covering(f, (everywhere[0], rng.uniform(size=(300, 3)), everywhere[1]), agents, actions)
    assert h.rank == agents.count * actions.count
    assert lower_bound(h.dense()).rank == h.rank


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.01, 0.5))
def test_terms_for_the_paper_s_error_make_sure_of_it(d1, d3, delta):
    side = min(1.0, 4 * delta / (math.sqrt(d1) + math.sqrt(d3)))
    agents, actions = cells(side, d1), cells(side, d3)
    assert sup_bound(1.0, agents, actions) <= 2 * delta * (1 + 1e-9)
    assert terms_for(delta, d1, d3) == agents.count * actions.count
    assert terms_for(delta, d1, d1) >= (least_constant(d1) / delta**d1)**2 * (1 - 1e-9)   # as any covering must
    if side < 1:
        coarser = Cells(max(1, math.floor(1 / side) // 2), d1), Cells(max(1, math.floor(1 / side) // 2), d3)
        assert sup_bound(1.0, *coarser) > 2 * delta


def test_balls_that_cover_a_cube():
    """V_1 = 2, V_2 = pi, V_3 = 4 pi / 3; V_12 is the last above 1."""
    assert [1 / least_constant(d) for d in (1, 2, 3)] == pytest.approx([2, math.pi, 4 * math.pi / 3])
    assert least_constant(12) < 1 < least_constant(13)
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (400_000, 5))
    assert ((points**2).sum(axis=1) <= 1).mean() * 2**5 == pytest.approx(1 / least_constant(5), rel=0.02)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(2, 6))
def test_random_points_do_no_better_than_the_ball_bound(seed, dimension):
    """The constant that a covering needs, measured: n points leave some place at least (n V_d)^(-1/d) away."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(size=(20, dimension))
    places = np.vstack([rng.uniform(size=(500, dimension)), np.indices((2,) * dimension).reshape(dimension, -1).T])
    radius = np.linalg.norm(places[:, None] - points, axis=2).min(axis=1).max()
    assert radius >= (least_constant(dimension) / 20)**(1 / dimension)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 3))
def test_terms_within_brackets_a_planted_rank(seed, rank):
    """Exactly `rank` terms and no error; with a tolerance above every entry, none."""
    tensor = CP.random((7, 8, 6), rank, seed=seed).dense()
    (low, high), none = terms_within(tensor, [1e-9, np.abs(tensor).max()])
    assert low == rank <= high <= rank**2
    assert none == (0, 0)


def test_a_smooth_function_needs_far_fewer_terms_than_cells():
    rng = np.random.default_rng(0)
    f, latents = waves((2, 2, 2), 1.0, rng), sampled((2, 2, 2), (40, 30, 30), rng)
    cut = cells(1 / 12, 2)
    (low, high), = terms_within(exact(f, latents), [sup_bound(1.0, cut, cut)])
    assert 1 <= low <= high <= 16
    assert cut.count**2 == 12**4
    assert covering(f, latents, cut, cut).rank > 500   # even of those that hold an agent and an action


def test_points_on_walls_and_corners_lie_in_a_cell():
    cut = Cells(4, 2)
    points = np.array([[0, 0], [1, 1], [0.25, 0.5], [0.999, 0]])
    np.testing.assert_allclose(cut.centres(points), [[0.125, 0.125], [0.875, 0.875], [0.375, 0.625], [0.875, 0.125]])
    assert (np.linalg.norm(points - cut.centres(points), axis=1) <= cut.radius + 1e-12).all()
    assert cells(0.1, 3) == Cells(10, 3)
    assert cells(0.3, 1) == Cells(4, 1)


def test_bad_input():
    with pytest.raises(ValueError, match=r"delta: expected the side of a cell, in \(0, 1\], got 3"):
        cells(3, 1)
    with pytest.raises(ValueError, match=r"points: expected \(n, 2\) numbers in \[0, 1\]"):
        Cells(3, 2).centres(np.array([[0.5, 1.5]]))
    with pytest.raises(ValueError, match="dimensions: expected a whole number >= 1"):
        Cells(3, 0)


def test_the_page_s_example_prints_what_it_says(capsys):
    text = (Path(__file__).parents[2] / "docs" / "theory" / "theorem1.md").read_text()
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL).groups()
    exec(code, {})
    assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_the_script_prints_and_draws(tmp_path):
    done = subprocess.run([sys.executable, "-m", "theory.theorem1", "--out", str(tmp_path)], capture_output=True, text=True,
                          check=True, cwd=Path(__file__).parents[2])
    assert "3 x 3 cells, 9 terms, and the CP rank of h is at least 9" in done.stdout
    assert (tmp_path / "theory-theorem1.png").stat().st_size > 10_000
