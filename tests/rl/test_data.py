"""Logged episodes: what happened, what a policy was shown, and what a file may be."""

import json
import math
import zipfile
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lowrank_rl.rl.contracts import Box, Discrete, Environment
from lowrank_rl.rl.data import Episodes, agents, collect, load, save
from lowrank_rl.rl.envs import cartpole, mountaincar
from lowrank_rl.rl.policies.uniform import Uniform

CARTPOLE, MOUNTAINCAR = cartpole.ENVIRONMENT, mountaincar.ENVIRONMENT


def walk(covariates, state, action):
    """x += gain * action, and a clock."""
    return torch.stack([state[:, 0] + covariates[:, 0] * action[:, 0].double(), state[:, 1] + 1], dim=1)


WALK = Environment(
    name="walk", gym_id="", state_names=("x", "clock"), actions=Discrete(3), covariate_names=("gain",),
    covariate_low=(0.5,), covariate_high=(2.0,), test_agents=((1.0,),) * 5, policy_training_agents=(), default_agent=(1.0,),
    max_steps=6, reset=lambda count, *, generator: torch.zeros((count, 2), dtype=torch.float64), step=walk,
    reward=lambda state, action, next_state: next_state[..., 0] - 0.1 * action[..., 0], ended=lambda state: state[..., 0] >= 4)


class Script:
    """Plays given actions, one row per episode, and keeps the views it was shown."""
    past = 0

    def __init__(self, actions):
        self.actions, self.views = actions, []

    def reset(self, agent):
        self.views.clear()

    def act(self, view, *, generators):
        assert len(generators) == len(view.state)
        self.views.append(view)
        return self.actions[view.episode, len(self.views) - 1]


class Always(Script):
    """Gives what it has, whatever it sees."""

    def act(self, view, *, generators):
        return self.actions


class Noting(Uniform):
    """Uniform, and keeps its views."""

    def __init__(self, actions, past):
        super().__init__(actions)
        object.__setattr__(self, "past", past)

    def reset(self, agent):
        object.__setattr__(self, "views", [])

    def act(self, view, *, generators):
        self.views.append(view)
        return super().act(view, generators=generators)


def plays(*rows):
    return Script(torch.tensor(rows)[..., None])


def gains(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def walked(policy, covariates, **options):
    return collect(WALK, covariates, torch.arange(len(covariates)), policy, seed=0, what="test", **options)


def some(environment, count=8, **options):
    return collect(environment, agents(environment, count, seed=1), torch.arange(count), Uniform(environment.actions),
                   **{"seed": 3, "what": "test", **options})


def equal(a, b):
    return all(np.array_equal(x, y) and x.dtype == y.dtype if isinstance(x, np.ndarray) else x == y
               for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in fields(Episodes)))


def episode(episodes, e, name):
    return getattr(episodes, name)[episodes.start[e]:episodes.start[e + 1]]


# ---- agents


@pytest.mark.parametrize("environment", [MOUNTAINCAR, CARTPOLE])
def test_agents_are_the_test_agents_and_draws_from_table_4(environment):
    all_of_them = agents(environment, 500, seed=0)
    assert torch.equal(all_of_them[:5], torch.tensor(environment.test_agents, dtype=torch.float64))
    low, high = torch.tensor(environment.covariate_low).double(), torch.tensor(environment.covariate_high).double()
    drawn = all_of_them[5:]
    assert ((drawn >= low) & (drawn <= high)).all()
    middle = (drawn - low) / (high - low)
    assert (middle.mean(0) - 0.5).abs().max() < 5 / math.sqrt(12 * 495)


def test_agents_keep_their_covariates_when_more_are_asked_for():
    assert torch.equal(agents(CARTPOLE, 7, seed=0), agents(CARTPOLE, 30, seed=0)[:7])
    assert not torch.equal(agents(CARTPOLE, 7, seed=0), agents(CARTPOLE, 7, seed=1))


def test_fewer_agents_than_the_test_agents_are_refused():
    with pytest.raises(ValueError, match=r"number of agents .*expected a whole number >= 5, got 4"):
        agents(CARTPOLE, 4, seed=0)


# ---- collect


