"""What decides gamma: the policies by the name that configs use."""

from gammatune.policies.base import DraftSignal, Policy
from gammatune.policies.fixed import Autoregressive, Fixed
from gammatune.policies.gammatune import GammaTune, GammaTunePlus
from gammatune.policies.transformers_rules import HFConfidence, HFConstant, HFHeuristic

POLICIES = {
    "ar": Autoregressive,
    "fixed": Fixed,
    "gammatune": GammaTune,
    "gammatune_plus": GammaTunePlus,
    "hf_constant": HFConstant,
    "hf_heuristic": HFHeuristic,
    "hf_confidence": HFConfidence,
}

__all__ = ["POLICIES", "DraftSignal", "Policy"]
