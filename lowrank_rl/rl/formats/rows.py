"""A table of steps, sorted, its agents numbered; its columns as arrays, refused in the words of their owner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rl.formats.alignment import Where, refuse
from lowrank_rl.tensor.labels import coded, label_array, label_column, numbered
from lowrank_rl.tensor.observed import numbers

if TYPE_CHECKING:
    import pandas

EVEN = 0.01      # how far the time between two rows may be off, as a share
ENDS = ("done", "dones", "terminal", "terminals")      # columns that do not say which kind of end they mean
NUMBER_THEM = 'frame["episode"] = frame.groupby("agent")["time"].transform(lambda t: (t.diff() <= 0).cumsum())'
ADD_IT = {
    "time": 'add it: frame["time"] = frame.groupby("agent").cumcount(), if rows are in order and none is missing',
    "reward": 'add it; learning simulators needs none, so frame["reward"] = 0 * frame[<an action\'s column>] will do',
    "terminated": "add it: True in an episode's last step if that reached an end, False everywhere else",
}


@dataclass(frozen=True)
class Rows:
    """Rows of a table, episode after episode and step after step. Methods raise ValueError, naming column, row and remedy."""
    frame: pandas.DataFrame
    agent: np.ndarray      # (rows,) int64, each row's agent
    first: np.ndarray      # (rows,) bool, where an episode begins
    name: Where            # what the owner calls a row

    def where_true(self, chosen: np.ndarray) -> Rows:
        """Some of the rows. chosen: (rows,) bool"""
        places = np.flatnonzero(chosen)
        return Rows(self.frame[chosen], self.agent[chosen], self.first[chosen], lambda row: self.name(int(places[row])))

    def numbers(self, names: Sequence[str]) -> np.ndarray:
        """Columns as (rows, columns) float64."""
        array = np.empty((len(self.frame), len(names)))
        for i, name in enumerate(names):
            array[:, i] = numbers(f"column {name!r}", self.frame[name])
            refuse(~np.isfinite(array[:, i]), self.name, f"column {name!r}: expected finite numbers",
                   "repair them, or drop these rows and number what follows as another episode")
        return array

    def actions(self, names: Sequence[str]) -> np.ndarray:
        """(rows, A), as int64 if all columns hold whole numbers, or else as float64."""
        part = self.frame[list(names)]
        if all(dtype.kind in "biu" for dtype in part.dtypes) and not part.isna().to_numpy().any():
            return part.to_numpy(dtype=np.int64)
        for name in names:
            text = sorted({x for x in part[name].dropna() if isinstance(x, str)}) if part[name].dtype.kind not in "biuf" else []
            if text:
                known = ", ".join(f"{x!r}: {i}" for i, x in enumerate(text[:3])) + (", ..." if len(text) > 3 else "")
                raise ValueError(f"column {name!r}: expected numbers, got text such as {text[0]!r}; number the choices, "
                                 f"frame[{name!r}] = frame[{name!r}].map({{{known}}}), which leaves blanks blank")
        return self.numbers(names)

    def flags(self, name: str, final: np.ndarray) -> np.ndarray:
        """A column of True and False, (rows,). Blanks are False in final rows, a column that is not there everywhere."""
        if name not in self.frame:
            return np.zeros(len(self.frame), dtype=bool)
        blank = self.frame[name].isna().to_numpy()
        flag = np.zeros(len(self.frame))
        flag[~blank] = numbers(f"column {name!r}", self.frame[name][~blank])
        refuse((blank & ~final) | ~np.isin(flag, (0, 1)), self.name, f"column {name!r}: expected True or False", "say which")
        return flag == 1

    def covariates(self, names: Sequence[str], start: np.ndarray) -> np.ndarray:
        """Columns that hold one value throughout an episode, (E, columns)."""
        rows = self.numbers(names)
        covariates = rows[start[:-1]]
        for i, name in enumerate(names):
            refuse(rows[:, i] != np.repeat(covariates[:, i], np.diff(start)), self.name,
                   f"column {name!r}: expected one value throughout an episode", "what changes belongs to the state")
        return covariates

    def check_final(self, names: Sequence[str], final: np.ndarray) -> None:
        """Refuse actions and rewards in rows that hold only the state which an episode reached."""
        refuse(self.first & final, self.name, "episode: expected a step and the state that it led to, so two rows or more",
               "drop episodes of a single row")
        for name in names:
            if name in self.frame:
                refuse(final & self.frame[name].notna().to_numpy(), self.name,
                       f"column {name!r}: expected a blank in an episode's last row, which holds the state reached",
                       "blank it if what followed is unknown, add a row if it is known, or shift the column if it belongs "
                       "to the step before")


def check_names(frame: pandas.DataFrame, state: Sequence[str], action: Sequence[str], covariates: Sequence[str],
                next_state: Sequence[str], *, with_reward: bool) -> bool:
    """Refuse a table without rows or without a column that it needs; whether it has those of ``next_state``."""
    if len(frame) == 0:
        raise ValueError("table: expected a row per step, got none")
    if not frame.columns.is_unique:
        raise ValueError(f"columns: expected different names, got {frame.columns[frame.columns.duplicated()][0]!r} twice; "
                         "rename one")
    for name in ENDS:
        if name in frame and "terminated" not in frame:
            raise ValueError("columns: expected 'terminated' (an end was reached) and 'truncated' (a limit cut the episode "
                             f"off), got {name!r}, which may mean either; split it")
    chained = any(name in frame for name in next_state)
    needed = ["agent", "time", *state, *action, *covariates, "terminated", *(["reward"] if with_reward else []),
              *(next_state if chained else [])]
    for name in needed:
        if name not in frame:
            raise ValueError(f"columns: expected {', '.join(map(repr, needed))}, got none called {name!r}; "
                             f"{ADD_IT.get(name, 'rename yours, or say in Columns(...) what it is called')}")
    return chained


def in_order(frame: pandas.DataFrame, labels: Mapping[int, Any] | None, *, keep: bool) -> tuple[Rows, dict[int, Any]]:
    """The rows sorted by episode, agent and time, and the labels of the agents' numbers.

    Numbers stay if ``keep`` and they are whole; labels get theirs from ``labels``, or else as they sort.
    """
    agent, labels = _numbers_of_agents(label_column("column 'agent'", frame["agent"]), labels, keep)
    time, episode = _times(frame["time"]), np.zeros_like(agent)
    if "episode" in frame:
        name = "column 'episode'"
        _, episode = numbered(name, [coded(name, label_column(name, frame["episode"]))])
    order = np.lexsort((time, agent, episode))
    frame, agent, episode, time = frame.iloc[order], agent[order], episode[order], time[order]

    def name_of(row: int) -> str:
        within = f", episode {frame['episode'].iloc[row]}" if "episode" in frame else ""
        return f"agent {labels[int(agent[row])]!r}{within}, time {frame['time'].iloc[row]}"

    follows = np.append(False, (agent[1:] == agent[:-1]) & (episode[1:] == episode[:-1]))
    passed = np.diff(time, prepend=time[0])
    refuse(follows & (passed == 0), name_of, "agent, episode and time: expected each row to differ in one of them",
           f"drop what is there twice, or if time starts anew, number the episodes: {NUMBER_THEM}")
    step = passed[follows].min(initial=np.inf)
    refuse(follows & (np.abs(passed - step) > EVEN * step), name_of, f"time: expected steps of {step:g} each",
           "number what follows a gap as another episode; if no step is missing, number the steps 0, 1, 2, ...")
    return Rows(frame, agent, ~follows, name_of), labels


def _numbers_of_agents(column: np.ndarray, labels: Mapping[int, Any] | None, keep: bool) -> tuple[np.ndarray, dict[int, Any]]:
    """The number of each row's agent, (rows,), and what each number is called."""
    name = "column 'agent'"
    parts = [coded(name, column)]
    if labels is None and keep and column.dtype.kind == "i" and column.min() >= 0:
        labels = {number: number for number in parts[0][0].tolist()}
    if labels is None:
        known, code = numbered(name, parts)
        return code, dict(enumerate(known.tolist()))
    known, number = label_array("labels", list(labels.values())), np.array(list(labels), dtype=np.int64)
    return number[numbered(name, parts, known)[1]], dict(labels)


def _times(column: pandas.Series) -> np.ndarray:
    """(rows,) float64; dates in seconds from the first."""
    array = column.to_numpy("datetime64[ns]") if column.dtype.kind == "M" else np.asarray(column)
    if array.dtype.kind in "mM":
        array = (array - np.fmin.reduce(array)) / np.timedelta64(1, "s")      # NaN where a date is missing
    time = numbers("column 'time'", array)
    check.finite("column 'time'", time)
    return time
