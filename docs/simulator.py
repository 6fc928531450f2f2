"""Runs the code of simulator.md and writes its outputs back: `python docs/simulator.py`."""

from pathlib import Path

from tools.patterns import write

if __name__ == "__main__":
    write(Path(__file__).resolve().with_suffix(".md"))
