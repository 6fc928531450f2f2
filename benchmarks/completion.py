"""Discrete completion beside its peers: time, memory, and how often the right tensor is found.

    python benchmarks/completion.py peers       # against TensorLy's masked parafac and pyttb's gcp_opt; 5 minutes
    python benchmarks/completion.py sweeps      # one ALS sweep against the machine's own peaks; 1 minute
    python benchmarks/completion.py scaling     # entries, order and rank; 5 minutes and 5 GB
    python benchmarks/completion.py recovery    # the map of what is found; half an hour, resumes where it was stopped

One thread each, each measurement in a process of its own, after compilation. Prints Markdown, writes results/completion-*.csv
(and docs/images/completion-*.png), or both into a folder that is named after the command. ``peers`` needs pyttb: pip install
'lowrank_rl[peers]'.
"""
# ruff: noqa: E402 (threads are counted when NumPy is imported)

import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np
from tables import done, show, write

from lowrank_rl.tensor.completion import CPCompletion
from lowrank_rl.tensor.solvers.als import ALSConfig, InMemory, solve_als
from lowrank_rl.tensor.solvers.anneal import random_start
from lowrank_rl.tensor.solvers.ccd import CCDConfig, solve_ccd
from lowrank_rl.tensor.solvers.layout import Layouts
from lowrank_rl.tensor.solvers.lm import LMConfig, solve_lm
from lowrank_rl.tensor.solvers.problem import Factors, Problem

RESULTS = Path("results")
NOISE, TARGET, HELD_OUT = 1e-3, 2e-3, 200_000
PROBLEMS = {"A": (200, 5, 800_000), "B": (1000, 10, 5_000_000)}   # rows per mode, rank, entries
PEER_SECONDS = 100.0    # after which a peer is stopped


def planted(size: int, rank: int, entries: int, *, seed: int, order: int = 3,
            correlation: float = 0.0) -> tuple[np.ndarray, np.ndarray, Factors]:
    """Coordinates (B, K) int32 without repeats, noisy values of variance 1, and the factors behind them.

    Columns of a factor share a common vector: their expected correlation is ``correlation``.
    """
    rng = np.random.default_rng([seed, 1])
    common, own = np.sqrt(correlation), np.sqrt(1 - correlation)
    factors = [common * rng.standard_normal((size, 1)) + own * rng.standard_normal((size, rank)) for _ in range(order)]
    cells = size ** order
    if cells <= 10_000_000:
        flat = rng.permutation(cells)[:entries]
    else:
        flat = np.unique(rng.integers(0, cells, int(1.1 * entries) + 10))
        flat = rng.permutation(flat)[:entries]
    index = np.empty((len(flat), order), np.int32)
    for k in reversed(range(order)):
        flat, index[:, k] = np.divmod(flat, size)
    value = at(factors, index)
    factors[0] /= value.std()
    return index, value / value.std() + NOISE * rng.standard_normal(len(value)), tuple(factors)


def at(factors: Factors, index: np.ndarray) -> np.ndarray:
    """Entries (B,) of the tensor with these factors, in pieces that fit the cache."""
    value = np.empty(len(index))
    for first in range(0, len(index), 1 << 14):
        terms = factors[0][index[first:first + (1 << 14), 0]]
        for factor, i in zip(factors[1:], index[first:first + (1 << 14), 1:].T, strict=True):
            terms = terms * factor[i]
        value[first:first + (1 << 14)] = terms.sum(1)
    return value


def held_out(factors: Factors) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates at random and their values without noise."""
    rng = np.random.default_rng(987)
    index = np.stack([rng.integers(0, len(f), HELD_OUT) for f in factors], axis=1).astype(np.int32)
    return index, at(factors, index)


def rmse(value: np.ndarray, true: np.ndarray) -> float:
    return float(np.sqrt(np.mean((value - true) ** 2)))


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(function: Callable[..., dict], *arguments) -> dict:
    """What ``function`` gives in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


