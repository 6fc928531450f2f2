"""The tables that benchmarks print and write: a row is a dict."""

import csv
import platform
import subprocess
from pathlib import Path

import numpy as np


def show(row: dict) -> None:
    """A line of Markdown that needs no head."""
    words = (f"{name} {x:.4g}" if isinstance(x, float) else f"{name} {x}" for name, x in row.items())
    print("| " + " | ".join(words) + " |", flush=True)


def write(path: Path, rows: list[dict]) -> None:
    """A CSV, whole or not at all, with where and by what its rows were measured, unless they say so themselves."""
    place = {"machine": f"{platform.machine()}, {platform.system()}", "numpy": np.__version__, "commit": _commit()}
    names = list(dict.fromkeys([name for row in rows for name in row] + list(place)))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows([{**place, **row} for row in rows])
    partial.replace(path)


def add(path: Path, row: dict) -> None:
    """One more row, behind what the file has by now: another run may have written to it since this one began."""
    write(path, [*done(path), row])


def done(path: Path) -> list[dict]:
    """The rows of a CSV that ``write`` wrote, none if there is no such file: a run that was interrupted goes on behind them."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _commit() -> str:
    """The commit, marked if any file but records and pictures differs from it."""
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results", ":!docs/images")
    return git("describe", "--always") + ("-dirty" if changed else "")
