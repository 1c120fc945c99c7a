"""Advice on tables whose answer is known by hand."""

import re
from dataclasses import replace

import numpy as np
import pytest
from replay.made_tables import make_starts, make_turn
from report.stored_study import draw_study_table, made_log, make_curve

from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.replay.prices import from_ratio
from gammatune.replay.speeds import build_bench, split_questions
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.advise import (
    FACTORS,
    PriceNote,
    advise,
    list_rivals,
    question_of,
    split_table,
    thin,
)
from gammatune.studies.drafters import Contender

TOKENS = 120
RIGHT, WRONG = "1" * TOKENS, "0" * TOKENS
LENGTHS = {name: POLICIES[name]() for name in ("ar", "fixed", "gammatune", "hf_heuristic", "hf_constant", "oracle")}
NOTE = PriceNote("assumed ratio")


def made(*answers: str, **fields) -> AcceptanceTable:
    """One question per answer, which had room for twice as many tokens."""
    fields = {"budget": 2 * TOKENS, "finish": "eos"} | fields
    return AcceptanceTable([make_turn(answer, question_id=number, **fields) for number, answer in enumerate(answers)])


def test_a_draft_that_is_always_wrong_is_left_out():
    """With T_target / T_draft = 9 a round of one drafted token costs 10 / 9 of the target's step, and is worth one token."""
    advice = advise(made(*[WRONG] * 12), from_ratio(9), NOTE, LENGTHS)
    assert advice.best.policy.name == "ar" and not advice.pays
    assert advice.fixed.policy.gamma == 1
    assert advice.fixed.over_alone == pytest.approx((0.9, 0.9, 0.9))
    assert (advice.break_even.gamma, advice.break_even.found) == (1, 0.0)
    assert advice.break_even.acceptance == pytest.approx(1 / 9) and advice.break_even.margin == pytest.approx(-1 / 9)
    assert all(each.policy is None and each.line.settings == {} for each in advice.engines)
    assert not any("DRAFT" in each.line.text for each in advice.engines)
    assert [each.best_fixed_speedup for each in advice.sensitivity] == pytest.approx([18 / 19, 0.9, 9 / 11])
    assert not any(each.pays for each in advice.sensitivity)


def test_a_draft_that_is_always_right_and_cheap_drafts_long_blocks():
    """120 tokens in five rounds of 24 drafted ones, the last of which the answer cuts to 20, not in six."""
    advice = advise(made(*[RIGHT] * 12), from_ratio(100), NOTE, {"ar": LENGTHS["ar"], "fixed": LENGTHS["fixed"]})
    assert advice.best.policy.name == "fixed" and advice.best.policy.gamma == 24 and advice.best.tuned and advice.pays
    assert advice.best.over_alone.value > 15
    assert advice.break_even.found == 1.0 and advice.break_even.margin > 0.9
    assert [each.best_gamma for each in advice.by_task] == [24] == [advice.sensitivity[0].best_gamma]
    vllm = advice.engines[0]
    assert vllm.engine.name == "vLLM" and vllm.line.settings == {"num_speculative_tokens": 24}


def test_another_drafter_is_found_where_it_is_faster():
    """The draft model is always wrong; a lookup that costs nothing knows every answer. First the lookup, then the model: the
    same, since the lookup always proposes."""
    known = " ".join(f"{TOKENS - place}/{TOKENS - place}" for place in range(TOKENS))
    turns = [make_starts(known, question_id=n, budget=2 * TOKENS, finish="eos") for n in range(12)]
    facts = {"drafter": {"name": "lookup"}, "forwards_per_token": 0}
    lookup = Contender.of(AcceptanceTable(turns, facts), from_ratio(9))
    advice = advise(made(*[WRONG] * 12), from_ratio(9), NOTE, LENGTHS, beside=[lookup])
    assert [each.contender.choice for each in advice.drafters] == ["lookup", "[lookup,model]", "model"]
    first, listed, own = advice.drafters
    assert own.best is advice.best and own.best.over_alone.value == 1
    assert first.best.over_alone.value == listed.best.over_alone.value > 20
    assert advise(made(*[WRONG] * 12), from_ratio(9), NOTE, LENGTHS).drafters == []


