"""Episodes as tables: ours come back bit for bit, those of others are understood or refused in one sentence."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from logged import CARTPOLE, HALFCHEETAH, MOUNTAINCAR, equal, fakes, some

from lowrank_rl.rl.contracts import Box, Discrete
from lowrank_rl.rl.data import load, save
from lowrank_rl.rl.formats.rows import NUMBER_THEM
from lowrank_rl.rl.formats.table import Columns, from_frame, from_parquet, to_frame, to_parquet

PATIENT = Columns(state=["pulse"], action=["dose"], actions=Discrete(2))


def put(name, row, value):
    """A change of one cell."""
    def change(frame):
        frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value
        return frame
    return change


def visits():
    """Two patients as a ward would log them: what was measured and given at each visit, the last one without treatment."""
    return pd.DataFrame({
        "agent": ["Zoe", "Adam", "Zoe", "Adam", "Zoe"], "time": pd.to_datetime([f"2024-05-0{day}" for day in (1, 8, 2, 9, 3)]),
        "pulse": [70, 90, 75, 92, 80], "dose": [0, 1, 1, None, None], "reward": [1.0, 0.5, 2.0, None, None],
        "terminated": [False, False, False, False, True], "nurse": list("abcde")})


def complete():
    """The same with everything in each step's own row."""
    return pd.DataFrame({
        "agent": ["Zoe", "Adam", "Zoe"], "time": [0, 0, 1], "pulse": [70.0, 90.0, 75.0], "next_pulse": [75.0, 92.0, 80.0],
        "dose": [0, 1, 1], "reward": [1.0, 0.5, 2.0], "terminated": [False, False, True]})


# ---- ours


@pytest.mark.parametrize(("environment", "steps"), [(MOUNTAINCAR, 40), (CARTPOLE, 40), (HALFCHEETAH, 6)])
def test_parquet_gives_back_every_bit(tmp_path, environment, steps):
    episodes = some(environment, steps)
    for columns in (None, Columns.of(environment)):
        to_parquet(tmp_path / "ours.parquet", episodes, columns)
        for known in (None, environment):
            again, labels = from_parquet(tmp_path / "ours.parquet", environment=known)
            assert equal(again, episodes)
            assert labels == {0: 0, 2: 2, 5: 5}
    assert [path.name for path in tmp_path.iterdir()] == ["ours.parquet"]      # nothing partial stays behind
    save(tmp_path / "again.npz", again)
    assert equal(load(tmp_path / "again.npz"), episodes)


