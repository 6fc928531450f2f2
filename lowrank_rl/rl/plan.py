"""Planners: they see a score of candidate plans and the action space, never a model.

``score``: plans (B, C, H, A) -> (B, C), larger is better. Every row draws from its own generator, so that an episode's
plans do not depend on the episodes planned beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_rl import check
from lowrank_rl.rl.contracts import Box, Discrete

PlanScore = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Plan:
    actions: Tensor      # (B, H, A) the chosen plan; its first action is executed
    memory: Tensor       # (B, H, A) what the next search starts from, after a shift by one step
    non_finite: int      # candidate scores that were NaN or Inf and counted as the worst


@dataclass(frozen=True)
class ShootingConfig:
    horizon: int = 50                    # H, real steps looked ahead
    candidates: int = 1000               # C, plans per decision
    stay: tuple[float, ...] = (0.0,)     # chances to repeat the last action, one drawn per candidate

    def __post_init__(self) -> None:
        check.count("horizon", self.horizon)
        check.count("candidates", self.candidates)
        if not self.stay or not all(0 <= p < 1 for p in self.stay):
            raise ValueError(f"stay: expected probabilities in [0, 1), got {self.stay}")


@dataclass(frozen=True)
class CEMConfig:
    horizon: int = 30                    # H
    candidates: int = 200                # C, plans per round
    elites: int = 50                     # plans kept to refit the Gaussian
    rounds: int = 6                      # the first with the initial Gaussian
    smoothing: float = 0.1               # share of the old mean and deviation kept at each refit after the first
    spread: tuple[float, float] = (0.3, 0.6)   # the initial deviation is uniform in this range, one draw per decision

    def __post_init__(self) -> None:
        check.count("horizon", self.horizon)
        check.count("rounds", self.rounds)
        if not 2 <= self.elites <= self.candidates:
            raise ValueError(f"elites: expected 2..{self.candidates} (candidates), got {self.elites}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing: expected a share in [0, 1), got {self.smoothing}")
        if not 0 < self.spread[0] <= self.spread[1]:
            raise ValueError(f"spread: expected 0 < low <= high, got {self.spread}")


def random_shooting(score: PlanScore, actions: Discrete, config: ShootingConfig, *, memory: Tensor | None,
                    generators: list[torch.Generator]) -> Plan:
    """The best of C random plans; the last plan, shifted by a step, is one of them (reference code of PerSim, ``mpc``)."""
    plans = torch.stack([_random_plans(actions, config, generator) for generator in generators])   # (B, C, H, 1)
    if memory is not None:
        plans[:, 0, :-1] = memory[:, 1:]
    value, bad = _finite_scores(score, plans)
    best = plans[torch.arange(len(plans)), value.argmax(1)]
    return Plan(best, best, bad)


def cem(score: PlanScore, actions: Box, config: CEMConfig, *, memory: Tensor | None,
        generators: list[torch.Generator]) -> Plan:
    """Cross-entropy method with Gaussians truncated to the bounds (reference code of PerSim, ``mpc``).

    The chosen plan is the mean of the last round's elites; the memory is the smoothed mean.
    Differs from the paper's appendix D.1, which takes the best single plan.
    """
    B, H, A = len(generators), config.horizon, actions.size
    low, high = config.spread
    options = {"dtype": torch.float64, "device": generators[0].device}
    mean = torch.zeros((B, H, A), **options)
    if memory is not None:
        mean[:, :-1] = memory[:, 1:]
    deviation = torch.stack([low + (high - low) * torch.rand((1, 1), generator=g, **options) for g in generators])
    deviation = deviation.expand(B, H, A)
    failures = 0
    for number in range(config.rounds):
        uniform = torch.stack([torch.rand((config.candidates, H, A), generator=g, **options) for g in generators])
        plans = _truncated_normal(uniform, mean[:, None], deviation[:, None], actions)
        value, bad = _finite_scores(score, plans)
        failures += bad
        best, top = value.topk(config.elites, dim=1)
        top = top.where(best > -torch.inf, top[:, :1])                          # too few finite: the best in their stead
        elites = plans[torch.arange(B)[:, None], top]                           # (B, elites, H, A)
        elite_mean, elite_deviation = elites.mean(1), elites.std(1)
        keep = 0.0 if number == 0 else config.smoothing
        mean = keep * mean + (1 - keep) * elite_mean
        deviation = keep * deviation + (1 - keep) * elite_deviation
    return Plan(elite_mean, mean, failures)


def _random_plans(actions: Discrete, config: ShootingConfig, generator: torch.Generator) -> Tensor:
    """C random plans (C, H, 1); with ``stay`` an action is repeated with the candidate's own chance."""
    C, H = config.candidates, config.horizon
    plans = actions.sample((C, H), generator=generator)
    if config.stay == (0.0,):
        return plans
    device = generator.device
    chance = torch.tensor(config.stay, device=device)
    chance = chance[torch.randint(len(chance), (C, 1), generator=generator, device=device)]
    fresh = torch.rand((C, H), generator=generator, device=device) >= chance
    since = torch.where(fresh, torch.arange(H, device=device), 0).cummax(1).values    # when the action last changed
    return plans.gather(1, since[..., None])


def _truncated_normal(uniform: Tensor, mean: Tensor, deviation: Tensor, bounds: Box) -> Tensor:
    """Normal draws conditioned on the bounds, by inverting the distribution function."""
    deviation = deviation.clamp_min(1e-6)
    below, above = (torch.special.ndtr((bound - mean) / deviation) for bound in (bounds.low, bounds.high))
    quantile = below + (above - below) * uniform
    return (mean + deviation * torch.special.ndtri(quantile)).clamp(bounds.low, bounds.high)


def _finite_scores(score: PlanScore, plans: Tensor) -> tuple[Tensor, int]:
    """Scores with NaN and Inf as minus infinity, and how many those were.

    Raises:
        ValueError: a row has no plan with a finite score.
    """
    value = score(plans)
    bad = ~torch.isfinite(value)
    if bad.all(1).any():
        row = int(bad.all(1).nonzero()[0])
        raise ValueError(f"planning: expected at least one plan with a finite score, got none of {value.shape[1]} in row "
                         f"{row}; the model's predictions are NaN or Inf there, so train longer or check its data")
    return value.masked_fill(bad, -torch.inf), int(bad.sum())
