"""Prices: by hand on a few rounds, their properties on many, and the file that holds them."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.made_tables import make_turn

from gammatune.errors import UserError
from gammatune.files import write_json
from gammatune.replay.prices import (
    FREE,
    PARTS,
    Drafting,
    Price,
    PriceList,
    count_fed,
    from_ratio,
    price,
    prices_to_json,
    read_prices,
)
from gammatune.replay.simulate import Replay, prepare
from gammatune.replay.table import AcceptanceTable

CURVE = PriceList(
    blind=Drafting(step=Price(2.0, 0.1), start=Price(0.5), catch_up=Price(0.25)),
    watched=Drafting(step=Price(3.0, 0.1)),
    verify=[Price(10.0, 0.01), Price(11.0, 0.02), Price(13.0, 0.03), Price(16.0, 0.04)],
    rest=Price(0.125, 0.001),
    prefill_target=Price(5.0, 0.5),
    prefill_both=Price(6.0, 0.75),
)


def make_replay(turns: list[list[tuple]]) -> Replay:
    """turns: one list of (context, drafted, accepted, forwards) per turn."""
    columns = np.array([row for turn in turns for row in turn], dtype=np.int64).T
    return Replay(*columns, turn_ends=np.cumsum([len(turn) for turn in turns]))


@st.composite
def turns_of_rounds(draw):
    turns = []
    for _ in range(draw(st.integers(1, 4))):
        rounds, context = [], draw(st.integers(1, 50))
        for _ in range(draw(st.integers(1, 6))):
            drafted = draw(st.integers(0, 9))
            accepted = draw(st.integers(0, drafted))
            rounds.append((context, drafted, accepted, drafted + draw(st.integers(0, 1))))
            context += accepted + 1
        turns.append(rounds)
    return turns


def test_two_turns_cost_what_a_hand_computes():
    replay = make_replay([[(10, 2, 2, 2), (13, 1, 0, 1), (14, 3, 1, 3)], [(20, 0, 0, 0)]])
    first = (
        (2 * (2.0 + 1.0) + 0.5) + (13.0 + 0.3) + (0.125 + 0.010)  # nothing before it
        + (1 * (2.0 + 1.3) + 0.5 + 0.25) + (11.0 + 0.26) + (0.125 + 0.013)  # after a full acceptance
        + (3 * (2.0 + 1.4) + 0.5) + (16.0 + 0.56) + (0.125 + 0.014)  # after a rejection
        + (6.0 + 0.75 * 10)
    )  # fmt: skip
    second = (10.0 + 0.2) + (0.125 + 0.020) + (6.0 + 0.75 * 20)
    assert price(replay, [10, 20], CURVE, watched=False) == pytest.approx([first, second])


def test_watched_drafting_has_its_own_price():
    replay = make_replay([[(10, 2, 0, 3)]])
    expected = 3 * (3.0 + 1.0) + (13.0 + 0.3) + (0.125 + 0.010) + (6.0 + 7.5)
    assert price(replay, [10], CURVE, watched=True) == pytest.approx([expected])


def test_a_token_that_the_policy_dropped_leaves_nothing_to_catch_up():
    kept, dropped = make_replay([[(10, 2, 2, 2), (13, 1, 0, 1)]]), make_replay([[(10, 2, 2, 3), (13, 1, 0, 1)]])
    difference = price(dropped, [10], CURVE, watched=False) - price(kept, [10], CURVE, watched=False)
    assert difference == pytest.approx([2.0 + 1.0 - 0.25])


def test_a_full_acceptance_at_the_end_of_a_turn_does_not_reach_the_next():
    apart = price(make_replay([[(9, 1, 0, 1)]]), [9], CURVE, watched=False)
    both = price(make_replay([[(5, 1, 1, 1)], [(9, 1, 0, 1)]]), [5, 9], CURVE, watched=False)
    assert both[1] == pytest.approx(apart[0])


def test_a_draft_model_reads_what_other_drafters_committed():
    """Tokens fed by hand: cache and text before each round. Rounds without forwards are another drafter's or nobody's."""
    rounds = [(10, 3, 3, 0), (14, 2, 2, 2), (17, 2, 1, 2), (19, 4, 2, 0), (22, 0, 0, 0), (23, 1, 0, 1), (24, 2, 0, 2)]
    # 9 of 10 tokens cached, then 4 more committed: 5; all of 14 and one of two drafted, of 17: 2; up to 18, of 23: 5
    assert count_fed(make_replay([rounds])).tolist() == [0, 5, 2, 0, 0, 5, 1]
    assert count_fed(make_replay([rounds, rounds])).tolist() == [0, 5, 2, 0, 0, 5, 1] * 2
    assert count_fed(make_replay([[(10, 4, 2, 0), (13, 0, 0, 0)]])).tolist() == [0, 0]
    # a feature draft keeps nothing of a block: after the one from 14 on, it reads 14 to 17, and after that from 17 to 23
    assert count_fed(make_replay([rounds, rounds]), rereads=True).tolist() == [0, 5, 3, 0, 0, 6, 1] * 2


def test_its_next_block_pays_for_that_once():
    late = make_replay([[(10, 3, 3, 0), (14, 1, 0, 1)]])
    expected = (16.0 + 0.4) + (0.125 + 0.010) + (2.0 + 1.4 + 0.5 + 0.25) + (11.0 + 0.28) + (0.125 + 0.014) + (6.0 + 7.5)
    assert price(late, [10], CURVE, watched=False) == pytest.approx([expected])


def test_the_target_alone_reads_the_prompt_alone():
    replay = make_replay([[(10, 0, 0, 0), (11, 0, 0, 0)]])
    rounds = (10.0 + 0.10) + (10.0 + 0.11) + (0.125 + 0.010) + (0.125 + 0.011)
    assert price(replay, [10], CURVE, watched=False) == pytest.approx([rounds + 5.0 + 5.0])
    assert price(replay, [10], CURVE, watched=False, drafts=True) == pytest.approx([rounds + 6.0 + 7.5])


def test_prepared_turns_say_how_long_their_prompts_are():
    turns = prepare(AcceptanceTable([make_turn("1", prompt_tokens=10)]))
    replay = make_replay([[(10, 0, 0, 0)]])
    assert price(replay, turns, CURVE, watched=False) == pytest.approx(price(replay, [10], CURVE, watched=False))


def test_blocks_beyond_the_last_measured_one_go_on_along_a_line():
    curve = replace(CURVE, verify=[Price(4.0 + 3.0 * k, 0.5 * k) for k in range(1, 6)])
    assert curve.verify_price(5) == Price(19.0, 2.5)
    assert curve.verify_price(9).at(2.0) == pytest.approx(4.0 + 27.0 + 9.0)
    replay = make_replay([[(2, 8, 0, 8)]])
    expected = 8 * 2.2 + 0.5 + 40.0 + 0.127 + 6.0 + 1.5
    assert price(replay, [2], curve, watched=False) == pytest.approx([expected])


def test_prices_that_fall_do_not_fall_below_nothing():
    assert replace(CURVE, verify=[Price(10.0), Price(6.0), Price(2.0)]).verify_price(9) == Price(0.0)


def test_only_the_last_eight_blocks_show_the_way_on():
    curve = replace(CURVE, verify=[Price(100.0), *(Price(10.0 + k) for k in range(8))])
    assert curve.verify_price(12).base == pytest.approx(20.0)


@settings(max_examples=40, deadline=None)
@given(turns_of_rounds())
def test_the_price_of_turns_is_the_price_of_each(turns):
    prompts = [turn[0][0] for turn in turns]
    together = price(make_replay(turns), prompts, CURVE, watched=False, drafts=True)
    alone = [price(make_replay([t]), [p], CURVE, watched=False, drafts=True)[0] for t, p in zip(turns, prompts, strict=True)]
    assert together == pytest.approx(alone)


@settings(max_examples=40, deadline=None)
@given(turns_of_rounds(), st.floats(0.5, 50))
def test_under_a_ratio_a_turn_costs_its_draft_steps_and_c_per_round(turns, c):
    steps, rounds = [sum(row[3] for row in turn) for turn in turns], [len(turn) for turn in turns]
    found = price(make_replay(turns), [t[0][0] for t in turns], from_ratio(c), watched=True)
    assert found == pytest.approx(np.array(steps) + c * np.array(rounds))


@pytest.mark.parametrize("c", (0, -1.0, float("nan"), float("inf")))
def test_a_ratio_that_is_none_is_refused(c):
    with pytest.raises(UserError, match="above 0"):
        from_ratio(c)


def test_the_ratio_of_a_curve_is_that_of_one_target_and_one_draft_step():
    assert CURVE.ratio(100) == pytest.approx(11.0 / 12.0)
    assert from_ratio(7).ratio(1000) == 7


@pytest.mark.filterwarnings("error")
def test_the_ratio_is_infinite_where_drafting_takes_no_forwards():
    lookup = replace(CURVE, blind=Drafting(FREE), watched=Drafting(FREE))
    assert lookup.ratio(100) == np.inf and lookup.ratio(np.array([1, 2])).tolist() == [np.inf, np.inf]


def test_a_file_gives_back_the_curve(tmp_path):
    path = tmp_path / "prices.json"
    write_json(path, prices_to_json(replace(CURVE, facts={"pair": "mine"})))
    assert read_prices(path) == replace(CURVE, facts={"pair": "mine"})


def test_a_changed_file_is_refused_and_one_of_the_first_schema_has_no_checksum(tmp_path):
    path = tmp_path / "prices.json"
    write_json(path, prices_to_json(CURVE))
    changed = path.read_text().replace("11.0", "12.0", 1)
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(
        UserError, match=r"prices\.json is damaged or was changed .its checksum does not fit.*gammatune prices"
    ):
        read_prices(path)
    path.write_text(json.dumps(prices_to_json(CURVE) | {"schema": 1}))
    assert read_prices(path) == CURVE


def change_price(content, **values):
    content["prices"]["rest"] |= values


DAMAGES = {
    "no prices": lambda content: content.pop("prices"),
    "no schema": lambda content: content.pop("schema"),
    "no blocks": lambda content: content["prices"]["verify"].clear(),
    "text for a number": lambda content: change_price(content, base="much"),
    "no number": lambda content: change_price(content, base=float("nan")),
    "an unknown field": lambda content: change_price(content, colour=3.0),
    "no drafting": lambda content: content["prices"].update(watched=None),
    "a list for the blocks' prices": lambda content: content["prices"].update(verify=[1.0, 2.0]),
    "a negative price": lambda content: change_price(content, base=-0.1),
    "a price that falls with the context": lambda content: change_price(content, slope=-1e-9),
    "quartiles the wrong way round": lambda content: change_price(content, low=2.0, high=1.0),
    "a price of a year": lambda content: change_price(content, base=3e10),
    "true for a number": lambda content: change_price(content, base=True),
    "a negative number of samples": lambda content: change_price(content, samples=-1),
    "half a sample": lambda content: change_price(content, samples=0.5),
    "a target that costs nothing": lambda content: content["prices"]["verify"][0].update(base=0.0, slope=0.0),
    "provenance that is text": lambda content: content.update(provenance="here"),
    **{f"no {part}": lambda content, part=part: content["prices"].pop(part) for part in PARTS},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    content = prices_to_json(CURVE)
    content = json.loads(json.dumps(content))
    DAMAGES[damage](content)
    path = tmp_path / "prices.json"
    path.write_text(json.dumps(content | {"schema": 1} if "schema" in content else content))
    with pytest.raises(UserError, match=r"prices\.json .*damaged.*gammatune prices"):
        read_prices(path)


@pytest.mark.parametrize("text", ("", "{", "[]", "3", "null", "\x00\xff"))
def test_what_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "prices.json"
    path.write_text(text)
    with pytest.raises(UserError, match="damaged"):
        read_prices(path)


def test_a_missing_and_a_newer_file_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file.*gammatune prices"):
        read_prices(tmp_path / "none.json")
    path = tmp_path / "new.json"
    path.write_text(json.dumps(prices_to_json(CURVE) | {"schema": 3}))
    with pytest.raises(UserError, match="newer gammatune"):
        read_prices(path)


def test_a_draft_of_another_price_changes_the_drafts_part_alone():
    twice = CURVE.with_draft_price(2.0)
    for drafting, doubled in ((CURVE.blind, twice.blind), (CURVE.watched, twice.watched)):
        for name in ("step", "start", "catch_up"):
            one, two = getattr(drafting, name), getattr(doubled, name)
            assert (two.base, two.slope) == (2 * one.base, 2 * one.slope)
    assert (twice.verify, twice.rest, twice.prefill_target) == (CURVE.verify, CURVE.rest, CURVE.prefill_target)
    alone, both, doubled = CURVE.prefill_target, CURVE.prefill_both, twice.prefill_both
    assert doubled.base == pytest.approx(alone.base + 2 * (both.base - alone.base))
    assert doubled.slope == pytest.approx(alone.slope + 2 * (both.slope - alone.slope))
    assert CURVE.with_draft_price(1.0) == CURVE
    assert from_ratio(9).with_draft_price(0.5).ratio() == 18.0
