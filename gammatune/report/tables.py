"""Tables of one run: frames first, then Markdown, CSV and LaTeX from the same frame, each with its caption."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from gammatune.report import metrics, statistics
from gammatune.report.names import OVERALL, arm_names, policy_name, task_name
from gammatune.report.results import results_table
from gammatune.runs.store import BASELINE, StoredRun
from gammatune.studies.replay_check import check_replay

SPEED_NOTE = (
    "Speedup is the ratio of mean tokens/s over questions; ± is the standard deviation over questions of the "
    "ratio per question; intervals are 95 % paired bootstrap over questions."
)
RANDOM_NOTE = "The weights are random, so no speedup is given."
BASELINE_NOTE = "The autoregressive arm is missing, so no speedup is given."
LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "γ": r"$\gamma$",
    }
)


def timing_table(run: StoredRun) -> pd.DataFrame:
    """One row per arm: shares of wall time, and quantiles of the wall time of a turn in milliseconds."""
    return pd.DataFrame([timing_row(label, turns) for label, turns in run.turns.groupby("label", sort=False)])


def timing_row(label: str, turns: pd.DataFrame) -> dict:
    shares = {f"{part}_share": share for part, share in metrics.time_split(turns).items()}
    times = {f"turn_ms_{name}": value for name, value in metrics.quantiles(turns["wall_ms"]).items()}
    return {"label": label} | shares | times


def position_table(run: StoredRun) -> pd.DataFrame:
    """One row per drafting arm and position of a block: how often it was reached, and the chance that its token stood."""
    tables = {label: metrics.conditional_acceptance(rounds) for label, rounds in run.rounds.groupby("label", sort=False)}
    drafting = {label: table for label, table in tables.items() if len(table)}
    if not drafting:
        return pd.DataFrame(columns=["label", "position", "reached", "accepted", "rate"])
    return pd.concat(drafting, names=["label"]).reset_index()


def speedup_view(results: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Arms as rows, tasks as columns: "1.52 ± 0.21"."""
    cells = results.assign(cell=speedup_cells(results))
    wide = cells.pivot(index="label", columns="task", values="cell")
    wide = wide.loc[list(names), list(dict.fromkeys(results["task"]))]
    wide.columns = [task_name(task) for task in wide.columns]
    return wide.rename(index=names).rename_axis("policy").reset_index()


def speedup_cells(results: pd.DataFrame) -> list[str]:
    return [plus_minus(*pair) for pair in zip(results["speedup"], results["speedup_std"], strict=True)]


