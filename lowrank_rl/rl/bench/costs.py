"""What the cells of a report cost, by method and data set, as their records tell."""

from lowrank_rl.rl.bench.gather import Gathered, Group
from lowrank_rl.rl.bench.store import Record
from lowrank_rl.rl.bench.tables import Column, Entry, Row, Table, duration

NOTE = ("Time of one worker: of a cell (prediction error, and acting in the true environment) each agent's mean over seeds; of "
        "training, as its log tells, once per seed for all agents. Data collection, cloned policies and pictures are not "
        "recorded. Where jobs shared a machine these are upper bounds.")
SHARED = ("Nothing is trained for these agents: PerSim's rows are found within each cell, and the others' training is the test "
          "agents' told again.")


def table(gathered: Gathered) -> Table | None:
    """Mean seconds per cell and per training, and the total."""
    rows, everything = [], 0.0
    for group in gathered.groups:
        if not group.records:
            continue
        trained = training(group.records)
        total = sum(record.seconds for record in group.records) + sum(trained)
        everything += total
        rows.append(Row((group.method, group.dataset, ""), (
            *(_cell(group, agent) for agent in gathered.agents),
            Entry(duration(sum(trained) / len(trained)) if trained else "-"),
            Entry(str(len(group.records))), Entry(duration(total)))))
    columns = (*(Column(f"agent {agent}") for agent in gathered.agents), Column("training a seed"), Column("cells"),
               Column("total"))
    told = (f"In all {duration(everything)}.", NOTE, *([SHARED] if gathered.unseen else []))
    return Table("costs", "Time of each cell, by method", ("method", "data", ""), columns, tuple(rows),
                 told, by_data=True) if rows else None


def training(records: list[Record]) -> list[float]:
    """Seconds of each seed's training, which the records of all its agents repeat."""
    by_seed: dict[int, float] = {}
    for record in records:
        seconds = record.training.get("seconds")
        if isinstance(seconds, int | float):
            by_seed[record.cell.seed] = max(by_seed.get(record.cell.seed, 0.0), seconds)
    return list(by_seed.values())


def _cell(group: Group, agent: int) -> Entry:
    done = group.done.get(agent, [])
    return Entry(duration(sum(record.seconds for record in done) / len(done)) if done else "-")
