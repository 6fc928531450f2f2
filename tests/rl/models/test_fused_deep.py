"""Deep networks: the loop with folded layers, and the compiled one in bfloat16, against one state at a time."""

import numpy as np
import pytest
import torch

from lowrank_rl.nets import Mlp
from lowrank_rl.rl import inputs
from lowrank_rl.rl.models import contacts, fused_bfloat16
from lowrank_rl.rl.models.contacts import Contacts
from lowrank_rl.rl.models.fused_bfloat16 import BLOCK
from lowrank_rl.rl.models.fused_deep import ROWS, outputs, rollout_deep, rollout_joint
from lowrank_rl.rng import stream

M, B, H, R = 2, 3, 4, 3
compiled = pytest.mark.skipif(not fused_bfloat16.available(torch.device("cpu")), reason="needs AVX-512 with bfloat16")


def problem(D=5, C=4, hidden=(8, 8, 8), precision="full", activation="relu", angles=()):
    draw = stream(0, "deep", D, C)

    def normal(*shape):
        return torch.randn(shape, generator=draw)
    count = D + len(angles)
    network = Mlp(M, (count, *hidden, D * R), activation, precision, generator=draw).requires_grad_(False)
    scales = normal(count), normal(count).abs() + 0.5
    units = 0.3 * normal(D).abs(), 0.1 * normal(D)
    seen = inputs.of(normal(9, D), angles, inside=True) if angles else inputs.plain(D)
    return [network, *scales, normal(M, B, C, H, R), *units, contacts.none(D), seen, normal(M, B, D)]


def slow(network, center, scale, mixed, unit, shift, walls, seen, state):
    C, D = mixed.shape[2], len(shift)
    out = torch.empty((M, B, C, H + 1, D))
    for m, b, c in np.ndindex(M, B, C):
        x = out[m, b, c, 0] = state[m, b]
        for h in range(H):
            change = network(((seen(x) - center) / scale).expand(M, 1, -1))[m, 0].view(D, R) @ mixed[m, b, c, h]
            x = out[m, b, c, h + 1] = walls.stop(x + unit * change + shift)
    return out


