"""Suffix decoding: the automaton beside plain counting, and what is proposed after texts made by hand."""

import random
from collections import Counter
from math import log

import pytest
from table_model import CPU, draw_prompt, own_answer, table_engine

from gammatune.drafters.base import Workplace
from gammatune.drafters.suffix import Suffix, SuffixAutomaton
from gammatune.errors import UserError
from gammatune.records import Block
from gammatune.runtimes.device import Device

END = "."


def codes(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def start(prompt: str, **settings) -> Suffix:
    drafter = Suffix(**settings)
    drafter.attach(Workplace(Device(CPU), 128, frozenset({ord(END)})))
    drafter.begin(codes(prompt), None)
    return drafter


def propose(drafter: Suffix, text: str, gamma: int = 9, room: int = 99, keep=None, **policy) -> tuple[str, str]:
    """What is proposed after the text, and why no more."""
    block = Block(gamma, room, frozenset({ord(END)}), keep, **policy)
    proposal = drafter.propose(codes(text), block)
    assert len(proposal.tokens) == block.drafted and (proposal.q, proposal.parents, proposal.forwards) == (None, None, 0)
    return "".join(map(chr, proposal.tokens.tolist())), block.stop


def count_followers(text: list[int], context: list[int]) -> list[tuple[int, int]]:
    """The referee: (token, how often it followed the context), in the order of their first time."""
    ends = range(len(context), len(text))
    return list(Counter(text[end] for end in ends if text[end - len(context) : end] == context).items())


def longest_context(text: list[int], wanted: list[int], depth: int) -> int:
    """The referee: tokens of the longest end of `wanted`, shorter than `depth`, that something follows in the text."""
    lengths = range(min(depth - 1, len(wanted)), 0, -1)
    return next((n for n in lengths if count_followers(text, wanted[-n:])), 0)


@pytest.mark.parametrize("depth", [2, 3, 5, 24])
@pytest.mark.parametrize("letters", [1, 2, 3, 6])
def test_contexts_and_counts_are_those_of_plain_counting(depth, letters):
    """After each token of a growing text, and along random continuations, which a proposal may take."""
    for seed in range(25):
        dice, automaton, text = random.Random(seed), SuffixAutomaton(depth), []
        for _ in range(dice.randrange(45)):
            text.append(dice.randrange(letters))
            automaton.append(text[-1])
            context, wanted = automaton.match(), list(text)
            for _ in range(6):
                length = longest_context(text, wanted, depth)
                assert context.length == length
                if not length:
                    break
                counts = automaton.count_following(context)
                assert list(counts.items()) == count_followers(text, wanted[-length:])
                wanted.append(dice.choice(list(counts)))
                context = automaton.advance(context, wanted[-1])


class Counting(list):
    """A list that counts how often it is read."""

    def __init__(self, items):
        super().__init__(items)
        self.reads = 0

    def __getitem__(self, place):
        self.reads += 1
        return super().__getitem__(place)


@pytest.mark.parametrize("text", ["a", "ab", "abcab", "random", "fibonacci"])
def test_a_token_costs_as_much_at_the_end_of_a_long_text_as_at_its_beginning(text):
    """Reads of links and transitions: a bound by the depth that does not know the length."""
    depth, length = 8, 6000
    if text == "random":
        tokens = random.Random(0).choices(range(50), k=length)
    elif text == "fibonacci":  # many states are split
        one, two = "a", "ab"
        while len(two) < length:
            one, two = two, two + one
        tokens = codes(two[:length])
    else:
        tokens = codes(text * length)[:length]
    automaton = SuffixAutomaton(depth)
    automaton.links, automaton.following = Counting(automaton.links), Counting(automaton.following)
    spent = []
    for token in tokens:
        before = automaton.links.reads + automaton.following.reads
        automaton.append(token)
        spent.append(automaton.links.reads + automaton.following.reads - before)
    thirds = [sum(spent[place : place + length // 3]) / (length // 3) for place in range(0, length, length // 3)]
    assert max(thirds) < 2 * depth + 16
    assert thirds[2] < 1.5 * thirds[0] + 2
    assert len(automaton.links) <= 2 * length


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abcdefgh abc", "def"),  # what followed the longest end, as many tokens as it has
        ("1bc3 2bc4 2bc4 bc", "4 "),  # the most frequent, for which no longer end is known
        ("1bc3 1bc4 bc", "3 "),  # of equals the first
        ("xbc1 abc2 bc1 bc1 abc", "2 bc1 b"),  # the longest end, not the most frequent after "bc"
        ("zz1 abc", ""),  # nothing matches
        ("a", ""),
        ("aa", "a"),
        ("aaaa", "aaa"),  # at the text's end the context loses its first token, and goes on
        ("abab", "ab"),
        ("abc.xyz abc", "."),  # an end of sequence is the last
    ],
)
def test_what_followed_most_often_is_proposed(text, expected):
    assert propose(start(text), text)[0] == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "123"),
        ({"max_spec_factor": 2.0}, "123456"),
        ({"max_spec_factor": 0.5}, "1"),
        ({"max_spec_factor": 0.0}, ""),
        ({"max_spec_offset": 2.0}, "12345"),
        ({"max_spec_offset": -2.0}, "1"),
        ({"max_spec_offset": -9.0}, ""),
        ({"max_spec_factor": 0.34, "max_spec_offset": 0.0}, "1"),
        ({"max_tree_depth": 2}, "1"),  # a context of one token and what follows it
        ({"max_tree_depth": 3}, "12"),
        ({"max_tree_depth": 2, "max_spec_offset": 8.0}, "123456789"),  # the context moves along
    ],
)
def test_settings_say_how_long_a_proposal_is(settings, expected):
    text = "abc123456789 abc"
    assert propose(start(text, **settings), text)[0] == expected


