"""A grid of policy settings: chosen on the tuning half of the questions, reported on the other half, never on the same."""

from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from gammatune.compose import refuse_extreme
from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.replay.speeds import Bench, measure_speeds
from gammatune.studies.bootstrap import stratified_ratio_interval
from gammatune.studies.headline import STARTS
from gammatune.words import list_values, parse, readable, refuse_sweep


class Ratio(NamedTuple):
    """A ratio of mean speeds with its 95 % paired bootstrap interval over questions."""

    value: float
    low: float
    high: float


@dataclass
class Sweep:
    """A grid and its winner, the setting that is fastest on the tuning half, as the other half measures it."""

    #: one row per grid point with its mean tokens/s on either half, fastest on the tuning half first
    settings: pd.DataFrame
    #: the winner's values by field
    winner: dict
    #: the winner over the same policy's defaults, on the other half
    over_default: Ratio
    #: over the fixed gamma that is fastest on the tuning half
    over_tuned_fixed: Ratio
    #: over the target alone
    over_autoregressive: Ratio
    #: that fixed gamma
    tuned_gamma: int


def parse_grid(words: list[str]) -> tuple[str, list[dict]]:
    """policy.NAME.FIELD=v1,v2 words to (NAME, one dict of values per grid point), lists and ranges as Hydra writes them.

    Raises UserError for another kind of word, for two policies or none, and for a field that is named twice.
    """
    words = [readable(word) for word in words]
    overrides = [parse(word) for word in words]
    keys = [override.key_or_group.split(".") for override in overrides]
    for key, word in zip(keys, words, strict=True):
        if len(key) != 3 or key[0] != "policy" or key[1] not in POLICIES.options:
            known = ", ".join(POLICIES)
            raise UserError(f"{word} is no part of a grid: write policy.NAME.FIELD=VALUE,VALUE with NAME one of {known}.")
    names = {key[1] for key in keys}
    if len(names) != 1:
        raise UserError(
            "A grid is over one policy's fields, such as policy.gammatune.eta=0.1,0.3 policy.gammatune.delta=1,2."
        )
    fields = [key[2] for key in keys]
    if len(set(fields)) < len(fields):
        raise UserError("A grid names each field once: write all values of a field as policy.NAME.FIELD=VALUE,VALUE.")
    refuse_sweep(words, multirun=True)
    values = [list_values(override, word) for override, word in zip(overrides, words, strict=True)]
    return names.pop(), [dict(zip(fields, point, strict=True)) for point in product(*values)]


def build_point(name: str, values: dict) -> Policy:
    """Checked like a config file. Raises UserError and OmegaConf's errors, which entry points explain."""
    refuse_extreme(values, f"policy.{name}")
    return OmegaConf.to_object(OmegaConf.merge(POLICIES.options[name].node(), values))


def sweep_policy(bench: Bench, name: str, points: list[dict]) -> Sweep:
    """Replay all grid points, choose, report. Raises UserError where a task set is too small to split."""
    if not bench.tuning.any():
        raise UserError("This table has one question per task, so it cannot be split for tuning: record more questions.")
    chosen = [build_point(name, point) for point in points]
    fixed = [POLICIES["fixed"](gamma=gamma) for gamma in STARTS]
    measured = measure_speeds(bench, [*chosen, *fixed, POLICIES["ar"](), build_point(name, {})])
    grid, fixed_speeds, (baseline, default) = np.split(measured, [len(chosen), len(chosen) + len(fixed)])
    tuned, rest = bench.tuning, ~bench.tuning
    on_tuning = grid[:, tuned].mean(axis=1)
    best, gamma = int(on_tuning.argmax()), int(fixed_speeds[:, tuned].mean(axis=1).argmax())
    halves = {"tuning_tokens_per_second": on_tuning, "reporting_tokens_per_second": grid[:, rest].mean(axis=1)}
    settings = pd.DataFrame(points).assign(**halves)
    return Sweep(
        settings=settings.sort_values("tuning_tokens_per_second", ascending=False, ignore_index=True, kind="stable"),
        winner=points[best],
        over_default=compare(bench, grid[best], default),
        over_tuned_fixed=compare(bench, grid[best], fixed_speeds[gamma]),
        over_autoregressive=compare(bench, grid[best], baseline),
        tuned_gamma=STARTS[gamma],
    )


def compare(bench: Bench, speeds: np.ndarray, reference: np.ndarray) -> Ratio:
    """Of mean speeds [questions] on the reporting half."""
    rest = ~bench.tuning
    pair = np.stack([speeds, reference])
    strata = [pair[:, rest & (bench.task == task)] for task in np.unique(bench.task)]
    return Ratio(float(speeds[rest].mean() / reference[rest].mean()), *stratified_ratio_interval(strata))
