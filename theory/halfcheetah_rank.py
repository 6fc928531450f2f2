"""How much of HalfCheetah's transition tensor do few terms hold? There is no exact claim, only a curve of errors over rank.

The tensor agent x (state, dimension) x action holds s' - s as MuJoCo computes it, for agents of random mass and damping, states
from trajectories of the random policy, and random torques; each of the 18 dimensions is in units of its root mean square. Its
rank is whatever the sample's size allows, so what counts is the error: from above by alternating least squares, from below by
the singular values of the unfoldings. The PerSim paper takes 15 terms. A model that only factorises agents from all else
(``PerSimConfig.joint``) meets the unfolding along the agents alone, and can be as good as its singular values say.
`python -m theory.halfcheetah_rank`
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lowrank_rl import check
from lowrank_rl.rl.envs import halfcheetah
from lowrank_rl.rng import numpy_stream, stream
from lowrank_rl.tensor.approximate import core_of, errors
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.epsilon_rank import EpsilonRank, grid
from lowrank_rl.tensor.plots.rank import COLOURS, plot_epsilon_rank
from lowrank_rl.tensor.plots.style import BLUE, GREY, ORANGE
from lowrank_rl.tensor.unfoldings import Unfolding, unfold, unfoldings
from theory.script import save

LOW, HIGH = halfcheetah.ENVIRONMENT.covariate_low, halfcheetah.ENVIRONMENT.covariate_high
NAMES = halfcheetah.ENVIRONMENT.state_names
D = len(NAMES)
SIZES = {"small": (10, 15, 10), "middle": (20, 30, 20), "large": (30, 45, 30)}   # agents, states, actions
MANY = (60, 30, 20)                              # where the agents' rank is to be seen, not their number
PAPER = 15                                       # its rank
RANKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 45, 60)
STEPS = 200                                      # of the trajectories that states are taken from
COARSE = 0.3                                     # of the least possible error may be neglected while searching
SWEEPS, PATIENCE, SLOW = 1000, 20, 2e-4          # ALS ends once PATIENCE sweeps lower the error by less than this share


def transition_tensor(agents: np.ndarray, states: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """s' - s over each dimension's root mean square: agents (N, 2), states (S, 18), actions (A, 6) -> (N, 18 S, A)"""
    def values(agent: np.ndarray, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        return halfcheetah.step(*(torch.from_numpy(x) for x in (agent, state, action))).numpy() - state

    tensor = grid(values, [agents, states, actions], outputs=1).reshape(len(agents), -1, D, len(actions))
    tensor = tensor / np.sqrt(np.mean(tensor**2, axis=(0, 1, 3)))[:, None]
    return tensor.reshape(len(agents), -1, len(actions))


def sampled(seed: int, number: int, sizes: tuple[int, int, int]) -> np.ndarray:
    """The tensor of independent sample ``number``: agents, states of as many other agents' trajectories, actions.

    Each state comes from a random step of a trajectory of its own, under torques uniform in [-1, 1].
    """
    rng = numpy_stream(seed, "halfcheetah rank", number)
    agents, states, actions = sizes
    begin = halfcheetah.reset(states, generator=stream(seed, "halfcheetah rank", "reset", number))
    others, torques = rng.uniform(LOW, HIGH, (states, 2)), rng.uniform(-1, 1, (states, STEPS, 6))
    path = halfcheetah.rollout_states(torch.from_numpy(others), begin, torch.from_numpy(torques)).numpy()
    where = path[np.arange(states), rng.integers(0, STEPS, states)]
    return transition_tensor(rng.uniform(LOW, HIGH, (agents, 2)), where, rng.uniform(-1, 1, (actions, 6)))


def als(tensor: np.ndarray, rank: int, rng: np.random.Generator) -> CP:
    """A CP of a complete tensor of three modes near it in least squares, from its leading singular vectors and noise."""
    factors = []
    for k in range(3):
        u = np.linalg.svd(unfold(tensor, (k,)), full_matrices=False)[0][:, :rank]
        factors.append(0.1 * rng.standard_normal((len(u), rank)))
        factors[k][:, :u.shape[1]] += u
    size, before = np.linalg.norm(tensor), np.inf
    for sweep in range(1, SWEEPS + 1):
        for k in range(3):
            one, two = (factors[j] for j in range(3) if j != k)
            gram = (one.T @ one) * (two.T @ two)
            gram[np.diag_indices(rank)] += 1e-9 * np.trace(gram)
            product = np.einsum("ijr,jr->ir", np.tensordot(np.moveaxis(tensor, k, 0), two, axes=(2, 0)), one)
            factors[k] = np.linalg.solve(gram, product.T).T
            if k < 2:
                factors[k] /= np.linalg.norm(factors[k], axis=0)
        if sweep % PATIENCE == 0:
            error = np.linalg.norm(tensor - CP(np.ones(rank), tuple(factors)).dense()) / size
            if before - error < SLOW * error:
                break
            before = error
    return CP(np.ones(rank), tuple(factors))


def least_error(found: Iterable[Unfolding], rank: int, tensor: np.ndarray) -> float:
    """No CP of that rank has a smaller relative error."""
    return max(u.tail(rank) for u in found) / float(np.linalg.norm(tensor))


def near_cps(tensor: np.ndarray, ranks: Iterable[int], seed: int) -> list[CP]:
    """For each rank, ascending, the best CP found; a larger rank never does worse.

    The search is in the tensor's core, without directions that matter less than what no CP of that rank can reach.
    """
    found, spectra = [], unfoldings(tensor)
    for rank in ranks:
        core = core_of(tensor, COARSE * least_error(spectra, rank, tensor) / np.sqrt(rank) + 1e-14)
        found.append(core.lift(als(core.tensor, rank, numpy_stream(seed, "halfcheetah rank", "als", rank))))
        if len(found) > 1 and errors(tensor, found[-2])[0] < errors(tensor, found[-1])[0]:
            found[-1] = found[-2]
    return found


def curve_of(tensors: list[np.ndarray], ranks: tuple[int, ...], seed: int) -> EpsilonRank:
    """Error over rank of several samples, relative to the values."""
    scale = np.array([np.sqrt(np.mean(tensor**2)) for tensor in tensors])
    both = np.array([[errors(tensor, cp) for cp in near_cps(tensor, ranks, seed)] for tensor in tensors]) / scale[:, None, None]
    least = np.array([[least_error(found, rank, tensor) for rank in ranks]
                      for tensor, found in ((tensor, unfoldings(tensor)) for tensor in tensors)])
    return EpsilonRank(ranks, both[:, :, 0], both[:, :, 1], least, scale, True)


def terms_for(tensor: np.ndarray, epsilon: float) -> list[int]:
    """How large the rank of each unfolding must be for that relative error: agents, states, actions."""
    return [next(r for r in range(len(u.singular) + 1) if u.tail(r) <= epsilon * np.linalg.norm(tensor))
            for u in unfoldings(tensor)]


def agents_alone(tensor: np.ndarray, rank: int) -> float:
    """The relative error of the best sum of so many products of an agent's factor and one of state and action together."""
    return unfoldings(tensor)[0].tail(rank) / float(np.linalg.norm(tensor))