def test_a_walk_by_hand():
    """Gains 1 and 2; x ends at 4 or more; six steps at most."""
    episodes = walked(plays([1, 0, 2, 0, 0, 0], [0, 1, 2, 0, 0, 0]), gains(1, 2))
    assert episodes.lengths.tolist() == [6, 3]
    assert episodes.terminated.tolist() == [False, True]
    assert episodes.start.tolist() == [0, 6, 9]
    assert episodes.state.tolist() == [[0, 0], [1, 1], [1, 2], [3, 3], [3, 4], [3, 5], [0, 0], [0, 1], [2, 2]]
    assert episodes.next_state[[5, 8]].tolist() == [[3, 6], [6, 3]]
    assert episodes.action.ravel().tolist() == [1, 0, 2, 0, 0, 0, 0, 1, 2]
    np.testing.assert_allclose(episodes.reward, [0.9, 1, 2.8, 3, 3, 3, 0, 1.9, 5.8])
    np.testing.assert_allclose(episodes.returns, [13.7, 7.7])
    assert len(episodes) == 2
    assert (episodes.environment, episodes.policy, episodes.seed) == ("walk", "test", 0)


def test_an_end_at_the_step_limit_is_an_end():
    episodes = walked(plays([0, 0, 0, 0, 2, 2], [0, 0, 0, 0, 2, 1]), gains(1, 1))
    assert episodes.lengths.tolist() == [6, 6]
    assert episodes.terminated.tolist() == [True, False]


def test_the_walk_stops_when_all_have_ended():
    policy, seen = plays([2, 2, 9], [2, 2, 9]), []
    episodes = walked(policy, gains(1, 1), progress=lambda done, limit: seen.append((done, limit)))
    assert episodes.lengths.tolist() == [2, 2]
    assert len(policy.views) == 2
    assert seen == [(2, 6)]


@pytest.mark.parametrize("environment", [MOUNTAINCAR, CARTPOLE])
def test_rows_chain_and_follow_the_environment(environment):
    episodes = some(environment, max_steps=40)
    inside = np.setdiff1d(np.arange(len(episodes.state)), episodes.start[1:] - 1)
    assert np.array_equal(episodes.next_state[inside], episodes.state[inside + 1])
    steps = episodes.transitions()
    covariates = torch.from_numpy(np.repeat(episodes.covariates, episodes.lengths, axis=0))
    torch.testing.assert_close(environment.step(covariates, steps.state, steps.action), steps.next_state, atol=1e-14, rtol=0)
    assert np.array_equal(environment.reward(steps.state, steps.action, steps.next_state).numpy(), episodes.reward)
    assert np.array_equal(steps.agent.numpy(), np.repeat(np.arange(8), episodes.lengths))
    for e in range(len(episodes)):
        ended = environment.ended(torch.from_numpy(episode(episodes, e, "next_state"))).numpy()
        assert not ended[:-1].any()
        assert ended[-1] == episodes.terminated[e]
        assert episodes.lengths[e] == 40 or ended[-1]
        assert math.isclose(episodes.returns[e], sum(episode(episodes, e, "reward").tolist()))
    assert (episodes.action.dtype, episodes.state.dtype) == (np.int64, np.float64)


@pytest.mark.parametrize("environment", [MOUNTAINCAR, CARTPOLE])
def test_an_episode_does_not_depend_on_its_company(environment):
    together = some(environment, max_steps=40)
    everyone = agents(environment, 8, seed=1)
    alone = [collect(environment, everyone[n:n + 1], torch.tensor([n]), Uniform(environment.actions), seed=3, what="test",
                     max_steps=40) for n in range(8)]
    for n in range(8):
        for name in ("state", "action", "next_state", "reward"):
            assert np.array_equal(episode(together, n, name), getattr(alone[n], name)), name


def test_repeated_episodes_of_an_agent_differ_and_the_seed_matters():
    covariates = agents(CARTPOLE, 5, seed=0)[[2, 2]]
    two = collect(CARTPOLE, covariates, torch.tensor([2, 2]), Uniform(CARTPOLE.actions), seed=0, what="test")
    assert not np.array_equal(episode(two, 0, "state")[0], episode(two, 1, "state")[0])
    again = collect(CARTPOLE, covariates, torch.tensor([2, 2]), Uniform(CARTPOLE.actions), seed=0, what="test")
    assert equal(two, again)
    for change in ({"seed": 1, "what": "test"}, {"seed": 0, "what": "other"}):
        other = collect(CARTPOLE, covariates, torch.tensor([2, 2]), Uniform(CARTPOLE.actions), **change)
        assert not np.array_equal(other.state[0], two.state[0])


