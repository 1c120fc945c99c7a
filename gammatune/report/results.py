"""The numbers of a stored run as frames, from which its tables and figures are made."""

from functools import lru_cache

import pandas as pd

from gammatune.errors import one_line
from gammatune.report import metrics, statistics
from gammatune.runs.store import BASELINE, StoredRun
from gammatune.studies.headline import OVERALL, order_tasks

RATIOS = ["speedup", "speedup_std", "speedup_low", "speedup_high", "speedup_total", "repetitions_low", "repetitions_high"]


@lru_cache(maxsize=4)
def results_table(run: StoredRun) -> pd.DataFrame:
    """One row per task and arm, and per arm over all questions (task "overall"), with every metric."""
    tasks = order_tasks(run.questions["task"])
    parts = [(task, run.questions[run.questions["task"] == task]) for task in tasks] + [(OVERALL, run.questions)]
    return pd.DataFrame([results_row(run, arm, task, part) for task, part in parts for arm in run.arms])


def results_row(run: StoredRun, arm, task: str, part: pd.DataFrame) -> dict:
    rows, baseline = part[part["label"] == arm.label], part[part["label"] == BASELINE]
    row = {"task": task, "label": arm.label, "policy": arm.policy, "gamma": arm.gamma}
    row |= {"questions": len(rows[["task", "question_id"]].drop_duplicates())} | dict.fromkeys(RATIOS, float("nan"))
    if run.has_baseline:  # without one, or with random weights, no ratio of speeds may be formed
        low, high = statistics.speedup_interval(rows, baseline)
        row |= {"speedup": metrics.speedup(rows, baseline), "speedup_std": metrics.speedup_spread(rows, baseline)}
        row |= {"speedup_low": low, "speedup_high": high, "speedup_total": metrics.speedup_total(rows, baseline)}
        low, high = statistics.repetition_interval(statistics.speedup_per_repetition(rows, baseline))
        row |= {"repetitions_low": low, "repetitions_high": high}
    return row | {metric.__name__: metric(rows) for metric in metrics.PER_ARM}


def timing_table(run: StoredRun) -> pd.DataFrame:
    """One row per arm: shares of wall time, and quantiles of the wall time of a turn in milliseconds."""
    rows = []
    for label, turns in run.turns.groupby("label", sort=False):
        shares, quantiles = metrics.time_split(turns), metrics.quantiles(turns["wall_ms"])
        row = {"label": label} | {f"{part}_share": share for part, share in shares.items()}
        rows.append(row | {f"turn_ms_{name}": ms for name, ms in quantiles.items()})
    return pd.DataFrame(rows)


def proposer_table(run: StoredRun) -> pd.DataFrame:
    """Per drafting arm and member of the run's list of drafters: blocks, tokens, its part of all, and its acceptance rate.

    No rows for a run of one drafter.
    """
    names, rows = name_members(run.facts.get("drafter")), []
    blocks = run.rounds[(run.rounds["drafted"] > 0) | (run.rounds["forwards"] > 0)]
    for label, arm in blocks.groupby("label", sort=False) if names else ():
        for place, name in enumerate(names):
            own = arm[arm["proposer"] == place]
            row = {"label": label, "proposer": name, "blocks": len(own), "drafted": own["drafted"].sum()}
            row |= {"accepted": own["accepted"].sum(), "forwards": own["forwards"].sum()}
            row |= {"drafted_share": metrics.ratio(own["drafted"].sum(), arm["drafted"].sum())}
            row |= {"accepted_share": metrics.ratio(own["accepted"].sum(), arm["accepted"].sum())}
            rows.append(row | {"acceptance_rate": metrics.acceptance_rate(own)})
    return pd.DataFrame(rows)


def name_members(drafter) -> list[str]:
    """Names of the drafters of a list, as run.json or a table describes it; none where it describes one drafter."""
    members = drafter.get("members") if isinstance(drafter, dict) else None
    if not isinstance(members, list):
        return []
    return [one_line(str(member.get("name"))) if isinstance(member, dict) else "unknown" for member in members]


def position_table(run: StoredRun) -> pd.DataFrame:
    """Per drafting arm and position of a block: how often it was reached, and the chance that its token is accepted."""
    tables = {label: metrics.conditional_acceptance(rounds) for label, rounds in run.rounds.groupby("label", sort=False)}
    drafting = {label: table for label, table in tables.items() if len(table)}
    if not drafting:
        return pd.DataFrame(columns=["label", "position", "reached", "accepted", "rate"])
    return pd.concat(drafting, names=["label"]).reset_index()
