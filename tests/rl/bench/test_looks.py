"""What it was worth to select policies in simulators, from hand-made curves."""

from dataclasses import replace

import numpy as np

from lowrank_rl.rl.bench import cases, looks, page, report, tables
from lowrank_rl.rl.bench.page import Chapter
from lowrank_rl.rl.bench.store import Cell, Record

CELL = Cell("mountaincar", "random", "persim-bcq-5", 1, 0, "best", "small")
CONFIG = {"budget": {"agents": 500, "return_episodes": 2, "error_episodes": 50, "return_steps": None}}


def record(imagined, true, **changes):
    """Looks after 10, 20, ... updates, told in the order of their names, as JSON's sorted keys would be."""
    curves = {name: dict(sorted((str(10 * k), value) for k, value in enumerate(values, 1)))
              for name, values in (("imagined", imagined), ("curve", true)) if values}
    return Record(replace(CELL, **changes), "done", returns=[-70.0, -72.0], config=CONFIG, training=curves)


def build(*records):
    return report.build(cases.ENVIRONMENTS["mountaincar"], [r.cell for r in records], {r.cell: r for r in records})


def test_kept_last_and_best_looks():
    """Agent 4's simulator could not judge the second look, nor any of seed 1's."""
    many = [-90.0] * 9 + [-80.0]                                           # the tenth is the last, though "100" < "20"
    built = build(record([-60.0, -50.0, -50.0, -70.0], [-100.0, -40.0, -55.0, -80.0]),
                  record([-50.0, -60.0], [-61.0, -59.0], seed=1),
                  record([-9.0] + [-500.0] * 9, many, agent=2),
                  record([-60.0, None], [-61.0, -50.0], agent=4), record([None, None], [-71.0, -72.0], agent=4, seed=1),
                  record(None, [-1.0, -2.0], agent=3), record(None, [-1.0, -2.0], method="bcq-a"))
    table = built.table("looks")
    assert {row.labels[0] for row in table.rows} == {"persim-bcq-5"}
    found = {row.labels[2]: [entry.text for entry in row.entries] for row in table.rows}
    assert found == {"kept, as simulated": ["-50", "-9", "-", "-60"],            # of equal looks the later
                     "kept": ["-58", "-90", "-", "-66.5"],
                     "last": ["-69.5", "-80", "-", "-61"], "best": ["-49.5", "-80", "-", "-60.5"]}
    assert "Policies selected in simulators" in "\n".join(tables.markdown(table))
    assert "Policies selected in simulators: returns of the looks, random data" in page.page(Chapter(built))


def test_how_well_simulators_judge():
    one, two = record([-50.0, -60.0, None], [-52.0, -58.0, -500.0]), record([-70.0], [-80.0], agent=2)
    known = np.corrcoef([-50, -60, -70], [-52, -58, -80])[0, 1]
    assert build(one, two).table("looks").notes[1] == f"Over all 3 looks the two returns correlate by {known:.2f} (Pearson)."
    assert len(build(record([-50.0, -50.0], [-51.0, -52.0])).table("looks").notes) == 1


def test_a_curve_that_begins_later():
    short = record([-50.0, -60.0, -70.0], [-51.0, -61.0, -71.0])
    del short.training["curve"]["10"]
    found = {row.labels[2]: row.entries[0].text for row in build(short).table("looks").rows}
    assert found == {"kept, as simulated": "-50", "kept": "-", "last": "-71", "best": "-61"}


def test_nothing_is_told_where_nothing_was_selected():
    assert looks.table(build(record(None, [-1.0, -2.0])).gathered) is None
