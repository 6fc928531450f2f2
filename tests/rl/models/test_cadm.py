"""CaDM: what its encoder sees, what the past is worth, resuming, saving."""

from dataclasses import replace

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView, Transitions, fresh_view
from lowrank_rl.rl.models import cadm, gaussian
from lowrank_rl.rl.models.cadm import CaDM, CaDMConfig, Logs, fit_cadm
from lowrank_rl.rl.models.gaussian import Descent
from lowrank_rl.rng import stream

AGENTS, STEPS = 12, 40
BOX = Box(-1.0, 1.0, 1)
BRIEF = Descent(updates=400, batch=64, learning_rate=5e-3, schedule="cosine")
CONFIG = CaDMConfig(members=2, past=5, future=4, width=2, hidden=(16, 16), context_hidden=(16,), descent=BRIEF)


def walks(seed=0, actions=BOX):
    """x' = x + gain action: half of the agents go twice as far as they are pushed, the others do not move."""
    draw = stream(seed, "walks")
    gain = torch.where(torch.arange(AGENTS) % 2 == 0, 2.0, 0.0).double()[:, None]
    push = actions.sample((AGENTS, STEPS), generator=draw)
    state = torch.randn(AGENTS, 1, 1, generator=draw).double() + \
        torch.cat([torch.zeros(AGENTS, 1, 1), (gain[:, None] * (push - int(isinstance(actions, Discrete)))).cumsum(1)], dim=1)
    return Transitions(torch.arange(AGENTS).repeat_interleave(STEPS), state[:, :-1].flatten(0, 1), push.flatten(0, 1),
                       state[:, 1:].flatten(0, 1))


def view_at(data, row, past, start):
    """What is seen at a row of an episode that began at row ``start``."""
    rows = torch.arange(row - past, row)
    known = rows >= start
    rows = rows.clamp_min(0)
    return EpisodeView(torch.zeros(1, dtype=torch.int64), data.agent[[row]], data.state[[row]],
                       torch.where(known[:, None], data.state[rows], torch.nan)[None],
                       torch.where(known[:, None], data.action[rows], 99)[None], known[None])


def error(model, data):
    """RMSE of one step, with the past as it is logged, of rows that have one; in units of a push's deviation."""
    rows = [r for r in range(len(data.agent)) if r % STEPS >= model.past]
    views = [view_at(data, r, model.past, r - r % STEPS) for r in rows]
    view = EpisodeView(*(torch.cat([getattr(v, name) for v in views]) for name in vars(views[0])))
    state = data.state[rows].expand(model.members, -1, -1)
    said = model.predict(model.context(view), state, data.action[rows]).mean(0)
    spread = (data.next_state - data.state).std()
    return float((said - data.next_state[rows]).square().mean().sqrt() / spread)


@pytest.mark.parametrize("actions", [BOX, Discrete(3)])
@pytest.mark.parametrize("probabilistic", [False, True])
def test_the_past_tells_agents_apart(actions, probabilistic):
    """Who cannot tell does best by predicting half of the faster one's change: then it is wrong by as much, always."""
    config = replace(CONFIG, probabilistic=probabilistic)
    data, unseen = walks(0, actions), walks(1, actions)
    assert error(fit_cadm(data, AGENTS, actions, config, seed=0), unseen) < 0.45
    assert error(fit_cadm(data, AGENTS, actions, config, seed=0, personal=False), unseen) == pytest.approx(0.5 ** 0.5, abs=0.1)


@pytest.mark.parametrize("actions", [BOX, Discrete(3)])
@pytest.mark.parametrize("age", [0, 2, 5, 30])
def test_training_and_acting_see_the_same_past(actions, age):
    data = walks(0, actions)
    model = fit_cadm(data, AGENTS, actions, replace(CONFIG, descent=replace(BRIEF, updates=5)), seed=0)
    logs = Logs(data, model.module.units, CONFIG, True)
    row = 3 * STEPS + age
    trained = logs.context(model.module, torch.tensor([[row], [row]]))
    torch.testing.assert_close(model.context(view_at(data, row, 5, 3 * STEPS)), trained)


