"""Each script of theory/ runs from the command line, prints its evidence and saves its picture."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib").use("Agg")

ROOT = Path(__file__).parents[2]
NOT_SCRIPTS = {"__init__", "script"}
SMALL = {   # options, name of the picture, what must be printed
    "proposition1": ([], "theory-proposition1", [
        r"at most 3: the three terms miss no entry by more than \d\.\de-1[5-9]", r"at least 3: state against the rest",
        r"unfolding ranks, agent / state / action: 2 / 3 / 2", r"left wall"]),
    "cartpole_rank": ([], "theory-cartpole", [
        r"at most 5: the five terms miss no entry by more than \d\.\de-1[5-9]",
        r"unfolding ranks, agent / state / action: 5 / 5 / 2", r"without the term l  "]),
    "theorem1": ([], "theory-theorem1", [
        r"3 x 3 cells, 9 terms, and the CP rank of h is at least 9", r"The missing sqrt\(d\)"]),
    "halfcheetah_rank": (["--samples", "1", "--most", "15"], "theory-halfcheetah", [
        r"agent   20 x 10800: rank 20, all that the sample allows", r"10% error: at least \d+ terms; found with \d+",
        r"What rank 15 buys: relative error \d\.\d%", r"\| 15 \| 0\.0\d+ \|"]),
    "recovery": (["--repeats", "1", "--agents", "6", "--steps", "15", "60"], "theory-recovery", [
        r"MountainCar: rank 3, 24 cells, 3 actions", r"pure +6 +60 ", r"CartPole +pure +6 agents: none / none",
        r"another tensor of rank 3 differs by at most \de-1\d in what was seen", r"rank 3 determines 0\.0% of the entries"]),
}
SLOW = {"proposition1", "recovery"}   # more than 10 s
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SMALL]


@pytest.mark.parametrize("name", NAMES)
def test_prints_its_evidence_and_draws(name, monkeypatch, tmp_path, capsys):
    if name == "halfcheetah_rank":
        pytest.importorskip("mujoco")
    flags, picture, evidence = SMALL[name]
    monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path), *flags])
    importlib.import_module(f"theory.{name}").main()
    printed = capsys.readouterr().out
    for pattern in evidence:
        assert re.search(pattern, printed), pattern
    assert "nan" not in printed
    assert f"Picture: {tmp_path / picture}.png" in printed
    assert {path.name for path in tmp_path.iterdir()} == {f"{picture}.png"}
    assert (tmp_path / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_no_script_is_left_out():
    assert {path.stem for path in (ROOT / "theory").glob("*.py")} == {*SMALL, *NOT_SCRIPTS}


@pytest.mark.parametrize("name", SMALL)
def test_its_page_and_picture_are_in_the_docs_and_the_index(name):
    page, picture = ROOT / "docs" / "theory" / f"{name}.md", SMALL[name][1]
    assert f"python -m theory.{name}" in page.read_text()
    assert f"../images/{picture}.png" in page.read_text()
    assert f"]({name}.md)" in (page.parent / "README.md").read_text()


@pytest.mark.parametrize(("flags", "message"), [(["halfcheetah_rank", "--samples", "0"], "--samples"),
                                                (["halfcheetah_rank", "--most", "3"], "--most"),
                                                (["recovery", "--steps", "0"], "--steps"),
                                                (["recovery", "--agents", "5", "0"], "--agents")])
def test_options_that_make_no_sense_are_refused(flags, message, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [*flags[:1], "--out", str(tmp_path), *flags[1:]])
    with pytest.raises(ValueError, match=message):
        importlib.import_module(f"theory.{flags[0]}").main()
    assert not list(tmp_path.iterdir())


def test_scripts_run_as_modules():
    done = subprocess.run([sys.executable, "-m", "theory.cartpole_rank", "--help"], cwd=ROOT, capture_output=True, text=True,
                          check=True)
    assert "--out" in done.stdout
