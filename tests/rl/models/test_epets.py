"""E-PETS: agents apart, noise as it is, resuming, saving."""

from dataclasses import replace

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete, Transitions, fresh_view
from lowrank_rl.rl.models.epets import EPETS, EPETSConfig, fit_epets
from lowrank_rl.rl.models.gaussian import Descent
from lowrank_rl.rng import stream

AGENTS, STEPS = 6, 100
BOX = Box(-1.0, 1.0, 1)
CONFIG = EPETSConfig(members=2, width=2, hidden=(16, 16),
                     descent=Descent(updates=400, batch=64, learning_rate=1e-2, schedule="cosine"))
GAIN = torch.linspace(0, 2, AGENTS).double()[:, None]


def pushes(seed=0, noise=0.0, actions=BOX):
    """x' = x + gain action + noise e, the gain by agent."""
    draw = stream(seed, "pushes")
    agent = torch.arange(AGENTS).repeat_interleave(STEPS)
    state = torch.randn(len(agent), 1, generator=draw).double()
    action = actions.sample((len(agent),), generator=draw)
    error = noise * torch.randn(len(agent), 1, generator=draw).double()
    return Transitions(agent, state, action, state + GAIN[agent] * action + error)


def context(model, data):
    return model.context(fresh_view(data.agent, data.state, 1))


def said(model, data, generator=None):
    state = data.state.expand(model.members, -1, -1)
    return model.predict(context(model, data), state, data.action, generator)


@pytest.mark.parametrize("actions", [BOX, Discrete(3)])
def test_agents_are_told_apart(actions):
    """Who cannot tell does best by the mean gain."""
    data, test = pushes(0, actions=actions), pushes(1, actions=actions)
    spread = (test.next_state - test.state).square().mean().sqrt()
    error = {personal: float((said(fit_epets(data, AGENTS, actions, CONFIG, seed=0, personal=personal), test).mean(0)
                              - test.next_state).square().mean().sqrt() / spread) for personal in (True, False)}
    assert error[True] < 0.1
    assert error[False] == pytest.approx(float(GAIN.std(unbiased=False) / GAIN.square().mean().sqrt()), abs=0.05)


def test_noise_is_drawn_as_it_is_in_the_data():
    data = pushes(0, noise=0.2)
    model = fit_epets(data, AGENTS, BOX, CONFIG, seed=0)
    row = Transitions(*(x[:1].repeat(4000, 1) if x.ndim > 1 else x[:1].repeat(4000) for x in vars(data).values()))
    draws, mean = said(model, row, stream(0)), said(model, row)[:, :1]
    assert draws.std(1).flatten().tolist() == pytest.approx([0.2, 0.2], rel=0.2)
    assert (draws.mean(1) - mean[:, 0]).abs().max() < 0.02


def test_an_agents_embedding_is_its_own():
    data = pushes()
    model = fit_epets(data, AGENTS, BOX, CONFIG, seed=0)
    before, mine = said(model, data), data.agent == 3
    with torch.no_grad():
        model.module.agents[:, 3] += 1
    changed = (said(model, data) != before).any(0)[:, 0]
    assert changed[mine].all()
    assert not changed[~mine].any()


def test_agents_start_nearly_alike():
    config = replace(CONFIG, descent=replace(CONFIG.descent, updates=1, learning_rate=1e-9))
    rows = fit_epets(pushes(), AGENTS, BOX, config, seed=0).rows
    assert rows.shape == (2, AGENTS, 2)
    assert 0.3 * CONFIG.start < rows.std() < 2 * CONFIG.start


def test_a_pooled_model_does_not_ask_who_acts():
    data = pushes()
    model = fit_epets(data, AGENTS, BOX, replace(CONFIG, descent=replace(CONFIG.descent, updates=5)), seed=0, personal=False)
    rows = context(model, data)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))


def test_the_loss_by_hand():
    data = pushes()
    config = replace(CONFIG, members=1, decay=1e-3, descent=Descent(updates=1, batch=20_000, learning_rate=1e-12, share=0.0))
    model = fit_epets(data, AGENTS, BOX, config, seed=0)
    change = data.next_state - data.state
    told = (change - change.mean()) / change.std(unbiased=False)
    seen = (data.state - data.state.mean()) / data.state.std(unbiased=False)
    out = model.module.network(torch.cat([seen, data.action, model.rows[0, data.agent]], dim=1).float()[None])
    mean, raw = out[0].chunk(2, dim=1)
    softplus = torch.nn.functional.softplus
    log_variance = -10 + softplus(0.5 - softplus(0.5 - raw) + 10)
    likely = (told - mean).square() / log_variance.exp() + log_variance + torch.tensor(2 * torch.pi).log()
    fit = (log_variance.exp() * likely).mean()       # the first update's weights
    price = sum(k * layer.weight.square().sum() / 2 for k, layer in zip((1, 2, 4), model.module.network.layers, strict=True))
    assert model.history[0]["loss"] == pytest.approx(float(fit + 0.01 * 10.5 + 1e-3 * price), rel=0.02)


class Killed(Exception):
    pass


def test_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank_rl.rl.models.epets.EVERY", 0.0)
    monkeypatch.setattr("lowrank_rl.rl.models.gaussian.TOLD", 10)
    config, data = replace(CONFIG, descent=replace(CONFIG.descent, updates=45)), pushes()
    whole, again, path = fit_epets(data, AGENTS, BOX, config, seed=0), [], tmp_path / "epets.checkpoint"

    def die(entry):
        if entry["update"] == 30:
            raise Killed
    with pytest.raises(Killed):
        fit_epets(data, AGENTS, BOX, config, seed=0, progress=die, checkpoint=path)
    model = fit_epets(data, AGENTS, BOX, config, seed=0, progress=again.append, checkpoint=path)
    assert [e["update"] for e in again] == [30, 40, 45]
    for old, new in zip(whole.module.state_dict().values(), model.module.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("actions", [BOX, Discrete(3)])
def test_a_saved_model_says_the_same(tmp_path, actions):
    data = pushes(0, actions=actions)
    config = replace(CONFIG, angles=(0,), inside=True, descent=replace(CONFIG.descent, updates=5))
    model = fit_epets(data, AGENTS, actions, config, seed=0)
    model.save(tmp_path / "epets.safetensors")
    other = EPETS.load(tmp_path / "epets.safetensors")
    assert torch.equal(said(model, data, stream(0)), said(other, data, stream(0)))
    assert (other.members, other.past, other.noisy, other.personal) == (2, 0, True, True)
    with pytest.raises(ValueError, match="expected a saved E-PETS, got no such file"):
        EPETS.load(tmp_path / "nothing")


def test_an_agent_without_data_is_refused():
    with pytest.raises(ValueError, match=r"agents: expected data of each of 7 agents, got none of 1 \(first: 6\)"):
        fit_epets(pushes(), AGENTS + 1, BOX, CONFIG, seed=0)


@pytest.mark.parametrize(("name", "wrong"), [("members", 0), ("width", 0), ("decay", -1.0)])
def test_impossible_settings_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        EPETSConfig(**{name: wrong})
