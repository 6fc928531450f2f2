"""What learners of continuous actions promise alike: runs beside each other, interruptions, files, losses that diverge."""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete
from lowrank_rl.rl.policies import actor_critic, bcq_continuous, cql_continuous, offline
from lowrank_rl.rl.policies.bcq_continuous import ContinuousBCQConfig, fit_bcq_continuous
from lowrank_rl.rl.policies.cql_continuous import ContinuousCQLConfig, fit_cql_continuous
from lowrank_rl.rng import stream
from policies.points import BOX, acted, logs


@dataclass(frozen=True)
class Case:
    module: ModuleType
    fit: Callable[..., Any]
    config: Any


def test_values_of_many_pairs_are_those_of_each_member_at_once():
    rows = 2 * actor_critic.BLOCK + 7
    state, action = torch.randn((2, rows, 3), generator=stream(0)), torch.randn((2, rows, 2), generator=stream(1))
    networks = offline.networks((5, 8, 1), offline.streams(0, 2, "networks"), heads=2)
    found = actor_critic.values(networks, state, action)
    assert found.shape == (2, 2, rows)
    for run in range(2):
        for head in range(2):
            expected = networks.alone(2 * run + head)(torch.cat([state[run], action[run]], 1)[None])[0, :, 0]
            torch.testing.assert_close(found[run, head], expected)


CASES = {
    "bcq": Case(bcq_continuous, fit_bcq_continuous,
                ContinuousBCQConfig(updates=20, batch=16, hidden=(8, 7), autoencoder=(9, 8), samples=3, choices=5)),
    "cql": Case(cql_continuous, fit_cql_continuous, ContinuousCQLConfig(
        updates=20, batch=16, hidden=(8, 7), samples=3, value_rate=1e-3, policy_rate=1e-3)),
}


@pytest.fixture(params=CASES)
def learner(request):
    return CASES[request.param]


@pytest.mark.parametrize("counts", [(40, 30, 50), (9, 12, 5)], ids=["long", "shorter than a batch"])
def test_a_run_learns_the_same_beside_others(learner, counts):
    data = logs(counts)
    together = learner.fit(data, torch.arange(3), BOX, learner.config, seed=0)
    alone = learner.fit(data, torch.tensor([0, -1, -1]), BOX, learner.config, seed=0)
    state = torch.linspace(-1, 1, 7)
    assert torch.allclose(acted(together, state), acted(alone, state), atol=1e-4)
    assert not torch.allclose(acted(together, state, agent=1), acted(alone, state), atol=1e-2)


def test_an_interrupted_fit_goes_on_to_the_same_bits(learner, tmp_path, monkeypatch):
    monkeypatch.setattr(offline, "TOLD", 5)
    monkeypatch.setattr(offline, "EVERY", 0.0)
    data, run, file = logs((30, 30)), torch.arange(2), tmp_path / "unfinished"

    def stop(entry):
        if entry["update"] == 15:
            raise KeyboardInterrupt
    whole = learner.fit(data, run, BOX, learner.config, seed=0)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(data, run, BOX, learner.config, seed=0, checkpoint=file, progress=stop)
    assert file.exists()
    seen = []
    resumed = learner.fit(data, run, BOX, learner.config, seed=0, checkpoint=file, progress=seen.append)
    assert [entry["update"] for entry in seen] == [15, 20]
    for name, network in whole.networks.items():
        for ours, theirs in zip(network.parameters(), resumed.networks[name].parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_saved_and_loaded_it_acts_the_same(learner, tmp_path):
    policy = learner.fit(logs((30, 30)), torch.arange(2), BOX, learner.config, seed=0)
    policy.save(tmp_path / "policy", learner.module.KIND)
    again = learner.module.load(tmp_path / "policy")
    state = torch.linspace(-1, 1, 7)
    for agent in range(2):
        assert torch.equal(acted(policy, state, agent), acted(again, state, agent))


def test_a_run_whose_loss_is_not_finite_is_marked(learner):
    data = logs((30, 30))
    data.reward[data.agent == 1] = 1e30          # its square is no float
    policy = learner.fit(data, torch.arange(2), BOX, learner.config, seed=0)
    assert policy.failed.tolist() == [-1, 1]
    assert acted(policy, [0.0]).isfinite().all()
    with pytest.raises(ValueError, match="agent 1: expected a trained policy, got one whose loss was NaN or Inf at update 1"):
        acted(policy, [0.0], agent=1)


def test_wrong_actions_are_refused(learner):
    data, run = logs(), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"actions: expected a Box of continuous ones, got Discrete\(n=3\)"):
        learner.fit(data, run, Discrete(3), learner.config, seed=0)
    with pytest.raises(ValueError, match=r"action: expected 1 components in \[-1.0, 1.0\]"):
        learner.fit(data, run, Box(-1.0, 1.0, 1), learner.config, seed=0)
