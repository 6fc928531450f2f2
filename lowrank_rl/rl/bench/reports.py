"""What a run leaves for people: tables and data cards on the screen, the same as Markdown and as a page, and pictures."""

from collections.abc import Iterable
from pathlib import Path

from lowrank_rl.files import whole
from lowrank_rl.rl import data
from lowrank_rl.rl.bench import cases, page, pieces, report
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.bench.suites import Work
from lowrank_rl.rl.cards import card


def write(out: Path, environment: str, budget: str, settings: str, work: Work, records: dict[Cell, Record]) -> None:
    """Of one environment: what was asked for, and all records in its folder that are of this budget and these settings."""
    mine = Work(*([cell for cell in cells if cell.environment == environment] for cells in
                  (work.cells, work.trained, work.logged)))
    alike = [cell for cell in records if (cell.environment, cell.budget, cell.settings) == (environment, budget, settings)]
    cells = sorted({*mine.cells, *alike}, key=place)
    of = cases.ENVIRONMENTS[environment]
    logged = {pieces.data_path(out, cell): None for cell in [*cells, *mine.trained, *mine.logged] if cell.dataset != "none"}
    cards = [card(data.load(path), of) for path in logged if path.exists()]
    drawn = _draw(out, environment, cells, records, mine.trained)
    # those of an earlier run stay in the report, though what they were drawn from is gone
    pictures = [*drawn, *sorted(set(out.glob(f"{environment}-*-{budget}-{settings}-*.png")) - set(drawn))]
    name = f"report-{budget}-{settings}"
    built = report.build(of, cells, records)
    texts = [report.tables_text(built), report.notes_text(built)] if cells else []
    blocks = [f"# {environment}, budget {budget}, settings {settings}", *texts, *(f"```\n{lines}\n```" for lines in cards),
              *(f"![{picture.stem}]({picture.name})" for picture in pictures)]
    with whole(out / f"{name}.md") as partial:
        partial.write_text("\n\n".join(blocks) + "\n")
    print("\n" + "\n\n".join([*cards, *texts]))
    lines = [f"report    {out / name}.md"]
    if cells:
        page.save(out / f"{name}.html", built, pictures, cards)
        lines.append(f"page      {out / name}.html")
    print("\n".join(["", *lines, *(f"picture   {picture}" for picture in pictures)]))


def place(cell: Cell) -> tuple[int, ...]:
    """Where it stands in the tables; what learns nothing stands with the first data set."""
    dataset = 0 if cell.dataset == "none" else list(cases.DATASETS).index(cell.dataset)
    methods = list(cases.METHODS)     # of which another version may have had more
    return dataset, methods.index(cell.method) if cell.method in methods else len(methods), cell.seed, cell.agent


def _draw(out: Path, environment: str, cells: list[Cell], records: dict[Cell, Record], trained: Iterable[Cell]) -> list[Path]:
    try:
        from lowrank_rl.rl.bench import plots  # optional: the extra "plot"
    except ModuleNotFoundError:
        print("no pictures: install the extra 'plot' for them (pip install lowrank_rl[plot])")
        return []
    of = cases.ENVIRONMENTS[environment]
    drawn = plots.draw_all(out, of, [cell for cell in cells if cell.method in cases.METHODS], records)
    for cell in trained:
        if pieces.model_path(out, cell).exists():
            drawn.append(plots.latent_rows(out, of, cell))
    return list(dict.fromkeys(drawn))
