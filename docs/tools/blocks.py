"""Runs the code of blocks.md, writes its outputs back, and saves its picture: `python docs/tools/blocks.py`."""

from pathlib import Path

from patterns import write

if __name__ == "__main__":
    write(Path(__file__).resolve().with_suffix(".md"))
