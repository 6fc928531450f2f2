"""Runs the code of blocks.md, writes its outputs back into the text, and saves its picture: `python docs/tools/blocks.py`."""

import contextlib
import io
import os
import re
from pathlib import Path

import matplotlib

TEXT = Path(__file__).with_name("blocks.md")
PART = re.compile(r"```python\n(?P<code>.*?)```\n(?P<output>\n<!--output-->\n.*?<!--end-->\n)?", re.DOTALL)


def run(text: str) -> str:
    """The text with the outputs of its own code. The picture is saved relative to the working folder."""
    namespace: dict = {"__name__": "page"}

    def replace(match: re.Match) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(match["code"], namespace)
        output = f"\n<!--output-->\n```text\n{out.getvalue()}```\n<!--end-->\n" if match["output"] else ""
        return f"```python\n{match['code']}```\n{output}"

    return PART.sub(replace, text)


if __name__ == "__main__":
    matplotlib.use("Agg")
    os.chdir(TEXT.parent)
    TEXT.write_text(run(TEXT.read_text()))
