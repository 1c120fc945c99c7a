"""Drafters against each other, each under every policy at its best: tables of one target's answers to the same questions.

The drafter and the policy that suits it are chosen together, so they are compared together. Settings are chosen on the
tuning half of the questions, and everything that is told is measured on the other half.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.replay.prices import PriceList
from gammatune.replay.speeds import Bench, build_bench
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.headline import OVERALL, find_replayable, order_tasks
from gammatune.studies.study import agreement
from gammatune.studies.sweep import compare
from gammatune.studies.tuning import Tuned, tune_all
from gammatune.traces import take_first

#: policies where none are named: the field's lengths, the paper's two rules, and the ones that need no tuning
USUAL = ("fixed", "gammatune", "gammatune_plus", "hf_confidence", "optimal_stopping", "optimal_stopping_blind")
NAMES = {"model": "draft model", "lookup": "prompt lookup", "suffix": "suffix decoding", "features": "feature draft"}
ALONE = "ar"
ORACLE = "oracle"


@dataclass(eq=False)
class Contender:
    """A drafter: what it proposed along the target's answers, and what that costs."""

    name: str  # as tables show it
    table: AcceptanceTable
    curve: PriceList
    choice: str = ""  # as configs name it

    @classmethod
    def of(cls, table: AcceptanceTable, curve: PriceList) -> "Contender":
        """The drafter that a table was recorded of; older ones had the draft model only."""
        choice = table.facts.get("drafter", {}).get("name", "model")
        return cls(NAMES.get(choice, choice), table, curve, choice)


@dataclass(eq=False)
class Comparison:
    """Every contender under every policy."""

    #: one row per drafter and policy, fastest first: settings (those chosen), acceptance_rate, mean_accepted_tokens and
    #: drafted_per_round, and over_autoregressive with its _low and _high; all of the reporting half
    pairings: pd.DataFrame
    #: the same speeds by task: drafter, policy, task, over_autoregressive
    by_task: pd.DataFrame
    #: one row per drafter: ratio (T_target / T_draft, infinite where drafting takes no forwards), agreement, and oracle: the
    #: speed over the target alone that no policy can exceed
    drafters: pd.DataFrame
    questions: int  # that all of them answered
    differing: int  # answers of theirs that are not the same in all tables


def compare_drafters(contenders: list[Contender], policies: dict[str, Policy] | None = None) -> Comparison:
    """policies: USUAL where none are given; those that watch signals are left out of a drafter that has none.

    Raises UserError for fewer than two contenders, names that are given twice, tables with unknown matches, no question that
    all have, and questions that cannot be split in halves.
    """
    refuse_odd(contenders)
    keys = find_shared(contenders)
    rows, by_task, drafters = [], [], []
    for contender in contenders:
        turns = [turn for turn in contender.table.turns if (turn.question_id, turn.turn) in keys]
        table = replace(contender.table, turns=turns)
        bench = build_bench(table, contender.curve)
        chosen = find_replayable(table, policies or usual_policies())
        tuned = tune_all(bench, {name: POLICIES[name]() for name in (ALONE, ORACLE)} | chosen)
        for name in chosen:
            rows.append(describe_pairing(bench, contender.name, tuned[name], tuned[ALONE]))
            by_task += speeds_by_task(bench, contender.name, tuned[name], tuned[ALONE])
        drafters.append(describe_drafter(bench, contender, table, tuned))
    return Comparison(
        pairings=pd.DataFrame(rows).sort_values("over_autoregressive", ascending=False, kind="stable", ignore_index=True),
        by_task=pd.DataFrame(by_task),
        drafters=pd.DataFrame(drafters),
        questions=len({question for question, _ in keys}),
        differing=count_differing(contenders, keys),
    )


def usual_policies() -> dict[str, Policy]:
    return {name: POLICIES[name]() for name in USUAL}


def add_lists(contenders: list[Contender]) -> list[Contender]:
    """These, and each drafter that takes no forwards put before each that takes some: the first that proposes does.

    No other recording is needed for it, since both followed the same answers.
    """
    free = [each for each in contenders if not each.table.forwards_per_token and len(each.table.forwards_by_proposer) == 1]
    costly = [each for each in contenders if each.table.forwards_per_token and len(each.table.forwards_by_proposer) == 1]
    return [*contenders, *(put_first(one, other) for one in free for other in costly)]


