"""How many terms does a function need, if it may be missed by epsilon? Error over rank, on sampled coordinates.

A function of K coordinates is a tensor with a row for every value a coordinate can take. On a sample of rows it is an
ordinary tensor; its best CPs, rank after rank, give a curve of errors, and independent samples give the curve's spread.

    epsilon-rank = the fewest terms whose error is at most epsilon

For each rank the curve has two sides. From above, the error of a CP that was found. From below, what no CP of that rank can
be under: the tail of an unfolding's singular values (Eckart & Young 1936), which also bounds the largest error, since no
mean exceeds a maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.approximate import best_cps, errors
from lowrank_rl.tensor.observed import numbers
from lowrank_rl.tensor.unfoldings import complete, unfoldings


@dataclass(frozen=True, eq=False)
class EpsilonRank:
    """Errors of R ranks on S independent samples, in units of the values (or of the sample's root mean square)."""

    ranks: tuple[int, ...]   # (R,) ascending
    rms: np.ndarray          # (S, R) root mean square error of the CP found
    sup: np.ndarray          # (S, R) its largest error; the CP is chosen by rms, so a smaller one may exist
    least: np.ndarray        # (S, R) no CP of that rank has a smaller rms error
    scale: np.ndarray        # (S,) root mean square of the values
    relative: bool           # whether errors are in units of scale

    def rank_for(self, epsilon: float, *, error: str = "rms") -> tuple[np.ndarray, np.ndarray]:
        """(at least, at most) how many terms each sample needs for an error of epsilon: two (S,) arrays of integers.

        -1 in the second: more than the ranks tried. The first counts one more than the last rank that cannot do it.

        Args:
            error: "rms", or "sup" for the largest error; the bound from below is the same, so the bracket is wider.

        Raises:
            ValueError: epsilon below 0, an unknown error, or a gap in the ranks, which must be 1, 2, 3, ...
        """
        check.known("error", error, ["rms", "sup"])
        if not epsilon >= 0:
            raise ValueError(f"epsilon: expected an error >= 0, got {epsilon!r}")
        if self.ranks != tuple(range(1, len(self.ranks) + 1)):
            raise ValueError(f"ranks: expected 1, 2, 3, ... for an epsilon-rank, got {self.ranks}")
        done = getattr(self, error) <= epsilon
        at_most = np.where(done.any(axis=1), done.argmax(axis=1) + 1, -1)
        return 1 + (self.least > epsilon).sum(axis=1), at_most

    def band(self, error: str = "rms", share: float = 0.9) -> np.ndarray:
        """(3, R): lower end, median and upper end of the errors' central ``share`` over the samples.

        A band for one more sample, not for the mean. With few samples it is little more than their range.
        """
        check.known("error", error, ["rms", "sup", "least"])
        if not 0 < share < 1:
            raise ValueError(f"share: expected one in (0, 1), got {share!r}")
        return np.quantile(getattr(self, error), [(1 - share) / 2, 0.5, (1 + share) / 2], axis=0)

    def table(self) -> str:
        """Markdown: rank, median and range of the errors over samples, and the bound from below."""
        unit = " / rms of the values" if self.relative else ""
        lines = [f"| rank | rms error{unit} | over {len(self.rms)} samples | least possible | largest error{unit} |",
                 "|---|---|---|---|---|"]
        for j, rank in enumerate(self.ranks):
            rms, least, sup = self.rms[:, j], self.least[:, j], self.sup[:, j]
            lines.append(f"| {rank} | {np.median(rms):.2g} | {rms.min():.2g} to {rms.max():.2g} | {np.median(least):.2g} | "
                         f"{np.median(sup):.2g} |")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table()


def epsilon_rank(sample: Callable[[np.random.Generator], Any], ranks: Iterable[int], *, samples: int = 5,
                 relative: bool = False, seed: int, starts: int = 3) -> EpsilonRank:
    """The curve of errors over rank of a function, on independent samples of its coordinates.

    Args:
        sample: draws coordinates from the generator given and returns the complete tensor of values there, as
            ``lambda rng: grid(f, [rng.uniform(0, 1, 20), rng.uniform(0, 1, 30), np.arange(3)])``. Sizes are yours: on n rows
            of a mode no unfolding shows more than n terms.
        ranks: ascending or not, each >= 1; 1, 2, 3, ... if you want ``rank_for``.
        samples: S, how many independent samples.
        relative: errors over the sample's root mean square value.
        seed: draws the samples and the starts. Same seed, same numbers; more samples begin with the same ones.
        starts: searches per rank.

    Raises:
        ValueError: no rank or one below 1, samples below 1, or tensors that are not complete, all zeros or of two shapes.
    """
    listed = tuple(sorted({*ranks}))
    if not listed:
        raise ValueError("ranks: expected at least one rank to try, got none")
    for rank in listed:
        check.count("ranks", rank)
    check.count("samples", samples)
    check.count("starts", starts)
    rms, sup, least, scale = (np.empty((samples, len(listed))) for _ in range(4))
    shape: tuple[int, ...] | None = None
    for s in range(samples):
        tensor = complete(sample(numpy_stream(seed, "epsilon rank", "sample", s)))
        if shape not in (None, tensor.shape):
            raise ValueError(f"sample: expected tensors of one shape, got {shape} and {tensor.shape}")
        shape, scale[s] = tensor.shape, np.sqrt(np.mean(tensor**2))
        if relative and scale[s, 0] == 0:
            raise ValueError("sample: expected values other than 0 for relative errors, got zeros; pass relative=False")
        found = unfoldings(tensor)
        for j, cp in enumerate(best_cps(tensor, listed, seed=seed, starts=starts)):
            rms[s, j], sup[s, j] = errors(tensor, cp)
            least[s, j] = max(u.tail(cp.rank) for u in found) / np.sqrt(tensor.size)
    unit = scale if relative else np.ones_like(scale)
    return EpsilonRank(listed, rms / unit, sup / unit, least / unit, scale[:, 0], relative)


def grid(function: Callable[..., Any], coordinates: Sequence[Any], *, outputs: int | None = None) -> np.ndarray:
    """A function's values at every combination of coordinates: a complete tensor, one mode per coordinate.

    Args:
        function: takes K arrays of B rows each and gives B values, or (B, D) where ``outputs`` is set.
        coordinates: coordinates[k] are the rows of mode k: (n_k,) or (n_k, d_k).
        outputs: the mode that carries the D outputs: row i of it becomes the D rows i D, ..., i D + D - 1, as one mode (s, d)
            of states and dimensions does in the PerSim paper.

    Raises:
        ValueError: fewer than two coordinates, an empty one, or a function that does not give (B,) or (B, D).
    """
    rows = [numbers(f"coordinates[{k}]", c) for k, c in enumerate(coordinates)]
    sizes = [len(r) if r.ndim else 0 for r in rows]
    if len(rows) < 2 or 0 in sizes:
        raise ValueError(f"coordinates: expected two modes or more, each with a row at least, got sizes {sizes}")
    index = np.indices(sizes).reshape(len(rows), -1)
    value = numbers("function's values", function(*(r[i] for r, i in zip(rows, index, strict=True))))
    if outputs is None:
        check.shapes(**{"coordinates": (index[0], "B"), "function's values": (value, "B")})
        return value.reshape(sizes)
    check.shapes(**{"coordinates": (index[0], "B"), "function's values": (value, "B D")})
    check.within("outputs", np.array([outputs]), len(rows))
    tensor = np.moveaxis(value.reshape(*sizes, -1), -1, outputs + 1)
    return tensor.reshape([n * value.shape[1] if k == outputs else n for k, n in enumerate(sizes)])
