"""Logged episodes as a Minari data set, the format of the Farama Foundation's offline RL, in and out.

Minari keeps T + 1 observations for T actions, and data sets below ``MINARI_DATASETS_PATH`` (else ``~/.minari/datasets``).
An episode's agent and covariates are its infos ``agent`` and ``context``, the latter as our Gymnasium environments tell it:
infos are what survives when data sets are filtered or combined. Minari's ``seed`` of an episode is that of ``reset``;
ours names the random streams of the whole data set, so it stands in the metadata of that.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces

from lowrank_rl.rl import envs  # noqa: F401 (makes our environments known to Gymnasium)
from lowrank_rl.rl.contracts import Box, Discrete, Environment
from lowrank_rl.rl.data import Episodes, check_episodes
from lowrank_rl.rl.formats import alignment
from lowrank_rl.rl.formats.alignment import refuse

if TYPE_CHECKING:
    import minari


def to_minari(dataset_id: str, episodes: Episodes, environment: Environment) -> minari.MinariDataset:
    """Write a data set called ``dataset_id``, such as "cartpole/random-v0".

    Raises:
        ValueError: another environment's episodes, rows of an episode that do not follow each other, NaN or Inf, a name
            that Minari does not take or has already, a place that cannot be written, or no minari with h5py.
    """
    minari = _minari()
    check_episodes(episodes)
    if episodes.environment != environment.name:
        raise ValueError(f"environment: expected {episodes.environment!r}, whose episodes these are, got {environment.name!r}")
    kind = environment.actions
    action_space = spaces.Discrete(kind.n) if isinstance(kind, Discrete) else \
        spaces.Box(kind.low, kind.high, (kind.size,), np.float64)      # the environment's own is float32, which would round
    folder = _free_folder(dataset_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)      # asks for author, e-mail and link
            dataset = minari.create_dataset_from_buffers(
                dataset_id, [minari.data_collector.EpisodeBuffer(**_arrays(episodes, e, environment))
                             for e in range(len(episodes))], env=environment.gym_id,
                action_space=action_space, algorithm_name=episodes.policy,
                description=f"{len(episodes)} episodes of agents that differ in {' and '.join(environment.covariate_names)}")
        dataset.storage.update_metadata({"lowrank_rl": {"environment": episodes.environment, "seed": episodes.seed,
                                                        "covariates": environment.covariate_names}})
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)      # a data set in pieces would pass for a whole one
        if isinstance(error, OSError):
            raise ValueError(f"{folder}: expected a place that can be written, got '{error}'; make room, or set "
                             "MINARI_DATASETS_PATH to another") from error
        raise
    return dataset


def from_minari(dataset: str | minari.MinariDataset, environment: Environment | None = None, *,
                agent: np.ndarray | None = None) -> Episodes:
    """Episodes of a data set, or of the name of one on this machine.

    Args:
        environment: if known, ends, rewards and actions are compared with it.
        agent: (E,) the number of each episode's agent, for a data set that does not say; ``np.arange(E)`` if each is another.

    Raises:
        ValueError: no such data set, corrupt or truncated, without episodes, or not aligned (see ``alignment``);
            observations or actions that are not one flat array; unknown agents; no minari with h5py.
    """
    minari = _minari()
    name = dataset if isinstance(dataset, str) else dataset.id
    if isinstance(dataset, str) and not (_folder(dataset) / "data").is_dir():
        raise ValueError(f"{dataset}: expected a Minari data set on this machine, got none in {_folder(dataset)}; get it with "
                         f"minari.download_dataset({dataset!r})")
    try:
        dataset = minari.load_dataset(dataset) if isinstance(dataset, str) else dataset
        metadata, logged = dataset.storage.metadata, list(dataset.iterate_episodes())
    except (OSError, ValueError, KeyError, TypeError, AssertionError, RuntimeError, MemoryError) as error:
        raise ValueError(f"{name}: expected a Minari data set, got a corrupt or truncated one ('{error}'); get or make it "
                         "again") from error
    try:
        return _episodes(dataset, metadata, logged, environment, agent)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _episodes(dataset: minari.MinariDataset, metadata: dict[str, Any], logged: list[minari.EpisodeData],
              environment: Environment | None, agent: np.ndarray | None) -> Episodes:
    own = metadata.get("lowrank_rl", {})
    if environment and own and own.get("environment") != environment.name:
        raise ValueError(f"environment: expected {own.get('environment')!r}, whose data these are, got {environment.name!r}")
    if not logged:
        raise ValueError("episodes: expected at least one, got none")
    kind = environment.actions if environment else _kind(dataset.action_space)
    start = np.concatenate([[0], np.cumsum(_lengths(logged, dataset.observation_space, kind))])

    def name(row: int) -> str:
        e = int(np.searchsorted(start, row, side="right")) - 1
        return f"episode {logged[e].id}, step {row - start[e]}"

    state, next_state, action, reward = (
        np.concatenate([np.asarray(getattr(one, what))[steps] for one in logged]).reshape(start[-1], -1)
        for what, steps in (("observations", slice(-1)), ("observations", slice(1, None)), ("actions", slice(None)),
                            ("rewards", slice(None))))
    for what, array in (("observations", state), ("observations", next_state), ("actions", action), ("rewards", reward)):
        refuse(~np.isfinite(array).all(axis=1), name, f"{what}: expected finite numbers", "leave such episodes out")
    terminated, truncated = (np.concatenate([getattr(one, what) for one in logged]).astype(bool)
                             for what in ("terminations", "truncations"))
    named = own.get("environment") or (dataset.env_spec.id if dataset.env_spec else dataset.id)
    episodes = Episodes(
        environment.name if environment else named, metadata.get("algorithm_name", "logged"), own.get("seed", 0),
        _covariates(logged, own, environment), _agents(logged, agent), start, state.astype(np.float64),
        alignment.chosen(action, kind, name), next_state.astype(np.float64), reward[:, 0].astype(np.float64),
        alignment.ends(start, terminated, truncated, name))
    if environment:
        alignment.check_environment(episodes, environment, name)
    return episodes


def _arrays(episodes: Episodes, e: int, environment: Environment) -> dict[str, Any]:
    """Episode e as Minari takes it."""
    rows, steps = slice(episodes.start[e], episodes.start[e + 1]), int(episodes.lengths[e])
    last, action = np.arange(steps) == steps - 1, episodes.action[rows]
    infos: dict[str, Any] = {"agent": np.full(steps + 1, episodes.agent[e])}
    if episodes.covariates.shape[1]:      # logs may come without
        infos["context"] = {name: np.full(steps + 1, value)
                            for name, value in zip(environment.covariate_names, episodes.covariates[e], strict=True)}
    return {"observations": np.append(episodes.state[rows], episodes.next_state[rows][-1:], axis=0),
            "actions": action[:, 0] if isinstance(environment.actions, Discrete) else action,
            "rewards": episodes.reward[rows], "terminations": last & episodes.terminated[e],
            "truncations": last & ~episodes.terminated[e], "infos": infos}


def _kind(space: spaces.Space) -> Discrete | Box:
    """Actions of a space; of bounds that differ between components, the widest."""
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box) and len(space.shape) == 1:
        return Box(float(space.low.min()), float(space.high.max()), space.shape[0])
    raise ValueError(f"actions: expected Discrete ones from 0 or one flat array, got {space}; make the data set anew with such")


def _lengths(logged: list[minari.EpisodeData], space: spaces.Space, kind: Discrete | Box) -> list[int]:
    """Steps of each episode."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"observations: expected one flat array, got {space}; make the data set anew with such")
    for one in logged:
        T = len(one.actions)
        due = {"observations": (T + 1, *space.shape), "actions": (T,) if isinstance(kind, Discrete) else (T, kind.size),
               "rewards": (T,), "terminations": (T,), "truncations": (T,)}
        for what, shape in due.items():
            got = np.shape(getattr(one, what))
            if got != shape or T == 0:
                raise ValueError(f"{what}: expected {'a step or more' if T == 0 else f'shape {shape} beside {T} actions'} in "
                                 f"episode {one.id}, got {got}; leave it out with filter_episodes")
    return [len(one.actions) for one in logged]


