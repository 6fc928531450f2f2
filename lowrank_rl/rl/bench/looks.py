"""What it was worth to choose policies in simulators (selection.py), as the two curves of their records tell."""

from collections.abc import Callable

import numpy as np

from lowrank_rl.rl.bench.gather import Gathered
from lowrank_rl.rl.bench.tables import Column, Entry, Row, Table, number

NOTE = ("At evenly spread looks each agent's policy played in its simulator and, for the curve alone, a few episodes in the "
        "true environment. The look that earned most in the simulator is kept; the last is what is kept without one, and the "
        "best is what nobody could know. Means over seeds.")
Curve = dict[str, float]                            # return by update
LINES: dict[str, Callable[[Curve, Curve], float]] = {
    "kept, as simulated": lambda imagined, true: imagined[kept(imagined)],
    "kept": lambda imagined, true: true[kept(imagined)],
    "last": lambda imagined, true: true[max(true, key=int)],
    "best": lambda imagined, true: max(true.values()),
}


def kept(imagined: Curve) -> str:
    """The update of the look that earned most, of equal ones the last."""
    return max(imagined, key=lambda at: (imagined[at], int(at)))


def table(gathered: Gathered) -> Table | None:
    """Returns of the looks that were kept, were the last, and were the best; None where nothing was chosen."""
    rows = []
    for group in gathered.groups:
        curves = {agent: [(record.training["imagined"], record.training["curve"]) for record in records
                          if "imagined" in record.training] for agent, records in group.done.items()}
        if any(curves.values()):
            rows += [Row((group.method, group.dataset, name), tuple(
                Entry(number(float(np.mean([line(*pair) for pair in curves[agent]]))) if curves.get(agent) else "-")
                for agent in gathered.agents)) for name, line in LINES.items()]
    columns = tuple(Column(f"agent {agent}") for agent in gathered.agents)
    title = "Policies chosen in simulators: returns of the looks"
    return Table("looks", title, ("method", "data", "look"), columns, tuple(rows), (NOTE,), by_data=True) if rows else None
