"""Features of a continuous coordinate, and the modes that are linear in them: f(x) = features(x) @ weight.

A basis is drawn when it is built and fitted to the coordinates' spread and range by ``prepare``; both are buffers, so that
they travel with the module. All take coordinates as the module scales them.
"""

import math
import warnings
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import Tensor, nn

from lowrank_rl.rng import stream

SAMPLE = 1000    # coordinates whose distances give a bandwidth


class FourierBasis(nn.Module):
    """1, cos(w_j x), sin(w_j x) with w_j ~ N(0, 1 / bandwidth^2): random features of a Gaussian kernel of that width.

    (Rahimi & Recht, Random Features for Large-Scale Kernel Machines, NIPS 2007.) Without a bandwidth, ``prepare`` takes
    the median distance between two different coordinates, of at most ``SAMPLE`` that are drawn at random.
    """

    def __init__(self, inputs: int, pairs: int, bandwidth: float | None, *, generator: torch.Generator) -> None:
        super().__init__()
        self.automatic = bandwidth is None
        self.register_buffer("direction", torch.randn((inputs, pairs), generator=generator, dtype=torch.float64))
        self.register_buffer("bandwidth", torch.tensor(bandwidth or 1.0, dtype=torch.float64))
        self.size = 2 * pairs + 1

    def extra_repr(self) -> str:
        # two bases that print alike compute alike, given equal buffers
        return f"pairs={self.size // 2}, bandwidth={'automatic' if self.automatic else float(self.bandwidth)}"

    def prepare(self, x: Tensor) -> None:
        """Learn the bandwidth, unless it is given, from coordinates (B, inputs)."""
        _warn_of_constants("Fourier", x)
        if self.automatic:
            some = torch.randperm(len(x), generator=stream(0, "fourier", "bandwidth"))[:SAMPLE].to(x.device)
            distance = torch.pdist(x[some].double())
            distance = distance[distance > 0]
            self.bandwidth.copy_(distance.median() if len(distance) else torch.ones_like(self.bandwidth))

    def forward(self, x: Tensor) -> Tensor:
        angle = x @ (self.direction / self.bandwidth).to(x.dtype)
        scale = (2 / (self.size - 1)) ** 0.5      # so that the pairs' squares sum to 1
        return torch.cat([torch.ones_like(angle[..., :1]), scale * angle.cos(), scale * angle.sin()], -1)

    def roughness(self) -> Tensor:
        return _all_but_the_constant(self.size, self.direction)


class PolynomialBasis(nn.Module):
    """Products of Chebyshev polynomials up to a total degree, on the range of the coordinates seen."""

    def __init__(self, inputs: int, degree: int) -> None:
        super().__init__()
        picks = combinations_with_replacement(range(inputs + 1), degree)     # the last stands for no input at all
        powers = [tuple(pick.count(i) for i in range(inputs)) for pick in picks]
        powers.sort(key=lambda p: (sum(p), p[::-1]))
        self.degree, self.size = degree, len(powers)
        self.register_buffer("power", torch.tensor(powers), persistent=False)        # (size, inputs)
        self.register_buffer("low", -torch.ones(inputs, dtype=torch.float64))
        self.register_buffer("high", torch.ones(inputs, dtype=torch.float64))

    def extra_repr(self) -> str:
        return f"inputs={len(self.low)}, degree={self.degree}"

    def prepare(self, x: Tensor) -> None:
        """Learn the range from coordinates (B, inputs)."""
        _warn_of_constants("Polynomial", x)
        _set_range(self.low, self.high, x)

    def forward(self, x: Tensor) -> Tensor:
        t = ((2 * x - self.low - self.high) / (self.high - self.low)).to(x.dtype)
        chebyshev = [torch.ones_like(t), t]
        while len(chebyshev) <= self.degree:
            chebyshev.append(2 * t * chebyshev[-1] - chebyshev[-2])
        values = torch.stack(chebyshev, -1)                                          # (..., inputs, degree + 1)
        out = values[..., 0, :][..., self.power[:, 0]]
        for i in range(1, self.power.shape[1]):
            out = out * values[..., i, :][..., self.power[:, i]]
        return out

    def roughness(self) -> Tensor:
        return _all_but_the_constant(self.size, self.low)


