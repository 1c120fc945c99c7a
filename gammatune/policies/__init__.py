"""What decides gamma: the policies by the name that configs use."""

from gammatune.policies.adaedl import AdaEDL
from gammatune.policies.base import DraftSignal, Policy
from gammatune.policies.cumulative import Cumulative, CumulativeStrict
from gammatune.policies.fixed import Autoregressive, Fixed
from gammatune.policies.gammatune import GammaTune, GammaTunePlus
from gammatune.policies.hf_online import HFConfidenceOnline
from gammatune.policies.oracle import Oracle
from gammatune.policies.p_min import PMin, PMin2026
from gammatune.policies.sglang import SGLangWalk
from gammatune.policies.svip import SVIP, SVIPPaper
from gammatune.policies.transformers_rules import HFConfidence, HFConstant, HFHeuristic
from gammatune.policies.tuned_fixed import TunedFixed
from gammatune.policies.ucb import UCB, UCBReleased

POLICIES = {
    "ar": Autoregressive,
    "fixed": Fixed,
    "tuned_fixed": TunedFixed,
    "gammatune": GammaTune,
    "gammatune_plus": GammaTunePlus,
    "hf_constant": HFConstant,
    "hf_heuristic": HFHeuristic,
    "hf_confidence": HFConfidence,
    "hf_confidence_online": HFConfidenceOnline,
    "svip": SVIP,
    "svip_paper": SVIPPaper,
    "adaedl": AdaEDL,
    "p_min": PMin,
    "p_min_2026": PMin2026,
    "cumulative": Cumulative,
    "cumulative_strict": CumulativeStrict,
    "sglang_walk": SGLangWalk,
    "ucb": UCB,
    "ucb_released": UCBReleased,
    "oracle": Oracle,
}

__all__ = ["POLICIES", "DraftSignal", "Policy"]
