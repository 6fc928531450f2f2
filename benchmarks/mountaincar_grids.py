"""Least steps to MountainCar's goal on grids of (position, velocity), for one gravity: an estimate, plans, a lower bound.

Compiled copies of ``mountaincar.step`` for single numbers; the plans are to be replayed by that function.
"""

import math

import numba
import numpy as np

from lowrank_rl.rl.envs.mountaincar import FORCE, GOAL, LEFT, RIGHT, TOP_SPEED

LIMIT = 500          # steps
ROUNDING = 1e-12     # by which boxes are widened, more than float64 loses in one step
UNSET = 255          # steps of a cell not reached in fewer


@numba.njit
def values(gravity: float, first: np.ndarray, tolerance: float) -> np.ndarray:
    """Value iteration: V(s) = 1 + min over actions of V(next state), bilinear between nodes and 0 at the goal.

    ``first``, (n + 1, n + 1), is where it starts; nodes cover LEFT..GOAL and both top speeds. Sweeps change direction and
    end when no node changes by more than ``tolerance`` steps.
    """
    value, n = first.copy(), len(first) - 1
    for sweep in range(10_000):
        change = 0.0
        for k in range((n + 1) ** 2):
            i, j = divmod(k if sweep % 2 else (n + 1) ** 2 - 1 - k, n + 1)
            position, velocity = LEFT + (GOAL - LEFT) * i / n, TOP_SPEED * (2 * j / n - 1)
            if _ended(position, velocity):
                value[i, j] = 0.0
                continue
            best = np.inf
            for action in range(3):
                x, v = _step(gravity, position, velocity, action)
                best = min(best, 1 + _read(value, x, v))
            change = max(change, abs(value[i, j] - best))
            value[i, j] = best
        if change < tolerance:
            break
    return value


@numba.njit
def refine(value: np.ndarray, n: int) -> np.ndarray:
    """The same function on (n + 1, n + 1) nodes."""
    fine = np.empty((n + 1, n + 1))
    for i in range(n + 1):
        for j in range(n + 1):
            fine[i, j] = _read(value, LEFT + (GOAL - LEFT) * i / n, TOP_SPEED * (2 * j / n - 1))
    return fine