@settings(max_examples=60, deadline=None)
@given(fakes(), st.randoms())
def test_a_frame_gives_back_every_bit_in_any_order_of_its_rows(episodes, random):
    frame = to_frame(episodes)
    assert equal(from_frame(frame)[0], episodes)
    order = list(range(len(frame)))
    random.shuffle(order)
    assert equal(from_frame(frame.iloc[order])[0], episodes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


@settings(max_examples=15, deadline=None)
@given(fakes())
def test_parquet_gives_back_any_episodes(folder, episodes):
    to_parquet(folder / "fake.parquet", episodes)
    assert equal(from_parquet(folder / "fake.parquet")[0], episodes)


def test_another_reader_finds_every_step(tmp_path):
    """Pandas and pyarrow alone, against a loop over the episodes."""
    episodes = some(CARTPOLE)
    to_parquet(tmp_path / "ours.parquet", episodes, Columns.of(CARTPOLE))
    frame = pd.read_parquet(tmp_path / "ours.parquet")
    rows = []
    for e, (begin, end) in enumerate(zip(episodes.start[:-1], episodes.start[1:], strict=True)):
        for row in range(begin, end):
            last = row == end - 1
            rows.append([episodes.agent[e], e, row - begin, *episodes.state[row], episodes.action[row, 0], episodes.reward[row],
                         last and episodes.terminated[e], last and not episodes.terminated[e], *episodes.next_state[row],
                         *episodes.covariates[e]])
    names = ["agent", "episode", "time", "x", "x_dot", "theta", "theta_dot", "action", "reward", "terminated", "truncated",
             "next_x", "next_x_dot", "next_theta", "next_theta_dot", "force", "length"]
    pd.testing.assert_frame_equal(frame, pd.DataFrame(rows, columns=names), check_exact=True)
    schema = pq.read_schema(tmp_path / "ours.parquet")
    assert [str(schema.field(name).type) for name in ("agent", "action", "x", "terminated")] == \
        ["int64", "int64", "double", "bool"]


def test_a_part_of_our_table_is_a_table():
    frame = to_frame(some(MOUNTAINCAR))
    part, labels = from_frame(frame[(frame["agent"] == 5) & (frame["time"] < 7)])
    assert part.agent.tolist() == [5, 5]
    assert labels == {5: 5}
    assert part.lengths.tolist() == [7, 7]
    assert not part.terminated.any()
    assert (part.environment, part.policy, part.seed) == ("mountaincar", "random", 3)


@pytest.mark.parametrize(("change", "text"), [
    ({"next_state": lambda x: x + 1}, "next_state: expected each row's to be the following row's state"),
    ({"reward": lambda x: x * np.nan}, "reward: .* values are NaN or Inf"),
])
def test_what_would_not_come_back_is_not_written(tmp_path, change, text):
    episodes = some(CARTPOLE)
    broken = replace(episodes, **{name: edit(getattr(episodes, name)) for name, edit in change.items()})
    with pytest.raises(ValueError, match=text):
        to_parquet(tmp_path / "broken.parquet", broken)
    with pytest.raises(ValueError, match="columns: expected 4 names of state, got 2; name each"):
        to_parquet(tmp_path / "broken.parquet", episodes, Columns.of(MOUNTAINCAR))
    assert not list(tmp_path.iterdir())


# ---- those of others


def test_visits_become_steps():
    episodes, labels = from_frame(visits(), PATIENT)
    assert labels == {0: "Adam", 1: "Zoe"}
    assert episodes.agent.tolist() == [0, 1]
    assert episodes.start.tolist() == [0, 1, 3]
    assert episodes.state.tolist() == [[90], [70], [75]]
    assert episodes.next_state.tolist() == [[92], [75], [80]]
    assert episodes.action.tolist() == [[1], [0], [1]]
    assert episodes.action.dtype == np.int64
    assert episodes.reward.tolist() == [0.5, 1, 2]
    assert episodes.terminated.tolist() == [False, True]
    assert episodes.covariates.shape == (2, 0)
    assert (episodes.environment, episodes.policy, episodes.seed) == ("logged", "logged", 0)
    episodes.transitions().action.add_(0)      # arrays of our own, which torch may write to


def test_an_end_may_be_told_of_the_step_or_of_the_state_reached():
    expected, _ = from_frame(visits(), PATIENT)
    for row, final in ((2, False), (2, None), (2, True)):
        frame = put("terminated", row, True)(put("terminated", 4, final)(visits()))
        assert equal(from_frame(frame, PATIENT)[0], expected)


def test_complete_rows_say_the_same_as_visits():
    assert equal(from_frame(complete(), PATIENT)[0], from_frame(visits(), PATIENT)[0])


@settings(max_examples=60, deadline=None)
@given(fakes())
def test_any_episodes_are_understood_without_next_states(episodes):
    """An independent writer: a loop that puts down what is seen, then what is done."""
    rows = []
    for e, (begin, end) in enumerate(zip(episodes.start[:-1], episodes.start[1:], strict=True)):
        for row in range(begin, end):
            rows.append([e, episodes.agent[e], 0.02 * (row - begin), *episodes.state[row], *episodes.action[row],
                         episodes.reward[row], False])
        blanks = [pd.NA] * episodes.action.shape[1]
        rows.append([e, episodes.agent[e], 0.02 * (end - begin), *episodes.next_state[end - 1], *blanks, pd.NA,
                     episodes.terminated[e]])
    names = [f"a{i}" for i in range(episodes.action.shape[1])]
    frame = pd.DataFrame(rows, columns=["episode", "agent", "time", "x", "y", *names, "reward", "terminated"])
    frame = frame.astype(dict.fromkeys(names, "Int64" if episodes.action.dtype == np.int64 else "Float64"))
    again, labels = from_frame(frame.sample(frac=1, random_state=0), Columns(["x", "y"], names))
    for name in ("start", "state", "action", "next_state", "reward", "terminated"):
        assert np.array_equal(getattr(again, name), getattr(episodes, name)), name
        assert getattr(again, name).dtype == getattr(episodes, name).dtype
    assert [labels[n] for n in again.agent.tolist()] == episodes.agent.tolist()


@pytest.mark.parametrize("names", [("b-7", "a-1"), (907, 12), (pd.Timestamp(2020, 1, 2), pd.Timestamp(2019, 1, 2)), (2.5, 1.0)])
def test_agents_of_any_name_are_numbered_as_they_sort(names):
    frame = complete()
    frame["agent"] = frame["agent"].map({"Zoe": names[0], "Adam": names[1]})
    episodes, labels = from_frame(frame, PATIENT)
    assert episodes.agent.tolist() == [0, 1]
    assert list(labels) == [0, 1]
    assert from_frame(frame[frame["agent"] == names[0]], PATIENT, labels=labels)[0].agent.tolist() == [1]
    frame["agent"] = frame["agent"].astype("category")
    assert equal(from_frame(frame, PATIENT)[0], episodes)


def test_a_later_table_is_numbered_as_an_earlier_one():
    _, labels = from_frame(complete(), PATIENT)
    later = complete().replace({"agent": {"Zoe": "Bert"}})
    with pytest.raises(ValueError, match="column 'agent': unknown label 'Bert'; known: Adam, Zoe"):
        from_frame(later, PATIENT, labels=labels)
    episodes, same = from_frame(later, PATIENT, labels={7: "Bert", 3: "Zoe", 9: "Adam"})
    assert episodes.agent.tolist() == [7, 9]
    assert same == {7: "Bert", 3: "Zoe", 9: "Adam"}


def test_several_episodes_of_an_agent_need_a_number_each():
    frame = pd.concat([complete(), complete()], ignore_index=True)
    with pytest.raises(ValueError, match="expected each row to differ .* the first at agent 'Adam', time 0; drop what is there "
                                         "twice, or if time starts anew, number the episodes: frame"):
        from_frame(frame, PATIENT)
    exec(NUMBER_THEM, {"frame": frame})      # the remedy works as printed, with agents mixed, too
    assert frame["episode"].tolist() == [0, 0, 0, 1, 1, 1]
    episodes, _ = from_frame(frame, PATIENT)
    assert episodes.agent.tolist() == [0, 1, 0, 1]
    assert episodes.lengths.tolist() == [1, 2, 1, 2]


@pytest.mark.parametrize("times", [
    [0.1, 7.0, 0.12], [0, 0, 6], [-1, 0, 5], pd.to_timedelta([0, 5, 1], unit="h"),
    pd.to_datetime(["2024-03-31 01:00", "2024-01-01 00:00", "2024-03-31 02:00"]).tz_localize("UTC").tz_convert("Europe/Rome"),
])
def test_times_are_numbers_or_dates_in_even_steps(times):
    assert equal(from_frame(complete().assign(time=times), PATIENT)[0], from_frame(complete(), PATIENT)[0])


def test_no_rewards_can_be_said_in_a_line():
    for table in (visits(), complete()):
        table["reward"] = 0 * table["dose"]
        assert from_frame(table, PATIENT)[0].reward.tolist() == [0, 0, 0]


def test_kinds_of_actions():
    frame = complete()
    assert from_frame(frame, Columns(["pulse"], ["dose"]))[0].action.dtype == np.int64
    assert from_frame(frame.astype({"dose": bool}), PATIENT)[0].action.tolist() == [[1], [0], [1]]
    assert from_frame(frame, replace(PATIENT, actions=Box(0.0, 5.0, 1)))[0].action.dtype == np.float64
    assert from_frame(frame.assign(more=0.5), Columns(["pulse"], ["dose", "more"]))[0].action.tolist()[0] == [1, 0.5]


def test_covariates_are_one_value_per_episode():
    columns = replace(PATIENT, covariates=["age"])
    frame = complete().assign(age=[30.0, 40.0, 30.0])
    assert from_frame(frame, columns)[0].covariates.tolist() == [[40], [30]]
    with pytest.raises(ValueError, match="column 'age': expected one value throughout an episode, got others in 1 of 3 rows, "
                                         "the first at agent 'Zoe', time 1; what changes belongs to the state"):
        from_frame(frame.assign(age=[30.0, 40.0, 31.0]), columns)


# ---- of a known environment


@pytest.mark.parametrize("environment", [MOUNTAINCAR, CARTPOLE])
def test_a_foreign_log_of_a_known_environment_needs_no_columns_no_rewards_and_no_covariates(environment):
    episodes = some(environment)
    frame = to_frame(episodes, Columns.of(environment)).drop(columns=["reward", *environment.covariate_names])
    frame.attrs.clear()
    again, labels = from_frame(frame, environment=environment)
    assert labels == {0: 0, 1: 2, 2: 5}      # whole numbers of others are labels
    assert equal(again, replace(episodes, policy="logged", seed=0, agent=np.array([0, 2, 1, 2]), covariates=np.empty((4, 0))))


def test_float32_logs_pass():
    for environment in (MOUNTAINCAR, CARTPOLE, HALFCHEETAH):
        frame = to_frame(some(environment, 6), Columns.of(environment))
        numbers = frame.select_dtypes("float64").columns
        again, _ = from_frame(frame.astype(dict.fromkeys(numbers, np.float32)), environment=environment)
        assert again.state.dtype == np.float64


def test_another_environment_s_table_is_refused():
    with pytest.raises(ValueError, match="environment: expected 'cartpole', whose data these are, got 'mountaincar'"):
        from_frame(to_frame(some(CARTPOLE)), environment=MOUNTAINCAR)
    frame = to_frame(some(CARTPOLE))
    frame.attrs["lowrank_rl"]["schema"] = 2
    with pytest.raises(ValueError, match="table: expected one of schema 1, got {'schema': 2"):
        from_frame(frame)
    frame = to_frame(some(CARTPOLE))
    frame.attrs["lowrank_rl"]["seed"] = 4
    with pytest.raises(ValueError, match="table: expected its attrs as they were written, got others; write it again"):
        from_frame(frame)


# ---- refusals


def drop(name):
    return lambda frame: frame.drop(columns=name)


def gap(frame):
    return pd.concat([frame, frame.iloc[[2]].assign(time=3, pulse=80.0)])


@pytest.mark.parametrize(("table", "change", "text"), [
    (complete, lambda f: f.iloc[:0], "table: expected a row per step, got none"),
    (complete, drop("pulse"), r"columns: expected 'agent', .*, got none called 'pulse'; rename yours, or say in Columns\("),
    (complete, drop("agent"), "got none called 'agent'"),
    (complete, drop("time"), r"got none called 'time'; add it: frame\[.time.\] = .*cumcount\(\)"),
    (complete, drop("reward"), r"got none called 'reward'; add it; learning .*, so frame\[.reward.\] = 0 \* frame\["),
    (complete, drop("terminated"), "got none called 'terminated'; add it: True in an episode's last step"),
    (complete, lambda f: f.rename(columns={"terminated": "done"}),
     "'terminated' .* and 'truncated' .*, got 'done', which may mean either; split it"),
    (complete, lambda f: pd.concat([f, f["pulse"]], axis=1), "columns: expected different names, got 'pulse' twice"),
    (complete, put("pulse", 2, np.nan), "column 'pulse': expected finite numbers, got others in 1 of 3 rows, the first at "
                                        "agent 'Zoe', time 1; repair them, or drop"),
    (complete, put("next_pulse", 0, np.inf), "column 'next_pulse': expected finite numbers, .* agent 'Zoe', time 0"),
    (complete, put("reward", 1, np.nan), "column 'reward': expected finite numbers, .* agent 'Adam', time 0"),
    (complete, put("dose", 1, None), "column 'dose': expected finite numbers, .* agent 'Adam', time 0"),
    (complete, put("pulse", 2, "75"), "column 'pulse': expected real numbers, got dtype object"),
    (complete, lambda f: f.astype({"pulse": str}), "column 'pulse': expected real numbers"),
    (complete, put("agent", 2, None), "column 'agent': expected a label in each row, got 1 without"),
    (complete, put("agent", 2, 7), "column 'agent': expected labels that sort, got int, str"),
    (complete, put("time", 2, np.nan), "column 'time': 1 of 3 values are NaN or Inf"),
    (complete, put("time", 2, "1"), "column 'time': expected real numbers"),
    (visits, lambda f: f.assign(time=f["time"].mask(f.index == 4)), "column 'time': 1 of 5 values are NaN or Inf"),
    (complete, put("time", 2, 0), "agent, episode and time: expected each row to differ in one of them, got others in 1 of 3"),
    (complete, gap, "time: expected steps of 1 each, got others in 1 of 4 rows, the first at agent 'Zoe', time 3; number what "
                    "follows a gap"),
    (complete, put("next_pulse", 0, 75.5), "next_state: expected the state of the episode's next step, got others in 1 of 3 "
                                           "rows, the first at agent 'Zoe', time 0; number what follows a gap as another"),
    (complete, put("terminated", 0, True), "terminated: expected True in the last step of an episode only, got others in 1 of "
                                           "3 rows, the first at agent 'Zoe', time 0; number what follows"),
    (visits, put("terminated", 0, True), "terminated: expected True in the last step of an episode only"),
    (complete, lambda f: f.assign(truncated=[True, True, False]), "truncated: expected True in the last step of an episode"),
    (complete, put("terminated", 2, None), "column 'terminated': expected True or False, got others in 1 of 3 rows"),
    (complete, put("terminated", 2, 2), "column 'terminated': expected True or False"),
    (complete, lambda f: f.assign(terminated=["no", "no", "yes"]), "column 'terminated': expected real numbers"),
    (complete, put("dose", 1, 2), r"action: expected whole numbers 0\.\.1, got others in 1 of 3 rows, .* agent 'Adam'"),
    (complete, put("dose", 1, -1), r"action: expected whole numbers 0\.\.1"),
    (complete, put("dose", 1, 0.5), r"action: expected whole numbers 0\.\.1, .*; number the choices from 0"),
    (visits, put("dose", 4, 1), "column 'dose': expected a blank in an episode's last row, which holds the state reached, got "
                                "others in 1 of 5 rows, the first at agent 'Zoe', time 2024-05-03 00:00:00; blank it if"),
    (visits, put("reward", 3, 1), "column 'reward': expected a blank .* or shift the column if it belongs to the step before"),
    (visits, put("dose", 2, None), "column 'dose': expected finite numbers, .* agent 'Zoe', time 2024-05-02"),
    (visits, lambda f: f.iloc[[0, 1, 3]], "episode: expected a step and the state that it led to, .* agent 'Zoe'"),
])
def test_a_table_that_cannot_be_right_is_refused(table, change, text):
    frame = table()
    before = frame.copy()
    with pytest.raises(ValueError, match=text) as refused:
        from_frame(change(frame.copy()), PATIENT)
    assert "\n" not in str(refused.value)
    pd.testing.assert_frame_equal(frame, before)


def test_columns_that_cannot_be_right_are_refused():
    with pytest.raises(ValueError, match=r"columns: expected the names of the state's .*; pass Columns\(state="):
        from_frame(complete())
    with pytest.raises(ValueError, match=r"state: expected a list of columns, got 'pulse'; put it into \[\.\.\.\]"):
        Columns("pulse", ["dose"])
    with pytest.raises(ValueError, match="columns: expected at least one .*, got 'dose' twice; rename them"):
        Columns(["pulse", "dose"], ["dose"])
    with pytest.raises(ValueError, match="got 'time' twice"):
        Columns(["pulse", "time"], ["dose"])
    with pytest.raises(ValueError, match="columns: expected at least one of the state and one of the action"):
        Columns(["pulse"], [])
    with pytest.raises(ValueError, match="action: expected 2 components, got 1"):
        from_frame(complete(), replace(PATIENT, actions=Box(0.0, 1.0, 2)))
    with pytest.raises(ValueError, match=r"action: expected numbers in \[0, 0.5\], .*; rescale or clip them"):
        from_frame(complete(), replace(PATIENT, actions=Box(0.0, 0.5, 1)))


# ---- files


@pytest.fixture
def saved(tmp_path):
    """A file and what is in it."""
    episodes = some(CARTPOLE, 5)
    to_parquet(tmp_path / "deep" / "ours.parquet", episodes)
    return tmp_path / "deep" / "ours.parquet", episodes


def test_a_foreign_file_is_read_and_named_in_refusals(tmp_path):
    path = tmp_path / "ward.parquet"
    visits().to_parquet(path)
    assert equal(from_parquet(path, PATIENT)[0], from_frame(visits(), PATIENT)[0])
    visits().drop(columns="pulse").to_parquet(path)
    with pytest.raises(ValueError, match=r"ward.parquet: columns: expected .*, got none called 'pulse'"):
        from_parquet(path, PATIENT)


def test_files_that_are_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.parquet: expected a parquet file, got no such file"):
        from_parquet(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("agent,time\n0,1\n")
    with pytest.raises(ValueError, match=r"text.parquet: expected a parquet file, got a corrupt or truncated one"):
        from_parquet(tmp_path / "text.parquet")


def test_a_truncated_file_is_refused_wherever_it_is_cut(saved):
    path, _ = saved
    whole = path.read_bytes()
    for keep in range(0, len(whole), 97):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"ours.parquet: expected a parquet file, got a corrupt or truncated one"):
            from_parquet(path)


def test_a_flipped_bit_changes_nothing_silently(saved):
    path, episodes = saved
    whole = path.read_bytes()
    refused = 0
    for bit in np.random.default_rng(0).integers(8 * len(whole), size=300).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert equal(from_parquet(path)[0], episodes)
        except ValueError as error:
            assert "ours.parquet: " in str(error)      # noqa: PT017 (many bits, not all do harm)
            refused += 1
    assert refused > 150


def test_a_failed_write_leaves_the_old_file(saved, monkeypatch):
    path, episodes = saved

    def full(*args, **options):
        raise OSError("No space left on device")
    for place in ("os.replace", "pyarrow.parquet.write_table"):
        with monkeypatch.context() as patch:
            patch.setattr(place, full)
            with pytest.raises(ValueError, match=r"ours.parquet: expected a place that can be written, got 'No space left"):
                to_parquet(path, replace(episodes, seed=99))
        assert equal(from_parquet(path)[0], episodes)
        assert [p.name for p in path.parent.iterdir()] == ["ours.parquet"]


@pytest.mark.parametrize("package", ["pandas", "pyarrow.parquet"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    for call in (lambda: to_parquet(tmp_path / "x.parquet", some(CARTPOLE, 2)), lambda: from_parquet(tmp_path / "x.parquet")):
        with pytest.raises(ValueError, match=r"table: expected the packages pandas and pyarrow, got none; install them with "
                                             r"pip install 'lowrank_rl\[table\]'"):
            call()


@pytest.mark.parametrize("kind", [object, "category", "string"])
def test_choices_by_name_are_refused_with_numbers_for_them(kind):
    """The last rows' blanks stay: the rows hold the states that were reached."""
    frame = visits().assign(dose=pd.Series(["none", "pill", "pill", None, None], dtype=kind))
    with pytest.raises(ValueError, match=r"column 'dose': expected numbers, got text such as 'none'; number the ch") as told:
        from_frame(frame, PATIENT)
    exec(str(told.value).split("choices, ")[1].split(", which")[0], {"frame": frame})
    assert from_frame(frame, PATIENT)[0].action.tolist() == from_frame(visits(), PATIENT)[0].action.tolist()


def test_what_is_no_frame_is_refused():
    with pytest.raises(ValueError, match=r"frame: expected a pandas DataFrame, got dict; pass pandas.DataFrame\(...\) of it"):
        from_frame({"agent": [0], "state_0": [1.0]})
