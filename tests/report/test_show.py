"""Which token came from whom."""

import re

import pytest
from stored import Recipe, store_run

from gammatune.errors import UserError
from gammatune.files import write_json
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


def test_control_characters_of_an_answer_are_shown_and_do_not_steer_the_terminal(tmp_path):
    """tiny-random's own answers hold some."""
    folder = store_run(tmp_path / "run", Recipe(arms=("ar", "fixed-2"), tasks=("qa",), questions=1, repetitions=1))
    texts = dict.fromkeys(read_run(folder).pieces, "\x1b]0;pwned\x07\x1c\x9b2J\u202e\ta\n")
    write_json(folder / "pieces.json", {"pieces": texts})
    run = read_run(folder)
    turn = run.arm("fixed-2").turns[0]
    plain, painted = show.answer_text(run, turn, False), show.answer_text(run, turn, True)
    assert plain == (r"\x1b]0;pwned\x07\x1c\x9b2J\u202e" + "\ta\n") * len(turn.output_ids)
    assert set(re.findall(r"\x1b\[[\d;]*m", painted)) >= {"\x1b[32m"} and "\x1b" not in re.sub(r"\x1b\[[\d;]*m", "", painted)


def test_html_is_escaped_and_marked(run):
    html = show.answer_html(run, run.arm("gammatune-3").turns[0])
    assert "&lt;b&gt;" in html and "<b>" not in html
    assert show.KINDS["bonus"] in html


def test_a_token_without_a_piece_shows_its_id(run):
    assert show.piece(run, 99_999) == "<99999>"
