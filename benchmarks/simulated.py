"""Learned simulators as environments: how fast they are, what is trained in them, whether their intervals hold, and what
pessimism and coverage do. The tables of docs/simulator.md.

    python benchmarks/simulated.py OUT [--only coverage]

Data are the benchmark's random logs of seed 0, kept in OUT with the simulators, and not made anew if they are there:

    networks                 of the benchmark's budget ``small``: CartPole under ``paper`` settings, HalfCheetah under ``best``
    polynomials, splines     CartPole's and MountainCar's exact solves under ``best`` settings, but with five members
    networks of 25 logs      CartPole, ``paper`` settings but for 20 times the epochs: as many updates as 500 logs get

Policies are learned by Stable-Baselines3's PPO and earn their returns in the true environment, without noise in their actions.
"inside" is what they earned at last where they learned, with what the options take off; "ended outside" is the share of
training episodes that ended where members disagree. Adds to results/simulated.csv; rows found there are not run again.
"""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from tables import add, done, show
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl import data, evaluate
from lowrank_rl.rl.behaviour.trained import tester
from lowrank_rl.rl.bench import cases, pieces, train
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.contracts import EpisodeView
from lowrank_rl.rl.models.persim import PerSim, PerSimConfig, fit_persim
from lowrank_rl.rl.policies.uniform import Uniform
from lowrank_rl.rl.simulator import Simulator
from lowrank_rl.rl.simulator_sb3 import SimulatedVecEnv

RESULTS = Path("results/simulated.csv")
NETWORKS = {"cartpole": "paper", "halfcheetah": "best"}      # the settings whose simulators are networks
FEW = 25                                                     # logs
WIDTHS, RUNS, SECONDS = (16, 128, 1024), 7, 1.0
EPISODES, STEPS = 8, 50                                      # of coverage
PPO_SETTINGS: dict[str, dict[str, Any]] = {
    "cartpole": {"n_steps": 128, "batch_size": 256, "learning_rate": 1e-3},
    "halfcheetah": {"n_steps": 128, "batch_size": 512, "n_epochs": 5, "learning_rate": 5e-4, "gamma": 0.98, "gae_lambda": 0.92,
                    "ent_coef": 4e-4, "policy_kwargs": {"net_arch": [64, 64]}},
}
ROUNDS = {"cartpole": 16, "halfcheetah": 64}                 # episodes side by side
LENGTH = {"cartpole": 40_000, "halfcheetah": 400_000}        # steps of training
JUDGED = {"cartpole": 20, "halfcheetah": 3}                  # true episodes
OPTIONS: dict[str, dict[str, dict[str, float]]] = {
    "halfcheetah": {"none": {}, "pessimism=1": {"pessimism": 1.0}, "pessimism=10": {"pessimism": 10.0},
                    "coverage=5, penalty=-20": {"coverage": 5.0, "penalty": -20.0}},
    "cartpole": {"none": {}, "pessimism=1": {"pessimism": 1.0}, "pessimism=10": {"pessimism": 10.0},
                 "coverage=5": {"coverage": 5.0}},
}
Run = tuple[dict[str, str], Callable[[], dict]]


@dataclass(frozen=True)
class Options:
    out: tyro.conf.Positional[Path]
    """where data sets and simulators are kept"""
    only: Literal["speed", "training", "coverage", "options"] | None = None
    """one part instead of all"""
    results: Path = RESULTS


def cell(environment: str) -> Cell:
    return Cell(environment, "random", "persim", 1, 0, NETWORKS.get(environment, "best"), "small")


