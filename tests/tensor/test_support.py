"""Support: never flags what was seen, flags what is far, and covers about as tightly as can be."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor import support as under_test
from lowrank_rl.tensor.functional import FunctionalCP
from lowrank_rl.tensor.functional_als import ALSConfig
from lowrank_rl.tensor.modes import Categorical, Polynomial
from lowrank_rl.tensor.support import Support

QUICK = ALSConfig(sweeps=1)


def fitted(agent, state, agents=5, **settings):
    inputs = 1 if state.ndim == 1 else state.shape[1]
    model = FunctionalCP([Categorical(agents), Polynomial(inputs, 1)], rank=1, solver=QUICK, **settings)
    return model.fit((agent[:200], state[:200]), numpy_stream(0, "support").normal(size=len(agent[:200])))     # any will do


@pytest.mark.filterwarnings("ignore:.*constant")
@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 120), inputs=st.integers(1, 4), centres=st.integers(1, 30), seed=st.integers(0, 10**6),
       distinct=st.integers(1, 120), size=st.floats(1e-6, 1e6), offset=st.floats(-1e6, 1e6))
def test_no_training_entry_is_outside(n, inputs, centres, seed, distinct, size, offset):
    draw = numpy_stream(seed, "support")
    state = (size * draw.standard_t(2, size=(distinct, inputs)) + offset)[draw.integers(distinct, size=n)]
    agent = draw.integers(5, size=n)
    support = Support.of((agent, state), fitted(agent, state), centres=centres)
    order = draw.permutation(n)
    assert not support.outside((agent[order], state[order])).any()
    assert not support.why((agent[:1], state[:1])).any()


def test_far_states_holes_and_new_categories_are_outside_and_why_says_which_mode():
    draw = numpy_stream(0, "ring")
    angle, agent = draw.uniform(0, 2 * np.pi, 3000), draw.integers(4, size=3000)        # agent 4 has no entry
    state = np.stack([100 * np.cos(angle), np.sin(angle)], 1)
    support = Support.of((agent, state), fitted(agent, state))
    new = (np.array([0, 0, 0, 4, 4]), np.array([[100, 0.01], [0, 0], [130, 0], [0, 1], [100, 1]]))
    assert support.why(new).tolist() == [[False, False], [False, True], [False, True], [True, False], [True, True]]
    assert support.outside(new).tolist() == [False, True, True, True, True]


@pytest.mark.parametrize(("n", "inputs"), [(100, 1), (500, 2), (3000, 4)])
def test_new_states_of_the_same_kind_are_rarely_outside_and_far_ones_mostly(n, inputs):
    draw = numpy_stream(n, "gauss")
    state, new = draw.normal(size=(n, inputs)), draw.normal(size=(4000, inputs))
    support = Support.of((np.zeros(n, int), state), fitted(np.zeros(n, int), state))
    assert support.outside((np.zeros(4000, int), new)).mean() < 0.08
    far = 6 * new / np.linalg.norm(new, axis=1, keepdims=True)
    assert support.outside((np.zeros(4000, int), far)).mean() > 0.9


def test_balls_are_at_most_twice_as_large_as_the_best():
    """Gonzalez's bound, against all choices of centres."""
    for seed in range(5):
        state = numpy_stream(seed, "best").normal(size=(14, 2))
        model = fitted(np.zeros(14, int), state)
        support = Support.of((np.zeros(14, int), state), model)
        x = model.module_.scaled(1, torch.from_numpy(state)).numpy()
        distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
        count = len(support.centres[1])
        best = min(distance[list(chosen)].min(0).max() for chosen in combinations(range(14), count))
        radius = np.linalg.norm(x[:, None] - support.centres[1].numpy()[None], axis=-1).min(1).max()
        assert count == 4
        assert radius == pytest.approx(support.radius[1], rel=1e-5)
        assert radius <= 2 * best + 1e-12


def test_more_entries_than_are_searched_for_centres_are_covered_too(monkeypatch):
    monkeypatch.setattr(under_test, "SUBSAMPLE", 200)
    state = np.concatenate([numpy_stream(0, "many").normal(size=2000), [40.0]])       # the odd one is likely not among them
    zero = np.zeros(len(state), int)
    assert not Support.of((zero, state), fitted(zero, state), seed=1).outside((zero, state)).any()


def test_tensors_in_tensors_out_and_the_same_seed_the_same_balls(monkeypatch):
    monkeypatch.setattr(under_test, "SUBSAMPLE", 200)
    draw = numpy_stream(0, "seeds")
    agent, state = draw.integers(5, size=2000), draw.normal(size=(2000, 2)).astype(np.float32)
    model = fitted(agent, state)
    first, again, other = (Support.of((agent, state), model, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.centres[1], again.centres[1])
    assert not torch.equal(first.centres[1], other.centres[1])
    tensors = torch.from_numpy(agent), torch.from_numpy(state)
    out = first.outside(tensors)
    assert out.dtype == torch.bool
    assert not out.any()
    assert isinstance(first.outside((agent, state)), np.ndarray)
    model.fit((agent[:9], 100 * state[:9]), np.ones(9))
    assert not first.outside((agent, state)).any()               # its own model, not the one fitted since


def test_what_is_refused():
    agent, state = np.zeros(9, int), np.arange(9.0)
    model = fitted(agent, state)
    with pytest.raises(ValueError, match="centres: expected a whole number >= 1, got 0"):
        Support.of((agent, state), model, centres=0)
    with pytest.raises(ValueError, match="call fit first"):
        Support.of((agent, state), FunctionalCP(model.modes, rank=1))
    with pytest.raises(ValueError, match="expected at least one entry, got none"):
        Support.of((agent[:0], state[:0]), model)
    with pytest.raises(ValueError, match=r"X\[1\]: 1 of 9 values are NaN or Inf"):
        Support.of((agent, state), model).outside((agent, np.where(state == 3, np.inf, state)))
    with pytest.raises(ValueError, match=r"X\[0\]: expected integers 0..4, got values 5..5"):
        Support.of((agent, state), model).outside((agent + 5, state))
