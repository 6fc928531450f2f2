"""Runs the code of unseen.md and writes its outputs back: `python docs/unseen.py`."""

from pathlib import Path

from tools.patterns import run

if __name__ == "__main__":
    page = Path(__file__).resolve().with_suffix(".md")
    page.write_text(run(page.read_text()))
