"""Pictures as SVG text, for the page: no library, and the colours of light and dark follow the reader's."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from lowrank_rl.rl.bench.gather import Gathered
from lowrank_rl.rl.bench.tables import number

COLORS = {"persim": "#0072b2", "pooled": "#d55e00", "true-env-mpc": "#009e73", "cloned": "#cc79a7",   # colour-blind safe
          "uniform": "#7f7f7f", "vanilla-cadm": "#e69f00", "pe-ts-cadm": "#a6611a", "e-pets": "#56b4e9", "bcq-p": "#332288",
          "bcq-a": "#8877cc", "cql-p": "#117733", "cql-a": "#66bb88", "morel-p": "#882255", "morel-a": "#cc6688",
          "persim-bcq-5": "#aa4499", "persim-cql-5": "#999933",
          # unseen agents: by covariates the bluer the more are known, by steps the browner, both
          "persim-p100": "#08306b", "persim-p50": "#2171b5", "persim-p25": "#4aa0d9", "persim-p10": "#7fb9e6",
          "persim-k5": "#d95f0e", "persim-k10": "#b2450a", "persim-k25": "#8c2d04", "persim-k100": "#5c1d02",
          "persim-p10-k10": "#009e73"}
DASHES = ("", "7 3", "2 3", "9 3 2 3")      # by place, so that lines differ without colour
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 260, 200, 46, 10, 10, 34
Curves = dict[str, np.ndarray]              # method -> error after 1, 2, ... steps


def curves(gathered: Gathered, dataset: str) -> dict[int, Curves]:
    """Each agent's error over the horizon on one data set, mean over seeds where all have it: agent -> method -> (steps,)."""
    found: dict[int, Curves] = {}
    for group in gathered.groups:
        for agent, records in group.done.items() if group.dataset == dataset else ():
            each = [record.error_by_step for record in records if record.error_by_step]
            if each and len({len(curve) for curve in each}) == 1:
                found.setdefault(agent, {})[group.method] = np.array(each, dtype=np.float64).mean(axis=0)
    return found


def panels(found: dict[int, Curves], titles: dict[int, str], what: str) -> dict[int, str]:
    """An SVG for each agent, all with the same axes; nothing where no error is above zero."""
    values = np.concatenate([curve for methods in found.values() for curve in methods.values()] or [np.empty(0)])
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        return {}
    marks = _marks(values.min(), values.max())
    order = list(dict.fromkeys(method for methods in found.values() for method in methods))
    return {agent: _panel(found[agent], order, marks, f"{what}, {titles[agent]}") for agent in sorted(found)}


def _marks(low: float, high: float) -> list[float]:
    """What a log axis shows, from below ``low`` to above ``high``: powers of ten; for less than two, 2 and 5 times them too."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    span = math.log10(high / low)
    every = [m * 10.0**power for power in decades for m in ((1, 2, 5) if span < 2 else (1,))]
    inside = [*[mark for mark in every if mark <= low][-1:], *(mark for mark in every if low < mark < high),
              *[mark for mark in every if mark >= high][:1]]
    if inside[0] == inside[-1]:     # all errors are the same
        inside = [inside[0] / 10, inside[0] * 10]
    return inside


def _panel(methods: Curves, order: Sequence[str], marks: Sequence[float], what: str) -> str:
    """One log-scaled plot."""
    steps = max(len(curve) for curve in methods.values())
    low, high = math.log10(marks[0]), math.log10(marks[-1])

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - 1) / max(1, steps - 1)

    def y(power: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - power) / (high - low)
    told = "; ".join(f"{method} {number(curve[0])} after 1 step, {_last(curve)}" for method, curve in methods.items())
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{what}. {told}.")}">']
    for mark in marks[::math.ceil(len(marks) / 7)]:
        at = y(math.log10(mark))
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     f'<text x="{LEFT - 5}" y="{at + 3.5:.1f}" text-anchor="end">{mark:g}</text>')
    for step in sorted({1, *range(10, steps + 1, 10)}):
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{step}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}" text-anchor="middle">steps predicted</text>')
    for method, curve in methods.items():
        for piece in _pieces(curve):
            points = " ".join(f"{x(step):.1f},{y(math.log10(value)):.1f}" for step, value in piece)
            dash = DASHES[order.index(method) % len(DASHES)]
            parts.append(f'<polyline class="m-{escape(method)}" points="{points}" stroke-dasharray="{dash}"/>')
    return "".join([*parts, "</svg>"])


def _pieces(curve: np.ndarray) -> list[list[tuple[int, float]]]:
    """Its stretches without gaps: what is no positive finite number has no place on a log scale."""
    pieces: list[list[tuple[int, float]]] = [[]]
    for step, value in enumerate(curve.tolist(), start=1):
        if math.isfinite(value) and value > 0:
            pieces[-1].append((step, value))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _last(curve: np.ndarray) -> str:
    live = np.flatnonzero(np.isfinite(curve))
    return f"{number(float(curve[live[-1]]))} after {live[-1] + 1}" if len(live) else "never finite"


def legend(found: dict[int, Curves]) -> list[tuple[str, str]]:
    """(method, SVG of its line), in the order of the tables."""
    order = list(dict.fromkeys(method for methods in found.values() for method in methods))
    return [(method, f'<svg class="key" viewBox="0 0 36 10" aria-hidden="true"><polyline class="m-{escape(method)}" '
             f'points="1,5 35,5" stroke-dasharray="{DASHES[i % len(DASHES)]}"/></svg>') for i, method in enumerate(order)]


def colors(methods: Sequence[str], dark: bool) -> str:
    """Style rules for the lines; on dark ground each colour is mixed with white."""
    def shade(color: str) -> str:
        channels = [int(color[i:i + 2], 16) for i in (1, 3, 5)]
        return "#" + "".join(f"{round(c + (255 - c) * 0.45) if dark else c:02x}" for c in channels)
    return "".join(f".m-{method}{{stroke:{shade(COLORS[method])}}}" for method in methods if method in COLORS)
