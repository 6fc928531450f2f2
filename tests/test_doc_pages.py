"""docs/data.md, simulator.md, unseen.md, docs/tools and docs/theory: code runs as printed, and prints what they say; links
and pictures exist."""

import contextlib
import csv
import importlib.util
import io
import math
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

DOCS = Path(__file__).parents[1] / "docs"
ALONE = [DOCS / f"{name}.md" for name in ("data", "simulator", "unseen")]
TOOLS = [*ALONE, *(page for page in sorted((DOCS / "tools").glob("*.md")) if page.stem != "README")]
THEORY = [page for page in sorted((DOCS / "theory").glob("*.md")) if "```python" in page.read_text()]
ALL = [*ALONE, *sorted(path for folder in ("tools", "theory") for path in (DOCS / folder).glob("*.md"))]
QUANTILES = "members' quantiles"      # a column of simulated.csv
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")
PICTURE = re.compile(r"savefig\(\"([^\"]+)\"")
LONG = {"foldin", "simulator"}   # pages whose first output takes more than a few seconds
MINUTES = {"foldin", "functional", "intervals"}   # pages that take minutes: only their first output is checked


@pytest.fixture
def pages(monkeypatch, tmp_path):
    """The module that runs pages; pictures land in tmp_path/images, data sets in tmp_path/tools."""
    pytest.importorskip("matplotlib").use("Agg")
    spec = importlib.util.spec_from_file_location("doc_pages", DOCS / "tools" / "patterns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "images").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "results").symlink_to(DOCS.parent / "results")
    monkeypatch.chdir(tmp_path / "tools")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "tools"))
    yield module
    import matplotlib.pyplot as plt

    plt.close("all")


def same_number(a: float, b: float) -> bool:
    """To 5%, since libraries differ in the last digits; what is infinite but for rounding need only be huge."""
    return math.isclose(a, b, rel_tol=0.05, abs_tol=0.03) or min(a, b) > 1e9


def assert_same(old: str, new: str) -> None:
    assert NUMBER.sub("#", old) == NUMBER.sub("#", new)
    for a, b in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
        assert same_number(float(a), float(b)), (a, b)


def ids(paths):
    return [path.stem for path in paths]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem, marks=pytest.mark.slow if page.stem in LONG else ())
                                  for page in TOOLS])
def test_first_output_of_a_page_is_what_its_code_prints(page, pages):
    text = page.read_text()
    text = text[:text.index("<!--end-->") + len("<!--end-->\n")]
    assert_same(text, pages.run(text))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in TOOLS if page.stem not in MINUTES], ids=lambda page: page.stem)
def test_a_whole_page_is_what_its_code_prints(page, pages, tmp_path):
    text = page.read_text()
    assert_same(text, pages.run(text))
    saved = {Path(name).name for name in PICTURE.findall(text) if "{" not in name}
    drawn = {path.name for path in (tmp_path / "images").glob("*.png")}
    assert saved <= drawn
    assert {Path(name).name for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)} == drawn


@pytest.mark.slow
def test_the_simulators_of_the_intervals_page_run_with_fewer_agents(pages, tmp_path):
    text = (DOCS / "tools" / "intervals.md").read_text()
    for large, small in (("500", "40"), ("(5, 105)", "(5, 15)"), ("(16, 16)", "(4, 4)")):
        assert large in text
        text = text.replace(large, small)
    assert "mountaincar" in pages.run(text)
    assert {path.name for path in (tmp_path / "images").glob("*.png")} == {"intervals-example.png", "intervals-simulators.png"}


@pytest.mark.parametrize("page", THEORY, ids=ids(THEORY))
def test_the_example_of_a_theory_page_prints_what_the_page_says(page):
    parts = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(parts) == page.read_text().count("```python")
    for code, printed in parts:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(code, {"__name__": "page"})
        assert_same(printed, out.getvalue())


