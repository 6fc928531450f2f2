"""Policies cloned from logs: what each agent's unknown pilot did, learned from all logs together.

    action = sum_l  u_l(agent) v_l(state)

is a functional CP, as the simulators are: few kinds of pilots flew many agents. Some of the logged actions may be random;
they are found and left out. A planner that never saw a state of its own making in the logs does well to stay near such a
policy; if the logs are random there is nothing to clone, and ``pull`` says so.
"""

from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from lowrank_rl import check, rng
from lowrank_rl.rl import inputs
from lowrank_rl.rl.contracts import Box, DynamicsModel, EpisodeView, Transitions
from lowrank_rl.rl.inputs import Inputs
from lowrank_rl.rl.plan import Proposals
from lowrank_rl.tensor import AdamConfig, Categorical, FunctionalCP, Neural, io

AGENT, STATE = 0, 1      # the modes
LEAST = 0.05             # share of the logged actions that must be pilots' for a guide to be of use


@dataclass(frozen=True)
class CloneConfig:
    rank: int = 8                             # R
    hidden: tuple[int, ...] = (128, 128)      # of the network of the state, SiLU
    angles: tuple[int, ...] = ()              # state dimensions that it sees as sine and cosine
    near: float = 0.7                         # an action is the pilot's if no component is farther from the prediction
    rounds: int = 3                           # fits, each but the first without what the last found to be random
    epochs: int = 8                           # of the last fit; the others take half
    skills: int = 5                           # typical pilots that everybody's plans may follow
    loyalty: float = 1.0                      # weight of ``pull``

    def __post_init__(self) -> None:
        for name in ("rank", "rounds", "epochs"):
            check.count(name, getattr(self, name))
        check.count("skills", self.skills, 0)
        for name in ("near", "loyalty"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")


class Cloned:
    """A Policy without memory, and a guide for planners.

    ``share``: of the logged actions, those that are the pilots'. ``variance``: mean square of what separates these from the
    prediction. ``skills``: rows (S, R) of typical pilots.
    """

    past = 0

    def __init__(self, cp: FunctionalCP, personal: bool, seen: Inputs, actions: Box, share: float, variance: float,
                 loyalty: float, skills: Tensor) -> None:
        self.cp, self.module, self.personal, self.inputs, self.actions = cp, cp.module_, personal, seen, actions
        self.share, self.variance, self.loyalty, self.skills = share, variance, loyalty, skills
        self._network = deepcopy(self.module.modes[STATE]).double()

    @property
    def rows(self) -> Tensor:
        """The pilots' latent rows, (N, R)."""
        return self.module.modes[AGENT].rows()[0].detach()

    @property
    def useful(self) -> bool:
        """Whether the logs have pilots at all, and not random actions only."""
        return self.share >= LEAST

    @property
    def pull(self) -> float:
        """What an action costs per unit of its mean squared distance from the pilot's: loyalty times how much likelier a
        pilot's action is than a random one, share (1 / variance - 1 / variance of random actions). Random logs: 0.
        """
        random = (self.actions.high - self.actions.low) ** 2 / 12
        return self.loyalty * self.share * max(0.0, 1 / self.variance - 1 / random)

    def reset(self, agent: Tensor) -> None:
        check.within("agent", agent, len(self.rows))

    def act(self, view: EpisodeView, *, generators: list[torch.Generator]) -> Tensor:
        return self.choose(self._row(view.agent), view.state)

    @torch.no_grad()
    def choose(self, row: Tensor, state: Tensor) -> Tensor:
        """Actions (B, A) of pilots (B, R) in states (B, D)."""
        # summed in float64 and rounded, since the last bits of a matrix product depend on how many rows it has
        module = self.module
        seen = (self.inputs(state.double()) - module.center1) / module.scale1
        factor = self._network(seen[None])[0].unflatten(-1, (module.outputs, module.rank))
        action = module.center + module.scale * (factor * row.double().unsqueeze(-2)).sum(-1)
        return action.float().double().clamp(self.actions.low, self.actions.high)

    def propose(self, model: DynamicsModel, context: Tensor, view: EpisodeView, horizon: int) -> Proposals:
        """Plans of the agent's own pilot and of each skill, flown in ``model`` from its members' mean state.

        Their last bits depend on how many rows there are, as far as those of ``model.predict`` do.
        """
        B, S = len(view.agent), len(self.skills)
        row = torch.cat([self._row(view.agent)[:, None], self.skills.expand(B, -1, -1)], dim=1).flatten(0, 1)
        context = context.repeat_interleave(1 + S, dim=1)
        state, plan = view.state.repeat_interleave(1 + S, dim=0).expand(model.members, -1, -1), []
        for _ in range(horizon):
            plan.append(self.choose(row, state.mean(0)))
            state = model.predict(context, state, plan[-1])
        return Proposals(torch.stack(plan, dim=1).unflatten(0, (B, 1 + S)), self.pull)

    def _row(self, agent: Tensor) -> Tensor:
        return self.rows[agent if self.personal else torch.zeros_like(agent)]

    def save(self, path: str | Path) -> None:
        tensors, header = self.cp.pack()
        tensors |= {f"inputs.{name}": value for name, value in vars(self.inputs).items()} | {"skills": self.skills}
        kept = {name: getattr(self, name) for name in ("personal", "share", "variance", "loyalty")}
        io.save(path, "Cloned", tensors, {**header, **kept, "actions": vars(self.actions)})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a missing, corrupt or foreign file."""
        tensors, header = io.load(path, "Cloned")
        seen = Inputs(**{field.name: tensors.pop(f"inputs.{field.name}") for field in fields(Inputs)})
        skills = tensors.pop("skills")
        return cls(FunctionalCP.unpack(path, tensors, header), header["personal"], seen, Box(**header["actions"]),
                   header["share"], header["variance"], header["loyalty"], skills)


def fit_cloned(data: Transitions, agents: int, actions: Box, config: CloneConfig, *, seed: int,
               personal: bool = True) -> Cloned:
    """Clone the pilots of ``agents`` agents from their pooled transitions.

    Raises:
        ValueError: shapes that disagree, NaN or Inf, an agent out of range, an action outside the bounds.
    """
    check.count("agents", agents)
    check.shapes(agent=(data.agent, "B"), state=(data.state, "B D"), action=(data.action, "B A"))
    check.within("agent", data.agent, agents)
    actions.check(data.action, len(data.action))
    check.finite("state", data.state)
    agent = data.agent if personal else torch.zeros_like(data.agent)
    seen = inputs.of(data.state, config.angles, inside=True)
    state = seen(data.state)
    pilots = torch.ones(len(agent), dtype=torch.bool)
    for number in range(config.rounds):
        last = number == config.rounds - 1
        solver = AdamConfig(epochs=config.epochs if last else max(1, config.epochs // 2), learning_rate=3e-3)
        cp = FunctionalCP([Categorical(agents, init="linear"), Neural(state.shape[1], config.hidden, "silu")], rank=config.rank,
                          outputs=actions.size, output_mode=STATE, solver=solver,
                          random_state=rng.integer(seed, "cloned", number))
        cp.fit((agent[pilots], state[pilots]), data.action[pilots])
        predicted = cp.predict((agent, state)).view_as(data.action).clamp(actions.low, actions.high)
        error = data.action - predicted
        near = (error.abs() <= config.near).all(1)
        pilots = near if near.any() else pilots
    # of random actions, as many would be near by chance
    within = (predicted + config.near).clamp(max=actions.high) - (predicted - config.near).clamp(min=actions.low)
    chance = float((within / (actions.high - actions.low)).prod(1).mean())
    share = max(0.0, (float(near.double().mean()) - chance) / (1 - chance)) if chance < 1 else 1.0
    variance = float(error[pilots].square().mean())
    rows = cp.module_.modes[AGENT].rows()[0].detach()
    skills = _typical(rows, config.skills) if personal else rows[:0]
    return Cloned(cp, personal, seen, actions, share, max(variance, 1e-6), config.loyalty, skills)


def _typical(rows: Tensor, count: int) -> Tensor:
    """Centres of the rows' clusters."""
    count = min(count, len(rows.unique(dim=0)))
    if count == 0:
        return rows[:0]
    found = KMeans(count, n_init=4, random_state=0).fit(rows.double().numpy())
    return torch.from_numpy(found.cluster_centers_).to(rows)
