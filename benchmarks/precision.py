"""Does planning in bfloat16 cost return? The same decisions in HalfCheetah's simulators of either precision.

    python benchmarks/precision.py            # ten minutes on one core
    python benchmarks/precision.py --help

Simulators are trained briefly in bfloat16, as ``best`` does. From logged states, plans are chosen in these and in the
same simulators at full precision, twice with other draws; all are then judged at full precision, as the
planner scores them. Prints Markdown and writes results/precision.csv.
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro
from tables import show, write
from torch import Tensor

from lowrank_rl import rng
from lowrank_rl.rl import data
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.contracts import EpisodeView, fresh_view
from lowrank_rl.rl.models.persim import PerSim, fit_persim
from lowrank_rl.rl.policies.uniform import Uniform

ENVIRONMENT = cases.ENVIRONMENTS["halfcheetah"]


def trained(agents: int, epochs: int, seed: int) -> tuple[PerSim, EpisodeView]:
    """Simulators, and the states that they have seen."""
    logged = data.collect(ENVIRONMENT, data.agents(ENVIRONMENT, agents, seed=seed), torch.arange(agents),
                          Uniform(ENVIRONMENT.actions), seed=seed, what="random").transitions()
    config = cases.LEARNING["best", "halfcheetah"]
    config = replace(config, adam=replace(config.adam, epochs=epochs), multistep=None)
    model = fit_persim(logged, agents, ENVIRONMENT.actions, config, seed=seed)
    return model, fresh_view(logged.agent, logged.state, ENVIRONMENT.actions.size)


def set_precision(model: PerSim, precision: str) -> None:
    for mode in model.module.modes[1:]:
        mode.precision = precision


def main(states: int = 40, agents: int = 60, epochs: int = 8, seed: int = 0, threads: int = 1, note: str = "",
         out: Path = Path("results/precision.csv")) -> None:
    """What bfloat16 costs.

    Args:
        states: from which to plan.
        agents: in the data.
        epochs: of training.
        seed: of data, training, states and plans.
        threads: torch's.
        note: what should be known of the run.
        out: where to write.
    """
    torch.set_num_threads(threads)
    model, seen = trained(agents, epochs, seed)
    policy = cases.planning_policy("best", ENVIRONMENT, model)
    which = torch.randperm(len(seen.agent), generator=rng.stream(seed, "precision", "states"))[:states]
    shown = EpisodeView(torch.arange(states), *(x[which] for x in list(vars(seen).values())[1:]))
    context = model.context(shown)

    def values(plans: Tensor) -> Tensor:
        return policy.values(context, shown.state, plans, threads)

    def judged(precision: str, draw: int) -> Tensor:
        """Values at full precision, (states,), of what is chosen at this one."""
        set_precision(model, precision)
        generators = [rng.stream(seed, "precision", draw, i) for i in range(states)]
        chosen = policy.planner(values, memory=None, generators=generators).actions
        set_precision(model, "full")
        return values(chosen[:, None])[:, 0]

    reference, rows = judged("full", 0), []
    for precision, draw in (("full", 1), ("bfloat16", 0), ("bfloat16", 1)):
        value = judged(precision, draw)
        difference = value - reference
        rows.append({"planned in": precision, "draws": "the same" if draw == 0 else "others", "states": states,
                     "value": f"{value.mean():.3f}", "of full precision": f"{reference.mean():.3f}",
                     "difference": f"{difference.mean():.3f}", "standard error": f"{difference.std() / states ** 0.5:.3f}",
                     "better in": f"{(difference > 0).double().mean():.0%}", "note": note})
        show(rows[-1])
    write(out, rows)


if __name__ == "__main__":
    tyro.cli(main)