class Clock:
    """CPU and wall seconds, without the pauses in which the result so far is judged."""

    def __init__(self) -> None:
        self.began, self.paused = (time.process_time(), time.monotonic()), (0.0, 0.0)

    def read(self) -> tuple[float, float]:
        now = time.process_time(), time.monotonic()
        return tuple(n - b - p for n, b, p in zip(now, self.began, self.paused, strict=True))

    def judge(self, function: Callable[[], float]) -> float:
        before = time.process_time(), time.monotonic()
        result = function()
        after = time.process_time(), time.monotonic()
        self.paused = tuple(p + a - b for p, a, b in zip(self.paused, after, before, strict=True))
        return result


class Stop(Exception):
    pass


def save_planted(problem: str, seed: int, folder: str) -> dict:
    size, rank, entries = PROBLEMS[problem]
    index, value, factors = planted(size, rank, entries, seed=seed)
    np.save(f"{folder}/index.npy", index)
    np.save(f"{folder}/value.npy", value)
    np.save(f"{folder}/factors.npy", np.stack(factors))
    return {}


def ours(problem: str, folder: str, stop: bool) -> dict:
    """The whole fit, from arrays to CP, or ``stop`` at the target, as the peers do.

    Peak memory: with Python, the libraries and the user's arrays (int32 and float64).
    """
    size, rank, _ = PROBLEMS[problem]
    small, value, _ = planted(30, 2, 3000, seed=0)
    began = time.process_time()
    CPCompletion(rank=2, shape=(30,) * 3).fit(small, value)        # compiles, or loads from the cache
    compiling = time.process_time() - began
    index, value = np.load(f"{folder}/index.npy"), np.load(f"{folder}/value.npy")
    before = peak_mb()
    factors = tuple(np.load(f"{folder}/factors.npy"))
    clock = Clock()

    heard = []

    def watch(entry, cp):
        heard.append(entry)
        return clock.judge(lambda: judge_cp(cp.factors, cp.weights, factors)) < TARGET
    model = CPCompletion(rank=rank, shape=(size,) * 3, callback=watch if stop else None).fit(index, value)
    cpu, wall = clock.read()
    peak = peak_mb()
    return {"iterations": len(heard) or model.n_iter_, "starts": len(model.starts_), "cpu_s": cpu, "wall_s": wall,
            "first_call_s": compiling, "peak_mb": peak, "peak_before_mb": before,
            "rmse": judge_cp(model.factors_, model.cp_.weights, factors)}


def judge_cp(fitted: Factors, weights: np.ndarray, factors: Factors) -> float:
    index, true = held_out(factors)
    return rmse(at((fitted[0] * weights, *fitted[1:]), index), true)


def dense(problem: str, seed: int) -> tuple[np.ndarray, np.ndarray, Factors]:
    """What the peers take: the tensor with zeros at missing entries, and the mask."""
    size, rank, entries = PROBLEMS[problem]
    index, value, factors = planted(size, rank, entries, seed=seed)
    tensor, mask = np.zeros((size,) * 3), np.zeros((size,) * 3)
    tensor[tuple(index.T)], mask[tuple(index.T)] = value, 1.0
    return tensor, mask, factors


def tensorly(problem: str, seed: int) -> dict:
    import tensorly.decomposition as peer
    tensor, mask, factors = dense(problem, seed)
    state = {"iterations": 0, "rmse": float("nan")}
    clock = Clock()

    def watch(cp, error=None):
        state["iterations"] += 1
        state["rmse"] = clock.judge(lambda: judge_cp(cp[1], cp[0], factors))
        if state["rmse"] < TARGET or clock.read()[1] > PEER_SECONDS:
            raise Stop
    with contextlib.suppress(Stop):
        peer.parafac(tensor, PROBLEMS[problem][1], n_iter_max=10_000, init="random", tol=1e-300, mask=mask, random_state=seed,
                     callback=watch)
    cpu, wall = clock.read()
    return {**state, "cpu_s": cpu, "wall_s": wall, "peak_mb": peak_mb()}


