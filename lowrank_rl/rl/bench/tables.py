"""A table as a value, from which the Markdown and the page are both drawn; and how numbers are told in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Entry:
    """What stands in one place: a few words, and smaller ones beneath."""
    text: str
    detail: str = ""       # interval and number of runs
    kind: str = ""         # "gap": no number (missing, failed)
    doubt: str = ""        # why the paper's number is suspect, which a star says
    verdict: str = ""      # "better", "within" or "worse" than the paper's number for the same
    best: bool = False     # of our methods here, or equal to the best within an interval


@dataclass(frozen=True)
class Column:
    name: str
    detail: str = ""       # short, for Markdown
    words: str = ""        # in full, for the page


@dataclass(frozen=True)
class Row:
    """``labels`` say what it is of, one for each of the table's label columns."""
    labels: tuple[str, ...]
    entries: tuple[Entry, ...]
    kind: str = "ours"     # "ours", "paper", or "unrun": the paper's, of a method of which there are no cells here


@dataclass(frozen=True)
class Table:
    key: str               # a short name, for links
    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    by_data: bool = False  # the second label is the data set, and each can stand as a table of its own
    details: str = ""      # what the smaller words are, as the label of their line in Markdown


def markdown(table: Table) -> list[str]:
    """Its lines. Rows of methods without cells stay out: the page has them, and the screen has little room."""
    head = [*table.labels, *(f"{c.name}: {c.detail}" if c.detail else c.name for c in table.columns)]
    lines = []
    for row in table.rows:
        if row.kind != "unrun":
            lines.append([*row.labels, *map(starred, row.entries)])
            if any(entry.detail for entry in row.entries):
                lines.append([*row.labels[:-1], f"{row.labels[-1]}, {table.details}", *(entry.detail for entry in row.entries)])
    lines = [[text.replace("|", "\\|") for text in line] for line in lines]
    if not lines:
        return []
    told = [" ".join(table.notes)] if table.notes else []
    starred_for = doubts(row for row in table.rows if row.kind != "unrun")
    told += [f"* {starred_for}"] if starred_for else []
    return [f"### {table.title}", "", *_aligned(head, lines), "", *told, *([""] if told else [])]


def doubts(rows: Iterable[Row]) -> str:
    """Why entries are starred, each reason once; nothing where none is."""
    found = sorted({entry.doubt.removeprefix("suspect: ") for row in rows for entry in row.entries if entry.doubt})
    return f"suspect in the paper: {'; '.join(found)}" if found else ""


def starred(entry: Entry) -> str:
    return f"{entry.text} *" if entry.doubt else entry.text


def _aligned(head: list[str], rows: Sequence[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines]


def number(mean: float, spread: float | None = None) -> str:
    """Four digits of it, two of its spread."""
    size = abs(mean)
    text = f"{mean:{'.0f' if size >= 1000 else '.4g' if size >= 1 else '.3f' if size >= 0.0995 else '.2g'}}"
    return text if spread is None else f"{text} ± {spread:{'.0f' if spread >= 99.5 else '.2g'}}"


def plain(x: float) -> str:
    """A covariate, without an exponent and without idle zeros."""
    return np.format_float_positional(x, trim="-")


def interval(around: tuple[float, float] | None) -> str:
    return f"[{number(around[0])}, {number(around[1])}]" if around else ""


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def of(count: int, noun: str) -> str:
    """ "1 cell", "2 cells"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
