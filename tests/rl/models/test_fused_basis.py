"""The compiled loops of splines and polynomials against stepping their bases one state at a time."""

import numpy as np
import pytest
import torch
from stand_ins import near

from lowrank_rl.rl.models import contacts
from lowrank_rl.rl.models.contacts import Contacts
from lowrank_rl.rl.models.fused_basis import LANES, fusible, rollout_basis
from lowrank_rl.rng import stream
from lowrank_rl.tensor.bases import FourierBasis, PolynomialBasis, SplineBasis

M, B, H, ACTIONS = 2, 3, 5, 3


def problem(basis, D: int, C: int, size: float = 0.02):
    """Coefficients that move states slowly, raw coordinates far from the basis's own units."""
    draw = stream(0, "fused basis", D, C)

    def normal(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64)
    center, scale = normal(D), normal(D).abs() + 0.5
    basis.prepare(torch.cat([-torch.ones(1, D), torch.ones(1, D)]).double())
    weight = size * normal(M, B, ACTIONS, basis.size, D)
    state = center + 0.8 * scale * (2 * torch.rand((M, B, D), generator=draw, dtype=torch.float64) - 1)
    action = torch.randint(ACTIONS, (B, C, H), generator=draw)
    return [basis, center, scale, weight, 0.01 * normal(D), contacts.none(D), state, action]


def slow(basis, center, scale, weight, shift, walls, state, action):
    out = torch.empty((M, B, action.shape[1], H + 1, state.shape[-1]), dtype=torch.float64)
    for m, b, c in np.ndindex(M, B, action.shape[1]):
        x = out[m, b, c, 0] = state[m, b]
        for h in range(H):
            x = x + basis(near(basis, (x - center) / scale)[None])[0] @ weight[m, b, action[b, c, h]] + shift
            x = out[m, b, c, h + 1] = walls.stop(x)
    return out


@pytest.mark.parametrize("C", [1, LANES, LANES + 3])
@pytest.mark.parametrize("basis", [SplineBasis((6, 4), 3), SplineBasis((1, 1), 3), PolynomialBasis(1, 2), PolynomialBasis(2, 4),
                                   PolynomialBasis(4, 3), PolynomialBasis(3, 0)], ids=repr)
def test_any_basis_and_number_of_plans(basis, C):
    D = len(basis.low)
    parts = problem(basis, D, C)
    assert fusible(basis)
    out = rollout_basis(*parts)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), slow(*parts), atol=5e-5, rtol=5e-5)


def test_a_spline_beyond_its_cells():
    parts = problem(SplineBasis((5, 7), 3), 2, 4)
    parts[6] = parts[1] + parts[2] * torch.tensor([[[1.2, 0.9], [-1.1, 5], [30, -30]]]).double().expand(M, B, 2)
    torch.testing.assert_close(rollout_basis(*parts).double(), slow(*parts), atol=5e-5, rtol=5e-5)


@pytest.mark.parametrize("basis", [SplineBasis((6, 4), 3), PolynomialBasis(3, 2)], ids=repr)
def test_plans_stop_at_walls(basis):
    D = len(basis.low)
    parts = problem(basis, D, LANES + 3)
    free = slow(*parts)
    low, high = free[..., 0].quantile(0.3), free[..., 1].quantile(0.7)
    after = torch.full((2, D), torch.nan, dtype=torch.float64)
    after[0, :2], after[1, 1] = torch.stack([low, free[..., 1].mean()]), high
    parts[5] = Contacts(torch.tensor([0, 1]), torch.tensor([1.0, -1.0]).double(), torch.stack([low, high]), after)
    stopped = slow(*parts)
    assert not torch.equal(stopped, free)
    near = (free[..., 0] - low).abs().amin() + (stopped[..., 1:, 0] - low).abs()[stopped[..., 1:, 0] != low].amin()
    assert near > 1e-6                                         # no rounding decides who meets the wall
    torch.testing.assert_close(rollout_basis(*parts).double(), stopped, atol=5e-5, rtol=5e-5)


def test_another_actions_infinity_spoils_nothing():
    parts = problem(PolynomialBasis(2, 2), 2, 6)
    parts[3][:, :, 2] = torch.inf
    parts[-1][:] = torch.randint(2, parts[-1].shape, generator=stream(1))
    assert rollout_basis(*parts).isfinite().all()
    parts[-1][0, 1, 2] = 2                                     # a plan that takes it runs away, and no other
    lost = ~rollout_basis(*parts).isfinite().all(-1)
    assert lost[:, 0, 1, 4:].all()
    lost[:, 0, 1] = False
    assert not lost.any()


@pytest.mark.parametrize("basis", [SplineBasis((6, 4), 3), PolynomialBasis(3, 3)], ids=repr)
def test_a_trajectory_does_not_depend_on_its_neighbours(basis):
    *parts, action = problem(basis, len(basis.low), LANES + 5)
    whole = rollout_basis(*parts, action)
    for first, last in ((0, 1), (3, LANES), (LANES - 7, LANES + 5)):
        assert torch.equal(rollout_basis(*parts, action[:, first:last]), whole[:, :, first:last])


@pytest.mark.parametrize("basis", [SplineBasis((6, 4), 3), PolynomialBasis(2, 3)], ids=repr)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_no_lost_state_comes_back(basis, bad):
    parts = problem(basis, 2, 5)
    sane = rollout_basis(*parts)
    parts[6][1, 2, 1] = bad
    out = rollout_basis(*parts)
    assert not out[1, 2].isfinite().all(-1).any()
    out[1, 2] = sane[1, 2]
    assert torch.equal(out, sane)


def test_any_layout_in_memory():
    parts = problem(PolynomialBasis(2, 3), 2, 5)
    turned = [x if not isinstance(x, torch.Tensor) else x.transpose(0, -1).contiguous().transpose(0, -1) for x in parts]
    assert torch.equal(rollout_basis(*turned), rollout_basis(*parts))


def test_other_bases_have_no_loop():
    assert not fusible(SplineBasis((4,), 3))
    assert not fusible(SplineBasis((4, 4), 2))
    assert not fusible(FourierBasis(2, 3, 1.0, generator=stream(0)))