@cache
def learned(out: Path, environment: str, kind: str) -> tuple[PerSim, data.Episodes]:
    """A simulator, and the logs that it learned from."""
    train.make_data(out, cell(environment), lambda what, share: None)
    logged = pieces.load_data(out, cell(environment))
    if kind == "networks":
        train.train(out, cell(environment), "cpu", lambda what, share: None)
        return pieces.load_model(out, cell(environment)), logged
    if kind == f"networks of {FEW} logs":
        config, few = cases.LEARNING["paper", environment], first(logged, FEW)
        longer = replace(config.adam, epochs=config.adam.epochs * len(logged) // FEW)
        return kept(out, environment, kind, few, replace(config, adam=longer)), few
    config = cases.LEARNING["best", environment]
    solver = replace(config.exact.solver, spare=1)
    return kept(out, environment, kind, logged, replace(config, members=5, exact=replace(config.exact, solver=solver))), logged


def first(episodes: data.Episodes, count: int) -> data.Episodes:
    """The first logs, which are those of the first agents."""
    end = episodes.start[count]
    rows = {name: getattr(episodes, name)[:end] for name in ("state", "action", "next_state", "reward")}
    each = {name: getattr(episodes, name)[:count] for name in ("covariates", "agent", "terminated")}
    return replace(episodes, start=episodes.start[:count + 1], **rows, **each)


def kept(out: Path, environment: str, kind: str, logged: data.Episodes, config: PerSimConfig) -> PerSim:
    path = out / "models" / f"simulated-{environment}-{kind.replace(' ', '-')}.safetensors"
    if not path.exists():
        check.writable_folder(path.parent)
        fit_persim(logged.transitions(), len(logged), cases.ENVIRONMENTS[environment].actions, config, seed=0).save(path)
    return PerSim.load(path)


def simulator(out: Path, environment: str, kind: str, **options: float) -> Simulator:
    model, logged = learned(out, environment, kind)
    return Simulator(model, cases.ENVIRONMENTS[environment], logged, **options)


def named(environment: str, kind: str, what: str, agent: int | None = None, seed: int | None = None) -> dict[str, str]:
    return {"environment": environment, "simulator": kind, "what": what, "agent": "" if agent is None else str(agent + 1),
            "seed": "" if seed is None else str(seed)}


def speeds(out: Path) -> Iterator[Run]:
    for environment in NETWORKS:
        for width in (0, *WIDTHS):
            head = named(environment, "networks", f"vector_env, {width}" if width else "env")
            yield head, partial(speed, out, environment, width)


def speed(out: Path, environment: str, width: int) -> dict:
    """Steps per second of CPU time, of one episode after the other (width 0) or ``width`` side by side, resets included."""
    simulated, rates = simulator(out, environment, "networks"), []
    env = simulated.vector_env([row % 5 for row in range(width)]) if width else simulated.env(0)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(100)]
    for run in range(RUNS):
        env.reset(seed=run)
        steps, begun, started = 0, 0, time.process_time()      # begun: rows whose next step only begins an episode
        while time.process_time() - started < SECONDS:
            _, _, terminated, truncated, _ = env.step(actions[steps // (width or 1) % len(actions)])
            steps += (width or 1) - begun
            if width:
                begun = int((terminated | truncated).sum())
            elif terminated or truncated:
                env.reset()
        rates.append(steps / (time.process_time() - started))
    return {"members": simulated.model.members, "steps per second": f"{np.median(rates):.4g}", "least": f"{min(rates):.4g}",
            "most": f"{max(rates):.4g}", "runs": RUNS, "load": f"{os.getloadavg()[0]:.1f}"}


def trainings(out: Path) -> Iterator[Run]:
    for agent in range(5):
        for seed in range(3):
            for kind in ("networks", ""):
                head = named("cartpole", kind, "learned simulator" if kind else "true environment", agent, seed)
                yield head, partial(train_in, out, "cartpole", kind, agent, seed)


def options_tried(out: Path) -> Iterator[Run]:
    for environment, kind, agents, seeds in (("halfcheetah", "networks", (0, 3), 1),
                                             ("cartpole", f"networks of {FEW} logs", (0, 2, 4), 2)):
        for what, options in OPTIONS[environment].items():
            for agent in agents:
                for seed in range(seeds):
                    head = named(environment, kind, what, agent, seed)
                    yield head, partial(train_in, out, environment, kind, agent, seed, **options)


def train_in(out: Path, environment: str, kind: str, agent: int, seed: int, **options: float) -> dict:
    """Train a policy in a simulator, or if its kind is "" in the true environment, and see what it earns in truth."""
    where, started = cases.ENVIRONMENTS[environment], time.process_time()
    covariates = data.agents(where, cases.BUDGETS["small", environment].agents, seed=0)
    if kind:
        rounds = SimulatedVecEnv(simulator(out, environment, kind, **options), [agent] * ROUNDS[environment])
    else:
        true = dict(zip(where.covariate_names, covariates[agent].tolist(), strict=True))
        rounds = DummyVecEnv([partial(gymnasium.make, where.gym_id, **true)] * ROUNDS[environment])
    rounds, watch = VecMonitor(rounds), Watch()
    if environment == "halfcheetah":
        rounds = VecNormalize(rounds)
    learner = PPO("MlpPolicy", rounds, seed=seed, device="cpu", **PPO_SETTINGS[environment])
    learner.learn(LENGTH[environment], callback=watch)
    inside = [episode["r"] for episode in learner.ep_info_buffer]
    seen = partial(_frozen, rounds) if environment == "halfcheetah" else np.asarray
    found, _ = evaluate.returns(where, Acting(learner, seen), covariates, [agent], episodes=JUDGED[environment], seed=0)
    return {"steps": LENGTH[environment], "episodes": JUDGED[environment], "return": f"{found.mean():.2f}",
            "sd": f"{found.std():.2f}", "inside": f"{np.mean(inside):.2f}", "trained episodes": watch.ended,
            "ended outside": f"{watch.outside / watch.ended:.4f}", "CPU seconds": f"{time.process_time() - started:.0f}"}


class Watch(BaseCallback):
    """Counts episodes, and those that ended outside of what the logs cover."""

    ended, outside = 0, 0

    def _on_step(self) -> bool:
        self.ended += int(self.locals["dones"].sum())
        self.outside += sum(info.get("outside", False) for info in self.locals["infos"])
        return True


class Acting:
    """A policy of Stable-Baselines3, without noise, as one of ours."""

    past = 0

    def __init__(self, learner: PPO, seen: Callable[[np.ndarray], np.ndarray]) -> None:
        self.learner, self.seen = learner, seen

    def reset(self, agent: Tensor) -> None:
        pass

    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        action = torch.as_tensor(self.learner.predict(self.seen(view.state.numpy()), deterministic=True)[0])
        return action[:, None].long() if action.ndim == 1 else action.double()


def _frozen(rounds: VecNormalize, state: np.ndarray) -> np.ndarray:
    return rounds.normalize_obs(state)      # its mean and deviation change in its own steps only


def coverages(out: Path) -> Iterator[Run]:
    for environment, kind in (("mountaincar", "splines"), ("cartpole", "networks"), ("cartpole", "polynomials"),
                              ("halfcheetah", "networks")):
        for what in ("random actions", "test policy"):
            yield named(environment, kind, what), partial(coverage, out, environment, kind, what)


def coverage(out: Path, environment: str, kind: str, what: str) -> dict:
    """Share of true episodes' numbers (steps x state dimensions) within intervals of 90%, and of their returns.

    Each true episode's actions are given to the simulator, from its start. Where the truth goes on and fewer than two members
    do, there is no interval, which counts as outside of it ("blank").
    """
    where, simulated = cases.ENVIRONMENTS[environment], simulator(out, environment, kind)
    covariates = data.agents(where, cases.BUDGETS["small", environment].agents, seed=0)
    agents = torch.arange(5).repeat_interleave(EPISODES)
    policy = Uniform(where.actions) if what == "random actions" else tester(where, len(covariates))
    real = data.collect(where, covariates[agents], agents, policy, seed=0, what="coverage", max_steps=STEPS)
    found: dict[str, list[np.ndarray]] = {"within": [], "members' quantiles": [], "blank": []}
    returns = []
    for episode, (begin, end) in enumerate(zip(real.start[:-1], real.start[1:], strict=True)):
        said = simulated.counterfactual(int(real.agent[episode]), real.action[begin:end], start=real.state[begin])
        true = real.next_state[begin:end]
        states, low, high = (_as_long(x, len(true)) for x in (said.states, said.low[None], said.high[None]))
        with np.errstate(invalid="ignore"):
            found["within"].append((true >= low[0]) & (true <= high[0]))
            least, most = _quantiles(states)
            found["members' quantiles"].append((true >= least) & (true <= most))
        found["blank"].append(np.isnan(low[0]))
        returns.append(said.interval[0] - 1e-9 <= real.reward[begin:end].sum() <= said.interval[1] + 1e-9)
    return {"members": simulated.model.members, "episodes": len(real), "steps": int(real.lengths.sum()),
            **{name: f"{np.concatenate([each.ravel() for each in x]).mean():.4f}" for name, x in found.items()},
            "returns within": f"{np.mean(returns):.4f}"}


def _as_long(x: np.ndarray, steps: int) -> np.ndarray:
    """(P, any, D) without its first state, blank from where it ends: (P, steps, D)."""
    out = np.full((len(x), steps, x.shape[2]), np.nan)
    out[:, :x.shape[1] - 1] = x[:, 1:]
    return out


def _quantiles(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 5% and 95% quantiles of those members that run, NaN where none does. states (M, T, D)"""
    out = np.full((2, *states.shape[1:]), np.nan)
    running = ~np.isnan(states).all((0, 2))
    out[:, running] = np.nanquantile(states[:, running], [0.05, 0.95], axis=0)
    return out[0], out[1]


PARTS: dict[str, Callable[[Path], Iterator[Run]]] = {"speed": speeds, "training": trainings, "coverage": coverages,
                                                     "options": options_tried}


def main(options: Options) -> None:
    torch.set_num_threads(1)
    made_with = {"torch": torch.__version__, "stable-baselines3": version("stable-baselines3")}
    for part in [options.only] if options.only else PARTS:
        for head, run in PARTS[part](options.out):
            head, rows = {"part": part, **head}, done(options.results)
            if not any(head.items() <= row.items() for row in rows):
                row = {**head, **run(), **made_with}
                show(row)
                add(options.results, row)


if __name__ == "__main__":
    main(tyro.cli(Options))
