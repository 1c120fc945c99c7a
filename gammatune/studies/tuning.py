"""Every policy at its best: settings chosen on the tuning half of the questions, speed reported on the other half."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.policies.base import settings_of, with_settings
from gammatune.replay.speeds import Bench, key_of, measure_speeds
from gammatune.studies.bootstrap import percentile_interval, resample_within


@dataclass
class Tuned:
    """A policy as it is and at its best."""

    policy: Policy  # with the settings that are fastest on the tuning half
    settings: dict  # those of its grid that were chosen; empty where nothing was faster than what it had
    speeds: np.ndarray  # tokens/s of each question with them [questions], both halves
    default: np.ndarray  # the same with the settings that it came with

    @property
    def words(self) -> str:
        """The settings as tables hold them: "eta=0.2, delta=1"."""
        return ", ".join(f"{field}={value}" for field, value in self.settings.items())


def grid_of(policy: Policy) -> list[dict]:
    """All combinations of the settings that its class names as worth trying; none where it names none."""
    return [dict(zip(policy.grid, point, strict=True)) for point in product(*policy.grid.values())] if policy.grid else []


def chosen_settings(policy: Policy) -> dict:
    """Those of its settings that say which one of its rule it is: what is worth trying, and what is unlike its defaults."""
    option = POLICIES.options.get(policy.name)
    usual = settings_of(option() if option else type(policy)())
    return {name: value for name, value in settings_of(policy).items() if name in policy.grid or value != usual[name]}


def tune_all(bench: Bench, policies: dict[str, Policy]) -> dict[str, Tuned]:
    """Every policy by name. Raises UserError where a table cannot be split."""
    if not bench.tuning.any():
        raise UserError("This table has one question per task, so it cannot be split for tuning: record more questions.")
    points = [(name, point) for name, policy in policies.items() for point in ({}, *grid_of(policy))]
    tried = [with_settings(policies[name], **point) for name, point in points]
    on_tuning, chosen = mean_on_tuning(bench, tried), {}
    for name in policies:
        rows = [row for row, (owner, _) in enumerate(points) if owner == name]  # the settings that it came with first
        chosen[name] = rows[int(on_tuning[rows].argmax())], rows[0]
    measure_speeds(bench, [tried[row] for pair in chosen.values() for row in pair])
    return {
        name: Tuned(tried[best], points[best][1], bench.speeds(tried[best]), bench.speeds(tried[first]))
        for name, (best, first) in chosen.items()
    }


def mean_on_tuning(bench: Bench, policies: list[Policy]) -> np.ndarray:
    """Mean tokens/s on the tuning half [policies], which is replayed alone for a policy that forgets between questions."""
    half, means = bench.part(bench.tuning), np.empty(len(policies))
    alone = np.array([policy.carry != "never" and key_of(policy) not in bench.known for policy in policies])
    for where, which, questions in ((half, alone, slice(None)), (bench, ~alone, bench.tuning)):
        found = measure_speeds(where, [policies[row] for row in np.flatnonzero(which)])
        means[which] = found[:, questions].mean(axis=1)
    return means


def rank_tuned(bench: Bench, tuned: dict[str, Tuned]) -> pd.DataFrame:
    """One row per policy, fastest with tuned settings first, all on the half that had no say in them.

    Columns: policy, settings ("eta=0.2, delta=1", empty where nothing was faster than what it came with), tunable, and with
    _low and _high of a paired 95 % interval default_over_autoregressive, tuned_over_autoregressive, tuned_over_tuned_fixed.
    tuned: what `tune_all` found, ar and fixed among it.
    """
    rest = ~bench.tuning
    rows = {
        (name, kind): speeds for name, t in tuned.items() for kind, speeds in (("default", t.default), ("tuned", t.speeds))
    }
    stacked = np.stack(list(rows.values()))[:, rest]
    strata = resample_within(stacked, bench.task[rest])
    drawn = dict(zip(rows, sum(strata.values()), strict=True))
    lonely = np.unique(bench.task[rest], return_counts=True)[1].max() < 2

    def ratio(metric: str, over: tuple, under: tuple) -> dict:
        low, high = (float("nan"),) * 2 if lonely else percentile_interval(drawn[over] / drawn[under])
        value = float(rows[over][rest].mean() / rows[under][rest].mean())
        return {metric: value, f"{metric}_low": low, f"{metric}_high": high}

    frame = pd.DataFrame(
        {
            "policy": name,
            "settings": each.words,
            "tunable": bool(each.policy.grid),
        }
        | ratio("default_over_autoregressive", (name, "default"), ("ar", "default"))
        | ratio("tuned_over_autoregressive", (name, "tuned"), ("ar", "default"))
        | ratio("tuned_over_tuned_fixed", (name, "tuned"), ("fixed", "tuned"))
        for name, each in tuned.items()
    )
    return frame.sort_values("tuned_over_autoregressive", ascending=False, kind="stable", ignore_index=True)