def test_the_encoder_by_hand():
    """Zeros for unknown steps, then differences in units of their deviation beside actions, the oldest first."""
    data = walks()
    model = fit_cadm(data, AGENTS, BOX, replace(CONFIG, descent=replace(BRIEF, updates=5)), seed=0)
    row, unit = STEPS + 2, (data.next_state - data.state).std(unbiased=False)
    change = (data.next_state - data.state)[STEPS:STEPS + 2] / unit
    steps = torch.stack([change, data.action[STEPS:STEPS + 2]], dim=-1).flatten()
    seen = torch.cat([torch.zeros(6), steps.float()]).expand(2, 1, 10)
    torch.testing.assert_close(model.context(view_at(data, row, 5, STEPS)), model.module.encoder(seen))


def test_views_of_another_length():
    data = walks()
    model = fit_cadm(data, AGENTS, BOX, replace(CONFIG, descent=replace(BRIEF, updates=5)), seed=0)
    right = model.context(view_at(data, STEPS + 20, 5, STEPS))
    torch.testing.assert_close(model.context(view_at(data, STEPS + 20, 9, STEPS)), right)       # longer
    young = model.context(view_at(data, STEPS + 3, 5, STEPS))
    torch.testing.assert_close(model.context(view_at(data, STEPS + 3, 3, STEPS)), young)        # shorter
    fresh = model.context(fresh_view(data.agent[:1], data.state[:1], 1))
    torch.testing.assert_close(fresh, model.context(view_at(data, STEPS, 5, STEPS)))
    assert not torch.allclose(fresh, young)


def test_places_in_episodes():
    state = torch.arange(8.0)[:, None]
    data = Transitions(torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), state, state, state + 1)
    data.next_state[5] += 0.5                   # another episode of the same agent begins
    age, left = cadm._places(data)
    assert age.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert left.tolist() == [3, 2, 1, 3, 2, 1, 2, 1]


def test_the_loss_by_hand():
    """The first entry of the history against a loop over everything that could be drawn, of networks that hardly move."""
    data = walks()
    config = replace(CONFIG, members=1, probabilistic=False, decay=1e-3, blind=5.0,
                     descent=Descent(updates=1, batch=20_000, learning_rate=1e-12, share=0.0))
    model = fit_cadm(data, AGENTS, BOX, config, seed=0)
    module, total, count = model.module, 0.0, 0
    change = data.next_state - data.state
    told = (change - change.mean()) / change.std(unbiased=False)
    seen, units = (lambda x: (x - data.state.mean()) / data.state.std(unbiased=False)), torch.nn.functional.mse_loss
    for row in range(len(data.agent)):
        context = model.context(view_at(data, row, 5, row - row % STEPS))[0, 0]
        later = range(row, min(row + 4, row - row % STEPS + STEPS))
        for r in later:
            ahead, back = (network(torch.cat([seen(x[r]), data.action[r], context]).float()[None, None])[0, 0]
                           for network, x in ((module.ahead, data.state), (module.back, data.next_state)))
            each = float(units(ahead, told[r].float()) + 0.5 * units(back, -told[r].float()))
            total += each / len(later) * (1.0 if row % STEPS else 5.0)
        count += 1
    price = sum(float(gaussian.decay(network, 1e-3, last)) for network, last in
                ((module.ahead, 4), (module.back, 4), (module.encoder, 3)))
    assert model.history[0]["loss"] == pytest.approx(total / count + price, rel=0.02)


def test_absolute_and_unseen_dimensions():
    """Dimension 0 is a function of the action alone: never seen, and its next value said outright."""
    data = walks()
    wide = Transitions(data.agent, *(torch.cat([x, y], dim=1) for x, y in (
        (torch.randn(len(data.agent), 1, generator=stream(0)).double(), data.state),
        (data.action, torch.zeros(len(data.agent), 0)), (3 * data.action, data.next_state))))
    for row in range(len(data.agent) - 1):
        if wide.agent[row] == wide.agent[row + 1]:
            wide.state[row + 1, 0] = wide.next_state[row, 0]
    model = fit_cadm(wide, AGENTS, BOX, replace(CONFIG, unseen=(0,), absolute=(0,)), seed=0)
    state = torch.tensor([[0.0, 1.0], [50.0, 1.0]]).double()
    context = model.context(view_at(wide, 30, 5, 0)).expand(2, 2, 2)
    said = model.predict(context, state.expand(2, -1, -1), torch.full((2, 1), 0.5).double())
    assert torch.equal(said[:, 0], said[:, 1])
    torch.testing.assert_close(said[..., 0], torch.full((2, 2), 1.5).double(), atol=0.2, rtol=0)


