"""Tensor completion: tables with holes, and functions of categories and continuous coordinates."""

from lowrank_rl.tensor.compare import factor_match_score
from lowrank_rl.tensor.cp import CP
from lowrank_rl.tensor.functional import FunctionalCP
from lowrank_rl.tensor.functional_adam import AdamConfig
from lowrank_rl.tensor.modes import Categorical, Neural
from lowrank_rl.tensor.observed import Observed

__all__ = ["CP", "AdamConfig", "Categorical", "FunctionalCP", "Neural", "Observed", "factor_match_score"]
