"""Episodes as Minari data sets: ours come back bit for bit and read well with Minari alone; those of others are checked."""

import sys
from dataclasses import replace

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium import spaces
from logged import CARTPOLE, HALFCHEETAH, MOUNTAINCAR, equal, some

from lowrank_rl.rl.formats.minari import from_minari, to_minari

FLAT, TWO = spaces.Box(-np.inf, np.inf, (3,)), spaces.Discrete(2)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")      # asks for authors


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where data sets go: never the user's own place."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    return tmp_path / "sets"


def foreign(name="theirs-v0", change=None, observations=FLAT, actions=TWO):
    """Three episodes of 4, 5 and 6 steps that others logged: no agents, float32, the first cut off by a limit.

    ``change`` takes the number and the arrays of an episode, and gives those that become others.
    """
    rng, buffers = np.random.default_rng(0), []
    for e, T in enumerate((4, 5, 6)):
        last = np.arange(T) == T - 1
        parts = {"observations": rng.standard_normal((T + 1, 3)).astype(np.float32), "actions": rng.integers(0, 2, T),
                 "rewards": np.arange(T) / 2, "terminations": last & (e > 0), "truncations": last & (e == 0)}
        buffers.append(minari.data_collector.EpisodeBuffer(**parts | (change(e, parts) if change else {})))
    return minari.create_dataset_from_buffers(name, buffers, action_space=actions, observation_space=observations,
                                              algorithm_name="theirs")


def second(**parts):
    """A change of the second episode, the one of 5 steps."""
    return lambda e, _: parts if e == 1 else {}


@pytest.mark.parametrize(("environment", "steps"), [(MOUNTAINCAR, 20), (CARTPOLE, 40), (HALFCHEETAH, 4)])
def test_minari_gives_back_every_bit(environment, steps):
    episodes = some(environment, steps)
    written = to_minari(f"{environment.name}/random-v0", episodes, environment)
    for dataset in (written, f"{environment.name}/random-v0"):
        for known in (None, environment):
            assert equal(from_minari(dataset, known), episodes)


@pytest.mark.parametrize(("environment", "steps"), [(CARTPOLE, 40), (HALFCHEETAH, 4)])
def test_minari_alone_reads_it(environment, steps):
    episodes = some(environment, steps)
    to_minari("ours/random-v0", episodes, environment)
    dataset = minari.load_dataset("ours/random-v0")
    assert dataset.total_episodes == 4
    assert dataset.total_steps == len(episodes.state)
    assert dataset.env_spec.id == environment.gym_id
    assert dataset.storage.metadata["algorithm_name"] == "random"
    assert not {"author", "author_email"} & set(dataset.storage.metadata)
    for e, one in enumerate(dataset):
        rows = slice(episodes.start[e], episodes.start[e + 1])
        assert len(one.observations) == len(one.actions) + 1
        assert np.array_equal(one.observations[:-1], episodes.state[rows])
        assert np.array_equal(one.observations[1:], episodes.next_state[rows])
        assert np.array_equal(one.actions.reshape(len(one), -1), episodes.action[rows])
        assert np.array_equal(one.rewards, episodes.reward[rows])
        assert (one.terminations.sum(), one.truncations.sum()) == (episodes.terminated[e], not episodes.terminated[e])
        assert one.terminations[-1] != one.truncations[-1]
        assert all(dataset.observation_space.contains(observation) for observation in one.observations)
        assert all(dataset.action_space.contains(action) for action in one.actions)
        assert (one.infos["agent"] == episodes.agent[e]).all()
        assert [one.infos["context"][name][0] for name in environment.covariate_names] == episodes.covariates[e].tolist()


def test_the_environment_of_an_episode_is_recovered():
    to_minari("cartpole/random-v0", some(CARTPOLE), CARTPOLE)
    dataset = minari.load_dataset("cartpole/random-v0")
    env, context = dataset.recover_environment(), {name: float(x[0]) for name, x in dataset[1].infos["context"].items()}
    assert env.unwrapped.environment is CARTPOLE
    assert env.reset(options={"context": context})[1] == {"context": context}


