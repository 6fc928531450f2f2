"""rng: streams depend on seed and labels, on nothing else."""

import os
import subprocess
import sys

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_rl import rng

LABELS = st.lists(st.one_of(st.text(max_size=5), st.integers(-3, 3), st.none()), max_size=3)
NAMES = st.tuples(st.integers(-2, 2**40), LABELS)


def draw(seed, *labels):
    return torch.rand(3, generator=rng.stream(seed, *labels)), rng.numpy_stream(seed, *labels).random(3)


@settings(deadline=None, max_examples=50)
@given(NAMES, NAMES)
def test_equal_names_equal_numbers_other_names_other_numbers(one, other):
    (seed, labels), (other_seed, other_labels) = one, other
    before = draw(seed, *labels)
    torch.rand(1), draw(other_seed, *other_labels)
    for first, again in zip(before, draw(seed, *labels), strict=True):
        np.testing.assert_array_equal(first, again)
    same = repr(one) == repr(other)
    for first, second in zip(before, draw(other_seed, *other_labels), strict=True):
        assert np.array_equal(first, second) == same
    assert 0 <= rng.integer(seed, *labels) < 2**63


def test_labels_are_not_glued_together():
    names = [(1, "ab", "c"), (1, "a", "bc"), (1, "abc"), (1, ("ab", "c")), (1, 1), (1, "1"), (1,), (11,), (-1,)]
    assert len({rng.integer(*name) for name in names}) == len(names)


def test_the_type_of_the_seed_does_not_matter():
    assert rng.integer(3, "x") == rng.integer(np.int64(3), "x") == rng.integer(torch.tensor(3), "x")


def test_global_generators_are_left_alone():
    state = torch.get_rng_state()
    draw(0, "anything")
    assert torch.equal(state, torch.get_rng_state())


def test_another_process_draws_the_same():
    """String hashes differ between processes, so a stream built on hash() would fail here."""
    names = (3, "halfcheetah", "persim", 0)
    code = f"from lowrank_rl import rng; print(rng.integer(*{names!r}))"
    out = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "1"},
                         capture_output=True, text=True, check=True)
    assert int(out.stdout) == rng.integer(*names)


def test_uniform_on_average():
    """Neighbouring seeds are not alike: 2000 first draws have mean 1/2 and no correlation from seed to seed."""
    first = torch.stack([torch.rand((), generator=rng.stream(seed, "x"), dtype=torch.float64) for seed in range(2000)])
    assert abs(float(first.mean()) - 0.5) < 5 * (1 / 12 / 2000) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([first[1:], first[:-1]]))[0, 1])) < 5 / 2000**0.5
