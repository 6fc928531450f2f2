"""A report as one self-contained HTML page: no script, nothing from the network, pictures inside, so that it can be mailed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from lowrank_rl.files import whole
from lowrank_rl.rl.bench import charts, markup, notes, published
from lowrank_rl.rl.bench.report import Report
from lowrank_rl.rl.bench.style import SHEET
from lowrank_rl.rl.bench.tables import Column, of

NAMES = {"mountaincar": "MountainCar", "cartpole": "CartPole", "halfcheetah": "HalfCheetah"}
FAILURES = 50    # shown with their messages
SAFE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"     # the browser's own lock: nothing runs, nothing loads
LEAD = (
    '<p class="lead">Personal simulators and policies learned from one logged trajectory of each agent: our runs of the '
    'experiments of PerSim (NeurIPS 2021) beside the published numbers, drawn from the records of finished cells.</p>\n'
    '<p>Each place holds the mean ± standard deviation, beneath it the 95 % interval of the mean and n (seeds × episodes '
    'each; for errors seeds). '
    + " ".join(f'<span class="{verdict}">{mark}</span> {words}' for (verdict, mark), words in zip(
        markup.MARKS.items(), ("better than the paper's number,", "equal within an interval,", "worse."), strict=True))
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
        f'<nav aria-label="Sections">{markup.links(linked)}</nav>', '<main id="main">',
        *(line for key, name, inner in sections
          for line in (f'<section aria-labelledby="{key}"><h2 id="{key}">{escape(name)}</h2>', *inner, "</section>")),
        '</main>', '</body>', '</html>']
    return "\n".join(lines) + "\n"


def _chapter(chapter: Chapter, several: bool) -> list[tuple[str, str, list[str]]]:
    """Its sections: (key, name, lines)."""
    report, by_place = chapter.report, _sorted(chapter.report, chapter.pictures)
    sections = [section for part in report.parts for section in _sections(part, by_place)]
    sections += [("costs", "What it cost", [line for part in report.parts for line in _tables(part, ["costs"])]),
                 ("pictures", "More pictures", [line for those in by_place.values() for line in map(markup.picture, those)]),
                 ("failures", "Failed cells", _failures(report)),
                 ("cards", "The data sets", [f"<pre>{escape(card)}</pre>" for card in chapter.cards]),
                 ("notes", "Notes", _notes(report))]
    sections = [(f"{chapter.key}-{key}", name, lines) for key, name, lines in sections if lines]
    if not several:
        return sections
    links = markup.links((key, name) for key, name, _ in sections)
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
    for key in ("reward", "middles", "rmse", "r2_median", "looks"):
        table = report.table(key)
        rows = [row for row in table.rows if row.labels[1] in (dataset, "none")] if table else []
        if rows:
            where = published.table_of(report.environment.name, dataset, key, report.gathered.unseen) \
                if key in published.METRICS else None
            paper = f", as in the paper's Table {where}" if where else ""
            title = f"{table.title}, {dataset} data{paper}"
            lines += markup.box(table, rows, f"{_key(report)}{dataset}-{key}", title, labels=(0, 2))
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
    return lines + [markup.picture(path) for path in pictures if not (drawn and path.stem.endswith("-error"))]


def _tables(report: Report, keys: Sequence[str]) -> list[str]:
    lines = []
    for key in keys:
        table = report.table(key)
        if table:
            shown = tuple(i for i in range(len(table.labels)) if any(row.labels[i] for row in table.rows))
            lines += markup.box(table, table.rows, f"{_key(report)}{key}", table.title, shown)
    return lines


def _sorted(report: Report, pictures: Iterable[Path]) -> dict[tuple[str, str], list[Path]]:
    """By kind of agents and data set, those of none of the report's last; in the order of markup.PICTURES, then by name."""
    order = list(markup.PICTURES)
    found: dict[tuple[str, str], list[Path]] = {}
    for path in sorted(set(pictures), key=lambda path: ((*order, markup.kind_of(path)).index(markup.kind_of(path)), path)):
        mine = [(_mark(part), name) for part in report.parts for name in part.gathered.datasets
                if bool(_mark(part)) == (markup.kind_of(path) == "adaptation") and path.stem.startswith(
                    f"{report.environment.name}-{name}-{part.gathered.budget}-{part.gathered.settings}-")]
        found.setdefault(mine[0] if mine else ("", ""), []).append(path)
    return found


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
