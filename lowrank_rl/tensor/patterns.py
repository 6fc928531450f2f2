"""Kinds of observation patterns: at random, whole fibres, blocks, interventions, where a policy went. Each is a ``Pattern``.

``missingness`` has the kind that depends on the values, ``cells`` makes a pattern of recorded coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.observed import rows, sizes
from lowrank_rl.tensor.pattern import Pattern, row_numbers

__all__ = ["Pattern", "blocks", "fibres", "interventions", "random_walks", "uniform", "visited"]

Policy = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]   # agents (N,), states (N,) -> actions (N,)


def uniform(shape: Sequence[int], amount: float | int, *, seed: int) -> Pattern:
    """Entries drawn at random, each set of them as likely. amount: a share of all (a float below 1) or how many (an int)."""
    shape = sizes(shape)
    total = _countable(shape)
    places = _distinct(total, _number("amount", amount, total), numpy_stream(seed, "pattern", "uniform"))
    return Pattern(np.stack(np.unravel_index(places, shape), axis=1), shape)


def fibres(shape: Sequence[int], mode: int, amount: float | int, *, seed: int) -> Pattern:
    """Whole fibres of a mode: for each choice of coordinates in the other modes, all of its rows are observed or none.

    amount: the share of fibres (a float below 1) or how many (an int).
    """
    shape = sizes(shape)
    check.count("mode", mode, 0)
    check.within("mode", np.array([mode]), len(shape))
    others = tuple(size for k, size in enumerate(shape) if k != mode)
    total = _countable(others)
    places = _distinct(total, _number("amount", amount, total), numpy_stream(seed, "pattern", "fibres"))
    index = np.stack(np.unravel_index(np.repeat(places, shape[mode]), others), axis=1)
    return Pattern(np.insert(index, mode, np.tile(np.arange(shape[mode]), len(places)), axis=1), shape)


def blocks(shape: Sequence[int], parts: Sequence[Sequence[Any]]) -> Pattern:
    """Blocks observed whole. Each part says for every mode which rows: a sequence of numbers, a slice, or None for all.

    ``blocks((12, 10, 8), [(range(6), None, range(4)), (range(6, 12), None, range(4, 8))])``; blocks may overlap.

    Raises:
        ValueError: no part, a part that does not speak of every mode, rows that are not there.
    """
    shape = sizes(shape)
    parts = list(parts)
    if not parts:
        raise ValueError("parts: expected at least one block, got none")
    mask_of = []
    for part in parts:
        if len(part) != len(shape):
            raise ValueError(f"parts: expected for each block the rows of {len(shape)} modes, got {len(part)}")
        chosen = []
        for k, (which, size) in enumerate(zip(part, shape, strict=True)):
            which = slice(None) if which is None else which
            sliced = isinstance(which, slice)
            chosen.append(np.arange(size)[which] if sliced else row_numbers(f"parts of mode {k}", which, size))
        mask_of.append(np.stack(np.meshgrid(*chosen, indexing="ij"), axis=-1).reshape(-1, len(shape)))
    return Pattern(np.unique(np.concatenate(mask_of), axis=0), shape)


def interventions(shape: Sequence[int], before: int, *, seed: int) -> Pattern:
    """Units x measurements x actions: all units under action 0 at first, then each under one action only.

    The first ``before`` measurements are of action 0 for every unit; the later ones are of one action per unit, dealt out
    at random as evenly as possible. The block pattern of A. Agarwal, D. Shah, D. Shen, "Synthetic interventions",
    arXiv 2006.07691, which PerSim (NeurIPS 2021, sec. 3) names as case (ii) of patterns that can be completed.

    Raises:
        ValueError: not three modes, or ``before`` outside 0..measurements.
    """
    shape = sizes(shape)
    if len(shape) != 3:
        raise ValueError(f"shape: expected units, measurements and actions, got {len(shape)} modes")
    units, measurements, actions = shape
    check.count("before", before, 0)
    check.within("before", np.array([before]), measurements + 1)
    assigned = numpy_stream(seed, "pattern", "interventions").permutation(np.arange(units) % actions)
    unit, measurement = (x.reshape(-1) for x in np.meshgrid(np.arange(units), np.arange(measurements), indexing="ij"))
    return Pattern(np.stack([unit, measurement, np.where(measurement < before, 0, assigned[unit])], axis=1), shape)


def visited(steps: Any, shape: Sequence[int]) -> Pattern:
    """Where somebody went: steps (T, K), such as (agent, state, action), in any order; repeats count once."""
    shape = sizes(shape)
    return Pattern(np.unique(rows("steps", steps, shape), axis=0), shape)


def random_walks(shape: Sequence[int], steps: int, *, seed: int, policy: Policy | None = None) -> Pattern:
    """Where N agents go on a line of S states by A actions: shape (N, S, A). A stand-in for logged episodes.

    Action a pushes by -1 (the first) to +1 (the last); a step is the push plus -1, 0 or +1 at random, rounded, and the
    ends hold. Everyone starts in the middle, so states far out are seen by few.

    Args:
        steps: per agent.
        policy: ``policy(agents (N,), states (N,), rng) -> actions (N,)``; None: actions at random.

    Raises:
        ValueError: not three modes, steps below 1, actions that are not there.
    """
    shape = sizes(shape)
    if len(shape) != 3:
        raise ValueError(f"shape: expected agents, states and actions, got {len(shape)} modes")
    check.count("steps", steps)
    agents, states, actions = np.arange(shape[0]), shape[1], shape[2]
    rng = numpy_stream(seed, "pattern", "random walks")
    push = np.linspace(-1, 1, actions) if actions > 1 else np.zeros(1)
    state, seen = np.full(len(agents), states // 2), []
    for _ in range(steps):
        action = rng.integers(0, actions, len(agents)) if policy is None else np.asarray(policy(agents, state, rng))
        seen.append(rows("policy's (agent, state, action)", np.stack([agents, state, action], axis=1), shape))
        move = np.rint(push[seen[-1][:, 2]] + rng.integers(-1, 2, len(agents))).astype(np.int64)
        state = np.clip(state + move, 0, states - 1)
    return visited(np.concatenate(seen), shape)


def _countable(shape: tuple[int, ...]) -> int:
    total = math.prod(shape)
    if total >= 2**62:
        raise ValueError(f"shape: expected fewer than 2^62 places to draw from, got {total:.3g}")
    return total


def _number(name: str, amount: float | int, total: int) -> int:
    """How many of ``total``, from a share or a number."""
    share = isinstance(amount, float | np.floating)
    if share and not 0 < amount < 1:
        raise ValueError(f"{name}: expected a share between 0 and 1 or a whole number, got {amount!r}")
    if not share:
        check.count(name, amount)
    number = round(amount * total) if share else int(amount)
    if not 0 < number <= total:
        raise ValueError(f"{name}: expected 1 to {total} of {total}, got {amount!r}, which is {number}")
    return number


def _distinct(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` different numbers below ``total``, ascending, in memory that follows the count."""
    if 4 * count > total:
        return np.sort(rng.permutation(total)[:count])
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:   # more than enough at once, then some are dropped at random
        found = np.unique(np.concatenate([found, rng.integers(0, total, count + count // 4 + 16)]))
    return np.sort(rng.permutation(found)[:count])
