"""How right HalfCheetah's simulators are where plans go, which logs of random actions do not show.

    python benchmarks/halfcheetah_flown.py OUT

Takes simulators that ``halfcheetah_planning.py OUT --base "two modes"`` trained from `random` data, or trains them. They are
named as there, so that "best" has two modes. Two of them plan in the true environment, for the agents that are not tested. Then
each predicts the steps that were flown: one step, in deviations of a logged step (root mean square over dimensions), and the
speed over 20 steps that are fed on themselves. Prints Markdown and adds to results/halfcheetah_flown.csv; rows found there are
not run again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from halfcheetah_planning import AGENTS, NAME, simulators, variants
from tables import add, done, show

from lowrank_rl.rl import data, held_out
from lowrank_rl.rl.bench import cases, pieces, train
from lowrank_rl.rl.bench.store import Cell

STEPS, HORIZON = 150, 20
FLYING = ("best", "pe-ts-cadm")
JUDGED = (*FLYING, "e-pets", "e-pets, 5 x 200", "joint, 4 x 200", "joint, 4 x 200, one-step training alone, twice the epochs",
          "joint, 5 x 200, one-step training alone, twice the epochs",
          "joint, 5 x 200, twice the epochs, multi-step at a rate of 0.0003",
          "today's vanilla-cadm", "today's pe-ts-cadm", "today's e-pets")
RESULTS = Path("results/halfcheetah_flown.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    short, cell = replace(cases.ENVIRONMENTS[NAME], max_steps=STEPS), Cell(NAME, "random", "persim", 1, 0, "best", "small")
    train.make_data(out, cell, lambda what, share: None)
    logs = pieces.load_data(out, cell).transitions()
    unit = (logs.next_state - logs.state).std(0).numpy()
    named = variants(cell, "two modes")
    models = {name: simulators(out, cell, named[name]) for name in JUDGED}
    covariates, rows = data.agents(short, 500, seed=0)[AGENTS], done(RESULTS)
    for pilot in FLYING:
        if all(any({"flown by": pilot, "simulators": name}.items() <= row.items() for row in rows) for name in JUDGED):
            continue
        policy = cases.planning_policy("best", short, models[pilot])
        flown = data.collect(short, covariates, torch.tensor(AGENTS), policy, seed=0, what="flown")
        for name, model in models.items():
            key = {"flown by": pilot, "simulators": name}
            if any(key.items() <= row.items() for row in rows):
                continue
            one, many = (held_out.prediction_error(model, flown, horizon=horizon).values() for horizon in (1, HORIZON))
            step = np.mean([np.sqrt(np.square(error.rmse / unit).mean()) for error in one])
            speed = np.mean([error.rmse[0] for error in many])
            row = {**key, "one step": f"{step:.3g}", "speed over 20 steps, m/s": f"{speed:.3g}"}
            show(row)
            add(RESULTS, row)


if __name__ == "__main__":
    main()
