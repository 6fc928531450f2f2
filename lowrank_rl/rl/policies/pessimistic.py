"""The pessimistic MDP of MOReL (Kidambi and others, NeurIPS 2020, definition 1), many episodes in one batched call of a model.

    next_state = f_m(state, action)                                  m: a member drawn for each episode
    disagreement(s, a) = max over i, j of |f_i(s, a) - f_j(s, a)|    in units of the logged differences
    unknown(s, a) if disagreement(s, a) > beta * the greatest disagreement over the logged steps (the authors' code)
    reward = the environment's own; where unknown, the penalty, and the episode is over

The authors' code rolls each trajectory with one of the members, and so do we; that cited by PerSim with their mean, which is
smoother than any of them, and with a fixed threshold of 1. The penalty is paid once, as in both codes; the paper's halting
state pays for ever, which whoever makes this MDP puts into the penalty. Episodes begin where logged ones did (the paper) or,
for a share of them, at any logged state (all of them in the code cited by PerSim, a half by default in the authors').
"""

import gymnasium
import numpy as np
import torch
from torch import Tensor

from lowrank_rl.rl.contracts import Discrete, DynamicsModel, Environment, Experience, fresh_view
from lowrank_rl.rl.envs.vec_env import BatchedVecEnv

CHUNK = 8_192          # logged steps of one call of the model
ENOUGH = 100_000       # logged steps that the threshold is made from


def disagreement(predicted: Tensor, unit: Tensor) -> Tensor:
    """The greatest distance between two members' predictions (M, B, D) in units (D,): (B,)."""
    apart = [((one - other) / unit).square().sum(-1) for number, one in enumerate(predicted) for other in predicted[:number]]
    return torch.stack(apart).amax(0).sqrt() if apart else predicted.new_zeros(predicted.shape[1])


