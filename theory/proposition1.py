"""Proposition 1 of PerSim: MountainCar's transition tensor, agent x (state, dimension) x action, has CP rank 3.

    paper      x' = x + v - g cos(3x) / 2 + a / 2,   v' = v - g cos(3x) + a
    Gymnasium  v' = v - g cos(3x) + a,               x' = x + v'               (then clipped; a is the push)

Agents differ in gravity g. Both have the form  1 o base o 1  +  g o slope o 1  +  1 o gain o a,  so three terms suffice; the
paper shows that much. That two do not is shown here, by the rank of the state unfolding. `python -m theory.proposition1`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lowrank_rl.rl.envs import mountaincar
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.compare import factor_match_score
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.epsilon_rank import EpsilonRank, epsilon_rank, grid
from lowrank_rl.tensor.plots.rank import COLOURS, plot_epsilon_rank
from lowrank_rl.tensor.rank_bounds import lower_bound
from lowrank_rl.tensor.unfoldings import Unfolding, unfoldings
from lowrank_rl.tensor.uniqueness import freedom, uniqueness
from theory.script import options, save

Step = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]   # gravity (B,), state (B, 2), push (B,) -> next state (B, 2)
PUSHES = mountaincar.FORCE * np.array([-1.0, 0.0, 1.0])
GRAVITIES = mountaincar.ENVIRONMENT.covariate_low[0], mountaincar.ENVIRONMENT.covariate_high[0]
ROUNDING = 4e-16   # how far an entry may be off: s is of size 1, so this holds for the smaller s' - s too
REGIONS = ("never clipped", "top speed", "left wall", "right end")


def paper_step(gravity: np.ndarray, state: np.ndarray, push: np.ndarray) -> np.ndarray:
    """The equation in section 3 of the paper; its action is the acceleration itself."""
    x, v = state.T
    slope = gravity * np.cos(3 * x)
    return np.stack([x + v - slope / 2 + push / 2, v - slope + push], axis=1)


def unclipped_step(gravity: np.ndarray, state: np.ndarray, push: np.ndarray) -> np.ndarray:
    """Gymnasium's dynamics (semi-implicit Euler) where neither speed limit nor walls act."""
    x, v = state.T
    next_v = v + push - gravity * np.cos(3 * x)
    return np.stack([x + next_v, next_v], axis=1)


def clipped_step(gravity: np.ndarray, state: np.ndarray, push: np.ndarray) -> np.ndarray:
    """The environment itself, with its speed limit and walls."""
    action = torch.from_numpy(np.round(push / mountaincar.FORCE) + 1)[:, None]
    return mountaincar.step(torch.from_numpy(gravity)[:, None], torch.from_numpy(state), action).numpy()


STEPS: dict[str, Step] = {"paper": paper_step, "Gymnasium, unclipped": unclipped_step}


def transition_tensor(step: Step, gravities: np.ndarray, states: np.ndarray, pushes: np.ndarray, *,
                      difference: bool = False) -> np.ndarray:
    """s', or s' - s, of N agents in S states under A pushes: (N, 2 S, A); row 2 i + d of mode 1 is dimension d of state i."""
    def values(gravity: np.ndarray, state: np.ndarray, push: np.ndarray) -> np.ndarray:
        return step(gravity, state, push) - difference * state

    return grid(values, [gravities, states, pushes], outputs=1)


def three_terms(dynamics: str, gravities: np.ndarray, states: np.ndarray, pushes: np.ndarray, *,
                difference: bool = False) -> CP:
    """The terms 1 o base o 1, g o slope o 1 and 1 o gain o a of ``STEPS[dynamics]``."""
    x, v = states.T
    half = 0.5 if dynamics == "paper" else 1.0
    base = np.stack([v, 0 * v] if difference else [x + v, v], axis=1)
    slope = -np.cos(3 * x)[:, None] * [half, 1]
    gain = np.broadcast_to([half, 1.0], states.shape)
    one_agent, one_action = np.ones_like(gravities), np.ones_like(pushes)
    return CP(np.ones(3), (np.stack([one_agent, gravities, one_agent], axis=1),
                           np.stack([base.ravel(), slope.ravel(), gain.ravel()], axis=1),
                           np.stack([one_action, one_action, pushes], axis=1)))