def pyttb(problem: str, seed: int) -> dict:
    import pyttb as ttb
    from pyttb.gcp.optimizers import LBFGSB
    tensor, mask, factors = dense(problem, seed)
    size, rank, _ = PROBLEMS[problem]
    state = {"iterations": 0, "rmse": float("nan")}
    rng = np.random.default_rng(seed)
    start = ttb.ktensor([rng.standard_normal((size, rank)) for _ in range(3)])
    clock = Clock()

    def watch(x):
        state["iterations"] += 1
        parts = [np.reshape(x[k * size * rank:(k + 1) * size * rank], (size, rank), order="F") for k in range(3)]
        state["rmse"] = clock.judge(lambda: judge_cp(parts, np.ones(rank), factors))
        if state["rmse"] < TARGET or clock.read()[1] > PEER_SECONDS:
            raise Stop
    with contextlib.suppress(Stop):
        ttb.gcp_opt(ttb.tensor(tensor), rank, ttb.gcp.handles.Objectives.GAUSSIAN, LBFGSB(maxiter=10_000, callback=watch),
                    init=start, mask=ttb.tensor(mask), printitn=0)
    cpu, wall = clock.read()
    return {**state, "cpu_s": cpu, "wall_s": wall, "peak_mb": peak_mb()}


def peers(results: Path) -> None:
    rows = []
    for problem in PROBLEMS:
        for seed in range(5):
            with tempfile.TemporaryDirectory() as folder:
                alone(save_planted, problem, seed, folder)
                for method, stop in (("CPCompletion, whole fit", False), ("CPCompletion, to the target", True)):
                    rows.append({"problem": problem, "method": method, "seed": seed, **alone(ours, problem, folder, stop)})
                    show(rows[-1])
    needed = 3 * 8 * PROBLEMS["B"][0] ** 3 / 1e9
    for method, run in (("TensorLy parafac(mask)", tensorly), ("pyttb gcp_opt(mask)", pyttb)):
        for seed in range(3):
            rows.append({"problem": "A", "method": method, "seed": seed, **alone(run, "A", seed)})
            show(rows[-1])
        rows.append({"problem": "B", "method": method, "note": f"not run: tensor, mask and copy take {needed:.0f} GB"})
        show(rows[-1])
    best = np.median([row["cpu_s"] for row in rows if row["method"] == "CPCompletion, to the target" and row["problem"] == "A"])
    for row in rows:
        if row["problem"] == "A" and "cpu_s" in row:
            row["ratio_to_ours"] = row["cpu_s"] / best
            row["note"] = "" if row["rmse"] < TARGET else f"target not reached in {PEER_SECONDS:.0f} s"
    write(results / "completion-peers.csv", rows)


def one_sweep(size: int, rank: int, entries: int, order: int) -> dict:
    """CPU seconds of setup and of a sweep (the least of six, and their median), and what that is in work."""
    index, value, _ = planted(size, rank, entries, seed=0, order=order)
    columns = np.ascontiguousarray(index.T)
    del index
    problem = Problem(columns, value, None, (size,) * order, rank, (1e-6,) * order, (False,) * order, (False,) * order)
    few = Problem(columns[:, :1000].copy(), value[:1000], None, *(getattr(problem, x) for x in (
        "shape", "rank", "ridge", "non_negative", "fixed")))
    start = random_start(problem, generator=np.random.default_rng(0))
    solve_als(few, start, ALSConfig(max_iter=2, momentum=False))                              # compiles
    began = time.process_time()
    layouts = Layouts(problem)
    for k in range(order):
        layouts[k]
    setup = time.process_time() - began
    marks = [time.process_time()]
    solve_als(problem, start, ALSConfig(max_iter=6, tol=0.0, momentum=False), engine=InMemory(problem, layouts),
              progress=lambda *_: marks.append(time.process_time()))
    sweep = np.diff(marks)
    flops = order * entries * ((order - 2) * rank + rank * (rank + 1) + 2 * rank)
    moved = sum(layouts[k].record.nbytes for k in range(order))
    return {"size": size, "order": order, "rank": rank, "entries": entries, "setup_s": setup, "sweep_s": float(sweep.min()),
            "sweep_median_s": float(np.median(sweep)), "setup_in_sweeps": setup / float(np.median(sweep)),
            "gflop_per_s": flops / sweep.min() / 1e9, "gb_per_s": moved / sweep.min() / 1e9, "peak_mb": peak_mb()}


