"""Theorem 1 of PerSim: any Lipschitz transition tensor is near one of low CP rank, built by covering the latent cubes.

f: [0,1]^d1 x [0,1]^d2 x [0,1]^d3 -> R is L-Lipschitz in each argument (Assumption 1), X[n, s, a] = f(theta_n, rho_s, omega_a).
The proof cuts the cubes of agents and actions into cells of side delta and puts each agent and action at its cell's centre:

    h[n, s, a] = sum_ij 1(theta_n in cell i) f(centre_i, rho_s, centre_j) 1(omega_a in cell j)

The paper claims |h - X| <= 2 L delta with C delta^-(d1 + d3) terms, C absolute. What holds, shown here:

    |h - X| <= L delta (sqrt d1 + sqrt d3) / 2   with ceil(1 / delta)^(d1 + d3) terms,   for 0 < delta <= 1

and both are attained. For sqrt d1 + sqrt d3 <= 4 that is better than 2 L delta; beyond, 2 L delta needs a C that grows with the
dimensions. `python -m theory.theorem1`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.epsilon_rank import grid
from lowrank_rl.tensor.plots.style import BLUE, GREEN, GREY, ORANGE
from lowrank_rl.tensor.rank_bounds import lower_bound
from lowrank_rl.tensor.unfoldings import unfold, unfoldings
from theory.script import options, save

Function = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]   # theta (B, d1), rho (B, d2), omega (B, d3) -> (B,)
Latents = tuple[np.ndarray, np.ndarray, np.ndarray]                     # theta (N, d1), rho (S, d2), omega (A, d3)


@dataclass(frozen=True)
class Cells:
    """[0,1]^dimensions cut into per_axis^dimensions cubes."""

    per_axis: int
    dimensions: int

    def __post_init__(self) -> None:
        check.count("per_axis", self.per_axis)
        check.count("dimensions", self.dimensions)

    @property
    def count(self) -> int:
        return self.per_axis**self.dimensions

    @property
    def radius(self) -> float:
        """The furthest that a point lies from its cell's centre: half the cube's diagonal."""
        return math.sqrt(self.dimensions) / (2 * self.per_axis)

    def centres(self, points: np.ndarray) -> np.ndarray:
        """Of the cells in which the points (n, d) lie. A point on a wall belongs to the upper cell."""
        if points.ndim != 2 or points.shape[1] != self.dimensions or not ((points >= 0) & (points <= 1)).all():
            raise ValueError(f"points: expected (n, {self.dimensions}) numbers in [0, 1], got shape {points.shape}, values "
                             f"{points.min():.3g} to {points.max():.3g}")
        return (np.minimum(np.floor(points * self.per_axis), self.per_axis - 1) + 0.5) / self.per_axis


def cells(delta: float, dimensions: int) -> Cells:
    """Cubes of side at most delta: ceil(1 / delta) per axis.

    Raises:
        ValueError: delta outside (0, 1]; there the count of terms, ceil(1 / delta), would not be of order 1 / delta.
    """
    if not 0 < delta <= 1:
        raise ValueError(f"delta: expected the side of a cell, in (0, 1], got {delta!r}")
    return Cells(math.ceil(1 / delta - 1e-9), dimensions)


def covering(function: Function, latents: Latents, agents: Cells, actions: Cells) -> CP:
    """h as an explicit CP, with a term for each pair of cells in which an agent and an action lie."""
    theta, rho, omega = latents
    agent_centres, agent = np.unique(agents.centres(theta), axis=0, return_inverse=True)
    action_centres, action = np.unique(actions.centres(omega), axis=0, return_inverse=True)
    i, j = (pair.ravel() for pair in np.indices((len(agent_centres), len(action_centres))))
    u = (agent.reshape(-1, 1) == i).astype(float)
    w = (action.reshape(-1, 1) == j).astype(float)
    values = grid(function, [agent_centres, rho, action_centres])
    return CP(np.ones(len(i)), (u, values[i, :, j].T, w))


def exact(function: Function, latents: Latents) -> np.ndarray:
    """X: (N, S, A)"""
    return grid(function, list(latents))


def stepped(function: Function, latents: Latents, agents: Cells, actions: Cells) -> np.ndarray:
    """h by its definition, entry by entry: f with agents and actions at their centres. (N, S, A)"""
    theta, rho, omega = latents
    return grid(function, [agents.centres(theta), rho, actions.centres(omega)])


def sup_bound(constant: float, agents: Cells, actions: Cells) -> float:
    """What |h - X| cannot exceed: L times half the diagonals of a cell of each kind."""
    return constant * (agents.radius + actions.radius)


def terms_for(delta: float, d1: int, d3: int) -> int:
    """How many terms of this construction make sure of the paper's 2 L delta: cells of side 4 delta / (sqrt d1 + sqrt d3)."""
    side = min(1.0, 4 * delta / (math.sqrt(d1) + math.sqrt(d3)))
    return cells(side, d1).count * cells(side, d3).count


