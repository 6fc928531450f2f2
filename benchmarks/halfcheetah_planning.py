"""What HalfCheetah's planner earns by how it plans and in what, for agents that are not tested: where its settings come from.

    python benchmarks/halfcheetah_planning.py OUT [--dataset random] [--steps 150] [--only price]
    python benchmarks/halfcheetah_planning.py OUT --dataset random-of-25      # simulators of few agents
    python benchmarks/halfcheetah_planning.py OUT --base "two modes"          # about the settings before these

Trains simulators in OUT, or takes those that are there, and plans in them for a few agents other than the five test agents, in
the true environment. Each row changes a setting of the planner or of training, or takes another method's simulators. What is
changed ("base") is the benchmark's, which has one mode of state and action, or what was that before, with two modes; "best" is
that itself. Other methods are among the rows of two modes, as they were trained then and ("today's") as they are now. Prints
Markdown and adds to results/halfcheetah_planning.csv; rows found there are not run again.
"""

import argparse
import hashlib
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tables import add, done, show

from lowrank_rl import rng
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.bench import baselines, cases, pieces, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import DynamicsModel, EpisodeView
from lowrank_rl.rl.models.cadm import CaDMConfig
from lowrank_rl.rl.models.epets import EPETSConfig
from lowrank_rl.rl.models.persim import PerSim, PerSimConfig, fit_persim
from lowrank_rl.rl.plan import CEMConfig
from lowrank_rl.rl.score import upright

NAME = "halfcheetah"
AGENTS = list(range(10, 16))      # test agents are 0 to 4


@dataclass(frozen=True)
class Variant:
    planning: cases.Planning = cases.PLANNING["best", NAME]
    weight: float = cases.UPRIGHT              # of standing upright
    learning: PerSimConfig | EPETSConfig | CaDMConfig | None = None     # None: the benchmark's
    method: str = "persim"                     # whose simulators
    frozen: bool = False                       # agents are known by their logs' mean context, not by their last steps


