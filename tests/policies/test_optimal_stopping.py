"""The rule by hand, by brute force where all chances are known, and live against replay where texts repeat themselves."""

from dataclasses import replace
from itertools import product
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import draft_block, signal
from replay.made_tables import draw_table, make_turn
from replay.recording import facts_of, record, run_live
from table_model import draw_prompt, table_engine

from gammatune.drafters.first_of import FirstOf
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.model import DraftModel
from gammatune.drafters.suffix import Suffix
from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.policies.session import PolicyError
from gammatune.records import Round, RoundPrices
from gammatune.replay.prices import Drafting, Price, PriceList, from_ratio, hand_prices
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable

FORMS = ("optimal_stopping", "optimal_stopping_no_memory", "optimal_stopping_blind")


def logit(p: float) -> float:
    return log(p / (1 - p))


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def flat(target: float, step: float = 1.0, most: int = 16) -> RoundPrices:
    return RoundPrices(tuple(target + step * k for k in range(most + 1)), (0.0,) * (most + 1))


def ready(name: str = "optimal_stopping", target: float = 10.0, step: float = 1.0, **fields):
    policy = POLICIES[name](**fields)
    policy.take_prices(flat(target, step))
    policy.begin(0)
    return policy


def play(policy, tokens: list[int], accepted: int, top1: float = 0.8, drafted: list[int] | None = None, caught_up=()) -> int:
    """One round that emits `tokens`; drafted: what the draft proposes, token by token. Returns how many it drafted."""
    drafted, asked = drafted or [], []
    planned = policy.plan()
    for index, token in enumerate(drafted[:planned]):
        shown = signal(top1, index=index)
        shown.token = token
        asked.append(token)
        if not policy.keep_drafting(shown):
            break
    policy.observe(
        Round(
            planned, len(asked), accepted, len(tokens), len(asked), "policy", policy.context,
            tokens=tuple(tokens), caught_up=caught_up,
        )
    )  # fmt: skip
    return len(asked)


def test_the_first_token_is_drafted_where_its_chance_is_worth_its_price():
    """a = 0.4, rate = 20 / (20 * 10) = 0.1 tokens per unit: 0.4 > 0.1 * 3.9, and not > 0.1 * 4.1."""
    assert ready(step=3.9).plan() == 16
    assert ready(step=4.1).plan() == 0


def test_a_block_goes_on_while_all_of_it_and_the_next_token_are_worth_the_price():
    """0.8 * 0.4 = 0.32 > 0.3; 0.8 * 0.8 * 0.4 = 0.256 is not."""
    policy = ready(step=3.0)
    assert policy.plan() == 16
    assert policy.keep_drafting(signal(0.8)) is True
    assert policy.keep_drafting(signal(0.8)) is False
    blind = ready("optimal_stopping_blind", step=1.0)  # 0.4, 0.16 > 0.1 and 0.064 is not
    assert blind.plan() == 16
    assert [blind.keep_drafting(signal(0.99)) for _ in range(2)] == [True, False]


def test_probabilities_are_clipped_before_their_logit():
    for top1, clipped in ((1.0, 0.995), (0.0, 0.005)):
        policy = ready(step=0.0001)
        policy.plan()
        policy.keep_drafting(signal(top1))
        assert policy.chance == pytest.approx(clipped)


def test_a_round_moves_both_intercepts_by_one_newton_step_each():
    policy = ready(step=0.1)
    play(policy, [5, 6], accepted=1, drafted=[5, 7, 8])
    a = b = 0.0
    precision = 4.0 + 0.4 * 0.6
    a = logit(0.4) + 0.6 / precision
    expected = sigmoid(a)
    precision += expected * (1 - expected)
    a -= expected / precision
    assert (policy.b_a, policy.precision_a) == (pytest.approx(a), pytest.approx(precision))
    precision = 4.0 + 0.8 * 0.2
    b = 0.2 / precision
    expected = sigmoid(logit(0.8) + b)
    precision += expected * (1 - expected)
    b -= expected / precision
    assert (policy.b_p, policy.precision_p) == (pytest.approx(b), pytest.approx(precision))


def test_the_rate_is_this_answers_own():
    """(20 + 3) / (20 * 10 + 12): two tokens drafted, both accepted, and one of the target's."""
    policy = ready(step=1.0, gamma=2)
    play(policy, [5, 6, 7], accepted=2, drafted=[5, 6])
    assert policy.rate() == pytest.approx(23 / 212)


