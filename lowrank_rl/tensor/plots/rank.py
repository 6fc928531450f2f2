"""Pictures of a tensor's rank: singular values of its unfoldings, error over rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lowrank_rl.tensor.plots.completion import plot_rank
from lowrank_rl.tensor.plots.style import BLUE, GREEN, GREY, ORANGE, canvas

if TYPE_CHECKING:
    from lowrank_rl.tensor.epsilon_rank import EpsilonRank
    from lowrank_rl.tensor.rank_report import RankReport
    from lowrank_rl.tensor.unfoldings import Unfolding

SHOWN = 30               # singular values of an unfolding
COLOURS = (BLUE, ORANGE, GREEN, GREY, "#cc79a7", "#56b4e9", "#e69f00")
MARKERS = "osDv^<>"


def plot_unfoldings(unfoldings: Sequence[Unfolding], ax: Axes | None = None, *, names: Sequence[str] | None = None) -> Figure:
    """Singular values of each unfolding; filled where they count, and a line at the threshold that they must exceed."""
    if not unfoldings:
        raise ValueError("unfoldings: expected at least one, got none; a tensor with holes has none")
    ax = canvas(ax, (6, 4))
    K = len(unfoldings[0].rows + unfoldings[0].columns)
    names = [f"mode {k}" for k in range(K)] if names is None else names
    lowest = min(u.threshold for u in unfoldings) or 1e-300
    for i, u in enumerate(unfoldings):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        value = np.maximum(u.singular[:SHOWN], lowest * 1e-2)
        x = np.arange(1, len(value) + 1) + 0.12 * (i - (len(unfoldings) - 1) / 2)   # side by side
        counts = value > u.threshold
        label = f"{' + '.join(names[k] for k in u.rows)}: rank {u.rank}"
        ax.plot(x[counts], value[counts], marker, color=colour, markersize=6, label=label)
        ax.plot(x[~counts], value[~counts], marker, color=colour, markersize=5, markerfacecolor="none")
        ax.axhline(max(u.threshold, 1e-300), color=colour, linewidth=0.8, linestyle=":")
    ax.set_yscale("log")
    ax.set_xlabel("singular value, by size")
    ax.set_ylabel("size (dotted: threshold)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, title="unfolding by", title_fontsize=8)
    return ax.figure


def plot_epsilon_rank(curve: EpsilonRank, ax: Axes | None = None, *, share: float = 0.9, unit: str = "units of the values",
                      label: str = "found, rms", colour: str = BLUE, worst: bool = True) -> Figure:
    """Error over rank: median over samples, the central ``share`` as a band, and what no CP can be under as a grey area.

    Draw several curves into one ``ax`` by calls with other labels and colours, and ``worst=False`` to leave out the largest
    errors and the area.
    """
    ax = canvas(ax, (6, 4))
    floor = max(1e-17, 1e-16 * float(curve.rms.max()))
    low, middle, high = np.maximum(curve.band("rms", share), floor)
    ax.plot(curve.ranks, middle, color=colour, marker="o", markersize=4, label=label)
    if len(curve.rms) > 1:
        ax.fill_between(curve.ranks, low, high, color=colour, alpha=0.25, linewidth=0)
    if worst:
        ax.plot(curve.ranks, np.maximum(curve.band("sup", share)[1], floor), color=ORANGE, marker="v", markersize=4,
                linestyle="--", label="found, worst entry")
        least = curve.band("least", share)[1]
        above = least > floor
        if above.any():
            ranks = np.array(curve.ranks)[above]
            bottom = ax.get_ylim()[0] if ax.get_yscale() == "log" else floor
            ax.fill_between(ranks, bottom, least[above], color=GREY, alpha=0.2, linewidth=0, label="no CP of that rank (rms)")
    ax.set_yscale("log")
    ax.set_xlabel("rank")
    ax.set_ylabel("error / rms of the values" if curve.relative else f"error ({unit})")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    smallest = float(min(middle.min(), low.min()))
    ax.set_ylim(bottom=max(smallest * 0.3, floor * 0.3))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax.figure


def plot_rank_report(report: RankReport) -> Figure:
    """A report's singular values and errors over rank, with the bounds of the rank; or its held-out errors."""
    if report.choice is not None:
        return plot_rank(report.choice)
    figure, axes = plt.subplots(1, 1 if report.curve is None else 2, figsize=(6 if report.curve is None else 11, 4),
                                layout="constrained", squeeze=False)
    plot_unfoldings(report.unfoldings, axes[0, 0], names=report.names)
    if report.curve is not None:
        axis = axes[0, 1]
        plot_epsilon_rank(report.curve, axis)
        shown = [rank for rank in (report.at_least, report.upper.rank) if rank <= max(report.curve.ranks)]
        for rank, text in zip(shown, ("at least", "at most"), strict=False):
            same = report.rank is not None
            if not (same and text == "at most"):
                axis.axvline(rank, color=GREEN, linewidth=1.2, linestyle="-" if same else "--",
                             label=f"rank {rank}" if same else f"{text} {rank}")
        axis.legend(fontsize=8)
    return figure
