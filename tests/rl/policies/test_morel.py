"""MOReL where the best policy is known: it is found, the unknown is left alone, each run learns from its own steps."""

import math
import random
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("stable_baselines3")

from lowrank_rl.rl.contracts import Box, Discrete, Environment, Experience, fresh_view
from lowrank_rl.rl.data import collect
from lowrank_rl.rl.models.mlp_ensemble import MlpEnsembleConfig, fit_or_load
from lowrank_rl.rl.policies import morel
from lowrank_rl.rl.policies.morel import MOReLConfig, fit_morel
from lowrank_rl.rng import stream

PUSH = 0.1


def move(covariates, state, action):
    """The second agent's controls are reversed."""
    push = action.double() - 1 if not action.is_floating_point() else action.double()
    return state + PUSH * covariates[:, :1] * push


LINE = Environment(
    name="line", gym_id="", state_names=("x",), actions=Discrete(3), covariate_names=("sign",), covariate_low=(-1.0,),
    covariate_high=(1.0,), test_agents=((1.0,), (-1.0,)), policy_training_agents=(), default_agent=(1.0,), max_steps=20,
    reset=lambda count, *, generator: torch.rand((count, 1), generator=generator, dtype=torch.float64) - 0.5, step=move,
    reward=lambda state, action, next_state: -(next_state[..., 0] - 0.4).abs(), ended=lambda state: state[..., 0].abs() > 99)
TEMPTING = replace(LINE, reward=lambda state, action, next_state: next_state[..., 0])      # the farther right, the better
BOX = replace(LINE, actions=Box(-1.0, 1.0, 1))
SIGNS = torch.tensor(LINE.test_agents, dtype=torch.float64)
QUICK = MOReLConfig(steps=9_600, penalty=-5.0, clone=0, episodes=16, rollout=20, batch=160, learning_rate=1e-2, hidden=(16,),
                    discount=0.9)
EDGE = 0.5 + 3 * PUSH


class Drift:
    """Learns which way the controls work; its two members part beyond ``EDGE``, where no log has been."""

    members, past, noisy = 2, 0, False
    unit = torch.tensor([PUSH])

    def __init__(self, data):
        moved, push = data.next_state - data.state, data.action.double()
        self.sign = torch.sign(((moved - moved.mean()) * (push - push.mean())).sum())

    def context(self, view):
        return torch.zeros(2, len(view.agent), 0)

    def predict(self, context, state, action, generator=None):
        push = action if action.is_floating_point() else action - 1
        apart = torch.tensor([0.0, 5.0])[:, None, None] * (state.abs() > EDGE)
        return state + PUSH * self.sign.to(state) * (push + apart)


def fit_model(data, *, seed, device, progress, checkpoint):
    return Drift(data)


def logs(environment=LINE, agents=(0, 1), episodes=40, steps=8, seed=0):
    """Random actions of each agent, which stay within +-EDGE."""
    draw = stream(seed, "morel test")
    agent = torch.tensor(agents).repeat_interleave(episodes)
    state, rows = environment.reset(len(agent), generator=draw), []
    for _ in range(steps):
        action = environment.actions.sample((len(agent),), generator=draw)
        next_state = environment.step(SIGNS[agent], state, action).clamp(-EDGE, EDGE)
        rows.append((state, action, next_state))
        state = next_state
    state, action, next_state = (torch.stack(x, dim=1).flatten(0, 1) for x in zip(*rows, strict=True))
    return Experience(agent.repeat_interleave(steps), state, action, next_state,
                      environment.reward(state, action, next_state), torch.zeros(len(state), dtype=torch.bool))


def fit(data=None, run=(0, 1), environment=LINE, config=QUICK, seed=0, model=fit_model, **options):
    data = logs(environment) if data is None else data
    return fit_morel(data, torch.tensor(run), environment, config, seed=seed, fit_model=model, **options)


def play(environment, policy, agents=(0, 1), episodes=20):
    agent = torch.tensor(agents).repeat_interleave(episodes)
    return collect(environment, SIGNS[agent], agent, policy, seed=0, what="morel test")


def best(environment, agents=(0, 1), episodes=20):
    """Of going straight to 0.4 and staying within half a push (or exactly) there."""
    agent = torch.tensor(agents).repeat_interleave(episodes)
    start = play(environment, Still(environment.actions), agents, episodes).state[::environment.max_steps, 0]
    total = np.zeros(len(agent))
    for number, x in enumerate(start):
        for _ in range(environment.max_steps):
            far = 0.4 - x
            push = np.clip(far / PUSH, -1, 1)
            x += PUSH * (round(push) if isinstance(environment.actions, Discrete) else push)
            total[number] -= abs(0.4 - x)
    return total


class Still:
    past = 0

    def __init__(self, actions):
        self.actions = actions

    def reset(self, agent):
        pass

    def act(self, view, *, generators):
        rows = len(view.agent)
        return torch.ones((rows, 1), dtype=torch.int64) if isinstance(self.actions, Discrete) else torch.zeros(
            (rows, 1), dtype=torch.float64)


