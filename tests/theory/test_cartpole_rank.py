import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib").use("Agg")

from lowrank_rl.rl.envs import cartpole  # noqa: E402
from lowrank_rl.tensor.cp import CP  # noqa: E402
from lowrank_rl.tensor.epsilon_rank import grid  # noqa: E402
from lowrank_rl.tensor.jennrich import jennrich  # noqa: E402
from lowrank_rl.tensor.rank_bounds import upper_bound  # noqa: E402
from lowrank_rl.tensor.unfoldings import unfoldings  # noqa: E402
from lowrank_rl.tensor.uniqueness import freedom, uniqueness  # noqa: E402
from theory import cartpole_rank as claim  # noqa: E402

MANY = settings(max_examples=40, deadline=None)
SEEDS = st.integers(0, 10**6)
ANY_STATE = st.lists(st.tuples(*(st.floats(-r, r) for r in (5, 10, np.pi, 15))), min_size=1, max_size=6).map(np.array)
ANY_AGENT = st.lists(st.tuples(st.floats(0, 50), st.floats(0.05, 5)), min_size=1, max_size=6).map(np.array)


@MANY
@given(ANY_AGENT, ANY_STATE, st.booleans())
def test_five_terms_are_the_environment_at_any_state_and_covariate(agents, states, difference):
    tensor = claim.transition_tensor(agents, states, difference=difference)
    np.testing.assert_allclose(claim.five_terms(agents, states, difference=difference).dense(), tensor, atol=1e-12, rtol=1e-12)


@MANY
@given(SEEDS, st.integers(12, 25), st.integers(12, 30), st.booleans())
def test_fewer_than_five_do_not(seed, agents, states, difference):
    covariates, where = claim.sampled(np.random.default_rng(seed), agents, states)
    tensor = claim.transition_tensor(covariates, where, difference=difference)
    agent, state, action = unfoldings(tensor)
    assert (agent.rank, state.rank, action.rank) == (5, 5, 2)
    assert min(agent.gap, state.gap) > 100
    terms = claim.five_terms(covariates, where, difference=difference)
    for r in range(5):
        four = CP(np.ones(4), tuple(np.delete(f, r, axis=1) for f in terms.factors))
        assert np.abs(four.dense() - tensor).max() > 1e-6


@MANY
@given(SEEDS, st.sampled_from([(0, 0.5), (1, 10.0)]))
def test_a_hidden_length_alone_needs_five_terms_a_hidden_push_alone_two(seed, fixed):
    column, value = fixed
    covariates, where = claim.sampled(np.random.default_rng(seed), 15, 20)
    covariates[:, column] = value
    rank = max(u.rank for u in unfoldings(claim.transition_tensor(covariates, where)))
    assert rank == {0: 5, 1: 2}[column]   # same push: 1, 1/l and l without it, 1 and 1/l with it; same length: 1 and F


@MANY
@given(SEEDS)
def test_what_each_dimension_needs_alone(seed):
    covariates, where = claim.sampled(np.random.default_rng(seed), 15, 20)
    tensor = claim.transition_tensor(covariates, where, difference=True)
    assert [max(u.rank for u in unfoldings(tensor[:, d::4])) for d in range(4)] == [1, 3, 1, 3]


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_only_the_action_mode_is_determined_and_two_spans(seed):
    covariates, where = claim.sampled(np.random.default_rng(seed), 20, 40)
    assume(np.ptp(covariates[:, 1]) > 0.3)
    tensor = claim.transition_tensor(covariates, where, difference=True)
    terms = claim.five_terms(covariates, where, difference=True)
    found = uniqueness(terms)
    assert (found.verdict, found.k_ranks, found.kruskal) == ("not unique", (5, 5, 1), (11, 12))
    assert freedom(terms) == 8
    nearest = []
    for k in range(3):     # now and then a mix brings a column near another's by chance
        other = claim.mixed(terms, seed + k)
        np.testing.assert_allclose(other.dense(), terms.dense(), atol=1e-12)
        mine, others = (cp.factors[0] / np.linalg.norm(cp.factors[0], axis=0) for cp in (terms, other))
        nearest.append(np.abs(mine.T @ others).max())
        for block in claim.BLOCKS:
            assert claim.same_span(other.factors[0][:, block], terms.factors[0][:, block]) < 1e-9
    assert min(nearest) < 1 - 1e-6      # no agent column is shared, yet each pair of columns spans the same
    diagonal = jennrich(tensor, seed=0)
    assert diagonal.works
    assert diagonal.clusters == (3, 2)
    action = diagonal.cp.factors[2]
    np.testing.assert_allclose(np.sort(action[0] / action[1]), [-1, -1, 1, 1, 1], atol=1e-7)


def test_semi_implicit_steps_keep_the_rank_and_midpoint_steps_do_not():
    covariates, where = claim.sampled(np.random.default_rng(0), 25, 50)
    semi = claim.transition_tensor(covariates, where).reshape(25, 50, 4, 2)
    semi[:, :, [0, 2]] = where[None, :, [0, 2], None] + claim.SECONDS * semi[:, :, [1, 3]]
    assert [u.rank for u in unfoldings(semi.reshape(25, 200, 2))] == [5, 5, 2]

    def midpoint(agent, state, action):
        args = torch.from_numpy(agent), torch.from_numpy(action)[:, None]
        half = (cartpole.step(args[0], torch.from_numpy(state), args[1]).numpy() + state) / 2
        return state + cartpole.step(args[0], torch.from_numpy(half), args[1]).numpy() - half

    assert [u.rank for u in unfoldings(grid(midpoint, [covariates, where, claim.ACTIONS], outputs=1))] == [9, 9, 2]


def test_a_search_that_knows_no_formula_finds_five():
    covariates, where = claim.sampled(np.random.default_rng(3), 15, 20)
    bound = upper_bound(claim.transition_tensor(covariates, where), at_least=5, seed=0)
    assert (bound.rank, bound.error < 1e-10) == (5, True)