def test_a_proposal_ends_where_its_chance_falls_below_the_least():
    """After "a" comes b in three of four cases; after "b", c in two of three."""
    text = "abc_abc_abd_ae_a"
    for least, expected in ((0.0, "bc_ab"), (0.5, "bc_a"), (0.51, "b"), (0.75, "b"), (0.76, "")):
        drafter = start(text, min_token_prob=least, max_spec_factor=0.0, max_spec_offset=5.0, max_tree_depth=2)
        assert propose(drafter, text)[0] == expected, least


@pytest.mark.parametrize(
    ("gamma", "room", "expected"), [(2, 99, ("12", "length")), (9, 1, ("1", "budget")), (9, 99, ("123", "drafter"))]
)
def test_a_proposal_is_as_long_as_planned_allowed_and_there(gamma, room, expected):
    assert propose(start("abc1234 abc"), "abc1234 abc", gamma, room) == expected


def test_signals_are_shares_of_what_followed():
    """After "a" came b three times and e once, after "b" c twice and d once; after "c" nothing but _."""
    seen, text = [], "abc_abc_abd_ae_a"
    drafter = start(text, max_tree_depth=2, max_spec_offset=2.0)

    def keep(signals) -> bool:
        seen.append((signals.index, chr(signals.token), signals.top1, signals.entropy, signals.margin, signals.chosen))
        return True

    assert propose(drafter, text, keep=keep)[0] == "bc_"
    entropies = [-(0.75 * log(0.75) + 0.25 * log(0.25)), -(2 / 3 * log(2 / 3) + 1 / 3 * log(1 / 3)), 0.0]
    shares = [(0.75, 0.5), (0.6667, 0.3333), (1.0, 1.0)]
    assert seen == [
        (place, letter, top1, round(entropy, 4), margin, top1)
        for place, (letter, entropy, (top1, margin)) in enumerate(zip("bc_", entropies, shares, strict=True))
    ]


@pytest.mark.parametrize(("exclude", "expected"), [(False, ("bc", "policy")), (True, ("b", "policy"))])
def test_a_watching_policy_ends_it(exclude, expected):
    text = "abc_abc_abd_ae_a"
    drafter = start(text, max_tree_depth=2, max_spec_offset=2.0)
    assert propose(drafter, text, keep=lambda signals: signals.top1 > 0.7, exclude=exclude) == expected


def test_a_text_that_grew_is_known_like_one_that_was_there_from_the_start():
    dice, text = random.Random(3), "ab"
    grown = start(text)
    for _ in range(60):
        text += "".join(dice.choices("abc", k=dice.randrange(1, 4)))
        grown.commit(codes(text))
        assert propose(grown, text) == propose(start(text), text)
    grown.begin(codes("xyz"), None)
    assert propose(grown, "xyz")[0] == "", "a new prompt forgets the old text"


def test_all_of_a_proposal_is_recorded_whatever_the_depth():
    engine = table_engine(Suffix(), memory=1, vocab_size=12, ends=(9,))
    prompt = draw_prompt(1, vocab_size=12)
    answer = own_answer(engine, prompt, 40)
    deep, flat = (engine.trace(prompt, answer, 40, depth) for depth in (24, 1))
    assert deep.proposed.tolist() == flat.proposed.tolist() and max(flat.proposed) > 1 and not flat.more[:-1].any()


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tree_depth": 1},
        {"max_tree_depth": 1025},
        {"max_spec_factor": -0.1},
        {"max_spec_factor": float("inf")},
        {"max_spec_offset": float("nan")},
        {"max_spec_offset": -2000.0},
        {"min_token_prob": 1.01},
        {"min_token_prob": float("nan")},
    ],
)
def test_settings_that_make_no_sense_are_refused(settings):
    (key,) = settings
    with pytest.raises(UserError, match=rf"^drafter\.suffix\.{key}=\S+ is out of range: it must be .*\.$"):
        Suffix(**settings)


def test_settings_are_part_of_what_a_run_is():
    assert Suffix(max_tree_depth=9).identity["max_tree_depth"] == 9
    assert (Suffix.signals, Suffix.needs_draft_model) == (True, False)
