"""Greedy speculative output is the target's own, for every policy, drafter and length; caches hold what they must."""

import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import Scripted, ScriptedWatching, scripted_policies
from shipped import LENGTH_ONLY, LIVE, adapt_policy, make_policy
from table_model import CPU, draw_prompt, own_answer, table_engine

from gammatune.config import DecodeConfig
from gammatune.decoding import loop
from gammatune.decoding.loop import build_engine, generate_autoregressive, generate_speculative
from gammatune.drafters.first_of import FirstOf
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.model import DraftModel
from gammatune.drafters.suffix import Suffix
from gammatune.errors import UserError
from gammatune.models.pair import random_pair
from gammatune.policies.session import PolicySession
from gammatune.runtimes.device import Device

REPEATING = {"memory": 2, "vocab_size": 12, "ends": (9,)}
ENGINES = {
    "equal draft": table_engine(agreement=1.0),
    "good draft": table_engine(agreement=0.8),
    "bad draft": table_engine(agreement=0.1),
    "draft with 33 of 40 tokens": table_engine(agreement=0.9, head=33),
    "draft with one token": table_engine(head=1),
    "lookup": table_engine(Lookup(), **REPEATING),
    "suffix": table_engine(Suffix(), **REPEATING),
    "suffix, then model": table_engine(FirstOf([Suffix(max_tree_depth=4), DraftModel()]), **REPEATING),
    "lookup, then model": table_engine(FirstOf([Lookup(shortest=2), DraftModel()]), **REPEATING),
    "lookup, then suffix": table_engine(FirstOf([Lookup(shortest=3), Suffix()]), **REPEATING),
}


def answer(engine, prompt: list[int], policy, budget: int = 30):
    session = PolicySession(policy)
    session.restart()
    return generate_speculative(engine, prompt, session, DecodeConfig(max_new_tokens=budget))


def facts_of(made) -> tuple:
    return made.output_ids, made.finish, [r.counts() for r in made.rounds]


@settings(max_examples=250, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(ENGINES)), seed=st.integers(0, 50), budget=st.integers(1, 40))
def test_whatever_a_policy_does_the_answer_is_the_targets_own(data, kind, seed, budget):
    engine = ENGINES[kind]
    policy = data.draw(scripted_policies(watching=None if engine.drafter.signals else False))
    prompt = draw_prompt(seed, 1 + seed % 9, engine.pair.vocab_size)
    made = answer(engine, prompt, policy, budget)
    assert made.output_ids == own_answer(engine, prompt, budget)
    assert made.finish == ("eos" if made.output_ids[-1] in engine.ends else "length")
    assert sum(r.emitted for r in made.rounds) == len(made.output_ids)
    said = None if engine.pair.draft_ids is None else set(engine.pair.draft_ids.tolist())
    for r in made.rounds:
        start = r.context - len(prompt)
        assert r.drafted <= r.planned and r.accepted <= r.drafted
        assert said is None or said.issuperset(made.output_ids[start : start + r.accepted])


@pytest.mark.parametrize("kind", ["good draft", "lookup", "suffix", "suffix, then model", "lookup, then model"])
def test_every_shipped_policy_gives_the_targets_own_answer(kind):
    engine = ENGINES[kind]
    for number, name in enumerate(LIVE if engine.drafter.signals else [name for name in LENGTH_ONLY if name in LIVE]):
        for gamma, seed in ((1, number), (9, number + 1)):
            prompt = draw_prompt(seed, vocab_size=engine.pair.vocab_size)
            assert answer(engine, prompt, adapt_policy(name, gamma=gamma)).output_ids == own_answer(engine, prompt, 30), name


@pytest.fixture(scope="module", params=[(0.1, None), (2.0, 20)], ids=["good", "bad, with 20 of 40 tokens"])
def llamas(request):
    """Two small Llamas, as transformers runs them; their answers end at one of two tokens."""
    noise, head = request.param
    return build_engine(replace(random_pair(seed=1, noise=noise, vocab_size=40, vocabulary=head), eos_ids=(9, 17)))


def test_with_real_models_answers_are_transformers_own(llamas):
    """The referee is its generate, on the target alone."""
    for seed, policy in product(
        range(3), (Scripted(plans=[3, 0, 12]), ScriptedWatching(plans=[9], keeps=[True, True, False]))
    ):
        prompt = draw_prompt(seed, 1 + 5 * seed)
        output = llamas.pair.target.generate(
            torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=[9, 17], pad_token_id=2
        )
        assert answer(llamas, prompt, policy, 40).output_ids == output[0, len(prompt) :].tolist()


def test_a_head_with_all_rows_drafts_as_the_whole_one():
    pair = random_pair(seed=1, noise=0.1, vocab_size=40)
    whole, reduced = build_engine(pair), build_engine(random_pair(seed=1, noise=0.1, vocab_size=40, vocabulary=40))
    for seed in range(3):
        policy = make_policy("gammatune_plus", tau=0.1)
        assert facts_of(answer(whole, draw_prompt(seed), policy)) == facts_of(answer(reduced, draw_prompt(seed), policy))


