"""Records: one JSON line per finished cell, appended whole, never edited."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from lowrank_rl import check

SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One number of a table: a method on one agent, with one seed."""
    environment: str
    dataset: str       # "none" for methods that learn nothing
    method: str
    agent: int         # 1..5, as in the paper's tables
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


class Store:
    """The records of one output folder. A line cut off by a kill is dropped; it was the piece in flight."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "records.jsonl"

    def load(self) -> dict[Cell, Record]:
        """The newest record of each cell.

        Raises:
            ValueError: a line is corrupt or of another schema.
        """
        records: dict[Cell, Record] = {}
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return records
        except OSError as error:
            raise ValueError(f"{self.path}: expected a file of records, got '{error.strerror}'; use another --out") from error
        for number, line in enumerate(lines[:-1], start=1):     # the piece behind the last newline is not whole
            record = self._parse(number, line)
            records[record.cell] = record
        return records

    def append(self, record: Record) -> None:
        """Add a line and wait until it is on the disk.

        Raises:
            ValueError: the disk is full or the file cannot be written; earlier records are untouched.
        """
        line = json.dumps(asdict(record)).encode() + b"\n"
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
            values = json.loads(line)
            schema, cell = values["schema"], values.get("cell")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}, line {number}: expected a record, got a corrupt line; "
                             "remove that line or use another --out") from error
        odd = ({"same_action"} | set(values)) ^ {f.name for f in fields(Record)}
        if not isinstance(cell, dict) or not all(isinstance(value, str | int) for value in cell.values()):
            odd |= {"cell"}
        else:
            odd |= set(cell) ^ {f.name for f in fields(Cell)}
        if schema != SCHEMA or odd:
            raise ValueError(f"{self.path}, line {number}: expected a record of schema {SCHEMA}, got schema {schema!r} with "
                             f"fields {sorted(odd)} odd; use another --out")
        return Record(**{**values, "cell": Cell(**cell)})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an output folder for one run at a time.

    Raises:
        ValueError: it cannot be written, or another run is using it.
    """
    check.writable_folder(folder)
    try:
        file = open(folder / ".lock", "w")     # noqa: SIM115 (closed below)
    except OSError as error:
        raise ValueError(f"folder {folder}: expected one that can be written, got '{error}'; name another --out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"folder {folder}: expected no other run in it, got one at work; wait for it or name another "
                             "--out") from error
        yield


def _whole(file) -> int:
    """The size up to and with the last newline."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    file.seek(0)
    return file.read().rfind(b"\n") + 1