def test_parts_and_combinations_keep_agents_and_covariates():
    episodes = some(MOUNTAINCAR, 5)
    dataset = to_minari("cars/one-v0", episodes, MOUNTAINCAR)
    part = from_minari(dataset.filter_episodes(lambda one: one.infos["agent"][0] == 5), MOUNTAINCAR)
    assert part.agent.tolist() == [5, 5]
    assert np.array_equal(part.covariates, episodes.covariates[[1, 3]])
    both = from_minari(minari.combine_datasets([dataset, dataset], "cars/two-v0"), MOUNTAINCAR)
    assert both.agent.tolist() == [0, 5, 2, 5] * 2
    assert np.array_equal(both.covariates, np.tile(episodes.covariates, (2, 1)))
    with pytest.raises(ValueError, match="episodes: expected at least one, got none"):
        from_minari(dataset.filter_episodes(lambda one: False))


def test_covariates_keep_their_order():
    """HDF5 gives names back in alphabetical order; ours are mass, then damping."""
    episodes = some(HALFCHEETAH, 2)
    assert not np.array_equal(episodes.covariates, episodes.covariates[:, ::-1])
    dataset = minari.combine_datasets([to_minari("cheetahs/one-v0", episodes, HALFCHEETAH)], "cheetahs/again-v0")
    assert np.array_equal(from_minari(dataset, HALFCHEETAH).covariates, episodes.covariates)
    assert np.array_equal(from_minari(dataset).covariates, episodes.covariates[:, ::-1])      # nothing says which is first


def test_logs_without_covariates_go_through():
    episodes = replace(some(CARTPOLE), covariates=np.empty((4, 0)))
    assert equal(from_minari(to_minari("cartpole/bare-v0", episodes, CARTPOLE), CARTPOLE), episodes)


def test_a_foreign_data_set():
    dataset = foreign()
    episodes = from_minari(dataset, agent=np.array([4, 1, 4]))
    assert (episodes.environment, episodes.policy, episodes.seed) == ("theirs-v0", "theirs", 0)
    assert episodes.agent.tolist() == [4, 1, 4]
    assert episodes.lengths.tolist() == [4, 5, 6]
    assert episodes.terminated.tolist() == [False, True, True]
    assert episodes.covariates.shape == (3, 0)
    assert (episodes.state.dtype, episodes.action.dtype, episodes.action.shape) == (np.float64, np.int64, (15, 1))
    for e, one in enumerate(dataset):
        rows = slice(episodes.start[e], episodes.start[e + 1])
        assert np.array_equal(episodes.state[rows], one.observations[:-1])
        assert np.array_equal(episodes.next_state[rows], one.observations[1:])
    amounts = foreign("amounts-v0", lambda e, _: {"actions": np.full((4 + e, 2), 0.5, np.float32)},
                      actions=spaces.Box(-1, 1, (2,)))
    boxed = from_minari(amounts, agent=np.arange(3))
    assert (boxed.action.dtype, boxed.action.shape) == (np.float64, (15, 2))


def test_gymnasium_s_own_cartpole_is_the_default_agent():
    """Float32 observations of another implementation pass all checks, simulation included."""
    env, buffers = gymnasium.make("CartPole-v1"), []
    for e in range(3):
        observations, actions, rewards, ended = [env.reset(seed=e)[0]], [], [], False
        while not ended:
            actions.append(len(actions) % 3 % 2)
            observation, reward, ended, _, _ = env.step(actions[-1])
            observations.append(observation)
            rewards.append(reward)
        last = np.arange(len(actions)) == len(actions) - 1
        context = {name: np.full(len(actions) + 1, value)
                   for name, value in zip(CARTPOLE.covariate_names, CARTPOLE.default_agent, strict=True)}
        buffers.append(minari.data_collector.EpisodeBuffer(
            observations=np.array(observations), actions=np.array(actions), rewards=np.array(rewards), terminations=last,
            truncations=np.zeros_like(last), infos={"context": context}))
    dataset = minari.create_dataset_from_buffers("gym/cartpole-v1", buffers, env="CartPole-v1")
    with pytest.raises(ValueError, match=r"gym/cartpole-v1: agent: expected the number of each episode's agent, got none; pass "
                                         r"agent=np.arange\(3\)"):
        from_minari(dataset, CARTPOLE)
    episodes = from_minari(dataset, CARTPOLE, agent=np.zeros(3, dtype=int))
    assert episodes.terminated.all()
    assert episodes.environment == "cartpole"
    assert from_minari(dataset, agent=np.arange(3)).environment == "CartPole-v1"