def test_a_smaller_head_is_right_less_often():
    accepted = []
    for head in (12, 33, 40):
        engine = table_engine(agreement=0.9, head=head, ends=())
        accepted.append(sum(r.accepted for seed in range(10) for r in answer(engine, draw_prompt(seed), Scripted()).rounds))
    assert 0 < accepted[0] < accepted[1] < accepted[2]


def test_exact_length_for_every_budget_and_gamma():
    engine = table_engine(ends=())
    for budget, gamma in product(range(1, 16), range(10)):
        made = answer(engine, draw_prompt(5), Scripted(plans=[gamma]), budget)
        assert (len(made.output_ids), made.finish) == (budget, "length")
        assert all(r.drafted <= gamma and r.emitted == r.accepted + 1 for r in made.rounds)


def test_output_ends_at_the_first_end_of_sequence():
    """Any token can be the end: then answers stop right after its first place, wherever in a block that is."""
    seen_in_block = 0
    for seed in range(12):
        prompt, free = draw_prompt(seed), table_engine(ends=())
        whole = own_answer(free, prompt, 30)
        for end in set(whole[3:20:4]):
            made = answer(table_engine(ends=(end,)), prompt, Scripted(plans=[6]))
            assert made.output_ids == whole[: whole.index(end) + 1] and made.finish == "eos"
            last = made.rounds[-1]
            seen_in_block += last.emitted == last.accepted and last.stop == "eos"
    assert seen_in_block > 5


@pytest.mark.parametrize("head", [None, 33])
def test_same_rounds_when_reading_a_token_is_not_free(monkeypatch, head):
    """On a device that runs ahead, length-only policies draft on past an end of sequence; rounds must not change."""
    engine = table_engine(agreement=0.85, head=head, ends=(4, 9, 17))
    free = [answer(engine, draw_prompt(seed), make_policy("fixed", gamma=6)) for seed in range(20)]
    monkeypatch.setattr(Device, "reads_are_free", False)
    for seed, expected in enumerate(free):
        engine.device.reads = 0
        made = answer(engine, draw_prompt(seed), make_policy("fixed", gamma=6))
        assert facts_of(made) == facts_of(expected)
        assert engine.device.reads == len(made.rounds)
        assert all(r.forwards >= r.drafted for r in made.rounds)
    rounds = [r for generation in free for r in generation.rounds]
    assert any(r.stop == "eos" and r.accepted < r.drafted < 6 for r in rounds)
    assert any(r.stop == "eos" and r.accepted == r.drafted < 6 for r in rounds)


@pytest.mark.parametrize("head", [None, 33])
def test_a_policy_that_watches_costs_one_more_read_per_drafted_token(monkeypatch, head):
    engine = table_engine(head=head, ends=())
    monkeypatch.setattr(Device, "reads_are_free", False)
    engine.device.reads = 0
    made = answer(engine, draw_prompt(1), ScriptedWatching(plans=[4], keeps=[True, True, False], stop_token="exclude"))
    assert engine.device.reads == len(made.rounds) + sum(r.forwards for r in made.rounds)


def test_a_draft_equal_to_the_target_is_never_rejected():
    engine = table_engine(agreement=1.0, ends=())
    for seed in range(5):
        made = answer(engine, draw_prompt(seed), Scripted(plans=[5]), 40)
        assert [(r.drafted, r.accepted, r.emitted) for r in made.rounds] == [(5, 5, 6)] * 6 + [(3, 3, 4)]


@pytest.mark.parametrize("kind", ["good draft", "bad draft", "lookup", "suffix, then model"])
def test_caches_hold_a_prefix_of_the_text_after_every_round(monkeypatch, kind):
    """No hole, no leftover of a rejected draft; and nothing but the last token, or two after a full block, is missing."""
    engine, run_round, missing = ENGINES[kind], loop.run_round, set()

    def checked_round(turn):
        run_round(turn)
        text, target, draft, last = turn.text, engine.target, engine.drafter.workplace.model, turn.rounds[-1]
        assert target.text == text[:-1]
        if draft is not None:
            assert draft.text == text[: draft.length]
            missing.add((last.forwards == last.accepted, len(text) - draft.length))
            assert last.forwards == 0 or len(text) - draft.length == 1 + (last.forwards == last.accepted == last.emitted - 1)

    monkeypatch.setattr(loop, "run_round", checked_round)
    dice = random.Random(0)
    for seed in range(10):
        gammas = [dice.randrange(7) for _ in range(50)]
        policy = ScriptedWatching(plans=gammas, keeps=[True] * 5 + [False]) if seed % 2 else Scripted(plans=gammas)
        policy = policy if engine.drafter.signals else Scripted(plans=gammas)
        answer(engine, draw_prompt(seed, vocab_size=engine.pair.vocab_size), policy, 40)
    assert kind == "lookup" or missing >= {(True, 2), (False, 1)}
    assert kind != "suffix, then model" or max(late for _, late in missing) > 4, "the other drafter's blocks are read late"


