"""Frames of numbers as tables of text: what a reader sees in .md, .tex and on a terminal."""

import math

import numpy as np
import pandas as pd

from gammatune.report import results
from gammatune.report.names import arm_names, policy_name, task_name
from gammatune.report.numbers import ABSENT, interval, number, plus_minus
from gammatune.report.tables import Table
from gammatune.runs.store import StoredRun
from gammatune.studies.bounds import ENDS, KEYS, Bounds
from gammatune.studies.headline import CLAIMS, OVERALL
from gammatune.studies.study import ADAPTIVE, Study


def run_tables(run: StoredRun) -> dict[str, Table]:
    """speedup is a view of details; positions has no view; proposers is there where the run has several drafters."""
    numbers, timing, names = results.results_table(run), results.timing_table(run), arm_names(run.arms)
    tables = {
        "details": Table(details_view(numbers, names), numbers),
        "timing": Table(timing_view(timing, names), timing),
        "positions": Table(None, results.position_table(run)),
    }
    proposers = results.proposer_table(run)
    tables |= {} if proposers.empty else {"proposers": Table(proposers_view(proposers, names), proposers)}
    return tables | ({"speedup": Table(speedup_view(numbers, names), None)} if run.has_baseline else {})


def study_tables(study: Study) -> dict[str, Table]:
    overall = study.headline[study.headline["task"] == OVERALL]
    tuned = {} if study.tuned is None else {"tuned": Table(tuned_view(study.tuned), study.tuned)}
    return {
        "headline": Table(headline_view(study.headline), overall),
        "headline_by_task": Table(by_task_view(study.headline), study.headline),
        "ranking": Table(ranking_view(study.ranking), study.ranking),
        "lengths": Table(lengths_view(study.lengths), study.lengths),
        **tuned,
        "starts": Table(starts_view(study.starts), study.starts),
        "sensitivity": Table(sensitivity_view(study.sensitivity), study.sensitivity),
    }


def bounds_tables(bounds: Bounds) -> dict[str, Table]:
    found = {name: getattr(bounds, name) for name in KEYS}
    return {name: Table(bounds_view(frame, KEYS[name]), frame) for name, frame in found.items()}


def speedup_view(results: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    """Arms as rows, tasks as columns: "1.52 ± 0.21"."""
    wide = spread(results.assign(cell=speedup_cells(results)), "label", "task").loc[list(names)]
    return wide.rename(index=names, columns=task_name).rename_axis("policy").reset_index()


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
            "tokens/s": [number(speed, ".1f") for speed in results["tokens_per_second"]],
            "wasted drafts": [number(share, ".0%") for share in results["wasted_draft_fraction"]],
            "questions": results["questions"],
        }
    )