def names(e, parts):
    return {"infos": {"agent": np.arange(5 + e)}}


def nested(e, parts):
    return {"observations": {"x": parts["observations"]}}


def pairs(e, parts):
    return {"actions": np.zeros((4 + e, 2), dtype=int)}


@pytest.mark.parametrize(("change", "spaces_", "text"), [
    (nested, {"observations": spaces.Dict({"x": FLAT})}, "observations: expected one flat array, got Dict"),
    (pairs, {"actions": spaces.MultiDiscrete([2, 2])}, "actions: expected Discrete ones from 0 or one flat array, got MultiD"),
    (None, {"actions": spaces.Discrete(2, start=-1)}, "actions: expected Discrete ones from 0"),
    (second(observations=np.zeros((5, 3))), {}, r"observations: expected shape \(6, 3\) beside 5 actions in episode 1, got "
                                                r"\(5, 3\); leave it out"),
    (second(rewards=np.zeros(4)), {}, r"rewards: expected shape \(5,\) beside 5 actions in episode 1, got \(4,\)"),
    (second(terminations=np.zeros(6)), {}, r"terminations: expected shape \(5,\)"),
    (second(truncations=np.zeros((5, 1))), {}, r"truncations: expected shape \(5,\)"),
    (second(rewards=np.full(5, np.nan)), {}, "rewards: expected finite numbers, got others in 5 of 15 rows, the first at "
                                             "episode 1, step 0"),
    (second(observations=np.full((6, 3), np.inf)), {}, "observations: expected finite numbers, .* episode 1, step 0"),
    (second(terminations=np.ones(5)), {}, "terminated: expected True in the last step of an episode only, .* 1, step 0"),
    (second(truncations=np.arange(5) == 2), {}, "truncated: expected True in the last step of an episode only, .* 1, step 2"),
    (second(actions=np.full(5, 2)), {}, r"action: expected whole numbers 0\.\.1, got others in 5 of 15 rows"),
    (names, {}, "infos: expected one agent throughout an episode, got 5 in episode 0"),
    (second(infos={"agent": np.ones(6, dtype=int)}), {}, "agent: expected the number of each episode's agent, got none"),
    (lambda e, _: {"infos": {"agent": np.full(5 + e, 0.5)}}, {}, "agent: expected 3 whole numbers from 0, .* got float64"),
    (lambda e, _: {"infos": {"agent": np.full(5 + e, e), **({"context": {"mass": np.ones(5)}} if e == 0 else {})}}, {},
     "infos: expected a context with mass in every episode"),
])
def test_a_data_set_that_cannot_be_right_is_refused(change, spaces_, text):
    dataset, agent = foreign("theirs-v0", change, **spaces_), None if "agent" in text else np.arange(3)
    with pytest.raises(ValueError, match=f"theirs-v0: {text}") as refused:
        from_minari(dataset, agent=agent)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("agent", [np.arange(2), np.array([0, 1, -1]), np.array([0.0, 1, 2]), np.array(["a", "b", "c"])])
def test_agents_that_are_no_numbers_of_episodes_are_refused(agent):
    with pytest.raises(ValueError, match="theirs-v0: agent: expected 3 whole numbers from 0, one per episode, got"):
        from_minari(foreign(), agent=agent)


