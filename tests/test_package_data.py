"""What the package reads while it runs must be in the wheel, too."""

import tomllib
from importlib import resources
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIPPED = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]


def shipped(path):
    """Whether a pattern of the package that the file lies in names it."""
    return any(path.match(f"{package.replace('.', '/')}/{pattern}")
               for package, patterns in SHIPPED.items() for pattern in patterns)


def test_every_file_that_is_not_python_is_shipped():
    ours = [path.relative_to(ROOT) for path in (ROOT / "lowrank_rl").rglob("*")
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts and not path.name.startswith(".")]
    assert {".csv", ".xml", ".safetensors"} <= {path.suffix for path in ours}
    assert [str(path) for path in ours if not shipped(path)] == []


def test_every_pattern_finds_files():
    for package, patterns in SHIPPED.items():
        for pattern in patterns:
            assert list(Path(str(resources.files(package))).glob(pattern)), f"{package}: {pattern}"