def test_one_half_chooses_and_the_other_reports():
    """On the tuning half, every second question, the draft is right; on the other it is wrong, which no choice may see."""
    advice = advise(made(*[WRONG, RIGHT] * 6), from_ratio(9), NOTE, {})
    assert advice.best.policy.name == "fixed" and advice.best.policy.gamma == 24
    assert advice.best.over_alone == pytest.approx((9 / 33,) * 3) and not advice.pays
    assert advice.by_task[0].speedup == pytest.approx(9 / 33) and advice.by_task[0].questions == 6


def test_a_length_of_ones_own_is_asked_too():
    """Nine right tokens, then a wrong one: rounds of nine waste nothing, and no length of the grid is that one."""
    advice = advise(made(*["1111111110" * 12] * 12), from_ratio(100), NOTE, {"fixed": POLICIES["fixed"](gamma=9)})
    assert advice.fixed.policy.gamma == 9 and not advice.fixed.tuned
    assert advice.break_even.gamma == 9 and advice.break_even.found == 1.0


@pytest.fixture(scope="module")
def drawn():
    """A table with signals and its advice, all policies asked."""
    table = draw_study_table(questions=6)
    return table, advise(table, make_curve(), NOTE, {name: POLICIES[name]() for name in POLICIES})


def test_every_number_is_of_the_reporting_half(drawn):
    table, advice = drawn
    bench = build_bench(table, make_curve())
    rest = ~bench.tuning
    alone = bench.speeds(POLICIES["ar"]())[rest].mean()
    for rival in advice.ranking:
        if rival.policy.carry != "never":  # what a policy learns on the other half stays there
            assert rival.over_alone.value == pytest.approx(bench.speeds(rival.policy)[rest].mean() / alone)
            assert rival.over_alone.low <= rival.over_alone.value <= rival.over_alone.high
    gammas = {task.task: task.best_gamma for task in advice.by_task}
    for task in np.unique(bench.task):
        part = rest & (bench.task == task)
        fixed = (
            bench.speeds(POLICIES["fixed"](gamma=gammas[task]))[part].mean() / bench.speeds(POLICIES["ar"]())[part].mean()
        )
        assert next(each for each in advice.by_task if each.task == task).best_fixed == pytest.approx(fixed)


def test_the_fastest_on_the_tuning_half_is_recommended_and_no_oracle_is(drawn):
    _, advice = drawn
    assert advice.best is max(advice.ranking, key=lambda rival: rival.on_tuning)
    assert not any(rival.policy.oracle or rival.policy.name == "tuned_fixed" for rival in advice.ranking)
    assert not advice.untuned.tuned and not advice.untuned.policy.grid and advice.untuned.policy.name != "ar"
    speedups = [rival.over_alone.value for rival in advice.ranking]
    assert speedups == sorted(speedups, reverse=True)


def test_an_engine_is_told_the_fastest_policy_that_it_can_run(drawn):
    _, advice = drawn
    told = {each.engine.name: each for each in advice.engines}
    names = {"vLLM": {"fixed"}, "llama.cpp": {"fixed", "p_min"}, "transformers": {"fixed", "hf_heuristic", "hf_confidence"}}
    for engine, able in names.items():
        best = max((r for r in advice.ranking if r.policy.name in able | {"ar"}), key=lambda rival: rival.on_tuning)
        assert told[engine].over_alone == best.over_alone
        assert told[engine].policy is (None if best.policy.name == "ar" else best.policy)
    assert told["transformers with gammatune"].over_alone == advice.best.over_alone


def test_a_price_of_the_draft_of_one_is_the_advice_itself(drawn):
    _, advice = drawn
    assert [each.draft_price for each in advice.sensitivity] == list(FACTORS)
    same = advice.sensitivity[1]
    assert same.policy_speedup == pytest.approx(advice.best.over_alone.value)
    assert (same.best_gamma, same.best_fixed_speedup) == (
        advice.fixed.policy.gamma,
        pytest.approx(advice.fixed.over_alone.value),
    )
    fixed = [each.best_fixed_speedup for each in advice.sensitivity]
    assert fixed[0] > fixed[1] > fixed[2]


