"""The tutorial's text holds what its own code prints."""

import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")


@pytest.fixture
def completion(monkeypatch, tmp_path):
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)   # pictures land here
    import completion

    yield completion
    del sys.modules["completion"]


def assert_same(old: str, new: str) -> None:
    """Words alike, numbers to 5%, since libraries differ in the last digits and terms of high rank follow them."""
    assert NUMBER.sub("#", old) == NUMBER.sub("#", new)
    for a, b in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
        assert float(a) == pytest.approx(float(b), rel=0.05, abs=0.03), (a, b)


def test_first_blocks_print_what_the_text_says(completion):
    text = completion.TEXT.read_text()
    assert_same(text, completion.run(text, blocks=4))


@pytest.mark.slow
def test_whole_text_is_what_its_code_prints(completion, tmp_path):
    text = completion.TEXT.read_text()
    assert_same(text, completion.run(text))
    pictures = set(re.findall(r"\]\(([\w-]+\.png)\)", text))
    assert pictures == {path.name for path in tmp_path.glob("*.png")} == {path.name for path in FOLDER.glob("*.png")}


def test_every_block_of_code_runs_and_every_output_is_filled(completion):
    text = completion.TEXT.read_text()
    assert len(completion.code_blocks(text)) == text.count("```python")
    assert "<!--output-->\n<!--end-->" not in text


def test_run_fills_outputs_tables_and_numbers(completion):
    text = ("```python\nx = 3\nprint('a', x)\n```\n<!--output-->\nold\n<!--end-->\n<!--=x + 1-->?<!--end-->\n"
            "```python\nprint('| t |')\n```\n<!--output-->\n<!--end-->\n")
    new = completion.run(text)
    assert "```text\na 3\n```\n<!--end-->" in new
    assert "<!--=x + 1-->4<!--end-->" in new
    assert "<!--output-->\n| t |\n<!--end-->" in new
    assert completion.run(new) == new
