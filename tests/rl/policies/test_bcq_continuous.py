"""Continuous BCQ: its losses by hand, problems of known optimum. What it shares with others: test_continuous.py."""

import math

import pytest
import torch

from lowrank_rl.rl.contracts import Box
from lowrank_rl.rl.policies.batches import Batch
from lowrank_rl.rl.policies.bcq_continuous import ContinuousBCQ, ContinuousBCQConfig, choose, fit_bcq_continuous
from lowrank_rl.rng import stream
from policies.points import BOX, acted, logs, one, push

TINY = ContinuousBCQConfig(updates=20, batch=16, hidden=(8, 7), autoencoder=(9, 8), samples=3, choices=5)
# random actions are not worth encoding at the released weight of the divergence
SMALL = ContinuousBCQConfig(updates=400, batch=64, hidden=(32, 32), autoencoder=(32, 32), discount=0.9, follow=0.02,
                            learning_rate=4e-3, samples=5, choices=50, kl=0.02)


def clip(x, low=-1.0, high=1.0):
    return max(low, min(high, x))


@pytest.fixture
def learner():
    """Two runs of large weights, so that everything that can be clipped is."""
    made = ContinuousBCQ(3, 2, TINY, 0, 2, "cpu", box=Box(-2.0, 4.0, 2))
    for name, module in made.modules.items():
        for layer in module.layers:
            layer.weight.data *= 3 if name in ("encoder", "decoder") else 1.5
    with torch.no_grad():
        made.modules["encoder"].layers[-1].bias[..., 4] -= 5       # the first log deviation
        made.modules["value target"].layers[0].bias += 0.3        # so that a target is not mistaken for its source
        made.modules["perturb target"].layers[0].bias -= 0.3
    return made


@pytest.fixture
def batch():
    draw = stream(1, "batch")
    weight = torch.rand((2, 4), generator=draw)
    return Batch(torch.randn((2, 4, 3), generator=draw), 6 * torch.rand((2, 4, 2), generator=draw) - 2,
                 torch.randn((2, 4), generator=draw), torch.randn((2, 4, 3), generator=draw),
                 torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 1]]), weight / weight.sum(1, keepdim=True),
                 torch.tensor([[-10.0, 10.0]]).expand(2, 2))


def decoded(learner, run, state, noise, target=""):
    """A sampled and perturbed action, component by component."""
    latent = torch.tensor([clip(z, -0.5, 0.5) for z in noise.tolist()])
    action = torch.tensor([math.tanh(x) for x in one(learner.modules["decoder"], run, state, latent)])
    moved = one(learner.modules[f"perturb{target}"], run, state, action)
    return torch.tensor([clip(a + 0.05 * math.tanh(x)) for a, x in zip(action.tolist(), moved, strict=True)])


def test_the_autoencoders_loss_by_hand(learner, batch):
    noise, clipped = torch.randn((2, 4, 4), generator=stream(2, "noise")), 0
    action = (batch.action + 2) / 3 - 1
    expected = [0.0, 0.0]
    for g in range(2):
        for b in range(4):
            out = one(learner.modules["encoder"], g, batch.state[g, b], action[g, b])
            clipped += sum(not -4 < x < 15 for x in out[4:])
            mean, log_std = out[:4], [clip(x, -4, 15) for x in out[4:]]
            latent = torch.tensor([m + math.exp(s) * e for m, s, e in zip(mean, log_std, noise[g, b].tolist(), strict=True)])
            again = [math.tanh(x) for x in one(learner.modules["decoder"], g, batch.state[g, b], latent)]
            error = sum((x - y) ** 2 for x, y in zip(again, action[g, b].tolist(), strict=True)) / 2
            kl = sum(-0.5 * (1 + 2 * s - m * m - math.exp(2 * s)) for m, s in zip(mean, log_std, strict=True)) / 4
            expected[g] += float(batch.weight[g, b]) * (error + 0.5 * kl)
    assert 0 < clipped < 32
    assert learner.imitation_losses(batch, action, noise).tolist() == pytest.approx(expected, rel=1e-4)


