"""The true environment as a DynamicsModel: what planning could reach with a perfect simulator."""

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Environment, EpisodeView
from lowrank_rl.rl.unroll import rollout


class TrueEnv:
    """Its context is the agent's covariates, which no learned model ever sees."""

    members = 1
    past, noisy = 0, False

    def __init__(self, environment: Environment, covariates: Tensor) -> None:
        """covariates: (N, E) of all agents."""
        self.environment, self.covariates = environment, covariates

    def context(self, view: EpisodeView) -> Tensor:
        check.within("agent", view.agent, len(self.covariates))
        return self.covariates.to(view.state.device)[view.agent][None]

    def predict(self, context: Tensor, state: Tensor, action: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        return self.environment.step(context[0], state[0], action)[None].to(state.dtype)

    def rollout(self, context: Tensor, state: Tensor, actions: Tensor,
                generator: torch.Generator | None = None) -> Tensor:
        if self.environment.rollout is None:
            return rollout(self, context, state, actions)
        B, C = actions.shape[:2]
        covariates, start = (x[0].repeat_interleave(C, dim=0) for x in (context, state))
        future = self.environment.rollout(covariates, start, actions.flatten(0, 1))
        return torch.cat([start[:, None], future.to(state.dtype)], dim=1).unflatten(0, (B, C))[None]
