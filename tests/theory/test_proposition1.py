import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib").use("Agg")

from lowrank_rl.rl.envs import mountaincar  # noqa: E402
from lowrank_rl.tensor.cp import CP  # noqa: E402
from lowrank_rl.tensor.uniqueness import freedom, uniqueness  # noqa: E402
from theory import proposition1 as claim  # noqa: E402

MANY = settings(max_examples=40, deadline=None)
DYNAMICS = st.sampled_from(sorted(claim.STEPS))


def spread(low: float, high: float, count: int) -> st.SearchStrategy:
    """Distinct numbers, far enough apart that rounding does not make them equal."""
    return st.lists(st.integers(0, 1000), min_size=2, max_size=count, unique=True).map(
        lambda steps: low + (high - low) * np.array(sorted(steps)) / 1000)


GRAVITIES, PUSHES = spread(1e-4, 3.5e-3, 6), spread(-1e-3, 1e-3, 4)
STATES = st.lists(st.tuples(st.floats(-1.2, 0.6), st.floats(-0.07, 0.07)), min_size=3, max_size=12).map(np.array)


def really_different(states: np.ndarray) -> bool:
    """Slopes differ and cars move: what the lower bound assumes."""
    x, v = states.T
    return np.ptp(np.cos(3 * x)) > 0.05 and np.abs(v).max() > 0.005 and np.abs(x).max() > 0.05


@MANY
@given(DYNAMICS, st.booleans(), GRAVITIES, STATES, PUSHES)
def test_three_terms_are_the_tensor_and_fewer_are_not(dynamics, difference, gravities, states, pushes):
    assume(really_different(states))
    tensor = claim.transition_tensor(claim.STEPS[dynamics], gravities, states, pushes, difference=difference)
    terms = claim.three_terms(dynamics, gravities, states, pushes, difference=difference)
    assert terms.rank == 3
    np.testing.assert_allclose(terms.dense(), tensor, atol=1e-15)
    agent, state, action = claim.checked_unfoldings(tensor)
    assert (agent.rank, state.rank, action.rank) == (2, 3, 2)
    assert state.gap > 100
    for r in range(3):   # each term is needed
        two = CP(np.ones(2), tuple(np.delete(f, r, axis=1) for f in terms.factors))
        assert np.abs(two.dense() - tensor).max() > 1e-7


@MANY
@given(DYNAMICS, st.booleans(), st.floats(1e-4, 3.5e-3), GRAVITIES, STATES, PUSHES)
def test_without_different_agents_or_pushes_the_claim_fails(dynamics, difference, gravity, gravities, states, pushes):
    step = claim.STEPS[dynamics]
    alike = claim.transition_tensor(step, np.array([gravity, gravity]), states, pushes, difference=difference)
    assert max(u.rank for u in claim.checked_unfoldings(alike)) <= 2
    one_push = claim.transition_tensor(step, gravities, states, pushes[[0, 0]], difference=difference)
    assert max(u.rank for u in claim.checked_unfoldings(one_push)) <= 2


@MANY
@given(DYNAMICS, GRAVITIES, STATES, PUSHES)
def test_velocity_differences_alone_have_rank_two(dynamics, gravities, states, pushes):
    assume(really_different(states))
    tensor = claim.transition_tensor(claim.STEPS[dynamics], gravities, states, pushes, difference=True)[:, 1::2]
    assert max(u.rank for u in claim.checked_unfoldings(tensor)) == 2
    terms = claim.three_terms(dynamics, gravities, states, pushes, difference=True)
    agent, state, action = (f[:, 1:] for f in terms.factors)
    np.testing.assert_allclose(CP(np.ones(2), (agent, state[1::2], action)).dense(), tensor, atol=1e-15)


@MANY
@given(DYNAMICS, st.booleans(), GRAVITIES, STATES, PUSHES)
def test_other_terms_are_as_exact_and_really_different(dynamics, difference, gravities, states, pushes):
    assume(really_different(states))
    terms = claim.three_terms(dynamics, gravities, states, pushes, difference=difference)
    found = uniqueness(terms)
    assert found.verdict == "not unique"
    assert found.k_ranks == (1, 3, 1)
    assert found.kruskal == (5, 8)
    assert freedom(terms) == 4
    for other in (claim.between_agents(terms), claim.between_actions(terms)):
        np.testing.assert_allclose(other.dense(), terms.dense(), atol=1e-14)
        assert freedom(other) == 3
        angles = [np.abs((a / np.linalg.norm(a, axis=0)).T @ (b / np.linalg.norm(b, axis=0)))
                  for a, b in zip(terms.factors, other.factors, strict=True)]
        same_term = np.prod(angles, axis=0) > 1 - 1e-9
        assert same_term.sum() <= 1   # at most one of the three terms is shared


def test_unclipped_dynamics_are_the_environments_away_from_limits():
    rng = np.random.default_rng(0)
    gravity, states = claim.sampled(rng, 20, 3000)
    differ = np.abs(claim.transition_tensor(claim.unclipped_step, gravity, states, claim.PUSHES) -
                    claim.transition_tensor(claim.clipped_step, gravity, states, claim.PUSHES)).max(axis=(0, 2)) > 1e-15
    touched = claim.region_of(states, gravity) > 0
    np.testing.assert_array_equal(differ.reshape(-1, 2).any(axis=1), touched)
    assert touched.mean() < 0.1


def test_the_papers_equation_is_not_gymnasiums():
    state = np.array([[-0.5, 0.0]])
    args = np.array([0.0025]), state, np.array([0.001])
    assert np.abs(claim.paper_step(*args) - claim.unclipped_step(*args))[0, 0] == pytest.approx(
        abs(0.001 - 0.0025 * np.cos(1.5)) / 2)   # position moves by half the change of velocity


def test_a_wrong_term_shows():
    gravities, states = claim.sampled(np.random.default_rng(0), 5, 10)
    tensor = claim.transition_tensor(claim.unclipped_step, gravities, states, claim.PUSHES)
    wrong = claim.three_terms("paper", gravities, states, claim.PUSHES)
    assert np.abs(wrong.dense() - tensor).max() > 1e-5


def test_limits_break_exactness_where_they_act_and_only_there():
    curves = claim.clipped_curves(0, ranks=range(1, 5), samples=2, agents=10, states=15)
    assert curves["never clipped"].rms[:, 2].max() < 1e-15
    for name in claim.REGIONS[1:]:
        assert curves[name].least[:, 2].max() > 1e-7, name   # no CP of rank 3
    gravity, states = claim.sampled(np.random.default_rng(1), 10, 20000)
    wall = states[claim.region_of(states, gravity) == claim.REGIONS.index("left wall")]
    after = claim.transition_tensor(claim.clipped_step, gravity, wall, claim.PUSHES).reshape(10, -1, 2, 3)
    assert ((after[:, :, 0] == mountaincar.LEFT) & (after[:, :, 1] == 0)).any(axis=(0, 2)).all()
