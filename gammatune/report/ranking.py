"""Every policy by replay, as a page shows it: over the target alone, and per task beside fixed lengths."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from gammatune.policies import POLICIES
from gammatune.replay.prices import Drafting, Price, PriceList
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable
from gammatune.report import style
from gammatune.report.names import policy_name, task_name
from gammatune.runs.store import BASELINE, StoredRun
from gammatune.studies.headline import OVERALL, STARTS, Speeds, find_replayable, order_tasks, replay_all

FEWEST = 3  # rounds that a median is taken of
MOST_TASKS = 16  # that are drawn
BESIDE = 2  # policies that are drawn beside fixed lengths


@dataclass
class Rank:
    """One policy over all questions."""

    name: str
    policy: str
    colour: str
    speedup: float  # over the target alone
    low: float
    high: float
    over_best_fixed: float  # over the fixed gamma that is fastest in hindsight


@dataclass
class TaskSpeeds:
    """One task: fixed gamma from each start, and the best policies beside it; speeds over the target alone."""

    task: str
    questions: int
    fixed: list[tuple[int, float]]  # gamma, speed
    best_gamma: int
    best_fixed: float
    policies: list[tuple[str, str, float]]  # name, colour, speed


@dataclass
class Ranking:
    """What a replay of all policies gives."""

    rows: list[Rank]  # fastest first
    tasks: list[TaskSpeeds]  # "overall" first
    prices: str  # where the prices come from, in words
    left_out: str  # what is not drawn, in words; empty where all is


def rank_policies(table: AcceptanceTable, curve: PriceList, prices: str) -> Ranking:
    """Raises UserError for a table with unknown positions."""
    speeds = replay_all(build_bench(table, curve), find_replayable(table), all_starts=False)
    names = [name for name in speeds.by_policy if name not in (BASELINE, "fixed", "tuned_fixed")]
    rows = [rank_row(speeds, name) for name in [*names, *(f"fixed {gamma}" for gamma in STARTS)]]
    rows.sort(key=lambda row: -row.speedup)
    beside = [row.policy for row in rows if row.policy not in ("fixed", "oracle")][:BESIDE]
    tasks = order_tasks(speeds.task)
    left_out = f"Drawn are the first {MOST_TASKS} of {len(tasks)} tasks." if len(tasks) > MOST_TASKS else ""
    parts = [OVERALL, *tasks[:MOST_TASKS]] if len(tasks) > 1 else tasks
    return Ranking(rows, [task_speeds(speeds, task, beside) for task in parts], prices, left_out)


def rank_row(speeds: Speeds, name: str) -> Rank:
    policy, metric = name.split(" ")[0], "over_autoregressive"
    ratio, low, high = speeds.ratio(name, metric), *speeds.interval(name, metric)
    return Rank(policy_name(name), policy, style.colour(policy), ratio, low, high, speeds.ratio(name, "over_best_fixed"))


def task_speeds(speeds: Speeds, task: str, beside: list[str]) -> TaskSpeeds:
    metric, place = "over_autoregressive", speeds.best_gamma(task)
    fixed = [(gamma, speeds.ratio(f"fixed {gamma}", metric, task)) for gamma in STARTS]
    policies = [(policy_name(name), style.colour(name), speeds.ratio(name, metric, task)) for name in beside]
    questions = int(speeds.part(task).sum())
    return TaskSpeeds(task_name(task), questions, fixed, fixed[place][0], fixed[place][1], policies)


def prices_of_rounds(run: StoredRun) -> PriceList | None:
    """What rounds cost in this run, as medians of its own; None where they were not timed or nothing was drafted.

    Verification of a length that no round had lies on the line between its neighbours.
    """
    rounds, turns = run.rounds, run.turns
    rounds = rounds[rounds["verify_ms"] > 0]
    verify = rounds.groupby("drafted")["verify_ms"].agg(["median", "size"])
    verify = verify[verify["size"] >= FEWEST]["median"]
    stepped = rounds[rounds["forwards"] > 0]
    if 0 not in verify.index or len(verify) < 2:
        return None
    # a longer block costs no less: what says so is noise
    known = np.maximum.accumulate(verify.to_numpy())
    lengths = np.interp(np.arange(verify.index.max() + 1), verify.index, known)
    rest = (turns["wall_ms"] - turns[["prefill_ms", "draft_ms", "verify_ms", "policy_ms"]].sum(axis=1)) / turns["rounds"]
    prefill = turns.groupby(turns["label"] == BASELINE)["prefill_ms"].median()
    watching = {arm.label for arm in run.arms if watches(arm.policy)}
    blind, watched = (stepped[stepped["label"].isin(watching) == which] for which in (False, True))
    drafting = [step_price(part if len(part) >= FEWEST else stepped) for part in (blind, watched)]
    return PriceList(
        *drafting,
        [Price(float(price)) for price in lengths],
        Price(max(0.0, float(rest.median()))),
        Price(float(prefill.get(True, 0.0))),
        Price(float(prefill.get(False, 0.0))),
    )


def watches(policy: str) -> bool:
    option = POLICIES.options.get(policy)
    return bool(option and option().watches_draft)


def step_price(rounds: pd.DataFrame) -> Drafting:
    """Of one draft step; free for a drafter that is no model."""
    return Drafting(Price(max(0.0, float((rounds["draft_ms"] / rounds["forwards"]).median())) if len(rounds) else 0.0))