def least_constant(dimensions: int) -> float:
    """Any points that come within delta of all of [0,1]^d, however placed, number at least this times delta^-d: 1 / V_d.

    The balls of radius delta around them, of volume V_d delta^d each, must cover a volume of 1.
    """
    return math.exp(math.lgamma(dimensions / 2 + 1) - dimensions / 2 * math.log(math.pi))


def waves(dimensions: tuple[int, int, int], constant: float, rng: np.random.Generator, terms: int = 4) -> Function:
    """Smooth and L-Lipschitz: a sum of cosines of theta . a + rho . b + omega . c + phase."""
    directions = [rng.normal(size=(d, terms)) for d in dimensions]
    phase, size = rng.uniform(0, 2 * math.pi, terms), rng.uniform(0.2, 1, terms)
    size *= constant / max((size * np.linalg.norm(a, axis=0)).sum() for a in directions)
    return lambda *points: np.cos(sum(p @ a for p, a in zip(points, directions, strict=True)) + phase) @ size


def cones(dimensions: tuple[int, int, int], constant: float, rng: np.random.Generator, terms: int = 40) -> Function:
    """L-Lipschitz, with kinks: the lowest of cones of slope L around random points."""
    tips = [rng.uniform(size=(terms, d)) for d in dimensions]
    height = rng.uniform(0, 0.5, terms)

    def lowest(*points: np.ndarray) -> np.ndarray:
        distance = sum(np.linalg.norm(p[:, None] - tip, axis=2) for p, tip in zip(points, tips, strict=True))
        return constant * (distance + height).min(axis=1)

    return lowest


def worst(constant: float, agents: Cells, actions: Cells) -> Function:
    """L-Lipschitz and as far from its h as one can be: L (distance of theta to the nearest centre + that of omega)."""
    def distance(theta: np.ndarray, rho: np.ndarray, omega: np.ndarray) -> np.ndarray:
        return constant * (np.linalg.norm(theta - agents.centres(theta), axis=1)
                           + np.linalg.norm(omega - actions.centres(omega), axis=1))

    return distance


def sampled(dimensions: tuple[int, int, int], sizes: tuple[int, int, int], rng: np.random.Generator) -> Latents:
    """Latents drawn evenly from the cubes; the first agent and action sit in a corner, where cells are missed most."""
    latents = tuple(rng.uniform(size=(n, d)) for n, d in zip(sizes, dimensions, strict=True))
    latents[0][0] = latents[2][0] = 0
    return latents


def sup_error(function: Function, latents: Latents, agents: Cells, actions: Cells) -> float:
    """Largest |h - X| over the latents given."""
    return float(np.abs(covering(function, latents, agents, actions).dense() - exact(function, latents)).max())


def terms_within(tensor: np.ndarray, epsilons: Sequence[float]) -> list[tuple[int, int]]:
    """(at least, at most) how many terms come within each epsilon of every entry of an agent x state x action tensor.

    At least: the tail of each unfolding's singular values (Eckart & Young 1936), as no root mean square exceeds a maximum.
    At most: h's own form, with the first k1 and k3 singular vectors of agents and actions for cells, and the best k1 k3.
    """
    found, size = unfoldings(tensor), math.sqrt(tensor.size)
    agents, actions = (np.linalg.svd(unfold(tensor, (k,)), full_matrices=False)[0] for k in (0, 2))
    errors = np.empty((agents.shape[1] + 1, actions.shape[1] + 1))   # (k1, k3)
    for k1 in range(len(errors)):
        part = np.tensordot(agents[:, :k1] @ agents[:, :k1].T, tensor, axes=(1, 0))
        for k3 in range(errors.shape[1]):
            errors[k1, k3] = np.abs(part @ actions[:, :k3] @ actions[:, :k3].T - tensor).max()
    terms = np.outer(np.arange(len(errors)), np.arange(errors.shape[1]))
    return [(max(next(k for k in range(len(u.singular) + 1) if u.tail(k) <= epsilon * size) for u in found),
             int(terms[errors <= epsilon].min())) for epsilon in epsilons]


