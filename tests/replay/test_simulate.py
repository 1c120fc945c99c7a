"""Replay by hand on tables made by hand, and what must hold for every policy on any table."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.made_tables import LENGTH_ONLY, contents, draw_starts_table, draw_table, make_signals, make_starts, make_turn
from scripted import scripted_policies
from shipped import POLICIES, make_policy

from gammatune.errors import UserError
from gammatune.policies import Policy
from gammatune.policies.base import settings_of
from gammatune.policies.fixed import Fixed
from gammatune.replay.prices import CostCurve, Drafting, Price, from_ratio, price
from gammatune.replay.simulate import fill_unknown, prepare, replay
from gammatune.replay.table import AcceptanceTable

SEEDS = st.integers(0, 100_000)


@dataclass
class StopAt(Policy):
    """Plans gamma tokens and stops at the first token of a top-1 probability under tau; remembers what it saw."""

    watches_draft = True
    gamma: int = 9
    tau: float = 0.5

    def reset(self) -> None:
        self.seen = []

    def plan(self) -> int:
        return self.gamma

    def keep_drafting(self, signal) -> bool:
        self.seen.append((signal.index, signal.top1, signal.chosen, signal.entropy, signal.margin))
        return signal.top1 >= self.tau


def rounds_of(turn, policy) -> list[tuple]:
    """(context, planned, drafted, accepted, emitted, forwards, stop) of one turn's rounds."""
    logs = replay(prepare(AcceptanceTable([turn])), policy, keep_rounds=True).logs
    return [(r.context, r.planned, r.drafted, r.accepted, r.emitted, r.forwards, r.stop) for r in logs[0]]


def make_watched(matches: str, top1: list[float], after: list[float], continuations: list[tuple[int, bool]], **fields):
    """top1: along the answer; after: along the continuations."""
    turn = make_turn(matches, continuations, **fields)
    turn.trace.signals.top1[:], turn.trace.continuations.top1[:] = top1, after
    return turn


def test_a_fixed_gamma_by_hand():
    """11 0 | 1 0 | 11 1 | 1, the last one where the budget leaves no room for a draft token."""
    assert rounds_of(make_turn("110101111"), Fixed(gamma=2)) == [
        (10, 2, 2, 2, 3, 2, "length"),
        (13, 2, 2, 1, 2, 2, "length"),
        (15, 2, 2, 2, 3, 2, "length"),
        (18, 2, 0, 0, 1, 0, "budget"),
    ]


def test_the_target_alone_by_hand():
    assert rounds_of(make_turn("01", finish="eos", budget=9), make_policy("ar")) == [
        (10, 0, 0, 0, 1, 0, "length"),
        (11, 0, 0, 0, 1, 0, "length"),
    ]


def test_an_accepted_end_of_sequence_leaves_no_bonus():
    assert rounds_of(make_turn("011", finish="eos", budget=30), Fixed(gamma=4)) == [
        (10, 4, 4, 0, 1, 4, "length"),
        (11, 4, 2, 2, 2, 2, "eos"),
    ]


def test_an_end_of_sequence_from_the_target_is_an_ordinary_token():
    assert rounds_of(make_turn("110", finish="eos", budget=30), Fixed(gamma=2)) == [(10, 2, 2, 2, 3, 2, "length")]


@pytest.mark.parametrize(
    ("gamma", "continuation", "expected"),
    [
        (5, (2, True), (5, 4, 1, 2, 4, "eos")),  # right, wrong, two more, the second of which ends the sequence
        (4, (2, True), (4, 4, 1, 2, 4, "eos")),  # the same where that was the last planned token
        (3, (2, True), (3, 3, 1, 2, 3, "length")),
        (5, (0, True), (5, 2, 1, 2, 2, "eos")),  # the wrong token itself ends the sequence
        (5, (2, False), (5, 5, 1, 2, 5, "length")),
    ],
)
def test_a_draft_that_wrongly_ends_the_sequence_is_cut_there(gamma, continuation, expected):
    turn = make_turn("1011111111", [continuation])
    assert rounds_of(turn, Fixed(gamma=gamma))[0] == (10, *expected)


def test_the_budget_cuts_a_block_and_the_last_token_is_never_drafted():
    assert rounds_of(make_turn("1111"), Fixed(gamma=8)) == [(10, 8, 3, 3, 4, 3, "budget")]
    assert rounds_of(make_turn("1111"), Fixed(gamma=3)) == [(10, 3, 3, 3, 4, 3, "length")]


@pytest.mark.parametrize(
    ("stop_token", "expected"),
    [("include", (9, 3, 3, 4, 3, "policy")), ("exclude", (9, 2, 2, 3, 3, "policy"))],
)
def test_a_stop_inside_the_matches(stop_token, expected):
    turn = make_watched("1111111", [0.9, 0.9, 0.1, 0.9, 0.9, 0.9, 0.9], [], [])
    assert rounds_of(turn, StopAt(stop_token=stop_token))[0] == (10, *expected)


