"""Policies cloned from logs: whose actions they find, what they leave out, and what they propose to a planner."""

from dataclasses import replace

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Transitions, fresh_view
from lowrank_rl.rl.policies.cloned import CloneConfig, Cloned, fit_cloned
from lowrank_rl.rng import stream

AGENTS, ROWS = 20, 8000
BOX = Box(-1.0, 1.0, 2)
CONFIG = CloneConfig(rank=3, hidden=(32,), angles=(0,), epochs=40, skills=2)


def pilot(kind, state):
    """Two kinds: one pushes with the swing, one against it."""
    return torch.stack([state[:, 0].sin(), state[:, 1].tanh()], dim=1) * torch.where(kind == 0, 0.9, -0.9)[:, None]


def logs(random=0.0, seed=0):
    """Pendulums' angles and speeds with what pilots did, a share of it uniformly random; agents' kinds alternate."""
    draw = stream(seed, "clones")
    state = torch.randn((ROWS, 2), generator=draw, dtype=torch.float64) * torch.tensor([4.0, 1.0])
    agent = torch.randint(AGENTS, (ROWS,), generator=draw)
    other = torch.rand(ROWS, generator=draw) < random
    action = torch.where(other[:, None], BOX.sample((ROWS,), generator=draw), pilot(agent % 2, state))
    return Transitions(agent, state, action, state)


def error(policy, seed=9):
    data = logs(seed=seed)
    return float((policy.act(fresh_view(data.agent, data.state, 2), generators=[]) - pilot(data.agent % 2, data.state))
                 .square().mean().sqrt())


@pytest.mark.parametrize("random", [0.0, 0.4])
def test_pilots_are_found_among_random_actions(random):
    policy = fit_cloned(logs(random), AGENTS, BOX, CONFIG, seed=0)
    assert error(policy) < 0.1
    assert policy.share == pytest.approx(1 - random, abs=0.05)
    assert policy.useful
    assert policy.pull == pytest.approx(policy.share * (1 / policy.variance - 3))


def test_leaving_out_is_what_finds_them():
    plain = fit_cloned(logs(0.4), AGENTS, BOX, replace(CONFIG, rounds=1), seed=0)
    assert error(plain) > 2 * error(fit_cloned(logs(0.4), AGENTS, BOX, CONFIG, seed=0))      # it is drawn towards 0


def test_random_logs_have_no_pilot():
    policy = fit_cloned(logs(1.0), AGENTS, BOX, CONFIG, seed=0)
    assert policy.share < 0.05
    assert not policy.useful
    assert policy.pull < 0.1


def test_rows_tell_the_kinds_apart_and_skills_are_both():
    policy = fit_cloned(logs(0.2), AGENTS, BOX, CONFIG, seed=0)
    state = logs(seed=3).state[:500]
    flown = torch.stack([policy.choose(row.expand(500, -1), state) for row in policy.skills])
    worth = torch.stack([(flown - pilot(torch.full((500,), kind), state)).abs().mean((1, 2)) for kind in (0, 1)])
    assert (worth.min(1).values < 0.1).all()
    assert worth.argmin(1)[0] != worth.argmin(1)[1]


def test_hidden_agents_share_one_policy():
    policy = fit_cloned(logs(), AGENTS, BOX, CONFIG, seed=0, personal=False)
    state = torch.zeros((AGENTS, 2)).double()
    action = policy.act(fresh_view(torch.arange(AGENTS), state, 2), generators=[])
    assert torch.equal(action, action[:1].expand(AGENTS, -1))
    assert len(policy.skills) == 0


class Drift:
    """Two members whose states move by the action, one of them twice as fast."""
    members, past, noisy = 2, 0, False

    def predict(self, context, state, action, generator=None):
        return state + context * action


def test_proposals_are_what_pilots_would_fly():
    policy = fit_cloned(logs(0.2), AGENTS, BOX, CONFIG, seed=0)
    view = fresh_view(torch.tensor([3, 8]), torch.tensor([[0.5, -0.4], [1.0, 0.2]]).double(), 2)
    context = torch.tensor([0.1, 0.2]).double()[:, None, None].expand(2, 2, 2)
    found = policy.propose(Drift(), context, view, 5)
    assert found.plans.shape == (2, 3, 5, 2)
    assert found.pull == policy.pull
    for b in range(2):
        for k, row in enumerate([policy.rows[view.agent[b]], *policy.skills]):
            members = view.state[b].expand(2, -1)
            for h in range(5):
                action = policy.choose(row[None], members.mean(0)[None])[0]
                torch.testing.assert_close(found.plans[b, k, h], action)
                members = members + context[:, b] * action


def test_a_file_gives_back_the_same_policy(tmp_path):
    policy = fit_cloned(logs(0.2), AGENTS, BOX, replace(CONFIG, epochs=2, loyalty=3.0), seed=0)
    policy.save(tmp_path / "policy.safetensors")
    again = Cloned.load(tmp_path / "policy.safetensors")
    view = fresh_view(torch.arange(AGENTS), torch.randn((AGENTS, 2), generator=stream(0), dtype=torch.float64), 2)
    assert torch.equal(policy.act(view, generators=[]), again.act(view, generators=[]))
    assert (again.pull, again.share, again.personal) == (policy.pull, policy.share, True)
    assert torch.equal(again.skills, policy.skills)
    (tmp_path / "half.safetensors").write_bytes((tmp_path / "policy.safetensors").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"half\.safetensors"):
        Cloned.load(tmp_path / "half.safetensors")


@pytest.mark.parametrize(("part", "value", "message"), [
    ("agent", torch.full((ROWS,), AGENTS), "agent: expected"),
    ("action", torch.full((ROWS, 2), 1.5).double(), "action: expected 2 components"),
    ("action", torch.zeros((ROWS, 3)).double(), "action: expected 2 components"),
    ("state", torch.full((ROWS, 2), torch.nan).double(), "state: 16000 of 16000 values are NaN"),
    ("state", torch.zeros((3, 2)).double(), "state: axis B is 3"),
])
def test_bad_logs_are_refused(part, value, message):
    with pytest.raises(ValueError, match=message):
        fit_cloned(replace(logs(), **{part: value}), AGENTS, BOX, CONFIG, seed=0)


@pytest.mark.parametrize(("name", "wrong"), [("rank", 0), ("rounds", 0), ("epochs", 0), ("skills", -1), ("near", 0.0),
                                             ("near", float("nan")), ("loyalty", 0.0)])
def test_impossible_settings_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        CloneConfig(**{name: wrong})