def _agents(logged: list[minari.EpisodeData], agent: np.ndarray | None) -> np.ndarray:
    """(E,)"""
    if agent is None:
        if any("agent" not in (one.infos or {}) for one in logged):
            raise ValueError("agent: expected the number of each episode's agent, got none; pass agent=np.arange("
                             f"{len(logged)}) if each episode is of another agent")
        agent = _constant(logged, [one.infos["agent"] for one in logged], "agent")
    agent = np.asarray(agent)
    if agent.shape != (len(logged),) or agent.dtype.kind not in "iu" or agent.min() < 0:
        raise ValueError(f"agent: expected {len(logged)} whole numbers from 0, one per episode, got {agent.dtype} of shape "
                         f"{agent.shape}; number the agents")
    return agent.astype(np.int64)


def _covariates(logged: list[minari.EpisodeData], own: dict[str, Any], environment: Environment | None) -> np.ndarray:
    """(E, covariates), none where the infos do not tell."""
    contexts = [(one.infos or {}).get("context") for one in logged]
    if not isinstance(contexts[0], dict):
        return np.empty((len(logged), 0))
    names = own.get("covariates") or (environment.covariate_names if environment else sorted(contexts[0]))
    if any(not isinstance(context, dict) or not {*names} <= {*context} for context in contexts):
        raise ValueError(f"infos: expected a context with {', '.join(names)} in every episode, got some without; leave "
                         "those out")
    return np.stack([_constant(logged, [context[name] for context in contexts], name) for name in names], axis=1)


def _constant(logged: list[minari.EpisodeData], values: Sequence[np.ndarray], what: str) -> np.ndarray:
    """The one value that each episode's infos have, (E,)."""
    distinct = [np.unique(value) for value in values]
    for one, value in zip(logged, distinct, strict=True):
        if len(value) != 1:
            raise ValueError(f"infos: expected one {what} throughout an episode, got {len(value)} in episode {one.id}; "
                             "leave it out with filter_episodes")
    return np.concatenate(distinct)


def _free_folder(dataset_id: str) -> Path:
    """Where a new data set goes; refuses names that Minari does not take or has."""
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:      # the latter where the version is missing
        raise ValueError(f"dataset_id: expected one such as 'cartpole/random-v0', got {dataset_id!r}") from error
    folder = _folder(dataset_id)
    if folder.exists():
        raise ValueError(f"dataset_id: expected a new one, got {dataset_id!r}, which is in {folder}; raise its version, or "
                         f"minari.delete_dataset({dataset_id!r})")
    return folder


def _folder(dataset_id: str) -> Path:
    from minari.storage.datasets_root_dir import get_dataset_path

    try:
        return get_dataset_path(dataset_id)      # makes the folder of all data sets
    except OSError as error:
        raise ValueError(f"MINARI_DATASETS_PATH: expected a folder that can be written, got '{error}'; set it to "
                         "another") from error


def _minari() -> Any:
    try:
        import h5py  # noqa: F401 (what Minari reads and writes with)
        import minari  # here, because it is optional
    except ImportError as error:
        raise ValueError("minari: expected the packages minari and h5py, got none; install them with "
                         "pip install 'lowrank_rl[minari]'") from error
    return minari
