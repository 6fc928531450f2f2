"""Pictures of a completion: which rank, what the terms are, what was filled in, how good it is, how the fit went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import r2_score

from lowrank_rl import check
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.observed import Observed
from lowrank_rl.tensor.plots.style import BLUE, GREEN, GREY, ORANGE, canvas

if TYPE_CHECKING:
    from lowrank_rl.tensor.completion import CPCompletion
    from lowrank_rl.tensor.rank import RankChoice

MANY = 16    # rows of a mode up to which each gets a bar and its name
LONG = 30    # characters of a name that are shown


def plot_rank(choice: RankChoice, ax: Axes | None = None, *, unit: str = "units of the values") -> Figure:
    """Held-out and training error over rank, with one standard error; the best and the chosen rank marked."""
    ax = canvas(ax, (6, 4))
    ax.plot(choice.ranks, choice.train_errors.mean(axis=1), "--", color=GREY, label="training entries")
    ax.errorbar(choice.ranks, choice.mean, choice.standard_error, color=BLUE, marker="o", markersize=4, capsize=3,
                label="held out, ± standard error")
    best, chosen = choice.ranks.index(choice.best), choice.ranks.index(choice.chosen)
    if choice.rule != "best":
        limit = choice.mean[best] + choice.standard_error[best]
        ax.axhline(limit, color=ORANGE, linewidth=0.8, linestyle=":", label="best + its standard error")
    ax.plot(choice.best, choice.mean[best], "s", color=ORANGE, markersize=9, markerfacecolor="none",
            label=f"best: {choice.best}")
    ax.plot(choice.chosen, choice.mean[chosen], "o", color=GREEN, markersize=14, markerfacecolor="none", markeredgewidth=2,
            label=f"chosen: {choice.chosen}")
    ax.set_xlabel("rank")
    ax.set_ylabel(f"error (RMSE, {unit})")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = choice.train_errors.mean(axis=1).min(), (choice.mean + choice.standard_error).max()
    if high > 20 * low > 0:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax.figure


def plot_factors(cp: CP, labels: Sequence[Any] | None = None, *, modes: Sequence[str] | None = None,
                 lines: Sequence[int] = (), log: Sequence[int] = ()) -> Figure:
    """One row per term, one column per mode: bars for small modes, lines for long ones.

    Columns are scaled so that the largest entry has size 1, and turned as in ``upright``; the percentage at a row is the
    term's share of the sum of all terms' norms.

    Args:
        labels: per mode the names of its rows (``Observed.labels``), None for numbers. Numeric names make the axis.
        modes: names of the modes.
        lines: modes drawn as lines though small, such as times and doses.
        log: modes whose numeric labels get a logarithmic axis.
    """
    cp = upright(cp)
    K = len(cp.shape)
    labels = [None] * K if labels is None else list(labels)
    modes = [f"mode {k}" for k in range(K)] if modes is None else list(modes)
    for name, given in (("labels", labels), ("modes", modes)):
        if len(given) != K:
            raise ValueError(f"{name}: expected one for each of {K} modes, got {len(given)}")
    for k, (names, size) in enumerate(zip(labels, cp.shape, strict=True)):
        if names is not None and len(names) != size:
            raise ValueError(f"labels of mode {k}: expected {size}, got {len(names)}")
    barred = [size <= MANY and k not in lines for k, size in enumerate(cp.shape)]
    longest = max((len(_short(name)) for names, bar in zip(labels, barred, strict=True) if bar and names is not None
                   for name in names), default=2)
    figure, axes = plt.subplots(cp.rank, K, figsize=(2.9 * K + 0.6, 1.5 * cp.rank + 0.5 + 0.062 * longest), squeeze=False,
                                sharex="col", layout="constrained")
    share = cp.weights / cp.weights.sum() if cp.weights.any() else cp.weights
    for k, (factor, names, bar) in enumerate(zip(cp.factors, labels, barred, strict=True)):
        numeric = names is not None and all(isinstance(x, int | float | np.number) for x in names)
        x = np.asarray(names, dtype=float) if numeric and not bar else np.arange(len(factor))
        order = np.argsort(x, kind="stable")
        for r in range(cp.rank):
            axis, column = axes[r, k], factor[:, r] / np.abs(factor[:, r]).max()
            if bar:
                axis.bar(x, column, color=BLUE)
            elif names is None or numeric:
                axis.plot(x[order], column[order], color=BLUE, linewidth=1.2, marker="." if len(x) <= 2 * MANY else None)
            else:   # many rows in no order
                axis.plot(x, column, ".", color=BLUE, markersize=2)
            axis.axhline(0, color="black", linewidth=0.6)
            axis.set_ylim((-0.05 if (factor >= 0).all() else -1.1), 1.1)
            axis.tick_params(labelsize=8)
        if k in log:
            axes[-1, k].set_xscale("log")
        if bar:
            axes[-1, k].set_xticks(x, [str(i) for i in x] if names is None else [_short(name) for name in names],
                                   rotation=90 if longest > 3 else 0, fontsize=8)
        axes[-1, k].set_xlabel(modes[k], fontsize=9)
    for r in range(cp.rank):
        axes[r, 0].set_ylabel(f"term {r + 1}\n{share[r]:.0%}", fontsize=9)
    return figure


def upright(cp: CP) -> CP:
    """The same tensor in ``CP.normalized`` form, every column but those of mode 0 turned so that its sum is not negative.

    Two columns of a term may change sign together; so mode 0 carries the signs, and the others can be read.
    """
    cp = cp.normalized()
    first, *others = (factor.copy() for factor in cp.factors)
    for factor in others:
        sign = np.where(factor.sum(axis=0) < 0, -1.0, 1.0)
        factor *= sign
        first *= sign
    return CP(cp.weights, (first, *others))


def plot_completion(observed: Observed, cp: CP, *, modes: tuple[int, int] = (0, 1), at: Sequence[int] | None = None,
                    names: Sequence[str] | None = None, unit: str = "value") -> Figure:
    """A slice three times: what was observed (holes in grey), the model everywhere, and observed minus model.

    Args:
        modes: the modes shown down and across.
        at: the row of every other mode, in order; None: the middle one.
        names: names of all modes.
    """
    if cp.shape != observed.shape:
        raise ValueError(f"cp: expected the shape of the observed tensor, {observed.shape}, got {cp.shape}")
    down, across = observed._modes("modes", modes)
    others = [k for k in range(len(cp.shape)) if k not in (down, across)]
    at = [cp.shape[k] // 2 for k in others] if at is None else list(at)
    if len(at) != len(others):
        raise ValueError(f"at: expected a row for each of the {len(others)} other modes, got {len(at)}")
    for k, i in zip(others, at, strict=True):
        check.within(f"at, mode {k}", np.array([i]), cp.shape[k])
    names = [f"mode {k}" for k in range(len(cp.shape))] if names is None else list(names)
    index = np.empty((cp.shape[down] * cp.shape[across], len(cp.shape)), dtype=np.int64)
    index[:, down], index[:, across] = (i.ravel() for i in np.indices((cp.shape[down], cp.shape[across])))
    index[:, others] = at
    model = cp.at(index).reshape(cp.shape[down], cp.shape[across])
    here = (observed.index[:, others] == at).all(axis=1)
    seen = np.full(model.shape, np.nan)
    seen[observed.index[here, down], observed.index[here, across]] = observed.value[here]
    both = np.concatenate([model[np.isfinite(model)], seen[np.isfinite(seen)]])
    signed = both.min() < -0.05 * both.max()
    high = np.abs(both).max()
    shown = {"cmap": "RdBu_r", "vmin": -high, "vmax": high} if signed else {"cmap": "viridis", "vmin": 0, "vmax": high}
    residual = seen - model
    limit = np.nanmax(np.abs(residual)) if np.isfinite(residual).any() else 1.0
    figure, axes = plt.subplots(1, 3, figsize=(11, min(6.0, 1.4 + 0.26 * cp.shape[down])), sharey=True, layout="constrained")
    panels = (("observed (grey: missing)", seen, shown), ("model", model, shown),
              ("observed − model", residual, {"cmap": "PuOr", "vmin": -limit, "vmax": limit}))
    for axis, (title, panel, style) in zip(axes, panels, strict=True):
        axis.set_facecolor("0.75")
        image = axis.imshow(panel, aspect="auto", interpolation="nearest", **style)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(names[across], fontsize=9)
        _ticks(axis, "x", observed.labels[across], cp.shape[across])
        figure.colorbar(image, ax=axis, label=unit if axis is axes[2] else None)
    _ticks(axes[0], "y", observed.labels[down], cp.shape[down])
    axes[0].set_ylabel(names[down], fontsize=9)
    rows = [i if observed.labels[k] is None else _short(observed.labels[k][i]) for k, i in zip(others, at, strict=True)]
    where = ", ".join(f"{names[k]} {row}" for k, row in zip(others, rows, strict=True))
    if where:
        figure.suptitle(where, fontsize=10)
    return figure


def plot_held_out(true: Any, predicted: Any, ax: Axes | None = None, *, unit: str = "") -> Figure:
    """Predictions over true values of entries that the fit never saw, with R2 and RMSE."""
    true, predicted = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
    check.shapes(true=(true, "B"), predicted=(predicted, "B"))
    ax = canvas(ax, (4.6, 4.4))
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    ax.plot([low, high], [low, high], color="black", linewidth=0.8, zorder=3)
    ax.scatter(true, predicted, s=9 if len(true) < 3000 else 3, color=BLUE, alpha=max(0.05, min(0.6, 600 / len(true))),
               linewidths=0, rasterized=True)
    error = np.sqrt(np.mean((true - predicted)**2))
    ax.set_title(f"{len(true)} held-out entries\nR² {r2_score(true, predicted):.3f}, RMSE {error:.3g}", fontsize=10)
    ax.set_xlabel("true" + f" ({unit})" * bool(unit))
    ax.set_ylabel("predicted" + f" ({unit})" * bool(unit))
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid(alpha=0.3)
    return ax.figure


def plot_history(model: CPCompletion, ax: Axes | None = None) -> Figure:
    """The loss after each sweep of the run that won, from ``history_`` of a fitted model; a filled dot where it ended."""
    if not getattr(model, "history_", None):
        raise ValueError("model: expected a fitted CPCompletion, got one without a history; call fit first")
    ax = canvas(ax, (5.5, 3.6))
    loss = [entry["loss"] for entry in model.history_]
    ax.plot(range(1, len(loss) + 1), loss, color=BLUE, marker=".", markersize=4)
    ax.plot(len(loss), loss[-1], "o", color=GREEN if model.converged_ else ORANGE,
            label="converged" if model.converged_ else "stopped before it converged")
    if min(loss) > 0 and max(loss) > 20 * min(loss):
        ax.set_yscale("log")
    else:
        ax.ticklabel_format(axis="y", useOffset=False)
    ax.set_xlabel("sweep over all entries")
    ax.set_ylabel("loss, squared units of y")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax.figure


def _short(name: Any) -> str:
    text = f"{name:.3g}" if isinstance(name, float | np.floating) else str(name)
    return text if len(text) <= LONG else text[:LONG - 1] + "…"


def _ticks(axis: Axes, which: str, labels: np.ndarray | None, size: int) -> None:
    """Names at every row of a small mode, at some of a long one."""
    step = max(1, -(-size // MANY))
    places = np.arange(0, size, step)
    texts = [str(i) if labels is None else _short(labels[i]) for i in places]
    if which == "x":
        axis.set_xticks(places, texts, fontsize=8, rotation=90 if max(map(len, texts)) > 2 else 0)
    else:
        axis.set_yticks(places, texts, fontsize=8)
