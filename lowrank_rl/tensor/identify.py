"""Which entries of a tensor do these observations determine, if its rank is R? And what should be observed next?

An entry is **locally identifiable** if no small change of the factors that leaves every observed entry as it is changes
this one. It depends on where the observations are, hardly on their values: it holds almost everywhere or almost nowhere,
so one random point decides (with probability 1). It says that the data leave finitely many answers ("finitely completable"),
not that they leave one, and nothing about noise: for that see ``bounds.cramer_rao``.

Source: M. Ashraphijuo, X. Wang, "Fundamental conditions for low-CP-rank tensor completion", JMLR 18(63), 2017, who give
conditions on the pattern alone; the Jacobian's rank at a generic point is the same question, answered numerically.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lowrank_rl import check
from lowrank_rl.rng import numpy_stream
from lowrank_rl.tensor.nullspace import (
    CHUNK,
    STILL,
    Point,
    generic_point,
    kernel_index,
    movement,
    moves,
    null_probes,
    row_ranks,
    spectrum,
)
from lowrank_rl.tensor.observed import Observed, rows
from lowrank_rl.tensor.pattern import NAMED, Pattern, listed_rows, mode_names

METHODS = ("auto", "dense", "sampled")
DENSE = 2000        # parameters up to which "auto" is dense: 2 s and 100 MB there
PROBES = 8          # random null directions of the sampled method: it counts free directions up to this many
ALL = 2_000_000     # entries of a tensor up to which all are judged where a share is asked for; else as many random ones


@dataclass(frozen=True, eq=False)
class Identifiability:
    """What a pattern determines at rank R: ``at`` gives verdicts, ``explain`` words, ``suggest`` what to observe next."""

    pattern: Pattern
    rank: int                            # R
    freedom: int                         # the Jacobian's rank if every entry were observed: the tensor's degrees of freedom
    free: int                            # directions in which the tensor can still move: freedom - rank of the Jacobian
    exact: bool                          # False: there are at least ``free`` such directions (sampled method)
    row_ranks: tuple[np.ndarray, ...]    # for each mode (I_k,): how many of its R numbers a row's own entries determine
    method: str                          # "dense" or "sampled"
    point: Point                         # where the Jacobian was taken
    directions: np.ndarray               # (S, R, m) null directions: all (dense) or random ones (sampled)

    @property
    def jacobian_rank(self) -> int:
        """Rank of the observed entries' Jacobian; an upper bound of it unless ``exact``."""
        return self.freedom - self.free

    @property
    def everything(self) -> bool:
        """Whether every entry of the tensor is locally identifiable."""
        return self.free == 0

    def at(self, index: Any) -> np.ndarray:
        """Whether each of these entries (Q, K) is locally identifiable: (Q,) bool. O(Q K R) work."""
        index = rows("index", index, self.pattern.shape)
        if self.everything:
            return np.ones(len(index), dtype=bool)
        return ~moves(kernel_index(index), self.point, self._probes)

    def mask(self) -> np.ndarray:
        """The dense boolean tensor, True where locally identifiable."""
        verdict = np.empty(math.prod(self.pattern.shape), dtype=bool)
        for begin in range(0, len(verdict), CHUNK):
            place = np.arange(begin, min(begin + CHUNK, len(verdict)))
            verdict[place] = self.at(np.stack(np.unravel_index(place, self.pattern.shape), axis=1))
        return verdict.reshape(self.pattern.shape)

    def short_rows(self, k: int) -> np.ndarray:
        """Rows of mode k whose own entries determine fewer of their R numbers than any could: the necessary test.

        A row that passes may still move together with others; one that fails has entries that are not locally identifiable.
        """
        others = math.prod(self.pattern.shape) // self.pattern.shape[k]
        return np.flatnonzero(self.row_ranks[k] < min(self.rank, others))

    @cached_property
    def judged(self) -> tuple[np.ndarray, np.ndarray]:
        """(entries (Q, K), verdicts (Q,)): all entries of a tensor of up to 2 million, else as many random ones."""
        shape = self.pattern.shape
        if math.prod(shape) <= ALL:
            return np.argwhere(np.ones(shape, dtype=bool)), self.mask().reshape(-1)
        rng = numpy_stream(0, "identify", "judged")
        index = np.stack([rng.integers(0, size, ALL) for size in shape], axis=1)
        return index, self.at(index)

    @property
    def share(self) -> float:
        """The locally identifiable share of all entries; estimated from 2 million for larger tensors."""
        return float(self.judged[1].mean())

    def row_shares(self, k: int) -> np.ndarray:
        """The locally identifiable share of each row's entries, of those ``judged``: (I_k,), nan for rows of which none is."""
        row, size = self.judged[0][:, k], self.pattern.shape[k]
        number = np.bincount(row, minlength=size).astype(float)
        return np.divide(np.bincount(row, self.judged[1], size), number, out=np.full(size, np.nan), where=number > 0)

    def suggest(self, count: int | None = None, *, candidates: Any = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """(entries to observe next (C, K), how many entries each of them frees (C,)), greedily.

        Each adds 1 to the Jacobian's rank and, of all candidates, makes the most entries locally identifiable; among equals
        the one that moves most decides. As many as there are free directions make everything locally identifiable, if the
        candidates reach them; that is also the least possible number. Frees are counted among ``judged``, or a sample.

        Args:
            count: how many at most; None: until nothing is free, or no candidate helps.
            candidates: entries (Q, K) that can be observed; None: any entry.

        The sampled method sees at most 8 free directions: where there are more it suggests up to 7. Observe those
        and ask again.
        """
        if count is not None:
            check.count("count", count)
        most = self.free if self.exact else self.free - 1   # the last of a sample of directions cannot tell entries apart
        most = most if count is None else min(count, most)
        index, verdict = self.judged
        index = _some(index[~verdict], max(1000, 64 * CHUNK // self.directions.shape[2]), seed)
        offered = 0 if candidates is None else len(candidates := rows("candidates", candidates, self.pattern.shape))
        if offered:
            index = np.concatenate([candidates, index])
        moved, size = movement(kernel_index(index), self.point, self.directions)
        eligible = np.arange(len(index)) < offered if candidates is not None else np.ones(len(index), dtype=bool)
        counted = np.arange(len(index)) >= offered
        chosen, freed = [], []
        while len(chosen) < most:
            length = np.linalg.norm(moved, axis=1) / size
            alive = length > STILL
            if not (alive & eligible).any():
                break
            # Observing e leaves the directions with g_e'v = 0, so it frees the entries that move as e does, up to scale.
            group = _parallel(moved, alive, seed)
            helps = np.bincount(group[alive & counted], minlength=len(index))[group]
            able = np.flatnonzero(alive & eligible)
            best = able[np.lexsort((-length[able], -helps[able]))[0]]
            along = moved[best] / np.linalg.norm(moved[best])
            moved = moved - np.outer(moved @ along, along)
            after = np.linalg.norm(moved, axis=1) > STILL * size
            chosen.append(index[best])
            freed.append(int(np.count_nonzero(alive & counted & ~after)))
        return np.array(chosen, dtype=np.int64).reshape(-1, len(self.pattern.shape)), np.array(freed, dtype=np.int64)

    def explain(self, modes: Sequence[str] | None = None) -> str:
        """The verdict in words: what is determined, what is not, why, and what to observe next. modes: their names."""
        names = mode_names(modes, len(self.pattern.shape))
        verdict = self.judged[1]
        all_of_them = len(verdict) == math.prod(self.pattern.shape)
        what = "entries" if all_of_them else "entries drawn at random"
        most, least = ("", "") if self.exact else ("at most ", "at least ")
        free = "no direction is" if self.everything else f"{least}{self.free} direction{' is' if self.free == 1 else 's are'}"
        lines = [f"{' x '.join(map(str, self.pattern.shape))} at rank {self.rank}, {len(self.pattern):,} entries observed: "
                 f"{np.count_nonzero(verdict):,} of {len(verdict):,} {what} are locally identifiable.",
                 f"The Jacobian has rank {most}{self.jacobian_rank} of {self.freedom}: {free} free."]
        if self.everything:
            return "\n".join(lines)
        lines += ["What is missing:", *self._reasons(names)]
        wanted, freed = self.suggest(NAMED)
        for entry, entries in zip(wanted, freed, strict=True):
            place = ", ".join(f"{name} {i}" for name, i in zip(names, entry.tolist(), strict=True))
            lines.append(f"  observe ({place}): it frees {entries:,} {'entry' if entries == 1 else 'entries'}")
        return "\n".join(lines)

    def _reasons(self, names: Sequence[str]) -> list[str]:
        reasons = []
        if len(self.pattern) < self.freedom:
            reasons.append(f"  {len(self.pattern):,} observations cannot determine {self.freedom:,} numbers")
        for k, name in enumerate(names):
            short, empty = self.short_rows(k), self.pattern.unobserved(k)
            if len(empty):
                reasons.append(f"  {name}: {listed_rows(empty)} without any entry")
            short = np.setdiff1d(short, empty)
            if len(short):
                some = "; ".join(f"row {i} determines {self.row_ranks[k][i]} of its {self.rank} numbers" for i in short[:NAMED])
                reasons.append(f"  {name}: {some}" + (f"; and {len(short) - NAMED} rows more" if len(short) > NAMED else ""))
        apart = [line for line in self.pattern.separations(names) if "never meet" in line]
        return reasons + apart or ["  each row has enough entries and no groups are apart, but they meet in too few places"]

    @cached_property
    def _probes(self) -> np.ndarray:
        """(S, R, <= 8) random null directions, which decide as all do."""
        m = self.directions.shape[2]
        if m <= PROBES:
            return self.directions
        return self.directions @ numpy_stream(0, "identify", "probes").standard_normal((m, PROBES)) / math.sqrt(m)


def identify(pattern: Pattern | Observed, rank: int, *, method: str = "auto", seed: int = 0) -> Identifiability:
    """What observations in these places determine of a CP tensor of this rank.

    Args:
        pattern: where; of an ``Observed`` only the coordinates count.
        rank: R, of the tensor that is to be found.
        method: "dense" computes all singular values of the Jacobian, O(P^3) for P = R sum_k I_k; "sampled" finds 8 random
            null directions by conjugate gradients, in passes of O(B K R) over the entries. "auto": dense up to P = 2000.
        seed: of the random point. The answer does not depend on it, but for exceptions of probability 0.

    Warns if the sampled method did not converge; entries it then calls not locally identifiable may be.

    Raises:
        ValueError: a rank that is no whole number >= 1, an unknown method.
    """
    pattern = Pattern.of(pattern) if isinstance(pattern, Observed) else pattern
    if not isinstance(pattern, Pattern):
        raise ValueError(f"pattern: expected a Pattern or an Observed, got {type(pattern).__name__}")
    check.count("rank", rank)
    check.known("method", method, METHODS)
    index, point = kernel_index(pattern.index), generic_point(pattern.shape, rank, seed=seed)
    freedom = degrees_of_freedom(pattern.shape, rank)
    ranks = tuple(np.split(row_ranks(index, point), point.first[1:]))
    if method == "dense" or (method == "auto" and point.parameters <= DENSE):
        found = spectrum(index, point)
        free = freedom - (point.parameters - found.null)
        directions = np.ascontiguousarray(found.directions[:, :, :found.null])
        return Identifiability(pattern, rank, freedom, free, True, ranks, "dense", point, directions)
    directions, converged = null_probes(index, point, PROBES, seed=seed)
    if not converged:
        warnings.warn("identify: the conjugate gradients did not converge, since some directions are nearly free; entries "
                      'called not locally identifiable may be so; use method="dense" if memory allows', stacklevel=2)
    free = _rank_of_movement(_sample(pattern.shape, 2 * rank + 2), point, directions)
    return Identifiability(pattern, rank, freedom, free, free < PROBES, ranks, "sampled", point, directions)


def degrees_of_freedom(shape: Sequence[int], rank: int) -> int:
    """The dimension of the set of tensors of this shape and rank: the Jacobian's rank where every entry is observed.

    R (sum_k I_k - K + 1) wherever Kruskal's condition holds, R (I_0 + I_1 - R) for matrices of rank R <= min(I_0, I_1).
    Beyond these the dimension may be less than parameters and entries suggest, so it is computed, on a tensor with each
    mode cut to R rows: each row left out adds R, or as many as the other modes have entries if that is less.

    Source: J. B. Kruskal, Linear Algebra and its Applications 18, 1977, for K = 3; N. Sidiropoulos, R. Bro, Journal of
    Chemometrics 14, 2000, for any K.
    """
    K = len(shape)
    if K == 2:
        R = min(rank, *shape)
        return R * (sum(shape) - R)
    if rank == 1 or sum(min(size, rank) for size in shape) >= 2 * rank + K - 1:
        return rank * (sum(shape) - K + 1)
    core, more = list(shape), 0
    for k in range(K):
        others = math.prod(core[:k] + core[k + 1:])
        more += max(0, core[k] - rank) * min(rank, others)
        core[k] = min(core[k], rank)
    point = generic_point(core, rank, seed=0)
    found = spectrum(kernel_index(np.argwhere(np.ones(core, dtype=bool))), point)
    return more + point.parameters - found.null


def _rank_of_movement(index: np.ndarray, point: Point, directions: np.ndarray) -> int:
    """In how many independent ways the directions move these entries (K, Q)."""
    m = directions.shape[2]
    triangle = np.zeros((m, m))
    for begin in range(0, index.shape[1], CHUNK):
        moved, size = movement(index[:, begin:begin + CHUNK], point, directions)
        triangle = np.linalg.qr(np.vstack([triangle, moved / size[:, None]]), mode="r")
    return int(np.count_nonzero(np.linalg.svd(triangle, compute_uv=False) > STILL))


def _sample(shape: Sequence[int], each: int) -> np.ndarray:
    """(K, Q): all entries of a small tensor, else ``each`` of every row of every mode, at random places in the others."""
    if math.prod(shape) <= max(CHUNK, each * sum(shape)):
        return np.indices(shape, dtype=np.int32).reshape(len(shape), -1)
    rng = numpy_stream(0, "identify", "sample")
    parts = []
    for k, size in enumerate(shape):
        part = np.stack([rng.integers(0, n, size * each, dtype=np.int32) for n in shape])
        part[k] = np.repeat(np.arange(size), each)
        parts.append(part)
    return np.concatenate(parts, axis=1)


def _some(index: np.ndarray, most: int, seed: int) -> np.ndarray:
    """At most so many of the entries, at random."""
    if len(index) <= most:
        return index
    return index[np.sort(numpy_stream(seed, "identify", "some").choice(len(index), most, replace=False))]


def _parallel(moved: np.ndarray, alive: np.ndarray, seed: int) -> np.ndarray:
    """A group number for each row of ``moved`` (Q, m), the same for rows that differ by a factor only."""
    rng = numpy_stream(seed, "identify", "parallel")
    x, y = (moved[alive] @ rng.standard_normal((moved.shape[1], 2))).T
    angle = np.arctan2(y, x) % math.pi
    order = np.argsort(angle)
    group = np.zeros(len(moved), dtype=np.int64)
    new = np.cumsum(np.diff(angle[order], prepend=angle[order[:1]]) > 1e-9)
    if len(new) and angle[order[0]] + math.pi - angle[order[-1]] < 1e-9:   # the circle closes
        new[new == new[-1]] = 0
    group[np.flatnonzero(alive)[order]] = new
    return group
