"""One's own machines as an Environment: what is wanted of them is known, their dynamics are not.

Simulators, planning scores and the checks of logs ask an Environment for its reward, its ends, its actions and its step limit.
What only the paper's experiments need (test agents, covariates, a name at Gymnasium) is empty here.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Box, Discrete, Environment


def own_environment(name: str, state_names: Sequence[str], actions: Discrete | Box, *,
                    reward: Callable[[Tensor, Tensor, Tensor], Tensor], max_steps: int,
                    ended: Callable[[Tensor], Tensor] | None = None,
                    reset: Callable[..., Tensor] | None = None) -> Environment:
    """An Environment of machines that were logged, to learn, train and plan for; it cannot be stepped itself.

    ``Simulator(model, environment, logged, starts="logged")`` puts a learned model in the place of the dynamics.

    Args:
        state_names: of its D dimensions, in the order of the logs.
        reward: (state (..., D), action (..., A), next_state (..., D)) -> (...), with torch; leading axes are any.
        max_steps: after which an episode is cut off.
        ended: state (..., D) -> bool (...), where an episode ends; None: nowhere.
        reset: (count, generator=...) -> first states (count, D); None: episodes start where logged ones did.

    Raises:
        ValueError: names that are one string or none, a limit below one; reward or ended that do not give one value per state.
    """
    if isinstance(state_names, str) or not state_names:
        raise ValueError(f"state_names: expected a list of names, got {state_names!r}; put it into [...]")
    check.count("max_steps", max_steps)
    ended = ended or _never
    state, action = torch.zeros((2, 3, len(state_names)), dtype=torch.float64), torch.zeros((2, 3, actions.size))
    action = action.long() if isinstance(actions, Discrete) else action.double() + actions.low
    for what, value in (("reward", reward(state, action, state)), ("ended", ended(state))):
        if not isinstance(value, Tensor) or value.shape != (2, 3):
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{what}: expected one number per state, a tensor of shape (2, 3) of states (2, 3, "
                             f"{len(state_names)}), got {got}; take dimensions as state[..., 0]")

    def unknown(*_: object, **__: object) -> Tensor:
        raise ValueError(f"{name}: expected a learned model, since nobody knows its dynamics or where it starts; use "
                         'Simulator(model, environment, logged, starts="logged"), or pass reset')

    return Environment(name=name, gym_id="", state_names=tuple(state_names), actions=actions, covariate_names=(),
                       covariate_low=(), covariate_high=(), test_agents=(), policy_training_agents=(), default_agent=(),
                       max_steps=max_steps, reset=reset or unknown, step=unknown, reward=reward, ended=ended)


def _never(state: Tensor) -> Tensor:
    return torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)