def spread(values: Iterable[float], form: str) -> str:
    """Their range; one number if all print alike."""
    low, high = (format(end(values), form) for end in (min, max))
    return low if low == high else f"{low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/theory"), help="folder for the picture (default: runs/theory)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled agents, states and actions (default: 0)")
    parser.add_argument("--samples", type=int, default=5, help="how many independent samples (default: 5)")
    parser.add_argument("--most", type=int, default=RANKS[-1], help=f"largest rank tried (default: {RANKS[-1]})")
    given = parser.parse_args()
    out = check.writable_folder(given.out)
    check.count("--samples", given.samples)
    check.count("--most", given.most, low=PAPER)
    ranks = tuple(rank for rank in RANKS if rank <= given.most)

    print(f"HalfCheetah's transition tensor, s' - s; {given.samples} samples of agents, mass and damping from {LOW} to {HIGH}")
    tensors = [sampled(given.seed, i, SIZES["middle"]) for i in range(given.samples)]
    print(f"{' x '.join(map(str, SIZES['middle']))} agents x states x actions, {D} dimensions\n\nRank, exactly")
    for name, u in zip(("agent", "state", "action"), unfoldings(tensors[0]), strict=True):
        print(f"  {name:<7} {u.shape[0]} x {u.shape[1]}: rank {u.rank}" + (", all that the sample allows" if u.full else ""))
    print("\nRank that each unfolding needs for a relative error; so does a CP\n  error    agent       state       action")
    for epsilon in (0.2, 0.1, 0.05, 0.02, 0.01):
        needs = np.array([terms_for(tensor, epsilon) for tensor in tensors])
        print(f"  {epsilon:<7}  " + "  ".join(f"{spread(column.tolist(), 'd'):<10}" for column in needs.T))

    curve = curve_of(tensors, ranks, given.seed)
    print("\nError over rank, relative\n" + curve.table())
    for epsilon in (0.1, 0.01):
        at_least = [max(terms_for(tensor, epsilon)) for tensor in tensors]
        done = [[rank for rank, e in zip(ranks, row, strict=True) if e <= epsilon] for row in curve.rms]
        at_most = spread([d[0] for d in done], "d") if all(done) else f"more than the {ranks[-1]} tried"
        print(f"{epsilon:.0%} error: at least {spread(at_least, 'd')} terms; found with {at_most}")

    place = ranks.index(PAPER)
    blind = [np.sqrt(np.mean((t - t.mean(axis=0)) ** 2) / np.mean(t**2)) for t in tensors]
    print(f"\nWhat rank {PAPER} buys: relative error {spread(curve.rms[:, place], '.1%')}; the best model that ignores who the "
          f"agent is has {spread(blind, '.1%')}")
    parts = np.mean([dimension_errors(t, near_cps(t, [PAPER], given.seed)[0]) for t in tensors], axis=0)
    print("  by dimension: " + ", ".join(f"{NAMES[d]} {parts[d]:.1%}" for d in np.argsort(-parts)))
    by_size = {}
    for name, sizes in SIZES.items():
        group = tensors if name == "middle" else [sampled(given.seed, i, sizes) for i in range(given.samples)]
        by_size[name] = curve if name == "middle" else curve_of(group, tuple(r for r in ranks if r <= PAPER), given.seed)
        print(f"  on {' x '.join(map(str, sizes))}: {spread(by_size[name].rms[:, place], '.1%')}, at least "
              f"{spread(by_size[name].least[:, place], '.1%')}")
    many = [sampled(given.seed, i, MANY) for i in range(given.samples)]
    print(f"\nAgents against state and action together, on {' x '.join(map(str, MANY))}: " + ", ".join(
        f"rank {rank} leaves {spread([agents_alone(t, rank) for t in many], '.1%')} (a CP of three modes at least "
        f"{spread([least_error(unfoldings(t), rank, t) for t in many], '.1%')})" for rank in (3, 5, 8, PAPER)))
    save(picture(tensors, curve, by_size, parts), out, "theory-halfcheetah")


