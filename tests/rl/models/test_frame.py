"""What networks that step a system share: their units, and what logged steps must be."""

import math
from dataclasses import replace

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete, Transitions
from lowrank_rl.rl.models.frame import checked, everyone, frame
from lowrank_rl.rng import stream

BOX = Box(-2.0, 4.0, 1)


def steps(count=50):
    draw = stream(0, "steps")
    state = torch.randn(count, 3, generator=draw).double() * torch.tensor([1.0, 1e-6, 5.0]) + 2
    return Transitions(torch.zeros(count, dtype=torch.int64), state, BOX.sample((count,), generator=draw),
                       state + torch.randn(count, 3, generator=draw).double() * 1e-3)


@pytest.mark.parametrize("absolute", [(), (0,), (0, 2)])
def test_a_step_undoes_its_target(absolute):
    data = steps()
    units = frame(data, BOX, absolute=absolute)
    said = units.target(data.state, data.next_state)
    torch.testing.assert_close(said.mean(0), torch.zeros(3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(said.std(0, unbiased=False), torch.ones(3).double())
    torch.testing.assert_close(units.step(data.state, said), data.next_state)
    elsewhere = units.step(data.state + 1, said) - units.step(data.state, said)
    for d in range(3):
        torch.testing.assert_close(elsewhere[:, d], torch.full((50,), float(d not in absolute)).double())


def test_what_networks_see():
    data = steps()
    units = frame(data, BOX, angles=(2,), unseen=(0,))
    assert units.sizes == (3, 1, 3)
    other = data.state.clone()
    other[:, 0] += 100
    other[:, 2] += 2 * math.pi
    torch.testing.assert_close(units.see(other), units.see(data.state), atol=1e-7, rtol=1e-7)
    value = torch.stack([data.state[:, 1], data.state[:, 2].sin(), data.state[:, 2].cos()], dim=1)
    torch.testing.assert_close(units.see(data.state), (value - value.mean(0)) / value.std(0, unbiased=False))
    plain = frame(data, BOX, unseen=(0,))                       # without angles, too
    torch.testing.assert_close(plain.see(data.state)[:, 0], units.see(data.state)[:, 0])
    assert plain.see(data.state).shape == (50, 2)
    assert units.act(torch.tensor([[-2.0], [1.0], [4.0]])).flatten().tolist() == [-1, 0, 1]
    assert frame(data, Discrete(3)).act(torch.tensor([[2], [0]])).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_what_never_varies_is_no_trouble():
    data = steps()
    data.state[:, 1] = 7
    data.next_state[:, 1] = 7
    units = frame(data, BOX)
    assert units.see(data.state)[:, 1].abs().max() == 0
    assert units.step(data.state, torch.zeros(50, 3))[:, 1].tolist() == [7] * 50


@pytest.mark.parametrize(("wrong", "message"), [
    ({"unseen": (3,)}, r"unseen: expected dimensions of the state, 0\.\.2, got \(3,\)"),
    ({"absolute": (-1,)}, r"absolute: expected dimensions of the state, 0\.\.2, got \(-1,\)"),
    ({"unseen": (0, 1, 2)}, "unseen: expected some of 3 dimensions to be seen"),
    ({"angles": (5,)}, "angles: expected different dimensions"),
])
def test_impossible_dimensions_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        frame(steps(), BOX, **wrong)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("state", lambda x: x * math.nan, "state: 150 of 150 values are NaN"),
    ("next_state", lambda x: x[1:], "next_state: axis B is 49"),
    ("agent", lambda x: x.double(), r"agent: expected integers 0\.\.1"),
    ("agent", lambda x: x + 2, r"agent: expected integers 0\.\.1, got values 2\.\.2"),
    ("action", lambda x: x + 9, "action: expected 1 components"),
])
def test_bad_data_are_refused(field, value, message):
    data = steps()
    with pytest.raises(ValueError, match=message):
        checked(replace(data, **{field: value(getattr(data, field))}), 2, BOX)


def test_no_data_are_refused():
    empty = Transitions(*(x[:0] for x in vars(steps()).values()))
    with pytest.raises(ValueError, match="data: expected steps to learn from, got none"):
        checked(empty, 2, BOX)


def test_what_are_no_transitions_is_refused_with_the_way_to_them():
    with pytest.raises(ValueError, match=r"data: expected Transitions, got dict; pass episodes\.transitions\(\)"):
        checked(vars(steps()), 2, BOX)


def test_an_agent_without_steps_is_refused():
    data = steps()
    everyone(data, 1)
    with pytest.raises(ValueError, match=r"expected data of each of 3 agents, got none of 2 \(first: 1\); drop them"):
        everyone(data, 3)
