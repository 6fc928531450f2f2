"""The pictures of a run, from its records, traces, models and data."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from lowrank_rl.files import whole
from lowrank_rl.rl.bench import baselines, cases, pieces
from lowrank_rl.rl.bench.charts import COLORS
from lowrank_rl.rl.bench.gather import by_kind_of_agent, gather
from lowrank_rl.rl.bench.published import paper
from lowrank_rl.rl.bench.store import Cell, Record
from lowrank_rl.rl.bench.tables import plain
from lowrank_rl.rl.contracts import Environment

mpl.use("Agg")
SHOWN = {"halfcheetah": (0, 2, 8, 10)}    # state dimensions of the trajectory picture; elsewhere all
NARROW = 6.5     # inches; no picture is narrower, so that its words fit
FAR = 4          # times the best return of what was learned: bars beyond are cut off, with their height on them


def draw_all(out: Path, environment: Environment, cells: Iterable[Cell], records: dict[Cell, Record]) -> list[Path]:
    """Draw whatever the finished cells allow, from the same records as the tables; the files written."""
    done, new = [], []
    for some in by_kind_of_agent(environment, cells):
        gathered = gather(environment, some, records)
        shown = {record.cell for record in gathered.records}
        (new if gathered.unseen else done).extend(cell for cell in some if cell in shown)
    paths = _of_test_agents(out, environment, done, records)
    for dataset in dict.fromkeys(cell.dataset for cell in new):
        mine = [cell for cell in new if cell.dataset == dataset and records[cell].rmse is not None]
        if any(_shown(cell.method) for cell in mine):
            paths.append(adaptation(out, environment, mine, records))
    return paths


def _of_test_agents(out: Path, environment: Environment, done: list[Cell], records: dict[Cell, Record]) -> list[Path]:
    earliest = min((cell.seed for cell in done), default=0)
    first = [cell for cell in done if cell.seed == earliest]
    paths = []
    for behaviour in cases.BEHAVIOUR:
        alike = [cell for cell in done if cell.dataset != "none" and cases.DATASETS[cell.dataset].behaviour == behaviour]
        few = {cell.method for cell in alike if cases.DATASETS[cell.dataset].agents}
        if few:
            paths.append(scarcity(out, environment, [cell for cell in alike if cell.method in few], records))
    for dataset in dict.fromkeys(cell.dataset for cell in done if cell.dataset in cases.BEHAVIOUR):
        of_data = [cell for cell in first if cell.dataset == dataset]
        simulated = [cell for cell in of_data if records[cell].rmse is not None]
        traced = [cell for cell in simulated if pieces.trace_path(out, cell).exists()]
        if traced:
            paths += _from_files(trajectories, out, environment, traced)
        if simulated:
            paths.append(error_over_horizon(out, environment, [c for c in done if c.dataset == dataset], records))
        latent = next((cell for cell in simulated if cell.method == "persim"), None)
        if latent and pieces.model_path(out, latent).exists() and pieces.data_path(out, latent).exists():
            paths += _from_files(latent_rows, out, environment, latent)
        paths.append(returns(out, environment, [c for c in done if c.dataset in (dataset, "none")], records))
    return paths


def _from_files(draw: Callable[..., Path], *what: Any) -> list[Path]:
    """The picture, unless a file of a cell that was not asked for is corrupt: that costs no more than the picture."""
    try:
        return [draw(*what)]
    except ValueError as error:
        print(f"a picture is left out: {error}")
        return []


def trajectories(out: Path, environment: Environment, cells: list[Cell]) -> Path:
    """True and predicted states of one test episode per agent: mean over members, and a band from lowest to highest."""
    dims = SHOWN.get(environment.name, range(len(environment.state_names)))
    agents = sorted({cell.agent for cell in cells})
    figure, axes = plt.subplots(len(dims), len(agents), figsize=(_width(agents), 1.9 * len(dims) + 1.0),
                                sharex=True, squeeze=False, layout="constrained")
    for cell in cells:
        true, predicted = pieces.load_trace(out, cell)
        for row, d in enumerate(dims):
            axis = axes[row, agents.index(cell.agent)]
            steps, live = np.arange(1, len(true) + 1), np.isfinite(true[:, d])
            if cell == next(c for c in cells if c.agent == cell.agent):
                axis.plot(steps, true[:, d], color="black", linewidth=2.2, label="true")
                span = np.nanmax(true[:, d]) - np.nanmin(true[:, d]) + 1e-9
                axis.set_ylim(np.nanmin(true[:, d]) - 0.6 * span, np.nanmax(true[:, d]) + 0.6 * span)
            color = COLORS[cell.method]
            axis.fill_between(steps[live], predicted[:, live, d].min(0), predicted[:, live, d].max(0), color=color,
                              alpha=0.25, linewidth=0)
            axis.plot(steps[live], predicted[:, live, d].mean(0), color=color, linewidth=1.2, linestyle="--",
                      label=cell.method)
            if row == 0:
                axis.set_title(_agent(environment, cell.agent), fontsize=9)
            if cell.agent == agents[0]:
                axis.set_ylabel(environment.state_names[d], fontsize=9)
            if row == len(dims) - 1:
                axis.set_xlabel("steps predicted", fontsize=9)
    _words(figure, axes, f"{environment.name}: predicted against true states (band: all members)")
    return _save(figure, out / f"{_stem(cells[0])}-trajectories.png")


def error_over_horizon(out: Path, environment: Environment, cells: list[Cell], records: dict[Cell, Record]) -> Path:
    """Root mean squared error after 1..51 steps, per agent and method, mean over seeds."""
    agents = sorted({cell.agent for cell in cells})
    figure, axes = _side_by_side(environment, agents, 2.9)
    for (method, agent), mine in _by_place(cells).items():
        curves = [records[c].error_by_step for c in mine if records[c].error_by_step]
        if curves:
            mean = np.array(curves, dtype=np.float64).mean(axis=0)     # None, where no episode is so long, becomes NaN
            axis = axes[agents.index(agent)]
            axis.semilogy(np.arange(1, len(mean) + 1), mean, color=COLORS[method], label=method)
            axis.set_xlabel("steps predicted", fontsize=9)
    axes[0].set_ylabel("RMSE, units of the state", fontsize=9)
    _words(figure, axes, f"{environment.name}: error grows with the horizon")
    return _save(figure, out / f"{_stem(cells[0])}-error.png")


def latent_rows(out: Path, environment: Environment, cell: Cell) -> Path:
    """The first member's agent rows, flattened by PCA and by t-SNE, coloured by covariates that training never saw."""
    rows = pieces.load_model(out, cell).rows[0].double().numpy()
    covariates = pieces.load_data(out, cell).covariates
    rows = (rows - rows.mean(0)) / rows.std(0)
    rows = np.c_[rows, rows] if rows.shape[1] == 1 else rows     # a line, where the rank is 1
    with threadpool_limits(1):     # t-SNE's threads wait for each other: ten times slower where the cores are busy
        flat = {"PCA": PCA(2, random_state=0).fit_transform(rows),
                "t-SNE": TSNE(2, random_state=0, perplexity=min(30.0, (len(rows) - 1) / 3)).fit_transform(rows)}
    names = environment.covariate_names
    figure, axes = plt.subplots(len(names), 2, figsize=(8.4, 3.6 * len(names)), squeeze=False, layout="constrained")
    for i, name in enumerate(names):
        for axis, (how, points) in zip(axes[i], flat.items(), strict=True):
            dots = axis.scatter(points[:, 0], points[:, 1], c=covariates[:, i], s=12, cmap="viridis")
            tests = points[:len(environment.test_agents)]
            axis.scatter(tests[:, 0], tests[:, 1], facecolors="none", edgecolors="red", s=60)
            for number, (x, y) in enumerate(tests, start=1):
                axis.annotate(str(number), (x, y), xytext=(5, 5), textcoords="offset points", color="red", fontsize=9)
            axis.set_title(how, fontsize=10)
            axis.set_xticks([])
            axis.set_yticks([])
        figure.colorbar(dots, ax=axes[i, 1], label=name)
    figure.suptitle(f"{environment.name}: learned agent rows know the hidden {' and '.join(names)}; "
                    "test agents in red", fontsize=11)
    return _save(figure, out / f"{_stem(cell)}-latent.png")


