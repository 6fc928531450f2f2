import warnings

import numpy as np
import pytest

pytest.importorskip("matplotlib").use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from lowrank_rl.tensor import CP, Observed  # noqa: E402
from lowrank_rl.tensor.epsilon_rank import epsilon_rank  # noqa: E402
from lowrank_rl.tensor.plots.rank import plot_epsilon_rank, plot_rank_report, plot_unfoldings  # noqa: E402
from lowrank_rl.tensor.rank_report import rank_report  # noqa: E402


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def test_an_exact_tensor():
    report = rank_report(CP.random((6, 7, 5), 3, seed=0).dense(), names=["shop", "day", "product"], seed=0)
    assert (report.rank, report.at_least, report.upper.rank) == (3, 3, 3)
    assert report.uniqueness.verdict == "unique"
    assert report.jennrich.unique
    assert report.curve.ranks == (1, 2, 3, 4)
    text = str(report)
    assert text == report.text
    assert text.startswith("Rank report: 6 x 7 x 5 tensor, entries exact to rounding\n\nCP rank 3: no fewer terms can do, and "
                           "3 do.")
    for words in ("  shop     6 x 35: rank 3", "Are these 3 terms the only ones? unique", "Kruskal's condition holds",
                  "at most 3: terms", "eigenvalues are at least", "evidence: rows"):
        assert words in text
    assert max(map(len, text.splitlines())) < 220


def test_complex_eigenvalues_raise_the_lower_bound():
    report = rank_report(np.stack([np.eye(2), [[0, 1], [-1, 0]]], axis=2), seed=0)
    assert (report.lower.rank, report.at_least, report.upper.rank, report.rank) == (2, 3, 3, 3)
    border = rank_report(np.stack([[[0, 1], [1, 0]], [[1, 0], [0, 0.0]]], axis=2), seed=0)
    assert (border.at_least, border.upper.rank, border.rank) == (2, 3, None)
    assert "CP rank between 2 and 3." in border.text


def test_a_noisy_tensor():
    tensor = CP.random((15, 12, 10), 2, seed=1).dense() + 0.2 * np.random.default_rng(0).standard_normal((15, 12, 10))
    for sigma in (0.2, "estimate"):
        report = rank_report(tensor, sigma=sigma, seed=0)
        assert report.sigma == pytest.approx(0.2, rel=0.1)
        assert report.rank == 2
        assert "CP rank 2 and noise" in report.text
        assert "probability 0.999" in report.text
    blind = rank_report(np.random.default_rng(0).standard_normal((18, 18, 18)), ranks=(), seed=0)
    assert blind.rank is None
    assert "pass sigma" in blind.text
    assert blind.curve is None
    assert blind.uniqueness is None   # its terms are too many to be asked that


def test_zeros_noise_and_matrices():
    assert rank_report(np.zeros((3, 4)), seed=0).rank == 0
    nothing = rank_report(np.random.default_rng(0).standard_normal((8, 9, 7)), sigma=1.0, seed=0)
    assert nothing.rank == 0
    assert "nothing but zeros, or noise" in nothing.text
    matrix = rank_report(np.arange(12.0).reshape(3, 4), seed=0)
    assert matrix.rank == 2
    assert matrix.uniqueness.verdict == "not unique"


def test_four_modes_list_their_pairs():
    report = rank_report(CP.random((3, 3, 3, 3), 4, seed=0).dense(), names="abcd", seed=0)
    assert report.rank == 4
    assert "  a + b  9 x 9: rank 4" in report.text


def test_terms_of_your_own():
    cp = CP.random((4, 5, 3), 2, seed=0)
    report = rank_report(cp.dense(), cp=cp, seed=0)
    assert report.upper.how == "that you gave"
    assert report.upper.cp is cp


def test_holes_are_judged_by_held_out_entries():
    tensor = CP.random((12, 10, 8), 2, seed=0).dense()
    mask = np.random.default_rng(0).random(tensor.shape) < 0.6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = rank_report(Observed.from_dense(tensor, mask), ranks=[1, 2, 3], seed=0)
    assert report.choice.chosen == 2
    assert (report.rank, report.lower, report.upper, report.unfoldings) == (None, None, None, ())
    assert report.text.startswith("Rank report: 12 x 10 x 8 tensor, 5")
    assert "Held-out entries speak for rank 2" in report.text
    assert (report.determined.rank, report.determined.everything) == (2, True)
    assert "960 of 960 entries are locally identifiable" in report.text
    mask[3] = False                # a row without entries
    mask[4] = False
    mask[4, 0, 0] = True           # one with a single one
    with pytest.warns(UserWarning, match="the only ones of their row"):
        report = rank_report(Observed.from_dense(tensor, mask), ranks=[1, 2], seed=0)
    assert "mode 0: row 3 without any entry" in report.text
    assert "row 4 determines 1 of its 2 numbers" in report.text
    assert plot_rank_report(report).axes
    full = rank_report(Observed.from_dense(tensor), seed=0)
    assert full.rank == 2
    assert full.choice is None


def test_same_seed_same_report():
    tensor = CP.random((4, 4, 4), 6, seed=0).dense()
    assert rank_report(tensor, seed=3).text == rank_report(tensor, seed=3).text


def test_pictures_show_values_thresholds_and_bounds():
    report = rank_report(CP.random((4, 4, 4), 6, seed=0).dense(), names=["a", "b", "c"], seed=0)
    figure = plot_rank_report(report)
    figure.canvas.draw()
    left, right = figure.axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["a: rank 4", "b: rank 4", "c: rank 4"]
    assert report.lower.rank == 4   # and complex eigenvalues say one more
    assert {"at least 5", "at most 6"} <= {text.get_text() for text in right.get_legend().get_texts()}
    assert right.lines[0].get_ydata()[:5] == pytest.approx(report.curve.rms[0][:5])
    assert len(plot_rank_report(rank_report(np.ones((2, 3)), ranks=(), seed=0)).axes) == 1
    some = plot_unfoldings(report.unfoldings[:1]).axes[0]
    assert some.lines[0].get_ydata() == pytest.approx(report.unfoldings[0].singular)
    curve = epsilon_rank(lambda rng: rng.standard_normal((4, 5, 6)), [1, 2, 3], samples=3, seed=0)
    figure = plot_epsilon_rank(curve)
    figure.canvas.draw()
    assert figure.axes[0].lines[0].get_ydata() == pytest.approx(np.median(curve.rms, axis=0))
    with pytest.raises(ValueError, match="unfoldings: expected at least one"):
        plot_unfoldings(())


@pytest.mark.parametrize(("call", "message"), [
    (lambda: rank_report(np.ones((2, 2)), names=["a"], seed=0), "names: expected one for each of 2 modes, got 1"),
    (lambda: rank_report(np.ones((2, 2)), sigma="guess", seed=0), "sigma: expected a standard deviation, \"estimate\" or None"),
    (lambda: rank_report(np.array([[1, np.nan], [0, 1]]), seed=0), "which rank_report takes"),
    (lambda: rank_report(Observed([[0, 0], [1, 1]], [1.0, 2], (2, 2)), sigma=1.0, seed=0), "sigma and cp: expected neither"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
