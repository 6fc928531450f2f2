"""What all pictures share."""

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#7f7f7f"   # colour-blind safe


def canvas(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The given axes, or those of a new figure of this size in inches."""
    return ax if ax is not None else plt.subplots(figsize=size, layout="constrained")[1]
