"""Regressions of latent rows on maps that are known, against fits that leave agents out one by one, and at their doors."""

import numpy as np
import pytest
import torch

from lowrank_rl.rl import row_polynomials
from lowrank_rl.rl.contracts import Discrete, Transitions
from lowrank_rl.rl.models.persim import PerSimConfig, fit_persim
from lowrank_rl.rl.row_polynomials import fit_polynomial
from lowrank_rl.rl.row_regression import NetworkConfig, fit_network, known_agents
from lowrank_rl.rl.unseen import with_agents
from lowrank_rl.rng import stream
from lowrank_rl.tensor import AdamConfig

AGENTS, EVERY = 40, torch.arange(40)
CONFIG = PerSimConfig(rank=3, members=2, state_hidden=(5,), adam=AdamConfig(epochs=1, batch=64))
NEW = torch.tensor([[0.5, 1.0], [3.0, 0.1], [2.0, 2.5]], dtype=torch.float64)      # the last two are outside
QUICK = NetworkConfig(epochs=60)


@pytest.fixture(scope="module")
def trained():
    """One agent's worth of a model whose rows tests put in themselves."""
    draw = stream(0, "rows")
    state = torch.randn((20, 2), generator=draw, dtype=torch.float64)
    action = torch.randint(3, (20, 1), generator=draw)
    return fit_persim(Transitions(torch.zeros(20, dtype=torch.int64), state, action, state + state.sin()), 1, Discrete(3),
                      CONFIG, seed=0)


def covariates(n=AGENTS):
    return 0.2 + 1.8 * torch.rand((n, 2), generator=stream(1, "covariates"), dtype=torch.float64)


def law(c):
    """Of each member in its own frame, (2, n, 3): as in laws of motion, with a division."""
    one = torch.stack([torch.ones(len(c), dtype=c.dtype), c[:, 0] - 2 / c[:, 1], c[:, 0] / c[:, 1]], 1)
    turn = torch.tensor([[[1.0, 0, 0], [0, 2, 0], [0, 0, -1]], [[0.0, 1, 2], [1, 0, 1], [3, 1, 0]]], dtype=c.dtype)
    return one @ turn


def with_rows(trained, rows):
    """A model whose agents 1, 2, ... have these rows; with ``agent=1 + ...`` they are the known ones."""
    return with_agents(trained, rows)


def test_polynomials_find_a_smooth_map_inside_and_outside(trained):
    c = covariates()
    found = fit_polynomial(with_rows(trained, law(c)), 1 + EVERY, c).rows(NEW)
    torch.testing.assert_close(found, law(NEW), rtol=1e-3, atol=1e-4)      # rows are kept in single precision


def test_each_member_keeps_its_own_frame(trained):
    """Members' rows differ, and a change of frame of one changes its answer alike and no other's."""
    c, noise = covariates(), 0.05 * torch.randn((2, AGENTS, 3), generator=stream(2, "noise"), dtype=torch.float64)
    rows = law(c) + noise
    swapped = rows.clone()
    swapped[1] = rows[1][:, [2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0])
    before, after = (fit_polynomial(with_rows(trained, x), 1 + EVERY, c).rows(NEW) for x in (rows, swapped))
    assert torch.equal(before[0], after[0])
    torch.testing.assert_close(after[1], before[1][:, [2, 0, 1]] * torch.tensor([1.0, -1.0, 1.0]), rtol=1e-6, atol=1e-6)


def test_rows_without_a_law_get_no_wild_curve(trained):
    """The simplest bases, so that far from the known agents the answer is no farther than a plane's."""
    rows = torch.randn((2, AGENTS, 3), generator=stream(3, "noise"), dtype=torch.float64)
    found = fit_polynomial(with_rows(trained, rows), 1 + EVERY, covariates())
    assert max(basis.degree for basis in found.bases) <= 1
    assert found.rows(torch.tensor([[4.0, 4.0]], dtype=torch.float64)).abs().max() < 3


