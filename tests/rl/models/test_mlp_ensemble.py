"""One network for everybody: what it learns, what every DynamicsModel promises, and kills that change nothing."""

from dataclasses import replace
from functools import lru_cache

import pytest
import torch

from lowrank_rl.rl.contracts import Box, Discrete, Transitions, fresh_view
from lowrank_rl.rl.inputs import plain
from lowrank_rl.rl.models.frame import Frame
from lowrank_rl.rl.models.mlp_ensemble import MlpEnsemble, MlpEnsembleConfig, Networks, fit_mlp_ensemble, fit_or_load
from lowrank_rl.rng import stream
from lowrank_rl.tensor import AdamConfig, io

AGENTS, B, C, H = 5, 6, 3, 4
SMALL = MlpEnsembleConfig(members=3, hidden=(16,), adam=AdamConfig(epochs=2, batch=32), updates=20)
KINDS = {"discrete": Discrete(3), "continuous": Box(-1.0, 1.0, 2)}


def logged(actions, count=300, seed=0):
    """All agents alike: each action pushes all dimensions, and states fall back towards 5."""
    draw = stream(seed, "mlp ensemble test", repr(actions))
    state = 5 + 2 * torch.randn((count, 3), generator=draw, dtype=torch.float64)
    action = actions.sample((count,), generator=draw)
    agent = torch.arange(count) % AGENTS
    return Transitions(agent, state, action, state + truth(state, action))


def truth(state, action):
    return 0.01 * (action.double().sum(1, keepdim=True) - 0.5 * (state - 5))


@lru_cache
def fitted(kind):
    return fit_mlp_ensemble(logged(KINDS[kind]), AGENTS, KINDS[kind], SMALL, seed=0)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def question(kind, dtype=torch.float64):
    draw = stream(1, "question")
    model, agent = fitted(kind), torch.tensor([0, 4, 2, 2, 1, 3])
    state = logged(KINDS[kind]).state[:B].to(dtype) + 0.1 * torch.randn((3, B, 3), generator=draw, dtype=dtype)
    plans = KINDS[kind].sample((B, C, H), generator=draw)
    return model, agent, model.context(fresh_view(agent, state[0], plans.shape[-1])), state, plans


def close(a, b):
    torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5, equal_nan=True)


def test_shapes_dtypes_and_rows(kind):
    for dtype in (torch.float32, torch.float64):
        model, agent, context, state, plans = question(kind, dtype)
        action = plans[:, 0, 0]
        whole, future = model.predict(context, state, action), model.rollout(context, state, plans)
        assert (model.members, model.past, model.noisy) == (3, 0, False)
        assert context.shape == (3, B, 0)
        assert (whole.shape, whole.dtype) == ((3, B, 3), dtype)
        assert future.shape == (3, B, C, H + 1, 3)
        assert not torch.allclose(whole[0], whole[1], atol=1e-4)                  # members are different networks
        for b in range(B):
            own = model.context(fresh_view(agent[b:b + 1], state[0, b:b + 1], plans.shape[-1]))
            close(model.predict(own, state[:, b:b + 1], action[b:b + 1]), whole[:, b:b + 1])
            now = state[:, b:b + 1]
            for h in range(H):
                now = model.predict(own, now, plans[b:b + 1, 1, h])
                close(future[:, b:b + 1, 1, h + 1], now)
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        close(model.predict(context[:, order], state[:, order], action[order]), whole[:, order])


def test_nan_stays_in_its_row_and_inputs_are_left_alone(kind):
    model, _, context, state, plans = question(kind)
    broken, action = state.clone(), plans[:, 0, 0].clone()
    broken[:, 2, 1] = torch.nan
    found = model.predict(context, broken, action)
    assert found[:, 2].isnan().all()
    others = [0, 1, 3, 4, 5]
    close(found[:, others], model.predict(context, state, action)[:, others])
    assert torch.equal(action, plans[:, 0, 0])
    assert int(broken.isnan().sum()) == 3
    assert model.predict(context[:, :0], state[:, :0], action[:0]).shape == (3, 0, 3)


@pytest.mark.parametrize("stranger", [-1, AGENTS])
def test_an_agent_out_of_range_is_refused(kind, stranger):
    with pytest.raises(ValueError, match=r"agent: expected integers 0\.\.4, got values"):
        fitted(kind).context(fresh_view(torch.tensor([0, stranger]), torch.zeros(2, 3), 1))


def test_a_prediction_by_hand():
    """One neuron that sees the second action, in units: 2 relu(3) = 6 deviations of 0.5 from 10."""
    kept = {"kept": torch.ones(1), "shift": torch.tensor([10.0]), "spread": torch.tensor([0.5])}
    units = Frame(Discrete(2), {**vars(plain(1)), "center": torch.zeros(1), "scale": torch.ones(1), **kept})
    module = Networks(units, MlpEnsembleConfig(members=1, hidden=(1,)), generator=torch.Generator())
    for layer, weight in zip(module.network.layers, ([[0.0], [0.0], [3.0]], [[2.0]]), strict=True):
        layer.weight.data, layer.bias.data = torch.tensor([weight]), torch.zeros(1, 1, 1)
    model = MlpEnsemble(module.requires_grad_(False), MlpEnsembleConfig(members=1, hidden=(1,)), 1, [])
    found = model.predict(torch.zeros(1, 2, 0), torch.tensor([[[1.0], [1.0]]]), torch.tensor([[0], [1]]))
    assert found.flatten().tolist() == [11.0, 14.0]


