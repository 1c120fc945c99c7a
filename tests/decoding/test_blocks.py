"""The rules that end a block, case by case: planned length, budget, end of sequence, the policy's stop."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gammatune.records import STOP_REASONS, Block, Signals

END = 9
SIGNALS = Signals(0, 0.5, 1.0, 0.1, 0.5)


@dataclass
class Case:
    """Tokens that a drafter has, and what becomes of a block. says: the policy's answers, None where nothing watches."""

    tokens: list[int]
    planned: int
    room: int
    says: list[bool] | None
    exclude: bool
    expected: tuple  # drafted, made, stop


def draft(block: Block, tokens: list[int]) -> int:
    """Offer tokens until the block is full; how many were made."""
    made = 0
    for token in tokens[: block.limit]:
        made += 1
        if not block.add(token, SIGNALS):
            break
    return made


Y, N = True, False
CASES = {
    "the plan is reached": Case([1, 2, 3, 4], 3, 9, None, N, (3, 3, "length")),
    "a plan of nothing": Case([1], 0, 9, None, N, (0, 0, "length")),
    "a plan of nothing without budget": Case([1], 0, 0, None, N, (0, 0, "length")),
    "the budget comes first": Case([1, 2, 3, 4], 4, 2, None, N, (2, 2, "budget")),
    "the budget equals the plan": Case([1, 2, 3], 2, 2, None, N, (2, 2, "length")),
    "no budget at all": Case([1, 2], 3, 0, None, N, (0, 0, "budget")),
    "nothing to propose": Case([], 3, 9, None, N, (0, 0, "drafter")),
    "less to propose than planned": Case([1, 2], 3, 9, None, N, (2, 2, "drafter")),
    "an end inside": Case([1, END, 3], 3, 9, None, N, (2, 2, "eos")),
    "an end as the last planned token": Case([1, 2, END], 3, 9, None, N, (3, 3, "eos")),
    "an end as the last token of the budget": Case([1, END, 3], 3, 2, None, N, (2, 2, "eos")),
    "an end as all there is": Case([END], 3, 9, None, N, (1, 1, "eos")),
    "a stop, included": Case([1, 2, 3, 4], 4, 9, [Y, N], N, (2, 2, "policy")),
    "a stop, excluded": Case([1, 2, 3, 4], 4, 9, [Y, N], Y, (1, 2, "policy")),
    "a stop at once, included": Case([1, 2], 2, 9, [N], N, (1, 1, "policy")),
    "a stop at once, excluded": Case([1, 2], 2, 9, [N], Y, (0, 1, "policy")),
    "a stop at the last planned token, included": Case([1, 2], 2, 9, [Y, N], N, (2, 2, "length")),
    "a stop at the last planned token, excluded": Case([1, 2], 2, 9, [Y, N], Y, (1, 2, "policy")),
    "a stop at the last token of the budget, included": Case([1, 2], 4, 2, [Y, N], N, (2, 2, "policy")),
    "a stop at the last token of the budget, excluded": Case([1, 2], 4, 2, [Y, N], Y, (1, 2, "policy")),
    "a stop at an end, included": Case([1, END, 3], 4, 9, [Y, N], N, (2, 2, "eos")),
    "a stop at an end, excluded": Case([1, END, 3], 4, 9, [Y, N], Y, (1, 2, "policy")),
    "no stop before an end": Case([1, END, 3], 4, 9, [Y, Y], N, (2, 2, "eos")),
    "never a stop": Case([1, 2, 3], 3, 9, [Y, Y, Y], Y, (3, 3, "length")),
    "never a stop, and nothing more to propose": Case([1, 2], 3, 9, [Y, Y], Y, (2, 2, "drafter")),
}


@pytest.mark.parametrize("name", CASES)
def test_a_block_ends_by_its_rules(name):
    case = CASES[name]
    says = iter(case.says or [])
    keep = None if case.says is None else lambda signals: next(says)
    block = Block(case.planned, case.room, frozenset({END}), keep, case.exclude)
    made = draft(block, case.tokens)
    assert (block.drafted, made, block.stop) == case.expected
    assert next(says, None) is None, "the policy is asked once for each token made"


@dataclass
class Asked:
    signals: list = field(default_factory=list)

    def keep(self, signals: Signals) -> bool:
        self.signals.append(signals)
        return True


def test_a_watching_policy_gets_the_signals_of_each_token():
    asked = Asked()
    block = Block(2, 9, frozenset(), asked.keep)
    assert block.watched and not Block(2, 9).watched
    for top1 in (0.25, 0.75):
        block.add(5, Signals(block.drafted, top1, 1.0, 0.1, top1))
    assert [(each.index, each.top1) for each in asked.signals] == [(0, 0.25), (1, 0.75)]


@given(
    tokens=st.lists(st.sampled_from([1, 2, 3, END]), max_size=9),
    planned=st.integers(0, 9),
    room=st.integers(0, 9),
)
def test_tokens_that_are_read_after_verification_end_a_block_as_if_read_at_once(tokens, planned, room):
    """On a device that runs ahead, a block learns of a drafted end of sequence only then."""
    early, late = (Block(planned, room, frozenset({END})) for _ in range(2))
    draft(early, tokens)
    for _ in tokens[: late.limit]:
        if not late.add(None):
            break
    late.cut(tokens[: late.drafted])
    assert (late.drafted, late.ended, late.stop) == (early.drafted, early.ended, early.stop)
    assert early.stop in STOP_REASONS


def test_signals_are_rounded_to_four_decimals():
    assert Signals.rounded(3, 0.123456, 1.000051, 0.99999, 1 / 3) == Signals(3, 0.1235, 1.0001, 1.0, 0.3333)
