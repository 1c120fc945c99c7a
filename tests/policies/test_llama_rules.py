"""llama.cpp's rule of 2023 and its N in a row against hand-computed rounds."""

import pytest
from made import draft_block, finished, signal

from gammatune.policies import POLICIES


def plans(policy, rounds: list[tuple[int | None, int]]) -> list[int]:
    """Gamma after each round; a round is (drafted, None for all that was planned; how many of them were rejected)."""
    seen = []
    for drafted, rejected in rounds:
        drafted = policy.plan() if drafted is None else drafted
        policy.observe(finished(policy.plan(), drafted - rejected, drafted))
        seen.append(policy.plan())
    return seen


def test_eight_more_up_to_thirty_one_less_down_to_two():
    policy = POLICIES["llama_2023"]()
    assert policy.plan() == 16
    assert plans(policy, [(None, 0), (None, 0), (None, 0), (None, 1), (None, 29)]) == [24, 30, 30, 29, 28]
    assert plans(POLICIES["llama_2023"](gamma=3), [(None, 1)] * 3) == [2, 2, 2]


def test_a_shorter_block_that_is_accepted_changes_nothing_and_a_rejection_in_it_does():
    assert plans(POLICIES["llama_2023"](), [(5, 0), (0, 0), (5, 1)]) == [16, 16, 15]


def unsure(top1: float, second: float, index: int = 0):
    seen = signal(top1, index=index)
    seen.margin = round(top1 - second, 4)
    return seen


@pytest.mark.parametrize(("second", "drafted"), [(0.29, 2), (0.31, 1)])
def test_drafting_ends_before_a_token_under_twice_the_second(second, drafted):
    block = [unsure(0.9, 0.1, 0), unsure(0.6, second, 1)]
    assert draft_block(POLICIES["llama_2023"](gamma=2), block) == drafted
    assert draft_block(POLICIES["llama_2023"](gamma=2, stop_token="include"), block) == 2


def test_without_the_ratio_no_signal_is_read():
    assert POLICIES["llama_2023"]().watches_draft and not POLICIES["llama_2023_blind"]().watches_draft
    assert POLICIES["llama_2023_blind"].rule is POLICIES["llama_2023"].rule


def test_n_in_a_row_is_one_token():
    """N = 3: three full blocks in a row, two and one with a rejection, three with rejections."""
    policy, full, not_full = POLICIES["llama_in_a_row"](times=3, gamma=4), (None, 0), (None, 1)
    assert plans(policy, [full] * 3) == [4, 4, 5]
    assert plans(policy, [full] * 2 + [not_full] + [full] * 2) == [5] * 5
    assert plans(policy, [full]) == [6]
    assert plans(policy, [not_full] * 6) == [6, 6, 5, 5, 5, 4]


def test_the_author_counts_to_eleven_and_the_length_starts_at_one():
    assert plans(POLICIES["llama_in_a_row"](), [(None, 0)] * 22) == [1] * 10 + [2] * 11 + [3]


def test_the_bias_forgives_rejected_tokens():
    policy = POLICIES["llama_in_a_row"](times=1, gamma=4, bias=1)
    assert plans(policy, [(None, 1), (None, 2)]) == [5, 4]


def test_the_length_stays_in_its_bounds_and_a_round_without_a_block_counts_as_neither():
    policy = POLICIES["llama_in_a_row"](times=2, gamma=9, gamma_min=2, gamma_max=3)
    assert policy.plan() == 3
    assert plans(policy, [(None, 0)] * 3 + [(None, 1), (0, 0), (None, 1)]) == [3, 3, 3, 3, 3, 2]
    assert plans(policy, [(None, 1)] * 4) == [2] * 4
    assert POLICIES["llama_in_a_row"](gamma=0, gamma_min=2).plan() == 2
