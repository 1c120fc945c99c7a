"""Prompt lookup on texts made by hand, where letters are tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from table_model import CPU

from gammatune.drafters.base import Workplace
from gammatune.drafters.lookup import Lookup
from gammatune.errors import UserError
from gammatune.records import Block
from gammatune.runtimes.device import Device

END = "."


def start(prompt: str, **settings) -> Lookup:
    drafter = Lookup(**settings)
    drafter.attach(Workplace(Device(CPU), 128, frozenset({ord(END)})))
    drafter.begin(codes(prompt), None)
    return drafter


def codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def propose(drafter: Lookup, text: str, gamma: int = 4, room: int = 99) -> tuple[str, str]:
    """What is proposed after the text, and why no more."""
    block = Block(gamma, room, frozenset({ord(END)}))
    proposal = drafter.propose(codes(text), block)
    assert len(proposal.tokens) == block.drafted and (proposal.q, proposal.parents, proposal.forwards) == (None, None, 0)
    return "".join(map(chr, proposal.tokens.tolist())), block.stop


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abcdefgh abc", "defg"),  # what followed the last three
        ("xbc1 abc2 abc", "2 ab"),  # the longest first: not what followed "bc" or "c"
        ("abc1 abc2 abc", "1 ab"),  # the earliest of several places
        ("zbc1 abc", "1 ab"),  # "abc" occurs at the end only: a shorter one
        ("zzc1 abc", "1 ab"),  # and a shorter one still
        ("zz1 abc", ""),  # nothing matches
        ("abcabc", "abc"),  # no more than there is: the place and the end overlap
        ("aaaa", "a"),  # the earliest place of "aaa" is one before the end
        ("aa", "a"),
        ("a", ""),
        ("ab", ""),
        ("abc.xyz abc", "."),  # an end of sequence is the last
        ("abcd.xyz abc", "d."),
    ],
)
def test_what_followed_earlier_is_proposed(text, expected):
    assert propose(start(text), text)[0] == expected


@pytest.mark.parametrize(
    ("gamma", "room", "expected"),
    [
        (4, 99, ("1234", "length")),
        (0, 99, ("", "length")),
        (6, 2, ("12", "budget")),
        (99, 99, ("12345678 abc", "drafter")),
    ],
)
def test_a_proposal_is_as_long_as_planned_allowed_and_there(gamma, room, expected):
    assert propose(start("abc12345678 abc"), "abc12345678 abc", gamma, room) == expected


def test_nothing_to_propose_is_the_drafters_own_stop():
    assert propose(start("abcd"), "abcd") == ("", "drafter")
    assert propose(start("abc. abc"), "abc. abc") == (".", "eos")


@pytest.mark.parametrize(
    ("longest", "shortest", "expected"), [(3, 1, "3"), (2, 1, "2"), (1, 1, "1"), (3, 3, "3"), (9, 5, ""), (9, 2, "3")]
)
def test_settings_say_how_many_tokens_must_occur_before(longest, shortest, expected):
    text = "c1 bc2 abc3 abc"
    assert propose(start(text, longest=longest, shortest=shortest), text, gamma=1)[0] == expected


@given(st.text("abc", min_size=1, max_size=30), st.lists(st.text("abc", min_size=1, max_size=5), max_size=5))
def test_a_text_that_grew_is_searched_like_one_that_was_there_from_the_start(prompt, pieces):
    """Also beside a plain search: the longest suffix that occurs earlier, at its earliest place."""
    grown, text = start(prompt), prompt
    for piece in pieces:
        text += piece
        grown.commit(codes(text))
    found = propose(grown, text, gamma=99)[0]
    assert found == propose(start(text), text, gamma=99)[0]
    for n in range(min(3, len(text)), 0, -1):
        place = text.find(text[-n:])
        if place + n < len(text):
            assert found == text[place + n :]
            return
    assert found == ""


def test_a_new_prompt_forgets_the_old_text():
    drafter = start("abc1")
    drafter.begin(codes("xyz abc"), None)
    assert propose(drafter, "xyz abc")[0] == ""


@pytest.mark.parametrize("settings", [{"longest": 0}, {"shortest": 0}, {"longest": 2, "shortest": 3}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(
        UserError, match=r"^drafter.lookup.shortest=\d and drafter.lookup.longest=\d are out of range: choose"
    ):
        Lookup(**settings)


def test_settings_are_part_of_what_a_run_is():
    assert Lookup(longest=2).identity == {"name": "lookup", "longest": 2, "shortest": 1}
    assert (Lookup.signals, Lookup.needs_draft_model) == (False, False)
