"""The paper's headline on a table, as this project defines it, and what surrounds it.

Fixed gamma and the adaptive policy both start from each of STARTS. The headline is the mean over starts of the policy's
tokens/s divided by the mean over starts of fixed tokens/s: what a policy gains over a gamma chosen blindly. The abstract of
arXiv 2504.00030 claims 15 % (± 5 %) for GammaTune and 16 % (± 3 %) for GammaTune+, without saying over what.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from gammatune.config import TASKS
from gammatune.policies import POLICIES, Policy
from gammatune.policies.base import settings_of
from gammatune.replay.speeds import Bench, measure_speeds
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.bootstrap import percentile_interval, relative_spread, resample_within

OVERALL = "overall"  # the part that holds all questions, beside the tasks
STARTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24)
CLAIMS = {"gammatune": (1.15, 0.05), "gammatune_plus": (1.16, 0.03)}
ALWAYS = ("ar", "fixed", "oracle")
FILLS = 20
HEURISTIC = "hf_heuristic"


# Ratios of mean tokens/s (mean over questions, then over starts) of a policy over ...
METRICS = (
    "over_mean_fixed",  # fixed gamma, the mean over the same starts
    "over_best_fixed",  # the fixed gamma that is fastest on these questions, known only in hindsight
    "over_tuned_fixed",  # the fixed gamma that was fastest on the tuning half, both measured on the other half
    "over_heuristic",  # transformers' heuristic from its own start (5 by default), where it is among the policies
    "over_oracle",  # the oracle, which drafts exactly what will be accepted
    "over_autoregressive",  # the target alone
    "spread_over_starts",  # not such a ratio: (fastest start - slowest start) / mean; 0 for a policy that has no start
)


@dataclass(eq=False)
class Speeds:
    """Modelled tokens/s of every policy on every question, and the ratios between them."""

    #: policy name -> [starts, questions]; one row for a policy without starts
    by_policy: dict[str, np.ndarray]
    #: task of each question [questions]
    task: np.ndarray
    #: whether settings may be chosen on a question [questions]
    tuning: np.ndarray
    #: of transformers' heuristic from its own start [questions]; None where it is not among the policies
    heuristic: np.ndarray | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of METRICS that have something to divide by."""
        return tuple(name for name in METRICS if name != "over_heuristic" or self.heuristic is not None)

    def part(self, task: str) -> np.ndarray:
        return np.ones(len(self.task), bool) if task == OVERALL else self.task == task

    def tuned_gamma(self, task: str = OVERALL) -> int:
        """Index into STARTS of the fixed gamma that is fastest on the tuning half of a task's questions."""
        part = self.part(task)
        chosen = part & self.tuning if (part & self.tuning).any() else part
        return int(self.by_policy["fixed"][:, chosen].mean(axis=1).argmax())

    def best_gamma(self, task: str = OVERALL) -> int:
        """Index into STARTS of the fixed gamma that is fastest on all of a task's questions, known only in hindsight."""
        return int(self.by_policy["fixed"][:, self.part(task)].mean(axis=1).argmax())

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Speeds by name, [questions] each: of each policy, the mean over its starts; of each fixed gamma; of the heuristic
        from its own start.
        """
        fixed = {f"fixed {gamma}": speeds for gamma, speeds in zip(STARTS, self.by_policy["fixed"], strict=True)}
        started = {} if self.heuristic is None else {f"{HEURISTIC} as set": self.heuristic}
        return {name: speeds.mean(axis=0) for name, speeds in self.by_policy.items()} | fixed | started

    def reference(self, metric: str, task: str) -> str:
        """Name of the row that a metric divides by."""
        return {
            "over_mean_fixed": "fixed",
            "over_best_fixed": f"fixed {STARTS[self.best_gamma(task)]}",
            "over_tuned_fixed": f"fixed {STARTS[self.tuned_gamma(task)]}",
            "over_heuristic": f"{HEURISTIC} as set",
            "over_oracle": "oracle",
            "over_autoregressive": "ar",
        }[metric]

    def compared(self, metric: str) -> np.ndarray:
        """Which questions a metric is taken over [questions]: the reporting half where settings were tuned on the other."""
        return ~self.tuning if metric == "over_tuned_fixed" else np.ones(len(self.task), bool)

    def ratio(self, policy: str, metric: str, task: str = OVERALL) -> float:
        if metric == "spread_over_starts":
            return relative_spread(self.by_policy[policy][:, self.part(task)].mean(axis=1))
        which = self.part(task) & self.compared(metric)
        return float(self.rows[policy][which].mean() / self.rows[self.reference(metric, task)][which].mean())

    def numbers(self, policy: str, task: str = OVERALL) -> dict[str, float]:
        return {metric: self.ratio(policy, metric, task) for metric in self.metrics}

    def interval(self, policy: str, metric: str, task: str = OVERALL) -> tuple[float, float]:
        """95 % paired bootstrap over questions, resampled within their task. NaN for the spread over starts."""
        which = self.part(task) & self.compared(metric)
        lonely = all((which & (self.task == name)).sum() < 2 for name in np.unique(self.task))
        if metric == "spread_over_starts" or lonely:
            return float("nan"), float("nan")
        drawn = self.draws_of_rest if metric == "over_tuned_fixed" else self.draws
        # One draw of questions serves all rows, so that numerator and denominator meet the same questions
        names = list(self.rows)
        sums = sum(drawn.values()) if task == OVERALL else drawn[task]
        return percentile_interval(sums[names.index(policy)] / sums[names.index(self.reference(metric, task))])

    @cached_property
    def draws(self) -> dict[str, np.ndarray]:
        return self.resample(np.ones(len(self.task), bool))

    @cached_property
    def draws_of_rest(self) -> dict[str, np.ndarray]:
        return self.resample(~self.tuning)

    def resample(self, which: np.ndarray) -> dict[str, np.ndarray]:
        """Task -> sums over resampled questions of all rows [rows, resamples]."""
        return resample_within(np.stack(list(self.rows.values()))[:, which], self.task[which])


def find_replayable(table: AcceptanceTable, policies: dict[str, Policy] | None = None) -> dict[str, Policy]:
    """Those policies that this table has the signals and ids for; of every known one with its own settings by default."""
    named_text = all(len(turn.output_ids) for turn in table.turns)
    made = {name: option() for name, option in POLICIES.items()} if policies is None else policies
    return {n: p for n, p in made.items() if (table.watched or not p.watches_draft) and (named_text or not p.reads_text)}


def start_variants(name: str, policy: Policy) -> list[Policy]:
    """The policy from each start, or as it is where gamma is not where it starts."""
    if name != "fixed" and not policy.adapts_gamma:
        return [policy]
    return [type(policy)(**settings_of(policy) | {"gamma": gamma}) for gamma in STARTS]


def replay_all(bench: Bench, policies: dict[str, Policy], all_starts: bool = True) -> Speeds:
    """Every policy from every start (fixed always, others unless all_starts is False, and then from their own).

    ar, fixed and the oracle are always among them. tuned_fixed is tuned on the bench.
    """
    chosen = {name: POLICIES[name]() for name in ALWAYS} | policies
    started = {name: start_variants(name, p) if all_starts or name == "fixed" else [p] for name, p in chosen.items()}
    jobs = [(name, variant) for name, each in started.items() for variant in each]
    measured = measure_speeds(bench, [variant for _, variant in jobs])
    rows = {name: [row for (owner, _), row in zip(jobs, measured, strict=True) if owner == name] for name in chosen}
    heuristic = bench.speeds(chosen[HEURISTIC]) if HEURISTIC in chosen else None
    speeds = Speeds({name: np.stack(found) for name, found in rows.items()}, bench.task, bench.tuning, heuristic)
    if "tuned_fixed" in speeds.by_policy:
        speeds.by_policy["tuned_fixed"] = speeds.by_policy["fixed"][[speeds.tuned_gamma()]]
    return speeds


def headline_frame(speeds: Speeds) -> pd.DataFrame:
    """One row per task (and "overall"), policy and metric: value, low, high (95 %; NaN for the spread)."""
    rows = [
        (task, policy, metric, speeds.ratio(policy, metric, task), *speeds.interval(policy, metric, task))
        for task in [*order_tasks(speeds.task), OVERALL]
        for policy in speeds.by_policy
        for metric in speeds.metrics
    ]
    return pd.DataFrame(rows, columns=["task", "policy", "metric", "value", "low", "high"])


def order_tasks(tasks) -> list[str]:
    """Spec-Bench's order, tasks of other question sets after them."""
    present = {str(task) for task in tasks}
    return [task for task in TASKS if task in present] + sorted(present - set(TASKS))
