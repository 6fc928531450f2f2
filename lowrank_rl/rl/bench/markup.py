"""Tables and pictures as HTML: readable without sight, wide ones scroll, and nothing that a record says is markup."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from lowrank_rl.rl.bench import contests
from lowrank_rl.rl.bench.tables import Entry, Row, Table, doubts, starred

MARKS = {"better": "▲", "within": "≈", "worse": "▼"}
VERDICTS = {"better": "better than the paper's", "within": "within an interval of the paper's",
            "worse": "worse than the paper's"}
PICTURES = {     # what a picture shows, by the end of its name, in the order of the page
    "returns": "Return of each agent and method: every episode a dot, our mean a bar, the paper's mean a black line",
    "trajectories": "Predicted against true states of one test episode of each agent, to its end; the band: all members",
    "error": "Error after 1, 2, ... predicted steps, as far as episodes went",
    "scarcity": "Return by how many agents were logged: ours with the deviation over seeds, the paper's dashed",
    "adaptation": "Error for unseen agents by how many of their own first steps were shown; lines: what was shown no steps",
    "latent": "Learned agent rows, flattened by PCA and t-SNE and coloured by covariates that training never saw",
}


def links(to: Iterable[tuple[str, str]]) -> str:
    return "<ul>" + "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in to) + "</ul>"


def box(table: Table, rows: Sequence[Row], key: str, title: str, labels: Sequence[int]) -> list[str]:
    """A table in a box of its own, in which it scrolls, and what its stars mean."""
    key, bars = escape(key), table.key == "wins"
    heads = [f'<th scope="col" class="label">{escape(table.labels[i]) or _hidden("whose")}</th>' for i in labels]
    heads += [f'<th scope="col">{escape(c.name)}{_small(c.words or c.detail)}</th>' for c in table.columns]
    heads += [f'<th scope="col">{_hidden("shares")}</th>'] if bars else []
    lines = [f'<h3 id="{key}-title">{escape(title)}</h3>',
             f'<div class="scroll" role="region" tabindex="0" aria-labelledby="{key}-title">',
             f'<table aria-labelledby="{key}-title">', f"<thead><tr>{''.join(heads)}</tr></thead>", "<tbody>"]
    for _, those in groupby(rows, key=lambda row: (row.labels[0], row.labels[1] if table.by_data else "")):
        mine = list(those)
        for number, row in enumerate(mine):
            cells = [_first(row, len(mine), table.by_data and 1 not in labels)] if number == 0 else []
            cells += [f'<th scope="row" class="source">{escape(row.labels[i])}</th>' for i in labels[1:]]
            cells += map(_entry, row.entries)
            cells += [_bar(row)] if bars else []
            lines.append(f'<tr class="{row.kind}{" new" if number == 0 else ""}">{"".join(cells)}</tr>')
    lines += ["</tbody></table></div>"]
    told = [*table.notes, *([f"* {doubts(rows)}"] if doubts(rows) else [])]
    return lines + [f'<p class="soft">{escape(words)}</p>' for words in told]


def _first(row: Row, span: int, says_data: bool) -> str:
    beneath = "not run by us" if row.kind == "unrun" else "learns nothing" if says_data and row.labels[1] == "none" else ""
    return f'<th scope="row" class="method" rowspan="{span}">{escape(row.labels[0])}{_small(beneath)}</th>'


def _entry(entry: Entry) -> str:
    mark = ""
    if entry.verdict:
        words = VERDICTS[entry.verdict]
        mark = f'<span class="mark {entry.verdict}" title="{words}">{MARKS[entry.verdict]}{_hidden(f" {words}: ")}</span> '
    text = escape(starred(entry))
    text = f"<strong>{text}</strong>" if entry.best else text
    told = f' title="suspect in the paper: {escape(entry.doubt)}"' if entry.doubt else ""
    kind = f' class="{entry.kind}"' if entry.kind else ""
    return f"<td{kind}{told}>{mark}{text}{_small(entry.detail)}</td>"


def _bar(row: Row) -> str:
    """The counts of a row of wins, as lengths; the numbers beside it say the same in words."""
    counts = dict(zip(contests.VERDICTS, (int(entry.text) for entry in row.entries), strict=False))
    return '<td><div class="bar" aria-hidden="true">' + "".join(
        f'<span class="{verdict}" style="flex:{count}"></span>' for verdict, count in counts.items() if count) + "</div></td>"


def _small(words: str) -> str:
    return f"<small>{escape(words)}</small>" if words else ""


def _hidden(words: str) -> str:
    return f'<span class="hidden">{escape(words)}</span>'


def kind_of(path: Path) -> str:
    """What it shows: a key of PICTURES, if it is ours."""
    return path.stem.rpartition("-")[2]


def picture(path: Path) -> str:
    """A PNG inside the page; one that cannot be read says so."""
    words = PICTURES.get(kind_of(path), "")
    caption = f"{path.stem}: {words}." if words else f"{path.stem}."
    try:
        content = path.read_bytes()
    except OSError as error:
        return f'<p class="alert">{escape(f"{path.name}: this picture is left out, it cannot be read ({error.strerror}).")}</p>'
    if not content.startswith(b"\x89PNG"):
        return f'<p class="alert">{escape(f"{path.name}: this picture is left out, it is no PNG; draw it again.")}</p>'
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return (f'<figure class="picture"><div tabindex="0" role="group" aria-label="{escape(path.stem)}">'
            f'<img alt="{escape(caption)}" src="{source}"></div><figcaption>{escape(caption)}</figcaption></figure>')
