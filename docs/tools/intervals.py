"""Runs the code of intervals.md, writes its outputs back, and saves its pictures: `python docs/tools/intervals.py`."""

from pathlib import Path

from patterns import write

if __name__ == "__main__":
    write(Path(__file__).resolve().with_suffix(".md"))
