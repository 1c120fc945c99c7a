"""Tables of a whole study, by replay of a stored acceptance table with its stored prices: no model, no GPU, no torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.policies.base import settings_of
from gammatune.replay.prices import CostCurve, read_cost
from gammatune.replay.simulate import replay
from gammatune.replay.speeds import Bench, build_bench, measure_speeds
from gammatune.replay.table import AcceptanceTable, read_table
from gammatune.report.names import OVERALL, policy_name, task_name
from gammatune.report.tables import interval, number, to_latex, to_markdown, write
from gammatune.studies.headline import CLAIMS, STARTS, Speeds, headline_frame, replay_all

TABLE_FILE, COST_FILE = "acceptance.parquet", "cost.json"
ADAPTIVE = ("gammatune", "gammatune_plus", "hf_heuristic", "sglang_walk")
SENSITIVITY = {
    "eta": (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    "delta": (0, 1, 2, 3, 4, 6),
    "gamma_min": (1, 2, 3, 4),
    "gamma_max": (2, 4, 6, 8, 10, 16, 24),
    "tau": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}
TUNABLE = ("gammatune", "gammatune_plus")
NOTE = (
    "Modelled: each round of the replay priced with measured times. Intervals: 95 % paired bootstrap over questions, drawn "
    "within their task."
)


@dataclass(eq=False)
class Study:
    """Everything that the study's tables and figures show, as frames of plain numbers.

    headline: per task, policy and metric, every policy from every start. ranking: per policy with its own defaults. starts:
    speed over the target alone by policy and start. sensitivity: the same by policy, field and value, others at default.
    """

    facts: dict
    curve: CostCurve
    speeds: Speeds
    headline: pd.DataFrame
    ranking: pd.DataFrame
    starts: pd.DataFrame
    sensitivity: pd.DataFrame


def read_study(folder: Path) -> Study:
    """Replay every policy over a folder's table at its prices. Raises UserError for missing or damaged files, and for a
    table that was imported from a log, which cannot be replayed for all of them.
    """
    table, curve = read_table(folder / TABLE_FILE), read_cost(folder / COST_FILE)
    if not (table.watched and table.complete):
        raise UserError(
            f"{folder / TABLE_FILE} lacks draft signals or matches, as imported logs do: store its bounds with `python -m "
            "gammatune bounds`, or record a table with `python -m gammatune record`."
        )
    bench = build_bench(table, curve)
    policies = {name: rule() for name, rule in POLICIES.items()}
    speeds = replay_all(bench, policies)
    return Study(
        facts=describe_table(table),
        curve=curve,
        speeds=speeds,
        headline=headline_frame(speeds),
        ranking=rank_policies(bench, policies),
        starts=speeds_by_start(speeds),
        sensitivity=vary_settings(bench, speeds),
    )


def describe_table(table: AcceptanceTable) -> dict:
    questions = {(turn.task, turn.question_id) for turn in table.turns}
    counts = {"questions": len(questions), "turns": len(table.turns), "tokens": table.tokens}
    return table.facts | counts | {"agreement": float(np.mean(np.concatenate([turn.match for turn in table.turns]) == 1))}


def rank_policies(bench: Bench, policies: dict[str, Policy]) -> pd.DataFrame:
    """Per policy with its own defaults, fastest first: ratios with intervals, regret to the oracle, what it drafted."""
    speeds = replay_all(bench, policies, all_starts=False)
    rows = [rank_row(bench, speeds, name, policy) for name, policy in policies.items() if name != "fixed"]
    rows += [rank_row(bench, speeds, f"fixed {gamma}", POLICIES["fixed"](gamma=gamma)) for gamma in STARTS]
    return pd.DataFrame(rows).sort_values("over_autoregressive", ascending=False, ignore_index=True)


def rank_row(bench: Bench, speeds: Speeds, name: str, policy: Policy) -> dict:
    if name == "tuned_fixed":
        policy = POLICIES["fixed"](gamma=STARTS[speeds.tuned_gamma()])
    done = replay(bench.walks, policy)
    drafted, emitted = int(done.drafted.sum()), int(bench.tokens.sum())
    row = {"policy": name}
    for metric in ("over_autoregressive", "over_best_fixed", "over_tuned_fixed", "over_oracle"):
        row[metric] = speeds.ratio(name, metric)
        row[f"{metric}_low"], row[f"{metric}_high"] = speeds.interval(name, metric)
    return row | {
        "regret": 1 - row["over_oracle"],
        "mean_accepted_tokens": emitted / done.rounds,
        "acceptance_rate": done.accepted.sum() / drafted if drafted else float("nan"),
        "drafted_per_round": drafted / done.rounds,
        "wasted_forwards": 1 - done.accepted.sum() / done.forwards.sum() if drafted else float("nan"),
        "rounds": done.rounds,
        "rounds_beyond_table": done.beyond,
    }


def speeds_by_start(speeds: Speeds) -> pd.DataFrame:
    """Columns start, policy, over_autoregressive: mean tokens/s over all questions, over the target alone's."""
    baseline = speeds.by_policy["ar"][0].mean()
    rows = [
        (start, name, row.mean() / baseline)
        for name in ("fixed", *ADAPTIVE)
        for start, row in zip(STARTS, speeds.by_policy[name], strict=True)
    ]
    return pd.DataFrame(rows, columns=["start", "policy", "over_autoregressive"])


