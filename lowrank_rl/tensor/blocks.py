"""Block completion: units that were never measured under some intervention, predicted from units that were.

Data are unit x measurement x intervention (agent x state x action), or unit x measurement; whole blocks of them are missing. If
the tensor has low rank, a unit is a weighted sum of other units, with the same weights everywhere. So weights learned on what
the unit and its donors share (the overlap) carry over to what only the donors have. No iteration, no start, and standard
errors in closed form (pcr.py).

Source: A. Agarwal, D. Shah, D. Shen, "Synthetic Interventions", arXiv 2006.07691; the block-structured case (ii) of the PerSim
paper, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lowrank_rl import check
from lowrank_rl.tensor.observed import Observed
from lowrank_rl.tensor.pcr import Prediction, predict, usable

CELLS = 2500     # kinds of units x kinds of columns up to which a pattern counts as blocks
CAUTION = 0.01   # p-values below this, divided by the number of tests, are named in the summary


@dataclass(frozen=True, eq=False)
class Block:
    """A rectangle of missing entries, and who can tell them. Empty donors and overlap: nobody can."""

    units: np.ndarray          # (n,) rows of mode 0 that lack the block
    measurements: np.ndarray   # (m,) rows of mode 1
    intervention: int | None   # row of mode 2; None for tensors of two modes
    donors: np.ndarray         # (N,) rows of mode 0 with the whole block and the whole overlap
    overlap: np.ndarray        # (T, K - 1) coordinates in modes 1.. that the units and all donors have


@dataclass(frozen=True, eq=False)
class BlockCompletion:
    """All blocks of a tensor: those predicted, and those that are not determined, with the reason."""

    observed: Observed
    blocks: tuple[Block, ...]
    fits: tuple[Prediction, ...]   # fits[b] predicts blocks[b]
    undetermined: tuple[tuple[Block, str], ...]

    def to_dense(self) -> np.ndarray:
        """Observed entries as they are, predictions in the blocks, NaN where nothing determines the value."""
        return np.where(self.observed.mask(), self.observed.dense(), self._spread([fit.value for fit in self.fits]))

    def standard_error(self) -> np.ndarray:
        """Of the predicted expected values; NaN where nothing was predicted."""
        return self._spread([fit.standard_error for fit in self.fits])

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends for expected values, dense, NaN where nothing was predicted."""
        return self._ends([fit.interval(level) for fit in self.fits])

    def prediction_interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Low and high ends for single measurements, dense, NaN where nothing was predicted."""
        return self._ends([fit.prediction_interval(level) for fit in self.fits])

    def summary(self) -> str:
        """One line per block, and below each what to be careful about."""
        missing = math.prod(self.observed.shape) - len(self.observed)
        told = sum(fit.value.size for fit in self.fits)
        lines = [f"{missing} entries missing in {len(self.fits) + len(self.undetermined)} blocks; {told} predicted, "
                 f"{missing - told} not determined"]
        for block, fit in zip(self.blocks, self.fits, strict=True):
            lines.append(f"{self._name(block)}: {len(block.donors)} donors, overlap {len(block.overlap)}, rank {fit.rank}, "
                         f"standard error {np.sqrt(np.mean(fit.standard_error**2)):.3g} (root mean square)")
            lines += [f"  careful: {text}" for text in self._cautions(block, fit)]
        lines += [f"{self._name(block)}: not determined: {reason}" for block, reason in self.undetermined]
        return "\n".join(lines)

    def _cautions(self, block: Block, fit: Prediction) -> Iterator[str]:
        if fit.inclusion_p < CAUTION / len(self.fits):
            yield (f"the block shows directions that the overlap lacks (subspace inclusion, p = {fit.inclusion_p:.1g}); the "
                   "intervals are too short")
        odd = block.units[fit.misfit_p < CAUTION / sum(len(one.units) for one in self.blocks)]
        if len(odd):
            yield f"donors do not explain {self._rows(0, odd)} in the overlap (smallest p = {np.min(fit.misfit_p):.1g})"

    def _name(self, block: Block) -> str:
        place = [f"unit {self._rows(0, block.units)}", f"measurement {self._rows(1, block.measurements)}"]
        if block.intervention is not None:
            place.append(f"intervention {self._rows(2, np.array([block.intervention]))}")
        return " x ".join(place)

    def _rows(self, mode: int, rows: np.ndarray) -> str:
        """Rows as ranges 0..4, 7 or, for a few of a labelled mode, by name."""
        labels = self.observed.labels[mode]
        if labels is not None and len(rows) <= 4:
            return ", ".join(str(labels[row]) for row in rows)
        parts = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
        names = [f"{part[0]}..{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
        return ", ".join(names if len(names) <= 6 else [*names[:5], f"... ({len(rows)} in all)"])

    def _spread(self, values: list[np.ndarray]) -> np.ndarray:
        dense = np.full(self.observed.shape, np.nan)
        for block, value in zip(self.blocks, values, strict=True):
            place = np.ix_(block.units, block.measurements)
            dense[place if block.intervention is None else (*place, block.intervention)] = value
        return dense

    def _ends(self, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
        return self._spread([low for low, _ in pairs]), self._spread([high for _, high in pairs])


@dataclass(frozen=True, eq=False)
class Placebo:
    """B donors predicted as if they lacked the block that they have. ``p_value`` is small where the prediction failed."""

    block: np.ndarray      # (B,) which of the completion's blocks
    unit: np.ndarray       # (B,) the donor that was hidden
    error: np.ndarray      # (B,) measured minus predicted, mean over the block
    p_value: np.ndarray    # (B,) chance of errors as large as these, if weights carry over to the block
    covered: np.ndarray    # (B,) share of its measurements inside the 90% prediction interval

    def p_value_of(self, block: int) -> float:
        """Of a whole block: its smallest p-value times their number (Bonferroni); nan if no donor could be hidden."""
        mine = self.p_value[self.block == block]
        return min(1.0, float(mine.min()) * len(mine)) if len(mine) else math.nan

    def rank_of(self, block: int, unit: int) -> float:
        """Share of the block's donors that are predicted at least as badly as this one, itself included.

        Raises:
            ValueError: this unit was not hidden in this block.
        """
        mine = self.p_value[self.block == block]
        here = (self.block == block) & (self.unit == unit)
        if not here.any():
            raise ValueError(f"unit: expected a donor that was hidden in block {block}, got {unit!r}; see Placebo.unit")
        return float((mine <= self.p_value[here][0]).mean())


def find_blocks(observed: Observed) -> tuple[Block, ...]:
    """The missing rectangles of a pattern: units alike in what they have, and columns alike in who has them.

    Of the donors that have a block, those are taken whose overlap with the units leaves most donors and columns: the largest
    min(donors, columns), since the error falls with both.

    Raises:
        ValueError: not an Observed, not two or three modes, nothing missing, or too many kinds of units and columns to be
            blocks (scattered entries).
    """
    if not isinstance(observed, Observed):
        raise ValueError(f"observed: expected an Observed, got {type(observed).__name__}; make one by "
                         "Observed.from_dense(tensor, mask)")
    if len(observed.shape) not in (2, 3):
        raise ValueError(f"observed: expected modes unit x measurement (x intervention), got {len(observed.shape)} modes")
    mask = observed.mask().reshape(observed.shape[0], -1)   # a column is one (measurement, intervention)
    if mask.all():
        raise ValueError("observed: expected missing entries, got a complete tensor; there is nothing to predict")
    interventions = observed.shape[2] if len(observed.shape) == 3 else 1
    under = np.arange(mask.shape[1]) % interventions
    _, first_unit, kind_of_unit = np.unique(mask, axis=0, return_index=True, return_inverse=True)
    _, first_column, kind_of_column = np.unique(np.vstack([under, mask]), axis=1, return_index=True, return_inverse=True)
    kind_of_unit, kind_of_column = kind_of_unit.reshape(-1), kind_of_column.reshape(-1)
    if len(first_unit) * len(first_column) > CELLS:
        raise ValueError(f"observed: expected blocks, got {len(first_unit)} kinds of units and {len(first_column)} kinds of "
                         "columns; scattered entries are for CPCompletion")
    has = mask[np.ix_(first_unit, first_column)]   # (kinds of units, kinds of columns)
    width, height = np.bincount(kind_of_column), np.bincount(kind_of_unit)
    blocks = []
    for p, q in np.argwhere(~has):
        overlap, donors = _anchors(has, p, q, width, height)
        columns = np.flatnonzero(overlap[kind_of_column])
        place = np.stack(np.unravel_index(columns, observed.shape[1:]), axis=1)
        blocks.append(Block(np.flatnonzero(kind_of_unit == p), np.flatnonzero(kind_of_column == q) // interventions,
                            int(under[first_column[q]]) if len(observed.shape) == 3 else None,
                            np.flatnonzero(donors[kind_of_unit]), place))
    return tuple(blocks)


def complete_blocks(observed: Observed, rank: int | None = None) -> BlockCompletion:
    """Predict each missing block from donors, or say why it is not determined. The formulas stand at ``pcr.predict``.

    Args:
        observed: unit x measurement x intervention, or unit x measurement, without weights.
        rank: of every block's regression: the rank of the unit unfolding, at most the CP rank. None: per block the singular
            values of its donors above the optimal hard threshold for unknown noise (Gavish and Donoho).

    Raises:
        ValueError: as ``find_blocks``; weights; a rank below 1, or one that no block of this shape can carry.
    """
    blocks = find_blocks(observed)
    if observed.weight is not None:
        raise ValueError("observed: expected entries that count alike, got weights; drop them: replace(observed, weight=None)")
    if rank is not None:
        check.count("rank", rank)
        most = min(observed.shape[0], math.prod(observed.shape[1:])) - 1
        if rank > most:
            raise ValueError(f"rank: expected at most {most}, one less than there are units and columns, got {rank}")
    dense = observed.dense()
    told, fits, undetermined = [], [], []
    for block in blocks:
        X, Y, Z = _matrices(dense, block)
        k, reason = usable(X, Z, rank)
        if reason:
            undetermined.append((block, reason))
        else:
            told.append(block)
            fits.append(predict(X, Y, Z, k))
    return BlockCompletion(observed, tuple(told), tuple(fits), tuple(undetermined))


def placebo(completion: BlockCompletion) -> Placebo:
    """Predict what was observed: each donor of each block from the other donors, by the same overlap and rank.

    Judged by ``Prediction.surprise``. Donors without whom the others have too little rank are passed over.

    Raises:
        ValueError: no block has a donor to spare.
    """
    dense, rows = completion.observed.dense(), []
    for number, (block, fit) in enumerate(zip(completion.blocks, completion.fits, strict=True)):
        X, _, Z = _matrices(dense, block)
        for j, unit in enumerate(block.donors):
            rest = np.arange(X.shape[1]) != j
            if usable(X[:, rest], Z[:, rest], fit.rank)[1]:
                continue
            again, measured = predict(X[:, rest], X[:, [j]], Z[:, rest], fit.rank), Z[:, [j]].T
            low, high = again.prediction_interval(0.9)
            rows.append((number, unit, (measured - again.value).mean(), again.surprise(measured)[0],
                         ((low <= measured) & (measured <= high)).mean()))
    if not rows:
        raise ValueError("completion: expected a predicted block with more donors than its rank, got none; lower the rank")
    return Placebo(*map(np.array, zip(*rows, strict=True)))


def _anchors(has: np.ndarray, p: int, q: int, width: np.ndarray, height: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Overlap (kinds of columns) and donors (kinds of units) for the block of units p and columns q; all False if none."""
    shared = has[has[:, q]] & has[p]
    shared = np.unique(shared[shared.any(axis=1)], axis=0)
    best, none = (0, 0), (np.zeros_like(has[0]), np.zeros_like(has[:, 0]))
    found = none
    for overlap in [*shared, shared.all(axis=0)] if len(shared) else []:
        donors = has[:, q] & has[:, overlap].all(axis=1)
        N, T = int(height[donors].sum()), int(width[overlap].sum())
        if T and (min(N, T), N * T) > best:
            best, found = (min(N, T), N * T), (overlap, donors)
    return found


def _matrices(dense: np.ndarray, block: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (T, N), Y (T, n), Z (m, N)"""
    shared = dense[:, *block.overlap.T]   # (units, T)
    here = dense[:, block.measurements] if block.intervention is None else dense[:, block.measurements, block.intervention]
    return shared[block.donors].T, shared[block.units].T, here[block.donors].T
