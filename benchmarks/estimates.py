"""What cells of the budget ``small`` would take, by the probes of ``--list``; docs/results.md has it for what has not run.

    python benchmarks/estimates.py [--environments halfcheetah] [--methods e-pets]

Adds to results/estimates.csv; rows found there are not probed again. Seconds of one worker on this machine.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from tables import add, done, show

from lowrank_rl.rl.bench import cases, estimate
from lowrank_rl.rl.bench.store import Cell

RESULTS = Path("results/estimates.csv")
BASELINES = tuple(name for name, method in cases.METHODS.items() if method.baseline)


@dataclass(frozen=True)
class Options:
    environments: tuple[str, ...] = tuple(cases.ENVIRONMENTS)
    methods: tuple[str, ...] = BASELINES
    results: Path = RESULTS


def main(options: Options) -> None:
    torch.set_num_threads(1)
    for environment in options.environments:
        for method in options.methods:
            rows, key = done(options.results), {"environment": environment, "method": method}
            if not any(key.items() <= row.items() for row in rows):
                training, acting = estimate.seconds(Cell(environment, "random", method, 1, 0, "best", "small"), "cpu")
                row = {**key, "training seconds": f"{training:.0f}", "acting seconds": f"{acting:.0f}",
                       "torch": torch.__version__}
                show(row)
                add(options.results, row)


if __name__ == "__main__":
    main(tyro.cli(Options))
