"""What can be said about the rank of a tensor, in one call and in words.

Complete tensors: multilinear ranks, a lower and an upper bound of the CP rank with their evidence, whether the terms are
unique, and the error over rank. Tensors with holes: which rank predicts held-out entries best, and what the pattern of
observed entries determines at that rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.epsilon_rank import EpsilonRank, epsilon_rank
from lowrank_rl.tensor.identify import Identifiability, identify
from lowrank_rl.tensor.jennrich import Jennrich, jennrich
from lowrank_rl.tensor.observed import Observed
from lowrank_rl.tensor.rank import RankChoice, choose_rank
from lowrank_rl.tensor.rank_bounds import FIBRES, LowerBound, UpperBound, lower_bound, upper_bound
from lowrank_rl.tensor.unfoldings import CONFIDENCE, Unfolding, complete, estimate_sigma, unfoldings
from lowrank_rl.tensor.uniqueness import Uniqueness, uniqueness

LONGEST = 8    # ranks in the curve of errors, unless ranks are given


@dataclass(frozen=True, eq=False)
class RankReport:
    """All findings; ``print(report)`` tells them. With holes, ``choice`` and ``determined`` are known, without the rest."""

    shape: tuple[int, ...]
    names: tuple[str, ...]               # of the modes
    sigma: float | None                  # noise that was assumed; None: entries exact to rounding
    unfoldings: tuple[Unfolding, ...]    # empty for a tensor with holes
    lower: LowerBound | None
    upper: UpperBound | None
    jennrich: Jennrich | None            # also None for matrices and rank 0
    uniqueness: Uniqueness | None        # of the upper bound's terms; None at rank 0
    curve: EpsilonRank | None            # error over rank, of one sample: this tensor
    choice: RankChoice | None            # for a tensor with holes
    determined: Identifiability | None   # what the pattern determines at the chosen rank, for a tensor with holes
    density: float                       # share of entries that were observed

    @property
    def at_least(self) -> int:
        """No CP of fewer real terms has these entries."""
        if self.lower is None:
            return 1
        return self.lower.rank + (self.jennrich is not None and self.jennrich.refuted)

    @property
    def rank(self) -> int | None:
        """The CP rank where the bounds agree, else None."""
        return self.at_least if self.upper is not None and self.upper.rank == self.at_least else None

    @property
    def text(self) -> str:
        """The report, a few lines for each question."""
        sizes = " x ".join(map(str, self.shape))
        if self.choice is not None:
            head = f"Rank report: {sizes} tensor, {self.density:.1%} of its entries observed"
            lines = ["", f"Held-out entries speak for rank {self.choice.chosen} (rule: {self.choice.rule}).", "",
                     self.choice.table(), "",
                     "Bounds of the rank need all entries; this is which rank predicts, not which rank the tensor has.", "",
                     "What the pattern determines at that rank, whatever the values",
                     *(f"  {line}" for line in self.determined.explain(self.names).splitlines())]
            return "\n".join([head, *lines])
        given = "exact to rounding" if self.sigma is None else f"with noise of standard deviation {self.sigma:.3g}"
        lines = [f"Rank report: {sizes} tensor, entries {given}", "", self._verdict(), "", "Unfoldings"]
        width = max(len(self._named(u.rows)) for u in self.unfoldings)
        for u in self.unfoldings:
            gap = f", the last {u.gap:.2g} times what is not counted" if 0 < u.gap < np.inf else ""
            lines.append(f"  {self._named(u.rows):<{width}}  {u.shape[0]} x {u.shape[1]}: rank {u.rank}{gap}")
        lines += ["", "Lower bound", f"  {self.lower.text(self.names)}"]
        if self.lower.rank:
            rows, columns = (" ".join("(" + ",".join(map(str, i)) + ")" if len(i) > 1 else str(i[0]) for i in side.tolist())
                             for side in (self.lower.rows, self.lower.columns))
            lines.append(f"  evidence: rows {rows}, columns {columns}; smallest over largest singular value "
                         f"{self.lower.strength:.1e}")
        lines += ["", "Upper bound", f"  {self.upper}"]
        if self.jennrich is not None:
            lines += ["", "Simultaneous diagonalisation", f"  {self.jennrich.reason}"]
        if self.uniqueness is not None:
            lines += ["", f"Are these {self.upper.rank} terms the only ones? {self.uniqueness.verdict}"]
            lines += [f"  {reason}" for reason in self.uniqueness.reasons]
        if self.curve is not None:
            lines += ["", "Error over rank, relative to the tensor (found; no CP of that rank can have less; worst entry)"]
            lines += [f"  {rank:>3}  {rms:.2g}  {least:.2g}  {sup:.2g}" for rank, rms, least, sup in
                      zip(self.curve.ranks, self.curve.rms[0], self.curve.least[0], self.curve.sup[0], strict=True)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.text

    def _verdict(self) -> str:
        sure = "" if self.sigma is None else f" (the bound from below holds with probability {CONFIDENCE} for Gaussian noise)"
        if self.rank == 0:
            return "CP rank 0: there is nothing but zeros, or noise."
        if self.rank is not None and self.sigma is None:
            return f"CP rank {self.rank}: no fewer terms can do, and {self.rank} do."
        if self.rank is not None:
            return f"CP rank {self.rank} and noise: no fewer terms can do, and {self.rank} do{sure}."
        text = f"CP rank between {self.at_least} and {self.upper.rank}{sure}."
        if self.sigma is None and all(u.full for u in self.unfoldings) and min(self.shape) > 3:
            text += " Every unfolding has full rank, as noise would give it: if entries are noisy, pass sigma."
        return text

    def _named(self, modes: tuple[int, ...]) -> str:
        return " + ".join(self.names[k] for k in modes)


def rank_report(tensor: Any, *, sigma: float | str | None = None, cp: CP | None = None, ranks: Iterable[int] | None = None,
                names: Sequence[str] | None = None, seed: int) -> RankReport:
    """Everything that this package can say about the rank of a tensor.

    Args:
        tensor: complete (array), or an ``Observed``; one with holes is judged by held-out entries alone (``choose_rank``).
        sigma: standard deviation of the noise in each entry; "estimate" for ``estimate_sigma``'s; None: exact entries.
        cp: terms of your own for the upper bound, such as the factors of a formula.
        ranks: of the curve of errors (no rank, no curve), or those tried on held-out entries. None: 1 up to one more than the
            upper bound, 8 at most.
        names: of the modes.
        seed: starts the searches and deals held-out entries.

    Raises:
        ValueError: as ``unfoldings``, ``upper_bound`` and ``choose_rank``; sigma or cp for a tensor with holes.
    """
    holes = isinstance(tensor, Observed) and tensor.density < 1
    array = None if holes else complete(tensor.dense() if isinstance(tensor, Observed) else tensor)
    shape = tensor.shape if holes else array.shape
    names = tuple(f"mode {k}" for k in range(len(shape))) if names is None else tuple(names)
    if len(names) != len(shape):
        raise ValueError(f"names: expected one for each of {len(shape)} modes, got {len(names)}")
    if holes:
        if sigma is not None or cp is not None:
            raise ValueError("sigma and cp: expected neither with an Observed that has holes, got one; leave it out")
        choice = choose_rank(tensor, range(1, LONGEST + 1) if ranks is None else [*ranks], seed=seed)
        return RankReport(shape, names, None, (), None, None, None, None, None, choice,
                          identify(tensor, choice.chosen, seed=seed), tensor.density)
    if isinstance(sigma, str):
        if sigma != "estimate":
            raise ValueError(f'sigma: expected a standard deviation, "estimate" or None, got {sigma!r}')
        sigma = estimate_sigma(array) or None
    found = unfoldings(array, sigma=sigma)
    lower = lower_bound(array, sigma=sigma, found=found)
    upper = upper_bound(array, sigma=sigma, cp=cp, at_least=max(1, lower.rank), seed=seed)
    diagonal = jennrich(array, sigma=sigma, seed=seed) if len(shape) > 2 and lower.rank else None
    loose = upper.how == FIBRES and upper.rank > lower.rank   # more terms than needed, of which nothing is unique
    unique = None if upper.cp is None or loose else uniqueness(upper.cp)
    listed = [*range(1, min(upper.rank + 1, LONGEST) + 1)] if ranks is None else [*ranks]
    curve = epsilon_rank(lambda rng: array, listed, samples=1, relative=True, seed=seed) if listed and array.any() else None
    return RankReport(shape, names, sigma, found, lower, upper, diagonal, unique, curve, None, None, 1.0)
