"""The command from end to end with the budget "tiny": every room on real input, in seconds."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path

import pytest
from commands import command, files, refused

from lowrank_rl.rl import data
from lowrank_rl.rl.behaviour.trained import fingerprint
from lowrank_rl.rl.bench import __main__ as bench
from lowrank_rl.rl.bench import cases
from lowrank_rl.rl.bench.pool import Task
from lowrank_rl.rl.bench.run import run_cell
from lowrank_rl.rl.bench.store import Cell, Store

ROOT = Path(__file__).parents[3]
PICTURES = ("trajectories", "error", "latent", "returns")
ALL = [Cell(name, "random" if cases.METHODS[method].learns else "none", method, agent, 0, "best", "tiny")
       for name in ("mountaincar", "cartpole")
       for method, agent in product(cases.methods("best", name, baselines=False), range(1, 6))]

pytestmark = pytest.mark.slow


def comparable(record):
    """A record without what a clock says, and without the commit, which a developer may change between two runs."""
    values = asdict(record)
    del values["seconds"], values["commit"]
    values["training"].pop("seconds", None)
    return values


def printed_report(said):
    return said[said.index("data set  "):said.index("\nreport ")]


@pytest.mark.parametrize("environment", ["mountaincar", "cartpole"])
def test_all_rooms_in_one_command(environment, finished):
    out, code, said, complained = finished(environment)
    assert (code, complained) == (0, "")
    records = Store(out).load()
    assert list(records) == [cell for cell in ALL if cell.environment == environment]
    for cell, record in records.items():
        assert record.status == "done", record.message
        assert len(record.returns) == len(record.lengths) == 2
        learns = cases.METHODS[cell.method].learns
        assert (record.rmse is not None) == (record.r2 is not None) == learns
        assert len(record.error_by_step) == (51 if learns else 0)
        assert ("planning" in record.config) == cases.METHODS[cell.method].plans
        assert record.seconds > 0
        assert record.versions["torch"]
    assert "[23/23]" in said                                                    # data, two trainings, 20 cells; lines, no bars
    assert "\x1b" not in said
    report = (out / f"report-{environment}-tiny-best.md").read_text()
    assert printed_report(said).split("### ")[1] in report                      # the table of the screen
    assert f"Our returns here are of the first 12 of {cases.ENVIRONMENTS[environment].max_steps} steps" in report
    assert "missing" not in report
    assert "FAILED" not in report
    left = {str(path) for path in files(out)}
    assert not [path for path in left if "partial" in path or "checkpoint" in path or "MUJOCO" in path]
    assert {path.split("/")[0] for path in left if "/" in path} == {"data", "models", "traces"}


def test_data_of_trained_policies(no_pictures, tmp_path, capsys):
    """Their names say by which policies; another seed or share is another file."""
    words = command("mountaincar", tmp_path, "--methods", "persim", "--agents", "2", datasets=("pure", "pure-eps-40"))
    assert bench.main(words) == 0
    assert {(cell.dataset, record.status) for cell, record in Store(tmp_path).load().items()} == {
        ("pure", "done"), ("pure-eps-40", "done")}
    who = fingerprint(cases.ENVIRONMENTS["mountaincar"], test=False)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        f"mountaincar-{dataset}-8-seed0-{who}.npz" for dataset in ("pure", "pure-eps-40")}
    found = {dataset: data.load(tmp_path / "data" / f"mountaincar-{dataset}-8-seed0-{who}.npz").returns.mean()
             for dataset in ("pure", "pure-eps-40")}
    assert -500 < found["pure-eps-40"] < found["pure"] < -40
    assert bench.main([*words, "--list"]) == 0
    assert capsys.readouterr().out.count("done  ") >= 2


@pytest.mark.mujoco
def test_cloned_policies_act_and_guide_plans(no_pictures, tmp_path, capsys):
    words = command("halfcheetah", tmp_path, "--methods", "persim", "cloned", "--agents", "1", datasets=("pure",))
    assert bench.main(words) == 0
    persim, cloned = Store(tmp_path).load().values()
    assert (persim.cell.method, cloned.cell.method) == ("persim", "cloned")
    assert {"learning", "planning", "cloning"} <= set(persim.config)
    assert not {"learning", "planning"} & set(cloned.config)
    assert persim.config["cloning"] == cloned.config["cloning"]
    assert cloned.rmse is None
    assert persim.returns != cloned.returns
    policy, = (tmp_path / "models").glob("*cloned*")             # one for both
    kept = policy.read_bytes()
    capsys.readouterr()
    (tmp_path / "records.jsonl").unlink()
    policy.write_bytes(kept[:1000])
    assert bench.main(words) == 2
    assert policy.name in capsys.readouterr().err
    policy.write_bytes(kept)
    assert bench.main(words) == 0
    assert [comparable(r) for r in Store(tmp_path).load().values()] == [comparable(r) for r in (persim, cloned)]


def test_pictures_keep_their_places_when_what_they_were_drawn_from_is_gone(finished, tmp_path):
    pytest.importorskip("matplotlib")
    out = shutil.copytree(finished("cartpole")[0], tmp_path / "out")
    for part in ("traces", "models"):
        shutil.rmtree(out / part)
    report = out / "report-cartpole-tiny-best.md"
    shown = re.findall(r"\]\((.+)\.png\)", report.read_text())
    assert [name.rpartition("-")[2] for name in shown] == ["returns", "trajectories", "error", "latent"]
    assert bench.main(["--env", "cartpole", "--table", "5", "--budget", "tiny", "--jobs", "1", "--out", str(out)]) == 0
    assert re.findall(r"\]\((.+)\.png\)", report.read_text()) == shown


def test_a_method_that_the_settings_lack_is_refused(tmp_path, capsys):
    for words in (("--env", "halfcheetah", "--settings", "paper"), ("--env", "cartpole")):
        assert bench.main([*words, "--budget", "tiny", "--methods", "cloned", "--out", str(tmp_path)]) == 2
        assert "known: persim, pooled, true-env-mpc, uniform" in capsys.readouterr().err


@pytest.mark.parametrize("environment", ["mountaincar", "cartpole"])
def test_four_pictures_are_drawn_and_shown_in_the_report(environment, finished):
    image = pytest.importorskip("matplotlib.image")
    out, _, said, _ = finished(environment)
    report = (out / f"report-{environment}-tiny-best.md").read_text()
    assert len(list(out.glob("*.png"))) == len(PICTURES)
    for name in PICTURES:
        path = out / f"{environment}-random-tiny-best-{name}.png"
        assert f"]({path.name})" in report
        assert str(path) in said
        pixels = image.imread(path)
        assert min(pixels.shape[:2]) > 200
        assert len({tuple(p) for p in pixels[::3, ::3].reshape(-1, pixels.shape[2])}) > 20     # more than axes


def test_the_same_command_again_runs_nothing_and_says_the_same(finished, no_pictures, monkeypatch, capsys):
    out, _, said, _ = finished("mountaincar")
    before = files(out)
    monkeypatch.setattr(bench, "run_tasks", lambda *what: pytest.fail("something ran"))
    assert bench.main(command("mountaincar", out)) == 0
    again = capsys.readouterr().out
    assert "20 cells, 20 of them done before" in again
    assert printed_report(again) == printed_report(said)
    after = files(out)
    for those in (before, after):
        assert {those.pop(path) for path in list(those) if path.suffix in (".md", ".html")}
    assert after == before


def test_killed_in_the_middle_the_same_command_goes_on(finished, no_pictures, tmp_path, capsys):
    """What is kept, is kept byte for byte; what comes is what an uninterrupted run gives."""
    out = tmp_path / "out"
    store = Store(out)
    words = [sys.executable, "-m", "lowrank_rl.rl.bench", *command("cartpole", out)]
    with subprocess.Popen(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL) as first:
        limit = time.monotonic() + 60
        while not store.path.exists() or store.path.read_bytes().count(b"\n") < 4:
            assert first.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
        first.kill()
        assert first.wait() == -9
    kept = store.path.read_bytes()
    count = kept.count(b"\n")
    assert 4 <= count < 20
    store.path.write_bytes(kept + b'{"cell": {"environment": "cartp')     # and the worst moment for a kill
    models = {path: content for path, content in files(out).items() if path.parts[0] in ("data", "models")}
    assert bench.main(command("cartpole", out)) == 0
    assert f"20 cells, {count} of them done before" in capsys.readouterr().out
    assert store.path.read_bytes().startswith(kept)
    assert store.path.read_bytes().count(b"\n") == 20
    assert {path: files(out)[path] for path in models} == models
    whole = Store(finished("cartpole")[0]).load()
    assert [comparable(r) for r in store.load().values()] == [comparable(r) for r in whole.values()]


def test_one_agent_alone_and_a_failure_and_its_repair(finished, no_pictures, tmp_path, capsys):
    """A file where traces belong fails the learners; without it the same command mends them. Agent 1 is as in the full run."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "traces").write_text("in the way")
    words = command("mountaincar", out, "--agents", "1")
    assert bench.main(words) == 1
    said = capsys.readouterr().out
    state = {cell.method: record.status for cell, record in Store(out).load().items()}
    assert state == {"persim": "failed", "pooled": "failed", "true-env-mpc": "done", "uniform": "done"}
    assert "FAILED mountaincar/random/persim/agent 1/seed 0: " in said
    assert "expected a place that can be written" in said
    assert "| FAILED" in (out / "report-mountaincar-tiny-best.md").read_text()
    (out / "traces").unlink()
    assert bench.main(words) == 0
    assert "4 cells, 2 of them done before" in capsys.readouterr().out
    whole = Store(finished("mountaincar")[0]).load()
    mine = Store(out).load()
    assert {cell.agent for cell in mine} == {1}
    assert len(mine) == 4
    for cell, record in mine.items():
        assert comparable(record) == comparable(whole[cell])


