"""The page as a parser sees it: whole, self-contained, readable without sight, and true to the records."""

import base64
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from lowrank_rl.rl.bench import cases, charts, page, report
from lowrank_rl.rl.bench.page import Chapter
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.bench.style import SHEET

CAR = cases.ENVIRONMENTS["mountaincar"]
CONFIG = {"budget": {"agents": 500, "return_episodes": 2, "error_episodes": 50, "return_steps": None}}
VOID = {"meta", "img", "line", "br", "link", "input", "hr"}
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


class Tree(HTMLParser):
    """Elements as (tag, attributes, text, ancestors' tags); refuses what is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [], [t for t, *_ in self.open])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [], [t for t, *_ in self.open]))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2].append(data)

    def all(self, tag, **attributes):
        return [e for e in self.elements if e[0] == tag and all((e[1].get(k) or "") == v for k, v in attributes.items())]

    def texts(self, tag, **attributes):
        return ["".join(e[2]) for e in self.all(tag, **attributes)]


def cell(method="persim", agent=1, seed=0, dataset="random", **changes):
    return replace(Cell("mountaincar", dataset, method, agent, seed, "best", "small"), **changes)


def done(where, returns=(-50.0, -52.0), **more):
    return Record(where, "done", returns=list(returns), config=CONFIG, commit="abc", versions={"torch": "2"}, device="machine",
                  seconds=3.0, **more)


def build(*records, cells=None):
    return report.build(CAR, cells or [r.cell for r in records], {r.cell: r for r in records})


@pytest.fixture(scope="module")
def full():
    """Two data sets, two methods, seeds, an oracle, a failure, a gap, and a record of another budget."""
    curve = [0.001, 0.01, None]
    records = [done(cell(agent=a, seed=s, dataset=d), (-50.0 - s, -52.0), rmse=0.002 + s / 1000, r2=0.99, error_by_step=curve)
               for d in ("random", "pure") for a in (1, 4) for s in (0, 1)]
    records += [done(cell("morel-p", 1), same_action=1.0), done(cell("true-env-mpc", 1, dataset="none")),
                Record(cell("morel-p", 4), "failed", message="Traceback\n  <b>bold</b>\nValueError: 1 < 2 & \"3\""),
                done(cell(budget="paper"))]
    cells = [r.cell for r in records[:-1]] + [cell("pooled", 1)]
    return build(*records, cells=cells)


def test_well_formed_and_nothing_from_elsewhere(full):
    text = page.page(Chapter(full))
    tree = Tree(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not tree.all("script")
    assert not tree.all("link")
    assert "http:" not in text
    assert "https:" not in text
    ids = [e[1]["id"] for e in tree.elements if "id" in e[1]]
    assert len(ids) == len(set(ids))
    for _, attributes, *_ in tree.elements:
        assert attributes.get("aria-labelledby", ids[0]) in ids
        assert attributes.get("href", "#" + ids[0])[1:] in ids
    assert tree.all("html", lang="en")
    levels = [int(e[0][1]) for e in tree.elements if e[0] in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert max(np.diff(levels)) <= 1                                             # none skipped


def test_tables_are_readable_without_sight(full):
    tree = Tree(page.page(Chapter(full)))
    assert len(tree.all("table")) >= 8
    for tag, attributes, text, above in tree.elements:
        if tag == "th":
            assert attributes["scope"] in ("col", "row")
            assert "".join(text).strip() or "thead" not in above
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
    for box in tree.all("div", **{"class": "scroll"}):
        assert box[1]["tabindex"] == "0"
        assert box[1]["aria-labelledby"]


def test_every_row_is_as_wide_as_its_head(full):
    """Counting what rowspans reach down."""
    text = page.page(Chapter(full))
    for table in text.split("<table")[1:]:
        rows = table.split("</table>")[0].split("<tr")[1:]
        widths, reach = [], []
        for row in rows:
            reach = [left - 1 for left in reach if left > 1]
            tree = Tree("<tr" + row.split("</tr>")[0] + "</tr>")
            cells = tree.all("th") + tree.all("td")
            widths.append(len(cells) + len(reach))
            reach += [int(e[1]["rowspan"]) for e in cells if int(e[1].get("rowspan", 1)) > 1]
        assert len(set(widths)) == 1


def test_our_numbers_the_papers_and_what_is_not_there(full):
    tree = Tree(page.page(Chapter(full)))
    cells = tree.texts("td")
    assert any(text.startswith("▲ better than the paper's:  -51.25 ± 0.35[-54.43, -48.07] n 2×2") for text in cells)
    assert "-57.7 ± 5.6[-64.69, -50.71] n 5" in cells                            # Table 9
    assert tree.texts("td", **{"class": "gap"}).count("FAILED") == 1
    assert "missing" in tree.texts("td", **{"class": "gap"})
    assert any("MOReL" not in text and text.startswith("-45 ± 0.3 *") for text in cells)
    assert any("garbled row" in text for text in tree.texts("p", **{"class": "soft"}))
    assert "morel-anot run by us" in tree.texts("th", **{"class": "method"})
    assert "true-env-mpclearns nothing" in tree.texts("th", **{"class": "method"})
    notes = " ".join(tree.texts("li"))
    assert "Always the same action: mountaincar/random/morel-p/agent 1/seed 0" in notes
    assert "--budget paper --settings best reports them" in notes
    assert "Not run yet: 1 of 12 cells" in notes
    # -51.25 lies in [-64.69, -50.71], but not in Table 2's [-59.07, -54.53] of pure data; agent 4 is far above the paper's
    assert "PerSim's return against the paper's PerSim: 3 better, 1 within an interval, 0 worse, of 4 cells." in notes


def test_each_data_set_has_its_tables(full):
    tree = Tree(page.page(Chapter(full)))
    titles = tree.texts("h3")
    for dataset in ("random", "pure"):
        assert f"Average return, {dataset} data, as in the paper's Table 9" in titles
        assert f"50-step prediction error, RMSE in units of the state, {dataset} data, as in the paper's Table 6" in titles
    assert tree.texts("h2") == ["Better and worse", "Data: random", "Data: pure", "What it cost", "Failed cells", "Notes"]


def test_unseen_agents_have_sections_of_their_own(tmp_path):
    records = [done(cell(agent=1), rmse=0.002, r2=0.9, error_by_step=[0.1, 0.2]),
               *(done(cell(name, 6), rmse=0.002, r2=0.9, error_by_step=[0.1, 0.2]) for name in ("persim-p50", "persim-k5")),
               Record(cell("persim-k5", 7), "failed", message="no")]
    paths = [tmp_path / f"mountaincar-random-small-best-{kind}.png" for kind in ("returns", "adaptation")]
    for path in paths:
        path.write_bytes(PNG)
    text = page.page(Chapter(build(*records), paths))
    tree = Tree(text)
    assert tree.texts("h2") == ["Better and worse", "Data: random", "Unseen agents: better and worse",
                                "Unseen agents, data: random", "What it cost", "Failed cells", "Notes"]
    ids = [e[1]["id"] for e in tree.elements if "id" in e[1]]
    assert len(ids) == len(set(ids))
    assert "Unseen agents: average return, random data, as in the paper's Table 13" in tree.texts("h3")
    assert "Average return, random data, as in the paper's Table 9" in tree.texts("h3")
    facts = dict(zip(tree.texts("dt"), tree.texts("dd"), strict=True))
    assert (facts["test agents"], facts["cells"]) == ("agent 1: gravity 0.0001", "3 done, 1 failed")
    assert facts["unseen agents"] == "agent 6: gravity 0.00005; agent 7: gravity 0.00008"
    tests, new = text.split("Unseen agents: better and worse</h2>")
    assert "random-small-best-returns" in tests
    assert "adaptation" not in tests
    assert "random-small-best-adaptation" in new.split("What it cost</h2>")[0]
    assert all(f".m-{name}{{" in text for name in ("persim", "persim-p50", "persim-k5"))
    assert set(cases.METHODS) == set(charts.COLORS)


def test_several_environments_on_one_page(full):
    """Each is a chapter of its own; what is said of all is said once."""
    pole = done(replace(cell(), environment="cartpole", method="vanilla-cadm"), rmse=0.1, r2=0.9, error_by_step=[0.1, 0.2])
    other = report.build(cases.ENVIRONMENTS["cartpole"], [pole.cell], {pole.cell: pole})
    text = page.page(Chapter(full), Chapter(other, cards=["a card"]))
    tree = Tree(text)
    assert tree.texts("h1") == ["MountainCar, CartPole: budget small, settings best"]
    heads = tree.texts("h2")
    assert [head for head in heads if "." not in head] == ["MountainCar", "CartPole"]
    assert heads.index("MountainCar. Notes") < heads.index("CartPole") < heads.index("CartPole. Data: random")
    ids = [e[1]["id"] for e in tree.elements if "id" in e[1]]
    assert len(ids) == len(set(ids))
    linked = [e[1]["href"][1:] for e in tree.all("a")[1:]]
    assert linked[:2] == ["mountaincar", "cartpole"]
    assert sorted(linked) == sorted(name for name in ids if f'<h2 id="{name}">' in text)
    assert text.count("drawn from the records of finished cells") == 1
    assert tree.texts("dt").count("cells") == 2
    assert tree.texts("pre")[-1] == "a card"
    assert all(f".m-{name}{{" in text for name in ("persim", "vanilla-cadm"))
    alone = Tree(page.page(Chapter(full)))
    assert set(alone.texts("td")) < set(tree.texts("td"))


def test_whatever_a_record_says_is_text(full):
    evil = '<script>alert("x")</script>'
    bad = replace(done(cell()), commit=evil, device=evil, versions={evil: evil})
    built = build(bad, Record(cell(seed=1), "failed", message=evil))
    text = page.page(Chapter(built, cards=[evil]))
    assert "<script" not in text
    assert not Tree(text).all("script")
    assert evil in Tree(text).texts("pre")
    assert '<b>bold</b>' in "".join(Tree(page.page(Chapter(full))).texts("pre"))
    assert 'ValueError: 1 < 2 & "3"' in "".join(Tree(page.page(Chapter(full))).texts("summary"))


def test_pictures_travel_inside_the_page(full, tmp_path):
    names = ["random-small-best-trajectories", "random-small-best-returns", "random-small-best-error", "pure-small-best-latent",
             "elsewhere"]
    paths = [tmp_path / f"mountaincar-{name}.png" for name in names]
    for path in paths:
        path.write_bytes(PNG)
    broken, lost = tmp_path / "broken.png", tmp_path / "lost.png"
    broken.write_text("<svg>")
    text = page.page(Chapter(full, [*paths, broken, lost]))
    tree = Tree(text)
    images = tree.all("img")
    assert [e[1]["alt"].split(":")[0].rstrip(".") for e in images] == [
        "mountaincar-random-small-best-returns", "mountaincar-random-small-best-trajectories",     # the error is drawn anew
        "mountaincar-pure-small-best-latent", "mountaincar-elsewhere"]
    assert all(base64.b64decode(e[1]["src"].removeprefix("data:image/png;base64,")) == PNG for e in images)
    assert text == page.page(Chapter(full, [lost, broken, *paths[::-1]]))                # whatever their order
    alerts = tree.texts("p", **{"class": "alert"})
    assert any("broken.png" in words and "no PNG" in words for words in alerts)
    assert any("lost.png" in words and "cannot be read" in words for words in alerts)


def test_cut_episodes_are_an_alarm():
    cut = replace(done(cell()), config={"budget": {**CONFIG["budget"], "return_steps": 30}})
    tree = Tree(page.page(Chapter(build(cut))))
    assert "first 30 of 500 steps; the paper's are of whole episodes" in "".join(tree.texts("p", **{"class": "alert"}))
    assert "▲ better than the paper's:  -51" not in "".join(tree.texts("td"))


def test_nothing_done_and_nothing_asked_still_make_a_page():
    waiting = Tree(page.page(Chapter(build(cells=[cell(), cell(agent=2)]))))
    assert waiting.texts("td", **{"class": "gap"}) == ["missing", "missing"]
    assert "2 not run" in "".join(waiting.texts("dd"))
    assert Tree(page.page(Chapter(report.build(CAR, [], {})))).texts("h1") == ["MountainCar: budget none, settings none"]


def test_many_failures_are_counted_not_listed():
    records = [Record(cell(seed=seed), "failed", message="" if seed else "no") for seed in range(80)]
    built = build(*records)
    tree = Tree(page.page(Chapter(built)))
    assert len(tree.all("details")) == page.FAILURES
    assert "And 30 more cells; records.jsonl has their messages." in tree.texts("p")
    assert "FAILED: 68 more cells; records.jsonl has their messages." in report.notes_text(built)
    assert "FAILED mountaincar/random/persim/agent 1/seed 1: no message" in report.notes_text(built)


def test_saved_whole_or_not_at_all(full, tmp_path):
    page.save(tmp_path / "report.html", Chapter(full))
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page.page(Chapter(full))
    with pytest.raises(ValueError, match="expected a place that can be written"):
        page.save(tmp_path / "report.html" / "in-a-file.html", Chapter(full))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def points(svg):
    """Of each line: pixels, and its class."""
    return [(e[1]["class"], np.array([[float(v) for v in pair.split(",")] for pair in e[1]["points"].split()]))
            for e in Tree(svg).all("polyline")]


def test_curves_are_means_over_seeds_on_a_log_scale():
    built = build(done(cell(seed=0), error_by_step=[0.01, 0.5, None]), done(cell(seed=1), error_by_step=[0.03, 1.5, 1.0]))
    found = charts.curves(built.gathered, "random")
    np.testing.assert_allclose(found[1]["persim"], [0.02, 1.0, np.nan])
    (name, line), = points(charts.panels(found, {1: "agent 1"}, "Error")[1])
    assert (name, len(line)) == ("m-persim", 2)
    assert line[0, 0] < line[1, 0]
    # from 0.02 to 1 at the ends of the axis, which has a mark at each: all of the height
    assert line[0, 1] - line[1, 1] == pytest.approx(charts.HEIGHT - charts.TOP - charts.BOTTOM, abs=0.2)
    assert charts.curves(built.gathered, "pure") == {}


def test_gaps_break_a_curve_and_what_has_no_logarithm_is_not_drawn():
    curve = np.array([0.0, 1.0, 2.0, np.nan, 4.0, np.inf])
    lines = points(charts.panels({1: {"persim": curve}}, {1: "one"}, "Error")[1])
    assert [len(line) for _, line in lines] == [2, 1]
    assert charts.panels({1: {"persim": np.zeros(3)}}, {1: "one"}, "Error") == {}
    assert len(points(charts.panels({1: {"persim": np.ones(3)}}, {1: "one"}, "Error")[1])[0][1]) == 3


@pytest.mark.parametrize(("low", "high", "marks"), [
    (0.3, 4.0, [0.2, 0.5, 1, 2, 5]), (1.0, 10.0, [1, 2, 5, 10]), (2e-5, 0.3, [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1])])
def test_marks_of_the_axis(low, high, marks):
    assert charts._marks(low, high) == pytest.approx(marks)


def luminance(color):
    channels = [int(color[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return np.dot([0.2126, 0.7152, 0.0722], linear)


def test_words_stand_out_from_their_ground():
    """WCAG 2.1: at least 4.5 to 1, in light and in dark."""
    light, dark = (dict(part.split(":") for part in "".join(block.split("}")[0].split()).split(";") if "--" in part)
                   for block in SHEET.split(":root {")[1:3])
    for colors in (light, dark):
        full = {name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:]) for name, value in colors.items()}
        pairs = [(ink, ground) for ink in ("ink", "soft", "link", "good", "bad", "even") for ground in ("ground", "raised")]
        for ink, ground in [*pairs, ("warn-ink", "warn-ground")]:
            a, b = sorted((luminance(full[f"--{ink}"]), luminance(full[f"--{ground}"])))
            assert (b + 0.05) / (a + 0.05) >= 4.5, (ink, ground)
