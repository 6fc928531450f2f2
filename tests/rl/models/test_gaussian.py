"""What probabilistic networks share: likelihood and its bounds, training until held-out error rises."""

import math

import pytest
import torch
from torch import nn

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.models import gaussian
from lowrank_rl.rl.models.gaussian import EVEN, Bounds, Descent, decay, descend, fill, misfit, nll
from lowrank_rl.rng import stream
from lowrank_rl.tensor.functional_checkpoint import Checkpoint


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
    gain = misfit(out, target, free, 1.0) - misfit(out[..., :2], target, None, 1.0)
    torch.testing.assert_close(gain, torch.full_like(gain, math.log(2 * math.pi)))


def test_means_learn_from_squares_alone_at_first_and_from_likelihoods_in_the_end():
    draw = stream(0, "misfit")
    out, target = torch.randn((2, 7, 4), generator=draw), torch.randn((2, 7, 2), generator=draw)
    bounds = Bounds(2, 2)

    def slope(function):
        free = out.clone().requires_grad_()
        function(free).sum().backward()
        return free.grad
    squares = slope(lambda free: misfit(free[..., :2], target, None, 0.0))
    likely = slope(lambda free: 2 * nll(*bounds(free), target))
    first, half = (slope(lambda free, done=done: misfit(free, target, bounds, done)) for done in (0.0, EVEN / 2))
    torch.testing.assert_close(first[..., :2], squares[..., :2])
    torch.testing.assert_close(slope(lambda free: misfit(free, target, bounds, EVEN)), likely)
    torch.testing.assert_close(half, (0.5 * bounds(out)[1]).exp().repeat(1, 1, 2).detach() * likely)


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


@pytest.mark.parametrize(("name", "wrong"), [("updates", 0), ("batch", 0), ("most", 0), ("learning_rate", math.nan),
                                             ("share", 1.0), ("persistence", -0.1), ("schedule", "sometimes")])
def test_impossible_training_is_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected|unknown {name}"):
        Descent(**{name: wrong})


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
        return descend(self, lambda rows, done: (self.place - 5).square() + 0 * rows.sum(1),
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
