"""Bars on a terminal, as many as it has room for; lines elsewhere."""

import io

import pytest
from rich.console import Console

from lowrank_rl.rl.bench import console
from lowrank_rl.rl.bench.console import BARS, Display


@pytest.fixture
def display(monkeypatch):
    """On a terminal that is a string."""
    def terminal(**options):
        return Console(file=io.StringIO(), force_terminal=True, width=100, **options)
    monkeypatch.setattr(console, "Console", terminal)
    with Display(100) as display:
        yield display


def test_more_tasks_than_bars(display):
    for i in range(BARS + 4):
        display.start(f"task {i}")
    assert list(display.bars) == [f"task {i}" for i in range(BARS)]
    overall, = (bar for bar in display.progress.tasks if bar.description == "all")
    assert overall.fields["words"] == "4 more at work"
    display.finish("task 0", "done")
    display.say(f"task {BARS + 2}", "half way", 0.5)
    assert f"task {BARS + 2}" in display.bars
    assert "task 0" not in display.bars
    assert overall.completed == 1
    assert overall.fields["words"] == "3 more at work"
    assert "[1/100] task 0: done" in display.console.file.getvalue()


def test_what_is_tried_again_begins_anew_and_is_not_counted(display):
    display.start("a")
    display.again("a", "will be tried again")
    assert display.bars == {}
    assert display.finished == 0
    display.start("a")
    display.finish("a", "done")
    display.finish("never begun", "FAILED: needs a")
    assert (display.finished, display.bars) == (2, {})


def test_lines_without_a_terminal(capsys, monkeypatch):
    with Display(2) as display:
        display.start("a")
        display.say("a", "too early for a line", 0.1)
        monkeypatch.setattr(console, "EVERY", 0.0)
        display.say("a", "working", 0.2)
        display.finish("a", "done")
    said = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert said == ["[0/2] a: started", "[0/2] a: working (20%)", "[1/2] a: done"]