def test_what_the_environment_contradicts_is_refused():
    episodes = some(CARTPOLE)
    silent = replace(episodes, reward=np.zeros_like(episodes.reward))
    with pytest.raises(ValueError, match=r"cartpole/silent-v0: reward: expected cartpole's .* episode 0, step 0 \(0 for 1\)"):
        from_minari(to_minari("cartpole/silent-v0", silent, CARTPOLE), CARTPOLE)
    with pytest.raises(ValueError, match="environment: expected 'cartpole', whose data these are, got 'mountaincar'"):
        from_minari("cartpole/silent-v0", MOUNTAINCAR)
    with pytest.raises(ValueError, match="environment: expected 'cartpole', whose episodes these are, got 'mountaincar'"):
        to_minari("cartpole/other-v0", episodes, MOUNTAINCAR)


# ---- places


@pytest.mark.parametrize("name", ["cartpole/random", "../random-v0", "", "a b-v0"])
def test_names_that_minari_does_not_take_leave_nothing(folder, name):
    with pytest.raises(ValueError, match="dataset_id: expected one such as 'cartpole/random-v0', got"):
        to_minari(name, some(CARTPOLE, 2), CARTPOLE)
    assert not list(folder.rglob("*"))


def test_a_data_set_is_not_overwritten():
    episodes = some(CARTPOLE, 2)
    to_minari("cartpole/random-v0", episodes, CARTPOLE)
    with pytest.raises(ValueError, match="dataset_id: expected a new one, got 'cartpole/random-v0', which is in .*; raise its"):
        to_minari("cartpole/random-v0", replace(episodes, seed=9), CARTPOLE)
    assert from_minari("cartpole/random-v0").seed == 3


def test_what_would_not_come_back_is_not_written(folder):
    episodes = some(CARTPOLE)
    with pytest.raises(ValueError, match="next_state: expected each row's to be the following row's state"):
        to_minari("cartpole/random-v0", replace(episodes, next_state=episodes.state), CARTPOLE)
    assert not folder.exists()


def test_a_failed_write_leaves_no_half_of_a_data_set(monkeypatch):
    episodes = some(CARTPOLE)

    def full(*args, **options):
        raise OSError("No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episodes", full)
        with pytest.raises(ValueError, match="random-v0: expected a place that can be written, got 'No space left on device'"):
            to_minari("cartpole/random-v0", episodes, CARTPOLE)
    with pytest.raises(ValueError, match="cartpole/random-v0: expected a Minari data set on this machine, got none in"):
        from_minari("cartpole/random-v0")
    assert equal(from_minari(to_minari("cartpole/random-v0", episodes, CARTPOLE)), episodes)


def test_a_place_that_cannot_be_written_is_named(folder):
    folder.write_text("a file")
    with pytest.raises(ValueError, match="MINARI_DATASETS_PATH: expected a folder that can be written, got"):
        to_minari("cartpole/random-v0", some(CARTPOLE, 2), CARTPOLE)


def test_a_corrupt_data_set_is_refused(folder):
    to_minari("cartpole/random-v0", some(CARTPOLE, 5), CARTPOLE)
    for name in ("main_data.hdf5", "metadata.json"):
        path = folder / "cartpole" / "random-v0" / "data" / name
        whole = path.read_bytes()
        for keep in range(0, len(whole) - 1, len(whole) // 9):
            path.write_bytes(whole[:keep])
            with pytest.raises(ValueError, match="cartpole/random-v0: expected a Minari data set, got a corrupt or truncated"):
                from_minari("cartpole/random-v0")
        path.write_bytes(whole)


@pytest.mark.parametrize("package", ["minari", "h5py"])
def test_a_missing_package_is_named(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for call in (lambda: to_minari("cartpole/random-v0", some(CARTPOLE, 2), CARTPOLE),
                 lambda: from_minari("cartpole/random-v0")):
        with pytest.raises(ValueError, match=r"minari: expected the packages minari and h5py, got none; install them with pip "
                                             r"install 'lowrank_rl\[minari\]'"):
            call()