def test_the_basis_is_the_laws_though_some_rows_are_noise(trained):
    """A tenth of the agents had too few steps for a row, and the answer hardly shows it."""
    c = covariates()
    rows = law(c) + 1e-3 * torch.randn((2, AGENTS, 3), generator=stream(5, "noise"), dtype=torch.float64)
    rows[:, ::10] += torch.randn((2, 4, 3), generator=stream(6, "noise"), dtype=torch.float64)
    found = fit_polynomial(with_rows(trained, rows), 1 + EVERY, c)
    assert [(basis.degree, basis.forms) for basis in found.bases] == [(2, ("itself", "reciprocal"))] * 2
    inside = torch.tensor([[0.5, 1.0], [1.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(found.rows(inside), law(inside), rtol=0, atol=0.01)


def test_held_out_errors_are_those_of_fits_without_the_agent(trained, monkeypatch):
    """The cloud's spread, computed again by fitting n times, with NumPy's least squares on the chosen features;
    where all agents count alike."""
    monkeypatch.setattr(row_polynomials, "USUAL", np.inf)
    c = covariates(12)
    rows = law(c) + 0.1 * torch.rand((2, 12, 3), generator=stream(4, "noise"), dtype=torch.float64)
    model = with_rows(trained, rows)
    found = fit_polynomial(model, torch.arange(1, 13), c)
    cloud = found.cloud(NEW)
    assert cloud.shape == (2, 3, 24, 3)
    torch.testing.assert_close(cloud.mean(2), found.rows(NEW))
    for m in range(2):
        y, X, x = model.rows[m, 1:].double().numpy(), found.bases[m](c).numpy(), found.bases[m](NEW).numpy()
        inverse = np.linalg.inv(X.T @ X)
        for i in range(12):
            some = np.arange(12) != i
            weight = np.linalg.lstsq(X[some], y[some], rcond=None)[0]
            lever = X[i] @ inverse @ X[i]
            standard = (y[i] - X[i] @ weight) * (1 - lever) ** 0.5
            for u in range(3):
                wide = np.sqrt(1 + x[u] @ inverse @ x[u])
                np.testing.assert_allclose(cloud[m, u, i] - found.rows(NEW)[m, u], wide * standard, atol=1e-7)


def test_covariates_that_do_not_vary_do_no_harm(trained):
    c = covariates()
    c[:, 1] = 0.7
    found = fit_polynomial(with_rows(trained, law(c)), 1 + EVERY, c)
    some = torch.tensor([[1.0, 0.7]], dtype=torch.float64)
    torch.testing.assert_close(found.rows(some), law(some), rtol=1e-3, atol=1e-3)
    assert found.cloud(some).isfinite().all()


def test_networks_learn_and_are_told_apart_by_their_seed_only(trained):
    c = covariates()
    model = with_rows(trained, law(c))
    before = torch.random.get_rng_state()
    one, two, other = (fit_network(model, 1 + EVERY, c, QUICK, seed=seed).rows(c) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    found = fit_network(model, 1 + EVERY, c, NetworkConfig(epochs=500), seed=0)
    assert [fit.hidden_layer_sizes for fit in found.fits] == [(64, 64)] * 2
    left = (found.rows(c) - law(c)).square().mean((1, 2))
    assert (left < 0.05 * law(c).var(1).mean(1)).all()


def test_networks_clouds_are_of_agents_they_were_not_told_of(trained):
    """Noise alone: a network can repeat what it was told, and the cloud still is as wide as the noise."""
    rows = torch.randn((2, AGENTS, 3), generator=stream(5, "noise"), dtype=torch.float64)
    found = fit_network(with_rows(trained, rows), 1 + EVERY, covariates(), NetworkConfig(epochs=150), seed=0)
    cloud = found.cloud(NEW)
    assert cloud.shape == (2, 3, 2 * AGENTS, 3)
    torch.testing.assert_close(cloud.mean(2), found.rows(NEW))
    told = (found.rows(covariates()) - rows).square().mean().sqrt()
    assert told < 0.9
    assert (cloud - found.rows(NEW)[:, :, None]).square().mean().sqrt() > 1.0


def test_known_agents_are_nested():
    few, many = (known_agents(500, p, generator=stream(0, "known")) for p in (0.1, 0.5))
    assert (len(few), len(many)) == (50, 250)
    assert set(few.tolist()) < set(many.tolist())
    assert torch.equal(known_agents(500, 1.0, generator=stream(0, "known")), torch.arange(500))


@pytest.mark.parametrize(("fraction", "words"), [(0.0, "in \\(0, 1\\], got 0"), (1.5, "got 1.5"), (float("nan"), "got nan"),
                                                 (0.0001, "at least one of 500")])
def test_known_agents_refuses(fraction, words):
    with pytest.raises(ValueError, match=words):
        known_agents(500, fraction, generator=stream(0))


def nan(c):
    return torch.where(torch.arange(len(c))[:, None] == 3, torch.nan, c)


@pytest.mark.parametrize("fit", [fit_polynomial, lambda *a: fit_network(*a, seed=0)], ids=["polynomial", "network"])
@pytest.mark.parametrize(("agent", "change", "words"), [
    (EVERY[:4], lambda c: c[:4], "at least 5 known agents for 2 covariates, got 4 of 41; know a larger fraction"),
    (EVERY, nan, "covariates: 2 of 80 values are NaN or Inf"),
    (EVERY, lambda c: c[:7], "covariates: axis n is 7, earlier inputs say n=40"),
    (EVERY, lambda c: c[:, 0], "expected \\(known agents, covariates\\), got shape \\(40,\\)"),
    (EVERY + 2, lambda c: c, "expected integers 0..40, got values 2..41"),
    (torch.zeros(40, dtype=torch.int64), lambda c: c, "different agents"),
])
def test_known_agents_that_are_odd_are_refused(trained, fit, agent, change, words):
    with pytest.raises(ValueError, match=words):
        fit(with_rows(trained, law(covariates())), agent, change(covariates()))


def test_new_covariates_that_are_odd_are_refused(trained):
    c = covariates()
    for found in (fit_polynomial(with_rows(trained, law(c)), 1 + EVERY, c),
                  fit_network(with_rows(trained, law(c)), 1 + EVERY, c, QUICK, seed=0)):
        for ask in (found.rows, found.cloud):
            with pytest.raises(ValueError, match="expected shape \\(agents, 2\\).* got \\(3, 1\\)"):
                ask(NEW[:, :1])
            with pytest.raises(ValueError, match="NaN or Inf"):
                ask(NEW * torch.nan)
    with pytest.raises(ValueError, match="expected positive numbers in column 1.* got -1; the regression uses their"):
        fit_polynomial(with_rows(trained, law(c)), 1 + EVERY, c).rows(torch.tensor([[1.0, -1.0]]))


def test_models_without_rows_are_refused(trained):
    with pytest.raises(ValueError, match="expected a PerSim with a row for each agent, got str"):
        fit_polynomial("model", EVERY, covariates())
