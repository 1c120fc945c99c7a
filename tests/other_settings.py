"""Another valid value for every setting that a policy has."""

from dataclasses import MISSING, fields

from gammatune.policies import POLICIES

#: Names of rules; presets are these rules with other numbers
RULES = [name for name, option in POLICIES.items() if not option.settings]
# The second value is for policies whose default is the first
OTHER_SETTINGS = {
    "carry": ("question", "never"),
    "stop_token": ("exclude", "include"),
    "gamma": (9,),
    "eta": (0.7,),
    "delta": (3,),
    "gamma_min": (3,),
    "gamma_max": (4,),
    "full": ("drafted", "planned"),
    "clip_expand": ("gamma_max",),
    "ignore_cut": (True,),
    "tau": (0.7,),
    "threshold": (0.6,),
    "factor": (0.4,),
    "alpha": (0.5,),
    "beta1": (1.0,),
    "beta2": (0.5,),
    "epsilon": (0.1,),
    "p_min": (0.6,),
    "steps": ([2, 4],),
    "ema_alpha": (0.6,),
    "update_interval": (2,),
    "warmup_rounds": (12,),
    "down_hysteresis": (0.5,),
    "up_hysteresis": (1.0,),
    "arms": ([1, 5],),
    "reward": ("tokens",),
    "cost_ratio": (2.0,),
    "radius": ("none",),
    "risk": (0.001,),
    "signals": (False,),
    "memory": (False,),
    "feature": ("top1",),
    "refit_interval": (40,),
    "warmup_refits": (1,),
    "min_observations": (400,),
    "seed": (5,),
    "ratio": (1.2,),
    "times": (3,),
    "bias": (1,),
}
ONLY_ONE = {("hf_confidence_online", "carry")}


def default_of(name: str, key: str):
    setting = {f.name: f for f in fields(POLICIES[name].rule)}[key]
    return setting.default if setting.default_factory is MISSING else setting.default_factory()


def other_values(name: str, key: str) -> list:
    """Valid values unlike the default: none where the policy accepts only one."""
    if (name, key) in ONLY_ONE:
        return []
    return [value for value in OTHER_SETTINGS[key] if value != default_of(name, key)]
