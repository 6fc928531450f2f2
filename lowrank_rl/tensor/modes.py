"""What one mode of a functional CP can be: the user's description, and the module that it builds.

A mode turns its coordinate into a row of factors. With members M, rows B and width W (the rank R, or R x outputs for
the mode that carries the output axis), every module maps its coordinate to (M, B, W).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor, nn

from lowrank_rl import check
from lowrank_rl.nets import ACTIVATIONS, PRECISIONS, Mlp
from lowrank_rl.tensor.bases import Expansion, FourierBasis, PolynomialBasis, SplineBasis

INITS = ("nearly_equal", "linear")
MOST = 10_000     # features of a mode: an exact solve takes their number to the third power


@dataclass(frozen=True)
class Categorical:
    """A mode of ``size`` unordered things; its coordinate is an integer 0..size-1, shape (B,).

    ``init="nearly_equal"``: all rows start at 1 + 0.1 N(0, 1), so that every category begins as almost the same one
    and differences grow where the data ask for them; rows drawn N(0, 1) train 5 to 90 times worse.
    ``init="linear"``: PyTorch's default for a linear layer with bias on one-hot input, as PerSim's authors start.
    """
    size: int
    init: str = "nearly_equal"

    def __post_init__(self) -> None:
        check.count("Categorical size", self.size)
        check.known("init of a Categorical mode", self.init, INITS)

    def coordinate(self, name: str, x: Tensor) -> Tensor:
        """The coordinate, checked, as int64 (B,)."""
        check.shapes(**{name: (x, "B")})
        if x.is_floating_point():
            check.finite(name, x)
            if not torch.equal(x, x.round()):
                raise ValueError(f"{name}: expected integers 0..{self.size - 1} for a Categorical mode, got fractions")
        x = x.long()
        check.within(name, x, self.size)
        return x

    def build(self, members: int, width: int, *, generator: torch.Generator) -> nn.Module:
        return Rows(members, self.size, width, self.init, generator=generator)


class _Continuous:
    """A mode whose coordinate is ``inputs`` numbers."""
    inputs: int

    def coordinate(self, name: str, x: Tensor) -> Tensor:
        """The coordinate, checked, as floats (B, inputs); one input may come as (B,)."""
        if x.ndim == 1 and self.inputs == 1:
            x = x[:, None]
        check.shapes(**{name: (x, "B inputs")})
        if x.shape[1] != self.inputs:
            raise ValueError(f"{name}: expected {self.inputs} columns for this {type(self).__name__} mode, got {x.shape[1]}")
        x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        check.finite(name, x)
        return x


@dataclass(frozen=True)
class Neural(_Continuous):
    """A mode of continuous coordinates, shape (B, inputs), whose factors are a multilayer perceptron's outputs."""
    inputs: int
    hidden: tuple[int, ...] = (256,)
    activation: str = "relu"
    precision: str = "full"     # "bfloat16": faster hidden layers, for deep networks on noisy or large problems

    def __post_init__(self) -> None:
        if isinstance(self.hidden, Integral):
            raise ValueError(f"Neural hidden: expected sizes such as ({self.hidden},), got {self.hidden}")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        check.count("Neural inputs", self.inputs)
        for n in self.hidden:
            check.count("Neural hidden size", n)
        check.known("activation", self.activation, ACTIVATIONS)
        check.known("precision", self.precision, PRECISIONS)

    def build(self, members: int, width: int, *, generator: torch.Generator) -> nn.Module:
        return Mlp(members, (self.inputs, *self.hidden, width), self.activation, self.precision, generator=generator)


