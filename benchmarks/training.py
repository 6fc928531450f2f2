"""Seconds to train each setting of the benchmark's simulators, per epoch or sweep and in all, beside the machine's own peak.

    python benchmarks/training.py             # ten minutes on one core
    python benchmarks/training.py --help

Networks train a few epochs on a share of the agents; their total is extrapolated to all agents and epochs, in proportion, and
says so; updates on predictions of many steps are counted apart. Exact solves run to their end, with all agents. Prints Markdown
and writes results/training.csv.
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro
from machine import peaks
from tables import show, write

from lowrank_rl.rl import data
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.contracts import Transitions
from lowrank_rl.rl.models.multistep import TOLD
from lowrank_rl.rl.models.persim import STATE, PerSim, PerSimConfig, fit_persim
from lowrank_rl.rl.policies.uniform import Uniform

AGENTS = 500     # of the paper's data sets


def logs(name: str, agents: int, seed: int) -> Transitions:
    environment = cases.ENVIRONMENTS[name]
    return data.collect(environment, data.agents(environment, agents, seed=seed), torch.arange(agents),
                        Uniform(environment.actions), seed=seed, what="random").transitions()


def operations(model: PerSim) -> float:
    """Additions and multiplications of one entry in one member: products forwards, and twice that backwards."""
    products = sum(layer.weight[0].numel() for network in model.module.modes[1:] for layer in getattr(network, "layers", ()))
    return 3 * 2 * (products + model.module.outputs * model.module.rank)


def exact(name: str, config: PerSimConfig, agents: int, seed: int) -> dict[str, str]:
    """Until it settles."""
    found = logs(name, agents, seed)
    model = fit_persim(found, agents, cases.ENVIRONMENTS[name].actions, config, seed=seed)
    history = model.cp.history_
    return {"unit": "sweep", "entries": len(found.agent), "agents": agents, "measured": len(history),
            "s_per_unit": f"{history[-1]['seconds'] / len(history):.3f}", "units": len(history),
            "total_s": f"{history[-1]['seconds']:.1f}", "extrapolated": "no"}


def network(name: str, config: PerSimConfig, agents: int, epochs: int, seed: int, peak: dict[str, float]) -> dict[str, str]:
    """A few epochs on some agents. The first epoch warms up."""
    found, heard = logs(name, agents, seed), []
    short = replace(config, adam=replace(config.adam, epochs=1 + epochs), multistep=None)
    model = fit_persim(found, agents, cases.ENVIRONMENTS[name].actions, short, seed=seed, progress=heard.append)
    took = (heard[-1]["seconds"] - heard[0]["seconds"]) / epochs
    rate = config.members * len(found.agent) * operations(model) / took / 1e9
    low = model.module.modes[STATE].inner_dtype == torch.bfloat16
    return {"unit": "epoch", "entries": len(found.agent), "agents": agents, "measured": epochs, "s_per_unit": f"{took:.3f}",
            "units": config.adam.epochs, "total_s": f"{took * config.adam.epochs * AGENTS / agents:.0f}",
            "extrapolated": f"from {agents} agents and {epochs} epochs", "gflop_per_s": f"{rate:.0f}",
            "of_peak": f"{rate / peak['peak_bfloat16_gflop_per_s' if low else 'peak_gflop_per_s']:.0%}"}


def multistep(name: str, config: PerSimConfig, agents: int, seed: int) -> dict[str, str]:
    """A few updates on predictions of many steps, whose time does not depend on the agents. The first ones warm up."""
    found, heard = logs(name, agents, seed), []
    short = replace(config, adam=replace(config.adam, epochs=1), multistep=replace(config.multistep, updates=2 * TOLD))
    fit_persim(found, agents, cases.ENVIRONMENTS[name].actions, short, seed=seed, progress=heard.append)
    took, updates = (heard[-1]["seconds"] - heard[-2]["seconds"]) / TOLD, config.multistep.updates
    return {"unit": f"update of {config.multistep.horizon} steps", "entries": len(found.agent), "agents": agents,
            "measured": TOLD, "s_per_unit": f"{took:.3f}", "units": updates, "total_s": f"{took * updates:.0f}",
            "extrapolated": f"from {TOLD} updates"}


def main(agents: int = 50, epochs: int = 2, seed: int = 0, threads: int = 1, note: str = "",
         environments: tuple[str, ...] = tuple(cases.ENVIRONMENTS), settings: tuple[str, ...] = cases.SETTINGS,
         exact_agents: int = AGENTS, out: Path = Path("results/training.csv")) -> None:
    """Seconds to train.

    Args:
        agents: whose logs networks learn here; their total is for 500.
        epochs: that networks train, after one that warms up.
        seed: of data and training.
        threads: torch's.
        note: what should be known of the run, such as who shared the machine.
        environments: of which to train simulators.
        settings: of which to train simulators.
        exact_agents: whose logs exact solves fit.
        out: where to write.
    """
    torch.set_num_threads(threads)
    peak = peaks(threads)
    rows = []
    for name in environments:
        for setting in settings:
            config = cases.LEARNING[setting, name]
            if config.exact:
                parts = [exact(name, config, exact_agents, seed)]
            else:
                parts = [network(name, config, agents, epochs, seed, peak)]
                parts += [multistep(name, config, agents, seed)] if config.multistep else []
            for part in parts:
                rows.append({"environment": name, "settings": setting, "members": config.members, **part, "threads": threads,
                             **{key: f"{value:.0f}" for key, value in peak.items()}, "note": note})
                show(rows[-1])
    write(out, rows)


if __name__ == "__main__":
    tyro.cli(main)
