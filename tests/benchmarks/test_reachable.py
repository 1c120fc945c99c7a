"""The bound on what rules can reach: chances that are given, chances that are learned, and tables that have none."""

from dataclasses import replace

import numpy as np
import pytest
from replay.made_tables import draw_table, make_turn

from gammatune.policies import POLICIES
from gammatune.replay.prices import from_ratio
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable, write_table


@pytest.fixture
def reachable(load_benchmark):
    return load_benchmark("reachable")


def test_who_knows_each_outcome_drafts_what_will_be_accepted(reachable):
    """At c = 10: blocks of 3 and 2 right tokens and a wrong token in between, by hand; as fast as the oracle."""
    turn = make_turn("1110110")
    bench = build_bench(AcceptanceTable([turn]), from_ratio(10))
    known = (turn.match == 1).astype(float)
    rule = reachable.Informed(carry="never", answers=[reachable.Chances(known, known)])
    assert bench.speeds(rule) == pytest.approx([1000 * 7 / ((3 + 10) + (2 + 10))])
    assert bench.speeds(rule) == pytest.approx(bench.speeds(POLICIES["oracle"]()))


def test_who_expects_nothing_is_the_target_alone(reachable):
    bench = build_bench(AcceptanceTable([make_turn("1110110")]), from_ratio(10))
    rule = reachable.Informed(carry="never", answers=[reachable.Chances(np.zeros(7), np.zeros(7))])
    assert bench.speeds(rule) == pytest.approx([1000 * 7 / (7 * 10)])


def test_learned_chances_are_of_every_position_and_the_oracle_is_above_all_rules(reachable):
    turns = draw_table(5, questions=12).turns
    table = AcceptanceTable([replace(turn, output_ids=turn.output_ids % 3) for turn in turns])  # so that contexts come again
    chances = reachable.predict(table, memory=False)
    assert [len(each.seen) for each in chances] == [turn.tokens for turn in table.turns]
    assert all(((each.unseen >= 0) & (each.unseen <= 1)).all() for each in chances)
    found = reachable.compare(build_bench(table, from_ratio(8)), table).set_index("rule")
    assert found.loc["oracle", "over_oracle"] == 1
    assert len(found) == 6 and (found["over_oracle"] <= 1 + 1e-9).all() and (found["over_oracle"] > 0.1).all()


def test_contexts_that_never_come_again_tell_nothing(reachable):
    table = draw_table(5, questions=12)
    assert all(len(set(turn.output_ids.tolist())) == turn.tokens for turn in table.turns)
    for without, told in zip(reachable.predict(table, memory=False), reachable.predict(table, memory=True), strict=True):
        assert (without.seen == told.seen).all() and (without.unseen == told.unseen).all()


@pytest.mark.parametrize(("match", "chance"), [("1111", 1.0), ("0000", 0.0)])
def test_outcomes_that_are_all_the_same_are_expected_again(reachable, match, chance):
    table = AcceptanceTable([make_turn(match, question_id=question) for question in range(4)])
    assert all((each.seen == chance).all() and (each.unseen == chance).all() for each in reachable.predict(table, True))


def test_one_question_has_no_others_to_learn_from(reachable, tmp_path, capsys):
    write_table(AcceptanceTable([make_turn("110")]), tmp_path / "acceptance.parquet")
    assert reachable.main([str(tmp_path / "acceptance.parquet"), "--cost-ratio", "5"]) == 2
    assert "at least two" in capsys.readouterr().err


def test_a_table_without_signals_is_a_sentence(reachable, tmp_path, capsys):
    write_table(AcceptanceTable([make_turn("110", watched=False)]), tmp_path / "acceptance.parquet")
    assert reachable.main([str(tmp_path / "acceptance.parquet"), "--cost-ratio", "5"]) == 2
    assert "lacks draft signals" in capsys.readouterr().err
