"""What a network sees: angles as sine and cosine, numbers within the data, against hand-made values."""

import math

import numpy as np
import pytest
import torch

from lowrank_rl.rl import inputs

STATES = torch.tensor([[1.0, 0.0, -5.0], [2.0, math.pi / 2, 5.0]], dtype=torch.float64)


def test_angles_come_last_as_sine_and_cosine():
    seen = inputs.of(STATES, (1,), inside=False)
    out = seen(torch.tensor([[7.0, math.pi / 6, 8.0]], dtype=torch.float64))
    torch.testing.assert_close(out, torch.tensor([[7.0, 8.0, 0.5, math.sqrt(3) / 2]], dtype=torch.float64))


def test_a_turn_more_changes_nothing():
    seen = inputs.of(STATES, (1,), inside=True)
    turned = STATES + torch.tensor([0.0, 6 * math.pi, 0.0])
    torch.testing.assert_close(seen(turned), seen(STATES))


def test_numbers_beyond_the_data_are_the_nearest_of_the_data():
    seen = inputs.of(STATES, (), inside=True)
    out = seen(torch.tensor([[0.0, 1.0, 9.0], [1.5, -1.0, torch.nan]]))
    torch.testing.assert_close(out, torch.tensor([[1.0, 1.0, 5.0], [1.5, 0.0, torch.nan]]), equal_nan=True)


def test_plain_inputs_are_the_state_itself():
    for seen in (inputs.plain(3), inputs.of(STATES, (), inside=False)):
        assert seen.plain
        assert seen(STATES) is STATES
    assert not inputs.of(STATES, (), inside=True).plain
    assert not inputs.of(STATES, (0,), inside=False).plain


@pytest.mark.parametrize("angles", [(), (1,), (2, 0)])
def test_compiled_ones_are_the_same(angles):
    seen = inputs.of(STATES, angles, inside=True)
    state = torch.randn((50, 3), generator=torch.Generator().manual_seed(0)) * 4
    state[3, 1] = torch.nan
    out = np.empty((50, 3 + len(angles)), np.float32)
    inputs.see(state.numpy(), *seen.arrays(), out)
    np.testing.assert_allclose(out, seen(state).numpy(), atol=1e-6)


@pytest.mark.parametrize("angles", [(3,), (-1,), (0, 0)])
def test_angles_that_are_no_dimensions_are_refused(angles):
    with pytest.raises(ValueError, match=r"angles: expected different dimensions of the state, 0..2"):
        inputs.of(STATES, angles, inside=True)
