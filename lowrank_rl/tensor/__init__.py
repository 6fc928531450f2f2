"""Tensor completion: tables with holes, and functions of categories and continuous coordinates."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank_rl.tensor.blocks import BlockCompletion, complete_blocks
    from lowrank_rl.tensor.bounds import cramer_rao
    from lowrank_rl.tensor.cells import from_coordinates
    from lowrank_rl.tensor.compare import factor_match_score
    from lowrank_rl.tensor.completion import CPCompletion
    from lowrank_rl.tensor.cp import CP
    from lowrank_rl.tensor.foldin import NewRow, add_row, fold_in, fold_in_groups, set_row, update_row
    from lowrank_rl.tensor.functional import FunctionalCP
    from lowrank_rl.tensor.functional_adam import AdamConfig
    from lowrank_rl.tensor.functional_als import ALSConfig
    from lowrank_rl.tensor.identify import Identifiability
    from lowrank_rl.tensor.modes import Categorical, Fourier, Neural, Polynomial, Spline
    from lowrank_rl.tensor.observed import Observed
    from lowrank_rl.tensor.pattern import Pattern
    from lowrank_rl.tensor.rank import RankChoice, choose_rank
    from lowrank_rl.tensor.rank_bounds import lower_bound, upper_bound
    from lowrank_rl.tensor.rank_report import RankReport
    from lowrank_rl.tensor.sensitivity import derivative
    from lowrank_rl.tensor.stream import Stream
    from lowrank_rl.tensor.support import Support
    from lowrank_rl.tensor.uncertainty import Intervals

__all__ = [
    "CP", "ALSConfig", "AdamConfig", "BlockCompletion", "CPCompletion", "Categorical", "Fourier", "FunctionalCP",
    "Identifiability", "Intervals", "Neural", "NewRow", "Observed", "Pattern", "Polynomial", "RankChoice", "RankReport",
    "Spline", "Stream", "Support", "add_row", "choose_rank", "complete_blocks", "cramer_rao", "derivative",
    "factor_match_score", "fold_in", "fold_in_groups", "from_coordinates", "lower_bound", "set_row", "update_row",
    "upper_bound",
]

_HOME = {
    "CP": "cp", "ALSConfig": "functional_als", "AdamConfig": "functional_adam", "BlockCompletion": "blocks",
    "CPCompletion": "completion", "Categorical": "modes", "Fourier": "modes", "FunctionalCP": "functional",
    "Identifiability": "identify", "Intervals": "uncertainty", "Neural": "modes", "NewRow": "foldin",
    "Observed": "observed", "Pattern": "pattern", "Polynomial": "modes", "RankChoice": "rank", "RankReport": "rank_report",
    "Spline": "modes", "Stream": "stream", "Support": "support", "derivative": "sensitivity", "add_row": "foldin",
    "choose_rank": "rank", "complete_blocks": "blocks", "cramer_rao": "bounds", "factor_match_score": "compare",
    "fold_in": "foldin", "fold_in_groups": "foldin", "from_coordinates": "cells", "lower_bound": "rank_bounds",
    "set_row": "foldin", "update_row": "foldin", "upper_bound": "rank_bounds",
}


def __getattr__(name: str) -> Any:
    """A name's file is loaded on first use: networks need torch, CPCompletion scikit-learn and numba, and neither the other."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
