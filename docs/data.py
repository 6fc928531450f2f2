"""Runs the code of data.md and writes its outputs back: `python docs/data.py`. Files go to a folder that vanishes."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from tools.patterns import run

if __name__ == "__main__":
    page = Path(__file__).resolve().with_suffix(".md")
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["MINARI_DATASETS_PATH"] = folder
        page.write_text(run(page.read_text()))
