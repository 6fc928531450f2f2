"""Records: one JSON line per finished cell, appended whole, never edited."""

import fcntl
import gc
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path

from lowrank_rl import check

SCHEMA = 1
BLOCK = 1 << 16     # bytes read at once on the way back to a file's last newline


@dataclass(frozen=True)
class Cell:
    """One number of a table: a method on one agent, with one seed."""
    environment: str
    dataset: str       # "none" for methods that learn nothing
    method: str
    agent: int         # 1..5, as in the paper's tables; from 6 on those that no data come from (cases.UNSEEN)
    seed: int
    settings: str      # "best" or "paper"
    budget: str        # "tiny", "quick", "small" or "paper"

    def __str__(self) -> str:
        return f"{self.environment}/{self.dataset}/{self.method}/agent {self.agent}/seed {self.seed}"


@dataclass(frozen=True)
class Record:
    """What a cell gave, with all that is needed to repeat it. Rewards are undiscounted sums over an episode."""
    cell: Cell
    status: str                                                  # "done" or "failed"
    message: str = ""                                            # why it failed
    returns: list[float] = field(default_factory=list)           # one per episode
    lengths: list[int] = field(default_factory=list)             # steps of each episode
    rmse: float | None = None                                    # 50-step error, units of the state; None: no simulator
    r2: float | None = None                                      # median over episodes, variance weighted
    error_episodes: int = 0
    error_by_step: list[float | None] = field(default_factory=list)
    non_finite: int = 0                                          # candidate plans with a NaN or Inf score
    same_action: float | None = None                             # share of the commonest action; older records do not say
    config: dict = field(default_factory=dict)                   # every setting used
    training: dict = field(default_factory=dict)                 # last epoch's entry, why it stopped
    commit: str = ""
    versions: dict = field(default_factory=dict)
    device: str = ""
    seconds: float = 0.0                                         # of this cell, without training
    schema: int = SCHEMA


KINDS = {f.name: f.type for f in fields(Cell)}     # of a cell's parts
FIELDS = {f.name for f in fields(Record)}
NUMBER, MAYBE = int | float, int | float | None     # made once, as lines are many
YOUNG = {"same_action"}     # fields that older records lack
NUMBERS = ("returns", "lengths", "rmse", "r2", "error_episodes", "error_by_step", "non_finite", "same_action")


def made_with(record: Record) -> tuple[tuple[str, str], ...]:
    """Versions that a table never mixes: of the packages, whatever they are built for ("+cpu"), not of Python."""
    return packages(tuple(record.versions.items()))