def test_the_target_by_hand(learner, batch):
    noise = torch.randn((2, 4, 3, 4), generator=stream(2, "noise"))
    for g in range(2):
        for b in range(4):
            mixed = []
            for n in range(3):
                action = decoded(learner, g, batch.next_state[g, b], noise[g, b, n], " target")
                q = [one(learner.modules["value target"], 2 * g + j, batch.next_state[g, b], action)[0] for j in range(2)]
                mixed.append(0.75 * min(q) + 0.25 * max(q))
            expected = float(batch.reward[g, b]) + float(batch.going[g, b]) * 0.99 * max(mixed)
            assert learner.target(batch, noise)[g, b] == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_losses_of_values_and_perturbation_by_hand(learner, batch):
    action, draw = (batch.action + 2) / 3 - 1, stream(2, "noise")
    noise, target = torch.randn((2, 4, 4), generator=draw), torch.randn((2, 4), generator=draw)
    error, lost = [0.0, 0.0], [0.0, 0.0]
    for g in range(2):
        for b in range(4):
            weight, state = float(batch.weight[g, b]), batch.state[g, b]
            q = [one(learner.modules["value"], 2 * g + j, state, action[g, b])[0] for j in range(2)]
            error[g] += weight * sum((x - float(target[g, b])) ** 2 for x in q)
            lost[g] -= weight * one(learner.modules["value"], 2 * g, state, decoded(learner, g, state, noise[g, b]))[0]
    assert learner.value_losses(batch, action, target).tolist() == pytest.approx(error, rel=1e-4)
    assert learner.perturb_losses(batch, noise).tolist() == pytest.approx(lost, rel=1e-4, abs=1e-5)


def test_acting_takes_the_best_of_its_draws_by_the_first_value(learner):
    state, own = torch.randn((2, 3), generator=stream(3, "state")), [stream(4, row) for row in range(2)]
    networks = {name: network.alone(1) for name, network in learner.acting().items()}
    action = choose(networks, state, own, perturbation=0.05, choices=5, low=-2.0, high=4.0)
    for b in range(2):
        noise = torch.randn((5, 4), generator=stream(4, b))
        tried = [decoded(learner, 1, state[b], noise[n]) for n in range(5)]
        best = max(tried, key=lambda a, b=b: one(learner.modules["value"], 2, state[b], a)[0])
        assert action[b].tolist() == pytest.approx([1 + 3 * x for x in best.tolist()], abs=1e-4)


def test_a_point_is_pushed_to_the_middle():
    data = logs((1500,))
    policy = fit_bcq_continuous(data, torch.zeros(1, dtype=torch.int64), BOX, SMALL, seed=0)
    state = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64)
    action = acted(policy, state)
    assert ((action >= -2) & (action <= 4)).all()
    assert push(state, action).square().mean() < 0.03
    assert data.next_state.square().mean() > 0.6         # what the logged actions lead to


def test_it_stays_where_the_logs_are():
    """Lower actions pay more, but none below 1 was ever logged."""
    data = logs((1500,), low=1.0, reward=lambda action: -action)
    policy = fit_bcq_continuous(data, torch.zeros(1, dtype=torch.int64), BOX, SMALL, seed=0)
    action = acted(policy, torch.linspace(-0.9, 0.9, 40))
    assert action.min() > 1
    assert action.mean() < 2.1                           # of 1..4


def test_a_row_acts_by_its_own_generator():
    policy = fit_bcq_continuous(logs((30,)), torch.zeros(1, dtype=torch.int64), BOX, TINY, seed=0)
    state = torch.linspace(-1, 1, 7)
    together = acted(policy, state)
    assert torch.allclose(together[:1], acted(policy, state[:1]), atol=1e-12)
    assert not torch.allclose(together, acted(policy, state, seed=1))


def test_bad_settings_are_refused():
    for bad in ({"samples": 0}, {"choices": 0}, {"caution": 1.5}, {"perturbation": -0.1}, {"kl": 0.0}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
            ContinuousBCQConfig(**bad)
