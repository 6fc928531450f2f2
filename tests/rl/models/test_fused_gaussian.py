"""The compiled loop over networks that say a Gaussian, against the plain one, which takes one state at a time."""

import pytest
import torch

from lowrank_rl.nets import Mlp
from lowrank_rl.rl.contracts import Box, Discrete, Transitions
from lowrank_rl.rl.models import fused_bfloat16, fused_gaussian, gaussian
from lowrank_rl.rl.models.frame import frame
from lowrank_rl.rl.models.fused_bfloat16 import BLOCK
from lowrank_rl.rl.models.gaussian import Bounds
from lowrank_rl.rng import stream

M, B, D, H, E = 2, 3, 4, 5, 3
compiled = pytest.mark.skipif(not fused_bfloat16.available(torch.device("cpu")), reason="needs AVX-512 with bfloat16")


def problem(actions, C=4, probabilistic=True, activation="silu", **options):
    """Units, network, bounds, context, state, plans."""
    draw = stream(0, "gaussian", C)

    def normal(*shape):
        return torch.randn(shape, generator=draw).double()
    action = actions.sample((50,), generator=draw)
    units = frame(Transitions(torch.zeros(50, dtype=torch.int64), normal(50, D), action, normal(50, D)), actions, **options)
    seen, acts, _ = units.sizes
    network = Mlp(M, (seen + acts + E, 40, 40, 2 * D if probabilistic else D), activation, "bfloat16",
                  generator=draw).requires_grad_(False)
    bounds = Bounds(M, D).requires_grad_(False) if probabilistic else None
    return [units, network, bounds, normal(M, B, E).float(), normal(M, B, D), actions.sample((B, C, H), generator=draw)]


def plain(units, network, bounds, context, state, plans, generator):
    C = plans.shape[1]
    x, context = (value.repeat_interleave(C, dim=1) for value in (state, context))
    states = [x]
    for h in range(H):
        x = gaussian.predict(units, network, bounds, context, x, plans[:, :, h].flatten(0, 1), generator)
        states.append(x)
    return torch.stack(states, dim=2).unflatten(1, (B, C)).float()


@compiled
@pytest.mark.parametrize("options", [{}, {"unseen": (0,), "absolute": (0, 2)}, {"angles": (1,), "inside": True}])
@pytest.mark.parametrize("actions", [Discrete(3), Box(-2.0, 1.0, 2)])
@pytest.mark.parametrize(("probabilistic", "seed"), [(False, None), (True, None), (True, 1)])
def test_agrees_with_one_state_at_a_time(actions, options, probabilistic, seed):
    parts = problem(actions, probabilistic=probabilistic, **options)
    draws = (None if seed is None else stream(seed) for _ in range(2))
    expected = plain(*parts, next(draws))
    found = fused_gaussian.rollout(*parts, next(draws))
    assert found.shape == (M, B, 4, H + 1, D)
    error = (found - expected).abs().amax((0, 1, 2, 4))
    moved = (expected - expected[..., :1, :]).abs().amax((0, 1, 2, 4))
    assert (error <= 0.02 * moved.clamp_min(1e-6)).all()          # the hidden layers keep eight bits
    if seed is not None:
        assert (found - fused_gaussian.rollout(*parts, None)).abs().max() > 0.1


@compiled
def test_a_plan_does_not_depend_on_those_beside_it():
    units, network, bounds, context, state, plans = problem(Discrete(2), C=BLOCK)
    every = fused_gaussian.rollout(units, network, bounds, context, state, plans, None)
    some = fused_gaussian.rollout(units, network, bounds, context, state, plans[:, 7:9], None)
    assert torch.equal(every[:, :, 7:9], some)


@compiled
def test_rectified_networks_too():
    parts = problem(Discrete(2), activation="relu")
    expected, found = plain(*parts, None), fused_gaussian.rollout(*parts, None)
    assert (found - expected).abs().max() < 0.02 * (expected - expected[..., :1, :]).abs().max()


def test_others_are_not_compiled():
    for activation, precision in (("tanh", "bfloat16"), ("silu", "full")):
        assert not fused_gaussian.compiles(Mlp(1, (3, 4, 2), activation, precision, generator=stream(0)))