@pytest.mark.parametrize("page", TOOLS, ids=ids(TOOLS))
def test_every_page_has_its_script_and_filled_outputs(page, pages):
    assert page.with_suffix(".py").exists()
    assert f"python {page.with_suffix('.py').relative_to(DOCS.parent)}" in page.read_text()
    text = page.read_text()
    found = list(pages.PART.finditer(text))
    assert len(found) == text.count("```python")
    for part in found:
        assert not part["output"] or part["output"].count("```") == 2, "an output that was never written"
        assert part["output"] or "print(" not in re.sub(r"(?s)def .*?\n(?=\S)", "", part["code"]), part["code"]


@pytest.mark.parametrize("page", ALL, ids=[f"{page.parent.name}/{page.stem}" for page in ALL])
def test_links_and_pictures_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            assert (page.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("folder", ["tools", "theory"])
def test_the_index_names_every_page(folder):
    index = (DOCS / folder / "README.md").read_text()
    pages = {path.name for path in (DOCS / folder).glob("*.md")} - {"README.md"}
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == pages


def test_a_page_that_prints_something_else_is_noticed(pages):
    page = "```python\nprint(3, 'terms')\n```\n\n<!--output-->\n```text\n{}\n```\n<!--end-->\n"
    assert_same(page.format("3 terms"), pages.run(page.format("old")))
    for wrong in ("4 terms", "3 rows"):
        with pytest.raises(AssertionError):
            assert_same(page.format(wrong), pages.run(page.format(wrong)))


def test_tables_of_the_simulator_page_say_what_the_record_says():
    with open(DOCS.parent / "results" / "simulated.csv") as file:
        record = list(csv.DictReader(file))
    lines = (DOCS / "simulator.md").read_text().splitlines()

    def found(column, **where):
        return [float(row[column]) for row in record if where.items() <= row.items()]

    def entries(label, count):
        line = next(line for line in lines if line.startswith(f"| {label}") and line.count("|") == count + 2)
        return [entry.strip() for entry in line.strip("|").split("|")[1:]]

    for label, what in (("trained in the learned", "learned simulator"), ("trained in the true", "true environment")):
        each = [found("return", part="training", what=what, agent=str(agent)) for agent in range(1, 6)]
        assert {len(runs) for runs in each} == {3}
        assert entries(label, 5) == [f"{mean(runs):.1f} ± {stdev(runs):.1f}".replace(".0", "") for runs in each]
    for name in ("CartPole", "HalfCheetah"):
        widths = ("env", "vector_env, 16", "vector_env, 128", "vector_env, 1024")
        assert [float(entry.replace(",", "")) for entry in entries(f"{name}, ", 4)] == pytest.approx(
            [found("steps per second", environment=name.lower(), what=width)[0] for width in widths], rel=1e-3)
    for label, simulator in (("MountainCar, 5 members, splines", "splines"), ("CartPole, 5 members, networks", "networks"),
                             ("CartPole, 5 members, poly", "polynomials"), ("HalfCheetah, 3 members", "networks")):
        where = {"part": "coverage", "environment": label.partition(",")[0].lower(), "simulator": simulator}
        assert entries(label, 2) == [
            f"{found('within', what=what, **where)[0]:.0%} ({found(QUANTILES, what=what, **where)[0]:.0%})"
            for what in ("random actions", "test policy")]
    places = [("halfcheetah", "1"), ("halfcheetah", "4"), ("cartpole", "1"), ("cartpole", "3"), ("cartpole", "5")]
    rows = [line.strip("| ").split(" | ")[1:] for line in lines if line.startswith("| agent ")]
    for (environment, agent), told in zip(places, rows, strict=True):
        left = "coverage=5, penalty=-20" if environment == "halfcheetah" else "coverage=5"
        options = ("none", "pessimism=1", "pessimism=10", left)
        means = [mean(found("return", part="options", environment=environment, agent=agent, what=what)) for what in options]
        assert [entry.partition(" ")[0] for entry in told] == [f"{x:.0f}" for x in means]
