"""Splines on few cells first: the same functions on many, and fits that end as well as those that begin there."""

import numpy as np
import pytest
import torch

from lowrank_rl.rng import numpy_stream, stream
from lowrank_rl.tensor import functional_coarse
from lowrank_rl.tensor.functional import FunctionalCP, FunctionalModule
from lowrank_rl.tensor.functional_als import ALSConfig
from lowrank_rl.tensor.functional_coarse import CELLS, coarser, refine
from lowrank_rl.tensor.functional_state import store, weights_of
from lowrank_rl.tensor.modes import Categorical, Polynomial, Spline


def module(*modes, members=2, outputs=2, output_mode=1):
    built = FunctionalModule(modes, 2, outputs, output_mode, members, generator=stream(0)).double()
    draw = numpy_stream(0, "coarse")
    x = [torch.from_numpy(draw.integers(m.size, size=40) if isinstance(m, Categorical) else draw.uniform(-3, 2, (40, m.inputs)))
         for m in modes]
    built.prepare(x, torch.from_numpy(draw.normal(size=(40, outputs))), normalize=False)
    return built


def weights(built):
    return [weights_of(mode, built.outputs if k == built.output_mode else 1) for k, mode in enumerate(built.modes)]


@pytest.mark.parametrize(("cells", "few"), [((16,), 30), ((12, 8), 150), ((9,), 35)])
@pytest.mark.parametrize("degree", [1, 3])
def test_the_refined_weights_are_the_same_functions(cells, few, degree, monkeypatch):
    monkeypatch.setattr(functional_coarse, "FEW", few)
    fine = module(Categorical(5), Spline(len(cells), cells, degree))
    rough = coarser(fine)
    assert rough.modes[1].basis.size < fine.modes[1].basis.size
    x = [torch.randint(5, (50,), generator=stream(1)), 6 * torch.rand((50, len(cells)), generator=stream(1)).double() - 3.5]
    expected = rough.predict(x)
    store(fine, refine(rough, fine, weights(rough)))
    got = fine.predict(x)
    low, high = fine.modes[1].basis.low, fine.modes[1].basis.high
    inside = ((x[1] >= low) & (x[1] <= high)).all(1)
    assert 0 < inside.sum() < 50
    exact = all(n % int(c) == 0 for n, c in zip(cells, rough.modes[1].basis.cells, strict=True))
    assert exact == (cells != (9,))
    torch.testing.assert_close(got[:, inside], expected[:, inside], atol=1e-6 if exact else 0.3, rtol=0)


def test_few_cells_are_few_enough_and_all_else_is_a_copy(monkeypatch):
    fine = module(Categorical(5), Spline(2, (64, 6)), Polynomial(1, 2))
    assert coarser(module(Categorical(5), Spline(1, 100))) is None              # 103 splines of 2 terms and 2 outputs
    rough = coarser(fine)
    assert rough.modes[1].basis.size * 4 <= functional_coarse.FEW < 2 * rough.modes[1].basis.size * 4
    assert rough.modes[1].basis.low.tolist() == fine.modes[1].basis.low.tolist()
    for k in (0, 2):
        assert rough.modes[k] is not fine.modes[k]
        for mine, its in zip(rough.modes[k].parameters(), fine.modes[k].parameters(), strict=True):
            assert torch.equal(mine, its)
    monkeypatch.setattr(functional_coarse, "FEW", 0)
    assert coarser(fine).modes[1].basis.cells.tolist() == [CELLS, 3]
    assert fine.modes[1].basis.cells.tolist() == [64, 6]


def wave(count=3000):
    draw = numpy_stream(0, "coarse", "wave")
    who, x, kind = draw.integers(30, size=count), draw.uniform(0, 1, count), draw.integers(3, size=count)
    row, column = draw.normal(size=(30, 2)), draw.normal(size=(3, 2))
    y = row[who, 0] * column[kind, 0] * np.sin(9 * x) + row[who, 1] * column[kind, 1] * np.abs(x - 0.5)
    return (who, x, kind), y + 1e-3 * draw.normal(size=count)


@pytest.mark.parametrize("solver", [ALSConfig(), ALSConfig(spare=2), ALSConfig(held_out=0.1, patience=5)], ids=repr)
def test_a_fit_that_begins_on_few_cells_ends_on_all_of_them(solver, monkeypatch):
    monkeypatch.setattr(functional_coarse, "FEW", 30)
    X, y = wave()
    modes = [Categorical(30), Spline(1, 48), Categorical(3)]
    model = FunctionalCP(modes, rank=2, members=2, solver=solver).fit(X, y)
    steps = [entry["step"] for entry in model.history_]
    few = [step.endswith("on few cells") for step in steps]
    assert few[0]
    assert few == sorted(few, reverse=True)
    assert 3 <= sum(few) <= solver.sweeps // 2
    first = few.index(False)
    assert model.history_[first]["loss"] < model.history_[first - 1]["loss"]          # the kink needs more cells
    monkeypatch.setattr(functional_coarse, "FEW", 10**6)
    direct = FunctionalCP(modes, rank=2, members=2, solver=solver).fit(X, y)
    assert not any("few" in entry["step"] for entry in direct.history_)
    assert model.history_[-1]["loss"] < 1.5 * direct.history_[-1]["loss"]


def test_a_fit_of_few_sweeps_begins_on_all_cells(monkeypatch):
    monkeypatch.setattr(functional_coarse, "FEW", 30)
    X, y = wave(300)
    model = FunctionalCP([Categorical(30), Spline(1, 48), Categorical(3)], rank=2, solver=ALSConfig(sweeps=4)).fit(X, y)
    assert not any("few" in entry["step"] for entry in model.history_)
