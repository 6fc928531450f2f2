"""Unite the records of several output folders in one, with what pictures and further runs need, for shards of a benchmark.

Of two records of one cell the finished one is kept; of two finished ones with different settings the one with today's, else
the first; equal ones count once. Two with equal settings and different numbers contradict each other, which is for a person to
settle. Nothing is taken away from the folders, and the same merge again adds nothing.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lowrank_rl import check
from lowrank_rl.files import whole
from lowrank_rl.rl.bench import cases, pieces
from lowrank_rl.rl.bench.store import Cell, Record, Store, locked, made_with, numbers, resting

STAGES = ("data/*.npz", "models/*.safetensors")     # whose names say what they are made of


def merge(out: Path, folders: Sequence[Path], keep_first: bool = False) -> str:
    """Add what ``folders`` have to ``out``, which may have records itself and then comes first; what was done, in words.

    Raises:
        ValueError: a folder without any of this, of another schema or at work; a file that cannot be read; records made with
            other versions, or that contradict each other, unless the first of such is to be kept.
    """
    folders = [folder for folder in dict.fromkeys(folders) if folder.resolve() != out.resolve()]
    for folder in folders:
        if not _stages(folder) and not (folder / "records.jsonl").is_file():
            raise ValueError(f"--merge {folder}: expected an output folder, got one without records.jsonl, data sets or "
                             "models; name those that runs have written")
    with ExitStack() as stack:
        stack.enter_context(locked(out))
        for folder in folders:
            stack.enter_context(resting(folder))
        store = Store(out)
        before = store.load()
        every = {out: before, **{folder: Store(folder).load() for folder in folders}}
        _check_versions(every)
        home = _homes(every, keep_first)
        new = [cell for cell, folder in home.items() if folder != out]
        wanted = {out / path.relative_to(folder): path for folder in reversed(folders) for path in _stages(folder)}
        wanted = {target: source for target, source in wanted.items() if not target.exists()}
        traces = {pieces.trace_path(out, cell): pieces.trace_path(home[cell], cell) for cell in new}
        wanted |= {target: source for target, source in traces.items() if source.is_file()}
        for source in wanted.values():
            _readable(source)
        for target, source in wanted.items():
            _take(source, target)
        store.extend(every[home[cell]][cell] for cell in new)
        failed = sum(every[folder][cell].status == "failed" for cell, folder in home.items())
    return (f"{out}: {len(home)} cells, {len(new)} of them new from {len(folders)} folder(s), {failed} failed; {len(wanted)} "
            "files beside them")


def _homes(every: dict[Path, dict[Cell, Record]], keep_first: bool) -> dict[Cell, Path]:
    """In which folder the record of each cell is that we keep."""
    home: dict[Cell, Path] = {}
    odd: list[tuple[Cell, Path, Path]] = []
    for folder, records in every.items():
        for cell, record in records.items():
            verdict = _compare(cell, every[home[cell]][cell], record) if cell in home else "second"
            if verdict == "second":
                home[cell] = folder
            elif verdict == "neither":
                odd.append((cell, home[cell], folder))
    if odd and not keep_first:
        cell, one, other = odd[0]
        more = f" (and {len(odd) - 1} more cells)" if len(odd) > 1 else ""
        raise ValueError(f"{cell}, budget {cell.budget}, settings {cell.settings}: expected the same numbers, got others in "
                         f"{one} and {other}{more}; leave one away, or --keep-first keeps those of the folder named first")
    return home


def _compare(cell: Cell, first: Record, second: Record) -> str:
    """Which of two records to keep: "first", "second", or "neither" if one of them must be wrong."""
    if "failed" in (first.status, second.status):
        return "second" if second.status == "done" else "first"
    if first.config == second.config and numbers(first) == numbers(second):
        return "first"
    today = pieces.settings_of(cell) if cases.knows(cell) else {}
    one, two = (pieces.same_settings(record.config, today) for record in (first, second))
    if first.config == second.config or (one and two):
        return "first" if numbers(first) == numbers(second) else "neither"
    return "second" if two else "first"


def _check_versions(every: dict[Path, dict[Cell, Record]]) -> None:
    where: dict[tuple, Path] = {}
    for folder, records in every.items():
        for record in records.values():
            if record.status == "done":
                where.setdefault(made_with(record), folder)
    if len(where) > 1:
        (one, first), (two, second) = list(where.items())[:2]
        only = [", ".join(f"{name} {version}" for name, version in mine if (name, version) not in theirs) or "fewer packages"
                for mine, theirs in ((one, two), (two, one))]
        raise ValueError(f"--merge: expected records made with the same versions, got {only[0]} in {first} and {only[1]} in "
                         f"{second}; a table never mixes versions, so merge those of each into an --out of its own")


def _stages(folder: Path) -> list[Path]:
    """Data sets and models. What begins with a dot was being written when its process was killed."""
    return [path for pattern in STAGES for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")]


def _readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path}: expected a file that can be read, got '{error.strerror}'; ask its owner for "
                         "permission, or merge a copy") from error


def _take(source: Path, target: Path) -> None:
    """Link a file, or copy it from another disk: it is never written to, only replaced."""
    check.writable_folder(target.parent)
    with whole(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)
