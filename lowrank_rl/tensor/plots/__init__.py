"""Pictures. Each function draws into ``ax`` where given, else into a new figure, and gives the figure back; it neither
shows nor saves. Needs matplotlib (``pip install 'lowrank_rl[plot]'``); nothing outside this folder imports it.
"""

from lowrank_rl.tensor.plots.blocks import plot_block_predictions, plot_blocks
from lowrank_rl.tensor.plots.completion import plot_completion, plot_factors, plot_held_out, plot_history, plot_rank, upright
from lowrank_rl.tensor.plots.patterns import plot_components, plot_overlap, plot_pattern
from lowrank_rl.tensor.plots.rank import plot_epsilon_rank, plot_rank_report, plot_unfoldings

__all__ = ["plot_block_predictions", "plot_blocks", "plot_completion", "plot_components", "plot_epsilon_rank", "plot_factors",
           "plot_held_out", "plot_history", "plot_overlap", "plot_pattern", "plot_rank", "plot_rank_report", "plot_unfoldings",
           "upright"]