class SplineBasis(nn.Module):
    """Products of B-splines on equal cells that cover the coordinates seen.

    Beyond these they go on as straight lines for one cell and then keep their value: products of straight lines grow without
    bound, and a simulator that feeds them its own predictions would run away.

    Each value touches (degree + 1)^inputs features only. ``roughness`` is the squared second difference of neighbouring
    coefficients along each input (P-splines: Eilers & Marx, Statistical Science 11(2), 1996), so that cells without data
    continue their neighbours.
    """

    def __init__(self, cells: tuple[int, ...], degree: int) -> None:
        super().__init__()
        self.degree, self.per_input = degree, [n + degree for n in cells]
        self.size = math.prod(self.per_input)
        self.register_buffer("cells", torch.tensor(cells, dtype=torch.float64), persistent=False)
        self.register_buffer("low", -torch.ones(len(cells), dtype=torch.float64))
        self.register_buffer("high", torch.ones(len(cells), dtype=torch.float64))
        self.register_buffer("pieces", _uniform_b_spline(degree), persistent=False)  # (degree + 1 splines, powers of t)

    def extra_repr(self) -> str:
        return f"cells={tuple(int(n) for n in self.cells)}, degree={self.degree}"

    def prepare(self, x: Tensor) -> None:
        """Learn the range from coordinates (B, inputs)."""
        _warn_of_constants("Spline", x)
        _set_range(self.low, self.high, x)

    def local(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The features that are not 0, and their values: (..., S) integers and (..., S), S = (degree + 1)^inputs."""
        place = ((x - self.low) / (self.high - self.low) * self.cells).to(x.dtype)
        cells = self.cells.to(x.dtype)
        inside = torch.minimum(place.clamp(min=0), cells)
        cell = torch.minimum(inside.detach().floor(), cells - 1)
        t = inside - cell
        power = torch.stack([t ** p for p in range(self.degree + 1)], -1)
        slope = torch.stack([p * t ** max(p - 1, 0) for p in range(self.degree + 1)], -1)
        pieces = self.pieces.to(x.dtype).T
        value = power @ pieces + (slope @ pieces) * (place - inside).clamp(-1, 1)[..., None]      # (..., inputs, degree + 1)
        index = cell.nan_to_num().long()[..., None] + torch.arange(self.degree + 1, device=x.device)
        all_index, all_value = index[..., 0, :], value[..., 0, :]
        for i in range(1, len(self.per_input)):
            all_index = (all_index[..., :, None] * self.per_input[i] + index[..., i, None, :]).flatten(-2)
            all_value = (all_value[..., :, None] * value[..., i, None, :]).flatten(-2)
        return all_index, all_value

    def forward(self, x: Tensor) -> Tensor:
        index, value = self.local(x)
        return value.new_zeros((*x.shape[:-1], self.size)).scatter_add(-1, index, value)

    def roughness(self) -> Tensor:
        total = torch.zeros((self.size, self.size), dtype=torch.float64)
        for i, n in enumerate(self.per_input):
            second = torch.eye(n, dtype=torch.float64).diff(n=min(2, n - 1), dim=0)
            line = second.T @ second + 1e-6 * torch.eye(n, dtype=torch.float64)
            before, after = math.prod(self.per_input[:i]), math.prod(self.per_input[i + 1:])
            total += torch.kron(torch.eye(before, dtype=torch.float64),
                                torch.kron(line, torch.eye(after, dtype=torch.float64)))
        return total.to(self.low.device)


class Expansion(nn.Module):
    """features(x) @ weight: (M, B, inputs) -> (M, B, W), M members over one basis.

    Starts with the constant feature at 1 and the others small, so that all terms begin as almost the same one.
    """

    def __init__(self, basis: nn.Module, members: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.basis = basis
        self.weight = nn.Parameter(torch.empty(members, basis.size, width))
        nn.init.normal_(self.weight, 0, 0.1, generator=generator)
        with torch.no_grad():
            if isinstance(basis, SplineBasis):
                self.weight += 1          # the splines sum to 1: this is the constant
            else:
                self.weight[:, 0] += 1

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.basis, SplineBasis):
            members, size, width = self.weight.shape
            index, value = self.basis.local(x)                               # (M, B, S)
            index = index + torch.arange(members, device=x.device)[:, None, None] * size
            table, total = self.weight.view(members * size, width), 0
            for s in range(index.shape[-1]):     # one at a time: together they would take S times the memory
                total = total + nn.functional.embedding(index[..., s], table) * value[..., s, None]
            return total
        return self.basis(x) @ self.weight


def _constant(x: Tensor) -> Tensor:
    """Which columns do not vary by more than rounding."""
    return x.amax(0) - x.amin(0) <= 1e-12 * x.abs().amax(0)


def _warn_of_constants(kind: str, x: Tensor) -> None:
    columns = _constant(x).nonzero()[:, 0].tolist()
    if columns:
        which = "its coordinate is" if x.shape[1] == 1 else f"of its columns 0..{x.shape[1] - 1}, {columns} are"
        warnings.warn(f"{kind} mode: {which} constant, so nothing can be learned of how values change along it; drop it, or "
                      "fit entries in which it varies", stacklevel=5)     # the caller of fit


def _set_range(low: Tensor, high: Tensor, x: Tensor) -> None:
    """The range of each column; one that is constant gets a unit to each side, or a millionth of itself if that is more."""
    low.copy_(x.amin(0))
    high.copy_(x.amax(0))
    margin = _constant(x) * (1e-6 * low.abs()).clamp(min=1)
    low -= margin
    high += margin


def _all_but_the_constant(size: int, like: Tensor) -> Tensor:
    """The plain ridge, which leaves a constant alone (but for a trace that keeps solves regular)."""
    diagonal = torch.ones(size, dtype=torch.float64, device=like.device)
    diagonal[0] = 1e-6
    return diagonal.diag()


def _uniform_b_spline(degree: int) -> Tensor:
    """Coefficients of the degree + 1 B-splines that live on one cell, as polynomials of t in [0, 1].

    Row i is the spline that began ``degree - i`` cells before (Cox-de Boor recursion on equal knots).
    """
    pieces = {(0, 0): np.polynomial.Polynomial([1.0])}
    t = np.polynomial.Polynomial([0.0, 1.0])
    for p in range(1, degree + 1):
        for i in range(p + 1):       # the spline of degree p whose support began i cells before this one
            left = pieces.get((p - 1, i), 0) * (t + i) / p
            right = pieces.get((p - 1, i - 1), 0) * (p + 1 - i - t) / p
            pieces[p, i] = left + right
    rows = [np.pad(pieces[degree, i].coef, (0, degree + 1 - len(pieces[degree, i].coef))) for i in range(degree, -1, -1)]
    return torch.from_numpy(np.stack(rows))
