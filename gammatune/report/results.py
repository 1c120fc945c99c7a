"""The numbers of one run in one frame, from which its tables and its figures are made."""

from functools import lru_cache

import pandas as pd

from gammatune.report import metrics, statistics
from gammatune.report.names import OVERALL, order_tasks
from gammatune.runs.store import BASELINE, StoredRun


@lru_cache(maxsize=4)
def results_table(run: StoredRun) -> pd.DataFrame:
    """One row per task and arm, and per arm over all questions (task "overall"), with every headline metric as a number."""
    tasks = order_tasks(run.questions["task"])
    parts = [(task, run.questions[run.questions["task"] == task]) for task in tasks] + [(OVERALL, run.questions)]
    return pd.DataFrame([results_row(run, arm, task, part) for task, part in parts for arm in run.arms])


def results_row(run: StoredRun, arm, task: str, part: pd.DataFrame) -> dict:
    rows = part[part["label"] == arm.label]
    row = {"task": task, "label": arm.label, "policy": arm.policy, "gamma": arm.gamma}
    row |= {"questions": rows[["task", "question_id"]].drop_duplicates().shape[0]}
    row |= speed_columns(rows, part[part["label"] == BASELINE], run.has_baseline)
    row |= {
        "tokens_per_second": metrics.tokens_per_second(rows),
        "mean_accepted_tokens": metrics.mean_accepted_tokens(rows),
        "tokens_per_target_forward": metrics.tokens_per_target_forward(rows),
        "acceptance_rate": metrics.acceptance_rate(rows),
        "acceptance_rate_per_question": metrics.acceptance_rate_per_question(rows),
        "wasted_draft_fraction": metrics.wasted_draft_fraction(rows),
        "wasted_forward_fraction": metrics.wasted_forward_fraction(rows),
    }
    return row


def speed_columns(rows: pd.DataFrame, baseline: pd.DataFrame, comparable: bool) -> dict[str, float]:
    """Everything that is a ratio to the autoregressive arm; NaN throughout where that ratio may not be formed."""
    names = ["speedup", "speedup_std", "speedup_low", "speedup_high", "speedup_total", "repetitions_low", "repetitions_high"]
    if not comparable:
        return dict.fromkeys(names, float("nan"))
    repeated = statistics.speedup_per_repetition(rows, baseline)
    values = [
        metrics.speedup(rows, baseline),
        metrics.speedup_spread(rows, baseline),
        *statistics.speedup_interval(rows, baseline),
        metrics.speedup_total(rows, baseline),
        *statistics.repetition_interval(repeated),
    ]
    return dict(zip(names, values, strict=True))
