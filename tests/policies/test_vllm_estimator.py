"""vLLM's online estimate of acceptance against sums and Newton steps made by hand."""

from math import exp, log

import pytest
from made import signal

from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.records import Round, RoundPrices


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def ready(target: float = 10.0, step: float = 1.0, **fields):
    policy = POLICIES["vllm_estimator"](**fields)
    policy.take_prices(RoundPrices(tuple(target + step * k for k in range(40)), (0.0,) * 40))
    policy.begin(0)
    return policy


def seen(top1: float, second: float, index: int):
    found = signal(top1, index=index)
    found.margin = round(top1 - second, 4)
    return found


def play(policy, pairs: list[tuple[float, float]], accepted: int) -> int:
    """One round of a draft whose first and second choice are so likely. Returns how many it drafted."""
    planned = policy.plan()
    drafted = next((i + 1 for i, pair in enumerate(pairs[:planned]) if not policy.keep_drafting(seen(*pair, i))), len(pairs))
    drafted = min(drafted, planned)
    policy.observe(Round(planned, drafted, min(accepted, drafted), min(accepted, drafted) + 1, drafted, "length", 0))
    return drafted


def test_it_starts_with_no_slope_and_a_bias_of_one_and_a_half():
    policy = ready(gamma=2)
    policy.plan()
    policy.keep_drafting(seen(0.8, 0.1, 0))
    assert policy.block == [(pytest.approx(log(8)), pytest.approx(sigmoid(1.5)))]


@pytest.mark.parametrize(
    ("pair", "m"), [((0.8, 0.1), log(8)), ((0.5, 0.5), 0.0), ((1.0, 0.0), log(20_000)), ((0.0, 0.0), 0.0)]
)
def test_the_margin_is_that_of_logits_and_a_second_choice_is_at_least_half_a_decimal(pair, m):
    assert ready().read(seen(*pair, 0)) == pytest.approx(m)


@pytest.mark.parametrize(("top1", "m"), [(0.8, log(4)), (1.0, log(19_999)), (0.0, -log(19_999))])
def test_the_first_versions_feature_is_the_logit_of_the_largest_probability(top1, m):
    assert ready(feature="top1").read(seen(top1, 0.0, 0)) == pytest.approx(m)


def test_a_hundred_rounds_make_one_newton_step_of_each_place_that_has_fifty_samples():
    """Place 0 accepts the 60 rounds with margin log 8 and rejects the 40 with margin log 2; place 1 is reached 60 times and
    rejects all; place 2 never is.
    """
    policy = ready(gamma=3)
    for number in range(100):
        sure = number % 5 < 3
        play(policy, [(0.8, 0.1) if sure else (0.4, 0.2)] * 3, accepted=int(sure))
        assert policy.refits == (number == 99)
    p = sigmoid(1.5)
    for place, samples in enumerate(([(log(8), 1)] * 60 + [(log(2), 0)] * 40, [(log(8), 0)] * 60)):
        a = sum(p * (1 - p) * m * m for m, _ in samples) + 0.001
        b = sum(p * (1 - p) * m for m, _ in samples)
        c = sum(p * (1 - p) for _ in samples) + 0.001
        g0, g1 = sum((right - p) * m for m, right in samples), sum(right - p for _, right in samples)
        weight, bias = (c * g0 - b * g1) / (a * c - b * b), 1.5 + (a * g1 - b * g0) / (a * c - b * b)
        if weight < 0:
            weight, bias = 0.0, 1.5
        assert (policy.weight[place], policy.bias[place]) == (pytest.approx(weight), pytest.approx(bias))
    assert policy.weight[0] > 0.5 and policy.weight[1] == 0.0
    assert (policy.weight[2], policy.bias[2]) == (0.0, 1.5)
    assert policy.sums == [[0.0] * 6] * 3


@pytest.mark.parametrize(("reached", "moves"), [(49, False), (50, True)])
def test_a_place_with_fewer_than_fifty_samples_keeps_its_coefficients(reached, moves):
    policy = ready(gamma=2)
    for number in range(100):  # both outcomes, the sure ones accepted
        sure, there = number % 2 == 1, number < reached
        play(policy, [(0.8, 0.1), (0.8, 0.1) if sure else (0.4, 0.2)], accepted=1 + sure if there else 0)
    assert (policy.bias[1] != 1.5) == moves


def test_a_slope_that_would_be_negative_is_refused_with_its_bias():
    policy = ready(gamma=1)
    for number in range(100):
        sure = number % 2 == 1
        play(policy, [(0.8, 0.1) if sure else (0.4, 0.2)], accepted=int(not sure))
    assert (policy.weight, policy.bias, policy.refits) == ([0.0], [1.5], 1)


def test_whole_blocks_are_drafted_until_the_third_step():
    policy = ready(gamma=4, step=100.0)
    drafted = [play(policy, [(0.8, 0.1)] * 4, accepted=4) for _ in range(301)]
    assert drafted == [4] * 300 + [1]


def test_a_block_ends_where_the_next_token_no_longer_raises_the_expected_tokens_per_price():
    """p = 0.8 everywhere: 1.8 / 11 of one token, 2.44 / 12 of two, and so on."""
    for step in (0.5, 1.0, 2.0, 4.0):
        policy = ready(gamma=12, warmup_refits=0, step=step)
        policy.bias = [log(4)] * 12
        rates = [sum(0.8**i for i in range(k + 1)) / (10 + step * k) for k in range(1, 13)]
        expected = next((k for k in range(1, 12) if rates[k] <= rates[k - 1]), 12)
        assert play(policy, [(0.8, 0.1)] * 12, accepted=0) == expected


def test_the_margin_of_a_token_stands_for_that_of_the_next():
    """w = 1, b = 0: after margin log 4, p = 0.8 for it and for the next. 1.8 / 11 < 2.44 / 12. With margin 0,
    p = 0.5, and a token costs 3: 1.5 / 13 > 1.75 / 16.
    """
    for pair, going_on in (((0.8, 0.2), True), ((0.4, 0.4), False)):
        policy = ready(gamma=2, warmup_refits=0, target=10.0, step=1.0 if going_on else 3.0)
        policy.weight, policy.bias = [1.0] * 2, [0.0] * 2
        policy.plan()
        assert policy.keep_drafting(seen(*pair, 0)) == going_on


def test_prices_grow_with_the_context():
    policy = ready(gamma=2, warmup_refits=0)
    policy.take_prices(RoundPrices((10.0, 11.0, 12.0), (0.0, 0.0, 1.0)))
    for context, going_on in ((0, True), (500, False)):
        policy.begin(context)
        policy.plan()
        assert policy.keep_drafting(seen(0.8, 0.1, 0)) == going_on


def test_prices_of_shorter_blocks_than_gamma_are_refused():
    with pytest.raises(UserError, match="VLLMEstimator may draft 8 tokens, but the longest block with a price has 5"):
        POLICIES["vllm_estimator"]().take_prices(RoundPrices((1.0,) * 6, (0.0,) * 6))


def test_coefficients_of_any_size_give_a_chance():
    policy = ready(gamma=1)
    for bias, chance in ((1e6, 1.0), (-1e6, 0.0)):
        policy.bias = [bias]
        policy.plan()
        policy.keep_drafting(seen(0.8, 0.1, 0))
        assert policy.block[0][1] == chance