@numba.njit
def estimates(value: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The values of cars at rest at these positions (B,)."""
    return np.array([_read(value, position, 0.0) for position in start])


@numba.njit
def plans(gravity: float, value: np.ndarray, start: np.ndarray, width: int) -> np.ndarray:
    """Actions (B, LIMIT) from rest at ``start`` (B,): of all states reached in t steps, the ``width`` of least value go on.

    The states are exact, so a plan's first arrival can be had, whatever the grid; width 1 is the greedy policy.
    """
    actions = np.full((len(start), LIMIT), 2)
    parent, tried = np.empty((LIMIT, width), np.int64), np.empty((LIMIT, width), np.int64)
    state, reached, cost = np.empty((width, 2)), np.empty((3 * width, 2)), np.empty(3 * width)
    for b in range(len(start)):
        state[0], alive = (start[b], 0.0), 1
        for t in range(LIMIT):
            for i in range(3 * alive):
                x, v = _step(gravity, state[i // 3, 0], state[i // 3, 1], i % 3)
                reached[i], cost[i] = (x, v), _read(value, x, v)
            kept = np.argsort(cost[:3 * alive])[:width]
            alive = len(kept)
            for k in range(alive):
                state[k], parent[t, k], tried[t, k] = reached[kept[k]], kept[k] // 3, kept[k] % 3
            if _ended(state[0, 0], state[0, 1]):     # its value is 0, so it comes first
                k = 0
                for back in range(t, -1, -1):
                    actions[b, back] = tried[back, k]
                    k = parent[back, k]
                break
    return actions


@numba.njit
def lower_bounds(gravity: float, columns: int, rows: int) -> np.ndarray:
    """For each cell of (position, velocity), (columns, rows): no car inside reaches the goal in fewer steps.

    Backwards from the goal, layer by layer. A cell is reached k + 1 steps before the goal as soon as a box around all that
    one action makes of some of its states touches a cell of layer k: a car may use any state of each cell it meets, so it
    is never slower than a true one. Each step gives away at most about one cell.
    """
    dx, dv = (GOAL - LEFT) / columns, 2 * TOP_SPEED / rows
    low, high = _slopes(columns)
    steps = np.full((columns, rows), UNSET, np.uint8)
    queue, size = np.empty(columns * rows, np.int32), 0
    for i in range(columns):
        for j in range(rows):
            fastest = min(TOP_SPEED * (2 * (j + 1) / rows - 1) + FORCE - gravity * low[i], TOP_SPEED)
            if LEFT + (i + 1) * dx + fastest >= GOAL - ROUNDING:
                steps[i, j], queue[size], size = 1, i * rows + j, size + 1
    stopped, head, layer = False, 0, 1
    while head < size and layer + 1 < UNSET:
        tail = size
        if not stopped and min(steps[0, rows // 2 - 1], steps[0, rows // 2]) < UNSET:    # a car at rest at the wall can
            stopped = True
            for i in range(min(columns, int(TOP_SPEED / dx) + 2)):
                for j in range(rows):
                    slowest = max(TOP_SPEED * (2 * j / rows - 1) - FORCE - gravity * high[i], -TOP_SPEED)
                    if steps[i, j] == UNSET and LEFT + i * dx + slowest <= LEFT + ROUNDING:
                        steps[i, j], queue[size], size = layer + 1, i * rows + j, size + 1
        for k in range(head, tail):
            i, j = divmod(queue[k], rows)
            x0, x1 = LEFT + i * dx - ROUNDING, LEFT + (i + 1) * dx + ROUNDING
            v0, v1 = TOP_SPEED * (2 * j / rows - 1) - ROUNDING, TOP_SPEED * (2 * (j + 1) / rows - 1) + ROUNDING
            for c in range(max(0, math.floor((x0 - v1 - LEFT) / dx)), min(columns - 1, math.floor((x1 - v0 - LEFT) / dx)) + 1):
                slow, fast = max(v0, x0 - LEFT - (c + 1) * dx), min(v1, x1 - LEFT - c * dx)    # next velocity
                if slow > fast:
                    continue
                for action in range(3):
                    push = (action - 1) * FORCE
                    first = -TOP_SPEED if j == 0 else slow - push + gravity * low[c]           # it may have been clipped
                    last = TOP_SPEED if j == rows - 1 else fast - push + gravity * high[c]
                    for r in range(max(0, math.floor((first + TOP_SPEED) / dv)),
                                   min(rows - 1, math.floor((last + TOP_SPEED) / dv)) + 1):
                        if steps[c, r] == UNSET:
                            steps[c, r], queue[size], size = layer + 1, c * rows + r, size + 1
        head, layer = tail, layer + 1
    return steps


def at_rest(steps: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The lower bound of cars at rest at these positions (B,): the least of all cells that touch the state."""
    columns, rows = steps.shape
    place = (start - LEFT) / (GOAL - LEFT) * columns
    beside = [np.floor(place - ROUNDING).astype(int), np.floor(place + ROUNDING).astype(int)]
    return np.min([steps[i, j] for i in beside for j in (rows // 2 - 1, rows // 2)], axis=0)


@numba.njit(inline="always")
def _step(gravity, position, velocity, action):
    velocity = velocity + (action - 1) * FORCE - gravity * math.cos(3 * position)
    velocity = min(max(velocity, -TOP_SPEED), TOP_SPEED)
    position = min(max(position + velocity, LEFT), RIGHT)
    if position == LEFT and velocity < 0:
        velocity = 0.0
    return position, velocity


@numba.njit(inline="always")
def _ended(position, velocity):
    return position >= GOAL and velocity >= 0


@numba.njit(inline="always")
def _read(value, position, velocity):
    """Bilinear between the nodes."""
    if _ended(position, velocity):
        return 0.0
    n = len(value) - 1
    x, v = (position - LEFT) / (GOAL - LEFT) * n, (velocity / TOP_SPEED + 1) / 2 * n
    i, j = min(int(x), n - 1), min(int(v), n - 1)
    x, v = x - i, v - j
    return ((1 - x) * ((1 - v) * value[i, j] + v * value[i, j + 1])
            + x * ((1 - v) * value[i + 1, j] + v * value[i + 1, j + 1]))


@numba.njit
def _slopes(columns):
    """Least and greatest cos(3 x) in each column of positions."""
    low, high = np.empty(columns), np.empty(columns)
    for i in range(columns):
        a, b = LEFT + (GOAL - LEFT) * i / columns, LEFT + (GOAL - LEFT) * (i + 1) / columns
        low[i] = -1.0 if a <= -math.pi / 3 <= b else min(math.cos(3 * a), math.cos(3 * b))
        high[i] = 1.0 if a <= 0 <= b else max(math.cos(3 * a), math.cos(3 * b))
    return low, high
