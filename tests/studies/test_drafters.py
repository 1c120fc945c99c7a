"""Drafters of one target compared: each one's own rounds and prices, on questions that all of them answered."""

import math
from dataclasses import replace

import numpy as np
import pytest
from replay.made_tables import make_starts, make_turn

from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.replay.prices import from_ratio
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.drafters import USUAL, Contender, compare_drafters

RATIO = 8


def table_of(turns, **facts) -> AcceptanceTable:
    return AcceptanceTable(turns, {"gamma_max": 24, **facts})


@pytest.fixture(scope="module")
def model():
    """A draft model that is right, question after question, but for every fourth token."""
    turns = [make_turn("1110" * 6, question_id=number, task="qa" if number < 4 else "rag") for number in range(8)]
    return Contender("draft model", table_of(turns), from_ratio(RATIO))


@pytest.fixture(scope="module")
def lookup():
    """No forwards and no signals; it knows the first 11 tokens of every answer, of which it proposes six at most."""
    starts = " ".join(["6/6"] * 6 + ["5/5", "4/4", "3/3", "2/2", "1/1"] + ["0/0"] * 13)
    turns = [make_starts(starts, question_id=number, task="qa" if number < 4 else "rag") for number in range(8)]
    return Contender("lookup", table_of(turns, forwards_per_token=0), from_ratio(RATIO))


def find(found, drafter, policy):
    rows = found.pairings
    return rows[(rows["drafter"] == drafter) & (rows["policy"] == policy)].iloc[0]


def test_each_drafter_has_its_own_rounds_and_prices(model, lookup):
    """24 tokens, a verification costs 8: the model at gamma 3 needs six rounds of 3 steps; the lookup, whose tokens cost
    nothing, takes two rounds for the 11 that it knows and one of its own, then 12 plain steps."""
    found = compare_drafters([model, lookup], {"fixed": POLICIES["fixed"](gamma=3)})
    alone = 24 * RATIO
    row = find(found, "draft model", "fixed")
    assert row["settings"] in ("", "gamma=3") and row["acceptance_rate"] == 1 and row["mean_accepted_tokens"] == 4
    assert row["over_autoregressive"] == pytest.approx(alone / (6 * RATIO + 6 * 3))
    row = find(found, "lookup", "fixed")
    assert row["over_autoregressive"] == pytest.approx(alone / ((1 + 1 + 12) * RATIO)), row["settings"]
    assert row["settings"] == "gamma=5" and row["acceptance_rate"] == 1
    assert found.questions == 8 and found.differing == 0
    assert [math.isinf(ratio) for ratio in found.drafters["ratio"]] == [False, True]
    assert found.drafters["ratio"][0] == pytest.approx(RATIO)


def test_fastest_first_and_rules_that_watch_only_where_there_are_signals(model, lookup):
    found = compare_drafters([model, lookup])
    assert (np.diff(found.pairings["over_autoregressive"]) <= 0).all()
    policies = found.pairings.groupby("drafter")["policy"].agg(set)
    assert policies["draft model"] == set(USUAL)
    assert policies["lookup"] == {name for name in USUAL if not POLICIES[name]().watches_draft}
    best = found.pairings.groupby("drafter")["over_autoregressive"].max()
    assert (best <= found.drafters.set_index("drafter")["oracle"] + 1e-9).all()
    overall = found.by_task[found.by_task["task"] == "overall"]
    assert len(overall) == len(found.pairings) and set(found.by_task["task"]) == {"qa", "rag", "overall"}


def test_questions_that_one_of_them_lacks_are_left_out(model, lookup):
    fewer = replace(lookup, table=table_of(lookup.table.turns[1:], forwards_per_token=0))
    assert compare_drafters([model, fewer], {"fixed": POLICIES["fixed"]()}).questions == 7


def test_other_answers_are_counted(model, lookup):
    turns = [*lookup.table.turns[:7], replace(lookup.table.turns[7], output_ids=np.arange(24, dtype=np.int32))]
    other = replace(lookup, table=table_of(turns, forwards_per_token=0))
    assert compare_drafters([model, other], {"fixed": POLICIES["fixed"]()}).differing == 1


def test_what_cannot_be_compared_is_refused(model, lookup):
    with pytest.raises(UserError, match="two drafters or more"):
        compare_drafters([model])
    with pytest.raises(UserError, match="Two tables are of the drafter draft model"):
        compare_drafters([model, model])
    elsewhere = [replace(turn, question_id=100 + turn.question_id) for turn in lookup.table.turns]
    with pytest.raises(UserError, match="no question in common"):
        compare_drafters([model, replace(lookup, table=table_of(elsewhere))])
    unknown = Contender("log", table_of([make_turn("1?0", watched=False)]), from_ratio(RATIO))
    with pytest.raises(UserError, match="table of log leaves matches unknown"):
        compare_drafters([model, unknown])