@pytest.mark.parametrize(
    ("stop_token", "expected"),
    [("include", (9, 4, 1, 2, 4, "policy")), ("exclude", (9, 3, 1, 2, 4, "policy"))],
)
def test_a_stop_after_a_wrong_token(stop_token, expected):
    """Matches, the wrong token, a sure step, a doubtful one."""
    turn = make_watched("10" + "1" * 12, [0.9] * 14, [0.8, 0.2, 0.9], [(3, False)])
    assert rounds_of(turn, StopAt(stop_token=stop_token))[0] == (10, *expected)


@pytest.mark.parametrize(("stop_token", "expected"), [("include", (3, 3, "length")), ("exclude", (2, 3, "policy"))])
def test_a_stop_at_the_last_planned_token(stop_token, expected):
    """Verified, it is a full block like any other."""
    turn = make_watched("111111", [0.9, 0.9, 0.1, 0.9, 0.9, 0.9], [], [])
    first = rounds_of(turn, StopAt(gamma=3, stop_token=stop_token))[0]
    assert (first[2], first[5], first[6]) == expected


def test_a_policy_sees_the_answer_then_the_right_continuation():
    """The second mismatch's continuation is stored after the first one's."""
    turn = make_turn("1010111", [(2, False), (3, False)])
    policy = StopAt(gamma=4, tau=0.0)
    replay(prepare(AcceptanceTable([turn])), policy)
    on_answer, after = turn.trace.signals, turn.trace.continuations
    expected = [
        (0, on_answer, 0), (1, on_answer, 1), (2, after, 0), (3, after, 1),
        (0, on_answer, 2), (1, on_answer, 3), (2, after, 2), (3, after, 3),
        (0, on_answer, 4), (1, on_answer, 5),
    ]  # fmt: skip
    seen = [(index, s.top1[at], s.top1[at], s.entropy[at], s.margin[at]) for index, s, at in expected]
    assert policy.seen == seen


def test_a_block_that_leaves_the_table_goes_on_to_its_plan_and_is_counted():
    turn = make_watched("0" + "1" * 11, [0.9] * 12, [0.9], [(1, False)])
    done = replay(prepare(AcceptanceTable([turn])), StopAt(gamma=5))
    assert (done.beyond, done.drafted[0], done.accepted[0]) == (1, 5, 0)


@pytest.mark.parametrize(("carry", "resets"), [("turn", 5), ("question", 3), ("never", 1)])
def test_a_policy_forgets_where_its_carry_says(carry, resets):
    """Two questions of two turns; one reset more before the first turn."""

    class Counting(Fixed):
        count = 0

        def reset(self) -> None:
            self.count += 1

    policy = Counting(gamma=1, carry=carry)
    policy.count = 0
    replay(prepare(draw_table(3, questions=2)), policy)
    assert policy.count == resets


def test_columns_are_the_rounds():
    done = replay(prepare(draw_table(4)), make_policy("gammatune"), keep_rounds=True)
    rounds = [r for log in done.logs for r in log]
    assert done.rounds == len(rounds) == done.turn_ends[-1]
    assert done.turn_ends.tolist() == np.cumsum([len(log) for log in done.logs]).tolist()
    for name, column in (("context", done.context), ("drafted", done.drafted), ("accepted", done.accepted)):
        assert column.tolist() == [getattr(r, name) for r in rounds]
    assert done.sum_by_turn(done.drafted).tolist() == [sum(r.drafted for r in log) for log in done.logs]


@settings(max_examples=150, deadline=None)
@given(seed=SEEDS, draw=st.sampled_from([draw_table, draw_starts_table]), policy=scripted_policies())
def test_every_policy_emits_exactly_the_answer(seed, draw, policy):
    table = draw(seed)
    done = replay(prepare(table), policy, keep_rounds=True)
    assert done.beyond == 0
    for turn, log in zip(table.turns, done.logs, strict=True):
        assert sum(r.emitted for r in log) == turn.tokens
        assert [r.context - turn.prompt_tokens for r in log] == np.cumsum([0, *(r.emitted for r in log[:-1])]).tolist()
        for r in log:
            assert 0 <= r.accepted <= r.drafted <= r.planned
            assert r.drafted <= r.forwards <= r.planned or r.forwards == 0
            assert r.drafted < turn.budget - (r.context - turn.prompt_tokens)
            assert r.accepted <= r.emitted <= r.accepted + 1


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_the_oracle_is_never_rejected_and_needs_the_fewest_rounds(seed):
    """The fewest where what is proposed depends on the text alone; elsewhere a shorter block may lead to a better start."""
    done = replay(prepare(draw_starts_table(seed)), make_policy("oracle"))
    assert (done.accepted == done.drafted).all()
    turns = prepare(draw_table(seed))
    done = replay(turns, make_policy("oracle"))
    assert (done.accepted == done.drafted).all()
    others = [replay(turns, make_policy(name)).rounds for name in POLICIES]
    assert done.rounds == min(others)


