"""One exact fit in progress: the weights of every mode, and the steps that improve them.

A functional CP is linear in each mode's weights. A sweep solves each in turn (alternating least squares); a
Levenberg-Marquardt step moves all at once, out of what makes sweeps creep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lowrank_rl.nets import Mlp
from lowrank_rl.tensor.bases import Expansion, SplineBasis
from lowrank_rl.tensor.functional_schur import Elimination
from lowrank_rl.tensor.functional_solve import Linearized, cholesky
from lowrank_rl.tensor.functional_system import Dense, Features, Local, Penalty, Rows, System
from lowrank_rl.tensor.modes import Rows as Table

TAIL = 50      # degrees of freedom of the noise: only errors beyond some seven standard deviations count less
DAMPING = 1e-12, 1e6    # its bounds, in units of a mode's mean curvature
STEPS = 15     # conjugate gradient iterations of a Levenberg-Marquardt step


@dataclass
class State:
    """Where a fit stands. P counts members and spare starts."""
    system: System
    weights: list[Tensor]        # of each mode, (P, F, D or 1, R)
    penalties: list[Penalty]
    output_mode: int
    damping: Tensor              # (P,) of the next Levenberg-Marquardt step
    reluctance: Tensor           # (P,) by what a step in vain multiplies it
    grams: dict[int, Tensor] = field(default_factory=dict)
    elimination: list[Elimination | None] = field(default_factory=list)    # empty before the first such step

    def penalized(self, weights: list[Tensor]) -> Tensor:
        """What exact steps never raise: squared errors and penalties, (P,)"""
        return self.system.loss(weights) + sum(p.value(w) for p, w in zip(self.penalties, weights, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """All that changes from step to step."""
        out = {"damping": self.damping, "reluctance": self.reluctance, **{f"weight{k}": w for k, w in enumerate(self.weights)}}
        for k, penalty in enumerate(self.penalties):
            if penalty.roughness is None:
                out |= {f"mean{k}": penalty.mean, f"precision{k}": penalty.precision}
        return out if self.system.robust is None else {**out, "robust": self.system.robust}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of ``tensors``."""
        # copies, since sums over memory that is aligned otherwise differ in their last bits
        tensors = {name: value.to(self.damping.device, copy=True) for name, value in tensors.items()}
        self.damping, self.reluctance, self.system.robust = (tensors.get(n) for n in ("damping", "reluctance", "robust"))
        self.weights = [tensors[f"weight{k}"] for k in range(len(self.weights))]
        for k, penalty in enumerate(self.penalties):
            if penalty.roughness is None:
                penalty.mean, penalty.precision = tensors[f"mean{k}"], tensors[f"precision{k}"]

    def part(self, members: Tensor) -> State:
        """Some of the members, by index, to be improved and ``put`` back."""
        return State(self.system.part(members), [w[members] for w in self.weights], [p.part(members) for p in self.penalties],
                     self.output_mode, self.damping[members], self.reluctance[members], self.grams, self.elimination)

    def renew(self, weights: list[Tensor], beginning: dict[str, Tensor]) -> None:
        """Begin anew at these weights; ``beginning``: ``tensors()`` from before the first step."""
        self.load(beginning)
        self.weights = [w.clone() for w in weights]

    def put(self, part: State, members: Tensor) -> None:
        """Take over what has become of these members."""
        for mine, its in zip(self.weights, part.weights, strict=True):
            mine[members] = its
        for mine, its in zip(self.penalties, part.penalties, strict=True):
            if mine.roughness is None:
                mine.mean[members], mine.precision[members] = its.mean, its.precision
        self.damping[members], self.reluctance[members] = part.damping, part.reluctance
        if part.system.robust is not None:
            if self.system.robust is None:
                self.system.robust = torch.ones((len(self.damping), len(self.system)), dtype=torch.float64,
                                                device=self.damping.device)
                if self.system.weight is not None:
                    self.system.robust *= self.system.weight
            self.system.robust[members] = part.system.robust