def put_first(first: Contender, then: Contender) -> Contender:
    """A list of two drafters, of the answers that both have, at the prices of the one that takes forwards."""
    others = {(turn.question_id, turn.turn): turn for turn in then.table.turns}
    pairs = [(turn, others.get((turn.question_id, turn.turn))) for turn in first.table.turns]
    turns = [
        replace(other, trace=take_first([turn.starts(), other.starts()]))
        for turn, other in pairs
        if other is not None and np.array_equal(turn.output_ids, other.output_ids)
    ]
    forwards = {"forwards_by_proposer": [0, then.table.forwards_per_token]}
    name, choice = f"{first.name}, then {then.name}", f"[{first.choice},{then.choice}]"
    return Contender(name, AcceptanceTable(turns, then.table.facts | forwards), then.curve, choice)


def refuse_odd(contenders: list[Contender]) -> None:
    """Raises UserError for what cannot be compared."""
    names = [contender.name for contender in contenders]
    if len(names) < 2:
        raise UserError("One table compares with nothing: name the tables of two drafters or more.")
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"Two tables are of the drafter {twice}: name tables that differ in their drafter.")
    for contender in contenders:
        if not contender.table.complete:
            raise UserError(
                f"The table of {contender.name} leaves matches unknown, as imported logs do: compare recorded tables, or "
                "imported ones that know every position."
            )


def find_shared(contenders: list[Contender]) -> set[tuple[int, int]]:
    """(question id, turn) of the answers that all have. Raises UserError where there are none."""
    keys = [{(turn.question_id, turn.turn) for turn in contender.table.turns} for contender in contenders]
    shared = set.intersection(*keys)
    if not shared:
        raise UserError("These tables have no question in common: record all drafters on the same questions.")
    return shared


def count_differing(contenders: list[Contender], keys: set[tuple[int, int]]) -> int:
    """Answers of which not all tables have the same ids; tables that hold no ids have none to differ in."""
    texts = [
        {(turn.question_id, turn.turn): turn.output_ids.tolist() for turn in contender.table.turns if len(turn.output_ids)}
        for contender in contenders
    ]
    return sum(len({tuple(each[key]) for each in texts if key in each}) > 1 for key in keys)


def describe_pairing(bench: Bench, drafter: str, tuned: Tuned, alone: Tuned) -> dict:
    """A drafter under a policy, on the reporting half."""
    done = bench.replay(tuned.policy)
    rest = (~bench.tuning)[bench.question_of]  # [turns]
    ones = np.ones(done.rounds)
    accepted, drafted, rounds = (done.sum_by_turn(each)[rest].sum() for each in (done.accepted, done.drafted, ones))
    emitted = bench.tokens[~bench.tuning].sum()
    value, low, high = compare(bench, tuned.speeds, alone.default)
    return {
        "drafter": drafter,
        "policy": tuned.policy.name,
        "settings": tuned.words,
        "acceptance_rate": accepted / drafted if drafted else math.nan,
        "mean_accepted_tokens": emitted / rounds,
        "drafted_per_round": drafted / rounds,
        "over_autoregressive": value,
        "over_autoregressive_low": low,
        "over_autoregressive_high": high,
    }


def speeds_by_task(bench: Bench, drafter: str, tuned: Tuned, alone: Tuned) -> list[dict]:
    """Of the reporting half, each task and all of them."""
    rows = []
    for task in [*order_tasks(bench.task), OVERALL]:
        part = ~bench.tuning & ((bench.task == task) | (task == OVERALL))
        speed = tuned.speeds[part].mean() / alone.default[part].mean() if part.any() else math.nan
        rows.append({"drafter": drafter, "policy": tuned.policy.name, "task": task, "over_autoregressive": speed})
    return rows


def describe_drafter(bench: Bench, contender: Contender, table: AcceptanceTable, tuned: dict[str, Tuned]) -> dict:
    return {
        "drafter": contender.name,
        "ratio": float(contender.curve.ratio(table.mean_context)) if table.forwards_per_token else math.inf,
        "agreement": agreement(table.turns),
        "oracle": compare(bench, tuned[ORACLE].default, tuned[ALONE].default).value,
    }
