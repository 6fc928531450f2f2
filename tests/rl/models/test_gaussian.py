"""What ensembles of dynamics networks share: likelihood and its bounds, units, training until held-out error rises."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Box, Discrete, Transitions
from lowrank_rl.rl.models import gaussian
from lowrank_rl.rl.models.gaussian import Bounds, Descent, checked, decay, descend, fill, frame, misfit, nll
from lowrank_rl.rng import stream
from lowrank_rl.tensor.functional_checkpoint import Checkpoint

BOX = Box(-2.0, 4.0, 1)


def steps(count=50):
    draw = stream(0, "steps")
    state = torch.randn(count, 3, generator=draw).double() * torch.tensor([1.0, 1e-6, 5.0]) + 2
    return Transitions(torch.zeros(count, dtype=torch.int64), state, BOX.sample((count,), generator=draw),
                       state + torch.randn(count, 3, generator=draw).double() * 1e-3)


def test_likelihood_is_that_of_a_normal():
    mean, raw, target = torch.randn(3, 2, 5, 4, generator=stream(0)).double()
    expected = -torch.distributions.Normal(mean, (0.5 * raw).exp()).log_prob(target)
    torch.testing.assert_close(nll(mean, raw, target), expected)


def test_misfit_at_unit_variance_is_squared_error_and_a_constant():
    target = torch.randn(1, 6, 2, generator=stream(0))
    free = Bounds(1, 2)
    with torch.no_grad():
        free.high.fill_(50.0)          # so far that they do not matter
        free.low.fill_(-50.0)
    out = torch.zeros(1, 6, 4)
    gain = misfit(out, target, free) - misfit(out[..., :2], target, None)
    torch.testing.assert_close(gain, torch.full_like(gain, math.log(2 * math.pi)))


def test_the_mean_is_judged_without_its_variance():
    out, target = torch.tensor([[[1.0, 50.0]]]), torch.tensor([[[3.0]]])
    assert gaussian.off(out, target, Bounds(1, 1)).item() == 4
    assert gaussian.off(out[..., :1], target, None).item() == 4


def test_bounds_by_hand():
    bounds = Bounds(1, 1)
    raw = torch.tensor([-100.0, 0.0, 100.0])
    log_variance = bounds(torch.stack([raw + 7, raw], dim=-1)[None])[1][0, :, 0]
    upper = 0.5 - math.log(1 + math.exp(0.5))
    softplus = [math.log(1 + math.exp(x + 10)) for x in (upper, 0.5)]
    torch.testing.assert_close(log_variance, torch.tensor([-10.0, -10 + softplus[0], -10 + softplus[1]]))
    torch.testing.assert_close(bounds.width(), torch.tensor([10.5]))


def test_each_member_has_bounds_of_its_own():
    bounds = Bounds(2, 3)
    bounds(torch.zeros(2, 4, 6))[1][0].sum().backward()
    assert bounds.high.grad[0].abs().min() > 0
    assert bounds.high.grad[1].abs().max() == 0


@pytest.mark.parametrize("absolute", [(), (0,), (0, 2)])
def test_a_step_undoes_its_target(absolute):
    data = steps()
    units = frame(data, BOX, absolute=absolute)
    said = units.target(data.state, data.next_state)
    torch.testing.assert_close(said.mean(0), torch.zeros(3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(said.std(0, unbiased=False), torch.ones(3).double())
    torch.testing.assert_close(units.step(data.state, said), data.next_state)
    elsewhere = units.step(data.state + 1, said) - units.step(data.state, said)
    for d in range(3):
        torch.testing.assert_close(elsewhere[:, d], torch.full((50,), float(d not in absolute)).double())


def test_what_networks_see():
    data = steps()
    units = frame(data, BOX, angles=(2,), unseen=(0,))
    assert units.sizes == (3, 1, 3)
    other = data.state.clone()
    other[:, 0] += 100
    other[:, 2] += 2 * math.pi
    torch.testing.assert_close(units.see(other), units.see(data.state), atol=1e-7, rtol=1e-7)
    value = torch.stack([data.state[:, 1], data.state[:, 2].sin(), data.state[:, 2].cos()], dim=1)
    torch.testing.assert_close(units.see(data.state), (value - value.mean(0)) / value.std(0, unbiased=False))
    plain = frame(data, BOX, unseen=(0,))                       # without angles, too
    torch.testing.assert_close(plain.see(data.state)[:, 0], units.see(data.state)[:, 0])
    assert plain.see(data.state).shape == (50, 2)
    assert units.act(torch.tensor([[-2.0], [1.0], [4.0]])).flatten().tolist() == [-1, 0, 1]
    assert frame(data, Discrete(3)).act(torch.tensor([[2], [0]])).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_what_never_varies_is_no_trouble():
    data = steps()
    data.state[:, 1] = 7
    data.next_state[:, 1] = 7
    units = frame(data, BOX)
    assert units.see(data.state)[:, 1].abs().max() == 0
    assert units.step(data.state, torch.zeros(50, 3))[:, 1].tolist() == [7] * 50


@pytest.mark.parametrize(("wrong", "message"), [
    ({"unseen": (3,)}, r"unseen: expected dimensions of the state, 0\.\.2, got \(3,\)"),
    ({"absolute": (-1,)}, r"absolute: expected dimensions of the state, 0\.\.2, got \(-1,\)"),
    ({"unseen": (0, 1, 2)}, "unseen: expected some of 3 dimensions to be seen"),
    ({"angles": (5,)}, "angles: expected different dimensions"),
])
def test_impossible_dimensions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        frame(steps(), BOX, **wrong)


@pytest.mark.parametrize(("name", "wrong"), [("updates", 0), ("batch", 0), ("most", 0), ("learning_rate", math.nan),
                                             ("share", 1.0), ("persistence", -0.1), ("schedule", "sometimes")])
def test_impossible_training_is_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected|unknown {name}"):
        Descent(**{name: wrong})


@pytest.mark.parametrize(("field", "value", "message"), [
    ("state", lambda x: x * math.nan, "state: 150 of 150 values are NaN"),
    ("next_state", lambda x: x[1:], "next_state: axis B is 49"),
    ("agent", lambda x: x.double(), r"agent: expected integers 0\.\.1"),
    ("agent", lambda x: x + 2, r"agent: expected integers 0\.\.1, got values 2\.\.2"),
    ("action", lambda x: x + 9, "action: expected 1 components"),
])
def test_bad_data_are_refused(field, value, message):
    data = steps()
    with pytest.raises(ValueError, match=message):
        checked(replace(data, **{field: value(getattr(data, field))}), 2, BOX)


def test_no_data_are_refused():
    empty = Transitions(*(x[:0] for x in vars(steps()).values()))
    with pytest.raises(ValueError, match="data: expected steps to learn from, got none"):
        checked(empty, 2, BOX)


def test_split_holds_out_a_share_but_not_more_than_the_most():
    rows, held = Descent(share=0.3).split(100, generator=stream(0))
    assert (len(rows), len(held)) == (70, 30)
    assert sorted(rows.tolist() + held.tolist()) == list(range(100))
    assert len(Descent(share=0.3, most=5).split(100, generator=stream(0))[1]) == 5
    assert len(Descent(share=0.0).split(100, generator=stream(0))[1]) == 0


class Point(nn.Module):
    """One number for each of two members; training pulls it to 5."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))

    def run(self, held_place=None, held=3, **options):
        config = Descent(**{"updates": 1000, "learning_rate": 0.05, "batch": 4, **options})
        return descend(self, lambda rows: (self.place - 5).square() + 0 * rows.sum(1),
                       lambda rows: torch.stack([(self.place - held_place).square().sum() * rows.shape[1],
                                                 torch.tensor(float(rows.numel()))]),
                       torch.arange(20).expand(2, -1), torch.arange(held), config, generator=stream(0),
                       keep=Checkpoint(None, 0.0, ""))