def machine() -> dict:
    """This machine's own peaks, one thread: multiply-adds by a matrix product, memory by a copy."""
    a = np.random.default_rng(0).standard_normal((2000, 2000))
    product, copy = [], []
    big = np.ones(50_000_000)
    other = np.empty_like(big)
    for _ in range(5):
        began = time.process_time()
        a @ a
        product.append(2 * 2000 ** 3 / (time.process_time() - began) / 1e9)
        began = time.process_time()
        np.copyto(other, big)
        copy.append(2 * big.nbytes / (time.process_time() - began) / 1e9)
    return {"peak_gflop_per_s": max(product), "peak_gb_per_s": max(copy)}


def sweeps(results: Path) -> None:
    peaks = alone(machine)
    rows = []
    for problem, (size, rank, entries) in PROBLEMS.items():
        rows.append({"problem": problem, **alone(one_sweep, size, rank, entries, 3), **peaks})
        show(rows[-1])
    write(results / "completion-sweeps.csv", rows)


def scaling(results: Path) -> None:
    rows = []
    for what, cases in {"entries": [(1000, 10, int(n), 3) for n in (1e5, 3e5, 1e6, 3e6, 1e7, 5e7)],
                        "order": [(100, 10, 1_000_000, order) for order in (3, 4, 5, 6)],
                        "rank": [(1000, rank, 1_000_000, 3) for rank in (2, 4, 8, 16, 32, 64)]}.items():
        for case in cases:
            rows.append({"varied": what, **alone(one_sweep, *case)})
            show(rows[-1])
    write(results / "completion-scaling.csv", rows)
    scaling_picture(rows, results)


