"""Pictures of a block completion: which blocks were predicted, and how predictions with intervals compare with the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lowrank_rl.tensor.blocks import BlockCompletion
from lowrank_rl.tensor.observed import numbers
from lowrank_rl.tensor.plots.style import BLUE, GREY, ORANGE, canvas

SHOWN = 400   # predictions drawn with their intervals; more are thinned evenly


def plot_blocks(completion: BlockCompletion, ax: Axes | None = None) -> Figure:
    """Units down, measurements across, one panel's width per intervention: observed, predicted or not determined."""
    ax = canvas(ax, (7, 3.2))
    observed = completion.observed.mask()
    state = np.where(observed, 0, np.where(np.isnan(completion.standard_error()), 2, 1)).reshape(*observed.shape[:2], -1)
    units, measurements, interventions = state.shape
    ax.imshow(state.transpose(0, 2, 1).reshape(units, -1), aspect="auto", interpolation="nearest",
              cmap=ListedColormap(["0.85", BLUE, ORANGE]), norm=BoundaryNorm([-0.5, 0.5, 1.5, 2.5], 3))
    for edge in range(1, interventions):
        ax.axvline(edge * measurements - 0.5, color="black", linewidth=1)
    ax.set_ylabel("unit")
    if interventions > 1:
        names = completion.observed.labels[2]
        ax.set_xticks(np.arange(interventions) * measurements + (measurements - 1) / 2,
                      [str(k if names is None else names[k]) for k in range(interventions)])
        ax.set_xlabel(f"intervention ({measurements} measurements each)")
    else:
        ax.set_xlabel("measurement")
    patches = [Patch(color=colour, label=label) for colour, label, code in
               (("0.85", "observed", 0), (BLUE, "predicted", 1), (ORANGE, "not determined", 2)) if (state == code).any()]
    ax.legend(handles=patches, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax.figure


def plot_block_predictions(completion: BlockCompletion, true: Any, ax: Axes | None = None, *, level: float = 0.9,
                           unit: str = "") -> Figure:
    """Predictions with their intervals over the true expected values; intervals that miss the truth are orange.

    Args:
        true: the complete tensor.

    Raises:
        ValueError: another shape than the completed tensor, NaN where something was predicted, or nothing was predicted.
    """
    true = numbers("true", true)
    if true.shape != completion.observed.shape:
        raise ValueError(f"true: expected the shape of the observed tensor, {completion.observed.shape}, got {true.shape}")
    low, high = completion.interval(level)
    told = np.isfinite(low)
    if not told.any():
        raise ValueError("completion: expected at least one predicted block, got none; see its summary()")
    x, low, high = true[told], low[told], high[told]
    if not np.isfinite(x).all():
        raise ValueError(f"true: expected a number for every predicted entry, got {(~np.isfinite(x)).sum()} NaN or Inf")
    ax = canvas(ax, (4.8, 4.4))
    inside = (low <= x) & (x <= high)
    shown = np.zeros(len(x), dtype=bool)
    shown[np.linspace(0, len(x) - 1, min(SHOWN, len(x))).astype(int)] = True
    for chosen, colour, label in ((inside, BLUE, "holds the truth"), (~inside, ORANGE, "misses it")):
        pick = chosen & shown
        ax.errorbar(x[pick], (low + high)[pick] / 2, (high - low)[pick] / 2, fmt="o", markersize=2.5, linewidth=0.9,
                    color=colour, label=f"{level:.0%} interval {label}: {chosen.sum() / len(x):.1%}")
    ends = [min(x.min(), low.min()), max(x.max(), high.max())]
    ax.plot(ends, ends, color=GREY, linewidth=0.8)
    ax.set_xlabel("true" + f" ({unit})" * bool(unit))
    ax.set_ylabel("predicted" + f" ({unit})" * bool(unit))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax.figure
