"""The compiled loops of splines and polynomials against stepping their bases one state at a time."""

import numpy as np
import pytest
import torch

from lowrank_rl.rl.models import contacts, fused_basis
from lowrank_rl.rl.models.fused_basis import LANES, fusible
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
    return basis, center, scale, weight, 0.01 * normal(D), state, torch.randint(ACTIONS, (B, C, H), generator=draw)


def rollout_basis(basis, center, scale, weight, shift, state, action):
    """Where there are no walls; test_contacts.py has some."""
    return fused_basis.rollout_basis(basis, center, scale, weight, shift, contacts.none(len(shift)), state, action)


def slow(basis, center, scale, weight, shift, state, action):
    out = torch.empty((M, *action.shape, state.shape[-1]), dtype=torch.float64)
    for m, b, c in np.ndindex(M, B, action.shape[1]):
        x = state[m, b]
        for h in range(H):
            x = x + basis((x - center)[None] / scale)[0] @ weight[m, b, action[b, c, h]] + shift
            out[m, b, c, h] = x
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
    parts = list(problem(SplineBasis((5, 7), 3), 2, 4))
    parts[5] = parts[1] + parts[2] * torch.tensor([[[1.2, 0.9], [-1.1, 5], [30, -30]]]).double().expand(M, B, 2)
    torch.testing.assert_close(rollout_basis(*parts).double(), slow(*parts), atol=5e-5, rtol=5e-5)


def test_another_actions_infinity_spoils_nothing():
    parts = problem(PolynomialBasis(2, 2), 2, 6)
    parts[3][:, :, 2] = 1e38
    parts[-1][:] = torch.randint(2, parts[-1].shape, generator=stream(1))
    assert rollout_basis(*parts).isfinite().all()
    parts[-1][0, 1, 2] = 2                                     # a plan that takes it runs away, and no other
    lost = ~rollout_basis(*parts).isfinite().all(-1)
    assert lost[:, 0, 1, 3:].all()
    lost[:, 0, 1] = False
    assert not lost.any()


def test_any_layout_in_memory():
    parts = problem(PolynomialBasis(2, 3), 2, 5)
    turned = [x if isinstance(x, torch.nn.Module) else x.transpose(0, -1).contiguous().transpose(0, -1) for x in parts]
    assert torch.equal(rollout_basis(*turned), rollout_basis(*parts))


def test_other_bases_have_no_loop():
    assert not fusible(SplineBasis((4,), 3))
    assert not fusible(SplineBasis((4, 4), 2))
    assert not fusible(FourierBasis(2, 3, 1.0, generator=stream(0)))
