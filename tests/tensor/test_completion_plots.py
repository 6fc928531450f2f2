import numpy as np
import pytest

pytest.importorskip("matplotlib").use("Agg")

from matplotlib import pyplot as plt  # noqa: E402

from lowrank_rl.tensor import CP, CPCompletion, Observed  # noqa: E402
from lowrank_rl.tensor.plots import (  # noqa: E402
    plot_completion,
    plot_factors,
    plot_held_out,
    plot_history,
    plot_rank,
    upright,
)
from lowrank_rl.tensor.rank import RankChoice  # noqa: E402


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def draws(figure) -> None:
    figure.canvas.draw()   # layout and ticks are computed here, so bad ones fail here


def test_upright_is_the_same_tensor_with_the_signs_in_mode_0():
    cp = CP.random((5, 4, 6), 3, seed=0)
    turned = upright(cp)
    np.testing.assert_allclose(turned.dense(), cp.dense(), atol=1e-12)
    assert all((factor.sum(axis=0) >= 0).all() for factor in turned.factors[1:])


def test_rank_shows_the_means_and_marks_best_and_chosen():
    errors = np.array([[3.0, 3.2], [1.0, 1.3], [0.9, 1.3]])
    choice = RankChoice((1, 2, 4), errors, errors / 2, np.ones(2), np.ones(3), errors > 0, 0, "one standard error")
    figure = plot_rank(choice, unit="kg")
    draws(figure)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["best: 4"].get_xydata().tolist() == pytest.approx(np.array([[4, 1.1]]))
    assert lines["chosen: 2"].get_xydata().tolist() == pytest.approx(np.array([[2, 1.15]]))
    assert "kg" in figure.axes[0].get_ylabel()
    _, ax = plt.subplots()
    assert plot_rank(choice, ax) is ax.figure


def test_factors_have_a_row_per_term_and_a_column_per_mode_with_names():
    cp = CP.random((3, 40, 4), 2, seed=0)
    labels = [["a", "b", "c"], np.linspace(1, 100, 40), [8.0, 4.0, 2.0, 1.0]]
    figure = plot_factors(cp, labels, modes=["who", "when", "how much"], lines=[2], log=[2])
    draws(figure)
    axes = np.array(figure.axes).reshape(2, 3)
    assert [label.get_text() for label in axes[1, 0].get_xticklabels()] == ["a", "b", "c"]
    heights = [bar.get_height() for bar in axes[0, 0].patches]
    column = upright(cp).factors[0][:, 0]
    assert heights == pytest.approx(column / np.abs(column).max())
    assert axes[0, 2].lines[0].get_xdata().tolist() == [1, 2, 4, 8]   # sorted along the axis
    assert axes[1, 2].get_xscale() == "log"
    assert axes[1, 1].get_xlabel() == "when"
    draws(plot_factors(CP.random((2, 50), 1, seed=0), [None, ["x"] * 50]))
    with pytest.raises(ValueError, match="labels of mode 0: expected 3, got 2"):
        plot_factors(cp, [["a", "b"], None, None])
    with pytest.raises(ValueError, match="modes: expected one for each of 3 modes"):
        plot_factors(cp, modes=["one"])


def test_completion_shows_the_slice_its_holes_and_the_difference():
    cp = CP.random((5, 6, 3, 2), 2, seed=0)
    dense = cp.dense() + 1
    mask = np.random.default_rng(0).random(dense.shape) < 0.7
    figure = plot_completion(Observed.from_dense(dense, mask), cp, modes=(1, 0), at=(2, 1), names=["a", "b", "c", "d"])
    draws(figure)
    seen, model, residual = (axis.images[0].get_array() for axis in figure.axes[:3])
    np.testing.assert_array_equal(~np.ma.getmaskarray(seen), mask[:, :, 2, 1].T)
    np.testing.assert_allclose(model, cp.dense()[:, :, 2, 1].T)
    np.testing.assert_allclose(residual[~np.ma.getmaskarray(residual)], 1)
    assert figure._suptitle.get_text() == "c 2, d 1"
    draws(plot_completion(Observed.from_dense(cp.dense()[:, :, 0, 0]), CP.random((5, 6), 1, seed=0)))   # a matrix
    with pytest.raises(ValueError, match="cp: expected the shape"):
        plot_completion(Observed.from_dense(dense), CP.random((5, 6, 3), 1, seed=0))
    with pytest.raises(ValueError, match="at: expected a row for each of the 2 other modes, got 1"):
        plot_completion(Observed.from_dense(dense), cp, at=(0,))
    with pytest.raises(ValueError, match="at, mode 2"):
        plot_completion(Observed.from_dense(dense), cp, at=(7, 0))


def test_held_out_tells_r2_and_rmse():
    figure = plot_held_out([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 4.0], unit="kg")
    draws(figure)
    assert figure.axes[0].get_title() == "4 held-out entries\nR² 0.800, RMSE 0.5"   # 1 - 1 / 5; sqrt(1 / 4)
    with pytest.raises(ValueError, match="predicted: axis B is 2"):
        plot_held_out([1.0, 2.0, 3.0], [1.0, 2.0])


def test_history_is_the_model_s_losses():
    observed = Observed.from_dense(CP.random((6, 5, 4), 2, seed=0).dense())
    model = CPCompletion(rank=2).fit(observed)
    figure = plot_history(model)
    draws(figure)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [entry["loss"] for entry in model.history_]
    with pytest.raises(ValueError, match="call fit first"):
        plot_history(CPCompletion())
