"""A report as one self-contained HTML page: no script, nothing from the network, pictures inside, so that it can be mailed."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from lowrank_rl.files import whole
from lowrank_rl.rl.bench import charts, contests, notes, published
from lowrank_rl.rl.bench.report import Report
from lowrank_rl.rl.bench.style import SHEET
from lowrank_rl.rl.bench.tables import Column, Entry, Row, Table, doubts, of, starred

NAMES = {"mountaincar": "MountainCar", "cartpole": "CartPole", "halfcheetah": "HalfCheetah"}
MARKS = {"better": "▲", "within": "≈", "worse": "▼"}
PICTURES = {     # what a picture shows, by the end of its name, in the order of the page
    "returns": "Return of each agent and method: every episode a dot, our mean a bar, the paper's mean a black line",
    "trajectories": "Predicted against true states of one test episode of each agent, to its end; the band: all members",
    "error": "Error after 1, 2, ... predicted steps, as far as episodes went",
    "scarcity": "Return by how many agents were logged: ours with the deviation over seeds, the paper's dashed",
    "adaptation": "Error for unseen agents by how many of their own first steps were shown; lines: what was shown no steps",
    "latent": "Learned agent rows, flattened by PCA and t-SNE and coloured by covariates that training never saw",
}
FAILURES = 50    # shown with their messages
SAFE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"     # the browser's own lock: nothing runs, nothing loads
VERDICTS = {"better": "better than the paper's", "within": "within an interval of the paper's",
            "worse": "worse than the paper's"}


LEAD = (
    '<p class="lead">Personal simulators and policies learned from one logged trajectory of each agent: our runs of the '
    'experiments of PerSim (NeurIPS 2021) beside the published numbers, drawn from the records of finished cells.</p>\n'
    '<p>Each place holds the mean ± standard deviation, beneath it the 95 % interval of the mean and n (seeds × episodes '
    'each; for errors seeds). '
    + " ".join(f'<span class="{verdict}">{mark}</span> {words}' for (verdict, mark), words in zip(
        MARKS.items(), ("better than the paper's number,", "equal within an interval,", "worse."), strict=True))
    + ' <strong>Bold</strong>: the best of our methods, or within an interval of it. <span>*</span>: suspect in the paper, '
      'said why under the table. Shaded rows are the paper’s.</p>')


@dataclass(frozen=True)
class Chapter:
    """What a page says of one environment."""
    report: Report
    pictures: Sequence[Path] = ()     # copied into the page
    cards: Sequence[str] = ()         # plain lines about each data set

    @property
    def key(self) -> str:
        return self.report.environment.name

    @property
    def name(self) -> str:
        return NAMES.get(self.key, self.key)


def save(path: Path, *chapters: Chapter) -> None:
    """Write the page.

    Raises:
        ValueError: the file cannot be written; an older one is untouched.
    """
    with whole(path) as partial:
        partial.write_text(page(*chapters), encoding="utf-8")


def page(*chapters: Chapter) -> str:
    """The page's text; chapters are of different environments, of one budget and settings."""
    parts = [part for chapter in chapters for part in chapter.report.parts]
    budget, settings = (next(filter(None, (getattr(part.gathered, name) for part in parts)), "none")
                        for name in ("budget", "settings"))
    title = f"{', '.join(chapter.name for chapter in chapters)}: budget {budget}, settings {settings}"
    several = len(chapters) > 1
    sections = [section for chapter in chapters for section in _chapter(chapter, several)]
    linked = [(chapter.key, chapter.name) for chapter in chapters] if several else [(key, name) for key, name, _ in sections]
    methods = list(dict.fromkeys(group.method for part in parts for group in part.gathered.groups))
    lines = [
        '<!DOCTYPE html>', '<html lang="en">', '<head>', '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{SAFE}">',
        f'<title>{escape(title)}</title>',
        f'<style>{SHEET}{charts.colors(methods, False)}@media (prefers-color-scheme: dark) '
        f'{{{charts.colors(methods, True)}}}</style>', '</head>', '<body>',
        '<a class="skip" href="#main">Skip to the tables</a>',
        f'<header><h1>{escape(title)}</h1>', LEAD, *([] if several else _facts(chapters[0].report)), '</header>',
        f'<nav aria-label="Sections">{_links(linked)}</nav>', '<main id="main">',
        *(line for key, name, inner in sections
          for line in (f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(name)}</h2>', *inner, "</section>")),
        '</main>', '</body>', '</html>']
    return "\n".join(lines) + "\n"


def _links(to: Iterable[tuple[str, str]]) -> str:
    return "<ul>" + "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in to) + "</ul>"


def _chapter(chapter: Chapter, several: bool) -> list[tuple[str, str, list[str]]]:
    """Its sections: (key, name, lines)."""
    report, by_place = chapter.report, _sorted(chapter.report, chapter.pictures)
    sections = [section for part in report.parts for section in _sections(part, by_place)]
    sections += [("costs", "What it cost", [line for part in report.parts for line in _tables(part, ["costs"])]),
                 ("pictures", "More pictures", [line for those in by_place.values() for line in map(_picture, those)]),
                 ("failures", "Failed cells", _failures(report)),
                 ("cards", "The data sets", [f"<pre>{escape(card)}</pre>" for card in chapter.cards]),
                 ("notes", "Notes", _notes(report))]
    sections = [(f"{chapter.key}-{key}", name, lines) for key, name, lines in sections if lines]
    if not several:
        return sections
    links = _links((key, name) for key, name, _ in sections)
    links = f'<nav class="contents" aria-label="{escape(chapter.name)}">{links}</nav>'
    return [(chapter.key, chapter.name, [links, *_facts(report)]),
            *((key, f"{chapter.name}. {name}", lines) for key, name, lines in sections)]


def _sections(part: Report, by_place: dict[tuple[str, str], list[Path]]) -> list[tuple[str, str, list[str]]]:
    """Of one kind of agents: (key, name, lines); the pictures in them are taken out of ``by_place``."""
    mark = _mark(part)
    names = ("Unseen agents: better and worse", "Unseen agents, data: ") if mark else ("Better and worse", "Data: ")
    return [(f"{mark}counts", names[0], _counts(part)),
            *((f"{mark}data-{name}", f"{names[1]}{name}", _dataset(part, name, by_place.pop((mark, name), [])))
              for name in part.gathered.datasets or ["none"])]


def _mark(part: Report) -> str:
    """Of its kind of agents."""
    return "unseen-" if part.gathered.unseen else ""


def _key(part: Report) -> str:
    """What the keys of its tables begin with."""
    return f"{part.environment.name}-{_mark(part)}"


def _facts(report: Report) -> list[str]:
    """How much has run and with what, and what a reader must know first."""
    parts = report.parts
    have = [record for part in parts for record in part.gathered.records]
    failed, missing = (sum(counts) for counts in zip(*(
        (len(part.gathered.failures), part.gathered.missing) for part in parts), strict=True))
    cells = [f"{len(have)} done", *([f"{failed} failed"] if failed else []), *([f"{missing} not run"] if missing else [])]
    agents = [("unseen agents" if part.gathered.unseen else "test agents",
               "; ".join(f"{column.name}: {column.words}" for column in _agents(part))) for part in parts]
    facts = [("cells", ", ".join(cells)), *agents, ("commit", ", ".join(notes.commits(have))),
             ("versions", ", ".join(notes.versions(have))), ("machine", ", ".join(notes.devices(have)))]
    lines = [f'<p class="alert">{escape(f"{note.lead} {note.text}")}</p>' for part in parts for note in part.notes
             if note.alarm]
    return [*lines, "<dl>", *(f"<dt>{name}</dt><dd>{escape(words)}</dd>" for name, words in facts if words), "</dl>"]


def _agents(report: Report) -> Sequence[Column]:
    table = report.table("reward")
    return table.columns if table else ()


def _counts(report: Report) -> list[str]:
    lines = []
    table = report.table("wins")
    for row in table.rows if table else ():
        if row.labels[0] == "persim" and row.labels[1] in ("return", "RMSE"):
            better, within, worse, cells = (entry.text for entry in row.entries[:4])
            whom = "the paper's PerSim" if row.labels[2] == "persim" else "the paper's best baseline"
            lines.append(f"<li>PerSim's {row.labels[1]} against {whom}: <b>{better}</b> better, <b>{within}</b> within an "
                         f"interval, <b>{worse}</b> worse, of {of(int(cells), 'cell')}.</li>")
    return [*(["<ul>", *lines, "</ul>"] if lines else []), *_tables(report, ["wins", "ranks"])]


def _dataset(report: Report, dataset: str, pictures: Sequence[Path]) -> list[str]:
    """All tables, curves and pictures of one data set; beside it, what learns from none."""
    lines = []
    for key in ("reward", "middles", "rmse", "r2_median"):
        table = report.table(key)
        rows = [row for row in table.rows if row.labels[1] in (dataset, "none")] if table else []
        if rows:
            where = published.table_of(report.environment.name, dataset, key, report.gathered.unseen) if key != "middles" else \
                None
            paper = f", as in the paper's Table {where}" if where else ""
            title = f"{table.title}, {dataset} data{paper}"
            lines += _table(table, rows, f"{_key(report)}{dataset}-{key}", title, labels=(0, 2))
    found = charts.curves(report.gathered, dataset)
    agents = dict(zip(report.gathered.agents, _agents(report), strict=True))
    drawn = charts.panels(found, {agent: f"{c.name}: {c.words}" for agent, c in agents.items()}, f"Error, {dataset} data")
    if drawn:
        lines.append(f"<h3>Error over the horizon, {escape(dataset)} data</h3>"
                     '<p class="soft">Root mean squared error in units of the state, mean over seeds; logarithmic.</p>')
        keys = "".join(f"<li>{svg}{escape(method)}</li>" for method, svg in charts.legend(found))
        lines.append(f'<ul class="legend">{keys}</ul><div class="panels">')
        lines += [f"<figure><figcaption><b>{escape(agents[agent].name)}</b> {escape(agents[agent].words)}</figcaption>{svg}"
                  "</figure>" for agent, svg in drawn.items()]
        lines.append("</div>")
    return lines + [_picture(path) for path in pictures if not (drawn and path.stem.endswith("-error"))]


def _tables(report: Report, keys: Sequence[str]) -> list[str]:
    lines = []
    for key in keys:
        table = report.table(key)
        if table:
            shown = tuple(i for i in range(len(table.labels)) if any(row.labels[i] for row in table.rows))
            lines += _table(table, table.rows, f"{_key(report)}{key}", table.title, shown)
    return lines


def _table(table: Table, rows: Sequence[Row], key: str, title: str, labels: Sequence[int]) -> list[str]:
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


def _sorted(report: Report, pictures: Iterable[Path]) -> dict[tuple[str, str], list[Path]]:
    """By kind of agents and data set, those of none of the report's last; in the order of PICTURES, then by name."""
    order = list(PICTURES)
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(set(pictures), key=lambda path: ((*order, _kind(path)).index(_kind(path)), path)):
        mine = [(_mark(part), name) for part in report.parts for name in part.gathered.datasets
                if bool(_mark(part)) == (_kind(path) == "adaptation") and path.stem.startswith(
                    f"{report.environment.name}-{name}-{part.gathered.budget}-{part.gathered.settings}-")]
        found.setdefault(mine[0] if mine else ("", ""), []).append(path)
    return found


def _kind(path: Path) -> str:
    return path.stem.rpartition("-")[2]


def _picture(path: Path) -> str:
    """A PNG inside the page; one that cannot be read says so."""
    words = PICTURES.get(_kind(path), "")
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


def _failures(report: Report) -> list[str]:
    failures = [record for part in report.parts for record in part.gathered.failures]
    lines = [f"<details><summary>{escape(f'{record.cell}: {notes.last_line(record)}')}</summary>"
             f"<pre>{escape(record.message)}</pre></details>" for record in failures[:FAILURES]]
    more = len(failures) - FAILURES
    return lines + ([f"<p>And {of(more, 'more cell')}; records.jsonl has their messages.</p>"] if more > 0 else [])


def _notes(report: Report) -> list[str]:
    told = [f"<li>{f'<b>{escape(note.lead)}</b> ' if note.lead else ''}{escape(note.text)}</li>"
            for part in report.parts for note in part.notes if not note.text.startswith("FAILED")]
    return ['<ul class="notes">', *told, "</ul>"] if told else []
