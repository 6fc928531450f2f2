import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib").use("Agg")
pytest.importorskip("mujoco")

import torch  # noqa: E402

from lowrank_rl.rl.envs import halfcheetah  # noqa: E402
from lowrank_rl.tensor.approximate import errors  # noqa: E402
from lowrank_rl.tensor.cp import CP  # noqa: E402
from lowrank_rl.tensor.unfoldings import unfoldings  # noqa: E402
from theory import halfcheetah_rank as claim  # noqa: E402

pytestmark = pytest.mark.mujoco
SEEDS = st.integers(0, 10**6)


@pytest.fixture(scope="module")
def tensor():
    return claim.sampled(0, 0, (8, 12, 9))


def test_the_tensor_is_the_simulators_step():
    rng = np.random.default_rng(0)
    agents, actions = rng.uniform(0.2, 1.8, (3, 2)), rng.uniform(-1, 1, (4, 6))
    states = halfcheetah.reset(2, generator=torch.Generator().manual_seed(0)).numpy()
    tensor = claim.transition_tensor(agents, states, actions).reshape(3, 2, 18, 4)
    moved = np.empty_like(tensor)
    for n, s, a in np.ndindex(3, 2, 4):
        row = (torch.from_numpy(x)[None] for x in (agents[n], states[s], actions[a]))
        moved[n, s, :, a] = halfcheetah.step(*row)[0].numpy() - states[s]
    np.testing.assert_allclose(tensor * np.sqrt(np.mean(moved**2, axis=(0, 1, 3)))[:, None], moved, atol=1e-12)


def test_samples_are_reproducible_independent_and_finite(tensor):
    np.testing.assert_array_equal(tensor, claim.sampled(0, 0, (8, 12, 9)))
    assert np.isfinite(tensor).all()
    assert np.abs(tensor - claim.sampled(0, 1, (8, 12, 9))).max() > 0.1
    np.testing.assert_allclose(np.mean(tensor.reshape(8, 12, 18, 9) ** 2, axis=(0, 1, 3)), np.ones(18))


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 4))
def test_als_finds_planted_terms(seed, rank):
    planted = CP.random((7, 20, 6), rank, seed=seed).dense()
    errors_of = [errors(planted, claim.als(planted, rank, np.random.default_rng(start)))[0] for start in range(4)]
    assert min(errors_of) < 0.02 * np.sqrt(np.mean(planted**2))


def test_the_curve_lies_between_its_bounds_and_falls(tensor):
    curve = claim.curve_of([tensor], (1, 2, 4, 8), 0)
    assert (curve.rms >= curve.least * (1 - 1e-9)).all()
    assert (np.diff(curve.rms) <= 0).all()
    assert (curve.rms <= 1.05 * curve.least)[0, :3].all()   # few terms: nearly the best there can be
    norm = np.linalg.norm(tensor)
    for j, (rank, cp) in enumerate(zip(curve.ranks, claim.near_cps(tensor, curve.ranks, 0), strict=True)):
        assert cp.rank <= rank
        assert np.linalg.norm(tensor - cp.dense()) / norm == pytest.approx(curve.rms[0, j])
        tails = [np.linalg.norm(np.linalg.svd(np.moveaxis(tensor, k, 0).reshape(tensor.shape[k], -1), compute_uv=False)[rank:])
                 for k in range(3)]
        assert curve.least[0, j] == pytest.approx(max(tails) / norm)


def test_there_is_no_exact_rank_but_agents_need_few_terms(tensor):
    """The claim: every unfolding has full rank, yet two scales per agent leave an agent mode of low epsilon-rank."""
    assert all(u.full for u in unfoldings(tensor))
    agent, state, _ = claim.terms_for(tensor, 0.1)
    assert agent <= 4 < state
    agent, state, action = claim.terms_for(tensor, 0.01)
    assert agent < 8
    assert state > 15                      # more than the paper's rank, even on this small sample
    assert action > 6


def test_products_of_agents_and_all_else_need_fewer_terms_than_a_cp(tensor):
    """The claim behind ``PerSimConfig.joint``: as many terms leave less than a third of what any CP of three modes leaves."""
    assert claim.agents_alone(tensor, 4) < claim.least_error(unfoldings(tensor), 4, tensor) / 3
    matrix = tensor.reshape(len(tensor), -1)
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    left = np.linalg.norm(matrix - (u[:, :4] * s[:4]) @ v[:4]) / np.linalg.norm(matrix)
    assert claim.agents_alone(tensor, 4) == pytest.approx(left)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_agents_alone_never_need_more_terms(seed, rank):
    tensor = CP.random((6, 7, 5), rank, seed=seed).dense()
    assert claim.agents_alone(tensor, rank) < 1e-12


def test_terms_for_is_the_least_rank_of_an_unfolding():
    planted = CP.random((7, 8, 6), 3, seed=1).dense()
    assert claim.terms_for(planted, 1e-9) == [3, 3, 3]
    assert claim.terms_for(planted, 1.0 + 1e-9) == [0, 0, 0]


def test_errors_of_dimensions_add_up(tensor):
    cp = claim.near_cps(tensor, [3], 0)[0]
    parts = claim.dimension_errors(tensor, cp)
    assert np.sqrt(np.mean(parts**2)) == pytest.approx(errors(tensor, cp)[0])


def test_a_search_that_fails_costs_nothing(tensor, monkeypatch):
    good = claim.als
    monkeypatch.setattr(claim, "als", lambda x, rank, rng: CP(np.zeros(rank), good(x, rank, rng).factors) if rank == 3
                        else good(x, rank, rng))
    two, three = claim.near_cps(tensor, (2, 3), 0)
    assert three is two
