"""From what is known of some agents, their covariates, to the latent rows that PerSim gave them (PerSim, appendix F.5).

    u(agent) = f(covariates) + error,   f fitted to those n of the N training agents whose covariates are known

Latent rows mean nothing by themselves: a member's factors may be permuted, rescaled and, where columns are parallel, mixed
(in MountainCar two of three are), so that two members, or two trainings, have different rows for the same simulator. Here that
does no harm: each member has one frame, all its agents stand in it, and f is fitted to one member at a time. Least squares
even commutes with a change of frame. It would do harm to average rows over members, or to use one member's f in another:
average predictions instead, as everything here does.

    who = known_agents(500, 0.1, generator=rng.stream(0, "known"))
    f = fit_network(model, who, covariates[who], seed=0)    # the paper's; ``row_polynomials.fit_polynomial`` is ours
    f.rows(covariates_of_new_agents)                        # (M, U, R); ``unseen`` makes simulators of them
"""

import warnings
from dataclasses import dataclass
from typing import Protocol

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from torch import Tensor

from lowrank_rl import check, rng
from lowrank_rl.rl.models.persim import PerSim

FOLDS = 5          # of the network's held-out errors


class Regression(Protocol):
    """Rows of agents by their covariates (U, E)."""

    def rows(self, covariates: Tensor) -> Tensor:
        """The likeliest, (M, U, R), float64."""

    def cloud(self, covariates: Tensor) -> Tensor:
        """Where they may be, (M, U, 2 n, R): the likeliest plus and minus errors at agents that were held out."""


@dataclass(frozen=True)
class NetworkConfig:
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 1e-3          # Differs: this and all that follows is not in the paper
    epochs: int = 2000                   # at most
    patience: int = 50                   # epochs without progress that end it


@dataclass(frozen=True, eq=False)
class Networks:
    """Of each member a multilayer perceptron."""
    x: Tensor                              # (n, E) known covariates, scaled to -1..1
    y: Tensor                              # (M, n, R) known rows, scaled
    middle: Tensor                         # (E,) of the known covariates
    half: Tensor                           # (E,)
    mean: Tensor                           # (M, R) of the known rows
    size: Tensor                           # (M,) one number for all columns, so that noisy ones are not blown up
    config: NetworkConfig
    seed: int
    fits: tuple[MLPRegressor, ...]

    def rows(self, covariates: Tensor) -> Tensor:
        x = (checked_covariates(covariates, len(self.middle)) - self.middle) / self.half
        return self.mean[:, None] + self.size[:, None, None] * torch.stack([_ask(fit, x) for fit in self.fits])

    def cloud(self, covariates: Tensor) -> Tensor:
        """Fits FOLDS more networks for each member, none of which is told of one part of the agents."""
        rows, n = self.rows(covariates), len(self.x)
        fold = torch.arange(n)[torch.randperm(n, generator=rng.stream(self.seed, "folds"))] % min(FOLDS, n)
        error = torch.empty_like(self.y)
        for m, y in enumerate(self.y):
            for number in fold.unique().tolist():
                out = fold == number
                error[m, out] = y[out] - _ask(_network(self.x[~out], y[~out], self.config, self.seed, m, number), self.x[out])
        error = error * self.size[:, None, None]
        return around(rows, error[:, None].expand(-1, rows.shape[1], -1, -1))


def known_agents(agents: int, fraction: float, *, generator: torch.Generator) -> Tensor:
    """Those of ``agents`` whose covariates are known, drawn without replacement, sorted; small shares are in large ones.

    Raises:
        ValueError: a fraction outside (0, 1], or one of so few agents that none is left.
    """
    check.count("agents", agents)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction: expected a share of the training agents in (0, 1], got {fraction}")
    count = round(fraction * agents)
    if count == 0:
        raise ValueError(f"fraction: expected at least one of {agents} agents to be known, got {fraction}; know more of them")
    return torch.randperm(agents, generator=generator)[:count].sort().values


def fewest(covariates: int) -> int:
    """How many agents must be known: a plane, and something left to tell its error."""
    return covariates + 3


