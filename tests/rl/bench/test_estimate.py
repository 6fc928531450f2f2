"""A probe does what it stands for."""

import pytest

from lowrank_rl.rl.bench import estimate
from lowrank_rl.rl.bench.store import Cell
from lowrank_rl.rl.policies.bcq import BCQ
from lowrank_rl.rl.policies.cql import CQL


@pytest.mark.parametrize(("learner", "environment", "method", "dataset", "rows"), [
    (BCQ, "mountaincar", "bcq-a", "random", 64),           # a batch
    (CQL, "mountaincar", "cql-p", "random", 512),
    (CQL, "mountaincar", "cql-a", "random", 500),          # all of a log, each step once
    (CQL, "mountaincar", "cql-a", "pure", 150),
    (CQL, "mountaincar", "persim-cql-5", "pure", 512),     # and five more
    (CQL, "cartpole", "cql-a", "random", 23),
    (CQL, "cartpole", "cql-a", "pure", 200),
    (CQL, "cartpole", "cql-p", "random", 512),
])
def test_batches_of_a_probe_are_as_large_as_real_ones(monkeypatch, learner, environment, method, dataset, rows):
    """Runs with fewer steps than a batch learn from each once, which costs less."""
    sizes, update = [], learner.update

    def spy(self, batch, number):
        sizes.append(batch.state.shape[1])
        return update(self, batch, number)
    monkeypatch.setattr(learner, "update", spy)
    training, _ = estimate.seconds(Cell(environment, dataset, method, 1, 0, "best", "small"), "cpu")
    assert set(sizes) == {rows}
    assert training > 0
