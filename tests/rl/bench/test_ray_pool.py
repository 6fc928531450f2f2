"""Tasks on a Ray cluster end as on worker processes, whatever dies on the way. One cluster of simulated machines serves all."""

import os
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank_rl.rl.bench import __main__ as bench
from lowrank_rl.rl.bench import ray_machines, ray_pool
from lowrank_rl.rl.bench.pool import Task
from lowrank_rl.rl.bench.ray_pool import run
from lowrank_rl.rl.bench.store import Store

ROOT = Path(__file__).parents[3]


class Notes:
    """A watcher that remembers."""

    def __init__(self):
        self.started_, self.results, self.messages, self.words, self.again = [], {}, {}, [], []

    def started(self, task):
        self.started_.append(task.name)

    def said(self, task, words, share):
        self.words.append((task.name, words, share))

    def retried(self, task, message):
        self.again.append((task.name, message))

    def done(self, task, result):
        self.results[task.name] = result

    def failed(self, task, message):
        self.messages[task.name] = message


def mark(folder, name):
    """One more time that this has begun."""
    (folder / f"{name}.{uuid.uuid4().hex}").touch()


def times(folder, name):
    return len(list(folder.glob(f"{name}.*")))


def square(folder, name, x, say):
    mark(folder, name)
    say(f"squaring {x}", 0.5)
    return x * x


def refuse(folder, say):
    mark(folder, "refuse")
    raise ValueError("no such thing")


def stumble(folder, say):
    mark(folder, "stumble")
    return [][1]


def mend(folder, say):
    """Fails the first time."""
    mark(folder, "mend")
    if times(folder, "mend") == 1:
        raise OSError("the network is away")
    return "mended"


def die(folder, say):
    mark(folder, "die")
    os._exit(3)


def wait(folder, name, say):
    """On which machine, when it may go on."""
    import ray
    mine = ray.get_runtime_context().get_node_id()
    mark(folder, name)
    (folder / f"{name}-on-{mine}").touch()
    until = time.monotonic() + 120
    while not (folder / "go").exists():
        assert time.monotonic() < until, "nobody said that it may go on"
        say("waiting", 0.5)
        time.sleep(0.1)
    return mine


def needs(*names):
    return frozenset(names)


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(Path(__file__).parent)]))     # of the machines' processes
        small = {"num_cpus": 2, "object_store_memory": 100 * 2**20, "include_dashboard": False}
        soon = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 3,
                "worker_niceness": 0}     # by default workers give way to whatever else runs
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**small, "num_gpus": 1, "_system_config": soon})
        cluster.second = cluster.add_node(**small)
        ray.init(cluster.address, log_to_driver=False)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


pytestmark = pytest.mark.slow


def test_ends_of_every_kind(cluster, tmp_path):
    tasks = [Task("a", square, (tmp_path, "a", 2)), Task("b", square, (tmp_path, "b", 3), needs("a")),
             Task("bad", refuse, (tmp_path,)), Task("of bad", square, (tmp_path, "of bad", 1), needs("bad")),
             Task("bug", stumble, (tmp_path,)), Task("mend", mend, (tmp_path,)), Task("dead", die, (tmp_path,)),
             Task("of mend", square, (tmp_path, "c", 4), needs("mend", "b"))]
    notes = Notes()
    run(tasks, notes, [tmp_path], retries=2)
    assert notes.results == {"a": 4, "b": 9, "mend": "mended", "of mend": 16}
    assert notes.messages["bad"].endswith("\nno such thing")
    assert "in refuse" in notes.messages["bad"]
    assert "\nneeds bad, which failed: " in notes.messages["of bad"]
    assert "in stumble" in notes.messages["bug"]
    assert "its process died" in notes.messages["dead"]
    assert {name: times(tmp_path, name) for name in ("a", "b", "refuse", "stumble", "mend", "die")} == {
        "a": 1, "b": 1, "refuse": 1, "stumble": 3, "mend": 2, "die": 3}
    assert sorted(name for name, _ in notes.again) == ["bug", "bug", "dead", "dead", "mend"]
    assert not list(tmp_path.glob(".seen*"))


