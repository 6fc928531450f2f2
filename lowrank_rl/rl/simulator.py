"""A learned simulator as a place to train and to ask "what if": Gymnasium environments, and trajectories with intervals.

    next_state = f_m(state, action)                   m: a member drawn for each episode, which it trusts to the end
    epistemic_std = mean over dimensions of std over members of f_i(state, action), in units of the logged differences
    reward = the environment's own - pessimism * epistemic_std

With ``coverage`` an episode also ends where members disagree more than they do on the logged steps (MOReL, Kidambi and others,
NeurIPS 2020; its distance between two members is a deviation here):

    outside if epistemic_std > mean + coverage * deviation of epistemic_std over the logged steps

That step earns ``penalty``. By default it is the least logged reward, or 0 if that is positive, for each step that is left:
however long a policy lives, nothing in the logs would have made it earn less, so that leaving never pays.
"""

import math
from collections.abc import Sequence
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Discrete, DynamicsModel, Environment, EpisodeView, Policy
from lowrank_rl.rl.data import Episodes, check_episodes
from lowrank_rl.rl.inputs import spread
from lowrank_rl.rl.simulator_counterfactual import Counterfactual, imagine
from lowrank_rl.rl.simulator_env import Play, SimulatedEnv, SimulatedVectorEnv, checked_actions

CHUNK = 8_192        # logged steps of one call of the model
ENOUGH = 100_000     # logged steps that the limit is made from
STARTS = ("reset", "logged")


