"""Multi-step training: stretches of logs, gradients through predictions, resuming, and what it is for."""

from dataclasses import replace
from itertools import count

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete, Transitions
from lowrank_rl.rl.models import multistep
from lowrank_rl.rl.models.multistep import MultiStep, stretches
from lowrank_rl.rl.models.persim import Exact, PerSimConfig, fit_persim
from lowrank_rl.rng import stream
from lowrank_rl.tensor import AdamConfig, Polynomial

AGENTS, STEPS = 4, 60
BOX = Box(-1.0, 1.0, 1)
CONFIG = PerSimConfig(rank=2, members=2, state_hidden=(16,), action_hidden=(8,), activation="silu", angles=(0,), walls=False,
                      adam=AdamConfig(epochs=3, batch=32, learning_rate=3e-3),
                      multistep=MultiStep(horizon=8, updates=120, batch=16, learning_rate=3e-3))


def pendulums(seed=0):
    """Swinging pendulums of different lengths, pushed at random; they turn over now and then."""
    draw = stream(seed, "pendulums")
    state = torch.randn(AGENTS, 2, generator=draw).double()
    length, rows = torch.linspace(0.5, 2, AGENTS).double(), []
    for _ in range(STEPS):
        action = 2 * torch.rand(AGENTS, 1, generator=draw).double() - 1
        speed = state[:, 1] + 0.1 * (action[:, 0] - state[:, 0].sin() / length)
        following = torch.stack([state[:, 0] + 0.1 * speed, speed], dim=1)
        rows.append((state, action, following))
        state = following
    state, action, following = (torch.stack(x, dim=1).flatten(0, 1) for x in zip(*rows, strict=True))
    return Transitions(torch.arange(AGENTS).repeat_interleave(STEPS), state, action, following)


def open_loop(model, data, horizon=20):
    """RMSE of predictions of so many steps from the start of each log."""
    first = torch.arange(0, len(data.agent), STEPS)
    rows = first[:, None] + torch.arange(horizon)
    context = model.rows[:, data.agent[first]]
    start = data.state[first].expand(model.members, -1, -1)
    future = model.rollout(context, start, data.action[rows][:, None])[:, :, 0, 1:]
    return float((future - data.next_state[rows]).square().mean().sqrt())


def test_stretches_are_within_episodes():
    state = torch.arange(8.0)[:, None]
    data = Transitions(torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), state, state, state + 1)
    assert stretches(data, 3).tolist() == [0, 3, 4, 5]
    data.next_state[4] += 0.5         # another episode of the same agent begins
    assert stretches(data, 3).tolist() == [0, 5]
    assert stretches(data, 2).tolist() == [0, 1, 3, 5, 6]
    with pytest.raises(ValueError, match=r"expected stretches of 4 steps that follow each other, got none"):
        stretches(data, 4)
    with pytest.raises(ValueError, match="got none"):
        stretches(data, 9)


@pytest.mark.parametrize("joint", [False, True])
def test_errors_over_many_steps_fall(joint):
    data, config = pendulums(), replace(CONFIG, joint=joint)
    once = fit_persim(data, AGENTS, BOX, replace(config, multistep=None), seed=0)
    further = fit_persim(data, AGENTS, BOX, config, seed=0)
    assert open_loop(further, data) < 0.5 * open_loop(once, data)
    assert [e["update"] for e in further.cp.history_[3:]] == [50, 100, 120]
    assert further.cp.history_[-1]["loss"] < 0.5 * further.cp.history_[3]["loss"]


def test_seconds_are_those_of_both_parts(monkeypatch):
    ticks = count(1.0)
    monkeypatch.setattr("time.monotonic", lambda: next(ticks))
    seconds = [entry["seconds"] for entry in fit_persim(pendulums(), AGENTS, BOX, CONFIG, seed=0).cp.history_]
    assert len(seconds) == 6
    assert seconds == sorted(seconds)