def test_training_goes_on_while_held_out_error_falls():
    point = Point()
    history = point.run(held_place=5.0)
    assert history[-1]["update"] == 1000
    torch.testing.assert_close(point.place.detach(), torch.full((2,), 5.0), atol=1e-3, rtol=0)
    assert history[-1]["held_out"] == pytest.approx(0, abs=1e-5)
    assert history[0]["held_out"] > history[1]["held_out"]


def test_training_stops_when_held_out_error_rises():
    history = Point().run(held_place=-1.0)
    assert history[-1]["update"] < 1000
    assert history[-1]["held_out"] > history[0]["held_out"]


def test_nothing_stops_without_held_out_examples():
    history = Point().run(held=0, updates=450)
    assert [entry["update"] for entry in history] == [100, 200, 300, 400, 450]
    assert history[0]["held_out"] is None


def test_the_rolling_mean_by_hand():
    # starts at 1.5; after 1.0 it is 1.25, after 1.2 it is 1.225
    assert not gaussian._rises([1.0, 2.0, 2.0], 0.5)                    # too few to tell
    assert gaussian._rises([1.0, 1.0, 1.3, 1.26, 1.3], 0.5)             # 1.5 and 1 are 1.25 on the way
    assert not gaussian._rises([1.0, 1.0, 9.0, 1.24, 9.0], 0.5)         # a jump is no rise


def test_cosine_ends_at_rest():
    config = Descent(updates=100, schedule="cosine")
    assert [gaussian._slows(config, u) for u in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert gaussian._slows(Descent(), 77) == 1


def test_a_loss_without_bounds_is_refused():
    point = Point()
    with torch.no_grad():
        point.place.fill_(math.inf)
    with pytest.raises(ValueError, match=r"training diverged at update 100: expected a finite loss, got .* below 0\.05"):
        point.run(held_place=0.0)


def test_prices_and_starts_of_weights():
    network = fill(Mlp(2, (100, 80, 80, 60, 50), "silu", generator=stream(0)), generator=stream(1))
    squares = [layer.weight[1].square().sum() for layer in network.layers]
    expected = 0.1 / 2 * (1 * squares[0] + 2 * squares[1] + 3 * squares[2] + 4 * squares[3])
    torch.testing.assert_close(decay(network, 0.1, 4)[1], expected)
    for layer in network.layers:
        cut = 1 / math.sqrt(layer.weight.shape[1])
        assert layer.weight.abs().max() <= cut
        assert layer.weight.std().item() == pytest.approx(0.44 * cut, rel=0.05)      # cut at two deviations, it is 0.88 of one
        assert layer.bias.abs().max() == 0