def vary_settings(bench: Bench, speeds: Speeds) -> pd.DataFrame:
    """One field at a time, the others at their defaults: columns policy, field, value, default, over_autoregressive."""
    jobs = [
        (n, f, v) for n in TUNABLE for f, values in SENSITIVITY.items() for v in values if f in settings_of(POLICIES[n]())
    ]
    measured = measure_speeds(bench, [POLICIES[name](**{field: value}) for name, field, value in jobs])
    defaults = {name: settings_of(POLICIES[name]()) for name in TUNABLE}
    frame = pd.DataFrame(jobs, columns=["policy", "field", "value"])
    frame["default"] = [value == defaults[name][field] for name, field, value in jobs]
    frame["over_autoregressive"] = measured.mean(axis=1) / speeds.by_policy["ar"][0].mean()
    return frame


def write_study(study: Study, folder: Path) -> list[Path]:
    """headline, headline_by_task, ranking, starts and sensitivity, each as .md, .tex and .csv; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    caption = describe(study)
    written = []
    for name, (view, numbers) in views(study).items():
        written.append(write(folder / f"{name}.csv", numbers.to_csv(index=False)))
        written.append(write(folder / f"{name}.md", to_markdown(view, caption)))
        written.append(write(folder / f"{name}.tex", to_latex(view, caption, f"tab:{name.replace('_', '-')}")))
    return written


def views(study: Study) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Name -> (table of text for readers, frame of numbers)."""
    return {
        "headline": (headline_view(study), study.headline[study.headline["task"] == OVERALL]),
        "headline_by_task": (by_task_view(study), study.headline),
        "ranking": (ranking_view(study.ranking), study.ranking),
        "starts": (starts_view(study.starts), study.starts),
        "sensitivity": (sensitivity_view(study.sensitivity), study.sensitivity),
    }


def cells(frame: pd.DataFrame) -> list[str]:
    columns = (frame[name] for name in ("value", "low", "high"))
    return [f"{number(v)} {interval(low, high)}".removesuffix(" -") for v, low, high in zip(*columns, strict=True)]


def headline_view(study: Study) -> pd.DataFrame:
    """Policies as rows, fastest first; metrics as columns; the paper's claim beside."""
    overall = study.headline[study.headline["task"] == OVERALL]
    wide = overall.assign(cell=cells(overall)).pivot(index="policy", columns="metric", values="cell")
    wide = wide.loc[order(study.speeds), list(dict.fromkeys(overall["metric"]))]
    wide.columns = [column.replace("_", " ") for column in wide.columns]
    claims = {name: f"{mean:.2f} ± {spread:.2f}" for name, (mean, spread) in CLAIMS.items()}
    wide.insert(1, "paper's claim", [claims.get(name, "") for name in wide.index])
    return wide.rename(index=policy_name).reset_index()


def by_task_view(study: Study) -> pd.DataFrame:
    main = study.headline[study.headline["metric"] == "over_mean_fixed"]
    wide = main.assign(cell=cells(main)).pivot(index="policy", columns="task", values="cell")
    wide = wide.loc[order(study.speeds), list(dict.fromkeys(main["task"]))]
    wide.columns = [task_name(task) for task in wide.columns]
    return wide.rename(index=policy_name).reset_index()


def order(speeds: Speeds) -> list[str]:
    """Policies, fastest first."""
    return sorted(speeds.by_policy, key=lambda name: -speeds.rows[name].mean())


def ranking_view(ranking: pd.DataFrame) -> pd.DataFrame:
    view = pd.DataFrame({"policy": ranking["policy"].map(policy_name)})
    for metric in ("over_autoregressive", "over_best_fixed", "over_tuned_fixed"):
        triple = ranking[[metric, f"{metric}_low", f"{metric}_high"]].set_axis(["value", "low", "high"], axis=1)
        view[metric.replace("_", " ")] = cells(triple)
    for column in ("regret", "mean_accepted_tokens", "acceptance_rate", "drafted_per_round", "wasted_forwards"):
        view[column.replace("_", " ")] = ranking[column].map(number)
    return view


def starts_view(starts: pd.DataFrame) -> pd.DataFrame:
    wide = starts.pivot(index="start", columns="policy", values="over_autoregressive")[["fixed", *ADAPTIVE]]
    return wide.map(number).rename(columns=policy_name).reset_index()


def sensitivity_view(sensitivity: pd.DataFrame) -> pd.DataFrame:
    view = sensitivity.assign(policy=sensitivity["policy"].map(policy_name), value=sensitivity["value"].map("{:g}".format))
    view["default"] = np.where(sensitivity["default"], "default", "")
    return view.assign(over_autoregressive=view["over_autoregressive"].map(number)).rename(
        columns=lambda c: c.replace("_", " ")
    )


def describe(study: Study) -> str:
    """Caption: what was replayed, with which prices."""
    facts, prices = study.facts, study.curve.facts
    device = prices.get("provenance", {}).get("device", "an unknown device")
    what = f"{facts['pair']}, {facts['questions']} questions, {facts['tokens']:,} tokens"
    return f"Pair {what}; prices of {device}, T_target / T_draft = {study.curve.ratio(512):.1f} at context 512. {NOTE}"