def two_modes(learning: PerSimConfig) -> PerSimConfig:
    """The benchmark's settings before it had one mode of state and action."""
    return replace(learning, joint=False, state_hidden=(256, 256), action_hidden=(64,),
                   adam=replace(learning.adam, epochs=learning.adam.epochs // 2),
                   multistep=replace(learning.multistep, learning_rate=1e-3))


def variants(cell: Cell, base: str) -> dict[str, Variant]:
    """By what is changed."""
    learning = pieces.learning(cell)
    own = two_modes(learning) if base == "two modes" else None
    trained = two_modes_variants(own) if own else one_mode_variants(learning)
    return {
        "best": Variant(learning=own),
        **{f"weight {w:g}": Variant(weight=w, learning=own) for w in (0.0, 0.5, 1.0, 4.0)},
        **{name: Variant(planning, learning=own) for name, planning in planned().items()},
        **{name: Variant(learning=config) for name, config in trained.items()},
        **(others(cell) if own else {}),
    }


def others(cell: Cell) -> dict[str, Variant]:
    """Other methods' simulators, which have no base."""
    then = {name: before(pieces.learning(replace(cell, method=name))) for name in ("vanilla-cadm", "pe-ts-cadm", "e-pets")}
    deeper = Variant(learning=replace(then["e-pets"], hidden=(200,) * 5), method="e-pets")
    return {
        **{method: Variant(learning=learning, method=method) for method, learning in then.items()},
        **{f"today's {method}": Variant(method=method) for method in then},
        "pe-ts-cadm, one context for each agent": Variant(learning=then["pe-ts-cadm"], method="pe-ts-cadm", frozen=True),
        "e-pets, 5 x 200": deeper,
        "e-pets, 5 x 200, no price": replace(deeper, planning=replace(cases.PLANNING["best", NAME], price=0.0)),
    }


def before(learning: EPETSConfig | CaDMConfig) -> EPETSConfig | CaDMConfig:
    """A baseline's settings before it was trained as PerSim is."""
    kind = type(learning)
    return replace(learning, members=kind.members if kind is EPETSConfig else learning.members, hidden=kind.hidden,
                   descent=replace(kind.descent, updates=kind.descent.updates // 2))


def planned() -> dict[str, cases.Planning]:
    best = cases.PLANNING["best", NAME]
    search = best.planner
    return {
        **{f"price {p:g}": replace(best, price=p) for p in (0.0, 0.3, 3.0, 10.0)},
        **{f"colour {c:g}": replace(best, planner=replace(search, colour=c)) for c in (0.0, 0.5, 1.5)},
        **{f"horizon {h}": replace(best, planner=replace(search, horizon=h)) for h in (10, 15, 30)},
        **{f"{c} candidates": replace(best, planner=replace(search, candidates=c)) for c in (50, 200)},
        "5 rounds": replace(best, planner=replace(search, rounds=5)),
        "the paper's CEM": replace(best, planner=CEMConfig(horizon=search.horizon)),
    }


def one_mode_variants(learning: PerSimConfig) -> dict[str, PerSimConfig]:
    adam, multistep = learning.adam, learning.multistep
    return {
        **{f"rank {rank}": replace(learning, rank=rank) for rank in (10, 25)},
        **{name: replace(learning, members=members) for name, members in (("one member", 1), ("5 members", 5))},
        "half the epochs": replace(learning, adam=replace(adam, epochs=max(1, adam.epochs // 2))),
        "multi-step at a rate of 0.001": replace(learning, multistep=replace(multistep, learning_rate=1e-3)),
        "no multi-step training": replace(learning, multistep=None),
    }


def two_modes_variants(learning: PerSimConfig) -> dict[str, PerSimConfig]:
    adam, multistep = learning.adam, learning.multistep
    longer = replace(learning, joint=True, adam=replace(adam, epochs=2 * adam.epochs))
    return {
        **{f"rank {rank}": replace(learning, rank=rank) for rank in (10, 25)},
        "5 members": replace(learning, members=5),
        "2 x 128": replace(learning, state_hidden=(128, 128)),
        "a quarter of the epochs": replace(learning, adam=replace(adam, epochs=max(1, adam.epochs // 4))),
        "no multi-step training": replace(learning, multistep=None),
        "3 times the multi-step updates": replace(learning, multistep=replace(multistep, updates=3 * multistep.updates)),
        "joint, 4 x 200": replace(learning, joint=True, state_hidden=(200,) * 4),
        **{f"joint, {layers} x 200, one-step training alone, twice the epochs": replace(
            longer, state_hidden=(200,) * layers, multistep=None) for layers in (4, 5, 6)},
        "joint, 5 x 200, twice the epochs, multi-step at a rate of 0.0003": replace(
            longer, state_hidden=(200,) * 5, multistep=replace(multistep, learning_rate=3e-4)),
    }


def say(what: str, share: float) -> None:
    print(f"{what}: {share:.0%}", file=sys.stderr, flush=True)


def simulators(out: Path, cell: Cell, variant: Variant) -> DynamicsModel:
    """Those of a variant, trained unless they are there."""
    cell = replace(cell, method=variant.method)
    if variant.learning is None:
        train.train(out, cell, "cpu", say)
        model = baselines.planned(cell, pieces.load_model(out, cell))
    else:
        model = trained(out, cell, variant.learning)
    return OneContext(model, pieces.load_data(out, cell)) if variant.frozen else model


def trained(out: Path, cell: Cell, learning: PerSimConfig | EPETSConfig | CaDMConfig) -> DynamicsModel:
    """Simulators of other settings than the benchmark's."""
    trained_as = hashlib.sha256(repr(learning).encode()).hexdigest()[:12]
    path = out / f"{cell.dataset}-{cell.method}-{trained_as}.safetensors"
    ours = cell.method == "persim"
    if not path.exists():
        logs, environment = pieces.load_data(out, cell), cases.ENVIRONMENTS[NAME]
        how = {"seed": rng.integer(cell.seed, NAME, cell.method), "progress": lambda entry: say(str(entry), 0.0),
               "checkpoint": path.with_suffix(".checkpoint")}
        model = (fit_persim(logs.transitions(), len(logs), environment.actions, learning, **how) if ours else
                 baselines.fit_simulator(learning, logs, environment, **how))
        model.save(path)
    return PerSim.load(path) if ours else baselines.planned(cell, baselines.load_simulator(cell, path))


class OneContext:
    """A model that recognises agents by their past, and is shown of each agent the mean of the contexts over its log."""

    past = 0

    def __init__(self, model: DynamicsModel, logs: data.Episodes) -> None:
        self.model, self.members, self.noisy, self.unit = model, model.members, model.noisy, model.unit
        self.predict, self.rollout = model.predict, model.rollout
        steps, K, self.rows = logs.transitions(), model.past, {}
        for agent in AGENTS:
            rows = torch.arange(int(logs.start[agent]) + K, int(logs.start[agent + 1]))
            before = rows[:, None] - torch.arange(K, 0, -1)
            view = EpisodeView(rows, steps.agent[rows], steps.state[rows], steps.state[before], steps.action[before],
                               torch.ones(before.shape, dtype=torch.bool))
            self.rows[agent] = model.context(view).mean(1)

    def context(self, view: EpisodeView) -> torch.Tensor:
        return torch.stack([self.rows[agent] for agent in view.agent.tolist()], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dataset", default="random", choices=cases.DATASETS)
    parser.add_argument("--base", default="one mode", choices=("one mode", "two modes"))
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", default="", help="only variants with this in their name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    environment, cell = cases.ENVIRONMENTS[NAME], Cell(NAME, options.dataset, "persim", 1, 0, "best", "small")
    train.make_data(options.out, cell, say)
    train.train(options.out, replace(cell, method="cloned"), "cpu", say)
    guide, covariates = pieces.load_clone(options.out, cell), data.agents(environment, 500, seed=0)
    path = Path("results/halfcheetah_planning.csv")
    rows = done(path)
    for name, variant in variants(cell, options.base).items():
        key = {"base": options.base, "dataset": options.dataset, "variant": name, "steps": str(options.steps)}
        if options.only not in name or any(key.items() <= row.items() for row in rows):
            continue
        model = simulators(options.out, cell, variant)
        policy = cases.planning_policy("best", environment, model, guide, variant.planning)
        policy.score = upright(environment, variant.weight)
        began = time.process_time()
        totals = evaluate.returns(environment, policy, covariates, AGENTS, episodes=1, seed=0, max_steps=options.steps)[0][:, 0]
        took = (time.process_time() - began) / options.steps / len(AGENTS)
        row = {**key, "mean": f"{totals.mean():.1f}", "each": " ".join(f"{x:.0f}" for x in totals),
               "CPU ms per decision": f"{1000 * took:.0f}"}
        show(row)
        add(path, row)


if __name__ == "__main__":
    main()