@pytest.mark.parametrize("angles", [(), (2, 0)])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("hidden", [(8,), (8, 8, 8)])
def test_folded_layers_change_nothing(hidden, activation, angles):
    parts = problem(hidden=hidden, activation=activation, angles=angles)
    torch.testing.assert_close(rollout_deep(*parts), slow(*parts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_plans_stop_at_walls(precision):
    parts = problem(precision=precision)
    free = rollout_deep(*parts)
    low = free[..., 1, 0].quantile(0.4).double()                # bfloat16 would decide differently later
    after = torch.tensor([[float(low), 7.0, torch.nan, torch.nan, torch.nan]]).double()
    parts[6] = Contacts(torch.tensor([0]), torch.ones(1).double(), low[None], after)
    stopped = rollout_deep(*parts)[..., 1, :]
    expected = free[..., 1, :].clone()
    expected[expected[..., 0] <= low] = torch.where(after[0].isnan(), expected[expected[..., 0] <= low], after[0].float())
    assert 0 < (expected[..., 1] == 7).sum() < expected[..., 1].numel()
    torch.testing.assert_close(stopped, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_outputs_of_many_rows(precision):
    network, center, scale, *_ = problem(precision=precision)
    x = torch.randn((M, ROWS + 3, 5), generator=stream(1))
    bound = 1e-5 if precision == "full" else 0.02
    torch.testing.assert_close(outputs(network, center, scale, x), network((x - center) / scale), atol=bound, rtol=bound)


def rounded(layers, x):
    """What the compiled loop does, in float64: the first layer exactly, products of bfloat16 afterwards."""
    (weight, bias), *others = layers
    z = x.double() @ weight.double() + bias.double()
    for weight, bias in others:
        z = z.clamp_min(0).bfloat16().double() @ weight.bfloat16().double() + bias.double()
    return z


@compiled
@pytest.mark.parametrize("sizes", [(3, 7, 5), (18, 64, 64, 33), (1, 100, 31, 64, 200), (5, 256, 270)], ids=str)
@pytest.mark.parametrize("rows", [1, BLOCK - 1, BLOCK + 7])
def test_bfloat16_of_any_size(sizes, rows):
    draw = stream(0, "bfloat16", *sizes)
    layers = [(layer.weight, layer.bias) for layer in Mlp(M, sizes, "relu", generator=draw).requires_grad_(False).layers]
    x = torch.randn((M, rows, sizes[0]), generator=draw)
    expected = rounded(layers, x)
    out = fused_bfloat16.forward(layers, False, x)
    assert out.dtype == torch.float32
    # a sum that falls on the other side of a rounding differs by one bfloat16 digit of one term
    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=1e-3)
    assert (out.double() - expected).square().mean() < (5e-4 * expected.square().mean().sqrt()) ** 2


@compiled
def test_silu_as_torch_has_it():
    """One hidden unit at a time: x -> silu(x), which the last layer passes on."""
    x = torch.linspace(-30, 30, 4001)[None, :, None].clone()
    eye = [(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))] * 2
    out = fused_bfloat16.forward(eye, True, x)
    torch.testing.assert_close(out, torch.nn.functional.silu(x), atol=1e-6, rtol=2 ** -8)
    assert fused_bfloat16.forward(eye, True, torch.full((1, 1, 1), torch.nan)).isnan().all()


@compiled
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("angles", [(), (2, 0)])
@pytest.mark.parametrize("C", [1, BLOCK, BLOCK + 1])
def test_bfloat16_rollouts(C, angles, activation):
    parts = problem(C=C, precision="bfloat16", angles=angles, activation=activation)
    short = [x[:, :, :3] if x is parts[3] else x for x in parts]
    out = rollout_deep(*parts)
    torch.testing.assert_close(out[:, :, :3], slow(*short), atol=0.05, rtol=0.05)


@compiled
def test_a_trajectory_does_not_depend_on_its_neighbours():
    network, center, scale, mixed, *others = problem(C=BLOCK + 5, precision="bfloat16")
    whole = rollout_deep(network, center, scale, mixed, *others)
    for first, last in ((0, 1), (5, 12), (BLOCK - 1, BLOCK + 5)):
        assert torch.equal(rollout_deep(network, center, scale, mixed[:, :, first:last], *others), whole[:, :, first:last])


@pytest.mark.parametrize("precision", ["full", "bfloat16"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_lost_state_comes_back(bad, precision):
    parts = problem(precision=precision)
    sane = rollout_deep(*parts)
    parts[-1][1, 2, 0] = bad
    out = rollout_deep(*parts)
    assert not out[1, 2].isfinite().all(-1).any()
    out[1, 2] = sane[1, 2]
    assert torch.equal(out, sane)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["full", "bfloat16"])
def test_a_gpu_says_the_same(precision):
    network, *others = problem(precision=precision)
    expected = rollout_deep(network, *others)
    found = rollout_deep(network.to("cuda"), *(x.to("cuda") for x in others))
    bound = 1e-3 if precision == "full" else 0.05
    torch.testing.assert_close(found.cpu(), expected, atol=bound, rtol=bound)


# ---- a joint mode


def joint(C=4, hidden=(8, 8), precision="full", activation="silu", D=4, A=2):
    """Arguments of ``rollout_joint``; the first and the last row are the same agent's."""
    draw = stream(0, "joint", C)

    def normal(*shape):
        return torch.randn(shape, generator=draw)
    seen = inputs.of(normal(9, D), (1,), inside=True)
    count = len(seen.part) + A
    network = Mlp(M, (count, *hidden, D * R), activation, precision, generator=draw).requires_grad_(False)
    rows = normal(M, B, R)
    rows[:, -1] = rows[:, 0]
    return [network, normal(count), normal(count).abs() + 0.5, rows, 0.3 * normal(D).abs(), 0.1 * normal(D), contacts.none(D),
            seen, normal(M, B, D), normal(B, C, H, A)]


def slow_joint(network, center, scale, rows, unit, shift, walls, seen, state, actions):
    C, D = actions.shape[1], len(shift)
    out = torch.empty((M, B, C, H + 1, D))
    for m, b, c in np.ndindex(M, B, C):
        x = out[m, b, c, 0] = state[m, b]
        for h in range(H):
            asked = (torch.cat([seen(x), actions[b, c, h]]) - center) / scale
            change = network(asked.expand(M, 1, -1))[m, 0].view(D, R) @ rows[m, b]
            x = out[m, b, c, h + 1] = walls.stop(x + unit * change + shift)
    return out


@pytest.mark.parametrize("hidden", [(8,), (8, 8, 8)])
@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
def test_rows_folded_into_the_last_layer_change_nothing(hidden, activation):
    parts = joint(hidden=hidden, activation=activation)
    torch.testing.assert_close(rollout_joint(*parts), slow_joint(*parts), atol=1e-5, rtol=1e-5)


def test_plans_of_a_joint_mode_stop_at_walls():
    parts = joint()
    low = rollout_joint(*parts)[..., 1:, 0].quantile(0.4).double()
    after = torch.tensor([[float(low), 7.0, torch.nan, torch.nan]])
    parts[6] = Contacts(torch.tensor([0]), torch.ones(1).double(), low[None], after)
    stopped = rollout_joint(*parts)
    torch.testing.assert_close(stopped, slow_joint(*parts), atol=1e-5, rtol=1e-5)
    assert (stopped[..., 1:, 1] == 7).any()


@compiled
@pytest.mark.parametrize("activation", ["relu", "silu"])
@pytest.mark.parametrize("C", [1, BLOCK + 3])
def test_a_joint_mode_in_bfloat16_is_nearly_the_same(activation, C):
    parts = joint(C=C, hidden=(40, 40), precision="bfloat16", activation=activation)
    found = rollout_joint(*parts)
    expected = rollout_joint(*joint(C=C, hidden=(40, 40), activation=activation))
    moved = (expected - expected[..., :1, :]).abs().amax()
    assert 0 < (found - expected).abs().max() < 0.03 * moved