@dataclass(frozen=True)
class Fourier(_Continuous):
    """A mode of continuous coordinates, shape (B, inputs), whose factors are random Fourier series: smooth functions."""
    inputs: int
    features: int = 150              # waves, half of them cosines and half sines
    bandwidth: float | None = None   # length over which the factors vary, in scaled coordinates; None: their median distance

    def __post_init__(self) -> None:
        check.count("Fourier inputs", self.inputs)
        check.count("Fourier features", self.features, 2)
        if self.bandwidth is not None and not (isinstance(self.bandwidth, Real) and 0 < self.bandwidth < math.inf):
            raise ValueError(f"Fourier bandwidth: expected a number above 0, or None to take it from the data, "
                             f"got {self.bandwidth!r}")

    def build(self, members: int, width: int, *, generator: torch.Generator) -> nn.Module:
        basis = FourierBasis(self.inputs, self.features // 2, self.bandwidth, generator=generator)
        return Expansion(basis, members, width, generator=generator)


@dataclass(frozen=True)
class Spline(_Continuous):
    """A mode of one to three continuous coordinates, shape (B, inputs), whose factors are (products of) B-splines.

    The only basis that stays local: what happens at one place leaves the others alone.
    """
    inputs: int
    cells: int | tuple[int, ...] = 16   # equal cells along all inputs or each, over the coordinates seen
    degree: int = 3                     # of the pieces: 1 is piecewise linear, 3 cubic

    def __post_init__(self) -> None:
        check.count("Spline inputs", self.inputs)
        cells = tuple(self.cells) if isinstance(self.cells, Sequence) else (self.cells,) * self.inputs
        if len(cells) != self.inputs:
            raise ValueError(f"Spline cells: expected one number or {self.inputs}, one per input, got {self.cells!r}")
        for n in cells:
            check.count("Spline cells", n)
        object.__setattr__(self, "cells", tuple(int(n) for n in cells))
        check.count("Spline degree", self.degree)
        size = math.prod(n + self.degree for n in cells)
        if size > MOST:
            raise ValueError(f"Spline: expected at most {MOST} features, got {size} for {cells} cells of degree "
                             f"{self.degree}; use fewer cells, or Fourier or Polynomial for many inputs")

    def build(self, members: int, width: int, *, generator: torch.Generator) -> nn.Module:
        return Expansion(SplineBasis(self.cells, self.degree), members, width, generator=generator)


@dataclass(frozen=True)
class Polynomial(_Continuous):
    """A mode of continuous coordinates, shape (B, inputs), whose factors are polynomials (products of Chebyshev's)."""
    inputs: int
    degree: int = 3      # the total degree at most

    def __post_init__(self) -> None:
        check.count("Polynomial inputs", self.inputs)
        check.count("Polynomial degree", self.degree, 0)
        size = math.comb(self.inputs + self.degree, self.degree)
        if size > MOST:
            raise ValueError(f"Polynomial: expected at most {MOST} features, got {size} for degree {self.degree} in "
                             f"{self.inputs} inputs; lower the degree")

    def build(self, members: int, width: int, *, generator: torch.Generator) -> nn.Module:
        return Expansion(PolynomialBasis(self.inputs, self.degree), members, width, generator=generator)


Mode = Categorical | Fourier | Spline | Polynomial | Neural
KINDS = {kind.__name__: kind for kind in (Categorical, Fourier, Spline, Polynomial, Neural)}


class Rows(nn.Module):
    """A table of rows around a shared one: integers (M, B) -> bias + table[x], (M, B, W)."""

    def __init__(self, members: int, size: int, width: int, init: str, *, generator: torch.Generator) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(members, size, width))
        self.bias = nn.Parameter(torch.empty(members, 1, width))
        if init == "nearly_equal":
            nn.init.normal_(self.table, 0, 0.1, generator=generator)
            nn.init.ones_(self.bias)
        else:
            bound = size ** -0.5
            nn.init.uniform_(self.table, -bound, bound, generator=generator)
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        members, size, width = self.table.shape
        offset = torch.arange(members, device=x.device)[:, None] * size
        return self.bias + nn.functional.embedding(x + offset, self.table.view(members * size, width))

    def rows(self) -> Tensor:
        """All rows, (M, size, W)."""
        return self.table + self.bias


def describe(mode: Mode) -> dict:
    """A mode as plain values for a file's header."""
    return {"kind": type(mode).__name__, **{k: list(v) if isinstance(v, tuple) else v for k, v in vars(mode).items()}}


def from_description(values: dict) -> Mode:
    """The inverse of ``describe``."""
    check.known("mode", values.get("kind"), KINDS)
    return KINDS[values["kind"]](**{k: v for k, v in values.items() if k != "kind"})
