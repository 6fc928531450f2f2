"""What the command refuses, in one sentence, and what it leaves alone then."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command, files, refused

from lowrank_rl.rl.bench import __main__ as bench
from lowrank_rl.rl.bench.store import locked

ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("words", "sentence"), [
    (["--env", "lunarlander"], "unknown environment 'lunarlander'; known: mountaincar, cartpole, halfcheetah"),
    (["--methods", "persim", "magic"], "unknown method 'magic'; known: persim, pooled, true-env-mpc, uniform"),
    (["--datasets", "expert"], "unknown data set 'expert'; known: random"),
    (["--agents", "1", "11"], "unknown agent 11; known: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10"),
    (["--agents", "0"], "unknown agent 0; known: 1, 2, 3, 4, 5"),
    (["--agents", "6", "--methods", "bcq-a"], "agent 6 of bcq-a: expected one of 1, 2, 3, 4, 5, since it needs"),
    (["--budget", "huge"], "unknown budget 'huge'; known: tiny, quick, small, paper"),
    (["--settings", "worst"], "unknown settings 'worst'; known: best, paper"),
    (["--seeds", "0"], "--seeds: expected a whole number >= 1, got 0"),
    (["--seeds", "-3"], "--seeds: expected a whole number >= 1, got -3"),
    (["--jobs", "0"], "--jobs: expected a whole number >= 1, got 0"),
    (["--device", "tpu9"], "device 'tpu9': expected one that torch can use here"),
])
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(capsys, ["--env", "cartpole", *words] if words[0] != "--env" else words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--env", "cartpole", "--seeds", "many"], ["--env", "cartpole", "--agents", "one"],
                                   ["--env", "cartpole", "--nonsense", "1"]])
def test_what_is_no_command_ends_with_2(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="^2$"):
        bench.main(words)
    assert list(tmp_path.iterdir()) == []


def test_the_shell_sees_the_exit_code(tmp_path):
    told = subprocess.run([sys.executable, "-m", "lowrank_rl.rl.bench", "--env", "nowhere"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert told.returncode == 2
    assert told.stderr == "error: unknown environment 'nowhere'; known: mountaincar, cartpole, halfcheetah\n"
    assert told.stdout == ""


def test_output_in_the_place_of_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "expected one that can be written" in refused(capsys, command("cartpole", out))
    assert (tmp_path / "file").read_text() == "mine"


def test_a_second_run_in_the_same_folder(tmp_path, capsys):
    with locked(tmp_path):
        assert "expected no other run in it, got one at work" in refused(capsys, command("cartpole", tmp_path))


@pytest.mark.parametrize(("pattern", "sentence"), [
    ("data/*.npz", "expected a data set, got a corrupt or truncated file"),
    ("models/*persim*.safetensors", "persim-seed0"),
    ("models/*pooled*.safetensors", "pooled-seed0"),
    ("records.jsonl", ": expected a record, got a corrupt line; remove that line or use another --out"),
])
@pytest.mark.parametrize("how", ["cut", "rubbish"])
def test_a_file_in_pieces_is_refused_and_kept(pattern, sentence, how, finished, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(finished("mountaincar")[0], out)
    path = next(out.glob(pattern))
    content = path.read_bytes()
    path.write_bytes({"cut": content[:len(content) // 3] + (b"\n" if path.suffix == ".jsonl" else b""),
                      "rubbish": b"rubbish\n" + content[10:]}[how])
    before = files(out)
    assert sentence in refused(capsys, command("mountaincar", out))
    assert files(out) == before


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupt(*what):
        raise KeyboardInterrupt
    monkeypatch.setattr(bench, "run_tasks", interrupt)
    assert bench.main(command("cartpole", tmp_path)) == 130
    assert capsys.readouterr().err == "interrupted; finished pieces are kept and the same command goes on\n"


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, capsys):
    def one_cell(tasks, jobs, keeper, retries):
        keeper.started(tasks[0])
        keeper.failed(tasks[0], "some reason")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(bench, "run_tasks", one_cell)
    monkeypatch.setattr(os, "fsync", full)
    words = command("cartpole", tmp_path, "--methods", "uniform")
    assert "got 'No space left on device'; earlier records" in refused(capsys, words)
