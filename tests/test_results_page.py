"""docs/results.md is what the committed records say."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def results():
    spec = importlib.util.spec_from_file_location("results_page", DOCS / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawn(results):
    return results.page()


def test_the_page_is_what_the_records_say(drawn):
    assert drawn == (DOCS / "results.md").read_text(), "python docs/results.py draws it anew"


def test_links_and_pictures_of_the_page_exist(drawn):
    targets = [part.split(")")[0] for part in drawn.split("](")[1:]]
    assert len(targets) >= 6
    for target in targets:
        assert (DOCS / target.partition("#")[0]).exists(), target


def test_what_is_done_and_what_is_left_add_up(results, drawn):
    lines = drawn.partition("## What has run")[2].partition("|---")[2].splitlines()[1:]
    rows = [line.strip("| ").split(" | ") for line in lines]
    known = [str(number) for number, suite in results.suites.TABLES.items() if suite.stage == "cells" and number > 2]
    assert [row[0] for row in rows] == known
    for _, counts, left in rows:
        missing = sum(int(all_) - int(done) for done, all_ in
                      ((words.split()[1], words.split()[3]) for words in counts.split(", ")))
        told = 0 if left == "nothing" else sum(int(words.split(" (")[0].split()[2]) for words in left.split(", "))
        assert told == missing