def start(module: nn.Module, coordinates: Sequence[Tensor], target: Tensor, regularization: float | tuple[float, ...],
          copies: int, weight: Tensor | None, generator: torch.Generator, *, at_once: int | None = None) -> State:
    """The first weights of ``copies`` starts, of which ``at_once`` (all) will be worked on together, and their cost.

    Rows start at N(0, 1): exact solves need no likeness at the start, and from nearly equal rows they end in worse minima.
    Beside networks, which learn by gradients in between, the modes keep their own start.
    """
    B, D = target.shape
    order = _by_cell(module, coordinates)
    features = [features_of(mode, x[order]) for mode, x in zip(module.modes, coordinates, strict=True)]
    target, weight = target[order], None if weight is None else weight[:, order]
    system = System(features, target.double(), module.output_mode, (at_once or copies) * D * module.rank, weight)
    share = regularization if isinstance(regularization, tuple) else (regularization,) * len(features)
    if len(share) != len(features):
        raise ValueError(f"regularization: expected one number or {len(features)}, one per mode, got {len(share)}")
    networks = any(isinstance(mode, Mlp) for mode in module.modes)
    drawn = None if networks else random_weights(module, D, copies, generator)
    weights, penalties = [], []
    for k, mode in enumerate(module.modes):
        w = weights_of(mode, D if k == module.output_mode else 1) if drawn is None else drawn[k]
        weights.append(w)
        if isinstance(mode, Table):
            R = w.shape[-1]
            eye = torch.eye(R, dtype=w.dtype, device=w.device).expand(len(w), R, R)
            penalties.append(Penalty(torch.zeros_like(w[:, :1]), share[k] * B / w.shape[1] * eye))
        else:
            penalties.append(Penalty(roughness=share[k] * B * _roughness(mode, w)))
    each = torch.ones(copies, dtype=torch.float64, device=target.device)
    return State(system, weights, penalties, module.output_mode, 1e-2 * each, 2 * each)


def random_weights(module: nn.Module, outputs: int, copies: int, generator: torch.Generator) -> list[Tensor]:
    """Rows from N(0, 1), and functions of about that size: (copies, F, outputs or 1, R) of each mode."""
    out = []
    for k, mode in enumerate(module.modes):
        shape = weights_of(mode, outputs if k == module.output_mode else 1)
        draw = torch.randn((copies, *shape.shape[1:]), generator=generator, dtype=torch.float64).to(shape.device)
        out.append(draw / draw.shape[1] ** 0.5 if isinstance(mode, Expansion) else draw)
    return out


def sweep(state: State) -> dict[int, Tensor]:
    """Solve each mode once, the one with the outputs last; the normal matrices by mode."""
    others = [k for k in range(len(state.weights)) if k != state.output_mode]
    return {k: solve(state, k) for k in (*others, state.output_mode)}


def solve(state: State, k: int) -> Tensor:
    """Solve mode k, the others fixed; its normal matrices."""
    line = Linearized(state.system, state.weights, state.penalties, [k], state.grams)
    state.weights[k] = state.weights[k] + line.solve(tolerance=1e-2)[0]
    return line.blocks[0]


def levenberg_marquardt(state: State) -> None:
    """One step over all modes; where it does not lower the penalised loss, the weights stay and the next is damped more.

    By how much the damping changes follows from how much of the gain that the linear model promised came true (Nielsen:
    Damping Parameter in Marquardt's Method, IMM-REP-1999-05, Technical University of Denmark).
    """
    line = Linearized(state.system, state.weights, state.penalties, range(len(state.weights)), state.grams)
    if not state.elimination:
        state.elimination.append(Elimination.of(line))
    ridges, elimination = line.ridges(state.damping), state.elimination[0]
    if elimination and len(state.damping) > elimination.members:
        for members in torch.arange(len(state.damping), device=state.damping.device).split(elimination.members):
            part = state.part(members)
            levenberg_marquardt(part)
            state.put(part, members)
        return
    changes = elimination.solve(line, ridges) if elimination else line.solve(ridges, iterations=STEPS, tolerance=1e-2)
    new = [w + c for w, c in zip(line.weights, changes, strict=True)]
    after = state.penalized(new)
    better = after < line.loss
    state.weights = [torch.where(better.view(-1, 1, 1, 1), n, w) for n, w in zip(new, state.weights, strict=True)]
    promised = sum(((r * c - g) * c).sum((1, 2, 3)) for r, g, c in zip(ridges, line.gradient, changes, strict=True))
    kept = (line.loss - after) / promised.clamp(min=torch.finfo(promised.dtype).tiny)
    less, more = (1 - (2 * kept - 1) ** 3).clamp(min=1 / 3), state.reluctance
    state.damping = (state.damping * torch.where(better, less, more)).clamp(DAMPING[0], DAMPING[1])
    state.reluctance = torch.where(better, torch.full_like(more, 2), 2 * more).clamp(max=1e3)


def rescale(state: State) -> None:
    """Move the terms' sizes into the mode with the outputs, so that none grows while another shrinks.

    The tensor and what rows cost stay the same; what roughness costs does not, nor what the mode with the outputs costs.
    """
    for k, w in enumerate(state.weights):
        if k == state.output_mode:
            continue
        size = w.square().sum((1, 2), keepdim=True)
        if state.penalties[k].roughness is None:
            size = size / w.shape[1]
        size = torch.where(size > 0, size, torch.ones_like(size)).sqrt()
        state.weights[k] = w / size
        state.weights[state.output_mode] = state.weights[state.output_mode] * size
        if state.penalties[k].roughness is None:
            state.penalties[k].rescale(size)


