"""What a run leaves for people: tables and data cards on the screen, the same as Markdown and as a page, and pictures."""

from collections.abc import Iterable
from pathlib import Path

from lowrank_rl.files import whole
from lowrank_rl.rl import data
from lowrank_rl.rl.bench import cases, page, pieces, report
from lowrank_rl.rl.bench.markup import PICTURES, kind_of
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.bench.suites import Work
from lowrank_rl.rl.cards import card
from lowrank_rl.rl.contracts import Environment


def write(out: dict[str, Path], budget: str, settings: str, work: Work, records: dict[Path, dict[Cell, Record]],
          together: str | None) -> None:
    """What was asked for, and all other records of this budget and these settings: tables and a page of each environment in its
    folder, and for several one page of them all, beside these folders or in the one that they share.

    Args:
        out: the folder of each environment.
        records: by folder.
        together: what the page of them all is called, if there shall be one.
    """
    chapters = [_write(folder, name, budget, settings, work, records[folder]) for name, folder in out.items()]
    if together and len(chapters) > 1:
        folders = list(dict.fromkeys(out.values()))
        path = (folders[0] if len(folders) == 1 else folders[0].parent) / f"{together}-{budget}-{settings}.html"
        page.save(path, *chapters)
        print(f"\nall on one page: {path}")


def _write(out: Path, environment: str, budget: str, settings: str, work: Work, records: dict[Cell, Record]) -> page.Chapter:
    """Of one environment."""
    mine = Work(*([cell for cell in cells if cell.environment == environment] for cells in
                  (work.cells, work.trained, work.logged)))
    alike = [cell for cell in records if (cell.environment, cell.budget, cell.settings) == (environment, budget, settings)]
    cells = sorted({*mine.cells, *alike}, key=place)
    of = cases.ENVIRONMENTS[environment]
    logged = {pieces.data_path(out, cell): None for cell in [*cells, *mine.trained, *mine.logged]
              if cell.dataset != "none" and cases.knows(cell)}
    cards = [words for path in logged if path.exists() for words in _card(path, of)]
    drawn = _draw(out, environment, cells, records, mine.trained)
    # those of an earlier run stay in the report, though what they were drawn from is gone
    earlier = out.glob(f"{environment}-*-{budget}-{settings}-*.png")
    pictures = sorted({*drawn, *earlier}, key=lambda path: _shelf(path, environment, f"-{budget}-{settings}-"))
    name = f"report-{environment}-{budget}-{settings}"     # a folder may hold several environments
    built = report.build(of, cells, records)
    texts = [report.tables_text(built), report.notes_text(built)] if cells else []
    blocks = [f"# {environment}, budget {budget}, settings {settings}", *texts, *(f"```\n{lines}\n```" for lines in cards),
              *(f"![{picture.stem}]({picture.name})" for picture in pictures)]
    with whole(out / f"{name}.md") as partial:
        partial.write_text("\n\n".join(blocks) + "\n")
    print("\n" + "\n\n".join([*cards, *texts]))
    chapter = page.Chapter(built, pictures, cards)
    page.save(out / f"{name}.html", chapter)
    print("\n".join(["", f"report    {out / name}.md", f"page      {out / name}.html",
                     *(f"picture   {picture}" for picture in pictures)]))
    return chapter


def _card(path: Path, of: Environment) -> list[str]:
    """Of a data set, unless it is corrupt: what is asked for was looked at before, so that it belongs to other records."""
    try:
        return [card(data.load(path), of)]
    except ValueError as error:
        print(f"a data card is left out: {error}")
        return []


def place(cell: Cell) -> tuple[int, ...]:
    """Where it stands in the tables; what learns nothing stands with the first data set."""
    if not cases.knows(cell):
        return len(cases.DATASETS), len(cases.METHODS), cell.seed, cell.agent
    dataset = 0 if cell.dataset == "none" else list(cases.DATASETS).index(cell.dataset)
    return dataset, list(cases.METHODS).index(cell.method), cell.seed, cell.agent


def _shelf(picture: Path, environment: str, kind_of_run: str) -> tuple[int, int, str]:
    """Where it stands in the report: by data set, of each in the order of the page, whether it was drawn now or earlier."""
    dataset, kind = picture.stem.removeprefix(f"{environment}-").partition(kind_of_run)[0], kind_of(picture)
    return (*cases.DATASETS, dataset).index(dataset), (*PICTURES, kind).index(kind), picture.name


def _draw(out: Path, environment: str, cells: list[Cell], records: dict[Cell, Record], trained: Iterable[Cell]) -> list[Path]:
    try:
        from lowrank_rl.rl.bench import plots  # optional: the extra "plot"
    except ModuleNotFoundError:
        print("no pictures: install the extra 'plot' for them (pip install lowrank_rl[plot])")
        return []
    of = cases.ENVIRONMENTS[environment]
    drawn = plots.draw_all(out, of, [cell for cell in cells if cases.knows(cell)], records)
    for cell in trained:
        if pieces.model_path(out, cell).exists():
            drawn.append(plots.latent_rows(out, of, cell))
    return list(dict.fromkeys(drawn))