@pytest.mark.parametrize("environment", [LINE, BOX], ids=["discrete", "continuous"])
def test_random_logs_give_each_agent_its_best_policy(environment):
    """Form A; a policy of the other agent would lose about 20 (its controls are reversed)."""
    policy = fit(environment=environment)
    found = play(environment, policy).returns
    lost = (best(environment) - found).reshape(2, -1).mean(1)
    assert (lost > -1e-9).all()
    assert (lost < 0.6).all()
    assert policy.failed.tolist() == [-1, -1]


def test_the_population_shares_a_policy_and_others_have_none():
    policy = fit(logs(agents=(0,)), run=(0, -1))
    assert len(policy.center) == 1
    lost = best(LINE, (0,)) - play(LINE, policy, (0,)).returns
    assert lost.mean() < 0.6
    with pytest.raises(ValueError, match=r"agent 1: expected one whose steps were learned from, got another"):
        policy.reset(torch.tensor([1]))


@pytest.mark.parametrize("beta", [5.0, math.inf])
def test_a_tempting_unknown_is_left_alone_unless_nothing_is_unknown(beta):
    policy = fit(logs(TEMPTING, (0,)), (0,), TEMPTING, replace(QUICK, beta=beta))
    x = play(TEMPTING, policy, (0,)).next_state[:, 0].reshape(20, 20)
    if beta == math.inf:
        assert (x[:, -1] > 1.4).all()                              # 20 pushes right from -0.5 or more, but for one
    else:
        assert x.max() <= EDGE + PUSH + 1e-9
        assert x[:, -1].min() > 0.4                                # near the edge, since that is best of the known


def test_where_every_step_costs_an_early_end_is_no_way_out():
    """Each step costs 1, for ever 10; the unknown costs 1 once, and what is worst for ever: 11 in all."""
    weary = replace(LINE, reward=lambda state, action, next_state: -torch.ones(len(state)))
    policy = fit(logs(weary, (0,)), (0,), weary, replace(QUICK, penalty=-1.0))
    x = play(weary, policy, (0,)).next_state[:, 0]
    assert np.abs(x).max() <= EDGE + PUSH + 1e-9
    assert policy.history[-1]["unknown"] < 0.2


def test_with_a_learned_ensemble():
    """The whole path: the networks' own disagreement, and form A's runs apart."""
    def learn(data, *, seed, device, progress, checkpoint):
        config = MlpEnsembleConfig(members=3, hidden=(32,), updates=300)
        return fit_or_load(data, 2, LINE.actions, config, seed=seed, device=device, progress=progress, checkpoint=checkpoint)
    policy = fit(model=learn)
    assert (best(LINE) - play(LINE, policy).returns).mean() < 1.0


def test_cloning_begins_with_what_was_logged():
    """Logs of one who always pushes left; PPO has hardly begun."""
    data = replace(logs(), action=torch.zeros(640, 1, dtype=torch.int64))
    policy = fit(data, config=replace(QUICK, steps=320, clone=1000, learning_rate=1e-9))
    state = torch.linspace(-0.5, 0.5, 11, dtype=torch.float64)[:, None]
    view = fresh_view(torch.arange(11) % 2, state, 1)
    assert policy.act(view, generators=[torch.Generator()] * 11).flatten().tolist() == [0] * 11
    logits = policy.networks["policy"](torch.linspace(-1.5, 1.5, 11)[None, :, None].expand(2, -1, -1))
    assert (logits.softmax(2)[..., 0] - (1 - 0.1 * 2 / 3)).abs().max() < 0.05          # doubt is shared by all three
    data = replace(logs(BOX), action=0.3 + 0.0 * logs(BOX).action)
    policy = fit(data, environment=BOX, config=replace(QUICK, steps=320, clone=400, learning_rate=1e-9))
    assert (policy.act(view, generators=[torch.Generator()] * 11) - 0.3).abs().max() < 0.05


def test_continuous_actions_stay_within_the_bounds():
    policy = fit(environment=BOX, config=replace(QUICK, steps=320))
    state = torch.linspace(-1e3, 1e3, 11, dtype=torch.float64)[:, None]
    policy.networks["policy"].layers[-1].bias.data += 3.0
    wide = morel.Learned(morel.choose, policy.options, policy.networks, policy.center, policy.scale, policy.run, policy.failed,
                         BOX.actions, [])
    action = wide.act(fresh_view(torch.zeros(11, dtype=torch.int64), state, 1), generators=[torch.Generator()] * 11)
    assert action.abs().max() == 1.0
    assert action.dtype == torch.float64


class Killed(Exception):
    pass


