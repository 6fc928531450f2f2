"""Tensor completion: tables with holes, and functions of categories and continuous coordinates."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lowrank_rl.tensor.compare import factor_match_score
    from lowrank_rl.tensor.completion import CPCompletion
    from lowrank_rl.tensor.cp import CP
    from lowrank_rl.tensor.functional import FunctionalCP
    from lowrank_rl.tensor.functional_adam import AdamConfig
    from lowrank_rl.tensor.modes import Categorical, Neural
    from lowrank_rl.tensor.observed import Observed
    from lowrank_rl.tensor.rank import RankChoice, choose_rank
    from lowrank_rl.tensor.stream import Stream

__all__ = ["CP", "AdamConfig", "CPCompletion", "Categorical", "FunctionalCP", "Neural", "Observed", "RankChoice", "Stream",
           "choose_rank", "factor_match_score"]

_HOME = {"CP": "cp", "AdamConfig": "functional_adam", "CPCompletion": "completion", "Categorical": "modes",
         "FunctionalCP": "functional", "Neural": "modes", "Observed": "observed", "RankChoice": "rank", "Stream": "stream",
         "choose_rank": "rank", "factor_match_score": "compare"}


def __getattr__(name: str) -> Any:
    """A name's file is loaded on first use: networks need torch, CPCompletion scikit-learn and numba, and neither the other."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