def test_logits_from_the_cache_are_logits_without_one(monkeypatch, llamas):
    """Of both Llamas after every round, over a cache that was fed, cropped and fed again."""
    run_round, worst = loop.run_round, []

    def checked_round(turn):
        run_round(turn)
        for model in (llamas.target, llamas.drafter.workplace.model):
            length = model.length
            cached = model.forward(llamas.device.upload(turn.text[length:]), keep=1)
            model.crop(length)
            fresh = model.model(input_ids=torch.tensor([turn.text])).logits[0, -1:, : model.vocab_size]
            worst.append(float((cached - fresh).abs().max()))

    monkeypatch.setattr(loop, "run_round", checked_round)
    for seed in range(3):
        answer(llamas, draw_prompt(seed), Scripted(plans=[3, 6, 0, 1]), 40)
    assert len(worst) > 10 and max(worst) < 1e-4


def test_prompts_that_cannot_be_answered_are_refused():
    engine, decode = table_engine(context=64), DecodeConfig(max_new_tokens=5)
    with pytest.raises(UserError, match=r"^The prompt has 64 tokens, but table can address 64 with its answer: shorten"):
        generate_autoregressive(engine, list(range(64)), decode)
    with pytest.raises(UserError, match="^The prompt is empty"):
        generate_autoregressive(engine, [], decode)


def test_the_context_bounds_the_answer():
    made = answer(table_engine(context=64, ends=()), draw_prompt(1, 60), Scripted(plans=[8]), 50)
    assert (len(made.output_ids), made.finish) == (4, "length")


def test_excluded_tokens_are_drafted_but_not_verified():
    rounds = {}
    for stop_token in ("include", "exclude"):
        policy = ScriptedWatching(plans=[8], keeps=[True, True, False], stop_token=stop_token)
        made = answer(table_engine(ends=()), draw_prompt(3), policy, 40)
        rounds[stop_token] = [r for r in made.rounds if r.stop == "policy"]
    assert rounds["include"] and all(r.forwards == r.drafted for r in rounds["include"])
    assert rounds["exclude"] and all(r.forwards == r.drafted + 1 for r in rounds["exclude"])


def test_a_lookup_costs_no_forwards_and_cannot_be_watched():
    engine = ENGINES["lookup"]
    rounds = [r for seed in range(9) for r in answer(engine, draw_prompt(seed, vocab_size=12), Scripted(plans=[4])).rounds]
    assert sum(r.accepted for r in rounds) > 20 and {r.forwards for r in rounds} == {0}
    with pytest.raises(UserError) as refused:
        answer(engine, [4], make_policy("svip"))
    assert str(refused.value) == (
        "policy=SVIP stops by the draft's signals, and drafter=lookup has none: choose a policy that plans lengths only, "
        "such as fixed or gammatune, or drafter=model."
    )


def test_the_target_alone_leaves_the_draft_alone():
    engine = table_engine()
    generate_autoregressive(engine, draw_prompt(2), DecodeConfig(max_new_tokens=5))
    assert engine.drafter.workplace.model.length == 0


def test_another_drafter_shares_the_target_and_leaves_the_first_one_in_place():
    engine = table_engine()
    other = engine.with_drafter(Lookup())
    assert other.target is engine.target and other.drafter.workplace.model is None
    assert engine.drafter.name == "model" and engine.drafter.workplace.model is not None
    prompt = draw_prompt(2)
    assert answer(other, prompt, Scripted()).output_ids == answer(engine, prompt, Scripted()).output_ids


def test_times_are_of_the_parts_of_a_turn():
    """A policy that takes its time while a block is drafted is not the draft's time."""
    import time

    class Slow(ScriptedWatching):
        def keep_drafting(self, signals) -> bool:
            time.sleep(0.002)
            return True

    made = answer(table_engine(ends=()), draw_prompt(1), Slow(plans=[4]), 20)
    for r in made.rounds:
        assert r.policy_ms >= 2 * r.drafted and r.verify_ms > 0
        assert r.drafted == 0 or 0 < r.draft_ms < r.policy_ms
    spent = sum(r.draft_ms + r.verify_ms + r.policy_ms for r in made.rounds)
    assert 0 < made.prefill_ms < made.wall_ms and spent <= made.wall_ms - made.prefill_ms


def test_a_pair_becomes_an_engine_that_knows_its_ends():
    pair = replace(random_pair(vocab_size=40), eos_ids=(9, 17))
    engine = build_engine(pair, "eager", Lookup())
    assert (engine.ends, engine.runtime, engine.device.device) == ({9, 17}, "eager", CPU)
    assert engine.drafter.workplace.vocab_size == 40 and engine.target.vocab_size == 40
