"""Pictures of prediction intervals: do they hold what they promise?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import betabinom

from lowrank_rl.tensor.plots.style import BLUE, GREEN, GREY, ORANGE, canvas

if TYPE_CHECKING:
    from lowrank_rl.tensor.uncertainty import Intervals

COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", "#e69f00")
LEVELS = 39      # coverages drawn, spread evenly over what the held-out entries allow


def plot_calibration(intervals: Intervals, X: Sequence[Any], y: Any, ax: Axes | None = None, *,
                     names: Sequence[str] | None = None, share: float = 0.95) -> Figure:
    """Share of the entries (X, y) inside their intervals over the coverage asked for, a line per output.

    The band holds ``share`` of what chance may do to sound intervals of so few entries: a binomial number of these whose
    probability is Beta distributed, because the factor was learned from few entries too (Vovk, Conditional Validity of
    Inductive Conformal Predictors, ACML 2012). Entries of one trajectory are alike, and may leave it more often.
    """
    ax = canvas(ax, (5, 4.5))
    residual, known = intervals.residuals(X, y), len(intervals.held)
    names = [f"output {d}" for d in range(residual.shape[1])] if names is None else names
    if len(names) != residual.shape[1]:
        raise ValueError(f"names: expected {residual.shape[1]}, one per output, got {len(names)}")
    places = np.unique(np.linspace(1, known, LEVELS).round().astype(int))
    nominal = places / (known + 1)
    ends = betabinom.ppf([[(1 - share) / 2], [(1 + share) / 2]], len(residual), places, known + 1 - places) / len(residual)
    ax.fill_between(nominal, *ends, color=GREY, alpha=0.25, linewidth=0, label=f"{share:.0%} of chance")
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle="--")
    for d, name in enumerate(names):
        inside = (residual[:, d] <= intervals.held[places - 1, d][:, None]).mean(1)
        ax.plot(nominal, inside, color=COLOURS[d % len(COLOURS)], linewidth=1.4, label=name)
    ax.set_xlabel("coverage asked for")
    ax.set_ylabel(f"share of {len(residual)} new entries inside")
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    ax.set_aspect("equal")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="upper left")
    return ax.figure
