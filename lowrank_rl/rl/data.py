"""Logged trajectories: collect them from the true environments, save, load.

One trajectory per agent is all that the simulators get; the covariates ride along for evaluation only.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowrank_rl import check, rng
from lowrank_rl.files import whole
from lowrank_rl.rl.contracts import POLICY, Box, Environment, EpisodeView, Experience, Policy, Transitions, keeps

SCHEMA = 1
_FORM = {"covariates": (2, "f"), "agent": (1, "i"), "start": (1, "i"), "state": (2, "f"), "last_state": (2, "f"),
         "action": (2, "if"), "reward": (1, "f"), "terminated": (1, "b")}    # a file's arrays: axes, dtype kinds


@dataclass(frozen=True)
class Episodes:
    """E episodes end to end, as flat rows of steps; row i belongs to the episode with start[e] <= i < start[e + 1]."""
    environment: str
    policy: str                 # what acted, in words
    seed: int
    covariates: np.ndarray      # (E, covariates) of each episode's agent; hidden from every learner
    agent: np.ndarray           # (E,) int64
    start: np.ndarray           # (E + 1,) int64, the first row of each episode and the number of rows
    state: np.ndarray           # (rows, D) float64
    action: np.ndarray          # (rows, A) int64 or float64
    next_state: np.ndarray      # (rows, D)
    reward: np.ndarray          # (rows,)
    terminated: np.ndarray      # (E,) bool: reached an end; False: cut off by the step limit

    def __len__(self) -> int:
        return len(self.agent)

    @property
    def lengths(self) -> np.ndarray:
        """Steps of each episode, (E,)."""
        return np.diff(self.start)

    @property
    def returns(self) -> np.ndarray:
        """Undiscounted sum of rewards of each episode, (E,)."""
        return np.add.reduceat(self.reward, self.start[:-1])

    def transitions(self) -> Transitions:
        """All steps with their agent's number, for learning."""
        return Transitions(agent=torch.from_numpy(np.repeat(self.agent, self.lengths)),
                           state=torch.from_numpy(self.state), action=torch.from_numpy(self.action),
                           next_state=torch.from_numpy(self.next_state))

    def experience(self) -> Experience:
        """The same with rewards and ends, for learning policies."""
        terminated = np.zeros(len(self.state), dtype=bool)
        terminated[self.start[1:] - 1] = self.terminated
        return Experience(**vars(self.transitions()), reward=torch.from_numpy(self.reward),
                          terminated=torch.from_numpy(terminated))


def agents(environment: Environment, count: int, *, seed: int) -> Tensor:
    """Covariates (count, E) of the paper's agents: the five test agents first, the others uniform in Table 4's ranges."""
    tests = torch.tensor(environment.test_agents, dtype=torch.float64)
    check.count(f"number of agents (the first {len(tests)} are the test agents)", count, len(tests))
    low, high = (torch.tensor(x, dtype=torch.float64)
                 for x in (environment.covariate_low, environment.covariate_high))
    generator = rng.stream(seed, environment.name, "agents")
    unit = torch.rand((count - len(tests), len(low)), generator=generator, dtype=torch.float64)
    return torch.cat([tests, low + (high - low) * unit])


@torch.no_grad()
def collect(environment: Environment, covariates: Tensor, agent: Tensor, policy: Policy, *, seed: int, what: str,
            max_steps: int | None = None, progress: Callable[[int, int], None] | None = None) -> Episodes:
    """Run one episode per row in the true environment, all in lockstep.

    Each episode draws from its own stream (seed, environment, ``what``, agent, how many episodes of that agent came
    before), so an agent's numbers do not depend on who runs beside it.

    Args:
        covariates: (B, E) of each episode's agent. agent: (B,) its number, which is all the policy sees of it.
        policy: it is shown its ``past`` steps.
        what: names the purpose, part of the random streams and of the saved description.
        max_steps: truncation; the environment's own limit by default.
        progress: called with (steps done, step limit) now and then.

    Raises:
        ValueError: a policy without what its contract promises, shapes that disagree, an action outside the bounds, or a
            simulation that diverged (NaN).
    """
    keeps("policy", policy, POLICY)
    covariates, agent = (torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in (covariates, agent))
    sizes = check.shapes(covariates=(covariates, "B E"), agent=(agent, "B"))
    if sizes["E"] != len(environment.covariate_names):
        raise ValueError(f"covariates: expected columns {environment.covariate_names}, got {sizes['E']} columns")
    B, limit = sizes["B"], environment.max_steps if max_steps is None else max_steps
    check.count("max_steps", limit)
    generators = _episode_generators(environment, agent, seed, what)
    state = torch.cat([environment.reset(1, generator=generator) for generator in generators])
    states, actions = [state], []
    rows = torch.arange(B)                                   # the episodes still running
    length, terminated = torch.full((B,), limit), torch.zeros(B, dtype=torch.bool)
    policy.reset(agent)
    for t in range(limit):
        view = _view(environment, rows, agent, states, actions, policy.past)
        chosen = policy.act(view, generators=[generators[i] for i in rows.tolist()])
        environment.actions.check(chosen, len(rows))
        action = torch.zeros((B, chosen.shape[1]), dtype=chosen.dtype)
        action[rows] = chosen.cpu()
        state = states[-1].clone()
        state[rows] = environment.step(covariates[rows], state[rows], action[rows])
        states.append(state)
        actions.append(action)
        ended = environment.ended(state[rows])
        length[rows[ended]], terminated[rows[ended]] = t + 1, True
        rows = rows[~ended]
        if progress and (t % 10 == 9 or len(rows) == 0):
            progress(t + 1, limit)
        if len(rows) == 0:
            break
    states, actions = torch.stack(states, dim=1), torch.stack(actions, dim=1)
    check.finite(f"{environment.name}: simulated states (episode, step, dimension)", states)
    live = torch.arange(actions.shape[1])[None] < length[:, None]
    state, next_state, action = states[:, :-1][live], states[:, 1:][live], actions[live]
    return Episodes(environment.name, what, seed, covariates.numpy(), agent.numpy(),
                    np.concatenate([[0], np.cumsum(length.numpy())]), state.numpy(), action.numpy(),
                    next_state.numpy(), environment.reward(state, action, next_state).numpy(), terminated.numpy())


