"""The compiled loop against the same sentence in NumPy loops."""

import numpy as np
import pytest
import torch

from lowrank_rl.rl.models import contacts
from lowrank_rl.rl.models.contacts import Contacts
from lowrank_rl.rl.models.fused import WIDEST, rollout_network
from lowrank_rl.rng import stream

M, B, C, H, K, ACTIONS = 2, 3, 4, 6, 9, 3


def layers(D, dtype=torch.float64):
    draw = stream(0, "fused", D)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
    return (normal(M, D, K), normal(M, K), 0.1 * normal(M, B, ACTIONS, K, D), 0.1 * normal(M, B, ACTIONS, D),
            contacts.none(D), normal(M, B, D), torch.randint(ACTIONS, (B, C, H), generator=draw))


def slow(weight, bias, out_weight, out_bias, walls, state, action):
    weight, bias, out_weight, out_bias, state, action = (x.numpy() for x in (weight, bias, out_weight, out_bias, state, action))
    out = np.empty((M, B, C, H + 1, state.shape[-1]), weight.dtype)
    for m in range(M):
        for b in range(B):
            for c in range(C):
                x = out[m, b, c, 0] = state[m, b]
                for h in range(H):
                    a = action[b, c, h]
                    x = x + np.maximum(x @ weight[m] + bias[m], 0) @ out_weight[m, b, a] + out_bias[m, b, a]
                    x = out[m, b, c, h + 1] = walls.stop(torch.from_numpy(x)).numpy()
    return out


@pytest.mark.parametrize("D", range(1, WIDEST + 1))
def test_every_width_of_state(D):
    parts = layers(D)
    np.testing.assert_allclose(rollout_network(*parts).numpy(), slow(*parts), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("D", [2, 3])
def test_plans_stop_at_walls(D):
    parts = list(layers(D))
    free = slow(*parts)
    low, high = np.quantile(free[..., 0], 0.3), np.quantile(free[..., 1], 0.7)
    after = torch.full((2, D), torch.nan, dtype=torch.float64)
    after[0, :2], after[1, 1] = torch.tensor([low, 0.25]), high
    parts[4] = Contacts(torch.tensor([0, 1]), torch.tensor([1.0, -1.0]).double(), torch.tensor([low, high]).double(), after)
    stopped = slow(*parts)
    assert (stopped[..., 1:, :] != free[..., 1:, :]).any()
    np.testing.assert_allclose(rollout_network(*parts).numpy(), stopped, atol=1e-12, rtol=1e-12)


def test_float32_stays_float32():
    parts = layers(2, torch.float32)
    out = rollout_network(*parts)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), slow(*parts), atol=1e-4, rtol=1e-4)
    wide = parts[5].double()                                   # the weights decide, not the state
    assert torch.equal(rollout_network(*parts[:5], wide, parts[6]), out)


@pytest.mark.parametrize("D", [2, 4])
def test_a_trajectory_does_not_depend_on_its_neighbours(D):
    *parts, action = layers(D, torch.float32)
    whole = rollout_network(*parts, action)
    for c in range(C):
        assert torch.equal(rollout_network(*parts, action[:, c:c + 1])[:, :, 0], whole[:, :, c])


def test_any_layout_in_memory():
    parts = layers(3)
    turned = [x.transpose(0, -1).contiguous().transpose(0, -1) if isinstance(x, torch.Tensor) else x for x in parts]
    assert torch.equal(rollout_network(*turned), rollout_network(*parts))
    everywhere = parts[5][:1, :1].expand(M, B, 3)              # as MPC gives the start: one state for all members
    assert torch.equal(rollout_network(*parts[:5], everywhere, parts[6]),
                       rollout_network(*parts[:5], everywhere.clone(), parts[6]))


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_lost_state_comes_back(where, bad):
    """A compiled max(z, 0) may turn NaN into 0, which would hide that the model is lost."""
    parts = layers(2)
    parts[5][1, 2, where] = bad
    with np.errstate(invalid="ignore"):
        expected = slow(*parts)
    out = rollout_network(*parts).numpy()
    assert np.array_equal(np.isfinite(out), np.isfinite(expected))
    assert not np.isfinite(out[1, 2]).all(-1).any()
    keep = np.isfinite(expected)
    np.testing.assert_allclose(out[keep], expected[keep], atol=1e-12, rtol=1e-12)


def test_nan_in_a_weight_is_not_swallowed_either():
    parts = layers(2)
    parts[0][0, 0, 3] = torch.nan
    out = rollout_network(*parts)
    assert out[0, ..., 1:, :].isnan().all()
    assert out[1].isfinite().all()
