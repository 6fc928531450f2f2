"""PerSim: one simulator per agent from one short trajectory per agent (NeurIPS 2021, section 4).

    next_state - state = sum_l  u_l(agent) v_l(state) w_l(action)        (equation 2 and Theorem 1)

which is a functional CP with a categorical agent mode. An ensemble of M such models is trained side by side.

``joint`` asks for less: that the tensor's unfolding along the agents has a low rank, whatever states and actions do together,

    next_state - state = sum_l  u_l(agent) v_l(state, action)

Every tensor of rank R is of this form with R terms or fewer. Contacts make torques act differently from state to state, which
takes many products of v and w, but few of u and v (docs/halfcheetah.md). Agents keep rows that are linear in what they predict.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from lowrank_rl import check, rng
from lowrank_rl.nets import Mlp
from lowrank_rl.rl import inputs
from lowrank_rl.rl.contracts import Box, Discrete, EpisodeView, Transitions
from lowrank_rl.rl.inputs import Inputs
from lowrank_rl.rl.models import contacts
from lowrank_rl.rl.models.contacts import Contacts
from lowrank_rl.rl.models.frame import checked, everyone
from lowrank_rl.rl.models.fused import WIDEST, rollout_network
from lowrank_rl.rl.models.fused_basis import REACH, fusible, rollout_basis
from lowrank_rl.rl.models.fused_deep import outputs, rollout_deep, rollout_joint
from lowrank_rl.rl.models.multistep import MultiStep, fit_multistep, stretches
from lowrank_rl.rl.unroll import rollout
from lowrank_rl.tensor import AdamConfig, ALSConfig, Categorical, FunctionalCP, Neural, Polynomial, Spline, io
from lowrank_rl.tensor.bases import Expansion, PolynomialBasis
from lowrank_rl.tensor.functional_checkpoint import EVERY, Checkpoint, fingerprint
from lowrank_rl.tensor.modes import Mode

AGENT, STATE, ACTION = 0, 1, 2     # the modes
FEW = 2_000           # updates in all that leave networks all but untrained,
SMALL = 20            # where an epoch has so few batches that the usual number of epochs does not suffice;
ENOUGH = 20_000       # and what to ask for instead


@dataclass(frozen=True)
class Exact:
    """Factors of the state that are linear in their weights, instead of a network, and how they are solved for."""
    state: Spline | Polynomial
    solver: ALSConfig = ALSConfig()              # noqa: RUF009 (frozen)


@dataclass(frozen=True)
class PerSimConfig:
    rank: int = 3                                # R
    members: int = 5                             # M
    state_hidden: tuple[int, ...] = (256,)
    action_hidden: tuple[int, ...] = (256, 256)  # for continuous actions; discrete ones have a row each
    joint: bool = False                          # one network of state and action, state_hidden wide; the paper has two
    init: str = "nearly_equal"                   # of agent and action rows; "linear" is the paper's
    normalize: bool = True                       # the paper: HalfCheetah only
    walls: bool = True                           # look for bounds where states stop (contacts.py); the paper does not
    activation: str = "relu"                     # of networks
    angles: tuple[int, ...] = ()                 # state dimensions that networks see as sine and cosine
    inside: bool = False                         # networks see no number beyond the data's range; slower where they are small
    precision: str = "full"                      # of hidden layers; "bfloat16" is faster where they are deep
    adam: AdamConfig = AdamConfig()              # noqa: RUF009 (frozen)
    exact: Exact | None = None                   # for discrete actions: no networks, no gradients
    multistep: MultiStep | None = None           # after Adam's one-step training; the paper: none


class PerSim:
    """A DynamicsModel whose context is the agent's latent row; if not ``personal``, everybody's is the first."""

    past, noisy = 0, False

    def __init__(self, cp: FunctionalCP, personal: bool, walls: Contacts | None = None, seen: Inputs | None = None) -> None:
        self.cp, self.module, self.personal = cp, cp.module_, personal
        self.walls, self.inputs = walls or contacts.none(cp.outputs), seen or inputs.plain(cp.outputs)
        self.members = cp.members

    @property
    def rows(self) -> Tensor:
        """The agents' latent rows, (M, N, R)."""
        return self.module.modes[AGENT].rows().detach()

    @property
    def joint(self) -> bool:
        """Whether states and actions share a mode."""
        return len(self.cp.modes) == 2

    @property
    def unit(self) -> Tensor:
        """The spread of a state difference in the training data, (D,); ones if not normalised."""
        return self.module.scale

    def context(self, view: EpisodeView) -> Tensor:
        check.within("agent", view.agent, self.rows.shape[1])
        agent = view.agent if self.personal else torch.zeros_like(view.agent)
        return self.rows[:, agent.to(self.rows.device)]

    @torch.no_grad()
    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        module, home = self.module, state.device
        state, action = state.to(module.center.device), action.to(module.center.device)
        seen, *acted = self.coordinates(state, action)
        mixed = context * module.factor(ACTION, *acted) if acted else context            # (M, B, R)
        basis = module.factor(STATE, seen)                                                # (M, B, D, R)
        delta = module.center + module.scale * (basis @ mixed.unsqueeze(-1)).squeeze(-1)
        return self.walls.to(home).stop((state + delta.to(state.dtype)).to(home))

    @torch.no_grad()
    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        module, mode, home = self.module, self.module.modes[STATE], state.device
        here = module.center.device
        state, actions = state.to(here), actions.to(here)
        if self.joint:
            return rollout_joint(mode, module.center1, module.scale1, context, module.scale, module.center, self.walls,
                                 self.inputs, state, actions).to(home)
        network = isinstance(mode, Mlp) and len(mode.layers) > 1
        if self.discrete and here.type == "cpu":
            if (network and len(mode.layers) == 2 and mode.activation is torch.relu and state.shape[-1] <= WIDEST
                    and self.inputs.plain):
                return rollout_network(*self._two_layers(context), self.walls, state, actions[..., 0])
            if isinstance(mode, Expansion) and fusible(mode.basis):
                return rollout_basis(mode.basis, module.center1, module.scale1, self._folded(context, mode.weight),
                                     module.center, self.walls, state, actions[..., 0])
        if network:
            action = self._action_rows(actions.flatten(0, 2)).unflatten(1, actions.shape[:3])
            return rollout_deep(mode, module.center1, module.scale1, context[:, :, None, None] * action, module.scale,
                                module.center, self.walls, self.inputs, state).to(home)
        return rollout(self, context, state, actions).to(home)

    def near(self, state: Tensor) -> Tensor:
        """The state that a polynomial is asked for: it grows without bound, so a tenth of the data's range beyond them it
        keeps its value, as splines do. Otherwise few data make a simulator run away."""
        mode = self.module.modes[STATE]
        if not (isinstance(mode, Expansion) and isinstance(mode.basis, PolynomialBasis)):
            return state
        middle, half = (mode.basis.high + mode.basis.low) / 2, (mode.basis.high - mode.basis.low) / 2
        low, high = (self.module.center1 + self.module.scale1 * (middle + side * REACH * half) for side in (-1, 1))
        return state.clamp(low.to(state), high.to(state))

    @property
    def discrete(self) -> bool:
        """Whether actions are categories."""
        return not self.joint and isinstance(self.cp.modes[ACTION], Categorical)

    @property
    def action_width(self) -> int:
        """A, the columns of an action."""
        if self.joint:
            return self.cp.modes[STATE].inputs - len(self.inputs.part)
        return 1 if self.discrete else self.cp.modes[ACTION].inputs

    def coordinates(self, state: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """Those of ``cp`` behind the agents, of steps (..., D), (..., A)."""
        return coordinates(self.inputs.to(state.device)(self.near(state)), action, self.cp.modes)

    def _action_rows(self, action: Tensor) -> Tensor:
        """(B, A) -> (M, B, R)"""
        mode = self.module.modes[ACTION]
        if self.discrete:
            return mode.rows()[:, action[:, 0]]
        return outputs(mode, self.module.center2, self.module.scale2, action.expand(self.members, *action.shape))

    def _folded(self, context: Tensor, weight: Tensor) -> Tensor:
        """Weights (M, F, D R) behind features of the state, for each row's agent and each action, without the rank.

        Returns (M, B, actions, F, D), with the outputs' scales.
        """
        actions = self.module.modes[ACTION].rows()                                           # (M, actions, R)
        mixed = (context[:, :, None] * actions[:, None]).flatten(1, 2)
        shape = (self.module.outputs, self.module.rank)
        folded = mixed @ weight.unflatten(-1, shape).flatten(1, 2).mT                        # (M, B actions, F D)
        return folded.view(*context.shape[:2], actions.shape[1], *weight.shape[1:2], shape[0]) * self.module.scale

    def _two_layers(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each row's simulator as a network with one hidden layer: (first weight (M, D, K), first bias (M, K),
        last weight (M, B, actions, K, D), last bias (M, B, actions, D)), with all scales.
        """
        module, (first, last) = self.module, self.module.modes[STATE].layers
        weight = first.weight / module.scale1[:, None]
        bias = first.bias[:, 0] - module.center1 @ weight
        out = self._folded(context, torch.cat([last.weight, last.bias], dim=1))
        return tuple(x.to(first.weight) for x in (weight, bias, out[..., :-1, :], out[..., -1, :] + module.center))

    def save(self, path: str | Path) -> None:
        tensors, header = self.cp.pack()
        for part in ("walls", "inputs"):
            tensors |= {f"{part}.{name}": value for name, value in vars(getattr(self, part)).items()}
        io.save(path, "PerSim", tensors, {**header, "personal": self.personal})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Raises ValueError for a missing, corrupt or foreign file."""
        tensors, header = io.load(path, "PerSim")
        walls, seen = ({field.name: tensors.pop(f"{part}.{field.name}", None) for field in fields(kind)}
                       for part, kind in (("walls", Contacts), ("inputs", Inputs)))
        cp = FunctionalCP.unpack(path, tensors, header)
        return cls(cp, header["personal"],      # older files have neither
                   None if walls["bound"] is None else Contacts(**walls),
                   None if seen["part"] is None else Inputs(**seen))


def coordinates(seen: Tensor, action: Tensor, modes: Sequence[Mode]) -> tuple[Tensor, ...]:
    """Of states as networks see them (..., I) and actions (..., A), in these modes: of both, or (..., I + A) in one."""
    if len(modes) == 2:
        return (torch.cat([seen, action.to(seen).expand(*seen.shape[:-1], -1)], dim=-1),)
    return seen, action[..., 0] if isinstance(modes[ACTION], Categorical) else action


def fit_persim(data: Transitions, agents: int, actions: Discrete | Box, config: PerSimConfig, *, seed: int,
               device: str = "cpu", personal: bool = True, progress: Callable[[dict], None] | None = None,
               checkpoint: str | Path | None = None) -> PerSim:
    """Learn the simulators of ``agents`` agents from their pooled transitions.

    ``personal=False`` hides from the model who acts: the ``pooled`` baseline, what personalisation is worth.

    ``progress`` hears of each epoch or sweep ("epoch", "loss", ...), then of multi-step training ("update", "loss", ...).
    ``checkpoint`` is a file for unfinished training, beside which another one is kept for its second part.

    Warns where logs are so few that the networks' epochs amount to a handful of updates, and of discrete actions that nobody
    took, whose effect is then made up.

    Raises:
        ValueError: shapes that disagree, NaN or Inf, an agent out of range or without a transition, an action outside
            the bounds, exact solves with continuous actions or multi-step training, a joint mode with discrete actions, a
            loss that diverged.
    """
    data = _checked(data, agents, actions, config)
    _warn(data, actions, config)
    D = data.state.shape[1]
    seen = inputs.plain(D) if config.exact else inputs.of(data.state, config.angles, config.inside)
    modes = [Categorical(agents, init=config.init), *_modes(config, len(seen.part), actions)]
    cp = FunctionalCP(modes, rank=config.rank, outputs=D, output_mode=STATE, members=config.members, normalize=config.normalize,
                      solver=config.exact.solver if config.exact else config.adam, random_state=seed, device=device)
    walls = contacts.find(data.next_state) if config.walls else contacts.none(D)
    data = _free(data, walls, agents)
    data = data if personal else replace(data, agent=torch.zeros_like(data.agent))
    if config.multistep:
        stretches(data, config.multistep.horizon)      # refuses now what would be refused after the first part
    order = rng.stream(seed, "persim", "multi-step")
    job = fingerprint(config, vars(data).values(), data.next_state, torch.nn.Module(), order)
    second = Path(checkpoint).with_suffix(".second") if checkpoint and config.multistep else None
    one_step = Checkpoint(second and second.with_suffix(".first"), 0.0, job)
    found = one_step.resume()
    if found:
        cp = FunctionalCP.unpack(one_step.path, found[0], found[1][0])
        cp.module_.to(device)
    else:
        cp.fit((data.agent, *coordinates(seen(data.state), data.action, modes)), data.next_state - data.state,
               progress=progress, checkpoint=checkpoint)
    model = PerSim(cp, personal, walls, seen)
    if config.multistep:
        tensors, header = cp.pack()
        one_step.save(lambda: tensors, [header])      # whole, so that a kill from here on does not repeat it
        keep = Checkpoint(second, EVERY, job)
        cp.history_ = cp.history_ + fit_multistep(cp.module_, model.coordinates, data, config.multistep, generator=order,
                                                  keep=keep, spent=cp.history_[-1]["seconds"], progress=progress)
        keep.remove()
        one_step.remove()
    return model


def _checked(data: Transitions, agents: int, actions: Discrete | Box, config: PerSimConfig) -> Transitions:
    """The steps, on the CPU; refuses what ``fit_persim`` says."""
    data = checked(data, agents, actions)
    everyone(data, agents)
    if config.exact and not isinstance(actions, Discrete):
        raise ValueError("exact: expected None where actions are continuous, got exact solves; use networks and adam")
    if config.exact and config.multistep:
        raise ValueError("multistep: expected None beside exact solves, got both; multi-step training goes with adam")
    if config.joint and isinstance(actions, Discrete):
        raise ValueError("joint: expected False where actions are discrete, got True; each of them has a row of its own")
    return data


def _modes(config: PerSimConfig, seen: int, actions: Discrete | Box) -> list[Mode]:
    """Of states, ``seen`` numbers wide, and of actions, or of both."""
    network = {"activation": config.activation, "precision": config.precision}
    if config.joint:
        return [Neural(seen + actions.size, config.state_hidden, **network)]
    state = config.exact.state if config.exact else Neural(seen, config.state_hidden, **network)
    return [state, Categorical(actions.n, init=config.init) if isinstance(actions, Discrete) else
            Neural(actions.size, config.action_hidden, **network)]


def _warn(data: Transitions, actions: Discrete | Box, config: PerSimConfig) -> None:
    """Tell of what trains without a complaint and predicts little."""
    if isinstance(actions, Discrete):
        never = (torch.bincount(data.action[:, 0], minlength=actions.n) == 0).nonzero()[:, 0].tolist()
        if never:
            warnings.warn(f"action: expected each of 0..{actions.n - 1} among the logged steps, got none with "
                          f"{', '.join(map(str, never[:5]))}; what these do is made up, so do not plan with them", stacklevel=3)
    if config.exact:
        return
    rows, adam = len(data.agent) - int(config.adam.held_out * len(data.agent)), config.adam
    batches = math.ceil(rows / adam.batch)
    updates = adam.epochs * batches + (config.multistep.updates if config.multistep else 0)
    if updates < FEW and batches < SMALL:
        batch = min(adam.batch, 128)
        epochs = math.ceil(ENOUGH / math.ceil(rows / batch))
        warnings.warn(f"adam: expected some {ENOUGH:,} updates, got {updates} ({adam.epochs} epochs of {batches} batches of "
                      f"{adam.batch}), too few for networks to learn much; say AdamConfig(epochs={epochs}, batch={batch}), or "
                      "use exact solves where actions are few", stacklevel=3)


def _free(data: Transitions, walls: Contacts, agents: int) -> Transitions:
    """The steps that no wall stopped, and all steps of agents who have no others."""
    free = ~walls.reached(data.next_state).any(-1)
    stuck = torch.bincount(data.agent[free], minlength=agents) == 0
    free |= stuck[data.agent]
    return Transitions(data.agent[free], data.state[free], data.action[free], data.next_state[free])
