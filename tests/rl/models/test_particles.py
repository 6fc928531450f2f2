"""Trajectory sampling against the closed form of a linear system."""

import pytest
import torch

from lowrank_rl.rl.models.particles import Particles
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.rng import stream

PULL = torch.tensor([0.5, 0.9])[:, None, None].double()      # of the two members
NOISE = 0.3


class Linear:
    """x' = pull x + action + NOISE e, the pull by member."""
    members, past, noisy = 2, 0, True

    def context(self, view):
        return PULL.expand(2, len(view), 1)

    def predict(self, context, state, action, generator=None):
        noise = 0 if generator is None else NOISE * torch.randn(state.shape, generator=generator, dtype=state.dtype)
        return context * state + action + noise

    def rollout(self, context, state, actions, generator=None):
        return rollout(self, context, state, actions, generator)


def futures(count, generator, horizon=6):
    model = Particles(Linear(), count)
    state = torch.tensor([[1.0], [-2.0]]).double().expand(count, 2, 1)
    actions = torch.zeros(2, 1, horizon, 1).double()
    actions[1, :, 0] = 1.0
    return model.rollout(model.context([0, 1]), state, actions, generator)[:, :, 0, :, 0]       # (count, B, H + 1)


def test_means_are_the_members_own_from_end_to_end():
    future = futures(6, None)
    for particle, pull in enumerate([0.5] * 3 + [0.9] * 3):
        assert future[particle, 0].tolist() == pytest.approx([pull ** h for h in range(7)])
        assert future[particle, 1, 1:].tolist() == pytest.approx([(1 - 2 * pull) * pull ** h for h in range(6)])


def test_spread_is_that_of_the_linear_system():
    future = futures(8000, stream(0)).unflatten(0, (2, 4000))
    for member, pull in enumerate((0.5, 0.9)):
        deviation = [NOISE * sum(pull ** (2 * k) for k in range(h)) ** 0.5 for h in range(7)]
        for row in range(2):
            assert future[member, :, row].std(0).tolist() == pytest.approx(deviation, rel=0.05)
    assert future[1, :, 0, 6].mean() == pytest.approx(0.9 ** 6, abs=0.05)
    pair = torch.corrcoef(future[0, :, :, 3].T)       # rows and particles draw apart
    assert abs(pair[0, 1]) < 0.05


def test_a_count_that_members_cannot_share_is_refused():
    with pytest.raises(ValueError, match=r"count: expected a multiple of 2 \(members\), got 5"):
        Particles(Linear(), 5)
    with pytest.raises(ValueError, match="count: expected a whole number"):
        Particles(Linear(), 0)


def test_a_model_without_noise_is_refused():
    still = Linear()
    still.noisy = False
    with pytest.raises(ValueError, match="model: expected one that draws next states"):
        Particles(still, 4)