def test_it_learns_the_truth_and_members_agree_where_there_were_steps(kind):
    actions = KINDS[kind]
    model = fit_mlp_ensemble(logged(actions, 1000), AGENTS, actions, replace(SMALL, hidden=(32, 32), updates=1500), seed=0)
    new = logged(actions, 200, seed=1)
    context = model.context(fresh_view(new.agent, new.state, 1))
    inside = new.state[None].expand(3, -1, -1)
    found = model.predict(context, inside, new.action)
    relative = ((found.mean(0) - new.next_state) / model.unit).square().mean().sqrt()
    assert relative < 0.1
    outside = inside + 100
    apart = [(model.predict(context, where, new.action).std(0) / model.unit).mean() for where in (inside, outside)]
    assert apart[1] > 10 * apart[0]
    torch.testing.assert_close(model.unit.double(), (logged(actions, 1000).next_state - logged(actions, 1000).state).std(
        0, unbiased=False), rtol=1e-4, atol=0)


def test_agents_are_not_known_to_it(kind):
    data = logged(KINDS[kind])
    other = replace(data, agent=(data.agent + 1) % AGENTS)
    again = fit_mlp_ensemble(other, AGENTS, KINDS[kind], SMALL, seed=0)
    _, _, context, state, plans = question(kind)
    assert torch.equal(again.predict(context, state, plans[:, 0, 0]), fitted(kind).predict(context, state, plans[:, 0, 0]))


def test_few_steps_are_seen_in_more_epochs(kind):
    assert len(fitted(kind).history) == 2                      # 10 batches an epoch, at least 20 updates
    few = fit_mlp_ensemble(logged(KINDS[kind], 40), AGENTS, KINDS[kind], SMALL, seed=0)
    assert len(few.history) == 10                              # 2 batches an epoch


def test_the_seed_decides_and_the_global_stream_is_left_alone(kind):
    before = torch.random.get_rng_state()
    again, other = (fit_mlp_ensemble(logged(KINDS[kind]), AGENTS, KINDS[kind], SMALL, seed=seed) for seed in (0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    _, _, context, state, plans = question(kind)
    first, same, another = (model.predict(context, state, plans[:, 0, 0]) for model in (fitted(kind), again, other))
    assert torch.equal(first, same)
    assert not torch.equal(first, another)


def test_save_and_load(kind, tmp_path):
    model, _, context, state, plans = question(kind)
    model.save(tmp_path / "model")
    again = MlpEnsemble.load(tmp_path / "model")
    assert torch.equal(again.predict(context, state, plans[:, 0, 0]), model.predict(context, state, plans[:, 0, 0]))
    assert (again.agents, again.history) == (model.agents, model.history)
    assert again.module.units.actions == model.module.units.actions
    io.save(tmp_path / "other", "PerSim", {}, {})
    with pytest.raises(ValueError, match="expected a MlpEnsemble"):
        MlpEnsemble.load(tmp_path / "other")


class Killed(Exception):
    pass


def test_killed_it_goes_on_to_the_same_bits_and_a_whole_model_is_found_again(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("lowrank_rl.tensor.functional_adam.fit_adam.__kwdefaults__", {
        "progress": None, "checkpoint": None, "checkpoint_seconds": 0.0})
    config, actions, told = replace(SMALL, updates=50), KINDS[kind], []

    def fit(seed=0, kill=99):
        def progress(entry):
            told.append(entry["epoch"])
            if entry["epoch"] == kill:
                raise Killed
        return fit_or_load(logged(actions), AGENTS, actions, config, seed=seed, progress=progress, checkpoint=tmp_path / "m")
    with pytest.raises(Killed):
        fit(kill=3)
    model = fit()
    assert told == [1, 2, 3, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    found = fit()
    assert len(told) == 6                                                        # nothing was trained
    whole = fit_mlp_ensemble(logged(actions), AGENTS, actions, config, seed=0)
    _, _, context, state, plans = question(kind)
    expected = whole.predict(context, state, plans[:, 0, 0])
    assert torch.equal(model.predict(context, state, plans[:, 0, 0]), expected)
    assert torch.equal(found.predict(context, state, plans[:, 0, 0]), expected)
    assert not torch.equal(fit(seed=1).predict(context, state, plans[:, 0, 0]), expected)      # another job
    assert len(told) == 11


@pytest.mark.parametrize(("change", "message"), [
    ({"agent": torch.full((300,), 5)}, r"agent: expected integers 0\.\.4, got values 5\.\.5"),
    ({"action": torch.zeros(300, 1)}, "action: expected 1 components in"),
    ({"state": torch.full((300, 3), torch.nan)}, "state: 900 of 900 values are NaN"),
    ({"next_state": torch.zeros(300, 2)}, "next_state: axis D is 2"),
])
def test_bad_steps_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        fit_mlp_ensemble(replace(logged(Discrete(3)), **change), AGENTS, Discrete(3), SMALL, seed=0)


def test_no_steps_and_bad_settings_are_refused():
    nothing = Transitions(*(x[:0] for x in vars(logged(Discrete(3))).values()))
    with pytest.raises(ValueError, match="data: expected steps to learn from, got none"):
        fit_mlp_ensemble(nothing, AGENTS, Discrete(3), SMALL, seed=0)
    for change, message in (({"members": 0}, "members: expected"), ({"updates": 0}, "updates: expected"),
                            ({"activation": "sine"}, "unknown activation 'sine'")):
        with pytest.raises(ValueError, match=message):
            replace(SMALL, **change)
