"""Sums over Ray are those of one process, whoever dies on the way. One cluster of two simulated nodes serves all tests."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from lowrank_rl.tensor.solvers.als import ALSConfig, InMemory, solve_als
from lowrank_rl.tensor.solvers.engine_ray import RayEngine, _shares, _Worker
from lowrank_rl.tensor.solvers.kernels import packed_size
from lowrank_rl.tensor.solvers.problem import Problem
from lowrank_rl.tensor.stream import Stream


def make(shape=(8, 90, 7), rank=2, count=1500, weighted=False, ridge=0.0, non_negative=False, seed=0):
    rng = np.random.default_rng(seed)
    cells = rng.choice(int(np.prod(shape)), min(count, int(np.prod(shape)) // 2), replace=False)
    index = np.stack(np.unravel_index(cells, shape)).astype(np.int32)
    truth = [rng.random((n, rank)) for n in shape]
    value = np.prod([f[i] for f, i in zip(truth, index, strict=True)], axis=0).sum(1) + 0.1 * rng.standard_normal(len(cells))
    K = len(shape)
    problem = Problem(index, value, rng.random(len(cells)) + 0.5 if weighted else None, shape, rank, (ridge,) * K,
                      (non_negative,) * K, (False,) * K)
    return problem, tuple(rng.random((n, rank)) for n in shape)


def normal(engine, factors, k):
    """All blocks in one, copied."""
    size, rank = factors[k].shape
    gram, rhs = np.full((size, packed_size(rank)), np.nan), np.full((size, rank), np.nan)
    for where, G, h in engine.normal(factors, k):
        gram[where], rhs[where] = G, h
    return gram, rhs


CONFIG = ALSConfig(max_iter=8, tol=0.0)


def agree(one, two):
    assert one.history[-1]["loss"] == pytest.approx(two.history[-1]["loss"], rel=1e-10)
    for a, b in zip(one.factors, two.factors, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", [(30, 20), (8, 9, 7), (5, 60, 4, 5)])
def test_the_shares_sums_make_up_the_whole(shape, weighted):
    problem, factors = make(shape, 3, 400, weighted)
    memory, workers = InMemory(problem), [_Worker(share) for share in _shares(problem, 3)]
    assert sum(w.square() for w in workers) == pytest.approx(memory.square)
    assert sum(w.squared_error(factors) for w in workers) == pytest.approx(memory.squared_error(factors))
    for k, size in enumerate(shape):
        gram, rhs = np.zeros((size, packed_size(3))), np.zeros((size, 3))
        for first in range(0, size, 4):
            last = min(first + 4, size)
            for worker in workers:
                rows, G, h = worker.normal(factors, k, first, last)
                gram[first:last][rows] += G
                rhs[first:last][rows] += h
        for one, two in zip((gram, rhs), normal(memory, factors, k), strict=True):
            np.testing.assert_allclose(one, two, atol=1e-10)


def test_a_row_of_the_largest_mode_is_with_one_worker_or_two():
    problem, _ = make()
    held = np.array([np.bincount(share.index[1], minlength=90) > 0 for share in _shares(problem, 3)])
    assert held.sum() <= 92
    assert len(list(_shares(replace(problem, index=problem.index[:, :2], value=problem.value[:2]), 5))) == 2


def test_without_ray_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match="pip install 'lowrank_rl\\[ray\\]'"):
        RayEngine(make()[0])


@pytest.mark.slow
def test_without_a_cluster_one_is_started_in_silence_and_ended(tmp_path, monkeypatch, capfd):
    ray = pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    problem, factors = make()
    with RayEngine(problem, 2) as engine:
        agree(solve_als(problem, factors, CONFIG, engine=engine), solve_als(problem, factors, CONFIG))
    assert not ray.is_initialized()
    assert list(tmp_path.iterdir()) == []
    assert "".join(capfd.readouterr()) == ""
    with pytest.raises(ValueError, match="got a closed one"):
        engine.squared_error(factors)
    with pytest.raises(ValueError, match="address '127.0.0.1:1': expected a Ray cluster that runs"):
        RayEngine(problem, 1, address="127.0.0.1:1")


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    small = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    soon = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**small, "_system_config": soon})
    cluster.second = cluster.add_node(**small)
    ray.init(cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def problem_and_start():
    return make(weighted=True, ridge=0.1, non_negative=True)


@pytest.fixture(scope="module")
def engine(cluster, problem_and_start, tmp_path_factory):
    """Of a parquet file, by row groups that do not end where shares do."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    problem, _ = problem_and_start
    path = tmp_path_factory.mktemp("parquet") / "a.parquet"
    columns = [*problem.index, problem.value, problem.weight]
    pq.write_table(pa.table(dict(zip("abcyw", columns, strict=True))), path, row_group_size=200)
    with RayEngine(Stream.from_parquet(path, list("abc"), "y", problem.shape, "w", chunk=150), 2) as engine:
        engine.cluster = cluster
        yield engine


