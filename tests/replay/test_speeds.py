"""From a table and prices to tokens per second per question, beside a slow loop written out."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.made_tables import draw_table, make_turn
from shipped import POLICIES, make_policy

from gammatune.errors import UserError
from gammatune.policies.base import with_settings
from gammatune.replay.prices import Drafting, Price, PriceList, from_ratio, hand_prices
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.speeds import FEW, Bench, build_bench, measure_speeds, split_questions
from gammatune.replay.table import AcceptanceTable

CURVE = PriceList(
    blind=Drafting(step=Price(2.0, 0.01), start=Price(0.5), catch_up=Price(0.25)),
    watched=Drafting(step=Price(3.0, 0.01), start=Price(0.75), catch_up=Price(0.5)),
    verify=[Price(10.0 + k, 0.01 * k) for k in range(1, 70)],
    rest=Price(0.125),
    prefill_target=Price(5.0, 0.5),
    prefill_both=Price(6.0, 0.75),
)


def spell_out(table: AcceptanceTable, policy, curve: PriceList) -> dict[int, float]:
    """question id -> tokens per second, round by round as a person would add them up."""
    drafting, spent, made = curve.drafting(policy.watches_draft), {}, {}
    hand_prices(policy, curve)
    logs = replay(prepare(table), policy, keep_rounds=True).logs
    speculates = any(r.forwards for log in logs for r in log)
    for turn, log in zip(table.turns, logs, strict=True):
        ms = (curve.prefill_both if speculates else curve.prefill_target).at(turn.prompt_tokens)
        catch_up = False
        for r in log:
            if r.forwards:
                ms += drafting.start.at(r.context) + r.forwards * drafting.step.at(r.context)
                ms += drafting.catch_up.at(r.context) if catch_up else 0.0
            ms += curve.verify_price(r.drafted + 1).at(r.context) + curve.rest.at(r.context)
            catch_up = r.accepted == r.forwards
        spent[turn.question_id] = spent.get(turn.question_id, 0.0) + ms
        made[turn.question_id] = made.get(turn.question_id, 0) + turn.tokens
    return {question: 1000 * made[question] / spent[question] for question in spent}


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(list(POLICIES)), seed=st.integers(0, 10_000), measured=st.booleans())
def test_speeds_are_those_of_a_slow_loop(name, seed, measured):
    curve, table = CURVE if measured else from_ratio(9.0), draw_table(seed)
    bench = build_bench(table, curve)
    expected = spell_out(table, make_policy(name), curve)
    assert bench.question_id.tolist() == list(expected)
    assert bench.speeds(make_policy(name)) == pytest.approx(list(expected.values()))


def test_speed_by_hand():
    """Four tokens in two rounds at c = 8: (2 + 8) + 8 draft steps of a thousandth of a second."""
    bench = build_bench(AcceptanceTable([make_turn("1110")]), from_ratio(8))
    speed = 1000 * 4 / ((2 + 8) + 8)
    assert bench.speeds(make_policy("fixed", gamma=2)) == pytest.approx([speed])


def test_both_turns_of_a_question_are_one_speed_and_same_ids_of_two_tasks_are_two():
    turns = [
        make_turn("1111", question_id=3, turn=0),
        make_turn("0000", question_id=3, turn=1),
        make_turn("11", question_id=3, task="rag"),
    ]
    bench = build_bench(AcceptanceTable(turns), from_ratio(10))
    assert bench.task.tolist() == ["qa", "rag"] and bench.tokens.tolist() == [8, 2]
    assert bench.speeds(make_policy("fixed", gamma=3)) == pytest.approx([1000 * 8 / (13 + 13 + 12 + 11 + 10), 1000 * 2 / 11])


@given(st.lists(st.sampled_from(["qa", "rag", "mt_bench"]), min_size=1, max_size=60))
def test_every_second_question_of_each_task_is_for_tuning(tasks):
    task = np.array(tasks)
    tuning = split_questions(task)
    for name in set(tasks):
        part = tuning[task == name].tolist()
        assert part == [bool(number % 2) for number in range(len(part))]


def test_several_processes_give_what_one_gives():
    table = draw_table(9, questions=6)
    policies = [make_policy("gammatune_plus", gamma=1 + n % 12, tau=n / 100) for n in range(FEW + 5)]
    one, two = (measure_speeds(build_bench(table, CURVE), policies, workers=workers) for workers in (1, 2))
    assert one.shape == (FEW + 5, 6)
    assert (one == two).all()
    assert len({tuple(row) for row in one}) > 10
    assert (one[0] == build_bench(table, CURVE).speeds(policies[0])).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_policy_is_replayed_once_on_a_bench_and_again_at_other_prices(workers, monkeypatch):
    """Also where other processes replayed it first; equal settings are one policy, whatever its name."""
    bench = build_bench(draw_table(9, questions=6), from_ratio(9))
    policies = [make_policy("gammatune_plus", tau=n / 100) for n in range(FEW)]
    first = measure_speeds(bench, [*policies, *policies], workers=workers)
    assert (first[:FEW] == first[FEW:]).all()
    with monkeypatch.context() as patch:
        patch.setattr(Bench, "replay", lambda *_: pytest.fail("replayed again"))
        renamed = with_settings(policies[3])
        renamed.name = "mine"
        assert (bench.speeds(renamed) == first[3]).all()
        assert (measure_speeds(bench, policies, workers=workers) == first[:FEW]).all()
    dear = replace(bench, curve=from_ratio(2))
    assert (dear.speeds(policies[3]) == build_bench(draw_table(9, questions=6), from_ratio(2)).speeds(policies[3])).all()
    assert (dear.speeds(policies[3]) != first[3]).any()


def test_what_is_kept_of_a_policy_are_the_sums_of_its_rounds():
    bench = build_bench(draw_table(4, questions=5), CURVE)
    kept, done = bench.measure(make_policy("svip")), bench.replay(make_policy("svip"))
    assert kept.rounds.tolist() == np.diff(done.turn_ends, prepend=0).tolist()
    sums = (done.drafted.sum(), done.accepted.sum(), done.forwards.sum(), done.beyond)
    assert (kept.drafted, kept.accepted, kept.forwards, kept.beyond) == sums
    assert len({kept.drafted, kept.accepted, kept.rounds.sum()}) == 3


def test_a_refusal_in_a_worker_arrives_as_it_is():
    table = AcceptanceTable([make_turn("10", watched=False)])
    with pytest.raises(UserError, match="no draft signals"):
        policies = [make_policy("svip", threshold=(n + 1) / FEW) for n in range(FEW)]
        measure_speeds(build_bench(table, from_ratio(5)), policies, workers=2)


def test_a_table_with_unknown_positions_is_refused():
    with pytest.raises(UserError, match="unknown"):
        build_bench(AcceptanceTable([make_turn("1?", watched=False)]), from_ratio(5))