def scaling_picture(rows: list[dict], results: Path) -> None:
    """Seconds per sweep and peak memory; dashed: in proportion, through the largest case."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    titles = {"entries": "1000^3, rank 10", "order": "100^order, rank 10, 1e6 entries", "rank": "1000^3, 1e6 entries"}
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), sharex="col", layout="constrained")
    for column, (varied, title) in zip(axes.T, titles.items(), strict=True):
        some = [row for row in rows if row["varied"] == varied]
        x = np.array([float(row[varied]) for row in some])
        for ax, (name, unit) in zip(column, (("sweep_median_s", "CPU seconds per sweep"), ("peak_mb", "peak memory, MB")),
                                    strict=True):
            y = np.array([float(row[name]) for row in some])
            ax.plot(x, y, "o-")
            if name == "sweep_median_s" and varied != "order":
                power = 2 if varied == "rank" else 1
                label = "in proportion" + (" to R^2" if power == 2 else "")
                ax.plot(x, y[-1] * (x / x[-1]) ** power, "--", color="gray", label=label)
                ax.legend()
            if varied != "order":
                ax.set_xscale("log", base=10 if varied == "entries" else 2)
                ax.set_yscale("log")
            ax.set_ylabel(unit)
        column[0].set_title(title, fontsize=10)
        column[1].set_xlabel(varied)
    save_picture(figure, results, "completion-scaling.png")


CORRELATIONS, PLENTY, SEEDS = (0.0, 0.5, 0.9), (30, 10, 5, 3), 20
SIZE, RANK = 50, 4
FREE = RANK * (3 * SIZE - 2)     # the model's degrees of freedom
METHODS = ("als, random start", "ccd, random start", "lm, random start",
           "CPCompletion(solver='ccd')", "CPCompletion(solver='lm')", "CPCompletion()")


def recover(method: str, correlation: float, plenty: int) -> dict:
    """How many of SEEDS problems are found, by the held-out error."""
    found, seconds, starts = 0, [], []
    for seed in range(SEEDS):
        index, value, factors = planted(SIZE, RANK, plenty * FREE, seed=seed, correlation=correlation)
        began = time.process_time()
        if method.startswith("CPCompletion"):
            solver = "als" if method == "CPCompletion()" else method.split("'")[1]
            model = CPCompletion(rank=RANK, shape=(SIZE,) * 3, solver=solver, random_state=seed).fit(index, value)
            fitted, weights = model.factors_, model.cp_.weights
            starts.append(len(model.starts_))
        else:
            no = (False,) * 3
            problem = Problem(np.ascontiguousarray(index.T), value, None, (SIZE,) * 3, RANK, (1e-6,) * 3, no, no)
            start = random_start(problem, generator=np.random.default_rng([seed, 2]))
            solve, config = {"als": (solve_als, ALSConfig(max_iter=1000)), "ccd": (solve_ccd, CCDConfig(max_iter=3000)),
                             "lm": (solve_lm, LMConfig())}[method.split(",")[0]]
            fit = solve(problem, start, config)
            fitted, weights = fit.factors, np.ones(RANK)
            starts.append(1)
        seconds.append(time.process_time() - began)
        found += judge_cp(fitted, weights, factors) < 5 * NOISE
    return {"found": found, "of": SEEDS, "mean_cpu_s": float(np.mean(seconds)), "max_cpu_s": float(np.max(seconds)),
            "mean_starts": float(np.mean(starts))}


def recovery(results: Path) -> None:
    path = results / "completion-recovery.csv"
    rows = done(path)
    for method in reversed(METHODS):   # the default first
        for correlation in CORRELATIONS:
            for plenty in PLENTY:
                key = {"method": method, "correlation": str(correlation), "entries_per_free_number": str(plenty)}
                if any(key.items() <= row.items() for row in rows):
                    continue
                rows.append({**key, **alone(recover, method, correlation, plenty)})
                show(rows[-1])
                write(path, rows)
    picture(rows, results)


def picture(rows: list[dict], results: Path) -> None:
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(2, 3, figsize=(9, 5.2), sharex=True, sharey=True, layout="constrained")
    for ax, method in zip(axes.flat, METHODS, strict=True):
        share = np.array([[next(int(r["found"]) for r in rows if r["method"] == method and float(r["correlation"]) == c and
                                int(r["entries_per_free_number"]) == p) for p in PLENTY[::-1]] for c in CORRELATIONS])
        image = ax.imshow(share / SEEDS, vmin=0, vmax=1, cmap="viridis", aspect="auto")
        for (i, j), count in np.ndenumerate(share):
            ax.text(j, i, str(count), ha="center", va="center", color="black" if count > SEEDS / 2 else "white")
        ax.set_title(method, fontsize=10)
        ax.set_xticks(range(len(PLENTY)), [str(p) for p in PLENTY[::-1]])
        ax.set_yticks(range(len(CORRELATIONS)), [str(c) for c in CORRELATIONS])
    figure.supxlabel("observed entries per free number of the model")
    figure.supylabel("correlation of the terms")
    figure.colorbar(image, ax=axes, label=f"share found (numbers: of {SEEDS} problems)")
    figure.suptitle(f"Which tensors are found: {SIZE}x{SIZE}x{SIZE}, rank {RANK}, noise {NOISE:g}", fontsize=11)
    save_picture(figure, results, "completion-recovery.png")


def save_picture(figure, results: Path, name: str) -> None:
    figure.savefig((Path("docs/images") if results == RESULTS else results) / name, dpi=110)


COMMANDS = {"peers": peers, "sweeps": sweeps, "scaling": scaling, "recovery": recovery}

if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[1] not in COMMANDS:
        sys.exit(f"expected one of {', '.join(COMMANDS)}, and perhaps a folder for tables and pictures")
    COMMANDS[sys.argv[1]](Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS)
