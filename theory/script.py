"""What the scripts share: their options, and where their pictures go."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from lowrank_rl import check


@dataclass(frozen=True)
class Options:
    out: Path    # folder for the picture
    seed: int    # of everything that is drawn


def options(description: str) -> Options:
    """From the command line: --out, --seed."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/theory"), help="folder for the picture (default: runs/theory)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled agents and states (default: 0)")
    given = parser.parse_args()
    return Options(check.writable_folder(given.out), given.seed)


def save(figure: Figure, out: Path, name: str) -> None:
    """As <out>/<name>.png, and say so."""
    figure.savefig(out / f"{name}.png", dpi=110)
    print(f"\nPicture: {out / name}.png")