def returns(out: Path, environment: Environment, cells: list[Cell], records: dict[Cell, Record]) -> Path:
    """Return per agent and method: every episode a dot, the mean a bar, the paper's mean a black line."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    agents = sorted({cell.agent for cell in cells})
    figure, axis = plt.subplots(figsize=(max(NARROW, 2.0 * len(agents) + 1.5), 4), layout="constrained")
    width, by_place = 0.8 / len(methods), _by_place(cells)
    whole = all(not records[c].config["budget"]["return_steps"] for c in cells)
    for i, method in enumerate(methods):
        for x, agent in enumerate(agents):
            mine = by_place.get((method, agent), [])
            values = np.concatenate([records[c].returns for c in mine]) if mine else np.array([])
            if len(values) == 0:
                continue
            left = x + (i - (len(methods) - 1) / 2) * width
            axis.bar(left, values.mean(), width * 0.9, color=COLORS[method], alpha=0.5, label=method)
            axis.plot(np.linspace(left - width / 4, left + width / 4, len(values)), values, ".", color=COLORS[method],
                      markersize=4)
            published = paper(mine[0], "reward") if whole else None
            if published:
                axis.plot([left - width * 0.45, left + width * 0.45], [published[0]] * 2, color="black", linewidth=2)
    if whole:
        axis.plot([], [], color="black", linewidth=2, label="paper")
    axis.set_xticks(range(len(agents)), [_agent(environment, a) for a in agents], fontsize=9)
    steps = records[cells[0]].config["budget"]["return_steps"]
    axis.set_ylabel("return" if whole else f"return of the first {steps} steps")
    axis.axhline(0, color="black", linewidth=0.6)
    _words(figure, np.array([axis]), f"{environment.name}: return per agent")
    learned = max((max(records[c].returns, default=0.0) for c in cells if cases.METHODS[c.method].learns), default=0.0)
    if learned > 0 and axis.get_ylim()[1] > FAR * learned:     # the true HalfCheetah's somersaults
        axis.set_ylim(min(0.0, axis.dataLim.y0) - 0.05 * learned, 1.4 * learned)     # the paper's means, too
        for bar in (bar for bar in axis.patches if bar.get_height() > 1.4 * learned):
            axis.text(bar.get_x() + bar.get_width() / 2, 1.35 * learned, f"{bar.get_height():,.0f}", ha="center", va="top",
                      fontsize=7)
    return _save(figure, out / f"{_stem(next((c for c in cells if c.dataset != 'none'), cells[0]))}-returns.png")


def scarcity(out: Path, environment: Environment, cells: list[Cell], records: dict[Cell, Record]) -> Path:
    """Return by how many agents were logged, per agent and method: ours with the deviation over seeds, the paper's dashed."""
    agents = sorted({cell.agent for cell in cells})
    counts = sorted({baselines.budget_of(cell).agents for cell in cells})
    figure, axes = _side_by_side(environment, agents, 3.2)
    whole = all(not records[cell].config["budget"]["return_steps"] for cell in cells)
    for (method, agent), mine in _by_place(cells).items():
        axis, ours, theirs = axes[agents.index(agent)], [], []
        for count in counts:
            those = [cell for cell in mine if baselines.budget_of(cell).agents == count]
            means = [np.mean(records[cell].returns) for cell in those]
            if means:
                ours.append((count, np.mean(means), np.std(means, ddof=1) if len(means) > 1 else 0.0))
            published = paper(those[0], "reward") if those and whole else None
            if published:
                theirs.append((count, published[0]))
        axis.errorbar(*np.transpose(ours), color=COLORS[method], marker="o", markersize=3, capsize=2, label=method)
        if theirs:
            axis.plot(*np.transpose(theirs), color=COLORS[method], linestyle="--", marker="s", markersize=3,
                      label=f"{method}, paper")
        axis.set_xscale("log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.set_xlabel("agents logged", fontsize=9)
    steps = records[cells[0]].config["budget"]["return_steps"]
    axes[0].set_ylabel("return" if whole else f"return of the first {steps} steps", fontsize=9)
    behaviour = cases.DATASETS[cells[0].dataset].behaviour
    _words(figure, axes, f"{environment.name}: return by how many agents were logged, {behaviour} data")
    return _save(figure, out / f"{_stem(replace(cells[0], dataset=behaviour))}-scarcity.png")


def adaptation(out: Path, environment: Environment, cells: list[Cell], records: dict[Cell, Record]) -> Path:
    """50-step error for unseen agents by how many of their own steps PerSim was shown, every seed a dot, the mean a line; a
    horizontal line for each method that was shown none."""
    agents = sorted({cell.agent for cell in cells})
    figure, axes = _side_by_side(environment, agents, 3.4)
    counts = sorted({_shown(cell.method) for cell in cells} - {0})
    for agent, axis in zip(agents, axes, strict=True):
        errors = {method: [records[cell].rmse for cell in mine] for (method, number), mine in _by_place(cells).items()
                  if number == agent}
        alone, both = ({cases.METHODS[method].unseen.steps: those for method, those in errors.items() if _shown(method)
                        and bool(cases.METHODS[method].unseen.fraction) == known} for known in (False, True))
        for words, found, color, mark in (("own steps", alone, "black", "o"),
                                          ("own steps and covariates", both, COLORS["persim-p10-k10"], "D")):
            if found:
                axis.plot(sorted(found), [np.mean(found[count]) for count in sorted(found)], color=color, marker=mark,
                          markersize=4, label=words)
                axis.plot(*np.transpose([(count, error) for count, those in found.items() for error in those]), ".",
                          color=color, alpha=0.5, markersize=4)
        for i, (method, those) in enumerate((name, those) for name, those in errors.items() if not _shown(name)):
            axis.axhline(np.mean(those), color=COLORS[method], linestyle=("--", ":", "-.")[i % 3], linewidth=1.2, label=method)
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.xaxis.set_minor_locator(plt.NullLocator())
        axis.set_xlabel("own steps shown", fontsize=9)
    axes[0].set_ylabel("RMSE over 50 steps, units of the state", fontsize=9)
    _words(figure, axes, f"{environment.name}: unseen agents, {cells[0].dataset} data")
    return _save(figure, out / f"{_stem(cells[0])}-adaptation.png")


def _shown(method: str) -> int:
    """How many of an unseen agent's own steps a method is shown at most."""
    way = cases.METHODS[method].unseen
    return way.steps or 0 if way else 0


def _by_place(cells: Iterable[Cell]) -> dict[tuple[str, int], list[Cell]]:
    """(method, agent) -> its cells, in the order given."""
    found: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.method, cell.agent), []).append(cell)
    return found


