"""What networks that step a system share: the logged steps, checked; the units in which they see states and actions.

    next_state = kept * state + shift + spread * y

with y what the network says, kept 1 where it says a difference and 0 where the next value itself.
"""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from lowrank_rl import check
from lowrank_rl.rl import inputs
from lowrank_rl.rl.contracts import Box, Discrete, Transitions
from lowrank_rl.rl.inputs import Inputs, spread

FRAME = ("source", "part", "low", "high", "center", "scale", "kept", "shift", "spread")


class Frame(nn.Module):
    """The units in which networks see states and actions, and say what comes next."""

    def __init__(self, actions: Discrete | Box, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.actions = actions
        for name in FRAME:
            self.register_buffer(name, tensors[name])

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of a state as it is seen, an action as it is seen, and a state."""
        return len(self.source), self.actions.n if isinstance(self.actions, Discrete) else self.actions.size, len(self.kept)

    def see(self, state: Tensor) -> Tensor:
        """(..., D) -> (..., I)"""
        seen = Inputs(self.source, self.part, self.low, self.high)
        return ((state[..., self.source] if seen.plain else seen(state)) - self.center) / self.scale

    def act(self, action: Tensor) -> Tensor:
        """Discrete actions as 0s and a 1, others between -1 and 1: (..., A) -> (..., width)"""
        if isinstance(self.actions, Discrete):
            return one_hot(action[..., 0].long(), self.actions.n).to(self.scale)
        middle, half = (self.actions.high + self.actions.low) / 2, (self.actions.high - self.actions.low) / 2
        return (action - middle) / half

    def target(self, state: Tensor, next_state: Tensor) -> Tensor:
        """What a network should say, (..., D)."""
        return (next_state - self.kept * state - self.shift) / self.spread

    def step(self, state: Tensor, said: Tensor) -> Tensor:
        """The inverse: the next state, in the state's dtype."""
        return (self.kept * state + self.shift + self.spread * said).to(state.dtype)


def frame(data: Transitions, actions: Discrete | Box, *, angles: tuple[int, ...] = (), unseen: tuple[int, ...] = (),
          absolute: tuple[int, ...] = (), inside: bool = False) -> Frame:
    """Units from data. ``unseen`` dimensions are hidden, of ``absolute`` ones the next value is said, not the difference.

    Raises:
        ValueError: no such dimension, or none that is seen.
    """
    state, next_state = data.state.double(), data.next_state.double()
    D = state.shape[1]
    for name, some in (("unseen", unseen), ("absolute", absolute)):
        if not set(some) <= set(range(D)):
            raise ValueError(f"{name}: expected dimensions of the state, 0..{D - 1}, got {tuple(some)}")
    seen = inputs.of(state, angles, inside)
    shown = ~torch.isin(seen.source, torch.tensor(unseen, dtype=torch.int64))
    if not shown.any():
        raise ValueError(f"unseen: expected some of {D} dimensions to be seen, got {tuple(unseen)}; hide fewer")
    kept = torch.tensor([float(d not in absolute) for d in range(D)], dtype=torch.float64)
    tensors = {name: value[shown] for name, value in vars(seen).items()}
    value, change = seen(state)[:, shown], next_state - kept * state
    return Frame(actions, {**tensors, "center": value.mean(0), "scale": spread(value), "kept": kept,
                           "shift": change.mean(0), "spread": spread(change)})


def checked(data: Transitions, agents: int, actions: Discrete | Box) -> Transitions:
    """The steps, on the CPU.

    Raises:
        ValueError: shapes that disagree, NaN or Inf, an agent out of range, an action outside the bounds, no steps.
    """
    check.count("agents", agents)
    if not isinstance(data, Transitions):
        raise ValueError(f"data: expected Transitions, got {type(data).__name__}; pass episodes.transitions()")
    data = Transitions(*(torch.as_tensor(x).cpu() for x in (data.agent, data.state, data.action, data.next_state)))
    check.shapes(agent=(data.agent, "B"), state=(data.state, "B D"), action=(data.action, "B A"),
                 next_state=(data.next_state, "B D"))
    if len(data.agent) == 0:
        raise ValueError("data: expected steps to learn from, got none")
    if data.agent.is_floating_point():
        raise ValueError(f"agent: expected integers 0..{agents - 1}, got {data.agent.dtype}; number the agents")
    check.within("agent", data.agent, agents)
    actions.check(data.action, len(data.action))
    check.finite("state", data.state)
    check.finite("next_state", data.next_state)
    return data


def everyone(data: Transitions, agents: int) -> None:
    """Refuse logs in which an agent has no steps, for models that learn something of each.

    Raises:
        ValueError: who has none.
    """
    missing = (torch.bincount(data.agent, minlength=agents) == 0).nonzero()[:, 0].tolist()
    if missing:
        raise ValueError(f"agents: expected data of each of {agents} agents, got none of {len(missing)} "
                         f"(first: {missing[0]}); drop them and number the others 0..{agents - len(missing) - 1}")


def pack(networks: nn.Module, config: Any, history: list[dict], **more: Any) -> tuple[dict[str, Tensor], dict]:
    """Tensors and header of a model whose ``units`` are a Frame; of its settings, all but how it was trained."""
    settings, actions = {field.name: getattr(config, field.name) for field in fields(config)}, networks.units.actions
    header = {"config": {name: x for name, x in settings.items() if not is_dataclass(x)}, "history": history,
              "discrete": isinstance(actions, Discrete), "actions": vars(actions), **more}
    return networks.state_dict(), header


def unpack(tensors: dict[str, Tensor], header: dict, config: type) -> tuple[Frame, Any]:
    """Units and settings of what ``pack`` gave."""
    actions = (Discrete if header["discrete"] else Box)(**header["actions"])
    settings = {name: tuple(x) if isinstance(x, list) else x for name, x in header["config"].items()}
    return Frame(actions, {name: tensors[f"units.{name}"] for name in FRAME}), config(**settings)