def test_the_oracle_leaves_the_last_token_to_the_target():
    """It comes with the forward that verifies the token before it, so drafting it would be a step for nothing."""
    assert rounds_of(make_turn("111", finish="eos", budget=30), make_policy("oracle")) == [(10, 2, 2, 2, 3, 2, "length")]


def affine(base: float, per_token: float, draft: float) -> CostCurve:
    """T_target(k) = base + per_token * k; longer blocks than these go on along the line."""
    step = Drafting(Price(draft))
    return CostCurve(step, step, [Price(base + per_token * k) for k in range(1, 4)])


@st.composite
def affine_costs(draw):
    """Where a draft step is cheaper than what a forward costs before its first token."""
    base = draw(st.floats(0.5, 30))
    return affine(base, draw(st.floats(0, 3)), base * draw(st.floats(0.01, 0.99)))


def cheapest(turn, curve: CostCurve) -> float:
    """The least that any choice of draft lengths can cost, told everything: from every position, every length."""
    step, matches = curve.blind.step.base, turn.starts.matches
    rest = [0.0] * (turn.tokens + 1)
    for place in reversed(range(turn.tokens)):
        choices = []
        for drafted in range(min(matches[place] + 1, turn.budget - place - 1) + 1):
            accepted = min(drafted, matches[place])
            choices.append(
                drafted * step + curve.verify_price(drafted + 1).base + rest[min(place + accepted + 1, turn.tokens)]
            )
        rest[place] = min(choices)
    return rest[0]


@settings(max_examples=20, deadline=None)
@given(SEEDS, affine_costs())
def test_nothing_is_cheaper_than_the_oracle(seed, curve):
    """Neither the best lengths in hindsight, found by dynamic programming, nor any policy."""
    turns = prepare(draw_table(seed, questions=2))
    oracle = price(replay(turns, make_policy("oracle")), turns, curve, watched=False)
    assert oracle == pytest.approx([cheapest(turn, curve) for turn in turns])
    for name in POLICIES:
        policy = make_policy(name)
        cost = price(replay(turns, policy), turns, curve, watched=policy.watches_draft)
        assert (cost >= oracle * (1 - 1e-9)).all(), name


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.floats(1.01, 50), st.integers(0, 12))
def test_no_fixed_gamma_is_cheaper_than_the_oracle_at_a_flat_price(seed, ratio, gamma):
    turns, curve = prepare(draw_table(seed)), from_ratio(ratio)
    oracle, fixed = (price(replay(turns, p), turns, curve, False) for p in (make_policy("oracle"), Fixed(gamma=gamma)))
    assert (fixed >= oracle * (1 - 1e-9)).all()


def unknown_table(seed: int = 0, turns: int = 20) -> AcceptanceTable:
    rng = np.random.default_rng(seed)
    drawn = ["".join(rng.choice(list("01?"), size=40)) for _ in range(turns)]
    return AcceptanceTable([make_turn(each, watched=False, turn=n) for n, each in enumerate(drawn)], {"source": "log"})


def test_filling_decides_unknown_positions_only_and_leaves_the_table_alone():
    table = unknown_table()
    before = contents(table)
    for rate in (0.0, 0.6, 1.0):
        filled = fill_unknown(table, rate)
        assert filled.complete and filled.facts == table.facts
        for old, new in zip(table.turns, filled.turns, strict=True):
            known = old.match != -1
            assert (new.match[known] == old.match[known]).all()
            if rate in (0.0, 1.0):
                assert (new.match[~known] == rate).all()
    assert contents(table) == before


def test_filling_follows_its_seed_and_its_rate():
    table = unknown_table()
    assert contents(fill_unknown(table, 0.7, seed=3)) == contents(fill_unknown(table, 0.7, seed=3))
    assert contents(fill_unknown(table, 0.7, seed=3)) != contents(fill_unknown(table, 0.7, seed=4))
    unknown = np.concatenate([turn.match == -1 for turn in table.turns])
    share = np.concatenate([turn.match for turn in fill_unknown(table, 0.7).turns])[unknown].mean()
    assert abs(share - 0.7) < 4 * np.sqrt(0.7 * 0.3 / unknown.sum())