def _agent(environment: Environment, agent: int) -> str:
    values = cases.covariates(environment.name, agent)
    return f"agent {agent}\n" + ", ".join(f"{k} {plain(v)}" for k, v in zip(environment.covariate_names, values, strict=True))


def _side_by_side(environment: Environment, agents: list[int], height: float) -> tuple[plt.Figure, np.ndarray]:
    """A panel for each agent, with its name above, all with one vertical axis."""
    figure, axes = plt.subplots(1, len(agents), figsize=(_width(agents), height), sharey=True, squeeze=False,
                                layout="constrained")
    for agent, axis in zip(agents, axes[0], strict=True):
        axis.set_title(_agent(environment, agent), fontsize=9)
        axis.grid(alpha=0.3)
    return figure, axes[0]


def _width(agents: list[int]) -> float:
    """Inches of a picture with a panel for each agent."""
    return max(NARROW, 2.7 * len(agents) + 0.6)


def _words(figure: plt.Figure, axes: np.ndarray, title: str) -> None:
    """The title, and one legend for all axes, as a method may be missing in some: both no wider than the picture."""
    entries = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    inches = figure.get_figwidth()
    each = 0.7 + 0.085 * max(map(len, entries), default=0)     # of an entry at that size of letters
    columns = math.ceil(len(entries) / math.ceil(len(entries) / max(1, int(inches / each))))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    figure.suptitle(fill(title, int(inches / 0.09)), fontsize=11)


def _stem(cell: Cell) -> str:
    return f"{cell.environment}-{cell.dataset}-{cell.budget}-{cell.settings}"


def _save(figure: plt.Figure, path: Path) -> Path:
    try:
        with whole(path) as partial:
            figure.savefig(partial, dpi=120)
    finally:
        plt.close(figure)
    return path
