"""How many agents and steps make MountainCar's (rank 3) and CartPole's (rank 5) transition tensors recoverable?

States are cut into cells, so that the tensor agent x (cell, dimension) x action holds the motion from every cell's centre, and
its rank is exact (``proposition1``, ``cartpole_rank``). An agent's trajectory observes the entries of the cells and actions
that it comes by; which ones, the policy decides:

    random      actions at random; trajectories begin anywhere
    from rest   actions at random; trajectories begin as the environment does
    block       the first action for half of the steps, then the agent's own one (case (ii) of the PerSim paper, section 3)
    pure        the agent's own action, always; agents share the actions out among themselves

Predicted: which entries the pattern determines locally, in a typical tensor of that rank (``identify``: no value is needed) and
in this very one (``cramer_rao`` at exact terms). This tensor has many exact factorisations, and what is fixed near one may be
free near another, so an entry counts if it is fixed in a typical tensor and near each factorisation that we know. Confirmed:
``CPCompletion`` is fitted to the observed entries and compared with all. `python -m theory.recovery`
"""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning

from lowrank_rl import check
from lowrank_rl.rl.contracts import Environment
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rng import numpy_stream, stream
from lowrank_rl.tensor.bounds import cramer_rao
from lowrank_rl.tensor.completion import CPCompletion
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.identify import identify
from lowrank_rl.tensor.pattern import Pattern
from lowrank_rl.tensor.patterns import visited
from lowrank_rl.tensor.plots.rank import COLOURS
from theory.cartpole_rank import five_terms, mixed
from theory.proposition1 import PUSHES, between_actions, between_agents, three_terms
from theory.script import save

KINDS = ("random", "from rest", "block", "pure")
EPISODE = 25        # steps of a trajectory at most, before the next begins; one that leaves the cells ends sooner
CLOSE = 0.01        # an entry is recovered, if it is missed by less than this share of its dimension's root mean square
ENOUGH = 0.95       # a tensor is recoverable, if this share of its entries is


