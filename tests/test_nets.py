"""nets: members side by side equal members one by one, and weights come from the given generator only."""

import math

import pytest
import torch
from torch import nn

from lowrank_rl.nets import ACTIVATIONS, EnsembleLinear, Mlp
from lowrank_rl.rng import stream


def test_ensemble_linear_is_linear_per_member():
    layer = EnsembleLinear(3, 4, 5, generator=stream(0, "layer")).double()
    x = torch.randn(3, 7, 4, dtype=torch.float64, generator=stream(0, "x"))
    out = layer(x)
    assert out.shape == (3, 7, 5)
    for m in range(3):
        torch.testing.assert_close(out[m], nn.functional.linear(x[m], layer.weight[m].T, layer.bias[m, 0]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(3, 2), (3, 6, 2), (1, 4, 5, 3)])
def test_mlp_is_a_loop_over_members_and_layers(sizes, activation):
    reference = {"relu": nn.ReLU(), "silu": nn.SiLU(), "tanh": nn.Tanh()}[activation]
    net = Mlp(2, sizes, activation, generator=stream(1, "mlp")).double()
    x = torch.randn(2, 9, sizes[0], dtype=torch.float64, generator=stream(1, "x"))
    for m in range(2):
        row = x[m]
        for i, layer in enumerate(net.layers):
            row = row @ layer.weight[m] + layer.bias[m]
            row = reference(row) if i < len(sizes) - 2 else row
        torch.testing.assert_close(net(x)[m], row)


def test_weights_start_like_pytorchs_linear():
    layer = EnsembleLinear(20, 50, 60, generator=stream(2, "layer"))
    bound = 1 / math.sqrt(50)
    for drawn in (layer.weight.detach(), layer.bias.detach()):
        assert drawn.abs().max() <= bound
        assert drawn.abs().max() > 0.98 * bound
        assert float(drawn.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)   # of a uniform distribution
        assert not torch.equal(drawn[0], drawn[1])


def test_weights_depend_on_the_generator_alone():
    def weights(seed):
        return torch.cat([p.flatten() for p in Mlp(2, (3, 8, 2), "relu", generator=stream(seed)).parameters()])

    state, first = torch.get_rng_state(), weights(0)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(first, weights(0))
    assert not torch.isclose(first, weights(1)).any()


def test_activations_tell_themselves_apart_in_print():
    """Checkpoints recognise a network of other activations by its print."""
    prints = {repr(Mlp(1, (2, 3, 1), name, generator=stream(0))) for name in ACTIVATIONS}
    assert len(prints) == len(ACTIVATIONS)


def test_members_taken_out_and_stacked_again():
    net = Mlp(3, (2, 5, 4), "tanh", generator=stream(3))
    alone = [net.alone(member) for member in range(3)]
    x = torch.randn(3, 6, 2, generator=stream(3, "x"))
    for member in range(3):
        torch.testing.assert_close(alone[member](x[member:member + 1])[0], net(x)[member])
    again = Mlp.stack(alone)
    assert torch.equal(again(x), net(x))
    assert torch.equal(Mlp.of(net.state_dict(), "tanh")(x), net(x))
    with torch.no_grad():
        again.layers[0].weight.zero_()           # copies: nobody else changes
    assert alone[0].layers[0].weight.abs().min() > 0
    assert net.layers[0].weight.abs().min() > 0