@settings(max_examples=50, deadline=None)
@given(SEEDS, st.integers(0, 12))
def test_more_matches_never_cost_a_fixed_gamma_more_rounds(seed, gamma):
    """So rates 0 and 1 are bounds on the rounds of a fixed gamma."""
    table = unknown_table(seed, turns=3)
    few, some, many = (replay(prepare(fill_unknown(table, rate)), Fixed(gamma=gamma)).rounds for rate in (0.0, 0.5, 1.0))
    assert many <= some <= few


def test_a_table_without_signals_is_enough_for_policies_that_do_not_watch():
    with_signals, without = draw_table(6), draw_table(6)
    for turn in without.turns:
        turn.trace.signals = turn.trace.continuations = None
    for name in LENGTH_ONLY:
        done, again = (replay(prepare(table), make_policy(name), keep_rounds=True) for table in (with_signals, without))
        assert done.logs == again.logs, name


@pytest.mark.parametrize("turns", [(make_turn("10"), make_turn("10", watched=False)), (make_starts("1/1 0/0"),)], ids=len)
def test_a_watching_policy_on_a_table_without_signals_is_refused(turns):
    turns = prepare(AcceptanceTable(list(turns)))
    with pytest.raises(
        UserError, match=r"^StopAt watches the draft, but this table has no draft signals: replay length-only"
    ):
        replay(turns, StopAt())


def test_unknown_positions_are_refused():
    with pytest.raises(UserError, match="match of some positions is unknown"):
        prepare(unknown_table())


@pytest.mark.parametrize("name", POLICIES)
def test_two_replays_of_one_policy_object_are_the_same(name):
    """Nothing of the first is left in the second, whatever the policy carries over within one."""
    carry = "turn" if name == "hf_confidence_online" else "never"
    policy, turns = make_policy(name, carry=carry), prepare(draw_table(8))
    before = settings_of(policy)
    assert replay(turns, policy, keep_rounds=True).logs == replay(turns, policy, keep_rounds=True).logs
    assert settings_of(policy) == before


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        ("2/3 0/0 0/0 0/0 0/0 0/0 0/0 0/0", (5, 3, 2, 3, 0, "drafter")),  # it had three, the third of them wrong
        ("2/2 0/0 0/0 0/0 0/0 0/0 0/0 0/0", (5, 2, 2, 3, 0, "drafter")),  # nothing more to propose after two right ones
        ("0/0 0/0 0/0 0/0 0/0 0/0 0/0 0/0", (5, 0, 0, 1, 0, "drafter")),  # nothing at all
        ("1/7 0/0 0/0 0/0 0/0 0/0 0/0 0/0", (5, 5, 1, 2, 0, "length")),
        ("1/4e 0/0 0/0 0/0 0/0 0/0 0/0 0/0", (5, 4, 1, 2, 0, "eos")),  # its fourth ends the sequence, wrongly
        ("1/5e 0/0 0/0 0/0 0/0 0/0 0/0 0/0", (5, 5, 1, 2, 0, "eos")),
        ("3/3 0/0 0/0 0/0", (5, 3, 3, 4, 0, "budget")),
        ("3/9 0/0 0/0 0/0", (5, 3, 3, 4, 0, "budget")),
    ],
)
def test_a_drafter_whose_blocks_depend_on_their_start(starts, expected):
    """It costs no forwards. Position 1 plays no part where the block from position 0 went beyond it."""
    turns = prepare(AcceptanceTable([make_starts(starts)], {"forwards_per_token": 0}))
    first = replay(turns, Fixed(gamma=5), keep_rounds=True).logs[0][0]
    assert (first.planned, first.drafted, first.accepted, first.emitted, first.forwards, first.stop) == expected


def test_a_policy_sees_the_signals_of_its_own_start():
    signals = make_signals(np.random.default_rng(1), 7)
    turn = make_starts("1/3 0/0 2/2 0/2 0/0 0/0", signals)
    policy = StopAt(gamma=4, tau=0.0)
    replay(prepare(AcceptanceTable([turn])), policy)
    # three from position 0, of which one is right; then two from position 2, which are right; then the last two positions
    wanted = [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)]
    columns = (signals.top1, signals.top1, signals.entropy, signals.margin)
    assert policy.seen == [(index, *(column[at] for column in columns)) for index, at in wanted]


def test_a_start_that_was_not_recorded_to_its_end_is_counted():
    """From position 0 three tokens are known and more would have come; from 1 on the drafter had no more."""
    turn = make_starts("0/3+ 0/3 0/3 0/3 0/3 0/2 0/1 0/0")
    for gamma, beyond in ((2, 0), (3, 0), (4, 1), (9, 1)):
        done = replay(prepare(AcceptanceTable([turn])), Fixed(gamma=gamma))
        assert (done.beyond, done.drafted[0]) == (beyond, min(gamma, 7))
