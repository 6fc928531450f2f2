"""CartPole's transition tensor, agent x (state, dimension) x action, has CP rank 5 when push F and half length l are hidden.

With sin, cos of the pole's angle, w its speed, a = -1 or +1, M and m the masses and D = 4/3 - m cos^2 / (M + m):

    u        = (a F + m l w^2 sin) / (M + m)
    theta_dd = (g sin - u cos) / (l D)
    x_dd     = u - m l theta_dd cos / (M + m)

D does not contain l, so that all splits into five products:

    agent  action   state: in x_dd                   in theta_dd
    1      1        -m g sin cos / ((M+m) D)         -m w^2 sin cos / ((M+m) D)
    1/l    1        0                                g sin / D
    l      1        4/3 m w^2 sin / ((M+m) D)        0
    F/l    a        0                                -cos / ((M+m) D)
    F      a        4/3 / ((M+m) D)                  0

using 1 + m cos^2 / ((M+m) D) = 4/3 / D. (x and theta move by their speeds, in the first term.) The five agent columns are
independent functions, and so are the state columns: both unfoldings have rank 5. The paper chose 5 by cross-validation.
`python -m theory.cartpole_rank`
"""

from __future__ import annotations

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from lowrank_rl.rl.envs import cartpole
from lowrank_rl.rl.envs.cartpole import CART_MASS, GRAVITY, POLE_MASS, SECONDS
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.compare import factor_match_score
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.epsilon_rank import EpsilonRank, epsilon_rank, grid
from lowrank_rl.tensor.jennrich import jennrich
from lowrank_rl.tensor.plots.rank import COLOURS, plot_epsilon_rank, plot_unfoldings
from lowrank_rl.tensor.rank_bounds import lower_bound
from lowrank_rl.tensor.unfoldings import unfoldings
from lowrank_rl.tensor.uniqueness import freedom, kruskal, uniqueness
from theory.script import options, save

TOTAL = CART_MASS + POLE_MASS
LOW, HIGH = cartpole.ENVIRONMENT.covariate_low, cartpole.ENVIRONMENT.covariate_high
STATES = np.array([cartpole.FAR, 3.0, cartpole.TILT, 3.5])   # sampled in +- this: x m, m/s, rad, rad/s
ACTIONS = np.array([0.0, 1.0])
NAMES = ("1", "1/l", "l", "F/l", "F")
BLOCKS = (0, 1, 2), (3, 4)   # terms without and with the push


