"""Planners: they see a score of candidate plans and the action space, never a model.

``score``: plans (B, C, H, A) -> (B, C), larger is better. Every row draws from its own generator, so that an episode's
plans do not depend on the episodes planned beside it.
"""

import math
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
class Proposals:
    """Plans that a policy would fly, such as one cloned from logs, and how near to them a search should stay."""
    plans: Tensor        # (B, K, H, A)
    pull: float          # what a step costs per unit of the mean squared distance of its action from the best proposal's


@dataclass(frozen=True)
class ShootingConfig:
    horizon: int = 50                    # H, real steps looked ahead
    candidates: int = 1000               # C, plans per decision
    stay: tuple[float, ...] = (0.0,)     # chances to repeat the last action, one drawn per candidate
    near: float = 0.0                    # share of the others that are the last plan with some actions drawn anew
    redraw: tuple[float, ...] = (0.05, 0.3)     # chances of that, one drawn per candidate

    def __post_init__(self) -> None:
        check.count("horizon", self.horizon)
        check.count("candidates", self.candidates)
        for name in ("stay", "redraw"):
            chances = getattr(self, name)
            if not chances or not all(0 <= p < 1 for p in chances):
                raise ValueError(f"{name}: expected probabilities in [0, 1), got {chances}")
        if not 0 <= self.near < 1:
            raise ValueError(f"near: expected a share in [0, 1), got {self.near}")


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


@dataclass(frozen=True)
class ICEMConfig:
    horizon: int = 30                    # H
    candidates: int = 100                # C, fresh plans of the first round
    elites: int = 10                     # plans to which the Gaussian is refitted
    rounds: int = 3
    decay: float = 1.25                  # each round draws so many times fewer fresh plans, but at least twice the elites
    colour: float = 0.5                  # spectral density of the noise over time ~ frequency ** -colour; 0: white
    kept: float = 0.3                    # share of the elites that stay candidates, in the next round and the next decision
    smoothing: float = 0.1               # share of the old mean and deviation kept at each refit
    spread: float = 0.5                  # deviation of the first round
    guided: float = 0.2                  # the same beside proposals

    def __post_init__(self) -> None:
        check.count("horizon", self.horizon, 2)
        check.count("rounds", self.rounds)
        if not 2 <= self.elites <= self.candidates:
            raise ValueError(f"elites: expected 2..{self.candidates} (candidates), got {self.elites}")
        for name, low, high in (("smoothing", 0, 1), ("kept", 0, 1)):
            if not low <= getattr(self, name) < high:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}")
        for name, low in (("decay", 1), ("colour", 0), ("spread", 1e-6), ("guided", 1e-6)):
            if not low <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number >= {low}, got {getattr(self, name)}")


def random_shooting(score: PlanScore, actions: Discrete, config: ShootingConfig, *, memory: Tensor | None,
                    generators: list[torch.Generator]) -> Plan:
    """The best of C random plans; the last plan, shifted by a step, is one of them (reference code of PerSim, ``mpc``).

    With ``near`` others are like it, so that a plan gets better from step to step, as long as it holds what it promised.
    """
    plans = torch.stack([_random_plans(actions, config, generator) for generator in generators])   # (B, C, H, 1)
    if memory is not None:
        plans[:, 0, :-1] = memory[:, 1:]
        count = round(config.near * (config.candidates - 1))
        if count:
            kept = torch.stack([_kept(count, config, generator) for generator in generators])
            plans[:, 1:count + 1] = torch.where(kept, plans[:, :1], plans[:, 1:count + 1])
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