def test_a_record_of_other_settings_is_made_again(finished, no_pictures, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished("cartpole")[0], out)
    path = out / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = next(line for line in lines if line["cell"]["method"] == "uniform")
    changed["config"]["budget"]["return_episodes"] = 77
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert bench.main(command("cartpole", out)) == 0
    assert "20 cells, 19 of them done before" in capsys.readouterr().out
    assert len(path.read_text().splitlines()) == 21
    assert comparable(Store(out).load()[Cell(**changed["cell"])]) == comparable(
        Store(finished("cartpole")[0]).load()[Cell(**changed["cell"])])


def test_a_foreign_data_set_is_refused(finished, tmp_path, capsys):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    shutil.copy(next((finished("mountaincar")[0] / "data").iterdir()), out / "data" / "cartpole-random-8-seed0.npz")
    assert "expected the data set ('cartpole', 'random', 0, 8)" in refused(capsys, command("cartpole", out))


def test_two_shards_merged_are_the_whole(finished, no_pictures, tmp_path, monkeypatch, capsys):
    whole = Store(finished("cartpole")[0]).load()     # before nothing may run
    few = ("--methods", "persim", "pooled", "uniform", "--agents", "1", "2")
    one, two, out = (tmp_path / name for name in ("one", "two", "out"))
    for number, folder in enumerate((one, two), start=1):
        assert bench.main(command("cartpole", folder, *few, "--shard", f"{number}/2")) == 0
    assert [len(Store(folder).load()) for folder in (one, two)] == [3, 3]
    capsys.readouterr()
    assert bench.main(["--merge", str(one), str(two), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: 6 cells, 6 of them new from 2 folder(s), 0 failed; " in said
    assert "### " in said
    monkeypatch.setattr(bench, "run_tasks", lambda *what: pytest.fail("something ran"))
    assert bench.main(command("cartpole", out, *few)) == 0
    assert "6 cells, 6 of them done before" in capsys.readouterr().out
    for cell, record in Store(out).load().items():
        assert comparable(record) == comparable(whole[cell])
    assert {path for path in files(out) if path.parts[0] in ("data", "models", "traces")} == {
        path for folder in (one, two) for path in files(folder) if path.parts[0] in ("data", "models", "traces")}
    assert "--merge: expected --out beside it" in refused(capsys, ["--merge", str(one)])
    named = ["--merge", str(one), "--out", str(out), "--env", "cartpole"]
    assert "--merge: expected no --env beside it" in refused(capsys, named)


def test_a_baseline_is_probed_once_for_all_sizes_of_data(tmp_path, monkeypatch, capsys):
    """It makes as many updates from few agents; PerSim's solves grow with what was logged."""
    probed = []

    def probe(cell, device):
        probed.append((cell.method, cell.dataset))
        return 1.0, 1.0
    monkeypatch.setattr("lowrank_rl.rl.bench.estimate.seconds", probe)
    assert bench.main(["--env", "cartpole", "--budget", "small", "--methods", "persim", "bcq-p", "--datasets", "pure",
                       "pure-of-50", "--out", str(tmp_path), "--list"]) == 0
    assert sorted(probed) == [("bcq-p", "pure"), ("persim", "pure"), ("persim", "pure-of-50")]


def test_a_table_and_a_figure_run_what_they_need(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    quick = ("--budget", "tiny", "--jobs", "1")
    assert bench.main(["--table", "6", "--methods", "persim", "--datasets", "random", "--agents", "2", *quick]) == 0
    out = tmp_path / "runs" / "mountaincar"
    assert list(Store(out).load()) == [Cell("mountaincar", "random", "persim", 2, 0, "best", "tiny")]
    capsys.readouterr()
    before = files(out)
    assert bench.main(["--figure", "5", "--env", "mountaincar", *quick]) == 0       # its simulators are those of Table 6
    said = capsys.readouterr().out
    assert "mountaincar-random-tiny-best-latent.png" in said
    assert "train " not in said
    assert before.keys() == files(out).keys()
    assert bench.main(["--figure", "5", "--env", "cartpole", *quick, "--list"]) == 0
    assert "to do   cartpole/random/persim/agent 1/seed 0, its training alone" in capsys.readouterr().out
    assert bench.main(["--table", "5", "--env", "cartpole", "--datasets", "random", *quick]) == 0
    said = capsys.readouterr().out
    assert "data set      cartpole / random, seed 0" in said
    assert "paper, Table 5" in said
    page = (tmp_path / "runs" / "cartpole" / "report-cartpole-tiny-best.html").read_text()     # though no cell ran
    assert "data set      cartpole / random, seed 0" in page
    assert Store(tmp_path / "runs" / "cartpole").load() == {}
    assert bench.main(["--table", "5", *quick, "--list"]) == 0
    said = capsys.readouterr().out
    assert said.count("data ") == 12 + 1
    assert "done    data cartpole/random/seed 0" in said
    assert bench.main(["--table", "5", *quick, "--datasets", "random", "--shard", "1/3"]) == 0
    assert not (tmp_path / "runs" / "table-5-tiny-best.html").exists()            # a shard has but a part of it
    assert bench.main(["--table", "5", *quick, "--datasets", "random"]) == 0
    assert (tmp_path / "runs" / "table-5-tiny-best.html").read_text().count("data set      ") == 3


def broken(out, cell, device, say):
    """Fails for the first agent, always."""
    if cell.agent == 1:
        return [][1]
    return run_cell(out, cell, device, say)


def test_a_cell_that_always_fails_is_tried_thrice_and_recorded_with_its_traceback(no_pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "tasks", lambda out, left, device: [
        Task(str(cell), broken, (out[cell.environment], cell, device)) for cell in left.cells])
    words = command("cartpole", tmp_path, "--methods", "uniform", "--agents", "1", "2")
    assert bench.main(words) == 1
    said = capsys.readouterr().out
    assert said.count("agent 1/seed 0: started") == 3
    assert said.count("agent 1/seed 0: will be tried again: IndexError: list index out of range") == 2
    assert said.count("agent 1/seed 0: FAILED: IndexError: list index out of range") == 1
    one, two = (Store(tmp_path).load()[Cell("cartpole", "none", "uniform", agent, 0, "best", "tiny")] for agent in (1, 2))
    assert (one.status, two.status) == ("failed", "done")
    assert "in broken" in one.message
    monkeypatch.undo()
    assert bench.main(words) == 0                        # the same command mends it
    assert Store(tmp_path).load()[one.cell].status == "done"


def untrainable(out, cell, device, say):
    raise RuntimeError("no such luck")


def test_a_training_that_fails_is_told_in_the_records_of_its_cells(no_pictures, tmp_path, monkeypatch, capsys):
    made = bench.tasks
    monkeypatch.setattr(bench, "tasks", lambda out, left, device: [
        replace(task, function=untrainable) if task.name.startswith("train") else task for task in made(out, left, device)])
    assert bench.main(command("cartpole", tmp_path, "--methods", "persim", "--agents", "1", "2")) == 1
    said = capsys.readouterr().out
    for record in Store(tmp_path).load().values():
        assert record.status == "failed"
        assert record.message.splitlines()[-1] == ("needs train cartpole/random/persim/seed 0, which failed: "
                                                   "RuntimeError: no such luck")
        assert "in untrainable" in record.message
    assert "agent 2/seed 0: needs train cartpole/random/persim/seed 0, which failed: RuntimeError: no such luck" in said


def test_environments_in_one_folder_have_reports_of_their_own(no_pictures, tmp_path):
    for environment in ("mountaincar", "cartpole"):
        assert bench.main(command(environment, tmp_path / environment, "--methods", "uniform", "--agents", "1")) == 0
    assert bench.main(["--merge", *(str(tmp_path / name) for name in ("mountaincar", "cartpole")),
                       "--out", str(tmp_path / "both")]) == 0
    assert bench.main(["--table", "2", "--budget", "tiny", "--methods", "true-env-mpc", "--agents", "1", "--out",
                       str(tmp_path / "table")]) == 0
    for folder, page, known in (("both", "report-tiny-best.html", ("mountaincar", "cartpole")),
                                ("table", "table-2-tiny-best.html", ("mountaincar", "cartpole", "halfcheetah"))):
        for name in known:
            report = (tmp_path / folder / f"report-{name}-tiny-best.md").read_text()
            assert report.startswith(f"# {name}, ")
            assert (tmp_path / folder / f"report-{name}-tiny-best.html").exists()
        whole = (tmp_path / folder / page).read_text()
        assert [f'<h2 id="{name}">' in whole for name in cases.ENVIRONMENTS] == [name in known for name in cases.ENVIRONMENTS]
    assert not (tmp_path / "cartpole" / "report-tiny-best.html").exists()         # one environment's page is the whole


def test_the_list_runs_nothing(finished, tmp_path, capsys):
    out = tmp_path / "out"
    assert bench.main(command("cartpole", out, "--list", "--methods", "persim", "uniform", "--agents", "2", "4")) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:-1]] == [["to", "do"]] * 4
    for line, where in zip(said, ("random/persim/agent 2", "random/persim/agent 4", "none/uniform/agent 2",
                                  "none/uniform/agent 4"), strict=False):
        assert f"cartpole/{where}/seed 0" in line
    assert "4 cells; about 0.0" in said[-1]
    assert "hours of one worker" in said[-1]
    assert not out.exists()


def test_the_list_knows_what_is_done_and_writes_nothing(finished, capsys):
    out = finished("cartpole")[0]
    before = files(out)
    assert bench.main(command("cartpole", out, "--list")) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:-1]] == ["done"] * 20
    assert "20 cells; about 0.00 hours" in said[-1]
    assert files(out) == before