def details_view(results: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """The long table as text: one row per task and arm."""
    return pd.DataFrame(
        {
            "task": results["task"].map(task_name),
            "policy": results["label"].map(names),
            "speedup": speedup_cells(results),
            "95 % interval": [interval(*pair) for pair in zip(results["speedup_low"], results["speedup_high"], strict=True)],
            "mean accepted tokens": results["mean_accepted_tokens"].map(number),
            "acceptance rate (pooled)": results["acceptance_rate"].map(number),
            "acceptance rate (mean over questions)": results["acceptance_rate_per_question"].map(number),
            "tokens/s": results["tokens_per_second"].map(speed),
            "wasted drafts": results["wasted_draft_fraction"].map(percent),
            "questions": results["questions"],
        }
    )


def timing_view(timing: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    shares = {f"{part} share": timing[f"{part}_share"].map(percent) for part in metrics.TIME_PARTS}
    times = {column.replace("_", " "): timing[column].map(speed) for column in timing if column.startswith("turn_ms_")}
    return pd.DataFrame({"policy": timing["label"].map(names)} | shares | times)


def summary_table(run: StoredRun) -> str:
    """The compact table for the end of a run, with what was left out and what to distrust under it."""
    results = results_table(run)
    results = results[results["task"] == OVERALL]
    exact = {arm.label: exactness(arm) for arm in run.arms}
    view = details_view(results, arm_names(run.arms))
    view = view.drop(columns=["task", "questions", "acceptance rate (mean over questions)"])
    view = view.rename(columns={"mean accepted tokens": "mean accepted", "acceptance rate (pooled)": "acceptance"})
    view["exact"] = results["label"].map(exact)
    table = view.to_markdown(index=False, tablefmt="simple", disable_numparse=True)
    return "\n".join([table, *(f"\n{sentence}" for sentence in notes(run))])


def arm_summaries(run: StoredRun) -> list[dict]:
    """Per ok arm: policy (its label), speedup, mean_accepted_tokens, acceptance_rate, exact; None for no value."""
    results = results_table(run)
    overall = results[results["task"] == OVERALL].set_index("label")
    columns = ["speedup", "mean_accepted_tokens", "acceptance_rate"]
    return [
        {"policy": arm.label} | {c: none_if_nan(overall.loc[arm.label, c]) for c in columns} | {"exact": arm.exact}
        for arm in run.arms
    ]


def notes(run: StoredRun) -> list[str]:
    """Sentences that belong under every table of this run."""
    missing = RANDOM_NOTE if run.facts.get("random_weights") else "" if run.has_baseline else BASELINE_NOTE
    left_out = f"{run.left_out_sentence()}." if run.left_out else ""
    warnings = [f"Unstable: {sentence}" for sentence in statistics.stability_warnings(run)]
    return [sentence for sentence in (missing, left_out, *gain_sentences(run), replay_sentence(run), *warnings) if sentence]


def replay_sentence(run: StoredRun) -> str:
    check = check_replay(run)
    if check is None:
        return "Replay: not checked, since this run has no acceptance table (it sampled, or acceptance=false)."
    return check.sentence()


def gain_sentences(run: StoredRun) -> list[str]:
    """For each policy that shares two or more starting gammas with fixed arms: the gain over the mean fixed gamma."""
    policies = dict.fromkeys(arm.policy for arm in run.arms if arm.policy not in (BASELINE, "fixed"))
    gains = {policy: metrics.gain_over_mean_fixed(run.questions, policy) for policy in policies}
    return [
        f"{policy_name(policy)}: {gain - 1:+.1%} tokens/s against fixed gamma, mean over their common starts."
        for policy, gain in gains.items()
        if not math.isnan(gain)
    ]


def describe(run: StoredRun) -> str:
    """Caption: pair, runtime, device, dtype, version and commit, number of questions, what ± means, and all notes."""
    runtime, provenance = run.facts["runtime"], run.arms[0].provenance
    facts = {
        "Pair": run.facts["pair"],
        "runtime": runtime.get("name", "unknown"),
        "device": provenance.get("device", "unknown"),
        "dtype": runtime.get("dtype", "unknown"),
        "gammatune": f"{provenance.get('gammatune', 'unknown')} (commit {short(provenance.get('git'))})",
        "questions": run.questions[["task", "question_id"]].drop_duplicates().shape[0],
        "repetitions": run.questions["repetition"].nunique(),
    }
    return " ".join(["; ".join(f"{key} {value}" for key, value in facts.items()) + ".", SPEED_NOTE, *notes(run)])


def short(commit: str | None) -> str:
    """The first ten digits of a commit, and whether the tree had changes."""
    if not commit:
        return "unknown"
    return commit[:10] + ("+changes" if commit.endswith("+changes") else "")


def write_tables(run: StoredRun, folder: Path) -> list[Path]:
    """speedup, details, timing and positions, each as .md and .tex (positions: .csv only), numbers in full as .csv."""
    results, timing, names = results_table(run), timing_table(run), arm_names(run.arms)
    views = {"details": details_view(results, names), "timing": timing_view(timing, names)}
    if run.has_baseline:
        views["speedup"] = speedup_view(results, names)
    numbers = {"details": results, "timing": timing, "positions": position_table(run)}
    folder.mkdir(parents=True, exist_ok=True)
    caption = describe(run)
    written = [write(folder / f"{name}.csv", table.to_csv(index=False)) for name, table in numbers.items()]
    for name, view in views.items():
        written.append(write(folder / f"{name}.md", to_markdown(view, caption)))
        written.append(write(folder / f"{name}.tex", to_latex(view, caption, f"tab:{name}")))
    return written


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def to_markdown(view: pd.DataFrame, caption: str) -> str:
    return f"{view.to_markdown(index=False, disable_numparse=True)}\n\n{caption}\n"


def to_latex(view: pd.DataFrame, caption: str, label: str) -> str:
    """A booktabs table; every cell, heading and the caption escaped."""
    escaped = view.astype(str).map(lambda text: text.translate(LATEX))
    escaped.columns = [column.translate(LATEX) for column in view.columns]
    return escaped.style.hide(axis="index").to_latex(
        hrules=True, caption=caption.translate(LATEX), label=label, position_float="centering"
    )


def number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def speed(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.0%}"


def plus_minus(mean: float, std: float) -> str:
    return number(mean) if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"


def interval(low: float, high: float) -> str:
    return "-" if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"


def exactness(arm) -> str:
    """For the table: yes, yes with the number of near ties, no, or that sampling cannot be compared."""
    ties = arm.done.get("near_ties") or 0
    return {True: f"yes ({ties} near ties)" if ties else "yes", False: "no", None: "sampled"}[arm.exact]


def none_if_nan(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
