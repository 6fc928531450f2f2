"""Logged episodes as a table, a row per step: a pandas DataFrame or a Parquet file, in and out.

Ours have the columns agent, episode, time, the state, the action, reward, terminated, truncated, next_<state> and the
covariates, and carry what else there is to know in ``DataFrame.attrs``, which Parquet keeps.

Foreign tables may leave out next_<state>: then the next row holds the next state, and an episode's last row, in which
action and reward are blank, the state that it reached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lowrank_rl import check
from lowrank_rl.files import whole
from lowrank_rl.rl.contracts import Box, Discrete, Environment
from lowrank_rl.rl.data import Episodes, check_episodes
from lowrank_rl.rl.formats import alignment
from lowrank_rl.rl.formats.rows import check_names, in_order

if TYPE_CHECKING:
    import pandas

SCHEMA = 1
ROLES = ("agent", "episode", "time", "reward", "terminated", "truncated")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; agent, time, reward, terminated, truncated and episode are called so."""
    state: Sequence[str]
    action: Sequence[str]
    covariates: Sequence[str] = ()                   # known properties of the agents; hidden from every learner
    actions: Discrete | Box | None = None            # their kind; None: one column of whole numbers is discrete

    def __post_init__(self) -> None:
        for name in ("state", "action", "covariates"):
            if isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: expected a list of columns, got {getattr(self, name)!r}; put it into [...]")
        names = [*self.state, *self.action, *self.covariates, *self.next_state, *ROLES]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice or not self.state or not self.action:
            raise ValueError("columns: expected at least one of the state and one of the action, and a name of its own for "
                             f"each, got {', '.join(map(repr, twice)) or 'none'}{' twice' if twice else ''}; rename them")

    @property
    def next_state(self) -> list[str]:
        """The columns of the state after the step."""
        return [f"next_{name}" for name in self.state]

    @classmethod
    def of(cls, environment: Environment) -> Columns:
        """Those of an environment, by its own names; its actions are ``action``, or ``action_0``, ``action_1``, ..."""
        return cls(environment.state_names, _action_names(environment.actions.size), environment.covariate_names,
                   environment.actions)


def to_frame(episodes: Episodes, columns: Columns | None = None) -> pandas.DataFrame:
    """A row per step. Without ``columns`` the state is called state_0, state_1, ...; ``Columns.of(environment)`` has names.

    Raises:
        ValueError: rows of an episode that do not follow each other, NaN or Inf, a name too few, or no pandas.
    """
    check_episodes(episodes)
    sizes = {"state": episodes.state.shape[1], "action": episodes.action.shape[1], "covariates": episodes.covariates.shape[1]}
    columns = columns or Columns([f"state_{i}" for i in range(sizes["state"])], _action_names(sizes["action"]),
                                 [f"covariate_{i}" for i in range(sizes["covariates"])])
    for name, size in sizes.items():
        if len(getattr(columns, name)) != size:
            raise ValueError(f"columns: expected {size} names of {name}, got {len(getattr(columns, name))}; name each")
    lengths, last = episodes.lengths, episodes.start[1:] - 1
    terminated, truncated = np.zeros((2, len(episodes.state)), dtype=bool)
    terminated[last], truncated[last] = episodes.terminated, ~episodes.terminated
    frame = _pandas().DataFrame({
        "agent": np.repeat(episodes.agent, lengths), "episode": np.repeat(np.arange(len(episodes)), lengths),
        "time": np.arange(len(episodes.state)) - np.repeat(episodes.start[:-1], lengths),
        **dict(zip(columns.state, episodes.state.T, strict=True)), **dict(zip(columns.action, episodes.action.T, strict=True)),
        "reward": episodes.reward, "terminated": terminated, "truncated": truncated,
        **dict(zip(columns.next_state, episodes.next_state.T, strict=True)),
        **dict(zip(columns.covariates, np.repeat(episodes.covariates, lengths, axis=0).T, strict=True))})
    about = {"schema": SCHEMA, "environment": episodes.environment, "policy": episodes.policy, "seed": episodes.seed,
             "columns": {name: list(getattr(columns, name)) for name in sizes}}
    frame.attrs["lowrank_rl"] = {**about, "digest": _digest(about)}
    return frame