def between_agents(terms: CP) -> CP:
    """The same tensor, other terms: each agent lies between the lightest and the heaviest one.

    (1 - t) o unpushed motion of the lightest o 1  +  t o that of the heaviest o 1  +  1 o gain o a,  t from 0 to 1 in g.
    """
    agent, state, action = terms.factors
    g = agent[:, 1]
    low, high = g.min(), g.max()
    t = (g - low) / (high - low)
    base, slope, gain = state.T
    return CP(np.ones(3), (np.stack([1 - t, t, agent[:, 2]], axis=1),
                           np.stack([base + low * slope, base + high * slope, gain], axis=1), action))


def between_actions(terms: CP) -> CP:
    """The same tensor, other terms again: each push lies between full left and full right, and gravity is added."""
    agent, state, action = terms.factors
    a = action[:, 2]
    low, high = a.min(), a.max()
    t = (a - low) / (high - low)
    base, slope, gain = state.T
    one = np.ones_like(agent[:, 0])
    return CP(np.ones(3), (np.stack([one, agent[:, 1], one], axis=1),
                           np.stack([base + low * gain, slope, base + high * gain], axis=1),
                           np.stack([1 - t, np.ones_like(t), t], axis=1)))


def checked_unfoldings(tensor: np.ndarray) -> tuple[Unfolding, ...]:
    """Unfoldings whose singular values count above what errors of ROUNDING in every entry could make them."""
    limit = ROUNDING * np.sqrt(tensor.size)
    return tuple(replace(u, threshold=max(u.threshold, limit)) for u in unfoldings(tensor))


def region_of(states: np.ndarray, gravities: np.ndarray) -> np.ndarray:
    """For each state the number of the first of REGIONS, walls first, whose limit acts for some agent and push: (S,)"""
    free = transition_tensor(unclipped_step, gravities, states, PUSHES).reshape(len(gravities), len(states), 2, 3)
    x, v = free[:, :, 0], free[:, :, 1]
    v = np.clip(v, -mountaincar.TOP_SPEED, mountaincar.TOP_SPEED)
    fast = (v != free[:, :, 1]).any(axis=(0, 2))
    x = states[:, 0, None] + v
    left, right = (x <= mountaincar.LEFT).any(axis=(0, 2)), (x > mountaincar.RIGHT).any(axis=(0, 2))
    return np.select([left, right, fast], [2, 3, 1], 0)


def sampled(rng: np.random.Generator, agents: int, states: int) -> tuple[np.ndarray, np.ndarray]:
    """Gravities (agents,) from the paper's range, and states (states, 2) from the whole box."""
    gravity = rng.uniform(*GRAVITIES, agents)
    return gravity, rng.uniform(*mountaincar.BOUNDS, (states, 2))


def clipped_curves(seed: int, *, ranks: range = range(1, 7), samples: int = 5, agents: int = 40,
                   states: int = 100) -> dict[str, EpsilonRank]:
    """Error over rank of the clipped s' - s, for states of each region alone and for all of them."""
    def sample(region: int | None) -> Callable[[np.random.Generator], np.ndarray]:
        def draw(rng: np.random.Generator) -> np.ndarray:
            gravity, many = sampled(rng, agents, 200 * states)
            kept = many if region is None else many[region_of(many, gravity) == region]
            return transition_tensor(clipped_step, gravity, kept[:states], PUSHES, difference=True)
        return draw

    found = {name: epsilon_rank(sample(i), ranks, samples=samples, seed=seed) for i, name in enumerate(REGIONS)}
    return found | {"all states": epsilon_rank(sample(None), ranks, samples=samples, seed=seed)}