def threshold(model: DynamicsModel, unit: Tensor, data: Experience, beta: float) -> float:
    """beta * the greatest disagreement over the logged steps, over evenly spread ones if there are very many."""
    every = -(-len(data.agent) // ENOUGH)
    agent, state, action = (x[::every] for x in (data.agent, data.state, data.action))
    found = []
    for a, s, u in zip(agent.split(CHUNK), state.float().split(CHUNK), action.split(CHUNK), strict=True):
        context = model.context(fresh_view(a, s, u.shape[1]))
        found.append(disagreement(model.predict(context, s.expand(model.members, -1, -1), u), unit))
    return beta * float(torch.cat(found).max())


def beginnings(data: Experience) -> Tensor:
    """Rows at which a logged episode begins: nothing ends there, or what ends is another state or agent."""
    follows = data.follows() & ~data.terminated[:-1]
    return torch.cat([torch.zeros(1, dtype=torch.int64), (~follows).nonzero()[:, 0] + 1])


class Pessimistic(BatchedVecEnv):
    """B episodes for Stable-Baselines3. It sees states in the policy's units and rewards divided by ``worth``.

    ``model`` has no use for the past (``past`` = 0). Random numbers come from ``generator`` alone.
    """

    def __init__(self, model: DynamicsModel, unit: Tensor, environment: Environment, data: Experience, limit: float, *,
                 penalty: float, horizon: int, logged: float, worth: float, center: Tensor, scale: Tensor, episodes: int,
                 generator: torch.Generator) -> None:
        """limit: disagreement beyond which all is unknown. logged: share of the episodes that begin at any logged state.
        center, scale: (D,) of the states.
        """
        self.model, self.unit, self.environment, self.generator = model, unit, environment, generator
        self.limit, self.penalty, self.horizon, self.logged, self.worth = limit, penalty, horizon, logged, worth
        self.center, self.scale = center.float(), scale.float()
        self.starts, self.agent, self.states = beginnings(data), data.agent, data.state.float()
        actions = environment.actions
        self.discrete = isinstance(actions, Discrete)
        D = self.states.shape[1]
        super().__init__(episodes, gymnasium.spaces.Box(-np.inf, np.inf, (D,), np.float32),
                         gymnasium.spaces.Discrete(actions.n) if self.discrete
                         else gymnasium.spaces.Box(actions.low, actions.high, (actions.size,), np.float32))
        self.rows = torch.arange(episodes)
        self.state, self.age = torch.zeros(episodes, D), torch.zeros(episodes, dtype=torch.int64)
        self.member, self.origin = torch.zeros(episodes, dtype=torch.int64), torch.zeros(episodes, dtype=torch.int64)
        self.total = torch.zeros(episodes, dtype=torch.float64)
        self.context = torch.zeros(0)
        self.finished = torch.zeros(3, dtype=torch.float64)          # episodes, sum of returns, those that met the unknown

    def reset(self) -> np.ndarray:
        self._begin(self.rows)
        return self.observed()

    def observed(self) -> np.ndarray:
        """What the policy sees of the running episodes, (B, D)."""
        return self._units(self.state).numpy()

    @property
    def began(self) -> np.ndarray:
        """Which episodes have no step yet, (B,)."""
        return (self.age == 0).numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.action = torch.as_tensor(actions)[:, None] if self.discrete else torch.as_tensor(actions)

    @torch.no_grad()
    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        state, action = self.state, self.action
        predicted = self.model.predict(self.context, state.expand(self.model.members, -1, -1), action)
        next_state = predicted[self.member, self.rows]
        # written so that NaN is unknown, too
        unknown = ~((disagreement(predicted, self.unit) <= self.limit) & next_state.isfinite().all(1))
        reward = torch.where(unknown, self.penalty, self.environment.reward(state, action, next_state).float())
        ended = unknown | self.environment.ended(next_state)
        self.age += 1
        self.total += reward
        cut = ~ended & (self.age >= self.horizon)
        done = ended | cut
        infos: list[dict] = [{}] * self.num_envs
        last = self._units(next_state[cut]).numpy()
        for row, seen in zip(cut.nonzero()[:, 0].tolist(), last, strict=True):      # few: for PPO to go on from its value
            infos[row] = {"TimeLimit.truncated": True, "terminal_observation": seen}
        self.state = next_state
        if bool(done.any()):
            self.finished += torch.stack([done.double().sum(), self.total[done].sum(), unknown.double().sum()])
            self._begin(done.nonzero()[:, 0])
        return self.observed(), (reward / self.worth).numpy(), done.numpy(), infos

    def told(self) -> dict[str, float | None]:
        """Mean return of the episodes that ended since the last time, and the share that met the unknown."""
        count, total, halted = self.finished.tolist()
        self.finished.zero_()
        return {"reward": total / count if count else None, "unknown": halted / count if count else None}

    def kept(self) -> dict[str, Tensor]:
        """All that changes, so that ``restore`` goes on."""
        return {"state": self.state, "age": self.age, "member": self.member, "origin": self.origin, "total": self.total,
                "finished": self.finished, "stream": self.generator.get_state()}

    def restore(self, kept: dict[str, Tensor]) -> None:
        """Go on with what ``kept`` gave."""
        for name in ("state", "age", "member", "origin", "total", "finished"):
            setattr(self, name, kept[name].clone())
        self.generator.set_state(kept["stream"])
        self._who()

    def _begin(self, rows: Tensor) -> None:
        """New episodes in these rows."""
        def draw(size: int) -> Tensor:
            return torch.randint(size, (len(rows),), generator=self.generator)
        anywhere = torch.rand(len(rows), generator=self.generator) < self.logged
        self.origin[rows] = torch.where(anywhere, draw(len(self.states)), self.starts[draw(len(self.starts))])
        self.state[rows] = self.states[self.origin[rows]]
        self.member[rows] = draw(self.model.members)
        self.age[rows], self.total[rows] = 0, 0.0
        self._who()

    def _who(self) -> None:
        origin = self.origin
        self.context = self.model.context(fresh_view(self.agent[origin], self.states[origin], self.environment.actions.size))

    def _units(self, state: Tensor) -> Tensor:
        return (state - self.center) / self.scale

    def seed(self, seed: int | None = None) -> list[None]:
        return [None] * self.num_envs        # the generator is all
