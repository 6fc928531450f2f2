"""lowrank_rl: completing low-rank tensors, and personal simulators and policies learned that way."""

__version__ = "0.1.0"
