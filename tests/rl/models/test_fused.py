"""The compiled loop against the same sentence in NumPy loops."""

import numpy as np
import pytest
import torch

from lowrank_rl.rl.models import contacts, fused
from lowrank_rl.rl.models.fused import WIDEST
from lowrank_rl.rng import stream

M, B, C, H, K, ACTIONS = 2, 3, 4, 6, 9, 3


def layers(D, dtype=torch.float64):
    draw = stream(0, "fused", D)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype)
    return (normal(M, D, K), normal(M, K), 0.1 * normal(M, B, ACTIONS, D, K), 0.1 * normal(M, B, ACTIONS, D), normal(M, B, D),
            torch.randint(ACTIONS, (B, C, H), generator=draw))


def rollout_discrete(weight, bias, out_weight, out_bias, state, action):
    """Where there are no walls; test_contacts.py has some."""
    return fused.rollout_discrete(weight, bias, out_weight, out_bias, contacts.none(state.shape[-1]), state, action)


def slow(weight, bias, out_weight, out_bias, state, action):
    weight, bias, out_weight, out_bias, state, action = (x.numpy() for x in (weight, bias, out_weight, out_bias, state, action))
    out = np.empty((M, *action.shape, state.shape[-1]), weight.dtype)
    for m in range(M):
        for b in range(B):
            for c in range(C):
                x = state[m, b]
                for h in range(action.shape[2]):
                    a = action[b, c, h]
                    x = x + out_weight[m, b, a] @ np.maximum(x @ weight[m] + bias[m], 0) + out_bias[m, b, a]
                    out[m, b, c, h] = x
    return out


@pytest.mark.parametrize("D", range(1, WIDEST + 1))
def test_every_width_of_state(D):
    parts = layers(D)
    np.testing.assert_allclose(rollout_discrete(*parts).numpy(), slow(*parts), atol=1e-12, rtol=1e-12)


def test_float32_stays_float32():
    parts = layers(2, torch.float32)
    out = rollout_discrete(*parts)
    assert out.dtype == torch.float32
    np.testing.assert_allclose(out.numpy(), slow(*parts), atol=1e-4, rtol=1e-4)
    wide = parts[4].double()                                   # the weights decide, not the state
    assert torch.equal(rollout_discrete(*parts[:4], wide, parts[5]), out)


def test_any_layout_in_memory():
    parts = layers(3)
    turned = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in parts]
    assert torch.equal(rollout_discrete(*turned), rollout_discrete(*parts))
    everywhere = parts[4][:1, :1].expand(M, B, 3)              # as MPC gives the start: one state for all members
    assert torch.equal(rollout_discrete(*parts[:4], everywhere, parts[5]),
                       rollout_discrete(*parts[:4], everywhere.clone(), parts[5]))


@pytest.mark.parametrize("where", [0, 1])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_lost_state_comes_back(where, bad):
    """A compiled max(z, 0) may turn NaN into 0, which would hide that the model is lost."""
    parts = layers(2)
    parts[4][1, 2, where] = bad
    with np.errstate(invalid="ignore"):
        expected = slow(*parts)
    out = rollout_discrete(*parts).numpy()
    assert np.array_equal(np.isfinite(out), np.isfinite(expected))
    assert not np.isfinite(out[1, 2]).any(-1).all()
    keep = np.isfinite(expected)
    np.testing.assert_allclose(out[keep], expected[keep], atol=1e-12, rtol=1e-12)


def test_nan_in_a_weight_is_not_swallowed_either():
    parts = layers(2)
    parts[0][0, 0, 3] = torch.nan
    out = rollout_discrete(*parts)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()