def timing_view(timing: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    forms = {column: ".0%" if column.endswith("_share") else ".1f" for column in timing.columns[1:]}
    found = {plain(column): [number(value, form) for value in timing[column]] for column, form in forms.items()}
    return pd.DataFrame({"policy": timing["label"].map(names)} | found)


def proposers_view(proposers: pd.DataFrame, names: dict[str, str]) -> pd.DataFrame:
    view = pd.DataFrame({"policy": proposers["label"].map(names), "proposer": proposers["proposer"]})
    view["blocks"] = proposers["blocks"]
    for column in ("drafted_share", "accepted_share", "acceptance_rate"):
        view[plain(column)] = [number(share, ".0%") for share in proposers[column]]
    return view


def headline_view(headline: pd.DataFrame) -> pd.DataFrame:
    """Policies as rows, fastest first; metrics as columns; the paper's claim beside."""
    overall = headline[headline["task"] == OVERALL]
    wide = spread(overall.assign(cell=cells(overall)), "policy", "metric").loc[fastest_first(headline)].rename(columns=plain)
    claims = {name: f"{mean:.2f} ± {margin:.2f}" for name, (mean, margin) in CLAIMS.items()}
    wide.insert(1, "paper's claim", [claims.get(name, "") for name in wide.index])
    return wide.rename(index=policy_name).reset_index()


def by_task_view(headline: pd.DataFrame) -> pd.DataFrame:
    """The headline metric alone: policies as rows, fastest first; tasks as columns."""
    main = headline[headline["metric"] == "over_mean_fixed"]
    wide = spread(main.assign(cell=cells(main)), "policy", "task").loc[fastest_first(headline)]
    return wide.rename(index=policy_name, columns=task_name).reset_index()


def fastest_first(headline: pd.DataFrame) -> list[str]:
    """Policies by their speed over all questions."""
    alone = headline[(headline["task"] == OVERALL) & (headline["metric"] == "over_autoregressive")]
    return alone.sort_values("value", ascending=False, kind="stable")["policy"].tolist()


def ranking_view(ranking: pd.DataFrame) -> pd.DataFrame:
    view = pd.DataFrame({"policy": ranking["policy"].map(policy_name)})
    for metric in ("over_autoregressive", "over_best_fixed", "over_tuned_fixed"):
        view[plain(metric)] = metric_cells(ranking, metric)
    for column in ("regret", "mean_accepted_tokens", "acceptance_rate", "drafted_per_round", "wasted_forwards"):
        view[plain(column)] = ranking[column].map(number)
    return view


def lengths_view(lengths: pd.DataFrame) -> pd.DataFrame:
    """Tasks as rows: agreement, the fastest length, its speed over the target alone, tokens a round at each length."""
    best = lengths[lengths["best"]].set_index("task")
    view = pd.DataFrame({"questions": best["questions"], "agreement": best["agreement"].map("{:.1%}".format)})
    view["best gamma"] = best["gamma"]
    view["its speed"] = best["over_autoregressive"].map(number)
    rounds = lengths.pivot(index="task", columns="gamma", values="mean_accepted_tokens").loc[view.index]
    view = view.join(rounds.map(number).rename(columns=lambda gamma: f"tokens a round at {gamma}"))
    return view.rename(index=task_name).rename_axis("task").reset_index()


def tuned_view(tuned: pd.DataFrame) -> pd.DataFrame:
    view = pd.DataFrame({"policy": tuned["policy"].map(policy_name)})
    view["settings chosen"] = tuned["settings"].where(tuned["settings"] != "", "as shipped").where(tuned["tunable"], "-")
    for metric in ("default_over_autoregressive", "tuned_over_autoregressive", "tuned_over_tuned_fixed"):
        view[plain(metric)] = metric_cells(tuned, metric)
    return view


def drafters_view(drafters: pd.DataFrame) -> pd.DataFrame:
    """What each drafter is, whatever the policy."""
    return pd.DataFrame(
        {
            "drafter": drafters["drafter"],
            "T_target / T_draft": ["no forwards" if math.isinf(r) else number(r, ".1f") for r in drafters["ratio"]],
            "first token right": drafters["agreement"].map("{:.1%}".format),
            "oracle": drafters["oracle"].map(number),
        }
    )


def pairings_view(pairings: pd.DataFrame) -> pd.DataFrame:
    """Drafters under policies, with the settings chosen."""
    view = pd.DataFrame({"drafter": pairings["drafter"], "policy": pairings["policy"].map(policy_name)})
    view["settings chosen"] = pairings["settings"].where(pairings["settings"] != "", "as shipped")
    view[plain("over_autoregressive")] = metric_cells(pairings, "over_autoregressive")
    for column in ("mean_accepted_tokens", "acceptance_rate", "drafted_per_round"):
        view[plain(column)] = pairings[column].map(number)
    return view


def pairings_by_task_view(by_task: pd.DataFrame) -> pd.DataFrame:
    """Drafters under policies as rows, tasks as columns: speed over the target alone."""
    named = by_task.assign(policy=by_task["policy"].map(policy_name), cell=by_task["over_autoregressive"].map(number))
    wide = spread(named, ["drafter", "policy"], "task")
    return wide.rename(columns=task_name).reset_index()


def starts_view(starts: pd.DataFrame) -> pd.DataFrame:
    wide = starts.pivot(index="start", columns="policy", values="over_autoregressive")[["fixed", *ADAPTIVE]]
    return wide.map(number).rename(columns=policy_name).reset_index()


def sensitivity_view(sensitivity: pd.DataFrame) -> pd.DataFrame:
    view = sensitivity.assign(policy=sensitivity["policy"].map(policy_name), value=sensitivity["value"].map("{:g}".format))
    view["default"] = np.where(sensitivity["default"], "default", "")
    return view.assign(over_autoregressive=view["over_autoregressive"].map(number)).rename(columns=plain)


def bounds_view(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Cost ratio and policy as rows; starts or metrics as columns; "lower / estimate / upper" in a cell."""
    texts = [" / ".join(number(row[end]) for end in ENDS) for _, row in frame.iterrows()]
    wide = spread(frame.assign(cell=texts), keys[:2], keys[2]).reset_index()
    wide["policy"] = wide["policy"].map(policy_name)
    wide["ratio"] = wide["ratio"].map("{:g}".format)
    return wide.rename(columns=plain).rename(columns={"ratio": "T_target / T_draft"})


def spread(frame: pd.DataFrame, index, columns: str) -> pd.DataFrame:
    """Cells as a wide table whose columns keep the order in which they come."""
    wide = frame.pivot(index=index, columns=columns, values="cell")[list(dict.fromkeys(frame[columns]))]
    return wide.rename_axis(columns=None)


def cells(frame: pd.DataFrame) -> list[str]:
    """value [low, high], or the value alone where there is no interval."""
    columns = (frame[name] for name in ("value", "low", "high"))
    return [f"{number(v)} {interval(low, high)}".removesuffix(f" {ABSENT}") for v, low, high in zip(*columns, strict=True)]


def metric_cells(frame: pd.DataFrame, metric: str) -> list[str]:
    """The same of a metric whose interval stands in METRIC_low and METRIC_high."""
    return cells(frame[[metric, f"{metric}_low", f"{metric}_high"]].set_axis(["value", "low", "high"], axis=1))


def plain(name) -> str:
    return str(name).replace("_", " ")
