"""The README's examples run as printed, from an empty folder, and say something sensible."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(example: str, folder: Path) -> str:
    command = [sys.executable, "-W", "error", "-c", example]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.slow
def test_the_table_s_holes_are_filled(tmp_path):
    assert float(re.search(r"never seen: ([\d.]+)", run(EXAMPLES[0], tmp_path)).group(1)) > 0.98


@pytest.mark.slow
def test_the_functional_example_predicts_unseen_entries(tmp_path):
    assert float(run(EXAMPLES[1], tmp_path).split()[-1]) > 0.99
    assert (tmp_path / "sales.safetensors").exists()


@pytest.mark.slow
def test_the_rl_example_reaches_the_goal(tmp_path):
    light, default = map(float, re.findall(r"[\d.]+", run(EXAMPLES[2], tmp_path).split(":")[1]))
    assert light < 100        # no policy needs fewer than 45 steps, the uniform one hardly ever arrives in 500
    assert default < 400
    assert not list(tmp_path.iterdir())


def test_there_is_no_other_example():
    assert len(EXAMPLES) == 3
