"""What proposes tokens: DRAFTERS maps the names that configs use to drafters. Importing this package imports torch.

A shipped drafter is one module in this folder, found by itself.
"""

from gammatune.drafters.base import Drafter
from gammatune.registry import Registry, discover

DRAFTERS = Registry(
    group="drafter",
    base=Drafter,
    shipped=discover(__name__, __path__, Drafter),
    entry_point_group="gammatune.drafters",
    order=("model", "lookup", "suffix"),
    several=None,
)

__all__ = ["DRAFTERS", "Drafter"]
