import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("matplotlib").use("Agg")

from lowrank_rl.tensor.blocks import complete_blocks  # noqa: E402
from lowrank_rl.tensor.identify import identify  # noqa: E402
from lowrank_rl.tensor.pattern import Pattern  # noqa: E402
from theory import recovery as claim  # noqa: E402

CAR, POLE = claim.WORLDS["MountainCar"], claim.WORLDS["CartPole"]
BOTH = st.sampled_from([CAR, POLE])
SEEDS = st.integers(0, 10**6)


def sampled(world, count, seed=0):
    agents = world.agents(np.random.default_rng(seed), count)
    return agents, world.terms(agents)


def whole(world, count, kind):
    """What endless trajectories of that kind would see: every cell."""
    shape = (count, len(world.centres) * len(world.edges), world.environment.actions.n)
    mask = np.zeros(shape, dtype=bool)
    mask[np.arange(count), :, np.arange(count) % shape[2]] = True
    if kind == "block":
        mask[:, :, 0] = True
    return Pattern.from_mask(mask)


def predicted(world, pattern, terms):
    return np.logical_and.reduce([identify(pattern, world.rank).mask(),
                                  *(claim.determined(pattern, cp) for cp in claim.factorisations(world, terms))])


@settings(max_examples=10, deadline=None)
@given(BOTH, SEEDS, st.integers(2, 6))
def test_terms_are_the_environments_motion_from_the_centres(world, seed, count):
    """Where no limit acts; each dimension is divided by one number, which makes its root mean square 1."""
    agents, terms = sampled(world, count, seed)
    D, tensor = len(world.edges), terms.dense().reshape(count, len(world.centres), len(world.edges), -1)
    moved = np.stack([[world.environment.step(torch.from_numpy(np.tile(agent, (len(world.centres), 1))),
                                              torch.from_numpy(world.centres),
                                              torch.full((len(world.centres), 1), a)).numpy() - world.centres
                       for a in range(tensor.shape[3])] for agent in agents]).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(np.sqrt(np.mean(tensor**2, axis=(0, 1, 3))), np.ones(D), rtol=1e-9)
    ratio = np.sqrt(np.mean(moved**2, axis=(0, 1, 3)))
    np.testing.assert_allclose(tensor * ratio[:, None], moved, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(BOTH, SEEDS, st.sampled_from(claim.KINDS), st.integers(1, 7), st.integers(1, 60))
def test_walks_follow_the_environment_and_their_policy(world, seed, kind, count, steps):
    agents, _ = sampled(world, count, seed)
    walk, trajectories, states = claim.walked(world, agents, steps, kind, seed=seed)
    actions = world.environment.actions.n
    np.testing.assert_array_equal(walk[:, 0], np.tile(np.arange(count), steps))
    np.testing.assert_array_equal(walk[:, 1], world.cell(states))
    assert walk[:, 1].min() >= 0
    action = walk[:, 2].reshape(steps, count)
    own = np.arange(count) % actions
    if kind == "pure":
        assert (action == own).all()
    if kind == "block":
        assert (action[:steps // 2] == 0).all()
        assert (action[(steps + 1) // 2:] == own).all()
    after = world.environment.step(torch.from_numpy(np.tile(agents, (steps, 1))), torch.from_numpy(states),
                                   torch.from_numpy(walk[:, 2:])).numpy()
    follows = (after[:-count] == states[count:]).all(axis=1).reshape(steps - 1, count) if steps > 1 else np.ones((0, count))
    begun = count + int((~follows.astype(bool)).sum())
    assert trajectories == begun / count
    left = world.cell(after[:-count]).reshape(-1, count) < 0
    assert not follows[left].any()
    if steps > claim.EPISODE:
        assert not follows.cumprod(axis=0)[claim.EPISODE - 1].any()


@settings(max_examples=20, deadline=None)
@given(BOTH, SEEDS)
def test_cells_hold_their_centres_and_nothing_outside(world, seed):
    np.testing.assert_array_equal(world.cell(world.centres), np.arange(len(world.centres)))
    low, high = np.array([(edge[0], edge[-1]) for edge in world.edges]).T
    x = np.random.default_rng(seed).uniform(low - 0.5, high + 0.5, (200, len(low)))
    cell = world.cell(x)
    np.testing.assert_array_equal(cell >= 0, ((low <= x) & (x < high)).all(axis=1))
    width = np.array([edge[1] - edge[0] for edge in world.edges])
    inside = cell >= 0
    assert (np.abs(x - world.centres[cell])[inside] <= width / 2 + 1e-12).all()


@settings(max_examples=10, deadline=None)
@given(BOTH, SEEDS, st.integers(1, 5))
def test_a_pattern_is_the_visited_cells_in_all_dimensions(world, seed, count):
    agents, terms = sampled(world, count, seed)
    walk, _, _ = claim.walked(world, agents, 10, "random", seed=seed)
    mask, D = np.zeros(terms.shape, dtype=bool), len(world.edges)
    for agent, cell, action in walk:
        mask[agent, cell * D:(cell + 1) * D, action] = True
    np.testing.assert_array_equal(claim.pattern_of(world, walk, count).mask(), mask)


@pytest.mark.parametrize("world", [CAR, POLE])
def test_pure_policies_never_determine_another_action(world):
    _, terms = sampled(world, 18)
    pattern = whole(world, 18, "pure")
    np.testing.assert_array_equal(identify(pattern, world.rank).mask(), pattern.mask())
    for cp in claim.factorisations(world, terms):
        np.testing.assert_array_equal(claim.determined(pattern, cp), pattern.mask())
    error = claim.completed(pattern, terms.dense(), world.rank, seed=0)
    assert error[pattern.mask()].max() < claim.CLOSE
    assert (error[~pattern.mask()] < claim.CLOSE).mean() < 0.1


def test_blocks_determine_a_typical_tensor_but_not_mountaincars():
    """5/9: agents of action 0 know one of three actions, the others two."""
    _, terms = sampled(CAR, 18)
    pattern = whole(CAR, 18, "block")
    assert identify(pattern, 3).everything
    assert claim.determined(pattern, terms).all()             # near the paper's terms, but
    assert predicted(CAR, pattern, terms).mean() == pytest.approx(5 / 9)
    np.testing.assert_array_equal(predicted(CAR, pattern, terms), pattern.mask())
    other, seen = claim.twin(terms).dense(), pattern.mask()   # a second answer
    assert np.linalg.matrix_rank(claim.twin(terms).factors[1]) == 3
    np.testing.assert_allclose(other[seen], terms.dense()[seen], atol=1e-12)
    assert np.median(np.abs(other - terms.dense())[~seen]) > 0.01
    few = complete_blocks(pattern.observe(terms.dense(), noise=1e-9, seed=0), rank=2)   # agents differ in two ways, not three
    np.testing.assert_allclose(few.to_dense(), terms.dense(), atol=1e-5)


def test_blocks_determine_cartpole():
    _, terms = sampled(POLE, 18)
    pattern = whole(POLE, 18, "block")
    assert predicted(POLE, pattern, terms).all()
    error = claim.completed(pattern, terms.dense(), 4, seed=0)
    assert (error < claim.CLOSE).mean() > 0.98


@pytest.mark.parametrize(("world", "count"), [(CAR, 24), (POLE, 24)])
def test_random_actions_are_enough_as_predicted(world, count):
    found = claim.outcome(world, "random", count, 80, seed=1)
    assert found.typical >= found.predicted > 0.99
    assert found.recovered > 0.99
    too_few = claim.outcome(world, "random", count, 80, rank=world.rank - 2, seed=1)
    assert too_few.recovered < 0.9


def test_too_few_steps_are_not_enough_as_predicted():
    found = claim.outcome(CAR, "random", 12, 60, seed=0)
    assert found.observed < found.predicted < 0.95
    assert found.sound > 0.98
    assert found.recovered == pytest.approx(found.predicted, abs=0.05)


def test_states_seen_once_determine_nothing():
    agents, _ = sampled(CAR, 10)
    walk, _, _ = claim.walked(CAR, agents, 40, "random", seed=0)
    alone = Pattern(np.stack([walk[:, 0], np.arange(len(walk)), walk[:, 2]], axis=1), (10, len(walk), 3))
    np.testing.assert_array_equal(identify(alone, 3).mask(), alone.mask())


def test_unknown_kind():
    with pytest.raises(ValueError, match="unknown kind .expert.; known: random"):
        claim.walked(CAR, np.array([[0.001]]), 5, "expert", seed=0)