def transition_tensor(agents: np.ndarray, states: np.ndarray, *, difference: bool = False) -> np.ndarray:
    """s', or s' - s, of the environment: agents (N, 2) force and half length, states (S, 4) -> (N, 4 S, 2)"""
    def values(agent: np.ndarray, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        after = cartpole.step(torch.from_numpy(agent), torch.from_numpy(state), torch.from_numpy(action)[:, None]).numpy()
        return after - difference * state

    return grid(values, [agents, states, ACTIONS], outputs=1)


def five_terms(agents: np.ndarray, states: np.ndarray, *, difference: bool = False) -> CP:
    """The terms of the table above, times the time step, in the order of NAMES."""
    force, length = agents.T
    _, x_dot, theta, w = states.T
    sin, cos = np.sin(theta), np.cos(theta)
    D = 4 / 3 - POLE_MASS * cos**2 / TOTAL
    light = 4 / 3 / (TOTAL * D)
    none = np.zeros_like(w)
    columns = [   # of x, x_dot, theta, theta_dot
        [x_dot, -POLE_MASS * GRAVITY * sin * cos / (TOTAL * D), w, -POLE_MASS * w**2 * sin * cos / (TOTAL * D)],
        [none, none, none, GRAVITY * sin / D],
        [none, POLE_MASS * w**2 * sin * light, none, none],
        [none, none, none, -cos / (TOTAL * D)],
        [none, light, none, none],
    ]
    state = SECONDS * np.stack([np.stack(column, axis=1) for column in columns], axis=2)   # (S, 4, 5)
    if not difference:
        state[:, :, 0] += states
    agent = np.stack([np.ones_like(force), 1 / length, length, force / length, force], axis=1)
    sign = 2 * ACTIONS - 1
    one = np.ones_like(sign)
    return CP(np.ones(5), (agent, state.reshape(-1, 5), np.stack([one, one, one, sign, sign], axis=1)))


def mixed(terms: CP, seed: int) -> CP:
    """The same tensor, other terms: agent columns mixed at random within each block, state columns by the inverse."""
    agent, state, action = (factor.copy() for factor in terms.factors)
    rng = numpy_stream(seed, "cartpole", "mixed")
    agent = agent / np.linalg.norm(agent, axis=0)
    state = state * np.linalg.norm(terms.factors[0], axis=0)
    for block in BLOCKS:
        turn = np.linalg.qr(rng.standard_normal((len(block), len(block))))[0]
        agent[:, block] = agent[:, block] @ turn
        state[:, block] = state[:, block] @ turn   # orthogonal, so its own inverse transpose
    return CP(np.ones(5), (agent, state, action))


def same_span(a: np.ndarray, b: np.ndarray) -> float:
    """Sine of the largest angle between the spans of two sets of as many columns: 0 if they are the same."""
    one, other = (np.linalg.qr(x)[0] for x in (a, b))
    return float(np.linalg.norm(other - one @ (one.T @ other), 2))


def sampled(rng: np.random.Generator, agents: int, states: int) -> tuple[np.ndarray, np.ndarray]:
    """Covariates (agents, 2) from the paper's range, states (states, 4) within +- STATES."""
    return rng.uniform(LOW, HIGH, (agents, 2)), rng.uniform(-STATES, STATES, (states, 4))


def main() -> None:
    given = options(__doc__)
    rng = numpy_stream(given.seed, "theory", "cartpole")
    agents, states = sampled(rng, 30, 100)
    print("CartPole's transition tensor has CP rank 5 (push and length hidden).\n"
          f"{len(agents)} agents with F, l in {LOW} to {HIGH}, {len(states)} states within {STATES.tolist()}\n")
    for difference in (False, True):
        tensor = transition_tensor(agents, states, difference=difference)
        terms = five_terms(agents, states, difference=difference)
        print("s' - s" if difference else "s'")
        print(f"  at most 5: the five terms miss no entry by more than {np.abs(terms.dense() - tensor).max():.1e}")
        print(f"  {lower_bound(tensor).text(['agent', 'state', 'action'])}")
        print(f"  unfolding ranks, agent / state / action: {' / '.join(str(u.rank) for u in unfoldings(tensor))}")
        alone = [lower_bound(tensor[:, d::4]).rank for d in range(4)]
        print("  each dimension alone at least: " + ", ".join(
            f"{name} {rank}" for name, rank in zip(cartpole.ENVIRONMENT.state_names, alone, strict=True)))
        for r in range(5):
            missing = CP(np.ones(4), tuple(np.delete(f, r, axis=1) for f in terms.factors))
            print(f"  without the term {NAMES[r]:<4} the worst entry is off by {np.abs(missing.dense() - tensor).max():.1e}")

    for column, name in enumerate(cartpole.ENVIRONMENT.covariate_names):
        same = agents.copy()
        same[:, column] = cartpole.ENVIRONMENT.default_agent[column]
        print(f"All agents of the same {name}: at least {lower_bound(transition_tensor(same, states)).rank}")

    print("\nWhich modes are determined")
    ranks, total, needed = kruskal(terms)
    print(f"  Kruskal: k-ranks {ranks} sum to {total}, one short of {needed}" if needed - total == 1 else
          f"  Kruskal: k-ranks {ranks} sum to {total} of {needed}")
    print(f"  {uniqueness(terms)}")
    print(f"  directions in which the terms can move: {freedom(terms)} = 3 x 2 + 2 x 1, mixtures within the two blocks")
    other, found = mixed(terms, given.seed), jennrich(tensor, seed=given.seed)
    score, _ = factor_match_score(terms, other, weights=False)
    print(f"  terms mixed within the blocks miss no entry by more than {np.abs(other.dense() - tensor).max():.1e}; likeness to "
          f"the five {score:.2f} of 1")
    print(f"  {found.reason}")
    push = np.argsort(found.cp.factors[2][0] * found.cp.factors[2][1], kind="stable")   # columns (1, -1) first
    for name, block, mine in (("without push", BLOCKS[0], push[2:]), ("with push", BLOCKS[1], push[:2])):
        span = [same_span(found.cp.factors[k][:, mine], terms.factors[k][:, block]) for k in (0, 1)]
        print(f"  terms {name}: spans of agents and states agree with the table's up to {span[0]:.1e} and {span[1]:.1e}")

    curve = epsilon_rank(lambda draw: transition_tensor(*sampled(draw, 40, 60), difference=True), range(1, 7), samples=5,
                         relative=True, seed=given.seed)
    print("\nError over rank of s' - s, relative\n" + curve.table())
    save(picture(tensor, curve), given.out, "theory-cartpole")


def picture(tensor: np.ndarray, curve: EpsilonRank) -> Figure:
    """Singular values, the five state columns along the angle, error over rank."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    plot_unfoldings(unfoldings(tensor), axes[0], names=("agent", "state", "action"))
    axes[0].set(title="Unfoldings of s' − s", xlim=(0.3, 12.5))
    theta = np.linspace(-np.pi, np.pi, 200)
    states = np.stack([0 * theta, 0 * theta, theta, 0 * theta + 2.0], axis=1)
    column = five_terms(np.array([[10.0, 0.5]]), states, difference=True).factors[1].reshape(-1, 4, 5)
    for r, name in enumerate(NAMES):
        shown = column[:, 3, r] if name in ("1/l", "F/l") else column[:, 1, r]
        axes[1].plot(theta, shown / np.abs(shown).max(), "--" if name == "l" else "-", color=COLOURS[r],
                     label=f"{name}, in {'theta' if name in ('1/l', 'F/l') else 'x'}_dot")
    axes[1].set(title="State columns at theta_dot = 2 rad/s", xlabel="theta (rad)", ylabel="largest entry 1")
    axes[1].legend(fontsize=8)
    axes[1].grid(alpha=0.3)
    plot_epsilon_rank(curve, axes[2])
    axes[2].set_title("Error over rank: 5 is exact")
    return figure


if __name__ == "__main__":
    main()
