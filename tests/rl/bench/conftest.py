"""One finished run of each small environment, for all tests that look at what a run leaves."""

import contextlib
import io

import pytest
from commands import command

from lowrank_rl.rl.bench import __main__ as bench


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(folder, exit code, stdout, stderr) of one uninterrupted run per environment."""
    runs = {}

    def get(environment):
        if environment not in runs:
            out, said, complained = tmp_path_factory.mktemp(environment) / "out", io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
                code = bench.main(command(environment, out))
            runs[environment] = out, code, said.getvalue(), complained.getvalue()
        return runs[environment]
    return get


@pytest.fixture
def no_pictures(monkeypatch):
    """For the tests that look at something else."""
    monkeypatch.setattr(pytest.importorskip("lowrank_rl.rl.bench.plots"), "draw_all", lambda *what: [])
