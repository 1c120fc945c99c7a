"""What decides gamma: POLICIES maps the names that configs use to policies, POLICIES["svip"](threshold=0.2) makes one.

A shipped policy is one module in this folder, found by itself. Presets of a rule stand in presets.yaml.
"""

from pathlib import Path

from gammatune.policies.base import Policy, Signals
from gammatune.registry import Registry, discover

#: Order in tables and figures; names that are not listed here come after these
ORDER = (
    "ar",
    "fixed",
    "tuned_fixed",
    "gammatune",
    "gammatune_plus",
    "hf_constant",
    "hf_heuristic",
    "hf_confidence",
    "hf_confidence_online",
    "svip",
    "svip_paper",
    "adaedl",
    "p_min",
    "p_min_2026",
    "cumulative",
    "cumulative_strict",
    "cumulative_loose",
    "cumulative_loosest",
    "vllm_estimator",
    "ik_autotune",
    "llama_2023",
    "llama_2023_blind",
    "llama_in_a_row",
    "sglang_walk",
    "ucb",
    "ucb_released",
    "optimal_stopping",
    "optimal_stopping_no_memory",
    "optimal_stopping_blind",
    "oracle",
)

POLICIES = Registry(
    group="policy",
    base=Policy,
    shipped=discover(__name__, __path__, Policy),
    entry_point_group="gammatune.policies",
    presets=Path(__file__).with_name("presets.yaml"),
    order=ORDER,
    several=True,
)

__all__ = ["POLICIES", "Signals", "Policy"]
