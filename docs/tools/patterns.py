"""Runs the code of patterns.md, writes its outputs back, and saves its pictures: `python docs/tools/patterns.py`."""

import contextlib
import io
import os
import re
from pathlib import Path

import matplotlib

PART = re.compile(r"```python\n(?P<code>.*?)```\n(?P<output>\n<!--output-->\n.*?<!--end-->\n)?", re.DOTALL)


def run(text: str) -> str:
    """The text with the outputs of its own code. Pictures are saved relative to the working folder."""
    namespace: dict = {"__name__": "page"}

    def replace(match: re.Match) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(match["code"], namespace)
        output = f"\n<!--output-->\n```text\n{out.getvalue()}```\n<!--end-->\n" if match["output"] else ""
        return f"```python\n{match['code']}```\n{output}"

    return PART.sub(replace, text)


def write(page: Path) -> None:
    """Bring the page up to date; pictures go where its text looks for them."""
    matplotlib.use("Agg")
    os.chdir(page.parent)
    page.write_text(run(page.read_text()))


if __name__ == "__main__":
    write(Path(__file__).resolve().with_suffix(".md"))
