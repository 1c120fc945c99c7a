"""A whole study by replay of a stored acceptance table with its stored prices: no model, no GPU, no torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.policies.base import settings_of
from gammatune.replay.prices import PRICES_FILE, PriceList, read_prices
from gammatune.replay.speeds import Bench, Priced, build_bench, measure_speeds
from gammatune.replay.table import TABLE_FILE, AcceptanceTable, AcceptanceTurn, read_table
from gammatune.studies.headline import OVERALL, STARTS, Speeds, headline_frame, order_tasks, replay_all
from gammatune.studies.tuning import rank_tuned, tune_all

ADAPTIVE = ("gammatune", "gammatune_plus", "hf_heuristic", "sglang_walk")
SENSITIVITY = {
    "eta": (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    "delta": (0, 1, 2, 3, 4, 6),
    "gamma_min": (1, 2, 3, 4),
    "gamma_max": (2, 4, 6, 8, 10, 16, 24),
    "tau": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}
TUNABLE = ("gammatune", "gammatune_plus")


@dataclass(eq=False)
class Study:
    """Everything that the study's tables and figures show, as frames of plain numbers."""

    #: of the table: pair and what else was recorded, counts of questions, turns and tokens, agreement (share of matches)
    facts: dict
    #: the prices
    curve: PriceList
    #: of every policy from every start
    speeds: Speeds
    #: the ratios of `speeds` with intervals, per task, policy and metric
    headline: pd.DataFrame
    #: per policy with its own defaults and per fixed gamma, fastest first: ratios, regret, what was drafted
    ranking: pd.DataFrame
    #: the same policies at their best: settings chosen on one half of the questions, speeds of the other half; None for a
    #: table that cannot be split
    tuned: pd.DataFrame | None
    #: speed over the target alone by policy and start
    starts: pd.DataFrame
    #: fixed lengths by task: speed over the target alone, tokens a round, and the task's agreement
    lengths: pd.DataFrame
    #: speed over the target alone by policy, field and value, the other fields at their defaults
    sensitivity: pd.DataFrame


def read_study(folder: Path) -> Study:
    """Replay every policy over a folder's table at its prices. Raises UserError for missing or damaged files, and for a
    table that was imported from a log, which cannot be replayed for all of them.
    """
    table, curve = read_table(folder / TABLE_FILE), read_prices(folder / PRICES_FILE)
    if not (table.watched and table.complete):
        raise UserError(
            f"{folder / TABLE_FILE} lacks draft signals or matches, as imported logs do: store its bounds with `python -m "
            "gammatune bounds`, or record a table with `gammatune record`."
        )
    bench = build_bench(table, curve)
    policies = {name: rule() for name, rule in POLICIES.items()}
    speeds = replay_all(bench, policies)
    return Study(
        facts=describe_table(table),
        curve=curve,
        speeds=speeds,
        headline=headline_frame(speeds),
        ranking=rank_policies(bench, policies, speeds.by_policy["fixed"]),
        tuned=rank_at_best(bench, policies) if bench.tuning.any() else None,
        starts=speeds_by_start(speeds),
        lengths=compare_lengths(table, bench, speeds),
        sensitivity=vary_settings(bench, speeds),
    )


def describe_table(table: AcceptanceTable) -> dict:
    questions = {(turn.task, turn.question_id) for turn in table.turns}
    counts = {"questions": len(questions), "turns": len(table.turns), "tokens": table.tokens}
    return table.facts | counts | {"agreement": agreement(table.turns)}


def agreement(turns: list[AcceptanceTurn]) -> float:
    """Share of all positions at which the draft's most likely token is the target's."""
    return float(np.mean(np.concatenate([turn.match for turn in turns]) == 1))