@pytest.mark.slow
def test_als_over_ray_is_als(engine, problem_and_start):
    problem, start = problem_and_start
    assert engine.square == pytest.approx(InMemory(problem).square, rel=1e-12)
    assert engine.squared_error(start) == pytest.approx(InMemory(problem).squared_error(start), rel=1e-12)
    expected = solve_als(problem, start, CONFIG)
    one, two = (solve_als(problem, start, CONFIG, engine=engine) for _ in range(2))
    agree(one, expected)
    assert all((a == b).all() for a, b in zip(one.factors, two.factors, strict=True))


@pytest.mark.slow
def test_workers_have_one_thread_and_their_errors_come_through(engine, problem_and_start):
    import ray
    assert ray.get(engine._actors[0].__ray_call__.remote(lambda self: __import__("torch").get_num_threads())) == 1
    with pytest.raises(ray.exceptions.RayTaskError):
        next(iter(engine._all("squared_error", problem_and_start[1][:1])))


@pytest.mark.slow
def test_als_goes_on_when_a_node_dies(engine, problem_and_start):
    import ray
    problem, start = problem_and_start
    nodes = ray.get([actor.__ray_call__.remote(lambda self: __import__("ray").get_runtime_context().get_node_id())
                     for actor in engine._actors])
    assert len(set(nodes)) == 2
    before = list(engine._actors)

    def pull_the_plug(entry, _):
        if entry["iteration"] == 3:
            engine.cluster.remove_node(engine.cluster.second, allow_graceful=False)

    fit = solve_als(problem, start, CONFIG, engine=engine, progress=pull_the_plug)
    agree(fit, solve_als(problem, start, CONFIG))
    assert sum(a is not b for a, b in zip(before, engine._actors, strict=True)) == 1


@pytest.mark.slow
def test_a_worker_that_dies_during_a_call_is_made_again(engine, problem_and_start, monkeypatch):
    import ray
    factors = problem_and_start[1]
    expected = normal(engine, factors, 1)
    dead, asked = engine._actors[1], engine._ask

    def ask_and_kill(n, method, arguments):
        if engine._actors[n] is not dead:
            return asked(n, method, arguments)
        dead.__ray_call__.remote(lambda self: __import__("time").sleep(60))   # so that the call is still to come
        answer = asked(n, method, arguments)
        ray.kill(dead)
        return answer

    monkeypatch.setattr(engine, "_ask", ask_and_kill)
    for one, two in zip(normal(engine, factors, 1), expected, strict=True):
        assert (one == two).all()
    assert engine._actors[1] is not dead


@pytest.mark.slow
def test_a_worker_that_dies_each_time_is_given_up(engine, problem_and_start, monkeypatch):
    import ray
    asked = engine._ask

    def ask_and_kill(n, method, arguments):
        if n == 0:
            ray.kill(engine._actors[n])
        return asked(n, method, arguments)

    monkeypatch.setattr(engine, "_ask", ask_and_kill)
    with pytest.raises(ValueError, match="number 0 died 5 times in a row .*actor"):
        engine.squared_error(problem_and_start[1])


@pytest.mark.slow
def test_no_room_on_the_cluster_is_an_error(cluster):
    with pytest.raises(ValueError, match="expected number 0 to start within"):
        RayEngine(make()[0], 1, patience=0.001)