@lru_cache(maxsize=1000)
def packages(versions: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """The same of versions as a record has them."""
    return tuple((name, words.partition("+")[0]) for name, words in versions if name != "python")


class Store:
    """The records of one output folder. A line cut off by a kill is dropped; it was the piece in flight."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "records.jsonl"
        self._same: dict[bytes, dict] = {}     # settings, by how they stand in a line

    def load(self) -> dict[Cell, Record]:
        """The newest record of each cell.

        Raises:
            ValueError: a line is corrupt or of another schema, or two lines that the same code made with the same settings on
                the same machine have different numbers for one cell.
        """
        records: dict[Cell, Record] = {}
        try:
            with open(self.path, "rb") as file, _without_collector():
                for number, line in enumerate(file, start=1):
                    if line.endswith(b"\n"):     # the piece behind the last newline is not whole
                        record = self._parse(number, line)
                        if record.cell in records and _contradict(records[record.cell], record):
                            raise ValueError(f"{self.path}, line {number}: expected what an earlier line says of "
                                             f"{record.cell}, made by the same commit with the same settings, got other "
                                             "numbers; remove the line that is wrong or use another --out")
                        records[record.cell] = record
        except FileNotFoundError:
            pass
        except OSError as error:
            raise ValueError(f"{self.path}: expected a file of records, got '{error.strerror}'; use another --out") from error
        return records

    def append(self, record: Record) -> None:
        """Add a line and wait until it is on the disk.

        Raises:
            ValueError: the disk is full or the file cannot be written; earlier records are untouched.
        """
        self.extend([record])

    def extend(self, records: Iterable[Record]) -> None:
        """The same of several, all or none of them but for a kill; those of a kill are whole.

        Raises:
            ValueError: as ``append``.
        """
        line = b"".join(json.dumps(asdict(record)).encode() + b"\n" for record in records)
        try:
            with open(self.path, "ab+", buffering=0) as file:     # a buffer would try again after the truncation
                size = _whole(file)
                file.truncate(size)
                rest = memoryview(line)
                try:
                    while rest:
                        rest = rest[file.write(rest):]
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise ValueError(f"{self.path}: expected a file that can be written, got '{error.strerror}'; "
                             "earlier records are kept") from error

    def _parse(self, number: int, line: bytes) -> Record:
        try:
            values = self._values(line)
            schema, cell = values["schema"], values.get("cell")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}, line {number}: expected a record, got a corrupt line; "
                             "remove that line or use another --out") from error
        odd = (YOUNG | values.keys()) ^ FIELDS
        if not isinstance(cell, dict) or not all(type(value) is KINDS.get(name, type(value)) for name, value in cell.items()):
            odd |= {"cell"}
        else:
            odd |= cell.keys() ^ KINDS.keys()
        odd |= {name for name in ("config", "training", "versions") if not isinstance(values.get(name), dict)}
        odd |= {name for name in ("rmse", "r2") if not isinstance(values.get(name), MAYBE)}
        if not isinstance(values.get("returns"), list) or not all(isinstance(x, NUMBER) for x in values["returns"]):
            odd |= {"returns"}
        if values.get("status") not in ("done", "failed"):
            odd |= {"status"}
        if values.get("status") == "done" and not values.get("returns"):
            odd |= {"returns"}
        if schema != SCHEMA or odd:
            raise ValueError(f"{self.path}, line {number}: expected a record of schema {SCHEMA}, got schema {schema!r} with "
                             f"fields {sorted(odd)} odd; use another --out")
        return Record(**{**values, "cell": Cell(**cell)})

    def _values(self, line: bytes) -> dict:
        """A line's values. Settings are parsed once for all lines that repeat them, which saves a third of the time."""
        start = line.find(b', "config": {')
        end = line.find(b', "training": ', start)
        settings = line[start:end] if 0 < start < end else b""
        if settings in self._same:
            values = json.loads(line[:start] + line[end:])
            if "config" not in values:     # else they stood in an inner place, which is not one of our lines
                return {**values, "config": self._same[settings]}
        values = json.loads(line)
        with suppress(ValueError):     # our own lines have nothing else there
            if settings and json.loads(b"{" + settings[2:] + b"}") == {"config": values["config"]}:
                self._same[settings] = values["config"]
        return values


def numbers(record: Record) -> str:
    """What was measured, as text, in which a NaN is equal to itself."""
    return json.dumps([getattr(record, name) for name in NUMBERS])


def _contradict(first: Record, second: Record) -> bool:
    """Whether one of them must be wrong: a clean commit gives the same numbers again."""
    made = [(record.status, record.commit, record.config, record.versions, record.device) for record in (first, second)]
    return (made[0] == made[1] and first.status == "done" and first.commit[-1:] not in ("", "+")
            and numbers(first) != numbers(second))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an output folder for one run at a time; the lock ends with the process, however that ends.

    On a network file system it holds among machines where that carries locks (NFS as it is mounted by default does, with
    ``nolock`` or ``local_lock`` it does not: then runs on two machines must not share a folder).

    Raises:
        ValueError: it cannot be written, another run is using it, or its file system knows no locks.
    """
    check.writable_folder(folder)
    try:
        file = open(folder / ".lock", "a+")     # noqa: SIM115 (closed below)
    except OSError as error:
        raise ValueError(f"folder {folder}: expected one that can be written, got '{error}'; name another --out") from error
    with file:
        _lock(folder, file, fcntl.LOCK_EX)
        with suppress(OSError):     # on a full disk others are told less
            file.truncate(0)
            os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


@contextmanager
def resting(folder: Path) -> Iterator[None]:
    """Keep runs out of a folder while it is read, which need not be one that can be written.

    Raises:
        ValueError: a run is at work in it.
    """
    try:
        file = open(folder / ".lock")     # noqa: SIM115 (closed below)
    except OSError:     # no run ever was here, or it came from elsewhere
        yield
        return
    with file:
        _lock(folder, file, fcntl.LOCK_SH)
        yield


def _lock(folder: Path, file, how: int) -> None:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        who = f" ({words})" if (words := file.read(200)) else ""
        raise ValueError(f"folder {folder}: expected no other run in it, got one at work; wait for it or name another "
                         f"--out{who}") from error
    except OSError as error:
        raise ValueError(f"folder {folder}: expected a file system with locks, got '{error.strerror}'; name another --out"
                         ) from error


@contextmanager
def _without_collector() -> Iterator[None]:
    """Parsed lines hold no cycles, and looking for some each few hundred objects takes most of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _whole(file) -> int:
    """The size up to and with the last newline."""
    end = file.seek(0, os.SEEK_END)
    while end:
        begin = max(0, end - BLOCK)
        file.seek(begin)
        found = file.read(end - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0