@pytest.mark.parametrize("past", [0, 1, 4])
@pytest.mark.parametrize("actions", [Discrete(3), Box(0.0, 2.0, 3)])
def test_a_policy_is_shown_what_really_happened(past, actions):
    environment, policy = replace(WALK, actions=actions, max_steps=12), Noting(actions, past)
    covariates = gains(0.3, 1, 4, 0.1)
    episodes = collect(environment, covariates, torch.arange(4) + 10, policy, seed=0, what="test")
    assert len(set(episodes.lengths.tolist())) > 2
    for t, view in enumerate(policy.views):
        assert view.episode.tolist() == np.flatnonzero(episodes.lengths > t).tolist()
        assert torch.equal(view.agent, view.episode + 10)
        assert view.past_state.shape == (len(view.state), past, 2)
        assert view.past_action.shape == (len(view.state), past, actions.size)
        assert view.past_action.dtype == torch.from_numpy(episodes.action).dtype
        for row, e in enumerate(view.episode.tolist()):
            assert np.array_equal(view.state[row], episode(episodes, e, "state")[t])
            for k in range(past):
                then = t - past + k                                       # oldest first
                assert bool(view.past_mask[row, k]) == (then >= 0)
                state, action = view.past_state[row, k].numpy(), view.past_action[row, k].numpy()
                assert np.array_equal(state, episode(episodes, e, "state")[then] if then >= 0 else np.zeros(2))
                assert np.array_equal(action, episode(episodes, e, "action")[then] if then >= 0 else 0 * action)


@pytest.mark.parametrize(("environment", "action", "text"), [
    (WALK, torch.tensor([[3], [0]]), r"1 components in \[0, 2\] .*values 0 to 3"),
    (WALK, torch.tensor([[-1], [0]]), "values -1 to 0"),
    (WALK, torch.tensor([[0.5], [0.0]]), "got torch.float32"),
    (WALK, torch.tensor([[0, 1], [0, 1]]), r"shape \(2, 2\)"),
    (WALK, torch.tensor([[0]]), r"each of 2 rows, got torch.int64 of shape \(1, 1\)"),
    (WALK, torch.tensor([0, 0]), r"shape \(2,\)"),
    (replace(WALK, actions=Box(-1.0, 1.0, 1)), torch.tensor([[1.01], [0]]), r"\[-1.0, 1.0\] .*values 0 to 1.01"),
    (replace(WALK, actions=Box(-1.0, 1.0, 1)), torch.tensor([[math.nan], [0]]), "values nan"),
])
def test_actions_outside_the_bounds_are_refused(environment, action, text):
    with pytest.raises(ValueError, match=f"action: expected .*{text}"):
        collect(environment, gains(1, 1), torch.arange(2), Always(action), seed=0, what="test")


def test_collect_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="agent: axis B is 3, earlier inputs say B=2"):
        collect(WALK, gains(1, 1), torch.arange(3), plays([0]), seed=0, what="test")
    with pytest.raises(ValueError, match="max_steps: expected a whole number >= 1, got 0"):
        walked(plays([0]), gains(1), max_steps=0)


# ---- files