def dimension_errors(tensor: np.ndarray, cp: CP) -> np.ndarray:
    """Root mean square error of each of the 18 dimensions, in units of its root mean square."""
    return np.sqrt(np.mean((tensor - cp.dense()).reshape(len(tensor), -1, D, tensor.shape[2]) ** 2, axis=(0, 1, 3)))


def picture(tensors: list[np.ndarray], curve: EpsilonRank, by_size: dict[str, EpsilonRank], parts: np.ndarray) -> Figure:
    """Error over rank with its band; what each unfolding alone would need; errors at the paper's rank."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.2), layout="constrained")
    axis = axes[0]
    plot_epsilon_rank(curve, axis, worst=False, label="found, median and 90% band", colour=BLUE)
    axis.plot(curve.ranks, np.median(curve.least, axis=0), ":", color=BLUE, label="least possible")
    for name, colour in (("small", GREY), ("large", ORANGE)):
        axis.plot(by_size[name].ranks, np.median(by_size[name].rms, axis=0), "--", color=colour,
                  label="found, " + " x ".join(map(str, SIZES[name])))
    axis.axvline(PAPER, color="black", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_xticks([1, 2, 5, 10, 15, 30, 60], ["1", "2", "5", "10", "15", "30", "60"])
    axis.minorticks_off()
    axis.set(title="No rank is exact: error over rank", xlim=(0.9, 1.1 * curve.ranks[-1]))
    axis.legend(fontsize=8)

    axis = axes[1]
    for k, name in enumerate(("agent", "state, dimension", "action")):
        tails = np.array([[u.tail(r) for r in range(len(u.singular))] for u in (unfoldings(t)[k] for t in tensors)])
        tails = tails / np.array([np.linalg.norm(t) for t in tensors])[:, None]
        x = np.arange(tails.shape[1])[1:61]
        axis.plot(x, np.median(tails, axis=0)[1:61], color=COLOURS[k], label=name)
        axis.fill_between(x, tails.min(axis=0)[1:61], tails.max(axis=0)[1:61], color=COLOURS[k], alpha=0.2, linewidth=0)
    axis.axhline(0.01, color="black", linewidth=0.6, linestyle=":")
    axis.set(title="What one mode alone asks for", xlabel="rank of this mode's unfolding", ylabel="least relative error",
             yscale="log", ylim=(1e-3, 1))
    axis.legend(fontsize=8, title="mode", title_fontsize=8)
    axis.grid(alpha=0.3)

    axis = axes[2]
    order = np.argsort(parts)
    axis.barh(np.arange(D), parts[order], color=BLUE)
    axis.set_yticks(np.arange(D), [NAMES[d] for d in order], fontsize=8)
    axis.set(title=f"Error at rank {PAPER}, by dimension", xlabel="error / rms of that dimension's change")
    axis.grid(alpha=0.3, axis="x")
    return figure


if __name__ == "__main__":
    main()