def main() -> None:
    given = options(__doc__)
    rng = numpy_stream(given.seed, "theory", "proposition1")
    gravities, states = sampled(rng, 30, 100)
    print("Proposition 1: MountainCar's transition tensor has CP rank 3.\n"
          f"{len(gravities)} gravities from {GRAVITIES}, {len(states)} states from the whole box, pushes {PUSHES.tolist()}\n")
    spectra = {}
    for name, step in STEPS.items():
        for difference in (False, True):
            what = f"{name}, s' - s" if difference else f"{name}, s'"
            tensor = transition_tensor(step, gravities, states, PUSHES, difference=difference)
            terms = three_terms(name, gravities, states, PUSHES, difference=difference)
            worst = np.abs(terms.dense() - tensor).max()
            found = checked_unfoldings(tensor)
            print(f"{what}\n  at most 3: the three terms miss no entry by more than {worst:.1e}\n"
                  f"  {lower_bound(tensor, found=found).text(['agent', 'state', 'action'])}\n"
                  f"  unfolding ranks, agent / state / action: {' / '.join(str(u.rank) for u in found)}")
            alone = [max(u.rank for u in checked_unfoldings(tensor[:, d::2])) for d in (0, 1)]
            print(f"  of position alone at least {alone[0]}, of velocity alone at least {alone[1]}")
            spectra[what] = found[1]

    print("\nThe terms are not the only ones")
    tensor = transition_tensor(unclipped_step, gravities, states, PUSHES, difference=True)
    terms = three_terms("Gymnasium, unclipped", gravities, states, PUSHES, difference=True)
    print("  the paper's terms:", uniqueness(terms))
    print(f"  directions in which terms can move: {freedom(terms)} at the paper's, where two families meet; "
          f"{freedom(between_agents(terms))} and {freedom(between_actions(terms))} at the two below")
    for name, other in (("between agents", between_agents(terms)), ("between actions", between_actions(terms))):
        score, _ = factor_match_score(terms, other, weights=False)
        print(f"  {name}: misses no entry by more than {np.abs(other.dense() - tensor).max():.1e}; "
              f"likeness to the paper's terms {score:.2f} of 1")

    print("\nSpeed limit and walls (the environment itself, s' - s): rms error in lengths per step by rank, median of samples")
    curves = clipped_curves(given.seed)
    _, many = sampled(rng, 1, 20000)
    shares = np.bincount(region_of(many, np.linspace(*GRAVITIES, 20)), minlength=4) / len(many)
    for name, curve in curves.items():
        share = shares[REGIONS.index(name)] if name in REGIONS else 1.0
        middle = ", ".join(f"{rank}: {rms:.1e}" for rank, rms in zip(curve.ranks, curve.band("rms")[1], strict=True))
        print(f"  {name:<14} {share:6.1%} of the box; {middle}; worst entry at rank 3: {curve.band('sup')[1][2]:.1e}")
    save(picture(spectra, terms, curves), given.out, "theory-proposition1")


def picture(spectra: dict, terms: CP, curves: dict[str, EpsilonRank]) -> Figure:
    """Singular values; agents' rows in three factorisations; where limits act; what they do to the error over rank."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    axis = axes[0, 0]
    for i, (name, unfolding) in enumerate(spectra.items()):
        values = unfolding.singular[:8] / unfolding.singular[0]
        x = np.arange(1, len(values) + 1) + 0.08 * i
        axis.semilogy(x, np.maximum(values, 1e-18), "osD^"[i], color=COLOURS[i], label=name)
    axis.set(title="State unfolding: three singular values, then rounding", xlabel="singular value, by size",
             ylabel="over the first")
    axis.legend(fontsize=8)

    axis = axes[0, 1]
    order = np.argsort(terms.factors[0][:, 1])
    gravity = terms.factors[0][order, 1]
    for i, (name, cp) in enumerate((("paper", terms), ("between agents", between_agents(terms)))):
        for r in range(3):
            column = cp.factors[0][order, r]
            axis.plot(gravity, column / np.abs(column).max(), ("-", "--")[i], color=COLOURS[r], linewidth=(4, 2.5, 1.2)[r],
                      label=f"{name}, term {r + 1}")
    axis.set(title="Agent columns of two exact factorisations", xlabel="gravity", ylabel="column, largest entry 1")
    axis.legend(fontsize=8)

    axis = axes[1, 0]
    x, v = np.meshgrid(np.linspace(mountaincar.LEFT, mountaincar.RIGHT, 300),
                       np.linspace(-mountaincar.TOP_SPEED, mountaincar.TOP_SPEED, 300))
    region = region_of(np.stack([x.ravel(), v.ravel()], axis=1), np.linspace(*GRAVITIES, 20)).reshape(x.shape)
    for i, name in enumerate(REGIONS):
        axis.contourf(x, v, region == i, levels=[0.5, 1.5], colors=[COLOURS[i]], alpha=0.25 if i == 0 else 0.8)
        axis.plot([], [], "s", color=COLOURS[i], alpha=0.25 if i == 0 else 0.8, label=name)
    axis.set(title="Where a limit acts for some agent and push", xlabel="position", ylabel="velocity")
    axis.legend(fontsize=8, loc="lower right")

    axis = axes[1, 1]
    for i, (name, curve) in enumerate(curves.items()):
        plot_epsilon_rank(curve, axis, label=name, colour=COLOURS[i] if name in REGIONS else "black", worst=False)
    axis.axvline(3, color="black", linewidth=0.6, linestyle=":")
    axis.set(title="s' − s of the real environment, by region", ylabel="rms error (length per step)", ylim=(1e-18, 1e-1))
    return figure


if __name__ == "__main__":
    main()