@st.composite
def fakes(draw):
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    count, rows = len(lengths), sum(lengths)
    number = st.floats(-1e300, 1e300)
    start = np.concatenate([[0], np.cumsum(lengths)])
    state = draw(arrays(np.float64, (rows, 2), elements=number))
    last = draw(arrays(np.float64, (count, 2), elements=number))
    next_state = np.concatenate([np.append(state[a + 1:b], last[e:e + 1], axis=0)
                                 for e, (a, b) in enumerate(pairwise(start))])
    action = draw(arrays(np.int64, (rows, 1)) | arrays(np.float64, (rows, 3), elements=number))
    agent = draw(arrays(np.int64, (count,), elements=st.integers(0, 2 ** 62)))
    return Episodes(draw(st.text(max_size=9)), draw(st.text(max_size=9)), draw(st.integers(0, 2 ** 63)),
                    draw(arrays(np.float64, (count, 1), elements=number)), agent, start, state, action, next_state,
                    draw(arrays(np.float64, (rows,), elements=number)), draw(arrays(np.bool_, (count,))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@settings(max_examples=40, deadline=None)
@given(fakes())
def test_load_gives_back_what_was_saved(folder, episodes):
    save(folder / "fake.npz", episodes)
    assert equal(load(folder / "fake.npz"), episodes)
    assert [p.name for p in folder.iterdir()] == ["fake.npz"]      # nothing partial stays behind


@pytest.mark.parametrize(("change", "text"), [
    ({"next_state": lambda x: x + 1}, "next_state: expected each row's to be the following row's state"),
    ({"reward": lambda x: x * np.nan}, "reward: .* values are NaN or Inf"),
])
def test_what_would_not_come_back_is_not_saved(tmp_path, change, text):
    episodes = some(WALK)
    broken = replace(episodes, **{name: edit(getattr(episodes, name)) for name, edit in change.items()})
    with pytest.raises(ValueError, match=text):
        save(tmp_path / "broken.npz", broken)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def saved(tmp_path):
    """A file and what is in it."""
    episodes = some(WALK)
    save(tmp_path / "deep" / "walk.npz", episodes)
    return tmp_path / "deep" / "walk.npz", episodes


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.npz: expected a data set, got no such file"):
        load(tmp_path / "nowhere.npz")


def test_a_truncated_file_is_refused_wherever_it_is_cut(saved):
    path, _ = saved
    whole = path.read_bytes()
    for keep in range(0, len(whole), 97):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"walk.npz: expected a data set, got a corrupt or truncated file"):
            load(path)


def test_a_flipped_bit_changes_no_number_silently(saved):
    path, episodes = saved
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    fields_of_the_archive = range(8 * (len(whole) - 700), 8 * len(whole), 7)
    refused = 0
    for bit in [*draw.integers(8 * len(whole), size=300).tolist(), *fields_of_the_archive]:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert equal(load(path), episodes)                     # a date of the archive is no number of ours
        except ValueError as error:
            assert "walk.npz: expected" in str(error)              # noqa: PT017 (many bits, not all do harm)
            refused += 1
    assert refused > 300


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, state=np.zeros(3))
    with pytest.raises(ValueError, match=r"corrupt or truncated file .*header.json"):
        load(path)
    path.write_text("agent,state\n0,1\n")
    with pytest.raises(ValueError, match="corrupt or truncated"):
        load(path)


def rewrite(path, **parts):
    """The same archive with some parts replaced."""
    with zipfile.ZipFile(path) as archive:
        old = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in old.items():
            if name in parts:
                with archive.open(name, "w") as file:
                    np.lib.format.write_array(file, parts[name])
            elif name == "header.json" and "header" in parts:
                archive.writestr(name, json.dumps(parts["header"]))
            else:
                archive.writestr(name, text)


def test_another_schema_is_refused(saved):
    path, _ = saved
    rewrite(path, header={"schema": 2})
    with pytest.raises(ValueError, match="expected a data set of schema 1, got 2; collect it again"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps({"schema": 3}))        # whose parts have other names
    with pytest.raises(ValueError, match="of schema 1, got 3"):
        load(path)
    rewrite(path, header=[1])
    with pytest.raises(ValueError, match="corrupt"):
        load(path)


@pytest.mark.parametrize("name", ["state", "action", "reward", "agent", "last_state", "covariates", "terminated"])
def test_parts_of_different_length_are_refused(saved, name):
    path, episodes = saved
    array = episodes.next_state[:len(episodes)] if name == "last_state" else getattr(episodes, name)
    rewrite(path, **{f"{name}.npy": array[:-1]})
    with pytest.raises(ValueError, match="parts disagree"):
        load(path)


@pytest.mark.parametrize("name", ["state", "reward", "last_state", "covariates"])
def test_nan_in_a_file_is_refused(saved, name):
    path, episodes = saved
    array = (episodes.next_state[:len(episodes)] if name == "last_state" else getattr(episodes, name)).copy()
    array[0] = math.nan
    rewrite(path, **{f"{name}.npy": array})
    with pytest.raises(ValueError, match=f"{name}: . of .* values are NaN or Inf"):
        load(path)


def test_a_failed_save_leaves_the_old_file(saved, monkeypatch):
    path, episodes = saved

    def full(*args, **options):
        raise OSError("No space left on device")
    for place in ("os.replace", "numpy.lib.format.write_array"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(ValueError, match=r"walk.npz: expected a place that can be written, got 'No space left"):
                save(path, replace(episodes, seed=99))
        assert equal(load(path), episodes)
        assert [p.name for p in path.parent.iterdir()] == ["walk.npz"]


def test_a_place_below_a_file_is_refused(saved):
    path, episodes = saved
    with pytest.raises(ValueError, match="expected a place that can be written"):
        save(path / "below.npz", episodes)
    assert equal(load(path), episodes)


def test_arrays_do_as_tensors_do():
    covariates = gains(1, 2)
    one, other = (collect(WALK, convert(covariates), convert(torch.arange(2)), Uniform(WALK.actions), seed=0, what="test")
                  for convert in (lambda x: x, lambda x: x.numpy()))
    assert all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