def test_members_differ_and_seeds_decide():
    data, short = walks(), replace(CONFIG, descent=replace(BRIEF, updates=20))
    first, again, other = (fit_cadm(data, AGENTS, BOX, short, seed=seed) for seed in (0, 0, 1))
    weight = [m.module.ahead.layers[0].weight for m in (first, again, other)]
    assert torch.equal(weight[0], weight[1])
    assert not torch.equal(weight[0], weight[2])
    assert not torch.equal(weight[0][0], weight[0][1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3])
def test_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, after):
    monkeypatch.setattr("lowrank_rl.rl.models.cadm.EVERY", 0.0)
    monkeypatch.setattr("lowrank_rl.rl.models.gaussian.TOLD", 10)
    config, data, path = replace(CONFIG, descent=replace(BRIEF, updates=45)), walks(), tmp_path / "cadm.checkpoint"
    whole, heard, again = fit_cadm(data, AGENTS, BOX, config, seed=0), [], []

    def die(entry):
        heard.append(entry)
        if len(heard) == after + 1:
            raise Killed
    with pytest.raises(Killed):
        fit_cadm(data, AGENTS, BOX, config, seed=0, progress=die, checkpoint=path)
    model = fit_cadm(data, AGENTS, BOX, config, seed=0, progress=again.append, checkpoint=path)
    assert [e["update"] for e in again] == [10, 20, 30, 40, 45][after:]
    for old, new in zip(whole.module.state_dict().values(), model.module.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert [(e["loss"], e["held_out"]) for e in model.history] == [(e["loss"], e["held_out"]) for e in whole.history]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"seed": 1}, {"personal": False}, {"config": replace(CONFIG, back=0.1)}])
def test_another_job_is_not_taken_up(tmp_path, monkeypatch, change):
    monkeypatch.setattr("lowrank_rl.rl.models.cadm.EVERY", 0.0)
    monkeypatch.setattr("lowrank_rl.rl.models.gaussian.TOLD", 5)
    data, path, short = walks(), tmp_path / "cadm.checkpoint", replace(BRIEF, updates=10)

    def die(entry):
        if entry["update"] == 10:
            raise Killed
    job = {"seed": 0, "config": CONFIG, "checkpoint": path}
    with pytest.raises(Killed):
        fit_cadm(data, AGENTS, BOX, **{**job, "config": replace(CONFIG, descent=short)}, progress=die)
    heard, job = [], {**job, **change}
    fit_cadm(data, AGENTS, BOX, **{**job, "config": replace(job["config"], descent=short)}, progress=heard.append)
    assert heard[0]["update"] == 5


@pytest.mark.parametrize("actions", [BOX, Discrete(3)])
@pytest.mark.parametrize("options", [{}, {"probabilistic": False, "angles": (0,)}])
def test_a_saved_model_says_the_same(tmp_path, actions, options):
    data = walks(0, actions)
    config = replace(CONFIG, descent=replace(BRIEF, updates=5), **options)
    model = fit_cadm(data, AGENTS, actions, config, seed=0)
    model.save(tmp_path / "cadm.safetensors")
    other = CaDM.load(tmp_path / "cadm.safetensors")
    view, state, action = view_at(data, 20, 5, 0), data.state[20:21].expand(2, 1, 1), data.action[20:21]
    for generator in (None, 0):
        draw = [None if generator is None else stream(generator) for _ in range(2)]
        assert torch.equal(model.predict(model.context(view), state, action, draw[0]),
                           other.predict(other.context(view), state, action, draw[1]))
    assert (other.members, other.past, other.noisy, other.history) == (2, 5, config.probabilistic, model.history)
    assert other.module.units.actions == actions


def test_a_foreign_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a saved CaDM, got no such file"):
        CaDM.load(tmp_path / "nothing")


@pytest.mark.parametrize(("name", "wrong"), [("members", 0), ("past", 0), ("future", 0), ("width", 0), ("back", -1.0),
                                             ("decay", float("nan"))])
def test_impossible_settings_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        CaDMConfig(**{name: wrong})


def test_bad_data_are_refused():
    data = walks()
    with pytest.raises(ValueError, match="action: expected"):
        fit_cadm(data, AGENTS, Discrete(2), CONFIG, seed=0)
    with pytest.raises(ValueError, match=r"agent: expected integers 0\.\.10"):
        fit_cadm(data, AGENTS - 1, BOX, CONFIG, seed=0)
