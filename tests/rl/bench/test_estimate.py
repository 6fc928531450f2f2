"""A probe does what it stands for."""

import pytest

from lowrank_rl.rl.bench import estimate
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.policies.bcq import BCQ
from lowrank_rl.rl.policies.cql import CQL


@pytest.mark.parametrize(("learner", "method", "dataset", "rows"), [
    (BCQ, "bcq-a", "random", 64),            # a batch
    (CQL, "cql-p", "random", 512),
    (CQL, "cql-a", "random", 512),           # of a log of 500 steps, in pieces of 60
    (CQL, "cql-a", "pure", 180),             # all of a log of 150, each step once
    (CQL, "persim-cql-5", "pure", 512),      # and five more
])
def test_batches_of_a_probe_are_as_large_as_real_ones(monkeypatch, learner, method, dataset, rows):
    """Runs with fewer steps than a batch learn from each once, which costs less."""
    sizes, update = [], learner.update

    def spy(self, batch, number):
        sizes.append(batch.state.shape[1])
        return update(self, batch, number)
    monkeypatch.setattr(learner, "update", spy)
    training, _ = estimate.seconds(Cell("mountaincar", dataset, method, 1, 0, "best", "small"), "cpu")
    assert set(sizes) == {rows}
    assert training > 0
