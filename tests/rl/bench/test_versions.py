"""No stage's code changes unseen: either its version is raised, or somebody says that results are as before."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_rl.rl.bench import cases, versions
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.bench.suites import WAYS

PINNED = Path(__file__).with_name("versions.json")
CELL = Cell("cartpole", "random", "persim", 1, 0, "best", "quick")


@pytest.mark.parametrize("stage", versions.VERSIONS)
def test_the_code_is_what_its_version_stands_for(stage):
    pinned, now = json.loads(PINNED.read_text()), versions.now()
    if pinned["python"] != now["python"]:
        pytest.skip("another Python reads other trees")
    assert pinned[stage] == now[stage], \
        f"the code behind {stage!r} has changed: raise its number in versions.py if the same settings give other results, " \
        f"then python -m lowrank_rl.rl.bench.versions > {PINNED.name}"


def test_comments_and_docstrings_are_no_change_and_code_is(tmp_path, monkeypatch):
    def digest(text):
        (tmp_path / "probe.py").write_text(text)
        versions._tree.cache_clear()
        versions._code.cache_clear()
        return versions._code("probe")
    monkeypatch.syspath_prepend(tmp_path)
    plain = digest("def f(x):\n    return x + 1\n")
    assert digest('"""Words."""\n\n\ndef f(x):\n    """More words."""\n    return (x +\n        1)     # a comment\n') == plain
    assert digest("def f(x):\n    return x + 2\n") != plain


def test_every_method_has_versions_and_a_raised_one_is_told_where_it_matters(monkeypatch):
    for stage in versions.VERSIONS:
        monkeypatch.setitem(versions.VERSIONS, stage, 1)
    for method, kind in cases.METHODS.items():
        name = "halfcheetah" if method == "cloned" else "cartpole"
        cell = Cell(name, "random" if kind.learns else "none", method, 1, 0, "best", "quick")
        assert versions.recorded(cell) == {}      # until one is raised, files and records are called as before
    monkeypatch.setitem(versions.VERSIONS, "persim", 2)
    told = {method for method, kind in cases.METHODS.items() if kind.learns and versions.trained(
        Cell("cartpole", "random", method, 1, 0, "best", "quick"))}
    assert told == {"persim", "pooled", "persim-bcq-5", "persim-cql-5", *WAYS}
    monkeypatch.setitem(versions.VERSIONS, "cloned", 2)     # guides plans: what was trained is trained, what was run is not
    cheetah = Cell("halfcheetah", "pure", "persim", 1, 0, "best", "quick")
    assert (versions.trained(cheetah), versions.recorded(cheetah)) == ({"persim": 2}, {"cloned": 2, "persim": 2})
    monkeypatch.setitem(versions.VERSIONS, "unseen", 2)      # rows of new agents: no training, and no other record
    new = Cell("cartpole", "random", "persim-k5", 6, 0, "best", "quick")
    assert (versions.trained(new), versions.recorded(new)) == ({"persim": 2}, {"persim": 2, "unseen": 2})
    monkeypatch.setitem(versions.VERSIONS, "tested", 3)
    assert versions.recorded(CELL) == {"persim": 2, "tested": 3}
    assert versions.trained(CELL) == {"persim": 2}


def test_a_continuous_form_has_a_number_of_its_own(monkeypatch):
    monkeypatch.setattr(versions, "VERSIONS", {**dict.fromkeys(versions.VERSIONS, 1), "bcq": 2, "cql": 3})
    found = {(name, method): versions.trained(replace(CELL, environment=name, method=method))
             for name in ("cartpole", "halfcheetah") for method in ("bcq-p", "persim-bcq-5", "cql-a")}
    assert found["cartpole", "bcq-p"] == found["cartpole", "persim-bcq-5"] == {"bcq": 2}
    assert found["halfcheetah", "bcq-p"] == found["halfcheetah", "persim-bcq-5"] == {}
    assert found["cartpole", "cql-a"] == found["halfcheetah", "cql-a"] == {"cql": 3}      # one number for both forms


def test_imports_are_followed():
    assert "lowrank_rl.rl.models.persim" not in versions.ROOTS["data"]
    assert "lowrank_rl.rng" in versions._imports("lowrank_rl.rl.data")
    assert "lowrank_rl.rl.contracts" in versions._imports("lowrank_rl.rl.data")
    assert "lowrank_rl.tensor.functional" in versions._imports("lowrank_rl.rl.models.persim")     # where FunctionalCP lives
    assert "lowrank_rl.tensor" not in versions._imports("lowrank_rl.rl.models.persim")            # and all the others do not
