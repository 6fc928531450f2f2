"""Batches of logged steps, by hand: whose, in which units, how often."""

import pytest
import torch

from lowrank_rl.rl.contracts import Experience
from lowrank_rl.rl.policies import offline
from lowrank_rl.rl.policies.batches import Logs
from lowrank_rl.rng import stream


def numbered(counts):
    """Agents with so many steps; the reward tells which step of whom."""
    agent = torch.cat([torch.full((count,), n) for n, count in enumerate(counts)])
    order = torch.randperm(len(agent), generator=stream(0, "order"))
    draw = stream(0, "numbered")
    reward = torch.arange(len(agent)).double()
    state = torch.randn((len(agent), 3), generator=draw, dtype=torch.float64) * torch.tensor([2.0, 0.1, 0.0]) + 5
    action = torch.arange(len(agent))[:, None] % 2
    whole = Experience(agent, state, action, state + 1, reward, torch.arange(len(agent)) % 3 == 0)
    return Experience(*(values[order] for values in vars(whole).values()))


RUN = torch.tensor([1, -1, 0, 1])       # of agents 0-3


def test_a_batch_is_drawn_rows_in_units_of_their_run():
    data = numbered((30, 40, 50, 20))
    logs = Logs(data, RUN, True, "cpu")
    batch = logs.draw(8, offline.streams(0, 2, "draw"))
    for g, generator in enumerate(offline.streams(0, 2, "draw")):
        own = (RUN[data.agent] == g).nonzero()[:, 0]
        row = own[torch.randint(50, (8,), generator=generator)]           # both runs have 50 steps
        center, scale = data.state[own].mean(0), data.state[own].std(0, unbiased=False)
        scale[2] = 1                                                      # nothing varies there
        for name in ("state", "next_state"):
            expected = ((getattr(data, name)[row] - center) / scale).float()
            torch.testing.assert_close(getattr(batch, name)[g], expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(batch.reward[g], data.reward[row].float())
        assert torch.equal(batch.action[g], data.action[row, 0])
        assert torch.equal(batch.going[g], 1 - data.terminated[row].float())
    assert torch.equal(batch.weight, torch.full((2, 8), 1 / 8))
    assert batch.extremes.tolist() == [[70, 119], [0, 139]]               # agent 2; agents 0 and 3


def test_a_batch_larger_than_the_logs_weighs_what_a_direct_draw_would_repeat():
    data = numbered((5, 9, 12, 2))
    batch = Logs(data, RUN, True, "cpu").draw(40, offline.streams(0, 2, "draw"))
    assert batch.reward.shape == (2, 12)
    for g, generator in enumerate(offline.streams(0, 2, "draw")):
        own = (RUN[data.agent] == g).nonzero()[:, 0]
        drawn = data.reward[own[torch.randint(len(own), (40,), generator=generator)]]
        torch.testing.assert_close(batch.mean(batch.reward.square())[g], drawn.square().mean().float())
        for reward in data.reward[own].tolist():
            share = batch.weight[g][batch.reward[g] == reward].sum()
            assert float(share) == pytest.approx((drawn == reward).double().mean())


def episodes(counts):
    """One episode of each agent, where each state but the first and the last is met twice."""
    draw = stream(0, "episodes")
    ways = [torch.randn((count + 1, 3), generator=draw, dtype=torch.float64) for count in counts]
    agent = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    steps = len(agent)
    return Experience(agent, torch.cat([way[:-1] for way in ways]), torch.arange(steps)[:, None] % 2,
                      torch.cat([way[1:] for way in ways]), torch.arange(steps).double(), torch.zeros(steps, dtype=torch.bool))


def test_a_batch_of_whole_episodes_knows_each_distinct_state_once():
    logs, generators = Logs(episodes((30, 20, 12)), torch.tensor([0, -1, 1]), True, "cpu"), offline.streams(0, 2, "draw")
    first, second = (logs.draw(40, generators) for _ in range(2))
    found = first.distinct
    assert found is second.distinct
    assert found.state.shape == (2, 31, 3)
    for g, distinct in enumerate((31, 13)):
        assert len(found.state[g].unique(dim=0)) == distinct
        assert torch.equal(found.state[g][found.now[g]], first.state[g])
        assert torch.equal(found.state[g][found.then[g]], first.next_state[g])


@pytest.mark.parametrize(("data", "size"), [(episodes((30, 20, 12)), 29), (numbered((30, 20, 12, 1)), 40)])
def test_distinct_states_are_not_told_of_drawn_steps_or_where_most_lead_elsewhere(data, size):
    run = torch.arange(int(data.agent.max()) + 1)
    assert Logs(data, run, True, "cpu").draw(size, offline.streams(0, len(run), "draw")).distinct is None


def test_every_step_is_drawn_alike():
    logs, generators = Logs(numbered((5, 9, 12, 2)), RUN, True, "cpu"), offline.streams(0, 2, "draw")
    shares = torch.stack([logs.draw(40, generators).weight for _ in range(2000)]).mean(0)
    assert float((shares[0] * 12 - 1).abs().max()) < 0.05         # four deviations are 0.047
    assert float((shares[1, :7] * 7 - 1).abs().max()) < 0.05
    assert not shares[1, 7:].any()
