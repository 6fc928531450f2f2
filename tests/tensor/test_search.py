"""The sample that the starts see, and the unit that all solvers see."""

import numpy as np
import pytest

from lowrank_rl.tensor import CPCompletion
from lowrank_rl.tensor.search import Run, enough
from lowrank_rl.tensor.solvers.problem import Problem


def run(total, rank=1, weighted=False, seed=0):
    """A sorted table: entry b has value b."""
    index = np.sort(np.random.default_rng(0).integers(0, 50, (total, 3)).astype(np.int32), axis=0).T
    no = (False,) * 3
    weight = np.linspace(1, 2, total) if weighted else None
    problem = Problem(index, np.arange(total, dtype=float), weight, (50,) * 3, rank, (0.1, 0.2, 0.0), no, no)
    return Run(CPCompletion(rank, random_state=seed), problem, 4.0)


@pytest.mark.parametrize("total", [200_001, 250_000, 999_983])
def test_a_sample_is_spread_evenly_and_has_no_entry_twice(total):
    whole = run(total, weighted=True)
    sample = whole._sample()
    chosen = np.rint(4.0 * sample.value).astype(int)     # which entries, by their values
    least = enough(148)
    assert least <= len(chosen) <= 1.5 * least
    gap = total // least
    assert np.array_equal(chosen // gap, np.arange(len(chosen)))
    assert abs((chosen % gap).mean() - (gap - 1) / 2) < 0.02 * gap
    np.testing.assert_array_equal(sample.index, whole.problem.index[:, chosen])
    np.testing.assert_array_equal(sample.weight, whole.problem.weight[chosen])
    np.testing.assert_allclose(np.array(sample.ridge) / len(chosen), np.array(whole.problem.ridge) / total)
    np.testing.assert_array_equal(sample.value, whole._sample().value)
    assert (run(total, seed=1)._sample().value != sample.value).any()


def test_few_entries_are_all_taken():
    whole = run(199_999)
    sample = whole._sample()
    np.testing.assert_array_equal(sample.value, whole.problem.value / 4.0)
    assert sample.ridge == whole.problem.ridge
    assert np.may_share_memory(sample.index, whole.problem.index)
