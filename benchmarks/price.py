"""What a plan should pay for leaving the data, chosen inside the simulators: some members plan, the others are the world.

    python benchmarks/price.py halfcheetah runs/halfcheetah     # about 40 minutes on one core if it must train first

No true dynamics and no test agent is consulted. Trains the ``small`` budget's simulators of seed 0, or takes those that the
benchmark left in the folder. Prints a Markdown table and writes results/price.csv: imagined return by price.
"""

import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tables import show, write
from torch import Tensor

from lowrank_rl.rl import evaluate
from lowrank_rl.rl.bench import cases, run
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import Environment, fresh_view
from lowrank_rl.rl.models.persim import PerSim
from lowrank_rl.tensor import FunctionalCP

AGENTS = [5, 6, 7, 8]      # none of the test agents 0..4
PRICES = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
STEPS = 100
PLANNERS, JUDGES = [0, 1, 2], [3, 4]


def some_members(model: PerSim, which: list[int]) -> PerSim:
    """The simulators of a few members."""
    tensors, header = model.cp.pack()
    tensors = {name: t[which] if name.startswith("modes.") else t for name, t in tensors.items()}
    header["params"]["members"] = len(which)
    return PerSim(FunctionalCP.unpack("these members", tensors, header), model.personal, model.walls, model.inputs)


def imagined(environment: Environment, judge: PerSim) -> Environment:
    """A member as the world; an agent's one covariate is its number."""
    def step(covariates: Tensor, state: Tensor, action: Tensor) -> Tensor:
        view = fresh_view(covariates[:, 0].long(), state, action.shape[1])
        return judge.predict(judge.context(view), state[None], action)[0]
    return replace(environment, step=step, rollout=None, covariate_names=("agent",))


def main() -> None:
    torch.set_num_threads(1)
    name, out = sys.argv[1], Path(sys.argv[2])
    environment = cases.ENVIRONMENTS[name]
    cell = Cell(name, "random", "persim", 1, 0, "best", "small")

    def say(what: str, share: float) -> None:
        print(f"{what}: {share:.0%}", file=sys.stderr, flush=True)

    run.make_data(out, cell, say)
    run.train(out, cell, "cpu", say)
    model = run.load_model(out, cell)
    planners = some_members(model, PLANNERS)
    numbers = torch.arange(model.rows.shape[1], dtype=torch.float64)[:, None]
    rows = []
    for price in PRICES:
        started = time.monotonic()
        plan = replace(cases.PLANNING["best", name], price=price)
        cases.PLANNING["best", name] = plan
        totals = []
        for judge in JUDGES:
            world = imagined(environment, some_members(model, [judge]))
            policy = cases.planning_policy("best", environment, planners)
            totals.append(evaluate.returns(world, policy, numbers, AGENTS, episodes=1, seed=0, max_steps=STEPS)[0][:, 0])
        rows.append({"environment": name, "price": price, "steps": STEPS, "mean": f"{sum(t.mean() for t in totals) / 2:.1f}"}
                    | {f"judge {j}": " ".join(f"{x:.0f}" for x in t) for j, t in zip(JUDGES, totals, strict=True)}
                    | {"seconds": f"{time.monotonic() - started:.0f}"})
        show(rows[-1])
    write(Path("results/price.csv"), rows)


if __name__ == "__main__":
    main()