def test_prices_grow_with_the_context():
    policy = POLICIES["optimal_stopping"](gamma=2)
    policy.take_prices(RoundPrices((10.0, 11.0, 12.0), (0.1, 0.3, 0.5)))
    policy.begin(100)
    assert policy.rate() == pytest.approx(1 / 20)
    play(policy, [5], accepted=0, drafted=[6])  # 0.4 > 0.05 * (1 + 0.2 * 100) does not hold: nothing is drafted
    assert policy.spent == pytest.approx(20.0) and policy.context == 101
    with pytest.raises(UserError, match="may draft 2 tokens, but the longest block with a price has 1: lower its gamma"):
        policy.take_prices(flat(10.0, most=1))


def test_the_memory_of_two_and_four_ids_is_half_of_the_way_to_what_happened():
    policy = ready(target=1000.0)
    play(policy, [1, 2, 3, 4, 9], accepted=0)  # nothing drafted: ids only
    play(policy, [5, 1], accepted=1, drafted=[5])  # after 3 4 9 and 2 3 4 9: right
    assert (policy.after_two[4, 9], policy.after_four[2, 3, 4, 9]) == (0.5, 0.5)
    policy.ids[-4:] = [2, 3, 4, 9]
    policy.plan()
    assert policy.known == pytest.approx(1.0 * 0.5 + 1.5 * 0.5)
    policy.ids[-4:] = [8, 3, 4, 9]
    policy.plan()
    assert policy.known == pytest.approx(1.0 * 0.5)
    policy.remember(len(policy.ids), False)
    assert policy.after_two[4, 9] == pytest.approx(0.5 + 0.5 * (-1 - 0.5))


def test_drafted_ids_are_part_of_the_context():
    policy = ready(target=1000.0)
    play(policy, [1, 2, 3, 4], accepted=0)
    policy.after_two[4, 7], policy.after_two[7, 8] = 1.0, -1.0
    policy.plan()
    shown = signal(0.8)
    for token, known in ((7, 1.0), (8, -1.0), (5, 0.0)):
        shown.token = token
        policy.keep_drafting(shown)
        assert policy.known == pytest.approx(known)


def test_the_memory_moves_the_chances_and_nothing_else():
    policy = ready(target=1000.0)
    play(policy, [1, 2, 3, 4], accepted=0)
    policy.after_two[3, 4] = 1.0
    policy.plan()
    policy.keep_drafting(signal(0.8))
    assert policy.chance == pytest.approx(sigmoid(logit(0.8) + 1.0))


def test_tokens_that_the_draft_reads_late_teach_the_memory_alone():
    policy = ready(step=1000.0)
    for token in (1, 2, 3):
        assert play(policy, [token], accepted=0) == 0
    before = policy.b_a, policy.b_p, policy.precision_a
    play(policy, [4], accepted=0, caught_up=(True, False))  # of ids 2 and 3; only 3 has two ids before it
    assert policy.after_two == {(1, 2): -0.5} and not policy.after_four
    assert (policy.b_a, policy.b_p, policy.precision_a) == before


def test_after_sixteen_rounds_without_drafting_a_token_is_tried():
    policy = ready(step=1000.0)
    for _ in range(16):
        assert play(policy, [5], accepted=0, drafted=[6]) == 0
    assert play(policy, [5], accepted=0, drafted=[6, 6]) == 1
    assert policy.plan() == 0
    never = ready(step=1000.0, gamma=0)
    assert [play(never, [5], accepted=0) for _ in range(40)] == [0] * 40


def test_an_answer_goes_on_from_the_intercepts_and_the_rate_and_forgets_the_rest():
    policy = ready(step=1.0, carry="never")
    play(policy, [1, 2, 3], accepted=2, drafted=[1, 2, 9])
    a, b, rate = policy.b_a, policy.b_p, policy.rate()
    policy.begin(50)
    assert (policy.b_a, policy.b_p, policy.rate()) == (a, b, pytest.approx(rate))
    assert policy.precision_a == policy.precision_p == 4.0
    assert not (policy.ids or policy.after_two or policy.after_four) and policy.context == 50
    policy.reset()
    policy.begin(50)
    assert (policy.b_a, policy.b_p, policy.rate()) == (pytest.approx(logit(0.4)), 0.0, pytest.approx(0.1))


def test_the_longest_block_is_sixteen():
    policy = ready(step=0.0)
    assert draft_block(policy, [signal(0.99, index=index) for index in range(30)]) == 16


def marginal_prices(chance: st.DataObject) -> list[float]:
    """Prices of each further draft token that do not fall, as draft steps and verification have them."""
    return sorted(chance.draw(st.lists(st.floats(0.01, 6.0), min_size=8, max_size=8)))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), acceptance=st.floats(0.02, 0.98), target=st.floats(1.0, 30.0))