def test_a_machine_that_dies_takes_nothing_with_it(cluster, tmp_path):
    """Four tasks at once on two machines of two; one machine is killed while its two are at work. Only they begin again."""
    import ray
    second = cluster.second.node_id

    class Killer(Notes):
        def said(self, task, words, share):
            super().said(task, words, share)
            if len(list(tmp_path.glob("*-on-*"))) == 4 and not self.killed:
                self.killed = [path.name.partition("-on-")[0] for path in tmp_path.glob(f"*-on-{second}")]
                cluster.remove_node(cluster.second, allow_graceful=False)

        def retried(self, task, message):
            super().retried(task, message)
            if len(self.again) == 2:
                (tmp_path / "go").touch()

    notes = Killer()
    notes.killed = []
    first = [Task(f"early {i}", square, (tmp_path, f"early {i}", i)) for i in range(2)]
    tasks = [*first, *(Task(f"long{i}", wait, (tmp_path, f"long{i}"), needs("early 0", "early 1")) for i in range(4)),
             Task("last", square, (tmp_path, "last", 5), needs(*(f"long{i}" for i in range(4))))]
    run(tasks, notes, [tmp_path], retries=0)
    assert len(notes.killed) == 2
    assert ("long0", "waiting", 0.5) in notes.words
    assert notes.messages == {}
    assert notes.results["last"] == 25
    assert {name: times(tmp_path, name) for name in ("early 0", "early 1", "last")} == {"early 0": 1, "early 1": 1, "last": 1}
    assert {f"long{i}": times(tmp_path, f"long{i}") for i in range(4)} == {
        f"long{i}": 2 if f"long{i}" in notes.killed else 1 for i in range(4)}
    assert sorted(name for name, _ in notes.again) == sorted(notes.killed)
    assert all(message == "its machine died" for _, message in notes.again)
    assert {notes.results[name] for name in notes.killed} == {ray.get_runtime_context().get_node_id()}


def test_words_go_on_after_what_carries_them_has_died(cluster, tmp_path, monkeypatch):
    import ray
    carriers, create = [], ray_pool._Cluster.__init__

    def noticed(self, *arguments):
        create(self, *arguments)
        carriers.append(self.words)
    monkeypatch.setattr(ray_pool._Cluster, "__init__", noticed)

    class Killer(Notes):
        def said(self, task, words, share):
            super().said(task, words, share)
            if len(self.words) == 1:
                ray.kill(carriers[0], no_restart=False)
            else:
                (tmp_path / "go").touch()
    notes = Killer()
    run([Task("talks", wait, (tmp_path, "talks"))], notes, [tmp_path])
    assert list(notes.results) == ["talks"]


def test_a_machine_that_joins_unfit_is_left_out(cluster, tmp_path, monkeypatch):
    """It lacks the package. Nothing runs on it, and nothing else notices."""
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / "sitecustomize.py").write_text("import sys\nsys.modules['lowrank_rl'] = None\n")
    joined = []

    class Joiner(Notes):
        def said(self, task, words, share):
            super().said(task, words, share)
            if not joined:
                joined.append(cluster.add_node(num_cpus=4, object_store_memory=100 * 2**20,
                                               env_vars={"PYTHONPATH": str(lacking)}))

    look = ray_machines.Machines.look

    def then_go(machines):
        look(machines)
        if joined and joined[0].node_id in machines._fit | machines._unfit:
            (tmp_path / "go").touch()
    monkeypatch.setattr(ray_machines.Machines, "look", then_go)
    notes = Joiner()
    tasks = [Task("0", wait, (tmp_path, "0")), *(Task(f"{i}", wait, (tmp_path, f"{i}"), needs("0")) for i in range(1, 7))]
    try:
        with pytest.warns(UserWarning, match="has joined and is left out of this run: expected lowrank_rl 0.1.0"):
            run(tasks, notes, [tmp_path], retries=0)
    finally:
        for node in joined:
            cluster.remove_node(node)
    assert len(notes.results) == 7
    assert joined[0].node_id not in notes.results.values()
    assert notes.again == []


def test_a_machine_that_joins_and_does_not_answer(monkeypatch, tmp_path):
    """Nobody waits for it; after its time it is left out."""
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 1.0}, "NodeManagerHostname": name, "NodeManagerAddress": "x"}
             for name in ("old", "silent")]
    waits = []

    def wait(answers, num_returns, timeout):
        waits.append(timeout)
        return [answer for answer in answers if answer == "old"], []
    ray = SimpleNamespace(nodes=lambda: nodes[:1], wait=wait)
    machines = ray_machines.Machines(ray, [tmp_path], "cpu", 0.0)
    monkeypatch.setattr(machines, "_ask", lambda node: ray_machines._Asked(
        node, [tmp_path / f".seen-{node['NodeID']}"], node["NodeID"], time.monotonic() + ray_machines.PATIENCE))
    really = machines._trouble
    monkeypatch.setattr(machines, "_trouble", lambda asked, answered: "" if answered else really(asked, answered))
    machines.look()
    (tmp_path / ".seen-silent-also").touch()
    ray.nodes = lambda: nodes
    machines.look()
    assert (list(machines.alive), waits) == (["old"], [ray_machines.PATIENCE, 0.0])
    monkeypatch.setattr(ray_machines, "monotonic", lambda: time.monotonic() + 2 * ray_machines.PATIENCE)
    with pytest.warns(UserWarning, match="silent .* left out of this run: expected an answer within 180 seconds, got none"):
        machines.look()
    assert (list(machines.alive), list(tmp_path.iterdir())) == (["old"], [])
    machines.look()      # and is not asked again
    assert waits[-1] == 0.0