def rank_policies(bench: Bench, policies: dict[str, Policy], fixed: np.ndarray) -> pd.DataFrame:
    """Per policy with its own defaults, fastest first: ratios with intervals, regret to the oracle, what it drafted.

    fixed: speeds of the fixed gammas [starts, questions].
    """
    done = {name: bench.measure(policy) for name, policy in policies.items() if name not in ("fixed", "tuned_fixed")}
    by_policy = {name: each.speeds[None] for name, each in done.items()}
    speeds = Speeds(by_policy | {"fixed": fixed}, bench.task, bench.tuning)
    tuned = speeds.tuned_gamma()
    speeds.by_policy["tuned_fixed"] = fixed[[tuned]]
    done |= {f"fixed {gamma}": each for gamma, each in zip(STARTS, measure_lengths(bench), strict=True)}
    done["tuned_fixed"] = done[f"fixed {STARTS[tuned]}"]
    rows = [rank_row(bench, speeds, name, each) for name, each in done.items()]
    return pd.DataFrame(rows).sort_values("over_autoregressive", ascending=False, kind="stable", ignore_index=True)


def measure_lengths(bench: Bench) -> list[Priced]:
    """Of fixed gammas, by start."""
    return [bench.measure(POLICIES["fixed"](gamma=gamma)) for gamma in STARTS]


def rank_row(bench: Bench, speeds: Speeds, name: str, done: Priced) -> dict:
    drafted, emitted, rounds = done.drafted, int(bench.tokens.sum()), int(done.rounds.sum())
    row = {"policy": name}
    for metric in ("over_autoregressive", "over_best_fixed", "over_tuned_fixed", "over_oracle"):
        row[metric] = speeds.ratio(name, metric)
        row[f"{metric}_low"], row[f"{metric}_high"] = speeds.interval(name, metric)
    return row | {
        "regret": 1 - row["over_oracle"],
        "mean_accepted_tokens": emitted / rounds,
        "acceptance_rate": done.accepted / drafted if drafted else float("nan"),
        "drafted_per_round": drafted / rounds,
        "wasted_forwards": 1 - done.accepted / done.forwards if drafted else float("nan"),
        "rounds": rounds,
        "rounds_beyond_table": done.beyond,
    }


def rank_at_best(bench: Bench, policies: dict[str, Policy]) -> pd.DataFrame:
    """Every policy but tuned_fixed, which `fixed` becomes."""
    return rank_tuned(bench, tune_all(bench, {name: policy for name, policy in policies.items() if name != "tuned_fixed"}))


def speeds_by_start(speeds: Speeds) -> pd.DataFrame:
    """Columns start, policy, over_autoregressive: mean tokens/s over all questions, over the target alone's."""
    baseline = speeds.by_policy["ar"][0].mean()
    rows = [
        (start, name, row.mean() / baseline)
        for name in ("fixed", *ADAPTIVE)
        for start, row in zip(STARTS, speeds.by_policy[name], strict=True)
    ]
    return pd.DataFrame(rows, columns=["start", "policy", "over_autoregressive"])


def compare_lengths(table: AcceptanceTable, bench: Bench, speeds: Speeds) -> pd.DataFrame:
    """Columns task, questions, agreement, gamma, over_autoregressive, mean_accepted_tokens, best (the task's fastest)."""
    rounds = np.stack([done.rounds for done in measure_lengths(bench)])  # [starts, turns]
    rows = []
    for task in [*order_tasks(speeds.task), OVERALL]:
        part, turns = speeds.part(task), [task in (turn.task, OVERALL) for turn in table.turns]
        known = agreement([turn for turn in table.turns if task in (turn.task, OVERALL)])
        alone, emitted = speeds.by_policy["ar"][0, part].mean(), bench.tokens[part].sum()
        best = speeds.best_gamma(task)
        for index, gamma in enumerate(STARTS):
            rows.append(
                {
                    "task": task,
                    "questions": int(part.sum()),
                    "agreement": known,
                    "gamma": gamma,
                    "over_autoregressive": speeds.by_policy["fixed"][index, part].mean() / alone,
                    "mean_accepted_tokens": emitted / rounds[index, turns].sum(),
                    "best": index == best,
                }
            )
    return pd.DataFrame(rows)


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
