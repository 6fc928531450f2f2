"""Continuous CQL: its losses by hand, problems of known optimum. What it shares with others: test_continuous.py."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from lowrank_rl.rl.contracts import Box
from lowrank_rl.rl.policies.batches import Batch
from lowrank_rl.rl.policies.cql_continuous import ContinuousCQL, ContinuousCQLConfig, fit_cql_continuous, gaps, sample
from lowrank_rl.rng import stream
from policies.points import BOX, acted, logs, one, push

TINY = ContinuousCQLConfig(updates=20, batch=16, hidden=(8, 7), samples=3, value_rate=1e-3, policy_rate=1e-3)
# rewards are small here, so caution and entropy must be cheap
SMALL = ContinuousCQLConfig(updates=400, batch=64, hidden=(32, 32), discount=0.9, follow=0.02, value_rate=4e-3,
                            policy_rate=4e-3, temperature=0.02, weight=0.02, samples=4)


@pytest.fixture
def learner():
    """Two runs, of unlike policies."""
    made = ContinuousCQL(3, 2, TINY, 0, 2, "cpu", box=Box(-2.0, 4.0, 2))
    with torch.no_grad():
        made.modules["policy"].layers[-1].bias[0, :, 2] -= 25       # a log deviation past its bounds
        made.modules["target"].layers[0].bias += 0.3               # so that it is not mistaken for its source
        made.modules["price"]["alpha"] += torch.tensor([0.5, -0.5])
    return made


@pytest.fixture
def batch():
    draw = stream(1, "batch")
    weight = torch.rand((2, 4), generator=draw)
    return Batch(torch.randn((2, 4, 3), generator=draw), 6 * torch.rand((2, 4, 2), generator=draw) - 2,
                 torch.randn((2, 4), generator=draw), torch.randn((2, 4, 3), generator=draw),
                 torch.tensor([[1.0, 0, 1, 1], [0, 1, 1, 1]]), weight / weight.sum(1, keepdim=True),
                 torch.tensor([[-10.0, 10.0]]).expand(2, 2))


def drawn(learner, run, state, noise):
    """An action of the policy and its log density, component by component."""
    out, action, density = one(learner.modules["policy"], run, state), [], 0.0
    for mean, log_std, e in zip(out[:2], out[2:], noise.tolist(), strict=True):
        std = math.exp(max(-20.0, min(2.0, log_std)))
        raw = mean + std * e
        action.append(math.tanh(raw))
        density += math.log(math.exp(-e * e / 2) / math.sqrt(2 * math.pi) / std) - math.log(1 - math.tanh(raw) ** 2)
    return torch.tensor(action, dtype=state.dtype), density


def test_the_density_of_a_tanh_of_a_gaussian_sums_to_one():
    """By the change of variables on a grid of actions, whose draws are found by inverting."""
    action = torch.linspace(-0.9999, 0.9999, 20001, dtype=torch.float64)
    mean, log_std = torch.full((1, 1, 1), 0.4, dtype=torch.float64), torch.full((1, 1, 1), -0.7, dtype=torch.float64)
    noise = (action.atanh() - 0.4) / math.exp(-0.7)
    again, density = sample(mean, log_std, noise[None, None, :, None])
    assert torch.allclose(again.flatten(), action)
    assert torch.trapezoid(density.flatten().exp(), action) == pytest.approx(1, abs=1e-4)


def test_an_update_by_hand(learner, batch, monkeypatch):
    """The loss of both Q, and the first steps of Adam, which are as long as its rate, up or down."""
    draw = stream(2, "noise")
    noise, uniform = torch.randn((2, 4, 7, 2), generator=draw), 2 * torch.rand((2, 4, 3, 2), generator=draw) - 1
    monkeypatch.setattr(learner, "_noise", lambda batch: (noise, uniform))
    action, modules = (batch.action + 2) / 3 - 1, learner.modules
    squares, excess, surprise = [0.0, 0.0], [[-25.0, -25.0], [-25.0, -25.0]], [-2.0, -2.0]
    for g in range(2):
        for b in range(4):
            weight, state, after = float(batch.weight[g, b]), batch.state[g, b], batch.next_state[g, b]
            best = torch.tensor(one(modules["policy"], g, after)[:2]).tanh()
            least = min(one(modules["target"], 2 * g + j, after, best)[0] for j in range(2))
            target = float(batch.reward[g, b]) + float(batch.going[g, b]) * 0.99 * least
            others = [drawn(learner, g, state, noise[g, b, n]) for n in range(3)]
            others += [drawn(learner, g, after, noise[g, b, n]) for n in range(3, 6)]
            others += [(uniform[g, b, n], math.log(1 / 4)) for n in range(3)]
            surprise[g] += weight * drawn(learner, g, state, noise[g, b, 6])[1]
            for j in range(2):
                logged = one(modules["value"], 2 * g + j, state, action[g, b])[0]
                total = sum(math.exp(one(modules["value"], 2 * g + j, state, other)[0] - density) for other, density in others)
                squares[g] += weight * (logged - target) ** 2
                excess[g][j] += weight * 5 * (math.log(total) - logged)
    expected, temperature, alpha = [], [], []
    for g in range(2):
        alpha.append((0.5, -0.5)[g] + (1e-4 if sum(excess[g]) > 0 else -1e-4))
        temperature.append(1e-4 if surprise[g] > 0 else -1e-4)
        expected.append(squares[g] + math.exp(alpha[g]) * sum(excess[g]))
    assert learner.update(batch, 0).tolist() == pytest.approx(expected, rel=1e-4)
    assert modules["price"]["alpha"].tolist() == pytest.approx(alpha, abs=1e-6)
    assert modules["price"]["temperature"].tolist() == pytest.approx(temperature, abs=1e-6)


def test_the_policys_slope_by_hand(learner, batch, monkeypatch):
    """By differences of its loss, in the updated Q and temperature."""
    doubled = {name: values.double() for name, values in vars(batch).items() if name != "distinct"}
    batch, draw, step = Batch(**doubled), stream(2, "noise"), 1e-5
    noise, uniform = torch.randn((2, 4, 7, 2), generator=draw).double(), torch.zeros(2, 4, 3, 2, dtype=torch.float64)
    monkeypatch.setattr(learner, "_noise", lambda batch: (noise, uniform))
    modules = learner.modules
    for module in modules.values():
        module.double()
    with torch.no_grad():
        modules["price"]["temperature"] -= 1
    before = deepcopy(modules["policy"])
    learner.update(batch, 0)
    slope, modules["policy"] = modules["policy"].layers[-1].bias.grad[:, 0], before

    def loss(g):
        total = 0.0
        for b in range(4):
            action, density = drawn(learner, g, batch.state[g, b], noise[g, b, 6])
            least = min(one(modules["value"], 2 * g + j, batch.state[g, b], action)[0] for j in range(2))
            total += float(batch.weight[g, b]) * (math.exp(modules["price"]["temperature"][g].item()) * density - least)
        return total

    for g in range(2):
        for k in range(4):
            bias = before.layers[-1].bias.data[g, 0]
            bias[k] += step
            above = loss(g)
            bias[k] -= 2 * step
            below = loss(g)
            bias[k] += step
            assert slope[g, k].item() == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-6)
    assert slope[0, 2] == 0                  # clipped


def test_the_gap_of_a_constant_value():
    """log (n / density) whatever the value, if all of it is the same."""
    batch = Batch(*[torch.zeros(1, 2)] * 5, weight=torch.tensor([[0.25, 0.75]]), extremes=torch.zeros(1, 2))
    logged, gap = gaps(batch, torch.full((1, 2, 2 * 5), 7.0), torch.tensor([[[0.5] * 4, [-1.0] * 4]]))
    assert logged.tolist() == [[[7.0, 7.0], [7.0, 7.0]]]
    assert gap.tolist() == [pytest.approx([math.log(4) + 0.25 * -0.5 + 0.75 * 1.0] * 2)]


def test_a_point_is_pushed_to_the_middle():
    data = logs((1500,))
    policy = fit_cql_continuous(data, torch.zeros(1, dtype=torch.int64), BOX, SMALL, seed=0)
    state = torch.linspace(-0.9, 0.9, 19, dtype=torch.float64)
    action = acted(policy, state)
    assert ((action >= -2) & (action <= 4)).all()
    assert push(state, action).square().mean() < 0.04
    assert data.next_state.square().mean() > 0.6         # what the logged actions lead to


def test_it_keeps_near_the_logs_unless_it_is_bold():
    """Lower actions pay more, but none below 1 was ever logged."""
    data, run = logs((1500,), low=1.0, reward=lambda action: -action), torch.zeros(1, dtype=torch.int64)
    state = torch.linspace(-0.9, 0.9, 40)
    careful = acted(fit_cql_continuous(data, run, BOX, SMALL, seed=0), state)
    bold = acted(fit_cql_continuous(data, run, BOX, replace(SMALL, weight=1e-6), seed=0), state)
    assert bold.mean() < 0
    assert careful.min() > 0.8
    assert careful.mean() < 1.6                          # 2.5 is logged


def test_a_row_acts_the_same_beside_others():
    policy = fit_cql_continuous(logs((30,)), torch.zeros(1, dtype=torch.int64), BOX, TINY, seed=0)
    state = torch.linspace(-1, 1, 7)
    assert torch.allclose(acted(policy, state)[:1], acted(policy, state[:1], seed=1), atol=1e-12)


def test_bad_settings_are_refused():
    for bad in ({"samples": 0}, {"follow": 1.5}, {"alpha": 0.0}, {"policy_rate": -1.0}, {"threshold": math.inf}):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}: expected"):
            ContinuousCQLConfig(**bad)