def set_aside_outliers(state: State) -> tuple[Tensor, Tensor]:
    """Weigh entries by Student's t with ``TAIL`` degrees of freedom around the present fit.

    Gives the noise's variance (P,) and the sum of all squared errors (P,), without these weights. A row has few entries, and
    one that no tensor of this rank fits, such as a car that hits a wall, would spoil it. (Lange, Little, Taylor: Robust
    Statistical Modeling Using the t Distribution, JASA 84(408), 1989.)
    """
    system = state.system
    square = torch.cat([error.square().sum(-1) for _, _, _, error in system.errors(state.weights)], 1)     # (P, B)
    D, base = system.target.shape[1], 1.0 if system.weight is None else system.weight
    total = (base * square).sum(1)
    noise = total[:, None] / (D * square.shape[1])
    for _ in range(20):
        weight = base * (TAIL + D) / (TAIL + square / noise.clamp(min=torch.finfo(square.dtype).tiny))
        noise = (weight * square).sum(1, keepdim=True) / (D * square.shape[1])
    system.robust = weight
    return noise[:, 0], total


def update_prior(state: State, k: int, normal: Tensor, noise: Tensor) -> None:
    """Mean and covariance of mode k's rows, each known as well as its entries say: one step of expectation maximisation.

    normal (P, F, R, R) sums the entries' outer products, noise (P,) is the variance of an output's error.
    """
    penalty, rows = state.penalties[k], state.weights[k][:, :, 0]
    if not bool((noise > 1e-30).all()):      # an exact fit: rows need no prior
        return
    spread = noise[:, None, None] * torch.cholesky_inverse(cholesky(normal + penalty.precision[:, None])).mean(1)
    mean = rows.mean(1, keepdim=True)
    covariance = (rows - mean).mT @ (rows - mean) / rows.shape[1] + spread
    trace = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)
    factor = cholesky((covariance + (1e-10 * trace + 1e-300) * eye)[:, None])[:, 0]
    state.penalties[k] = Penalty(mean[:, :, None], noise[:, None, None] * torch.cholesky_inverse(factor))


def features_of(mode: nn.Module, x: Tensor) -> Callable[[slice], Features]:
    """A function from a slice of entries to the mode's features there, in double precision."""
    if isinstance(mode, Table):
        return lambda rows: Rows(x[rows], mode.table.shape[1])
    if isinstance(mode, Mlp):
        def hidden(rows: slice) -> Dense:
            last = mode.features(x[rows].expand(len(mode.layers[-1].weight), -1, -1)).double()
            return Dense(torch.cat([last, torch.ones_like(last[..., :1])], -1))
        return hidden
    if isinstance(mode.basis, SplineBasis):
        return lambda rows: Local(*mode.basis.local(x[rows].double()), mode.basis.size)
    return lambda rows: Dense(mode.basis(x[rows].double()))


def weights_of(mode: nn.Module, outputs: int) -> Tensor:
    """The weights that a mode is linear in, (M, F, outputs or 1, R)"""
    if isinstance(mode, Table):
        weight = mode.rows()
    elif isinstance(mode, Expansion):
        weight = mode.weight
    else:
        weight = torch.cat([mode.layers[-1].weight, mode.layers[-1].bias], 1)
    return weight.detach().double().unflatten(-1, (outputs, -1))


def store(module: nn.Module, weights: Sequence[Tensor]) -> None:
    """Write the weights, one set per member, into the module."""
    for mode, weight in zip(module.modes, weights, strict=True):
        flat = weight.flatten(2)
        with torch.no_grad():
            if isinstance(mode, Table):
                mode.table.copy_(flat)
                mode.bias.zero_()
            elif isinstance(mode, Expansion):
                mode.weight.copy_(flat)
            else:
                mode.layers[-1].weight.copy_(flat[:, :-1])
                mode.layers[-1].bias.copy_(flat[:, -1:])


def _by_cell(module: nn.Module, coordinates: Sequence[Tensor]) -> Tensor:
    """An order in which entries of one spline cell stand together, so that their normal matrices are summed at once."""
    for mode, x in zip(module.modes, coordinates, strict=True):
        if isinstance(mode, Expansion) and isinstance(mode.basis, SplineBasis):
            return torch.cat([mode.basis.local(part)[0][:, 0] for part in x.split(1 << 16)]).argsort(stable=True)
    return torch.arange(len(coordinates[0]), device=coordinates[0].device)


def _roughness(mode: nn.Module, weight: Tensor) -> Tensor:
    if isinstance(mode, Expansion):
        return mode.basis.roughness().to(weight.device)
    diagonal = torch.ones(weight.shape[1], dtype=weight.dtype, device=weight.device)
    diagonal[-1] = 1e-6      # the bias
    return diagonal.diag()
