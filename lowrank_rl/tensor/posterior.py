"""What the data leave open about a fitted functional CP: draws from its Gauss-Newton posterior, at any size.

Linearised at the fit, with P the penalties' matrix and noise of variance s^2, the weights' covariance is s^2 (J'J + P)^-1
(MacKay, A Practical Bayesian Framework for Backpropagation Networks, Neural Computation 4(3), 1992). It is never formed.
Perturb the data and the prior, and solve (Papandreou & Yuille, Gaussian Sampling by Local Perturbations, NIPS 2010):

    change = (J'J + P)^-1 (J' noise + s P^(1/2) xi),      xi ~ N(0, I).

So a draw is one run of the solver's conjugate gradients. What no entry determines in the weights (terms may trade their
sizes) does not touch predictions, to first order. Errors that every fit of this rank and these features shares are not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowrank_rl.rng import stream
from lowrank_rl.tensor.functional import FunctionalCP, FunctionalModule
from lowrank_rl.tensor.functional_als import ALSConfig
from lowrank_rl.tensor.functional_solve import Linearized, cholesky
from lowrank_rl.tensor.functional_starts import with_prior
from lowrank_rl.tensor.functional_state import State, features_of, start, update_prior, weights_of
from lowrank_rl.tensor.functional_system import Features, Penalty, System

ITERATIONS, TOLERANCE = 100, 1e-2     # of the conjugate gradients; 1e-4 moves deviations by 0.1%, far from the data by 5%
PRIOR_STEPS = 10                      # of expectation maximisation, for the spread of a mode's rows


@dataclass(frozen=True, eq=False)
class Posterior:
    """Draws of the weights around each member's own fit."""
    module: FunctionalModule
    weights: list[Tensor]           # of each mode, (M, F, outputs or 1, R)
    draws: list[list[Tensor]]       # each the changes of these weights

    @torch.no_grad()
    def variance(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Of the scaled predictions at scaled coordinates (B, ...), the mean over members: (B, D)."""
        module = self.module
        features = [features_of(mode, x) for mode, x in zip(module.modes, coordinates, strict=True)]
        target = self.weights[0].new_zeros((len(coordinates[0]), module.outputs))
        system = System(features, target, module.output_mode, module.members * module.outputs * module.rank)
        square = [sum(_change(found, slopes, draw).square() for draw in self.draws)
                  for _, found, slopes in _passes(system, self.weights)]
        return torch.cat(square, 1).mean(0) / len(self.draws)


@torch.no_grad()
def posterior(model: FunctionalCP, coordinates: Sequence[Tensor], noise: Tensor, *, draws: int, seed: int) -> Posterior:
    """Draw from the posterior of a fitted model, given the scaled coordinates (B, ...) of the entries it was fitted to.

    ``noise`` (D,) is the variance of each scaled output's error. ``draws`` are shared out among the members. A network's
    last layer counts as unknown, its hidden layers as known.
    """
    module, generator = model.module_, stream(seed, "posterior")
    state = _at_the_fit(model, coordinates, noise, generator)
    line = Linearized(state.system, state.weights, state.penalties, range(len(state.weights)), state.grams)
    roots = [_root(penalty) for penalty in state.penalties]
    changes = []
    for _ in range(math.ceil(draws / module.members)):
        right = [noise.mean().sqrt() * root(_normal(w.shape, w, generator))
                 for root, w in zip(roots, state.weights, strict=True)]
        error = noise.sqrt() * _normal((module.members, *state.system.target.shape), noise, generator)
        for rows, features, slopes in _passes(state.system, state.weights):
            for k, (total, slope) in enumerate(zip(right, slopes, strict=True)):
                value = slope * error[:, rows, :, None]
                features[k].add_transposed(total, value if k == module.output_mode else value.sum(2, keepdim=True))
        line.gradient = [-r for r in right]      # the right side that its solves are for
        changes.append(line.solve(iterations=ITERATIONS, tolerance=TOLERANCE))
    return Posterior(module, state.weights, changes)


def _at_the_fit(model: FunctionalCP, coordinates: Sequence[Tensor], noise: Tensor, generator: torch.Generator) -> State:
    """The solver's problem at the fitted weights, with its penalties. What its target is does not matter to a linearisation."""
    module, solver = model.module_, model.fitted_params_["solver"]
    share = solver.regularization if isinstance(solver, ALSConfig) else ALSConfig().regularization
    target = noise.new_zeros((len(coordinates[0]), module.outputs))
    state = start(module, coordinates, target, share, module.members, None, generator)
    state.weights = [weights_of(mode, module.outputs if k == module.output_mode else 1) for k, mode in enumerate(module.modes)]
    for k in with_prior(module):
        _loss, _gradient, (normal,) = state.system.linearize(state.weights, [k])
        for _ in range(PRIOR_STEPS):
            update_prior(state, k, normal, noise.mean().expand(module.members))
    return state


def _passes(system: System, weights: Sequence[Tensor]) -> Iterator[tuple[slice, list[Features], list[Tensor]]]:
    """Chunk by chunk: (rows, features, what multiplies each mode's factors (M, b, D or 1, R))."""
    for rows, features in system.chunks():
        factors = [f.times(w) for f, w in zip(features, weights, strict=True)]
        yield rows, features, [math.prod(factors[:k] + factors[k + 1:]) for k in range(len(factors))]


def _change(features: Sequence[Features], slopes: Sequence[Tensor], draw: Sequence[Tensor]) -> Tensor:
    """What changed weights do to the predictions, to first order, (M, b, D)."""
    return sum((slope * f.times(d)).sum(-1) for f, slope, d in zip(features, slopes, draw, strict=True))


def _root(penalty: Penalty) -> Callable[[Tensor], Tensor]:
    """Multiplies weights by a root of the penalty's matrix."""
    if penalty.roughness is not None:
        lower = torch.linalg.cholesky(penalty.roughness)
        return lambda v: torch.einsum("fg,mgdr->mfdr", lower, v)
    lower = cholesky(penalty.precision[:, None])[:, 0]
    return lambda v: torch.einsum("mrs,mfds->mfdr", lower, v)


def _normal(shape: Sequence[int], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(like.device)