def test_where_one_chance_holds_for_all_tokens_no_block_length_is_faster(data, acceptance, target):
    """Blind, with the chance and the best rate known: the block that it drafts has the highest rate of all lengths.

    Whatever the prices are: a token may cost much less than the one before, where a kernel serves several.
    """
    extra = data.draw(st.lists(st.floats(0.01, 6.0), min_size=8, max_size=8))
    prices = [target + sum(extra[:k]) for k in range(9)]
    rates = [sum(acceptance**i for i in range(k + 1)) / prices[k] for k in range(9)]
    policy = POLICIES["optimal_stopping_blind"](gamma=8, memory=False)
    policy.take_prices(RoundPrices(tuple(prices), (0.0,) * 9))
    policy.begin(0)
    policy.b_a, policy.pace = logit(acceptance), 1 / max(rates)
    drafted = draft_block(policy, [signal(index=index) for index in range(8)])
    assert rates[drafted] == pytest.approx(max(rates), rel=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    data=st.data(), low=st.floats(0.01, 0.6), high=st.floats(0.6, 0.99), rate=st.floats(0.01, 0.5), seen=st.integers(0, 255)
)
def test_where_signals_tell_the_chances_of_drafted_tokens_the_decision_is_that_of_dynamic_programming(
    data, low, high, rate, seen
):
    """Each token's chance is low or high, as likely, and known once it is drafted: all futures are enumerated."""
    low, high = round(low, 4), round(high, 4)
    extra, mean = [rate * price for price in marginal_prices(data)], (low + high) / 2

    def value(drafted: int, chance: float) -> float:
        """Of going on optimally, over stopping, in tokens."""
        if drafted == 8:
            return 0.0
        going_on = (value(drafted + 1, chance * low) + value(drafted + 1, chance * high)) / 2
        return max(0.0, chance * mean - extra[drafted] + going_on)

    prices = [1 / rate + sum(extra[:k]) / rate for k in range(9)]
    policy = POLICIES["optimal_stopping_no_memory"](gamma=8)
    policy.take_prices(RoundPrices(tuple(prices), (0.0,) * 9))
    policy.begin(0)
    policy.b_a, policy.pace = logit(mean), 1 / rate
    chance, going_on = 1.0, policy.plan() > 0
    for drafted in range(8):
        if abs(chance * mean - extra[drafted]) > 1e-9:
            assert going_on == (value(drafted, chance) > 1e-12)
        if not going_on:
            break
        top1 = high if seen >> drafted & 1 else low
        going_on = policy.keep_drafting(signal(top1, index=drafted))
        chance *= min(max(top1, 0.005), 0.995)


ENGINES = {
    "repeating": lambda: table_engine(agreement=0.8, memory=2, ends=()),
    "bad draft": lambda: table_engine(agreement=0.2, memory=2, ends=()),
    "ending": lambda: table_engine(agreement=0.6, memory=3, vocab_size=20, ends=(9,)),
    "lookup": lambda: table_engine(Lookup(), memory=2, vocab_size=12, ends=(9,)),
    "suffix, then model": lambda: table_engine(FirstOf([Suffix(max_tree_depth=3), DraftModel()]), memory=3, ends=()),
}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """kind -> (engine, prompts, table read back from its file)."""
    path = tmp_path_factory.mktemp("stopping") / "acceptance.parquet"
    made = {}
    for kind, build in ENGINES.items():
        engine = build()
        prompts = [draw_prompt(seed, 3 + seed, engine.pair.vocab_size) for seed in range(6)]
        made[kind] = engine, prompts, record(engine, prompts, 60, 24, path)
    return made


@pytest.mark.parametrize("carry", ["turn", "question", "never"])
@pytest.mark.parametrize("name", FORMS)
def test_it_replays_as_it_ran(recorded, name, carry):
    """Also where it skips, after wrong tokens whose ids stand in the table, and with dropped tokens."""
    prices, drafted = {"dear": from_ratio(1.5), "cheap": from_ratio(30.0)}, set()
    for (kind, (engine, prompts, table)), (price, curve), stop in product(
        recorded.items(), prices.items(), ("include", "exclude")
    ):
        if kind == "lookup" and "blind" not in name:
            continue
        live, replayed = (POLICIES[name](carry=carry, stop_token=stop) for _ in range(2))
        for policy in (live, replayed):
            hand_prices(policy, curve, table.forwards_per_token)
        logs = run_live(engine, prompts, live, 60)
        assert facts_of(logs) == facts_of(replay(prepare(table), replayed, keep_rounds=True).logs)
        assert live.state() == replayed.state()
        if live.memory:
            assert (live.after_two, live.after_four, live.ids) == (replayed.after_two, replayed.after_four, replayed.ids)
            assert live.after_four or kind in ("ending", "lookup")
        drafted |= {(price, min(r.drafted, 2)) for rounds in logs for r in rounds}
    assert drafted >= {("dear", 0), ("dear", 1), ("cheap", 1), ("cheap", 2)}