def check_episodes(episodes: Episodes) -> None:
    """Refuse what would not come back from a file: rows of an episode that do not follow each other, NaN or Inf."""
    inside = np.setdiff1d(np.arange(len(episodes.state)), episodes.start[1:] - 1)
    if not np.array_equal(episodes.next_state[inside], episodes.state[inside + 1]):
        raise ValueError("next_state: expected each row's to be the following row's state within an episode, got others; "
                         "cut the episodes where steps are missing")
    for name in ("covariates", "state", "action", "next_state", "reward"):
        check.finite(name, getattr(episodes, name))


def save(path: str | Path, episodes: Episodes) -> None:
    """Write one .npz: the arrays and a ``header.json``. It appears whole or not at all.

    Raises:
        ValueError: rows of an episode that do not follow each other, NaN or Inf, or the place cannot be written; an
            older file of that name is untouched.
    """
    check_episodes(episodes)
    header = {"schema": SCHEMA, "environment": episodes.environment, "policy": episodes.policy, "seed": episodes.seed}
    last = episodes.start[1:] - 1
    arrays = {"covariates": episodes.covariates, "agent": episodes.agent, "start": episodes.start,
              "state": episodes.state, "last_state": episodes.next_state[last], "action": episodes.action,
              "reward": episodes.reward, "terminated": episodes.terminated}
    with whole(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)


def load(path: str | Path) -> Episodes:
    """Read what ``save`` wrote.

    Raises:
        ValueError: no such file, corrupt or truncated, another schema, arrays that disagree, NaN or Inf.
    """
    path = Path(path)
    check.file(path, "a data set")
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("header.json"))
            schema = header.get("schema")
            arrays = {name: np.lib.format.read_array(io.BytesIO(archive.read(f"{name}.npy")), allow_pickle=False)
                      for name in _FORM if schema == SCHEMA}
            known = {name: header[name] for name in ("environment", "policy", "seed") if schema == SCHEMA}
    except (zipfile.BadZipFile, zlib.error, struct.error, KeyError, ValueError, AttributeError, EOFError, OSError,
            RuntimeError) as error:     # a flipped bit in the archive's own fields brings any of these
        raise ValueError(f"{path}: expected a data set, got a corrupt or truncated file ({error}); "
                         "restore it or collect it again") from error
    if schema != SCHEMA:
        raise ValueError(f"{path}: expected a data set of schema {SCHEMA}, got {schema!r}; collect it again")
    for name, (axes, kinds) in _FORM.items():
        if arrays[name].ndim != axes or arrays[name].dtype.kind not in kinds:
            raise ValueError(f"{path}: expected {name} with {axes} axes, got {arrays[name].dtype} of shape "
                             f"{arrays[name].shape}; collect it again")
    last_state = arrays.pop("last_state")
    start, state = arrays["start"], arrays["state"]
    if len(start) != len(arrays["agent"]) + 1 or start[0] != 0 or (np.diff(start) < 1).any() \
            or not start[-1] == len(state) == len(arrays["action"]) == len(arrays["reward"]) \
            or not len(arrays["agent"]) == len(arrays["covariates"]) == len(last_state) == len(arrays["terminated"]) \
            or last_state.shape[1] != state.shape[1] or (arrays["agent"] < 0).any():
        raise ValueError(f"{path}: expected arrays of one length, got a file whose parts disagree; collect it again")
    for name, array in {**arrays, "last_state": last_state}.items():
        check.finite(f"{path}: {name}", array)
    next_state = np.empty_like(state)
    next_state[:-1] = state[1:]
    next_state[start[1:] - 1] = last_state
    return Episodes(**known, next_state=next_state, **arrays)


def _episode_generators(environment: Environment, agent: Tensor, seed: int, what: str) -> list[torch.Generator]:
    seen: dict[int, int] = {}
    generators = []
    for number in agent.tolist():
        seen[number] = seen.get(number, 0) + 1
        generators.append(rng.stream(seed, environment.name, what, number, seen[number]))
    return generators


def _view(environment: Environment, rows: Tensor, agent: Tensor, states: list[Tensor], actions: list[Tensor],
          past: int) -> EpisodeView:
    """What the policy may see of the running rows; younger episodes are padded on the left."""
    shown = min(past, len(actions))
    state = states[-1][rows]
    past_state = torch.zeros((len(rows), past, state.shape[1]), dtype=state.dtype)
    past_mask = torch.zeros((len(rows), past), dtype=torch.bool)
    kind = environment.actions
    past_action = torch.zeros((len(rows), past, kind.size), dtype=state.dtype if isinstance(kind, Box) else torch.int64)
    for k in range(shown):
        past_state[:, past - 1 - k] = states[-2 - k][rows]
        past_action[:, past - 1 - k] = actions[-1 - k][rows]
        past_mask[:, past - 1 - k] = True
    return EpisodeView(rows, agent[rows], state, past_state, past_action, past_mask)