def test_tasks_in_line_for_machines_that_are_gone_begin_again():
    """Ray would keep them in line for ever."""
    cancelled, settled = [], []
    cluster = ray_pool._Cluster.__new__(ray_pool._Cluster)
    cluster.ray = SimpleNamespace(cancel=lambda reference, force: cancelled.append((reference, force)))
    cluster.course = SimpleNamespace(settle=lambda *what: settled.append(what))
    cluster.flying = {"one": ray_pool._Flight("a", frozenset("xy")), "two": ray_pool._Flight("b", frozenset("x"))}
    cluster._recall({"y", "z"})
    assert cancelled == [("two", True)]
    assert settled == [("b", "lost", "its machine died")]
    assert list(cluster.flying) == ["one"]


def test_tasks_for_a_gpu_wait_for_machines_with_one():
    """Whoever names the machines that there are must not name those without."""
    flown = []

    class Work:
        def options(self, **options):
            flown.append(options)
            return SimpleNamespace(remote=lambda *arguments: f"reference {len(flown)}")
    cluster = ray_pool._Cluster.__new__(ray_pool._Cluster)
    cluster.gpus, cluster.work, cluster.words, cluster.flying, cluster.course = 0.5, Work(), None, {}, None
    cluster.looked, cluster.roomy = -1e9, time.monotonic()
    nodes = {"x": {"Resources": {"CPU": 4.0}}, "y": {"Resources": {"CPU": 2.0, "GPU": 1.0}}}
    cluster.machines = SimpleNamespace(alive=nodes, look=lambda: None)
    cluster._look_around()
    assert cluster.room == 8
    cluster._fly(Task("learns", share, (), gpu=True))
    cluster._fly(Task("logs", share, ()))
    assert [(one["num_gpus"], one["label_selector"]["ray.io/node-id"]) for one in flown] == [(0.5, "in(y)"), (0.0, "in(x,y)")]
    del nodes["y"]
    cluster.looked = -1e9
    cluster.course = SimpleNamespace(settle=lambda task, kind, words: flown.append((task.name, kind)))
    cluster.ray = SimpleNamespace(cancel=lambda reference, force: None)
    cluster._look_around()
    assert (cluster.room, flown[2:]) == (0, [("learns", "lost")])


def nothing_runs(folders, **options):
    def never(*what):
        raise AssertionError("something ran")
    watcher = type("Watcher", (), {"started": never, "done": never, "failed": never})()
    with pytest.raises(ValueError) as caught:
        run([Task("a", square, (folders[0], "a", 2))], watcher, folders, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_machines_do_not_see(cluster, tmp_path, monkeypatch):
    """A relative path is another folder where the workers are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ray_machines, "SIGHT", 0.5)
    assert "expected the folder . to be the same as here, got another or none; name an --out on a file system that all " \
        in nothing_runs([Path()])
    assert list(tmp_path.iterdir()) == []


def test_a_machine_without_the_package(cluster, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['lowrank_rl'] = None\n")
    without = {"env_vars": {"PYTHONPATH": str(tmp_path)}}
    monkeypatch.setattr(ray_machines.Machines, "_remote", lambda self, what, **options: self.ray.remote(
        **options, runtime_env=without)(what))
    words = nothing_runs([tmp_path])
    assert "expected lowrank_rl 0.1.0 and what it needs, got '" in words
    assert "install them on every machine" in words
    assert "lowrank_rl" in words.split("got '")[1]


def test_a_machine_with_another_version(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_machines, "source", lambda: "another")
    assert "expected the same packages as here, got source " in nothing_runs([tmp_path])


def share(say):
    """What Ray set aside for this task."""
    import ray
    return ray.get_runtime_context().get_assigned_resources()


def test_fractions_of_a_gpu(cluster, tmp_path):
    """One simulated GPU, for the tasks that compute on one."""
    notes = Notes()
    run([Task("learns", share, (), gpu=True), Task("logs", share, ())], notes, [tmp_path], gpus=0.5)
    assert notes.results == {"learns": {"CPU": 1.0, "GPU": 0.5}, "logs": {"CPU": 1.0}}
    assert "cluster: expected a machine with a CPU and 2 GPU that is fit, got none" in nothing_runs([tmp_path], gpus=2.0)


def test_the_command(cluster, tmp_path, monkeypatch, capsys):
    """From data to report; a relative folder is this one on every machine."""
    monkeypatch.chdir(tmp_path)
    assert bench.main(["--env", "cartpole", "--budget", "tiny", "--methods", "persim", "uniform", "--agents", "1", "--datasets",
                       "random", "--executor", "ray", "--out", "out"]) == 0
    assert {record.status for record in Store(tmp_path / "out").load().values()} == {"done"}
    assert len(Store(tmp_path / "out").load()) == 2
    assert not list(tmp_path.glob("out/.seen*"))


def test_without_a_cluster(tmp_path, cluster):
    import ray
    ray.shutdown()
    try:
        words = nothing_runs([tmp_path], address="127.0.0.1:1")
        assert "address '127.0.0.1:1': expected a Ray cluster that runs, got '" in words
    finally:
        ray.init(cluster.address, log_to_driver=False)


def test_without_ray_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'lowrank_rl[ray]'" in nothing_runs([tmp_path])