def test_memory_and_late_tokens_change_what_is_drafted(recorded):
    """What the equality above would not notice: both sides without them."""
    _, _, table = recorded["repeating"]
    turns, rounds = prepare(table), {}
    for name in FORMS:
        policy = POLICIES[name]()
        hand_prices(policy, from_ratio(2.0))
        rounds[name] = replay(turns, policy).drafted.tolist()
    assert len({tuple(drafted) for drafted in rounds.values()}) == 3
    seen = []

    class Noting(POLICIES["optimal_stopping"].rule):
        def observe(self, finished):
            seen.append(len(finished.caught_up))
            super().observe(finished)

    policy = Noting()
    hand_prices(policy, from_ratio(2.0))
    replay(turns, policy)
    assert max(seen) > 1 and 1 in seen


def test_wrong_ids_are_those_of_the_live_run_and_unknown_in_older_tables(recorded):
    _, _, table = recorded["repeating"]

    class Noting(POLICIES["fixed"].rule):
        watches_tokens = True

        def keep_drafting(self, shown):
            seen.append(shown.token)
            return True

    for ids in ("recorded", "not recorded"):
        for turn in table.turns:
            seen: list[int] = []
            trace = turn.trace if ids == "recorded" else replace(turn.trace, ids=None)
            done = replay(prepare(AcceptanceTable([replace(turn, trace=trace)])), Noting(gamma=4))
            place = 0
            for context, drafted, accepted in zip(done.context, done.drafted, done.accepted, strict=True):
                start, block = context - turn.prompt_tokens, seen[place : place + drafted]
                place += drafted
                assert block[:accepted] == turn.output_ids[start : start + accepted].tolist()
                after = block[accepted:]
                if ids == "recorded":
                    assert all(token >= 0 for token in after) and turn.output_ids[start + accepted] not in after[:1]
                else:
                    assert after == [-1] * len(after)
            assert place == len(seen) > 0


def test_a_table_without_ids_is_refused_for_the_forms_that_read_them():
    plain = make_turn("1101", watched=False)
    plain.output_ids = np.zeros(0, np.int32)
    turns = prepare(AcceptanceTable([plain]))
    with pytest.raises(UserError, match="reads the text, but this table has no ids"):
        replay(turns, POLICIES["optimal_stopping_blind"]())
    assert replay(turns, POLICIES["optimal_stopping_blind"](memory=False)).rounds > 0


def test_a_bench_tells_its_prices():
    """Where drafting costs as much as a target step nothing is drafted; where it is free, all that there is."""
    table = draw_table(3)
    for curve, drafts in ((from_ratio(0.9), False), (from_ratio(1e6), True)):
        done = build_bench(table, curve).replay(POLICIES["optimal_stopping_no_memory"]())
        assert (done.drafted.mean() > 1) == drafts


def test_prices_by_drafted_tokens():
    verify = [Price(10.0, 0.1), Price(11.0, 0.1), Price(12.0, 0.1)]
    blind, watched = Drafting(Price(1.0, 0.01), start=Price(0.5)), Drafting(Price(2.0, 0.02), start=Price(0.25))
    curve = PriceList(blind, watched, verify, rest=Price(0.125, 0.001))
    told = curve.by_drafted(watched=False)
    assert told.bases[:3] == pytest.approx((10.125, 11.125 + 1.5, 12.125 + 2.5))
    assert told.slopes[:3] == pytest.approx((0.101, 0.111, 0.121))
    assert curve.by_drafted(watched=True).bases[:2] == pytest.approx((10.125, 11.125 + 2.25))
    assert curve.by_drafted(watched=False, forwards_per_token=0).bases[:3] == pytest.approx((10.125, 11.125, 12.125))
    assert len(told.bases) == 129 and told.bases[128] == pytest.approx(10.125 + 128 + 128.5)


def test_what_a_policy_does_wrong_with_prices_is_its_own_error():
    class Poor(POLICIES["fixed"].rule):
        needs_prices = True

        def take_prices(self, prices):
            raise ZeroDivisionError

    with pytest.raises(PolicyError, match=r"^Policy Poor: take_prices\(\) raised ZeroDivisionError.$"):
        hand_prices(Poor(), from_ratio(3.0))