@dataclass(frozen=True, eq=False)
class World:
    environment: Environment
    rank: int                       # of its exact terms
    edges: tuple[np.ndarray, ...]   # of the cells, for each dimension of the state, in its units

    @property
    def centres(self) -> np.ndarray:
        """(S, D)"""
        middle = [(edge[1:] + edge[:-1]) / 2 for edge in self.edges]
        return np.stack([axis.ravel() for axis in np.meshgrid(*middle, indexing="ij")], axis=1)

    def cell(self, states: np.ndarray) -> np.ndarray:
        """The row of ``centres`` that each state (B, D) belongs to, -1 outside: (B,)"""
        place = np.stack([np.searchsorted(edge, x, side="right") - 1 for edge, x in zip(self.edges, states.T, strict=True)])
        sizes = tuple(len(edge) - 1 for edge in self.edges)
        inside = np.logical_and.reduce([(p >= 0) & (p < n) for p, n in zip(place, sizes, strict=True)])
        return np.where(inside, np.ravel_multi_index(place * inside, sizes), -1)

    def agents(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Covariates (count, E) from the paper's range."""
        return rng.uniform(self.environment.covariate_low, self.environment.covariate_high,
                           (count, len(self.environment.covariate_low)))

    def terms(self, agents: np.ndarray) -> CP:
        """The exact terms of s' - s at the centres, each dimension in units of its root mean square."""
        if self.environment is mountaincar.ENVIRONMENT:
            cp = three_terms("Gymnasium, unclipped", agents[:, 0], self.centres, PUSHES, difference=True)
        else:
            cp = five_terms(agents, self.centres, difference=True)
        D = len(self.edges)
        size = np.sqrt(np.mean(cp.dense().reshape(len(agents), -1, D, cp.shape[2]) ** 2, axis=(0, 1, 3)))
        return CP(cp.weights, (cp.factors[0], cp.factors[1] / np.tile(size, len(self.centres))[:, None], cp.factors[2]))


WORLDS = {
    "MountainCar": World(mountaincar.ENVIRONMENT, 3, (np.linspace(-1.1, 0.4, 7), np.linspace(-0.06, 0.06, 5))),
    "CartPole": World(cartpole.ENVIRONMENT, 5, (np.array([-2.4, 2.4]), np.linspace(-1.2, 1.2, 3), np.linspace(-0.2, 0.2, 5),
                                                np.linspace(-1.6, 1.6, 5))),
}


def walked(world: World, agents: np.ndarray, steps: int, kind: str, *, seed: int) -> tuple[np.ndarray, float, np.ndarray]:
    """Where trajectories go, as the environment itself moves: ((agent, cell, action) of each step, trajectories per agent,
    states (N steps, D)).

    Raises:
        ValueError: an unknown kind.
    """
    check.known("kind", kind, KINDS)
    count, actions = len(agents), world.environment.actions.n
    rng, generator = numpy_stream(seed, "recovery", "walked"), stream(seed, "recovery", "reset")
    low, high = np.array([(edge[0], edge[-1]) for edge in world.edges]).T
    own, covariates = np.arange(count) % actions, torch.from_numpy(agents)

    def begin(n: int) -> np.ndarray:
        anywhere = rng.uniform(low, high, (n, len(low)))
        return world.environment.reset(n, generator=generator).numpy() if kind == "from rest" else anywhere

    state, age, begun, rows, states = begin(count), np.zeros(count, dtype=int), count, [], []
    for t in range(steps):
        action = rng.integers(0, actions, count)
        if kind == "pure" or (kind == "block" and 2 * t >= steps):
            action = own
        elif kind == "block":
            action = np.zeros(count, dtype=int)
        rows.append(np.stack([np.arange(count), world.cell(state), action], axis=1))
        states.append(state.copy())
        state = world.environment.step(covariates, torch.from_numpy(state), torch.from_numpy(action)[:, None]).numpy()
        age += 1
        over = (world.cell(state) < 0) | (age >= EPISODE)
        state[over], age[over] = begin(int(over.sum())), 0
        begun += int(over.sum()) if t + 1 < steps else 0
    return np.concatenate(rows), begun / count, np.concatenate(states)


def pattern_of(world: World, walk: np.ndarray, count: int) -> Pattern:
    """The entries that steps (agent, cell, action) observe: each all dimensions of its cell."""
    D = len(world.edges)
    entries = np.concatenate([walk * [1, D, 1] + [0, d, 0] for d in range(D)])
    return visited(entries, (count, len(world.centres) * D, world.environment.actions.n))


def everywhere(shape: tuple[int, ...]) -> np.ndarray:
    """The coordinates of all entries, (entries, K)."""
    return np.indices(shape).reshape(len(shape), -1).T


def factorisations(world: World, terms: CP) -> list[CP]:
    """Exact terms of the same tensor that are really different."""
    if world.environment is mountaincar.ENVIRONMENT:
        return [terms, between_agents(terms), between_actions(terms)]
    return [terms, mixed(terms, seed=0)]


def twin(terms: CP) -> CP:
    """Another tensor of rank 3 for MountainCar that agrees in all that a block pattern can see, and nowhere else.

    Under the first action, a_0, the term of the push can be made to vanish: base + a_0 gain takes it over. What is left of it
    is an agent's number times an action's, of which only the products of agents and their own actions are seen. So agents of
    action k may have k + 1 for 1, if the action has 1 / (k + 1) of what it had.
    """
    agent, state, action = (factor.copy() for factor in terms.factors)
    first = action[0, 2]
    scale = 1.0 + np.arange(len(action))
    agent[:, 2] = scale[np.arange(len(agent)) % len(action)]
    state[:, 0] += first * state[:, 2]
    action[:, 2] = (action[:, 2] - first) / scale
    return CP(terms.weights, (agent, state, action))


def determined(pattern: Pattern, terms: CP) -> np.ndarray:
    """Which entries the pattern determines locally near these exact terms: dense, bool."""
    return np.isfinite(cramer_rao(pattern, terms, 1.0, everywhere(terms.shape))).reshape(terms.shape)


def completed(pattern: Pattern, tensor: np.ndarray, rank: int, *, seed: int) -> np.ndarray:
    """Errors of all entries after completion from the pattern's, dense. The data have no noise, so the ridge is tiny."""
    model = CPCompletion(rank=rank, regularization=1e-6, tol=1e-9, max_iter=2000, random_state=seed)
    with warnings.catch_warnings():   # of what the data leave open: that is what is measured here
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        return np.abs(model.fit(pattern.observe(tensor, seed=seed)).cp_.dense() - tensor)


@dataclass(frozen=True)
class Outcome:
    """Shares of all entries, of one pattern."""
    trajectories: float   # per agent
    observed: float
    typical: float        # locally identifiable in a typical tensor of that rank
    predicted: float      # and in this one, near each factorisation known
    recovered: float      # completed within CLOSE
    sound: float          # the recovered share of those predicted


def outcome(world: World, kind: str, count: int, steps: int, *, rank: int | None = None, seed: int) -> Outcome:
    """Predict and confirm for ``count`` agents of ``steps`` steps each; completion with another rank than the exact one."""
    agents = world.agents(numpy_stream(seed, "recovery", "agents"), count)
    terms = world.terms(agents)
    walk, trajectories, _ = walked(world, agents, steps, kind, seed=seed)
    pattern = pattern_of(world, walk, count)
    typical = identify(pattern, world.rank).mask()
    sure = np.logical_and.reduce([typical, *(determined(pattern, cp) for cp in factorisations(world, terms))])
    close = completed(pattern, terms.dense(), world.rank if rank is None else rank, seed=seed) < CLOSE
    return Outcome(trajectories, pattern.density, float(typical.mean()), float(sure.mean()), float(close.mean()),
                   float(close[sure].mean()))


def mean_of(outcomes: list[Outcome]) -> Outcome:
    """Field by field."""
    return Outcome(*(float(np.mean([getattr(o, name) for o in outcomes])) for name in vars(outcomes[0])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/theory"), help="folder for the picture (default: runs/theory)")
    parser.add_argument("--seed", type=int, default=0, help="the first (default: 0)")
    parser.add_argument("--repeats", type=int, default=3, help="how many seeds, one after the other (default: 3)")
    parser.add_argument("--agents", type=int, nargs="+", default=[6, 12, 24, 48], help="how many (default: 6 12 24 48)")
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 60, 200], help="of each agent (default: 20 60 200)")
    given = parser.parse_args()
    out = check.writable_folder(given.out)
    for name in ("repeats", "agents", "steps"):
        for number in np.atleast_1d(getattr(given, name)).tolist():
            check.count(f"--{name}", number)
    seeds = range(given.seed, given.seed + given.repeats)
    print(f"Shares of all entries, mean of {given.repeats} seeds: observed; determined in a typical tensor of that rank; "
          f"predicted, that is,\nin this one too; recovered to {CLOSE:.0%} by completion; recovered of those predicted")
    table = {}
    for name, world in WORLDS.items():
        actions = world.environment.actions.n
        print(f"\n{name}: rank {world.rank}, {len(world.centres)} cells, {actions} actions\n"
              "  pattern    agents  steps  trajectories  observed  typical  predicted  recovered  of predicted")
        for kind in KINDS:
            for count in given.agents:
                for steps in given.steps:
                    found = mean_of([outcome(world, kind, count, steps, seed=seed) for seed in seeds])
                    table[name, kind, count, steps] = found
                    print(f"  {kind:<9}  {count:<6}  {steps:<5}  {found.trajectories:<12.1f}  {found.observed:<8.2f}  "
                          f"{found.typical:<7.2f}  {found.predicted:<9.2f}  {found.recovered:<9.2f}  {found.sound:.2f}")
    print(f"\nFewest steps per agent, of those tried, for {ENOUGH:.0%} of the entries: predicted / recovered")
    for name in WORLDS:
        for kind in KINDS:
            both = [[enough(table, name, kind, count, what) for what in ("predicted", "recovered")] for count in given.agents]
            print(f"  {name:<12} {kind:<10} " + "   ".join(
                f"{count} agents: {' / '.join(pair)}" for count, pair in zip(given.agents, both, strict=True)))
    count, steps = given.agents[-1], given.steps[-1]
    world = WORLDS["CartPole"]
    few = mean_of([outcome(world, "block", count, steps, rank=4, seed=seed) for seed in seeds])
    print(f"\nCartPole, block, {count} agents of {steps} steps, completed with 4 terms, the fifth being tiny: "
          f"{few.recovered:.2f} recovered")
    world = WORLDS["MountainCar"]
    agents = world.agents(numpy_stream(given.seed, "recovery", "agents"), count)
    walk, _, states = walked(world, agents, steps, "random", seed=given.seed)
    terms = world.terms(agents)
    apart = np.abs(terms.dense() - twin(terms).dense())
    seen = pattern_of(world, walked(world, agents, steps, "block", seed=given.seed)[0], count).mask()
    print(f"MountainCar, block: another tensor of rank 3 differs by at most {apart[seen].max():.0e} in what was seen, and by "
          f"up to {apart.max():.2f} elsewhere (in units of the rms of a dimension)")
    alone = visited(np.stack([walk[:, 0], np.arange(len(walk)), walk[:, 2]], axis=1),
                    (count, len(np.unique(states, axis=0)), world.environment.actions.n))
    print(f"MountainCar, random, without cells: {len(alone):,} states, each seen once; beyond them rank {world.rank} "
          f"determines {identify(alone, world.rank).share - alone.density:.1%} of the entries")
    save(picture(table, given.agents, given.steps), out, "theory-recovery")


def enough(table: dict[tuple, Outcome], name: str, kind: str, count: int, what: str) -> str:
    """The fewest steps for which that share is ENOUGH."""
    steps = [key[3] for key, found in table.items() if key[:3] == (name, kind, count) and getattr(found, what) >= ENOUGH]
    return str(min(steps)) if steps else "none"


def picture(table: dict[tuple, Outcome], agents: list[int], steps: list[int]) -> Figure:
    """Shares over steps, for each pattern: predicted as lines, recovered as dots."""
    figure, axes = plt.subplots(len(WORLDS), len(KINDS), figsize=(13, 6), layout="constrained", sharex=True, sharey=True)
    for row, name in zip(axes, WORLDS, strict=True):
        for axis, kind in zip(row, KINDS, strict=True):
            for colour, count in zip(COLOURS, agents, strict=False):
                found = [table[name, kind, count, number] for number in steps]
                axis.plot(steps, [o.typical for o in found], ":", color=colour, linewidth=1)
                axis.plot(steps, [o.predicted for o in found], "-", color=colour, label=f"{count} agents")
                axis.plot(steps, [o.recovered for o in found], "o", color=colour, markersize=6, alpha=0.8)
            axis.set(title=f"{name}, {kind}", xscale="log", ylim=(0, 1.04))
            axis.set_xticks(steps, [str(number) for number in steps])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("steps per agent")
    for axis in axes[:, 0]:
        axis.set_ylabel("share of all entries")
    axes[0, 0].plot([], [], ":", color="black", linewidth=1, label="determined, typical tensor")
    axes[0, 0].plot([], [], "-", color="black", label="determined, this tensor")
    axes[0, 0].plot([], [], "o", color="black", label="recovered by completion")
    axes[0, 1].legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, loc="upper left")
    return figure


if __name__ == "__main__":
    main()
