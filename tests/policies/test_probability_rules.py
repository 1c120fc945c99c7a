"""llama.cpp's p_min and the cumulative rule against hand-computed blocks."""

from made import draft_block, signal

from gammatune.policies import POLICIES


def top1(*values: float) -> list:
    return [signal(value, chosen=0.01, index=index) for index, value in enumerate(values)]


def test_p_min_drops_the_token_under_it_even_the_first():
    assert draft_block(POLICIES["p_min"](), top1(0.9, 0.75, 0.74, 0.9)) == 2
    assert draft_block(POLICIES["p_min"](), top1(0.74, 0.9)) == 0
    assert draft_block(POLICIES["p_min"](), top1(*[0.8] * 20)) == 16


def test_p_min_of_2026_drafts_three_whatever_comes():
    assert draft_block(POLICIES["p_min_2026"](), top1(0.0, 0.1, 0.0, 0.9)) == 3


def test_cumulative_stops_once_a_rejection_is_likelier_than_its_threshold():
    """0.8 * 0.7 * 0.6 = 0.336, rejection 0.664; times 0.8 = 0.2688, rejection 0.7312."""
    block = top1(0.8, 0.7, 0.6, 0.8, 0.9)
    assert draft_block(POLICIES["cumulative"](), block) == 4
    assert draft_block(POLICIES["cumulative_strict"](), block) == 2  # 0.56, rejection 0.44
    assert draft_block(POLICIES["cumulative"](stop_token="exclude"), block) == 3


def test_cumulative_keeps_its_bounds():
    assert draft_block(POLICIES["cumulative"](), top1(0.1, 0.9, 0.9)) == 2
    assert draft_block(POLICIES["cumulative"](gamma_min=1), top1(0.1, 0.9, 0.9)) == 1
    assert draft_block(POLICIES["cumulative"](gamma=1), top1(0.9, 0.9)) == 1
    assert draft_block(POLICIES["cumulative"](), top1(*[1.0] * 30)) == 20


def test_cumulative_starts_afresh_with_each_block():
    policy = POLICIES["cumulative"]()
    assert [draft_block(policy, top1(0.8, 0.7, 0.6, 0.8, 0.9)) for _ in range(3)] == [4, 4, 4]


def test_the_products_of_an_audit_stop_after_the_token_that_falls_under_them():
    """0.6 ** 3 = 0.216, 0.6 ** 4 = 0.1296, 0.6 ** 5 = 0.078, 0.6 ** 6 = 0.047; never more than seven."""
    assert draft_block(POLICIES["cumulative_loose"](), top1(*[0.6] * 9)) == 4
    assert draft_block(POLICIES["cumulative_loosest"](), top1(*[0.6] * 9)) == 6
    assert draft_block(POLICIES["cumulative_loose"](), top1(0.1, 0.9)) == 1
    assert draft_block(POLICIES["cumulative_loosest"](), top1(*[1.0] * 9)) == 7