class Simulator:
    """A model, the rewards and ends of its environment, and the logs that it learned from.

    Args:
        model: any DynamicsModel. One that recognises agents by their past is shown each agent's last logged steps.
        environment: its reward, ends, actions, step limit and, if episodes start there, ``reset``; never its dynamics.
        logged: what the model learned from.
        starts: "reset", or "logged": one of the first states of the logged episodes, anybody's.
        pessimism: what a unit of ``epistemic_std`` costs per step.
        coverage: how many deviations above the logged mean a disagreement has to be for its step to be outside; None: never.
        penalty: the reward of a step outside; None: the worst that could follow, as above.

    Raises:
        ValueError: logs with NaN, of another state or other actions than the environment; a model of another state or
            fewer actions; pessimism or coverage with a single member, which cannot disagree.
    """

    def __init__(self, model: DynamicsModel, environment: Environment, logged: Episodes, *, starts: str = "reset",
                 pessimism: float = 0.0, coverage: float | None = None, penalty: float | None = None) -> None:
        check.known("starts", starts, STARTS)
        _numbers(pessimism, coverage, penalty)
        if model.members == 1 and (pessimism or coverage is not None):
            raise ValueError("pessimism, coverage: expected none with a model of one member, which cannot disagree; "
                             "train an ensemble (members=5)")
        D = len(environment.state_names)
        if logged.state.shape[1] != D:
            raise ValueError(f"logged: expected states {environment.state_names} ({environment.name}), got "
                             f"{logged.state.shape[1]} dimensions; name the environment that was logged")
        check_episodes(logged)
        environment.actions.check(torch.from_numpy(logged.action), len(logged.action))
        self.model, self.environment, self.logged, self.pessimism = model, environment, logged, float(pessimism)
        self.penalty = penalty
        self.first = torch.from_numpy(logged.state[logged.start[:-1]])                # (episodes, D)
        self.starts = starts
        self.unit = spread(torch.from_numpy(logged.next_state - logged.state))        # (D,)
        self.worst = min(0.0, float(logged.reward.min()))
        self._longest: dict[int, int] = {}                                            # of each agent, an episode
        for episode in np.argsort(logged.lengths, kind="stable"):
            self._longest[int(logged.agent[episode])] = int(episode)
        self._probe()
        self.limit = math.inf if coverage is None else self._limit(coverage)

    def env(self, agent: int, *, seed: int | None = None) -> SimulatedEnv:
        """The simulator of one agent. ``seed`` is that of a first ``reset()`` without one.

        Raises:
            ValueError: an agent that the model does not know.
        """
        return SimulatedEnv(self, agent, seed)

    def vector_env(self, agents: Sequence[int], *, seed: int | None = None) -> SimulatedVectorEnv:
        """The simulators of several agents (repeat a number for several episodes of one), all stepped by one call of the model.

        Raises:
            ValueError: no agents, or one that the model does not know.
        """
        return SimulatedVectorEnv(self, agents, seed)

    def play(self, agents: Sequence[int]) -> Play:
        """Episodes side by side, what both environments and others are made of."""
        return Play(self, agents)

    @torch.no_grad()
    def counterfactual(self, agent: int, action: np.ndarray | Tensor | Policy, *, start: np.ndarray | Tensor | None = None,
                       quantiles: tuple[float, float] = (0.05, 0.95), steps: int | None = None, draws: int = 20,
                       seed: int = 0) -> Counterfactual:
        """What would happen to the agent if these actions were taken, or if this policy acted.

        Intervals come from the members' spread. Of a model of one member they are NaN, with a warning, unless it draws next
        states.

        Args:
            action: (T, A) or, if A = 1, (T,); or a policy, which acts in each trajectory by what it sees there.
            start: (D,) the first state; None: that of the agent's longest logged episode.
            quantiles: ends of the intervals, as probabilities.
            steps: T with a policy; None: the environment's step limit.
            draws: trajectories of each member of a model that draws next states; others need one.

        Raises:
            ValueError: an agent that the model does not know, bad actions, start, quantiles or seed, no ``start`` for an agent
                without logs, a prediction that is NaN or Inf.
        """
        context = self.who([agent])
        if start is None:
            if agent not in self._longest:
                raise ValueError(f"start: expected a state, since agent {agent} has no log to begin with, got None")
            start = self.logged.state[self.logged.start[self._longest[agent]]]
        if isinstance(action, np.ndarray | Tensor | list | tuple):
            wanted: Tensor | Policy = checked_actions(self.environment.actions, action, None)
            if steps is not None:
                raise ValueError(f"steps: expected None beside {len(wanted)} actions, got {steps}; cut the actions instead")
        elif callable(getattr(action, "act", None)):
            wanted = action
        else:
            raise ValueError(f"action: expected actions (T, {self.environment.actions.size}) or a policy, got {action!r}")
        return imagine(self.model, self.environment, context, agent, wanted, start, quantiles=quantiles,
                       steps=self.environment.max_steps if steps is None else steps, draws=draws, seed=seed)

    def who(self, agents: Sequence[int]) -> Tensor:
        """The model's context of each, (M, B, E).

        Differs: CaDM sees the running episode's past. A simulated past tells nothing that the model did not make up, so it is
        shown the agent's own last logged steps instead, and keeps that context.
        """
        for agent in agents:
            if isinstance(agent, str):
                raise ValueError(f"agent: expected a number, got {agent!r}; with the names that from_frame returned it is "
                                 f"{{name: number for number, name in names.items()}}[{agent!r}]")
            check.count("agent", agent, 0)
        K, D = self.model.past, len(self.environment.state_names)
        missing = [agent for agent in agents if agent not in self._longest]
        if K and missing:
            raise ValueError(f"agent: expected some with logs, by which the model recognises them, got {missing[0]} without; "
                             f"{len(self._longest)} have some")
        log, B = self.logged, len(agents)
        state, mask = self.first[:1].repeat(B, 1), torch.zeros((B, K), dtype=torch.bool)
        past_state = torch.zeros((B, K, D), dtype=torch.float64)
        past_action = torch.zeros((B, K, log.action.shape[1]), dtype=torch.from_numpy(log.action).dtype)
        for row, agent in enumerate(agents if K else ()):
            episode = self._longest[agent]
            end, shown = int(log.start[episode + 1]), min(K, int(log.lengths[episode]))
            state[row] = torch.from_numpy(log.next_state[end - 1])
            past_state[row, K - shown:] = torch.from_numpy(log.state[end - shown:end])
            past_action[row, K - shown:] = torch.from_numpy(log.action[end - shown:end])
            mask[row, K - shown:] = True
        numbers = torch.tensor([int(agent) for agent in agents], dtype=torch.int64)
        return self.model.context(EpisodeView(torch.arange(B), numbers, state, past_state, past_action, mask))

    def disagreement(self, predicted: Tensor) -> Tensor:
        """``epistemic_std`` of the members' predictions (M, B, D): (B,); 0 for a single member, which tells nothing."""
        if len(predicted) == 1:
            return predicted.new_zeros(predicted.shape[1])
        return (predicted.std(0) / self.unit.to(predicted)).mean(-1)

    def _limit(self, coverage: float) -> float:
        log = self.logged.transitions()
        every = -(-len(log.agent) // ENOUGH)
        numbers, place = log.agent[::every].unique(return_inverse=True)
        context, found = self.who(numbers.tolist()), []
        for row, state, action in zip(place.split(CHUNK), log.state[::every].split(CHUNK), log.action[::every].split(CHUNK),
                                      strict=True):
            predicted = self.model.predict(context[:, row.to(context.device)], state.expand(self.model.members, -1, -1), action)
            found.append(self.disagreement(predicted))
        each = torch.cat(found)
        return float(each.mean() + coverage * each.std(unbiased=False))

    def _probe(self) -> None:
        """Whether the model can be asked for a step at all."""
        M, D = self.model.members, len(self.environment.state_names)
        kind = self.environment.actions
        action = torch.tensor([[kind.n - 1]]) if isinstance(kind, Discrete) else torch.from_numpy(self.logged.action[:1])
        context = self.who(self.logged.agent[:1].tolist())
        try:
            predicted = self.model.predict(context, self.first[:1].expand(M, 1, D), action)
            fits, got = predicted.shape == (M, 1, D), f"a prediction of shape {tuple(predicted.shape)}"
        except (RuntimeError, IndexError, ValueError) as error:     # whatever a model says to foreign numbers
            fits, got = False, f"'{str(error).splitlines()[0]}'"
        if not fits:
            raise ValueError(f"model: expected one of {D} state dimensions and the actions of {self.environment.name}, got "
                             f"{got}; give the environment that it learned from")


def _numbers(pessimism: float, coverage: float | None, penalty: float | None) -> None:
    if not (isinstance(pessimism, Real) and 0 <= pessimism < math.inf):
        raise ValueError(f"pessimism: expected a number >= 0, got {pessimism!r}")
    for name, value in (("coverage", coverage), ("penalty", penalty)):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(f"{name}: expected a finite number or None, got {value!r}")
    if penalty is not None and coverage is None:
        raise ValueError(f"penalty: expected None without coverage, got {penalty!r}; say coverage=5.0, for instance")
