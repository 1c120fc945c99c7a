"""What is printed around tables: captions, what is missing, what to distrust, and the summary at the end of a run."""

import math

import numpy as np
import pandas as pd

from gammatune.errors import one_line
from gammatune.machine import describe_sharing
from gammatune.report import metrics
from gammatune.report.names import arm_names, policy_name
from gammatune.report.results import results_table
from gammatune.report.tables import to_markdown
from gammatune.report.views import details_view
from gammatune.runs.store import BASELINE, StoredRun
from gammatune.studies.bootstrap import relative_spread
from gammatune.studies.headline import OVERALL
from gammatune.studies.study import Study

THROTTLED = 0.75  # of the highest clock
UNSTABLE = 0.10
SLOW_POLICY = 0.05  # of the time of its rounds
SPEED_NOTE = (
    "Speedup is the ratio of mean tokens/s over questions; ± is the standard deviation over questions of the "
    "ratio per question; intervals are 95 % paired bootstrap over questions."
)
RANDOM_NOTE = "The weights are random, so no speedup is given."
BASELINE_NOTE = "The autoregressive arm is missing, so no speedup is given."
MODELLED_NOTE = (
    "Modelled: each round of the replay priced with measured times. Intervals: 95 % paired bootstrap over questions, drawn "
    "within their task."
)

TUNED_NOTE = (
    "Tuned settings are chosen on every second question of each task, from those that each rule names as worth trying; the "
    "speeds beside them, with and without tuning, are those of the other questions."
)
NOT_TUNED_NOTE = "No settings are tuned: with one question per task there is no other half to report."


def summary_table(run: StoredRun, replay: str = "") -> str:
    """The compact table for the end of a run, with what was left out and what to distrust under it.

    replay: the sentence of gammatune.studies.replay_check.
    """
    results = results_table(run)
    results = results[results["task"] == OVERALL]
    view = details_view(results, arm_names(run.arms))
    view = view.drop(columns=["task", "questions", "acceptance rate (mean over questions)"])
    view = view.rename(columns={"mean accepted tokens": "mean accepted", "acceptance rate (pooled)": "acceptance"})
    view["exact"] = results["label"].map({arm.label: exactness(arm) for arm in run.arms})
    return "\n".join([to_markdown(view, "simple"), *(f"\n{sentence}" for sentence in list_notes(run, replay))])


def exactness(arm) -> str:
    """For the table: yes, yes with the number of near ties, no, or that sampling cannot be compared."""
    ties = arm.done.get("near_ties") or 0
    return {True: f"yes ({ties} near ties)" if ties else "yes", False: "no", None: "sampled"}[arm.exact]


def arm_summaries(run: StoredRun) -> list[dict]:
    """Per ok arm: policy (its label), speedup, mean_accepted_tokens, acceptance_rate, exact; None for no value."""
    results = results_table(run)
    overall = results[results["task"] == OVERALL].set_index("label")
    numbers = overall[["speedup", "mean_accepted_tokens", "acceptance_rate"]].astype(object)
    numbers = numbers.where(overall[numbers.columns].notna(), None)
    return [{"policy": arm.label} | numbers.loc[arm.label].to_dict() | {"exact": arm.exact} for arm in run.arms]


def list_notes(run: StoredRun, replay: str) -> list[str]:
    """Sentences that belong under every table of this run."""
    missing = RANDOM_NOTE if run.facts.get("random_weights") else "" if run.has_baseline else BASELINE_NOTE
    left_out = f"{run.left_out_sentence()}." if run.left_out else ""
    overlong = overlong_sentence(run.facts, run.questions["question_id"].nunique())
    warnings = [f"Unstable: {sentence}" for sentence in stability_warnings(run)]
    own_time = slow_policies(run)
    found = (missing, left_out, overlong, *gain_sentences(run), replay, *own_time, *warnings)
    return [sentence for sentence in found if sentence]


def overlong_sentence(facts: dict, asked: int) -> str:
    """For example "2 of 6 questions left out: too long for the pair (9, 21)."; empty where none was. asked: the others."""
    ids = facts.get("overlong", [])
    if not ids:
        return ""
    return f"{len(ids)} of {asked + len(ids)} questions left out: too long for the pair ({', '.join(map(str, ids))})."


def gain_sentences(run: StoredRun) -> list[str]:
    """For each policy that shares two or more starting gammas with fixed arms: the gain over the mean fixed gamma."""
    policies = dict.fromkeys(arm.policy for arm in run.arms if arm.policy not in (BASELINE, "fixed"))
    gains = {policy: metrics.gain_over_mean_fixed(run.questions, policy) for policy in policies}
    return [
        f"{policy_name(policy)}: {gain - 1:+.1%} tokens/s against fixed gamma, mean over their common starts."
        for policy, gain in gains.items()
        if not math.isnan(gain)
    ]


def slow_policies(run: StoredRun) -> list[str]:
    """For each policy whose own code takes a noticeable part of its rounds: how much."""
    sums = run.turns.groupby("label", sort=False)[["draft_ms", "verify_ms", "policy_ms", "rounds"]].sum()
    sums["share"] = sums["policy_ms"] / sums[["draft_ms", "verify_ms", "policy_ms"]].sum(axis=1)
    return [
        f"{label} spends {arm.share:.0%} of its rounds in its own code ({arm.policy_ms / arm.rounds:.1f} ms a round)."
        for label, arm in sums[sums["share"] > SLOW_POLICY].iterrows()
    ]


