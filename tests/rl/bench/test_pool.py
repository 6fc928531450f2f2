"""Tasks on worker processes: order, limits, failures that stay where they are, and leaving when told or orphaned."""

import itertools
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pytest

from lowrank_rl.rl.bench.pool import Course, Task, run

ROOT = Path(__file__).parents[3]


class Notes:
    """A watcher that remembers."""

    def __init__(self):
        self.events, self.results, self.messages, self.words = [], {}, {}, []
        self.again, self.running, self.most = [], set(), 0

    def started(self, task):
        self.events.append(("started", task.name))
        self.running.add(task.name)
        self.most = max(self.most, len(self.running))

    def said(self, task, words, share):
        self.words.append((task.name, words, share))

    def retried(self, task, message):
        self.again.append((task.name, message))
        self.running.discard(task.name)

    def done(self, task, result):
        self.events.append(("done", task.name))
        self.running.discard(task.name)
        self.results[task.name] = result

    def failed(self, task, message):
        self.events.append(("failed", task.name))
        self.running.discard(task.name)
        self.messages[task.name] = message


def square(x, say):
    say(f"squaring {x}", 0.5)
    return x * x


def nap(seconds, say):
    time.sleep(seconds)
    return os.getpid()


def refuse(words, say):
    raise ValueError(words)


def stumble(say):
    return [][1]


def stumble_and_count(path, times, say):
    """Fails so often."""
    count = int(path.read_text()) if path.exists() else 0
    path.write_text(str(count + 1))
    return "mended" if count >= times else [][1]


def leave_a_name(path, say):
    path.write_text(str(os.getpid()))
    return os.getpid()


def kill(path, say):
    """Whoever left a name, once it is idle."""
    until(path.exists)
    time.sleep(0.5)
    pid = int(path.read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid) and len(list(Path(f"/proc/{pid}/task").glob("*"))) <= 1)     # with all its threads


def clock(seconds, say):
    began = time.monotonic()
    time.sleep(seconds)
    return began, time.monotonic()


def die(say):
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_the_middle_of_a_message(say):
    pipe = next(cell.cell_contents for cell in say.__closure__ if hasattr(cell.cell_contents, "fileno"))
    os.write(pipe.fileno(), struct.pack("!i", 1000) + b"the first words of")
    os.kill(os.getpid(), signal.SIGKILL)


def leave(say):
    sys.exit(3)


def needs(*names):
    return frozenset(names)