def from_frame(frame: pandas.DataFrame, columns: Columns | None = None, *, environment: Environment | None = None,
               labels: Mapping[int, Any] | None = None) -> tuple[Episodes, dict[int, Any]]:
    """Episodes, and by which label the table calls each agent's number.

    Rows may come in any order. Labels are numbered 0, 1, ... as they sort, or as in ``labels`` of an earlier table; the
    numbers in a table of ours stay. Without a column ``episode`` each agent has one. ``time`` is a number or a date and
    grows by the same step everywhere. An episode that does not end in ``terminated`` was cut off.

    Args:
        columns: where things are; needed unless the table is ours or has the names of the environment.
        environment: if known, ends, rewards and actions are compared with it; a table without rewards gets its.

    Raises:
        ValueError: no data frame; a column is missing, blank, not numeric or contradicts the others; the table is empty; or
            its rows are not aligned (see ``alignment``).
    """
    if not hasattr(frame, "attrs"):
        raise ValueError(f"frame: expected a pandas DataFrame, got {type(frame).__name__}; pass pandas.DataFrame(...) of it")
    own = _about(frame, environment)
    columns = _columns(frame, columns, own, environment)
    chained = check_names(frame, columns.state, columns.action, columns.covariates, columns.next_state,
                          with_reward=environment is None)
    table, labels = in_order(frame, labels, keep=own is not None)
    state = table.numbers(columns.state)
    final = np.zeros_like(table.first) if chained else np.append(table.first[1:], True)      # rows without a step
    terminated, truncated = (table.flags(name, final) for name in ("terminated", "truncated"))
    if chained:
        next_state = table.numbers(columns.next_state)
    else:
        table.check_final([*columns.action, "reward"], final)
        next_state = np.roll(state, -1, axis=0)
        terminated, truncated = (flag | np.roll(flag & final, -1) for flag in (terminated, truncated))

    steps = table.where_true(~final)
    state, next_state, terminated, truncated = (x[~final] for x in (state, next_state, terminated, truncated))
    start = np.append(np.flatnonzero(steps.first), len(steps.first))
    kind = environment.actions if environment else columns.actions
    action = alignment.chosen(steps.actions(columns.action), kind, steps.name)
    reward = steps.numbers(["reward"])[:, 0] if "reward" in frame else \
        environment.reward(*map(torch.from_numpy, (state, action, next_state))).numpy()
    known = own or {"environment": environment.name if environment else "logged", "policy": "logged", "seed": 0}
    episodes = Episodes(known["environment"], known["policy"], known["seed"], steps.covariates(columns.covariates, start),
                        steps.agent[start[:-1]], start, state, action, next_state, reward,
                        alignment.ends(start, terminated, truncated, steps.name))
    alignment.check_chain(episodes, steps.name)
    if environment:
        alignment.check_environment(episodes, environment, steps.name)
    return episodes, labels


def to_parquet(path: str | Path, episodes: Episodes, columns: Columns | None = None) -> None:
    """``to_frame`` as a file with checksums, which appears whole or not at all.

    Raises:
        ValueError: as ``to_frame``, or the place cannot be written; an older file of that name is untouched.
    """
    frame = to_frame(episodes, columns)
    with whole(path) as partial:
        frame.to_parquet(partial, engine="pyarrow", index=False, write_page_checksum=True)


def from_parquet(path: str | Path, columns: Columns | None = None, *, environment: Environment | None = None,
                 labels: Mapping[int, Any] | None = None) -> tuple[Episodes, dict[int, Any]]:
    """``from_frame`` of a Parquet file.

    Raises:
        ValueError: as ``from_frame``; or no such file, a corrupt or truncated one, or no pandas with pyarrow.
    """
    path, pandas = Path(path), _pandas()
    check.file(path, "a parquet file")
    try:
        frame = pandas.read_parquet(path, engine="pyarrow", page_checksum_verification=True, partitioning=None)
    except (OSError, ValueError, LookupError, TypeError, NotImplementedError) as error:     # pyarrow's own are such
        raise ValueError(f"{path}: expected a parquet file, got a corrupt or truncated one ({str(error).splitlines()[0]}); "
                         "restore it or make it again") from error
    try:
        return from_frame(frame, columns, environment=environment, labels=labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _pandas() -> Any:
    try:
        import pandas  # here, because it is optional and takes its time
        import pyarrow.parquet  # noqa: F401 (what pandas reads and writes parquet with)
    except ImportError as error:
        raise ValueError("table: expected the packages pandas and pyarrow, got none; install them with "
                         "pip install 'lowrank_rl[table]'") from error
    return pandas


def _action_names(size: int) -> list[str]:
    return ["action"] if size == 1 else [f"action_{i}" for i in range(size)]


def _about(frame: pandas.DataFrame, environment: Environment | None) -> dict[str, Any] | None:
    """What ``to_frame`` noted, None in a foreign table."""
    about = frame.attrs.get("lowrank_rl")
    if about is None:
        return None
    if not isinstance(about, dict) or about.get("schema") != SCHEMA:
        raise ValueError(f"table: expected one of schema {SCHEMA}, got {about!r}; write it again")
    if about.get("digest") != _digest(about):      # Parquet has no checksum of these
        raise ValueError("table: expected its attrs as they were written, got others; write it again, and change Episodes "
                         "instead with dataclasses.replace")
    if environment and about["environment"] != environment.name:
        raise ValueError(f"environment: expected {about['environment']!r}, whose data these are, got {environment.name!r}; "
                         "pass that, or clear frame.attrs if they are not")
    return about


def _digest(about: dict[str, Any]) -> str:
    known = {name: value for name, value in about.items() if name != "digest"}
    return hashlib.blake2b(json.dumps(known, sort_keys=True).encode(), digest_size=8).hexdigest()


def _columns(frame: pandas.DataFrame, columns: Columns | None, own: dict[str, Any] | None,
             environment: Environment | None) -> Columns:
    """Where things are: as the caller says, as the table does, or by the environment's own names."""
    if columns or own:
        return columns or Columns(**own["columns"])
    if environment is None:
        raise ValueError("columns: expected the names of the state's and the action's columns, got none; pass "
                         "Columns(state=[...], action=[...])")
    columns = Columns.of(environment)
    return columns if any(name in frame for name in columns.covariates) else replace(columns, covariates=())
