"""Which token came from whom."""

import pytest
from stored import Recipe, store_run

from gammatune.errors import UserError
from gammatune.records import Round, TurnLog
from gammatune.report import show
from gammatune.runs.store import read_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(store_run(tmp_path_factory.mktemp("runs") / "demo", Recipe(questions=3, repetitions=2)))


def test_tokens_of_each_kind_of_round():
    rounds = [
        Round(3, 3, 1, 2, 3, "length", 5),
        Round(2, 2, 2, 3, 2, "length", 7),
        Round(0, 0, 0, 1, 0, "length", 10),
        Round(4, 2, 2, 2, 2, "eos", 11),
    ]
    turn = TurnLog(1, "qa", "qa", 0, 5, list(range(10, 18)), "eos", 1.0, 2.0, rounds)
    assert show.mark_tokens(turn) == [
        (10, "accepted"),
        (11, "corrected"),
        (12, "accepted"),
        (13, "accepted"),
        (14, "bonus"),
        (15, "target"),
        (16, "accepted"),
        (17, "accepted"),
    ]


def test_every_stored_token_has_one_kind(run):
    for arm in run.arms:
        for turn in arm.turns:
            kinds = [kind for _, kind in show.mark_tokens(turn)]
            assert len(kinds) == len(turn.output_ids)
            assert kinds.count("accepted") == sum(r.accepted for r in turn.rounds)


def test_all_turns_of_one_repetition_are_chosen(run):
    turns = show.choose_turns(run.arm("gammatune-3"), 1)
    assert [(t.turn, t.repetition) for t in turns] == [(0, 0), (1, 0)]


def test_gammatune_is_shown_unless_another_arm_is_named(run):
    assert show.choose_arm(run).label == "gammatune-3"
    assert show.choose_arm(run, "ar").label == "ar"


def test_unknown_question_and_arm_are_refused_with_what_there_is(run):
    with pytest.raises(UserError, match=r"Question 7777 is not in this run: choose one of 0, 1, 2, 100, 101 \.\.\. 202\."):
        show.choose_turns(run.arm("ar"), 7777)
    with pytest.raises(UserError, match="no finished arm gammatun: choose one of ar, fixed-2"):
        show.choose_arm(run, "gammatun")


def test_colours_wrap_tokens_and_leave_the_text_alone(run):
    turn = run.arm("gammatune-3").turns[0]
    plain, painted = show.answer_text(run, turn, False), show.answer_text(run, turn, True)
    assert "\033[" not in plain and "\033[32m" in painted
    for code in [*show.ANSI.values()]:
        painted = painted.replace(f"\033[{code}m", "")
    assert painted == plain


def test_html_is_escaped_and_marked(run):
    html = show.answer_html(run, run.arm("gammatune-3").turns[0])
    assert "&lt;b&gt;" in html and "<b>" not in html
    assert show.KINDS["bonus"] in html


def test_a_token_without_a_piece_shows_its_id(run):
    assert show.piece(run, 99_999) == "<99999>"