def main() -> None:
    given = options(__doc__)
    deltas = (1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8, 1 / 12, 1 / 16)
    print("Theorem 1: a Lipschitz tensor is within 2 L delta of one of CP rank C delta^-(d1 + d3). L = 1 throughout.")
    errors, tensors = {}, {}
    for d in (1, 2, 5):
        rng = numpy_stream(given.seed, "theory", "theorem1", d)
        latents = sampled((d,) * 3, (40, 30, 25), rng)
        functions = {"smooth": waves((d,) * 3, 1.0, rng), "kinked": cones((d,) * 3, 1.0, rng)}
        tensors |= {(d, name): exact(f, latents) for name, f in functions.items()}
        print(f"\n40 agents, 30 states and 25 actions with latents in [0,1]^{d}; largest |h - X|\n"
              "  delta    smooth   kinked   worst    our bound  paper's   CP apart from h  cells      terms used")
        for delta in deltas:
            cut = cells(delta, d)
            cp = covering(functions["kinked"], latents, cut, cut)
            apart = np.abs(cp.dense() - stepped(functions["kinked"], latents, cut, cut)).max()
            errors[d, delta] = [sup_error(f, latents, cut, cut) for f in (*functions.values(), worst(1.0, cut, cut))]
            print(f"  {delta:.4f}   " + "   ".join(f"{e:.4f}" for e in errors[d, delta]) + f"   {sup_bound(1.0, cut, cut):.4f}"
                  f"     {2 * delta:.4f}    {apart:<15.0e}  {cut.count**2:<9.4g}  {cp.rank}")

    cut, line = Cells(3, 1), np.linspace(0, 1, 12)[:, None]
    rng = numpy_stream(given.seed, "theory", "theorem1", "attained")
    h = covering(cones((1, 4, 1), 1.0, rng), (line, rng.uniform(size=(60, 4)), line), cut, cut)
    print(f"\nThe count of terms is attained: 3 x 3 cells, {h.rank} terms, and the CP rank of h is at least "
          f"{lower_bound(h.dense()).rank} (state unfolding).")

    print("\nThe missing sqrt(d): d1 = d3 = d. Error that is attained, in units of L delta; the paper allows 2.\n"
          "Terms for 2 L delta, in units of delta^-2d; the paper's C, if absolute, would bound them for all d.\n"
          "      error, cubes     error, delta^-d points    terms,       terms, any\n"
          "  d   of side delta    placed in any way         cubes        covering")
    for d in (1, 2, 4, 5, 8, 13, 20, 50):
        print(f"  {d:<3} {math.sqrt(d):<16.3f} at least {2 * least_constant(d)**(1 / d):<16.3f} "
              f"{(math.sqrt(d) / 2)**(2 * d):<12.3g} at least {least_constant(d)**2:.3g}")

    print("\nTerms for an error of L delta (sqrt d1 + sqrt d3) / 2, on the same agents, states and actions\n"
          "  d  delta    cells       smooth: at least, at most   kinked: at least, at most")
    terms = {(d, name): terms_within(tensor, [sup_bound(1.0, cells(delta, d), cells(delta, d)) for delta in deltas])
             for (d, name), tensor in tensors.items()}
    for d in (1, 2, 5):
        for delta, smooth, kinked in zip(deltas, terms[d, "smooth"], terms[d, "kinked"], strict=True):
            print(f"  {d}  {delta:.4f}   {cells(delta, d).count**2:<10.4g}  {smooth[0]:<10}  {smooth[1]:<16}{kinked[0]:<10}  "
                  f"{kinked[1]}")
    save(picture(errors, deltas, terms), given.out, "theory-theorem1")


def picture(errors: dict, deltas: tuple[float, ...], terms: dict) -> Figure:
    """Error over delta in two and in five dimensions; terms over delta."""
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    x = np.array(deltas)
    for axis, d in zip(axes[:2], (2, 5), strict=True):
        for i, (name, colour) in enumerate((("smooth", GREEN), ("kinked", BLUE), ("worst", ORANGE))):
            axis.loglog(x, [errors[d, delta][i] for delta in deltas], "o", color=colour, label=f"|h − X|, {name} function")
        axis.loglog(x, x * math.sqrt(d), color=ORANGE, label="L δ (√d₁ + √d₃) / 2")
        axis.loglog(x, 2 * x, "--", color="black", label="2 L δ, the paper's bound")
        axis.set(title=f"d₁ = d₂ = d₃ = {d}", xlabel="side of a cell, δ", ylabel="largest error, L = 1")
    axis = axes[2]
    axis.loglog(x, [cells(delta, 2).count**2 for delta in deltas], color=GREY, label="cells, ⌈1/δ⌉⁴")
    for name, colour in (("smooth", GREEN), ("kinked", BLUE)):
        low, high = np.array(terms[2, name], dtype=float).T
        low[low == 0] = high[high == 0] = np.nan   # a log axis has no place for "none"
        axis.loglog(x, high, "o-", color=colour, label=f"a CP that was found, {name}")
        axis.loglog(x, low, ":", color=colour, label=f"no CP of fewer terms, {name}")
    axis.set(title="Terms for the same error, d₁ = d₂ = d₃ = 2", xlabel="side of a cell, δ", ylabel="terms")
    for axis in axes:
        axis.set_xticks([1 / 2, 1 / 4, 1 / 8, 1 / 16], ["1/2", "1/4", "1/8", "1/16"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
