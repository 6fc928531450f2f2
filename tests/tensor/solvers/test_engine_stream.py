"""Entries sorted into files give what the entries in memory give."""

import subprocess
import sys

import numpy as np
import pytest

from lowrank_rl.tensor.solvers.als import ALSConfig, InMemory, solve_als
from lowrank_rl.tensor.solvers.engine_stream import Sorted
from lowrank_rl.tensor.solvers.kernels import packed_size
from lowrank_rl.tensor.solvers.problem import Problem
from lowrank_rl.tensor.stream import Stream


def make(shape=(8, 9, 7), rank=2, count=300, weighted=False, ridge=0.0, non_negative=False, seed=0):
    rng = np.random.default_rng(seed)
    cells = rng.choice(int(np.prod(shape)), min(count, int(np.prod(shape)) // 2), replace=False)
    index = np.stack(np.unravel_index(cells, shape)).astype(np.int32)
    truth = [rng.random((n, rank)) for n in shape]
    value = np.prod([f[i] for f, i in zip(truth, index, strict=True)], axis=0).sum(1) + 0.1 * rng.standard_normal(len(cells))
    K = len(shape)
    problem = Problem(index, value, rng.random(len(cells)) + 0.5 if weighted else None, shape, rank, (ridge,) * K,
                      (non_negative,) * K, (False,) * K)
    return problem, tuple(rng.random((n, rank)) for n in shape)


def stream(problem, chunk=37):
    return Stream.from_arrays(problem.index.T, problem.value, problem.shape, problem.weight, chunk=chunk)


def normal(engine, factors, k):
    """All blocks in one, copied."""
    size, rank = factors[k].shape
    gram, rhs = np.full((size, packed_size(rank)), np.nan), np.full((size, rank), np.nan)
    for where, G, h in engine.normal(factors, k):
        gram[where], rhs[where] = G, h
    return gram, rhs


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(30, 20), (8, 9, 7), (5, 6, 4, 5), (70_000, 3, 4)])
def test_normal_equations_and_errors_are_those_in_memory(shape, weighted):
    problem, factors = make(shape, 3, weighted=weighted)
    memory, engine = InMemory(problem), Sorted(stream(problem))
    assert engine.square == pytest.approx(memory.square, rel=1e-13)
    assert engine.squared_error(factors) == pytest.approx(memory.squared_error(factors), rel=1e-12)
    for k in range(len(shape)):
        for one, two in zip(normal(engine, factors, k), normal(memory, factors, k), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-10)


@pytest.mark.parametrize("ridge", [0.0, 0.2])
@pytest.mark.parametrize("non_negative", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_als_gives_the_same_factors(weighted, non_negative, ridge):
    problem, start = make(weighted=weighted, ridge=ridge, non_negative=non_negative)
    config = ALSConfig(max_iter=10, tol=0.0)
    one, two = solve_als(problem, start, config), solve_als(problem, start, config, engine=Sorted(stream(problem)))
    assert one.history[-1]["loss"] == pytest.approx(two.history[-1]["loss"], rel=1e-10)
    for a, b in zip(one.factors, two.factors, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_sorted_files_are_the_layouts_in_memory(chunk, tmp_path):
    problem, factors = make(weighted=True)
    engine, memory = Sorted(stream(problem, chunk), tmp_path), InMemory(problem)
    for k in range(3):
        for one, two in zip(normal(engine, factors, k), normal(memory, factors, k), strict=True):
            assert (one == two).all()   # the sort is stable, so the sums are in the same order


def test_sorted_leaves_no_files(tmp_path):
    problem, factors = make()
    engine = Sorted(stream(problem), tmp_path / "new")
    assert engine.bytes_on_disk == 3 * 12 * len(problem.value)
    if sys.platform == "linux":
        assert list((tmp_path / "new").iterdir()) == []
    engine.squared_error(factors)
    del engine
    assert list((tmp_path / "new").iterdir()) == []


def test_sorted_names_a_folder_that_cannot_serve(tmp_path, monkeypatch):
    problem, _ = make()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="folder .*file: expected one that can be written"):
        Sorted(stream(problem), tmp_path / "file")
    from lowrank_rl.tensor.solvers import engine_stream
    monkeypatch.setattr(engine_stream.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match="bytes of free disk, got 10"):
        Sorted(stream(problem), tmp_path)
    monkeypatch.undo()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_stream, "_write", full)
    with pytest.raises(ValueError, match="No space left"):
        Sorted(stream(problem), tmp_path / "full")
    assert list((tmp_path / "full").iterdir()) == []


MEMORY = """
import sys, tracemalloc
import numpy as np
from lowrank_rl.tensor.solvers.als import ALSConfig, solve_als
from lowrank_rl.tensor.solvers.engine_stream import Sorted
from lowrank_rl.tensor.solvers.problem import Problem
from lowrank_rl.tensor.stream import Stream

def anonymous():   # bytes in memory that are no file's cache
    return sum(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

load = lambda name: np.load(f"{sys.argv[1]}/{name}.npy", mmap_mode="r")
small = Stream.from_arrays(load("index")[:1000], load("value")[:1000], (200, 300, 100))
stream = Stream.from_arrays(load("index"), load("value"), (200, 300, 100), chunk=100_000)
rng = np.random.default_rng(0)
start = tuple(rng.standard_normal((n, 4)) for n in stream.shape)
free = (0.1,) * 3, (False,) * 3, (False,) * 3
problem = Problem(np.empty((3, 0), np.int32), np.empty(0), None, stream.shape, 4, *free)
solve_als(problem, start, ALSConfig(max_iter=2), engine=Sorted(small))   # compiles
before = anonymous()
tracemalloc.start()
fit = solve_als(problem, start, ALSConfig(max_iter=3), engine=Sorted(stream))
print(max(tracemalloc.get_traced_memory()[1], anonymous() - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_bounded_by_the_chunk(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "index.npy", np.stack([rng.integers(0, n, 2_000_000) for n in (200, 300, 100)], axis=1))
    np.save(tmp_path / "value.npy", rng.standard_normal(2_000_000))   # 64 MB, and 24 sorted by one mode
    out = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) < 25e6
