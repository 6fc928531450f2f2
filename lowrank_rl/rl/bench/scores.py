"""Normalised scores: 0 for uniformly random actions, 100 for the best return that we can name (as in D4RL, Fu et al. 2020).

Both ends of each agent's scale are in reference_returns.csv, which benchmarks/reference_returns.py measures. Where no best is
known, HalfCheetah, there is no score.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np


@dataclass(frozen=True)
class Scale:
    """One agent's two reference returns."""
    random: float     # mean of uniformly random actions
    best: float       # the return that counts as 100
    source: str       # of the best, in words

    def __post_init__(self) -> None:
        if not self.random < self.best:
            raise ValueError(f"best: expected a return above {self.random} (uniformly random actions), got {self.best}")

    def score(self, returns: np.ndarray | float) -> np.ndarray | float:
        """Of undiscounted returns of whole episodes."""
        return 100 * (returns - self.random) / (self.best - self.random)


@cache
def scales() -> dict[tuple[str, int], Scale]:
    """(environment, agent 1..5) -> its scale, where both ends are known."""
    with files("lowrank_rl.rl.bench").joinpath("reference_returns.csv").open() as file:
        rows = {(row["environment"], int(row["agent"]), row["what"]): row for row in csv.DictReader(file)}
    return {(*who, agent): Scale(float(rows[*who, agent, "random"]["return"]), float(row["return"]), row["source"])
            for (*who, agent, what), row in rows.items() if what == "best"}