def icem(score: PlanScore, actions: Box, config: ICEMConfig, *, memory: Tensor | None, generators: list[torch.Generator],
         proposals: Proposals | None = None) -> Plan:
    """Improved cross-entropy method (Pinneri and others, CoRL 2020): noise that is coloured over time moves joints farther than
    white noise does, elites stay candidates, and later rounds draw fewer plans.

    With ``proposals``, the best of them is a candidate, all plans are pulled towards it, and the search starts from the best of
    it and what is remembered; ``config.guided`` is then the first deviation.

    The chosen plan is the best of all rounds; the memory is the mean and the kept elites, (B, 1 + kept, H, A).
    """
    B, H, A = len(generators), config.horizon, actions.size
    kept = round(config.kept * config.elites)
    options = {"dtype": torch.float64, "device": generators[0].device}
    mean, old = torch.zeros((B, H, A), **options), torch.zeros((B, 0, H, A), **options)
    if memory is not None:      # a step later; the last action is held
        memory = torch.cat([memory[:, :, 1:], memory[:, :, -1:]], dim=2)
        mean, old = memory[:, 0], memory[:, 1:]
    rows, failures = torch.arange(B), 0
    if proposals is not None:
        value, failures = _finite_scores(score, proposals.plans)
        best = proposals.plans[rows, value.argmax(1)][:, None]
        score = _pulled(score, best, proposals.pull)
        old = torch.cat([mean[:, None], best, old], dim=1)
        value, bad = _finite_scores(score, old)
        failures += bad
        mean = old[rows, value.argmax(1)]
    deviation = torch.full((B, H, A), config.spread if proposals is None else config.guided, **options)
    best, best_value = mean, torch.full((B,), -torch.inf, **options)
    for number in range(config.rounds):
        count = max(2 * config.elites, round(config.candidates / config.decay**number))
        noise = torch.stack([_coloured(count, H, A, config.colour, g) for g in generators])
        plans = (mean[:, None] + deviation[:, None] * noise).clamp(actions.low, actions.high)
        plans = torch.cat([plans, old, mean[:, None]], dim=1)
        value, bad = _finite_scores(score, plans)
        failures += bad
        high, top = value.topk(config.elites, dim=1)
        top = top.where(high > -torch.inf, top[:, :1])                          # too few finite: the best in their stead
        elites = plans[rows[:, None], top]                                      # (B, elites, H, A), the best first
        better = high[:, 0].double() > best_value
        best = torch.where(better[:, None, None], elites[:, 0], best)
        best_value = torch.where(better, high[:, 0].double(), best_value)
        mean = config.smoothing * mean + (1 - config.smoothing) * elites.mean(1)
        deviation = config.smoothing * deviation + (1 - config.smoothing) * elites.std(1)
        old = elites[:, :kept]
    return Plan(best, torch.cat([mean[:, None], old], dim=1), failures)


def _pulled(score: PlanScore, towards: Tensor, pull: float) -> PlanScore:
    """The score less ``pull`` times the mean squared distance of each action from those of (B, 1, H, A)."""
    return lambda plans: score(plans) - pull * (plans - towards).square().mean(-1).sum(-1)


def _coloured(count: int, H: int, A: int, colour: float, generator: torch.Generator) -> Tensor:
    """Noise of mean 0 and variance 1 whose spectral density over H steps falls as frequency ** -colour (Timmer & Koenig,
    Astronomy and Astrophysics 300, 1995), (count, H, A)."""
    options = {"dtype": torch.float64, "device": generator.device}
    size = torch.fft.rfftfreq(H, **options).clamp_min(1 / H) ** (-colour / 2)
    real, imaginary = torch.randn((2, count, A, len(size)), generator=generator, **options) * size
    once = [0, *[-1] * (H % 2 == 0)]           # the mean and, of an even H, the highest frequency have no phase,
    real[..., once] *= math.sqrt(2)            # only a real part
    times = torch.full_like(size, 2.0)
    times[once] = 1
    deviation = (2 * times @ size.square()).sqrt() / H
    return (torch.fft.irfft(torch.complex(real, imaginary), n=H, dim=-1) / deviation).mT


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


def _kept(count: int, config: ShootingConfig, generator: torch.Generator) -> Tensor:
    """Which actions of the last plan so many candidates keep, (count, H, 1); each has its own chance to lose one."""
    chance = torch.tensor(config.redraw, device=generator.device)
    chance = chance[torch.randint(len(chance), (count, 1, 1), generator=generator, device=generator.device)]
    return torch.rand((count, config.horizon, 1), generator=generator, device=generator.device) >= chance


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
