"""The command that trains policies, with recipes of a second; its worker processes are those of test_pool."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from lowrank_rl.rl.behaviour import online, trained
from lowrank_rl.rl.bench import cases, policies
from lowrank_rl.rl.bench.store import locked

FEW = replace(cases.ENVIRONMENTS["cartpole"], policy_training_agents=((6.0, 0.5), (14.0, 0.5)))     # and the test policy
TINY = online.Recipe("DQN", 8.0, 8.0, piece=120, limit=240, episodes=10, options={     # even a falling pole stands so long
    "learning_rate": 1e-3, "batch_size": 16, "buffer_size": 500, "learning_starts": 50, "train_freq": 8})
NAMES = ["cartpole-1.safetensors", "cartpole-2.safetensors", "cartpole-test.safetensors"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Tasks run in this process, so that they see the recipe; its random streams come back."""
    def run_tasks(tasks, jobs, watcher):
        for task in tasks:
            watcher.started(task)
            try:
                result = task.function(*task.args, lambda words, share, task=task: watcher.said(task, words, share))
            except ValueError as error:
                watcher.failed(task, str(error))
            else:
                watcher.done(task, result)
    monkeypatch.setattr(policies, "run_tasks", run_tasks)
    monkeypatch.setitem(cases.ENVIRONMENTS, "cartpole", FEW)
    monkeypatch.setitem(online.RECIPES, "cartpole", TINY)
    kept, numbers = torch.random.get_rng_state(), np.random.get_state()     # noqa: NPY002
    yield
    torch.random.set_rng_state(kept)
    np.random.set_state(numbers)                                            # noqa: NPY002


def command(out, *more):
    return policies.main(["--env", "cartpole", "--out", str(out), "--jobs", "1", *more])


def trained_ones(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.safetensors"))}


def test_all_policies_and_their_cards(tmp_path, capsys):
    assert command(tmp_path) == 0
    said, complained = capsys.readouterr()
    assert complained == ""
    assert list(trained_ones(tmp_path)) == NAMES
    assert said.endswith("\n" + trained.cards(FEW, tmp_path) + "\n")
    assert said.count("| cartpole ") == 3
    assert "[3/3] cartpole test: return " in said
    assert not list(tmp_path.glob("*.checkpoint"))
    assert [trained.load(tmp_path, FEW, purpose).card["agent"] for purpose in trained.purposes(FEW)] == [
        [6.0, 0.5], [14.0, 0.5], [10.0, 0.5]]


def test_the_same_command_again_trains_nothing_and_prints_the_cards(tmp_path, monkeypatch, capsys):
    assert command(tmp_path) == 0
    first, before = capsys.readouterr().out, trained_ones(tmp_path)
    monkeypatch.setattr(online, "train", lambda *what, **more: pytest.fail("something was trained"))
    assert command(tmp_path) == 0
    assert capsys.readouterr().out.strip() == first[first.index("| policy"):].strip()
    assert trained_ones(tmp_path) == before
    (tmp_path / NAMES[1]).unlink()
    with pytest.raises(pytest.fail.Exception):
        command(tmp_path)


def test_interrupted_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    """After Ctrl-C in the second policy's second piece, there is a checkpoint; the end is as without."""
    whole, pieces, first = tmp_path / "whole", tmp_path / "pieces", {}

    def evaluate(environment, network, agent, episodes, seed, recipe):
        """Good enough is what is not the network after the first piece."""
        early = torch.equal(first.setdefault(agent, network).weights[0], network.weights[0])
        return np.full(episodes, 0.0 if early else 100.0)
    monkeypatch.setattr(online, "evaluate", evaluate)
    assert command(whole) == 0
    assert trained.load(whole, FEW, "2").card["steps"] == 240
    interrupting = policies._Words.said

    def said(words, task, text, share):
        if task.name == "cartpole 2" and text.startswith("step 120,"):
            raise KeyboardInterrupt
        interrupting(words, task, text, share)
    monkeypatch.setattr(policies._Words, "said", said)
    capsys.readouterr()
    assert command(pieces) == 130
    said_, complained = capsys.readouterr()
    assert complained == "interrupted; the same command goes on\n"
    assert "| policy" not in said_
    assert list(trained_ones(pieces)) == NAMES[:1]
    assert [path.name for path in pieces.glob("*.checkpoint")] == ["cartpole-2.checkpoint"]
    monkeypatch.setattr(policies._Words, "said", interrupting)
    assert command(pieces) == 0
    for purpose in trained.purposes(FEW):                        # a file's header comes in any order
        mine, other = (trained.load(out, FEW, purpose) for out in (pieces, whole))
        assert mine.card == other.card
        assert all(torch.equal(a, b) for a, b in zip(mine.weights + mine.biases, other.weights + other.biases, strict=True))
    assert not list(pieces.glob("*.checkpoint"))


def test_a_failure_leaves_the_others_and_no_table(tmp_path, capsys):
    (tmp_path / "cartpole-1.checkpoint").write_bytes(b"not one")
    assert command(tmp_path) == 1
    said = capsys.readouterr().out
    assert said.count("FAILED: ") == 1
    assert "cartpole-1.checkpoint: expected a saved unfinished policy, got a corrupt or truncated file" in said
    assert "| policy" not in said
    assert list(trained_ones(tmp_path)) == NAMES[1:]


@pytest.mark.parametrize(("words", "sentence"), [
    (["--env", "lunarlander"], "unknown environment 'lunarlander'; known: mountaincar, cartpole, halfcheetah"),
    (["--env", "cartpole", "--jobs", "0"], "--jobs: expected a whole number >= 1, got 0")])
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert policies.main(words) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_or_in_pieces_is_refused(tmp_path, capsys):
    with locked(tmp_path):
        assert command(tmp_path) == 2
    assert "expected no other run in it" in capsys.readouterr().err
    assert command(tmp_path) == 0
    (tmp_path / NAMES[0]).write_bytes(b"rubbish")
    assert command(tmp_path) == 2
    assert "cartpole-1.safetensors: expected a saved policy, got a corrupt" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        policies.main(["--help"])
    said = capsys.readouterr().out
    assert "python -m lowrank_rl.rl.bench.policies" in said
    assert all(word in said for word in ("--env", "--seed", "--jobs", "--out", "mountaincar, cartpole or halfcheetah"))


def test_without_stable_baselines_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.delitem(sys.modules, "lowrank_rl.rl.behaviour.online")
    monkeypatch.delattr("lowrank_rl.rl.behaviour.online")
    source = Path(policies.__file__).read_text()
    with pytest.raises(SystemExit, match=r"policies: expected Stable-Baselines3, got .*; pip install lowrank_rl\[policies\]"):
        exec(compile(source, policies.__file__, "exec"), {"__name__": "again"})