def fit_network(model: PerSim, agent: Tensor, covariates: Tensor, config: NetworkConfig = NetworkConfig(), *,
                seed: int) -> Networks:
    """The paper's way: a multilayer perceptron with two hidden layers of 64 units, for each member.

    scikit-learn's, by Adam. The paper gives neither rate nor epochs.

    Args:
        agent: (n,) which training agents are known. covariates: (n, E) theirs.

    Raises:
        ValueError: shapes that disagree, NaN or Inf, an agent out of range or known twice, or too few of them.
    """
    rows, covariates = known_rows(model, agent, covariates)
    middle, half = middle_and_half(covariates)
    x, mean = (covariates - middle) / half, rows.mean(1)
    size = (rows - mean[:, None]).square().mean((1, 2)).sqrt()
    size = torch.where(size > 0, size, torch.ones_like(size))
    y = (rows - mean[:, None]) / size[:, None, None]
    fits = tuple(_network(x, y[m], config, seed, m, "all") for m in range(len(y)))
    return Networks(x, y, middle, half, mean, size, config, seed, fits)


def check_personal(model: object) -> None:
    """Refuse what has no latent row for each agent."""
    if not isinstance(model, PerSim) or not model.personal:
        got = "one that does not tell agents apart" if isinstance(model, PerSim) else type(model).__name__
        raise ValueError(f"model: expected a PerSim with a row for each agent, got {got}; fit_persim gives one")


def _network(x: Tensor, y: Tensor, config: NetworkConfig, seed: int, *label: object) -> MLPRegressor:
    network = MLPRegressor(hidden_layer_sizes=config.hidden, learning_rate_init=config.learning_rate, max_iter=config.epochs,
                           tol=1e-6, n_iter_no_change=config.patience,
                           random_state=rng.integer(seed, "row network", *label) % 2 ** 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)     # the last epoch is an end like another
        return network.fit(x.numpy(), y.numpy() if y.shape[1] > 1 else y[:, 0].numpy())


def _ask(fit: MLPRegressor, x: Tensor) -> Tensor:
    return torch.from_numpy(fit.predict(x.numpy())).double().reshape(len(x), -1)


def around(rows: Tensor, error: Tensor) -> Tensor:
    """rows (M, U, R) and errors (M, U, n, R): both signs, so that the rows are the cloud's mean."""
    return torch.cat([rows[:, :, None] + error, rows[:, :, None] - error], 2)


def middle_and_half(x: Tensor) -> tuple[Tensor, Tensor]:
    """Middle and half range of columns; 1 where nothing varies."""
    low, high = x.amin(0), x.amax(0)
    return (low + high) / 2, torch.where(high > low, (high - low) / 2, 1)


def known_rows(model: PerSim, agent: Tensor, covariates: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (M, n, R) and covariates (n, E) of known agents, checked, in double precision on the CPU."""
    check_personal(model)
    agent, covariates = torch.as_tensor(agent).cpu(), torch.as_tensor(covariates)
    if covariates.ndim != 2:
        raise ValueError(f"covariates: expected (known agents, covariates), got shape {tuple(covariates.shape)}")
    check.shapes(agent=(agent, "n"), covariates=(covariates, "n E"))
    if agent.is_floating_point() or len(agent.unique()) < len(agent):
        raise ValueError(f"agent: expected the numbers of different agents, got {agent.dtype} with {len(agent.unique())} "
                         f"different ones among {len(agent)}")
    check.within("agent", agent, model.rows.shape[1])
    covariates = checked_covariates(covariates, covariates.shape[1])
    least = fewest(covariates.shape[1])
    if len(agent) < least:
        raise ValueError(f"agent: expected at least {least} known agents for {covariates.shape[1]} covariates, got "
                         f"{len(agent)} of {model.rows.shape[1]}; know a larger fraction, or fold the new agents in from steps")
    return model.rows[:, agent.to(model.rows.device)].double().cpu(), covariates


def checked_covariates(covariates: Tensor, width: int) -> Tensor:
    """(U, width) in double precision on the CPU; refuses another width, NaN and Inf."""
    covariates = torch.as_tensor(covariates)
    if covariates.ndim != 2 or covariates.shape[1] != width:
        raise ValueError(f"covariates: expected shape (agents, {width}), as the regression was fitted with, got "
                         f"{tuple(covariates.shape)}")
    check.finite("covariates", covariates)
    return covariates.double().cpu()
