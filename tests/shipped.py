"""The shipped policies, for tests that hold for each of them."""

from gammatune.policies import POLICIES
from gammatune.policies.base import settings_of

LIVE = [name for name, option in POLICIES.items() if not option.rule.oracle]
LENGTH_ONLY = [name for name, option in POLICIES.items() if not option().watches_draft]


def make_policy(name: str, **settings):
    """A fresh policy."""
    return POLICIES[name](**settings)


def adapt_policy(name: str, **wanted):
    """A fresh policy with those of the wanted settings that it has, and that its rule allows."""
    known = settings_of(make_policy(name))
    if "gamma_min" in known or name in ("adaedl", "hf_heuristic"):
        wanted["gamma"] = max(wanted.get("gamma", 5), known.get("gamma_min", 1))
    if name == "hf_confidence_online":
        wanted.pop("carry", None)
    return make_policy(name, **{key: value for key, value in wanted.items() if key in known})