def describe_run(run: StoredRun, replay: str = "") -> str:
    """Caption: pair, runtime, device, dtype, version and commit, number of questions, what ± means, and all notes."""
    runtime, provenance = run.facts["runtime"], run.arms[0].provenance
    commit, plus, changes = (provenance.get("git") or "unknown").partition("+")
    facts = {
        "Pair": run.facts["pair"],
        "runtime": runtime.get("name", "unknown"),
        "device": provenance.get("device", "unknown"),
        "dtype": runtime.get("dtype", "unknown"),
        "gammatune": f"{provenance.get('gammatune', 'unknown')} (commit {commit[:10]}{plus}{changes})",
        "questions": run.questions[["task", "question_id"]].drop_duplicates().shape[0],
        "repetitions": run.questions["repetition"].nunique(),
    }
    return " ".join(["; ".join(f"{key} {fact}" for key, fact in facts.items()) + ".", SPEED_NOTE, *list_notes(run, replay)])


def describe_study(study: Study) -> str:
    """Caption: what was replayed, with which prices."""
    device = one_line(str(study.curve.facts.get("provenance", {}).get("device", "an unknown device")))
    pair, questions, tokens = one_line(study.facts.get("pair", "unknown")), study.facts["questions"], study.facts["tokens"]
    what = f"{pair}, {questions} questions, {tokens:,} tokens"
    ratio = f"T_target / T_draft = {study.curve.ratio(512):.1f} at context 512"
    notes = [MODELLED_NOTE, NOT_TUNED_NOTE if study.tuned is None else TUNED_NOTE]
    notes.append(overlong_sentence(study.facts, study.facts["questions"]))
    return " ".join([f"Pair {what}; prices of {device}, {ratio}.", *filter(None, notes)])


def describe_bounds(source: dict) -> str:
    """Caption: the log, and what the three numbers of a cell are."""
    return (
        f"Source: {source['source']} ({source['model_id']}), {source['turns']} turns, {source['tokens']:,} tokens, drafted "
        f"by {source['schedule']}. Each cell: the {source['unknown']:.1%} unknown positions as mismatches / as matches at "
        f"the estimated rate {source['rate']:.2f} / all as matches. A ratio of two policies may fall as matches grow. "
        "Verification is taken as flat. No settings are tuned: these numbers are stored, not the log."
        f"{describe_log_prices(source)}"
    )


def describe_log_prices(source: dict) -> str:
    """What else a caption says of logs with prices of their own, and of a second log."""
    words = ""
    if own := source.get("own_prices"):
        words += f" The ratio {own['ratio']:g} is that of the log's own wall times{list_prices(own)}."
    if second := source.get("second"):
        words += (
            f" Some matches come from a second log, {second['source']}, whose blocks a confidence rule ended (inferred, not "
            f"logged); {second['contradictions']} of {second['shared']:,} shared positions contradict each other."
        )
    return words


def list_prices(facts: dict) -> str:
    """Of a price list that follows from a log: " (95 %): T_verify 22.28 [21.18, 23.10] ms, ..."; empty for another one."""
    found = facts.get("prices_95", {}).items()
    shown = [f"{name} {price['ms']:.2f} [{price['low']:.2f}, {price['high']:.2f}] ms" for name, price in found]
    return f" (95 %): {', '.join(shown)}" if shown else ""


def stability_warnings(run: StoredRun) -> list[str]:
    """One sentence per reason to distrust the timings of this run; empty where it was steady."""
    found = []
    for label, rows in run.questions.groupby("label", sort=False):
        apart = relative_spread(rows.groupby("repetition").apply(metrics.tokens_per_second, include_groups=False))
        if apart > UNSTABLE:
            found.append(
                f"{label}: tokens/s differed by {apart:.0%} between repetitions; repeat the run on a quiet machine."
            )
    baseline = run.turns[run.turns["label"] == BASELINE]
    changes = [measure_drift(rows) for _, rows in baseline.groupby("task") if len(rows) >= 4]
    change = float(np.mean(changes)) if changes else 0.0
    if abs(change) > UNSTABLE:
        way = "faster" if change > 0 else "slower"
        found.append(f"{BASELINE}: decoding became {abs(change):.0%} {way} from the first to the second half of the tasks.")
    # without samples the median is NaN, which is above nothing
    if shared := describe_sharing(run.machine["load"].median(), run.arms[0].provenance.get("cores")):
        found.append(f"The machine was shared while the run worked ({shared}): timings may be too slow.")
    if "sm_mhz" in run.machine:
        slow = float((run.machine["sm_mhz"] < THROTTLED * run.machine["sm_max_mhz"]).mean())
        if slow > UNSTABLE:
            found.append(f"The GPU ran under {THROTTLED:.0%} of its clock in {slow:.0%} of the samples.")
    return found


def measure_drift(turns: pd.DataFrame) -> float:
    """(second half - first half) / mean, of tokens per decoding time without prefill; prompts of one task are alike."""
    halves = turns.iloc[: len(turns) // 2], turns.iloc[len(turns) // 2 :]
    first, second = (half["tokens"].sum() / (half["wall_ms"] - half["prefill_ms"]).sum() for half in halves)
    return (second - first) / np.mean([first, second])
