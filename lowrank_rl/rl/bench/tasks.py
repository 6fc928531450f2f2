"""Cells -> the tasks that make them: data, then cloned policies, then training, then cells; what is shared is done once.

Shards are parts of them for machines that share nothing. A unit is what hangs together by training (the five agents of a
method; PerSim and whatever uses its simulators) and is never cut, so that nothing is trained twice; only data, and
HalfCheetah's cloned policies, may be made in several shards.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lowrank_rl.rl.bench import cases, pieces, run, train
from lowrank_rl.rl.bench.pool import Task
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.bench.suites import Work


def finished(cell: Cell, records: dict[Cell, Record]) -> bool:
    """Whether a record says so, and was made with today's settings."""
    return cell in records and records[cell].status == "done" and pieces.same_settings(
        records[cell].config, pieces.settings_of(cell))


def unfinished(out: dict[str, Path], work: Work, records: dict[str, dict[Cell, Record]]) -> Work:
    """What of it is still to do. out, records: by environment."""
    return Work([cell for cell in work.cells if not finished(cell, records[cell.environment])],
                [cell for cell in work.trained if not pieces.model_path(out[cell.environment], cell).exists()],
                [cell for cell in work.logged if not pieces.data_path(out[cell.environment], cell).exists()])


def tasks(out: dict[str, Path], work: Work, device: str) -> list[Task]:
    """Everything that this work needs; what is there already ends at once. out: the folder of each environment."""
    shared: dict[str, Task] = {}
    for cell in work.logged:
        _logged(out, cell, shared)
    for cell in work.trained:
        _trained(out, cell, device, shared)
    last = []
    for cell in work.cells:
        learns = cases.METHODS[cell.method].learns
        needs = frozenset([_trained(out, cell, device, shared)]) if learns else frozenset[str]()
        last.append(Task(str(cell), run.run_cell, (out[cell.environment], cell, device), needs, gpu=learns))
    return [*shared.values(), *last]


def _logged(out: dict[str, Path], cell: Cell, shared: dict[str, Task]) -> str:
    """The name of the task that makes its data, which is among the shared ones then."""
    folder = out[cell.environment]
    name = f"data {pieces.data_path(folder, cell).stem}"
    shared.setdefault(name, Task(name, train.make_data, (folder, cell)))
    return name


def _trained(out: dict[str, Path], cell: Cell, device: str, shared: dict[str, Task]) -> str:
    """The name of the task that trains it, which is among the shared ones then, behind those that it needs."""
    cell = pieces.trained_as(cell)
    name = f"train {cell.environment}/{cell.dataset}/{cell.method}/seed {cell.seed}"
    if name not in shared:
        needs = {_logged(out, cell, shared), *(_trained(out, other, device, shared) for other in _before(cell))}
        shared[name] = Task(name, train.train, (out[cell.environment], cell, device), frozenset(needs), gpu=True)
    return name


def _before(cell: Cell) -> list[Cell]:
    """Whose training it begins with: simulators that it flies in, and the clone of each agent's logged policy."""
    found = [simulator] if (simulator := pieces.simulator_of(cell)) else []
    if cell.method != "cloned" and pieces.clones(cell) and cases.METHODS[cell.method].personal:
        found.append(replace(cell, method="cloned"))
    return found


def shard(work: Work, number: int, of: int) -> Work:
    """Part ``number`` (1, 2, ...) of so many: the same on every machine, whatever is done already.

    Units are dealt out, large ones first, each to the shard that has fewest of its methods in its environment, then to the one
    that has fewest tasks: so every shard gets its share of whatever is slow.
    """
    units: dict[tuple, Counter] = {}
    for cell in work.all:
        units.setdefault(_unit(cell), Counter())[cell.environment, cell.method] += 1
    has, load, home = [Counter() for _ in range(of)], [0] * of, {}
    for unit, methods in sorted(units.items(), key=lambda item: -len(item[1])):     # stable
        k = min(range(of), key=lambda k, methods=methods: (sum(has[k][method] for method in methods), load[k], k))
        has[k].update(methods)
        load[k] += methods.total() + len(methods)
        home[unit] = k

    def mine(cells: Iterable[Cell]) -> list[Cell]:
        return [cell for cell in cells if home[_unit(cell)] == number - 1]
    return Work(mine(work.cells), mine(work.trained), mine(work.logged))


def _unit(cell: Cell) -> tuple:
    """What must stay together; cells that learn nothing stand alone."""
    if not cases.METHODS[cell.method].learns:
        return cell.environment, cell.method, cell.agent, cell.seed
    trained = pieces.simulator_of(cell) or pieces.trained_as(cell)
    return cell.environment, cell.dataset, trained.method, cell.seed