@pytest.mark.parametrize("joint", [False, True])
def test_one_update_by_hand(joint):
    """The gradient of a two-step loss, by autograd on a loop written out here, and Adam's first step, which is its sign."""
    data = pendulums()
    config = replace(CONFIG, members=1, multistep=None, joint=joint)
    start, after = (fit_persim(data, AGENTS, BOX, c, seed=0) for c in (config, replace(config, multistep=MultiStep(
        horizon=2, updates=1, batch=300, learning_rate=1e-4))))
    rows = stretches(data, 2)[torch.randint(len(stretches(data, 2)), (1, 300), generator=stream(0, "persim", "multi-step"))[0]]
    module = start.module
    module.zero_grad()         # of what the last epoch has left
    x, loss, spread = data.state[rows], 0.0, data.state.std(0)
    for h in range(2):
        x = x + module.predict([data.agent[rows], *start.coordinates(x, data.action[rows + h])])[0]
        loss = loss + ((x - data.next_state[rows + h]) / spread).square().mean() / 2
    loss.backward()
    for old, new in zip(module.parameters(), after.module.parameters(), strict=True):
        clear = old.grad.abs() > 1e-4
        assert clear.any()
        assert torch.equal((new - old).sign()[clear], -old.grad.sign()[clear])
    assert after.cp.history_[-1]["loss"] == pytest.approx(loss.item(), rel=1e-4)


def test_members_learn_apart():
    """A member's first steps do not depend on how another one's gradient is limited."""
    data = pendulums()
    config = replace(CONFIG, multistep=replace(CONFIG.multistep, updates=5))
    model = fit_persim(data, AGENTS, BOX, config, seed=0)
    module = model.module
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
        parameter.grad[1] *= 1e6
    multistep._limit(module)
    lengths = sum(p.grad.flatten(1).square().sum(1) for p in module.parameters()).sqrt()
    torch.testing.assert_close(lengths, torch.ones(2))
    assert not torch.equal(model.rows[0], model.rows[1])


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [2, 4])
def test_killed_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, after):
    """After the second epoch and after the first fifty updates."""
    for module in ("functional_adam", "functional_checkpoint"):
        monkeypatch.setattr(f"lowrank_rl.tensor.{module}.EVERY", 0.0)
    monkeypatch.setattr("lowrank_rl.rl.models.persim.EVERY", 0.0)
    monkeypatch.setattr("lowrank_rl.tensor.functional.fit_adam", _eager)
    data, heard, path = pendulums(), [], tmp_path / "model.checkpoint"
    whole = fit_persim(data, AGENTS, BOX, CONFIG, seed=0)

    def die(entry):
        heard.append(entry)
        if len(heard) == after + 1:
            raise Killed
    with pytest.raises(Killed):
        fit_persim(data, AGENTS, BOX, CONFIG, seed=0, progress=die, checkpoint=path)
    again = []
    model = fit_persim(data, AGENTS, BOX, CONFIG, seed=0, progress=again.append, checkpoint=path)
    assert [next(iter(e.items())) for e in again] == [next(iter(e.items())) for e in whole.cp.history_[after:]]
    for old, new in zip(whole.module.state_dict().values(), model.module.state_dict().values(), strict=True):
        assert torch.equal(old, new)
    assert list(tmp_path.iterdir()) == []


def _eager(*args, **options):
    from lowrank_rl.tensor.functional_adam import fit_adam
    return fit_adam(*args, checkpoint_seconds=0.0, **options)


def test_another_job_is_not_taken_up(tmp_path):
    data, path = pendulums(), tmp_path / "model.checkpoint"

    def die(entry):
        if "update" in entry:
            raise Killed
    with pytest.raises(Killed):
        fit_persim(data, AGENTS, BOX, CONFIG, seed=0, progress=die, checkpoint=path)
    heard = []
    fit_persim(data, AGENTS, BOX, CONFIG, seed=1, progress=heard.append, checkpoint=path)
    assert heard[0]["epoch"] == 1


def test_a_loss_without_bounds_is_refused():
    data = pendulums()
    broken = replace(CONFIG, activation="relu", inside=False, angles=(), multistep=MultiStep(horizon=50, updates=50,
                                                                                              learning_rate=1e6))
    with pytest.raises(ValueError, match=r"multi-step training diverged at update .*a learning rate below"):
        fit_persim(data, AGENTS, BOX, broken, seed=0)


@pytest.mark.parametrize(("name", "wrong"), [("horizon", 1), ("updates", 0), ("batch", 0), ("learning_rate", 0.0),
                                             ("learning_rate", float("nan"))])
def test_impossible_settings_are_refused(name, wrong):
    with pytest.raises(ValueError, match=f"{name}: expected"):
        MultiStep(**{name: wrong})


def test_not_beside_exact_solves():
    data = replace(pendulums(), action=torch.zeros((AGENTS * STEPS, 1), dtype=torch.int64))
    config = PerSimConfig(exact=Exact(Polynomial(2, 2)), multistep=MultiStep())
    with pytest.raises(ValueError, match="multistep: expected None beside exact solves"):
        fit_persim(data, AGENTS, Discrete(2), config, seed=0)