def test_killed_anywhere_it_ends_with_the_same_bits(tmp_path, monkeypatch):
    """In the first run, between the runs' last entries, and once in the second; each kept at once."""
    monkeypatch.setattr(morel, "EVERY", 0.0)
    config, told, models = replace(QUICK, steps=1600, clone=20, logged=0.5), [], []

    def model(data, *, seed, device, progress, checkpoint):
        models.append(checkpoint and checkpoint.name)
        return Drift(data)
    whole = fit(config=config, model=model)
    assert models == [None, None]
    kills = iter([3 * 320, 5 * 320, 8 * 320])
    stop = next(kills)

    def progress(entry):
        nonlocal stop
        told.append(entry["update"])
        if entry["update"] == stop:
            stop = next(kills, None)
            raise Killed
    for _ in range(3):
        with pytest.raises(Killed):
            fit(config=config, model=model, checkpoint=tmp_path / "kept", progress=progress)
    assert {path.name for path in tmp_path.iterdir()} == {"kept.0", "kept.1"}
    again = fit(config=config, model=model, checkpoint=tmp_path / "kept", progress=progress)
    assert list(tmp_path.iterdir()) == []
    for name, value in whole.networks["policy"].state_dict().items():
        assert torch.equal(value, again.networks["policy"].state_dict()[name])
    plain = [{name: value for name, value in entry.items() if name != "seconds"} for entry in whole.history]
    assert plain == [{name: value for name, value in entry.items() if name != "seconds"} for entry in again.history]
    assert [entry["update"] for entry in plain] == [320 * k for k in range(1, 11)]
    assert {"loss", "reward", "unknown"} < set(plain[0])
    other = fit(config=config, model=model, seed=1)
    assert not torch.equal(other.networks["policy"].layers[0].weight, whole.networks["policy"].layers[0].weight)


def test_runs_do_not_depend_on_each_other_and_global_streams_are_left_alone():
    config = replace(QUICK, steps=640)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()     # noqa: NPY002
    both, first = fit(config=config), fit(logs(agents=(0,)), run=(0,), config=config)
    after = torch.random.get_rng_state(), np.random.get_state()[1], random.getstate()             # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]
    assert both.networks["policy"].layers[0].weight.shape[0] == 2
    data = logs()
    alone = fit(data, run=(0, -1), config=config)
    for name, value in alone.networks["policy"].state_dict().items():
        assert torch.equal(value, both.networks["policy"].state_dict()[name][:1])
    assert len(first.center) == 1


def test_episodes_outlast_the_updates_of_the_policy():
    """Of 20 steps, with an update after every 5: they end in every fourth entry of the history."""
    entries = fit(logs(agents=(0,)), (0,), config=replace(QUICK, steps=80 * 9, rollout=5, beta=math.inf)).history
    assert [number for number, entry in enumerate(entries, 1) if entry["reward"] is not None] == [4, 8]


def test_watch_sees_ten_policies_of_the_runs_begun():
    seen = []
    fit(config=replace(QUICK, steps=320 * 20), watch=lambda done, policy: seen.append((done, policy.run.tolist())))
    assert [done for done, _ in seen] == [320 * 4 * k for k in range(1, 11)]
    assert [run for _, run in seen] == [[0, -1]] * 5 + [[0, 1]] * 5


def test_save_and_load(tmp_path):
    policy = fit(config=replace(QUICK, steps=320))
    policy.save(tmp_path / "policy", morel.KIND)
    again = morel.load(tmp_path / "policy")
    assert np.array_equal(play(LINE, again).action, play(LINE, policy).action)
    assert again.history == policy.history


def test_a_run_that_diverges_is_marked_and_the_others_go_on():
    """A reward of 1e38 is a value that no network reaches in float32."""
    mad = replace(LINE, reward=lambda state, action, next_state: torch.where(
        next_state[..., 0] > 0, 1e38, 0.0) * (action[..., 0] < 3))
    policy = fit(environment=mad, data=logs(), config=replace(QUICK, steps=3200, discount=0.99))
    assert (policy.failed > 0).all()
    with pytest.raises(ValueError, match="agent 0: expected a trained policy, got one whose loss was NaN or Inf at update 320"):
        policy.reset(torch.tensor([0]))
    assert policy.history[-1]["loss"] is None


def test_without_stable_baselines_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(ValueError, match=r"morel: expected Stable-Baselines3, got .*; pip install lowrank_rl\[policies\]"):
        fit()


@pytest.mark.parametrize(("change", "run", "message"), [
    ({"action": torch.zeros(640, 1)}, (0, 1), "action: expected 1 components in"),
    ({"reward": torch.full((640,), torch.nan)}, (0, 1), "reward: 640 of 640 values are NaN"),
    ({}, (0, 2, 1), r"run: expected logged steps for each, got none for run 1 \(of agents \[2\]\)"),
    ({}, (-1, -1), "run: expected logged steps for each, got none for any"),
])
def test_bad_input_is_refused(change, run, message):
    with pytest.raises(ValueError, match=message):
        fit(replace(logs(), **change), run)


@pytest.mark.parametrize(("change", "message"), [
    ({"steps": 0}, "steps: expected a whole number"), ({"batch": 1}, "batch: expected a whole number >= 2"),
    ({"discount": 1.0}, "expected discount below 1"), ({"penalty": -math.inf}, "a finite penalty"),
    ({"beta": math.nan}, "a beta that is a number"), ({"logged": 1.5}, "logged: expected a share"),
    ({"doubt": -0.1}, "doubt: expected a share"),
    ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"), ({"clone": -1}, "clone: expected")])
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)
