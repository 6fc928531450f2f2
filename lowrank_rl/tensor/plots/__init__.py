"""Pictures. Each function draws into ``ax`` where given, else into a new figure, and gives the figure back; it neither
shows nor saves. Needs matplotlib (``pip install 'lowrank_rl[plot]'``); nothing outside this folder imports it.
"""

from lowrank_rl.tensor.plots.completion import plot_completion, plot_factors, plot_held_out, plot_history, plot_rank, upright

__all__ = ["plot_completion", "plot_factors", "plot_held_out", "plot_history", "plot_rank", "upright"]
