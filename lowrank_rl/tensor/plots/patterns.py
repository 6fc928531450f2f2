"""Pictures of observation patterns: slice by slice, what hangs together, how much rows share, what is locally identifiable."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from lowrank_rl import check
from lowrank_rl.tensor.identify import Identifiability
from lowrank_rl.tensor.pattern import Pattern, mode_names
from lowrank_rl.tensor.plots.style import BLUE, GREEN, GREY, ORANGE, canvas

MISSING, LIKELY, UNKNOWN = "#f2f2f2", "#8fd0b8", "#f3c5a4"   # missing; locally identifiable; not
COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", GREY)   # of components, in turn
NUMBERS = 12   # rows up to which an overlap is written out


def plot_pattern(pattern: Pattern | Identifiability, *, along: int | None = None, most: int = 6,
                 modes: Sequence[str] | None = None) -> Figure:
    """Slices of two or three modes: observed entries blue, missing ones grey.

    Of an ``Identifiability``, missing entries are green where locally identifiable and orange where not.

    Args:
        along: of three modes the one whose rows are the slices; None: the smallest.
        most: how many slices at most, evenly spaced.
        modes: names of the modes.

    Raises:
        ValueError: more than three modes, ``along`` that is not one of them.
    """
    found = pattern if isinstance(pattern, Identifiability) else None
    pattern = found.pattern if found else pattern
    K = len(pattern.shape)
    names = mode_names(modes, K)
    if K > 3:
        raise ValueError(f"pattern: expected two or three modes to draw, got {K}; use plot_components for pairs of modes")
    if along is not None and (K == 2 or along not in range(K)):
        raise ValueError(f"along: expected one of three modes 0, 1, 2, or None, got {along!r} for {K} modes")
    along = int(np.argmin(pattern.shape)) if along is None and K == 3 else along
    check.count("most", most)
    rows, columns = (k for k in range(K) if k != along)
    chosen = [None] if along is None else np.unique(np.linspace(0, pattern.shape[along] - 1, most).round().astype(int)).tolist()
    wide = 9 / max(len(chosen), 2)
    tall = float(np.clip(wide * pattern.shape[rows] / pattern.shape[columns], 1, 6))
    figure, axes = plt.subplots(1, len(chosen), figsize=(9 if len(chosen) > 1 else 5, tall + 1), squeeze=False, sharey=True,
                                layout="constrained")
    colours = ListedColormap([MISSING, BLUE, LIKELY, UNKNOWN])
    for ax, number in zip(axes[0], chosen, strict=True):
        image = _slice(pattern, found, along, number, rows, columns)
        ax.imshow(image, cmap=colours, vmin=-0.5, vmax=3.5, aspect="auto", interpolation="nearest")
        ax.set_xlabel(names[columns])
        ax.set_title("" if number is None else f"{names[along]} {number}", fontsize=9)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(4, integer=True))
    axes[0, 0].set_ylabel(names[rows])
    shown = {"observed": BLUE, **({"locally identifiable": LIKELY, "not": UNKNOWN} if found else {"missing": MISSING})}
    figure.legend(handles=[Patch(facecolor=colour, edgecolor=GREY, label=name) for name, colour in shown.items()], fontsize=8,
                  loc="outside lower center", ncols=3, frameon=False)
    return figure


def plot_components(pattern: Pattern, pair: tuple[int, int] = (0, 1), ax: Axes | None = None, *,
                    modes: Sequence[str] | None = None) -> Figure:
    """Where rows of two modes meet in an observed entry, sorted so that what hangs together stands together.

    One colour for each component of their bipartite graph; rows without any entry come last.
    """
    names = mode_names(modes, len(pattern.shape))
    labels = pattern.components(pair)
    number = int(labels[0].max()) + 1
    image = np.zeros([pattern.shape[k] for k in pair])
    left, right = pattern.index[:, pair[0]], pattern.index[:, pair[1]]
    image[left, right] = 1 + labels[0][left] % len(COLOURS)
    order = [np.argsort(np.where(label < 0, number, label), kind="stable") for label in labels]
    ax = canvas(ax, (5, 4.2))
    ax.imshow(image[np.ix_(*order)], cmap=ListedColormap([MISSING, *islice(cycle(COLOURS), len(COLOURS))]), vmin=-0.5,
              vmax=len(COLOURS) + 0.5, aspect="auto", interpolation="nearest")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"{names[pair[1]]}, sorted")
    ax.set_ylabel(f"{names[pair[0]]}, sorted")
    ax.set_title(f"{number} component{'s' if number > 1 else ''}", fontsize=10)
    return ax.figure


def plot_overlap(pattern: Pattern, k: int = 0, groups: Any = None, ax: Axes | None = None, *,
                 modes: Sequence[str] | None = None) -> Figure:
    """How many columns each two rows of mode k, or blocks of them, are both observed in (``Pattern.overlap``)."""
    name = mode_names(modes, len(pattern.shape))[k]
    shared = pattern.overlap(k, groups)
    ax = canvas(ax, (4.6, 4))
    image = ax.imshow(shared, cmap="Blues", vmin=0, interpolation="nearest")
    if len(shared) <= NUMBERS:
        for (i, j), count in np.ndenumerate(shared):
            colour = "white" if 2 * count > shared.max() else "black"
            ax.text(j, i, str(count), ha="center", va="center", fontsize=8, color=colour)
    else:
        ax.figure.colorbar(image, ax=ax)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    what = name if groups is None else f"block of {name}"
    ax.set_xlabel(what)
    ax.set_ylabel(what)
    ax.set_title("columns observed in both", fontsize=10)
    return ax.figure


def _slice(pattern: Pattern, found: Identifiability | None, along: int | None, number: int | None, rows: int,
           columns: int) -> np.ndarray:
    """0 missing, 1 observed, 2 locally identifiable, 3 not"""
    inside = pattern.index if along is None else pattern.index[pattern.index[:, along] == number]
    size = (pattern.shape[rows], pattern.shape[columns])
    image = np.zeros(size)
    if found:
        index = np.zeros((size[0] * size[1], len(pattern.shape)), dtype=np.int64)
        index[:, rows], index[:, columns] = (x.reshape(-1) for x in np.indices(size))
        if along is not None:
            index[:, along] = number
        image = np.where(found.at(index), 2, 3).reshape(size)
    image[inside[:, rows], inside[:, columns]] = 1
    return image
