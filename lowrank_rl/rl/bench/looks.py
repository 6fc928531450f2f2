"""What it was worth to select policies in simulators (selection.py), as the two curves of their records tell."""

import math
from collections.abc import Callable

import numpy as np

from lowrank_rl.rl.bench.gather import Gathered
from lowrank_rl.rl.bench.tables import Column, Entry, Row, Table, number

NOTE = ("At evenly spread looks each agent's policy played in its simulator and, for the curve alone, a few episodes in the "
        "true environment. The look that earned most in the simulator is kept; the last is what is kept without one, and the "
        "best is what nobody could know. Means over seeds.")
Curve = dict[str, float | None]                     # return by update; None where there was nothing to judge
LINES: dict[str, Callable[[Curve, Curve], float | None]] = {
    "kept, as simulated": lambda imagined, true: imagined[kept(imagined)],
    "kept": lambda imagined, true: true.get(kept(imagined)),       # a curve may begin later (train.py)
    "last": lambda imagined, true: true[max(true, key=int)],
    "best": lambda imagined, true: max(true.values()),
}


def kept(imagined: Curve) -> str:
    """The update of the look that earned most, of equal ones the last; the last of all where none could be judged."""
    worth = {at: -math.inf if x is None else x for at, x in imagined.items()}
    return max(worth, key=lambda at: (worth[at], int(at)))


def table(gathered: Gathered) -> Table | None:
    """Returns of the looks that were kept, were the last, and were the best; None where nothing was selected."""
    rows, pairs = [], []
    for group in gathered.groups:
        curves = {agent: [(record.training["imagined"], record.training["curve"]) for record in records
                          if record.training.get("imagined") and record.training.get("curve")]
                  for agent, records in group.done.items()}
        pairs += [(worth, true[at]) for each in curves.values() for imagined, true in each for at, worth in imagined.items()
                  if worth is not None and at in true]
        if any(curves.values()):
            rows += [Row((group.method, group.dataset, name), tuple(
                _mean([line(*pair) for pair in curves.get(agent, [])]) for agent in gathered.agents))
                for name, line in LINES.items()]
    columns = tuple(Column(f"agent {agent}") for agent in gathered.agents)
    title = "Policies selected in simulators: returns of the looks"
    notes = (NOTE, *_agreement(pairs))
    return Table("looks", title, ("method", "data", "look"), columns, tuple(rows), notes, by_data=True) if rows else None


def _agreement(pairs: list[tuple[float, float]]) -> list[str]:
    """How well simulated returns (first) told true ones, in words; nothing where either is always the same."""
    imagined, true = np.array(pairs).reshape(-1, 2).T
    if len(pairs) < 2 or not np.ptp(imagined) or not np.ptp(true):
        return []
    return [f"Over all {len(pairs)} looks the two returns correlate by {np.corrcoef(imagined, true)[0, 1]:.2f} (Pearson)."]


def _mean(found: list[float | None]) -> Entry:
    known = [x for x in found if x is not None]
    return Entry(number(float(np.mean(known))) if known else "-")
