"""Observation patterns against their dense masks, hand-made cases and the laws they are drawn by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib").use("Agg")

from matplotlib import pyplot as plt  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402

from lowrank_rl.tensor import patterns  # noqa: E402
from lowrank_rl.tensor.cells import from_coordinates  # noqa: E402
from lowrank_rl.tensor.cp import CP  # noqa: E402
from lowrank_rl.tensor.identify import identify  # noqa: E402
from lowrank_rl.tensor.missingness import by_value, missingness  # noqa: E402
from lowrank_rl.tensor.observed import Observed  # noqa: E402
from lowrank_rl.tensor.pattern import Pattern  # noqa: E402
from lowrank_rl.tensor.plots.patterns import plot_components, plot_overlap, plot_pattern  # noqa: E402


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@st.composite
def masks(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    mask = rng.random(shape) < draw(st.sampled_from([0.05, 0.3, 0.9]))
    mask.reshape(-1)[rng.integers(mask.size)] = True
    return mask


def joined(mask, modes):
    """Components by spreading a colour over rows until nothing changes, entry by entry."""
    entries = np.argwhere(mask)[:, modes]
    colour = {}
    for number, entry in enumerate(entries):
        for node in enumerate(entry):
            colour.setdefault(node, number)
    changed = True
    while changed:
        changed = False
        for entry in entries:
            least = min(colour[node] for node in enumerate(entry))
            for node in enumerate(entry):
                changed |= colour[node] != least
                colour[node] = least
    return [[colour.get((k, i), -1) for i in range(mask.shape[mode])] for k, mode in enumerate(modes)]


# The value

@settings(deadline=None, max_examples=60)
@given(masks(), st.randoms())
def test_description_is_that_of_the_mask(mask, random):
    pattern = Pattern.from_mask(mask)
    np.testing.assert_array_equal(pattern.mask(), mask)
    assert (len(pattern), pattern.density) == (mask.sum(), pytest.approx(mask.mean()))
    every = np.argwhere(np.ones(mask.shape))
    np.testing.assert_array_equal(pattern.contains(every).reshape(mask.shape), mask)
    for k in range(mask.ndim):
        rows = np.moveaxis(mask, k, 0).reshape(mask.shape[k], -1)
        np.testing.assert_array_equal(pattern.counts(k), rows.sum(axis=1))
        np.testing.assert_array_equal(pattern.unobserved(k), np.flatnonzero(~rows.any(axis=1)))
        np.testing.assert_array_equal(pattern.overlap(k), rows.astype(int) @ rows.T.astype(int))
        groups = [random.randrange(3) for _ in rows]
        blocks = np.stack([rows[np.array(groups) == g].any(axis=0) for g in range(max(groups) + 1)]).astype(int)
        np.testing.assert_array_equal(pattern.overlap(k, groups), blocks @ blocks.T)


@settings(deadline=None, max_examples=60)
@given(masks(), st.randoms())
def test_components_are_what_links_connect(mask, random):
    modes = random.sample(range(mask.ndim), random.randint(2, mask.ndim))
    found, expected = Pattern.from_mask(mask).components(modes), joined(mask, modes)
    entries = np.argwhere(mask)
    pairs = {}
    for mine, theirs in zip(np.concatenate(found).tolist(), [c for part in expected for c in part], strict=True):
        assert pairs.setdefault(theirs, mine) == mine
    assert len({*pairs.values()}) == len(pairs)
    assert pairs.get(-1, -1) == -1
    sizes = np.bincount(found[0][entries[:, modes[0]]])   # numbered by their entries
    assert (np.diff(sizes) <= 0).all()


def test_components_of_all_modes_and_of_pairs_differ():
    pattern = patterns.blocks((4, 3, 2), [(range(2), None, [0]), (range(2, 4), None, [1])])
    assert [c.tolist() for c in pattern.components()] == [[0] * 4, [0] * 3, [0] * 2]
    assert [c.tolist() for c in pattern.components((0, 2))] == [[0, 0, 1, 1], [0, 1]]
    lonely = Pattern([[0, 0], [1, 1], [1, 2]], (3, 3))
    assert [c.tolist() for c in lonely.components()] == [[1, 0, -1], [1, 0, 0]]


def test_observed_and_back():
    cp = CP.random((5, 4, 3), 2, seed=0)
    pattern = patterns.uniform((5, 4, 3), 20, seed=0)
    for source in (cp, cp.dense(), lambda index: cp.at(index)):
        observed = pattern.observe(source, seed=0)
        np.testing.assert_allclose(observed.value, cp.at(observed.index))
    back = Pattern.of(observed)
    np.testing.assert_array_equal(back.index, pattern.index)
    assert back.shape == pattern.shape
    big = patterns.uniform((60, 60, 60), 40_000, seed=0)
    zero = np.zeros(big.shape)
    noisy = big.observe(zero, noise=0.5, seed=1).value
    assert noisy.std() == pytest.approx(0.5, rel=0.02)
    np.testing.assert_array_equal(noisy, big.observe(zero, noise=0.5, seed=1).value)
    assert (noisy != big.observe(zero, noise=0.5, seed=2).value).all()


def test_adding_counts_each_entry_once():
    pattern = Pattern([[0, 1], [2, 2]], (3, 3))
    assert pattern.adding([[0, 1], [1, 1], [1, 1]]).index.tolist() == [[0, 1], [1, 1], [2, 2]]


def test_summary_reads_well():
    pattern = patterns.blocks((12, 10, 8), [(range(6), None, range(4)), (range(6, 11), None, range(4, 8))])
    assert pattern.summary(["agent", "state", "action"]) == (
        "440 of 960 entries observed (0.458 of all), 12 x 10 x 8\n"
        "  agent: 12 rows, entries per row 0 to 40, median 40; row 11 without any\n"
        "  state: 10 rows, entries per row 44 to 44, median 44\n"
        "  action: 8 rows, entries per row 50 to 60, median 55\n"
        "  agent and action fall into 2 groups that never meet: 6 agent and 4 action; 5 agent and 4 action")
    assert "every two modes hang together" in patterns.uniform((5, 5), 25, seed=0).summary()
    many = Pattern([[i, i] for i in range(8)], (20, 8)).summary()
    assert "12 rows (8, 9, 10, 11, 12, ...) without any" in many
    assert "8 groups that never meet: 1 mode 0 and 1 mode 1; " in many
    assert many.endswith("; ...")


@pytest.mark.parametrize(("act", "text"), [
    (lambda: Pattern(np.empty((0, 2)), (2, 2)), "index: expected at least one observed entry, got none"),
    (lambda: Pattern([[0, 1], [1, 1], [0, 1], [0, 1]], (2, 2)), r"got 2 repeats, the first of entry \(0, 1\); drop them"),
    (lambda: Pattern([[0, 2]], (2, 2)), "index, mode 1: expected integers 0..1, got values 2..2"),
    (lambda: Pattern([[0, 0.5]], (2, 2)), "index: expected whole numbers"),
    (lambda: Pattern([[0, np.nan]], (2, 2)), "index: 1 of 2 values are NaN or Inf"),
    (lambda: Pattern([[0]], (2,)), "shape: expected at least two modes"),
    (lambda: Pattern.from_mask([[0, 2]]), "mask: expected 1 or True"),
    (lambda: Pattern.from_mask(np.zeros((2, 2))), "expected at least one observed entry"),
    (lambda: FULL.counts(2), "k: expected integers 0..1, got values 2..2"),
    (lambda: FULL.components([0]), r"modes: expected at least two different ones, got \[0\]"),
    (lambda: FULL.components([0, 0]), "modes: expected at least two different ones"),
    (lambda: FULL.overlap(0, [0, 1]), "groups: expected one number for each of 3 rows of mode 0, got 2"),
    (lambda: FULL.overlap(0, [0, -1, 2]), "groups: expected integers"),
    (lambda: FULL.summary(["a"]), "modes: expected a name for each of 2 modes, got 1"),
    (lambda: FULL.observe(np.ones((3, 2)), seed=0), r"source: expected the pattern's shape \(3, 3\), got \(3, 2\)"),
    (lambda: FULL.observe(np.ones((3, 3)), noise=-1, seed=0), "noise: expected a standard deviation >= 0, got -1"),
    (lambda: FULL.observe(lambda index: index, seed=0), r"source\(index\): expected axes \(B\)"),
    (lambda: FULL.observe(lambda index: np.full(len(index), np.nan), seed=0), "value: 9 of 9 values are NaN"),
])
def test_refuses_with_one_sentence(act, text):
    with pytest.raises(ValueError, match=text):
        act()


FULL = patterns.uniform((3, 3), 9, seed=0)


# Kinds

@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 7), min_size=2, max_size=4), st.floats(0.01, 0.99), st.integers(0, 10**6))
def test_uniform_has_as_many_as_asked(shape, share, seed):
    total = int(np.prod(shape))
    count = round(share * total)
    if 0 < count < total:
        assert len(patterns.uniform(shape, share, seed=seed)) == count
        np.testing.assert_array_equal(patterns.uniform(shape, count, seed=seed).index,
                                      patterns.uniform(shape, share, seed=seed).index)


@pytest.mark.parametrize("count", [4, 15])   # drawn by trying again, and from a permutation
def test_uniform_draws_every_entry_as_often(count):
    seen = sum(patterns.uniform((5, 4), count, seed=seed).mask().astype(int) for seed in range(2000))
    expected = 2000 * count / 20
    assert np.abs(seen - expected).max() < 5 * np.sqrt(expected * (1 - count / 20))


def test_uniform_of_a_tensor_that_does_not_fit():
    pattern = patterns.uniform((10**5, 10**5, 10**5), 1000, seed=0)
    assert len(pattern) == 1000
    assert pattern.index.max(axis=0).min() > 0.98e5


def test_fibres_are_whole():
    for mode, shape in enumerate([(4, 5, 6)] * 3):
        mask = np.moveaxis(patterns.fibres(shape, mode, 0.3, seed=0).mask(), mode, 0)
        assert (mask == mask[0]).all()
        assert mask[0].sum() == round(0.3 * mask[0].size)
    assert len(patterns.fibres((4, 5, 6), 1, 7, seed=0)) == 35


def test_blocks_are_those_asked_for():
    mask = np.zeros((5, 4, 3), dtype=bool)
    mask[1:3, :, [0, 2]] = True
    mask[2:, 1:, :] = True
    pattern = patterns.blocks((5, 4, 3), [(slice(1, 3), None, [0, 2]), (range(2, 5), slice(1, None), None)])
    np.testing.assert_array_equal(pattern.mask(), mask)


def test_interventions_are_synthetic_interventions_blocks():
    mask = patterns.interventions((10, 8, 3), 5, seed=0).mask()
    assert mask[:, :5, 0].all()
    assert not mask[:, :5, 1:].any()
    late = mask[:, 5:]
    assert (late.sum(axis=2) == 1).all()
    assert (late == late[:, :1]).all()   # one action per unit
    assert sorted(late[:, 0].sum(axis=0)) == [3, 3, 4]
    assert len({patterns.interventions((10, 8, 3), 5, seed=s).mask().tobytes() for s in range(5)}) > 1


def test_visited_drops_repeats():
    assert patterns.visited([[1, 2], [0, 1], [1, 2]], (2, 3)).index.tolist() == [[0, 1], [1, 2]]


def test_random_walks_move_as_said():
    agents, states, actions, steps = 6, 15, 3, 40
    taken = []

    def policy(agent, state, rng):
        taken.append((state.copy(), action := rng.integers(0, actions, len(agent))))
        return action

    pattern = patterns.random_walks((agents, states, actions), steps, seed=0, policy=policy)
    assert len(taken) == steps
    assert (taken[0][0] == 7).all()
    for (state, action), (after, _) in zip(taken, taken[1:], strict=False):
        low, high = (np.clip(state + action - 1 + noise, 0, states - 1) for noise in (-1, 1))
        assert ((low <= after) & (after <= high)).all()
    went = {(n, int(s[n]), int(a[n])) for s, a in taken for n in range(agents)}
    assert {tuple(entry) for entry in pattern.index.tolist()} == went
    right = patterns.random_walks((50, 31, 3), 30, seed=0, policy=lambda agent, state, rng: np.full(len(agent), 2))
    assert right.mask().any(axis=(0, 2))[:12].sum() == 0   # pushed to the right
    assert not right.mask()[:, :, :2].any()
    np.testing.assert_array_equal(patterns.random_walks((9, 9, 1), 9, seed=4).index,
                                  patterns.random_walks((9, 9, 1), 9, seed=4).index)


@pytest.mark.parametrize(("act", "text"), [
    (lambda: patterns.uniform((3, 3), 1.0, seed=0), "amount: expected a share between 0 and 1 or a whole number, got 1.0"),
    (lambda: patterns.uniform((3, 3), np.nan, seed=0), "amount: expected a share between 0 and 1"),
    (lambda: patterns.uniform((3, 3), 10, seed=0), "amount: expected 1 to 9 of 9, got 10"),
    (lambda: patterns.uniform((3, 3), 0, seed=0), "amount: expected a whole number >= 1, got 0"),
    (lambda: patterns.uniform((3, 3), 0.01, seed=0), "amount: expected 1 to 9 of 9, got 0.01, which is 0"),
    (lambda: patterns.uniform((2**40, 2**40), 5, seed=0), r"shape: expected fewer than 2\^62 places"),
    (lambda: patterns.fibres((3, 3), 2, 1, seed=0), "mode: expected integers 0..1, got values 2..2"),
    (lambda: patterns.blocks((3, 3), []), "parts: expected at least one block, got none"),
    (lambda: patterns.blocks((3, 3), [([0],)]), "parts: expected for each block the rows of 2 modes, got 1"),
    (lambda: patterns.blocks((3, 3), [([0], [3])]), "parts of mode 1: expected integers 0..2, got values 3..3"),
    (lambda: patterns.interventions((3, 3), 1, seed=0), "shape: expected units, measurements and actions, got 2 modes"),
    (lambda: patterns.interventions((3, 3, 2), 4, seed=0), "before: expected integers 0..3, got values 4..4"),
    (lambda: patterns.visited([[0, 5]], (2, 3)), "steps, mode 1: expected integers 0..2"),
    (lambda: patterns.random_walks((3, 3), 4, seed=0), "shape: expected agents, states and actions, got 2 modes"),
    (lambda: patterns.random_walks((3, 3, 2), 0, seed=0), "steps: expected a whole number >= 1, got 0"),
    (lambda: patterns.random_walks((3, 3, 2), 4, seed=0, policy=lambda a, s, r: a), "mode 2: expected integers 0..1"),
])
def test_kinds_refuse(act, text):
    with pytest.raises(ValueError, match=text):
        act()


# Missing because of the value

@pytest.mark.parametrize(("share", "strength"), [(0.2, 2.0), (0.5, -1.0), (0.7, 0.0)])
def test_by_value_follows_the_logistic_law(share, strength):
    cp = CP.random((60, 50, 40), 3, seed=0)
    value, seen = cp.dense(), by_value(cp, share, strength=strength, seed=0).mask()
    assert seen.mean() == pytest.approx(share, abs=0.005)
    z = (value - value.mean()) / value.std()
    slope = LogisticRegression(C=1e9).fit(z.reshape(-1, 1), seen.ravel()).coef_[0, 0]
    assert slope == pytest.approx(strength, abs=0.05)
    np.testing.assert_array_equal(seen, by_value(value, share, strength=strength, seed=0).mask())


@pytest.mark.parametrize("shape", [(40, 30, 20), (300, 200, 50)])   # all entries; a sample
@pytest.mark.parametrize("strength", [0.0, 1.5, -1.5])
def test_missingness_sees_by_value(shape, strength):
    cp = CP.random(shape, 2, seed=1)
    pattern = by_value(cp, 0.3, strength=strength, seed=0)
    found = missingness(pattern.observe(cp, seed=0), cp)
    assert found.suspicious == (strength != 0)
    seen, value = pattern.mask(), cp.dense()
    exact = np.corrcoef(seen.ravel(), value.ravel())[0, 1]
    gap = (value[seen].mean() - value[~seen].mean()) / value.std()
    tolerance = 1e-9 if np.prod(shape) <= 10**6 else 0.01
    assert found.correlation == pytest.approx(exact, abs=tolerance)
    assert found.difference == pytest.approx(gap, abs=3 * tolerance)
    assert ("no sign" in str(found)) == (strength == 0)
    assert ("higher" in str(found)) == (gap > 0)


def test_missingness_refuses():
    cp = CP.random((3, 3), 1, seed=0)
    with pytest.raises(ValueError, match="observed: expected some entries missing"):
        missingness(FULL.observe(cp, seed=0), cp)
    with pytest.raises(ValueError, match=r"cp: expected the observed tensor's shape \(3, 3\), got \(3, 4\)"):
        missingness(FULL.observe(cp, seed=0), CP.random((3, 4), 1, seed=0))
    constant = CP([1.0], [np.ones((3, 1))] * 2)
    assert not missingness(Observed([[0, 0]], [1.0], (3, 3)), constant).suspicious
    for act, text in ((lambda: by_value(cp, 1.0, strength=1, seed=0), "share: expected a number between 0 and 1, got 1.0"),
                      (lambda: by_value(cp, 0.5, strength=np.inf, seed=0), "strength: expected a finite number"),
                      (lambda: by_value(constant, 0.5, strength=1, seed=0), "tensor: expected values that differ"),
                      (lambda: by_value([[np.nan, 1.0]] * 2, 0.5, strength=1, seed=0), "tensor: expected finite values"),
                      (lambda: by_value(CP.random((10**4, 10**4), 1, seed=0), 0.5, strength=1, seed=0), "at most 50,000,000")):
        with pytest.raises(ValueError, match=text):
            act()
    assert len(by_value(constant, 0.5, strength=0, seed=0)) < 9


# Recorded coordinates

def test_episodes_become_a_pattern():
    rng = np.random.default_rng(0)
    agent, action = rng.integers(0, 7, 500), rng.choice(["left", "right"], 500)
    state = np.stack([rng.standard_normal(500), rng.exponential(size=500)], axis=1)
    cells = from_coordinates([agent, state, action], [None, (4, 3), None])
    assert cells.pattern.shape == (7, 12, 2)
    assert cells.labels[0].tolist() == [*range(7)]
    assert cells.labels[2].tolist() == ["left", "right"]
    np.testing.assert_array_equal(cells.labels[0][cells.index[:, 0]], agent)
    np.testing.assert_array_equal(cells.labels[2][cells.index[:, 2]], action)
    bins = cells.labels[1][cells.index[:, 1]]   # (T, 2) bin of each column
    for x, b, edges, number in zip(state.T, bins.T, cells.edges[1], (4, 3), strict=True):
        assert np.ptp(np.bincount(b.astype(int))) <= 1   # as many in each
        assert len(edges) == number + 1
        for j in range(number):
            assert edges[j] - 1e-12 <= x[b == j].min() <= x[b == j].max() <= edges[j + 1] + 1e-12
    assert {*map(tuple, cells.pattern.index.tolist())} == {*map(tuple, cells.index.tolist())}
    assert cells.edges[0] is None


def test_bins_of_equal_width_and_cells_that_do_not_occur():
    cells = from_coordinates([[0.0, 1.0, 9.0, 10.0], [0, 1, 0, 1]], [5, None], how="width")
    assert cells.edges[0][0].tolist() == [0, 2, 4, 6, 8, 10]
    assert cells.labels[0].tolist() == [[0], [4]]   # of five bins two occur
    assert cells.index[:, 0].tolist() == [0, 0, 1, 1]
    for x in ([1.0, 1.0, 1.0, 2.0], [1.0, 2.0, 2.0, 2.0]):   # ties at either end leave two bins of three
        ties = from_coordinates([x, [0, 1, 2, 3]], [3, None])
        assert ties.index[:, 0].tolist() == [int(value) - 1 for value in x]
        assert ties.edges[0][0].tolist() == [1, 1.5, 2]
    assert from_coordinates([[3.0, 3.0], [0, 1]], [4, None]).pattern.shape == (1, 2)   # constant: one cell


def test_exact_coordinates_are_rows_of_their_own():
    state = np.array([[0.1, 2.0], [0.1, 3.0], [0.1, 2.0]])
    cells = from_coordinates([["a", "a", "b"], state], [None, None])
    assert cells.labels[1].tolist() == [[0.1, 2.0], [0.1, 3.0]]
    assert cells.index.tolist() == [[0, 0], [0, 1], [1, 0]]


def test_cells_average_what_was_measured():
    cells = from_coordinates([[0, 0, 1, 0], [0.0, 0.1, 5.0, 5.0]], [None, 2])
    observed = cells.observed([1.0, 3.0, 7.0, 9.0])
    table = {tuple(entry): (value, weight) for entry, value, weight in
             zip(observed.index.tolist(), observed.value, observed.weight, strict=True)}
    assert table == {(0, 0): (2.0, 2.0), (1, 1): (7.0, 1.0), (0, 1): (9.0, 1.0)}
    assert {*table} == {*map(tuple, cells.pattern.index.tolist())}


@pytest.mark.parametrize(("columns", "bins", "text"), [
    ([[0, 1]], [None], "bins: expected None or a number for each of at least two columns, got 1 for 1"),
    ([[0, 1], [0, 1]], [None], "bins: expected None or a number for each"),
    ([[0, 1], [0, 1, 2]], [None, 2], "column 1: axis T is 3, earlier inputs say T=2"),
    ([[], []], [None, 2], "column 0: expected coordinates .* of at least one record"),
    ([[0, 1], [0, np.nan]], [None, 2], "column 1: 1 of 2 values are NaN or Inf"),
    ([[0, 1], [0, np.nan]], [None, None], "column 1: expected a label in each row"),
    ([[0, 1], ["a", "b"]], [None, 2], "column 1: expected real numbers"),
    ([[0, 1], [0, 1]], [None, 0], "bins of column 1: expected a whole number >= 1, got 0"),
    ([[0, 1], [[0, 1], [1, 1]]], [None, (2, 2, 2)], "bins of column 1: expected one number for each of 2 columns, got 3"),
])
def test_cells_refuse(columns, bins, text):
    with pytest.raises(ValueError, match=text):
        from_coordinates(columns, bins)


def test_cells_refuse_unknown_bins():
    with pytest.raises(ValueError, match="unknown how 'even'; known: quantile, width"):
        from_coordinates([[0, 1], [0, 1]], [None, 2], how="even")


# Pictures

def image(ax):
    return np.asarray(ax.images[0].get_array())


def test_slices_show_what_is_observed():
    pattern = patterns.uniform((6, 5, 3), 40, seed=0)
    figure = plot_pattern(pattern, modes=["agent", "state", "action"])
    figure.canvas.draw()
    assert [ax.get_title() for ax in figure.axes] == ["action 0", "action 1", "action 2"]
    for i, ax in enumerate(figure.axes):
        np.testing.assert_array_equal(image(ax), pattern.mask()[:, :, i])
    figure = plot_pattern(pattern, along=0, most=2)
    assert [ax.get_title() for ax in figure.axes] == ["mode 0 0", "mode 0 5"]
    np.testing.assert_array_equal(image(figure.axes[1]), pattern.mask()[5])
    flat = patterns.uniform((6, 5), 12, seed=0)
    np.testing.assert_array_equal(image(plot_pattern(flat).axes[0]), flat.mask())
    four = patterns.uniform((2, 2, 2, 2), 9, seed=0)
    for act, text in ((lambda: plot_pattern(flat, along=0), "along: expected one of three modes 0, 1, 2, or None, got 0 for 2"),
                      (lambda: plot_pattern(pattern, along=3), "along: expected one of three modes"),
                      (lambda: plot_pattern(four), "expected two or three modes to draw, got 4")):
        with pytest.raises(ValueError, match=text):
            act()


def test_slices_show_verdicts():
    pattern = patterns.blocks((6, 5, 4), [(range(3), None, range(2)), (range(3, 6), None, range(2, 4))])
    found = identify(pattern, 2)
    for i, ax in enumerate(plot_pattern(found).axes):
        np.testing.assert_array_equal(image(ax) == 3, ~found.mask()[:, :, i])
        np.testing.assert_array_equal(image(ax) == 1, pattern.mask()[:, :, i])


def test_components_stand_together_and_overlap_is_written():
    pattern = patterns.blocks((6, 5, 4), [(range(0, 6, 2), None, [0, 2]), (range(1, 5, 2), None, [1, 3])])
    figure = plot_components(pattern, (0, 2))
    figure.canvas.draw()
    assert image(figure.axes[0]).tolist() == [[1, 1, 0, 0]] * 3 + [[0, 0, 2, 2]] * 2 + [[0] * 4]
    assert figure.axes[0].get_title() == "2 components"
    figure = plot_overlap(pattern, 0)
    assert [text.get_text() for text in figure.axes[0].texts][:3] == ["10", "0", "10"]
    _, ax = plt.subplots()
    assert plot_overlap(pattern, 0, [0, 0, 1, 1, 1, 2], ax) is ax.figure
    plot_overlap(patterns.uniform((20, 5), 40, seed=0)).canvas.draw()