def test_a_preset_is_not_tuned_to_what_its_rule_is_tuned_to(drawn):
    table, _ = drawn
    rivals = list_rivals(split_table(table, make_curve()).tuning, {name: POLICIES[name]() for name in POLICIES})
    tuned = {rival.policy.name for rival in rivals if rival.tuned}
    assert not tuned & {"hf_constant", "p_min_2026", "cumulative_strict"}
    settings = [(type(rival.policy), repr(rival.policy)) for rival in rivals]
    assert len(set(settings)) == len(settings)


def test_without_signals_the_rules_that_watch_are_left_out_and_that_is_told():
    lengths = {name: policy for name, policy in LENGTHS.items() if not policy.reads_text}
    advice = advise(made(*[RIGHT] * 12, watched=False), from_ratio(9), NOTE, lengths)
    assert "The table has no draft signals, so rules that watch the draft were left out." in advice.warnings
    assert advice.untuned.policy.name in lengths  # as it came: no policy without a grid is left


def test_unknown_matches_are_drawn_at_the_estimated_rate_and_bounded():
    log = made_log()
    turns = [turn for copy in range(2) for turn in renumber(log.turns, 1000 * copy)]
    advice = advise(AcceptanceTable(turns, log.facts), from_ratio(12), NOTE, {"gammatune": POLICIES["gammatune"]()})
    told = next(sentence for sentence in advice.warnings if "unknown" in sentence)
    low, high = (
        float(re.search(rf"{end} (?:the recommended policy is )?at ([\d.]+\d)", told)[1]) for end in ("wrong", "right")
    )
    assert low - 0.006 <= advice.best.over_alone.value <= high + 0.006 and low < high


def renumber(turns, first: int) -> list:
    return [replace(turn, question_id=first + turn.question_id) for turn in turns]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (made(*[RIGHT] * 11), "Of at least 12 questions.* there are 11: give more with tasks.limit"),
        (
            AcceptanceTable([make_turn(RIGHT, task=f"task {n}", question_id=n) for n in range(12)]),
            "one question per task, so it cannot be split",
        ),
    ],
)
def test_too_few_questions_are_refused(table, told):
    with pytest.raises(UserError, match=told):
        advise(table, from_ratio(9), NOTE, {})


def test_one_question_of_each_task_in_the_reporting_half_is_resampled_over_the_tasks():
    turns = [make_turn(RIGHT[: 60 + 5 * n], task=f"task {n % 6}", question_id=n) for n in range(12)]
    advice = advise(AcceptanceTable(turns), from_ratio(9), NOTE, {})
    ratio = advice.best.over_alone
    assert ratio.low < ratio.value < ratio.high and advice.pays


def test_a_large_table_is_thinned_alike_in_every_task_and_halves_stay_apart():
    turns = [make_turn("1" * 100, task=["qa", "rag"][n % 3 == 0], question_id=n) for n in range(900)]
    table = AcceptanceTable(turns)
    halves = split_table(table, from_ratio(9))
    keys = list(dict.fromkeys(question_of(turn) for turn in turns))
    tuning = split_questions(np.array([task for task, _ in keys]))
    chosen = {key for key, mine in zip(keys, tuning, strict=True) if mine}
    for half, most in ((halves.tuning, 6_000), (halves.reporting, 20_000)):
        kept = set(zip(half.task.tolist(), half.benches[0].question_id.tolist(), strict=True))
        assert kept <= chosen if half is halves.tuning else not kept & chosen
        assert sum(half.benches[0].tokens) == pytest.approx(most, rel=0.03)
        assert (half.task == "qa").mean() == pytest.approx(2 / 3, abs=0.02)
    assert halves.left_out == 900 - len(halves.tuning.task) - len(halves.reporting.task)


def test_a_small_table_is_kept_whole():
    keys = [("qa", n) for n in range(5)]
    assert thin(keys, dict.fromkeys(keys, 10), 1000) == keys
    assert len(thin(keys, dict.fromkeys(keys, 1000), 10)) == 2
