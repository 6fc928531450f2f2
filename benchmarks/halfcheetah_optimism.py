"""How far HalfCheetah's plans promise more than they keep, in the states that plans of the same simulators lead to.

    python benchmarks/halfcheetah_optimism.py OUT

Takes simulators that ``halfcheetah_planning.py OUT --base "two modes"`` trained from `random` data, or trains them; they are
named as there. Each plans in the true environment, for the agents that are not tested. From every tenth state that it comes to
a plan is made afresh, its rewards are predicted by the same simulators (mean over members), and it is flown to its end in the
true environment, without a new plan. Prints Markdown and adds to results/halfcheetah_optimism.csv, rewards per step; rows found
there are not run again.
"""

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from halfcheetah_flown import JUDGED, STEPS
from halfcheetah_planning import AGENTS, NAME, simulators, variants
from tables import add, done, show
from torch import Tensor

from lowrank_rl import rng
from lowrank_rl.rl import data
from lowrank_rl.rl.bench import cases, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import DynamicsModel, Environment, EpisodeView

EVERY = 10
RESULTS = Path("results/halfcheetah_optimism.csv")


def views(flown: data.Episodes, past: int) -> EpisodeView:
    """Every tenth state of each episode that has a whole past, with that."""
    steps = flown.transitions()
    rows = torch.from_numpy(np.concatenate([np.arange(first + EVERY, last, EVERY) for first, last in pairwise(flown.start)]))
    before = rows[:, None] - torch.arange(past, 0, -1)
    return EpisodeView(rows, steps.agent[rows], steps.state[rows], steps.state[before], steps.action[before],
                       torch.ones(before.shape, dtype=torch.bool))


@torch.no_grad()
def rewards(model: DynamicsModel, environment: Environment, covariates: Tensor, view: EpisodeView) -> tuple[Tensor, Tensor]:
    """Predicted and true mean reward of a step of the plan made from each state, (B,) each."""
    policy, context, count = cases.planning_policy("best", environment, model), model.context(view), len(view.state)
    chosen = policy.planner(lambda plans: policy.values(context, view.state, plans, 1), memory=None,
                            generators=[rng.stream(0, "optimism", i) for i in range(count)]).actions          # (B, H, A)
    states = model.rollout(context, view.state.expand(model.members, *view.state.shape), chosen[:, None])[:, :, 0].to(chosen)
    predicted = environment.reward(states[:, :, :-1], chosen.expand(model.members, *chosen.shape), states[:, :, 1:])
    state, true = view.state, []
    for action in chosen.unbind(1):
        following = environment.step(covariates[view.agent], state, action)
        true.append(environment.reward(state, action, following))
        state = following
    return predicted.mean((0, 2)), torch.stack(true).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    environment, cell = cases.ENVIRONMENTS[NAME], Cell(NAME, "random", "persim", 1, 0, "best", "small")
    train.make_data(out, cell, lambda what, share: None)
    named = variants(cell, "two modes")
    covariates, rows = data.agents(environment, 500, seed=0), done(RESULTS)
    for name in JUDGED:
        if any(row["simulators"] == name for row in rows):
            continue
        model = simulators(out, cell, named[name])
        short = replace(environment, max_steps=STEPS)
        flown = data.collect(short, covariates[AGENTS], torch.tensor(AGENTS), cases.planning_policy("best", short, model),
                             seed=0, what="flown")
        predicted, true = rewards(model, environment, covariates, views(flown, model.past))
        more = predicted - true
        row = {"simulators": name, "plans": len(more), "predicted": f"{predicted.mean():.3f}", "true": f"{true.mean():.3f}",
               "more than true": f"{more.mean():.3f}", "standard error": f"{more.std() / len(more) ** 0.5:.3f}",
               "more than true by over 1 in": f"{(more > 1).double().mean():.0%}"}
        show(row)
        add(RESULTS, row)


if __name__ == "__main__":
    main()