def gone(pid):
    """No such process, or one that is dead and only waits for its parent to be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def until(what, seconds=30):
    limit = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.05)


def watched(tasks, jobs):
    notes = Notes()
    run(tasks, jobs, notes)
    return notes


def test_no_tasks():
    assert watched([], 2).events == []


def test_results_progress_order_and_reuse_of_one_worker():
    tasks = [Task("a", square, (2,)), Task("b", square, (3,), needs("a")), Task("c", square, (4,), needs("a", "b")),
             Task("free", square, (5,)), Task("who", nap, (0,)), Task("again", nap, (0,))]
    notes = watched(tasks, 1)
    assert {name: notes.results[name] for name in ("a", "b", "c", "free")} == {"a": 4, "b": 9, "c": 16, "free": 25}
    assert sorted(notes.words) == [("a", "squaring 2", 0.5), ("b", "squaring 3", 0.5), ("c", "squaring 4", 0.5),
                                   ("free", "squaring 5", 0.5)]
    at = {event: i for i, event in enumerate(notes.events)}
    assert at["done", "a"] < at["started", "b"] < at["done", "b"] < at["started", "c"]
    assert notes.most == 1
    assert notes.results["who"] == notes.results["again"] != os.getpid()


def test_at_most_so_many_at_once_and_not_fewer():
    tasks = [Task(str(i), nap, (0.3,)) for i in range(5)]
    notes = watched(tasks, 2)
    assert notes.most == 2
    assert len(set(notes.results.values())) == 2      # two processes shared the five


def test_a_failure_reaches_those_that_need_it_and_nobody_else():
    """Every kind of end in one run: raising, a bug, SIGKILL, SIGKILL in mid-message, exit, and ValueError without words."""
    tasks = [Task("bad", refuse, ("no such thing",)), Task("child", square, (1,), needs("bad")),
             Task("grandchild", square, (1,), needs("child")), Task("silent", refuse, ("",)), Task("bug", stumble, ()),
             Task("killed", die, ()), Task("of killed", square, (1,), needs("killed")),
             Task("cut", die_in_the_middle_of_a_message, ()), Task("exit", leave, ()), Task("good", square, (7,)),
             Task("of good", square, (8,), needs("good"))]
    notes = watched(tasks, 2)
    assert notes.results == {"good": 49, "of good": 64}
    assert "in refuse" in notes.messages["bad"]
    assert notes.messages["bad"].splitlines()[-1] == "no such thing"     # the bare sentence
    for name in ("child", "grandchild"):      # told the first cause, with its traceback
        assert notes.messages[name].splitlines()[-1] == "needs bad, which failed: no such thing"
        assert "in refuse" in notes.messages[name]
    assert "ValueError" in notes.messages["silent"]                    # a line for the report, always
    assert "IndexError" in notes.messages["bug"]
    assert "in stumble" in notes.messages["bug"]
    assert "its process died (exit code -9; -9 is a kill" in notes.messages["killed"]
    assert "needs killed, which failed: its process died (exit code -9" in notes.messages["of killed"]
    assert "exit code -9" in notes.messages["cut"]
    assert "exit code 3" in notes.messages["exit"]
    assert len(notes.messages) + len(notes.results) == len(tasks)


def test_a_worker_killed_while_idle_is_replaced(tmp_path):
    notes = watched([Task("short", leave_a_name, (tmp_path / "pid",)), Task("long", kill, (tmp_path / "pid",)),
                     Task("x", nap, (0.2,), needs("short", "long")), Task("y", nap, (0.2,), needs("short", "long"))], 2)
    assert notes.messages == {}
    assert notes.results["short"] not in (notes.results["x"], notes.results["y"])


def test_what_fails_is_tried_twice_more_behind_the_others(tmp_path):
    """Not what was given bad input, and whatever needs them learns of it once."""
    tasks = [Task("bug", stumble_and_count, (tmp_path / "bug", 9)), Task("of bug", square, (1,), needs("bug")),
             Task("mends", stumble_and_count, (tmp_path / "mends", 2)), Task("of mends", square, (3,), needs("mends")),
             Task("bad", refuse, ("no such thing",)), Task("dies", die, ()), Task("good", square, (2,))]
    notes = Notes()
    run(tasks, 1, notes, retries=2)
    starts = [name for kind, name in notes.events if kind == "started"]
    assert Counter(starts) == {"bug": 3, "mends": 3, "of mends": 1, "bad": 1, "dies": 3, "good": 1}
    assert starts.index("good") < [i for i, name in enumerate(starts) if name == "bug"][1]
    assert notes.results == {"mends": "mended", "of mends": 9, "good": 4}
    assert set(notes.messages) == {"bug", "of bug", "bad", "dies"}
    assert [name for kind, name in notes.events if kind == "failed"].count("of bug") == 1
    assert Counter(name for name, _ in notes.again) == {"bug": 2, "mends": 2, "dies": 2}
    assert all("IndexError" in message for name, message in notes.again if name != "dies")
    assert "in stumble_and_count" in notes.messages["bug"]


def test_workers_need_not_wait_for_a_slow_watcher():
    """A free worker has its next task before the watcher hears of the last one."""
    class Slow(Notes):
        def done(self, task, result):
            time.sleep(0.25)
            super().done(task, result)

    notes = Slow()
    run([Task("warm", nap, (0,)), *(Task(str(i), clock, (0.25,), needs("warm")) for i in range(8))], 1, notes)
    spans = [notes.results[str(i)] for i in range(8)]
    assert spans == sorted(spans)
    waits = [begin - end for (_, end), (begin, _) in itertools.pairwise(spans)]
    assert sum(waits) / len(waits) < 0.1


def test_thousands_of_tasks_cost_no_more_each_than_few():
    """Of the bookkeeping alone, without a process: calls of functions for each task, which other load does not move."""
    def calls(size):
        tasks = [Task("first", square, (1,)), *(Task(str(i), square, (i,), needs("first")) for i in range(size))]
        notes, count = Notes(), itertools.count()
        course = Course(tasks, notes, 0)
        sys.setprofile(lambda _, event, what: next(count) if event in ("call", "c_call") else None)
        try:
            while task := course.take():
                course.settle(task, "done", 0)
                course.tell()
        finally:
            sys.setprofile(None)
        assert len(notes.results) == size + 1
        return next(count) / size
    assert calls(5_000) < 1.5 * calls(200)


@pytest.mark.parametrize("tasks", [
    [Task("a", square, (1,)), Task("a", square, (2,))],
    [Task("a", square, (1,), needs("nowhere"))],
    [Task("a", square, (1,), needs("b")), Task("b", square, (1,), needs("a"))],
    [Task("a", square, (1,), needs("a"))],
])
def test_what_could_never_run_is_refused(tasks):
    with pytest.raises(ValueError, match="tasks: expected different names, each after what it needs, got 'a' twice or too"):
        watched(tasks, 1)


SCRIPT = """
    import os, signal, sys, time
    from pathlib import Path
    from lowrank_rl.rl.bench.pool import Course, Task, run

    def deep(name, say):          # never says anything, as in a long calculation
        (Path(sys.argv[1]) / name).write_text(str(os.getpid()))
        time.sleep(120)

    class Quiet:
        def __getattr__(self, name):
            return lambda *what: None

    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)   # a shell's background jobs begin with it ignored
        try:
            run([Task("one", deep, ("one",)), Task("two", deep, ("two",))], 2, Quiet())
        except KeyboardInterrupt:
            print("passed on")
"""


@pytest.fixture
def busy(tmp_path):
    """A parent with two workers deep in a task, in a process group of its own, and the workers' ids."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    names = [tmp_path / "one", tmp_path / "two"]
    with subprocess.Popen([sys.executable, "script.py", str(tmp_path)], cwd=tmp_path, start_new_session=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}) as parent:
        until(lambda: all(name.exists() and name.read_text() for name in names))
        pids = [int(name.read_text()) for name in names]
        yield parent, pids
        for pid in (parent.pid, *pids):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_ctrl_c_ends_the_workers_and_is_passed_on(busy):
    """A terminal sends it to the whole group; only the parent may answer."""
    parent, pids = busy
    os.killpg(parent.pid, signal.SIGINT)
    said, complained = parent.communicate(timeout=30)
    assert (said, complained, parent.returncode) == ("passed on\n", "", 0)
    until(lambda: all(gone(pid) for pid in pids))


def test_workers_leave_with_a_killed_parent(busy):
    """Else they would go on beside those of the run that resumes."""
    parent, pids = busy
    parent.kill()
    parent.wait()
    until(lambda: all(gone(pid) for pid in pids), 10)
    assert all(map(gone, pids))
