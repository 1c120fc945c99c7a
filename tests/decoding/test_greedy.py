"""Greedy speculative output is the target's own, for every policy, draft and length; caches hold what they must."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gammatune.config import DecodeConfig
from gammatune.decoding import loop
from gammatune.decoding.loop import generate_autoregressive, generate_speculative
from gammatune.models.pair import random_pair
from gammatune.policies import POLICIES
from gammatune.runtimes.base import eager_runtime

LIVE = [name for name, option in POLICIES.items() if not option.rule.oracle]
STARTS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24]
NOISES = [0.0, 0.1, 0.4, 2.0]


@pytest.fixture(scope="module", params=NOISES, ids=lambda noise: f"noise{noise}")
def runtime(request):
    return make_runtime(seed=1, noise=request.param)


def make_runtime(seed: int, noise: float, ends: tuple[int, ...] = (9, 17), head: int | None = None):
    """A tiny pair whose answers end at one of `ends`: two tokens of forty, so that ends are common; () never ends."""
    runtime = eager_runtime(random_pair(seed=seed, noise=noise, vocab_size=40, vocabulary=head))
    runtime.pair.eos_ids = ends
    return runtime


def prompt_of(seed: int, length: int = 12) -> list[int]:
    return torch.randint(4, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def transformers_greedy(runtime, prompt: list[int], max_new_tokens: int) -> list[int]:
    """The referee: transformers' own generate on the target alone."""
    output = runtime.pair.target.generate(
        torch.tensor([prompt]),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(runtime.pair.eos_ids),
        pad_token_id=2,
    )
    return output[0, len(prompt) :].tolist()


def make_policy(name: str, gamma: int):
    """The policy from that start; gamma 0 only where the policy has it."""
    fields = POLICIES[name].rule.__dataclass_fields__
    if "gamma" not in fields:
        return POLICIES[name]()
    return POLICIES[name](gamma=gamma if name in ("fixed", "hf_constant", "hf_confidence") else max(gamma, 1))


@pytest.mark.parametrize("name", LIVE)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), gamma=st.sampled_from(STARTS), budget=st.integers(1, 40))
def test_every_policy_gives_the_targets_own_ids(runtime, name, seed, gamma, budget):
    prompt = prompt_of(seed)
    made = generate_speculative(runtime, prompt, make_policy(name, gamma), DecodeConfig(max_new_tokens=budget))
    assert made.output_ids == transformers_greedy(runtime, prompt, budget)
    assert sum(r.emitted for r in made.rounds) == len(made.output_ids)


REDUCED = {head: make_runtime(seed=1, noise=0.1, head=head) for head in (1, 12, 33, 40)}


@pytest.mark.parametrize("name", LIVE)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gamma=st.sampled_from(STARTS),
    budget=st.integers(1, 40),
    head=st.sampled_from(list(REDUCED)),
)
def test_so_it_does_with_a_draft_that_lacks_tokens(name, seed, gamma, budget, head):
    runtime, prompt = REDUCED[head], prompt_of(seed)
    made = generate_speculative(runtime, prompt, make_policy(name, gamma), DecodeConfig(max_new_tokens=budget))
    assert made.output_ids == transformers_greedy(runtime, prompt, budget)
    said = set(runtime.draft.ids.tolist())
    assert len(said) == head
    for r in made.rounds:
        start = r.context - len(prompt)
        assert said.issuperset(made.output_ids[start : start + r.accepted])


def test_a_head_with_all_rows_drafts_as_the_whole_one():
    whole, reduced = make_runtime(seed=1, noise=0.1), REDUCED[40]
    for seed in range(8):
        made = [
            generate_speculative(each, prompt_of(seed), POLICIES["gammatune_plus"](tau=0.1), DecodeConfig(max_new_tokens=30))
            for each in (whole, reduced)
        ]
        assert [r.counts() for r in made[0].rounds] == [r.counts() for r in made[1].rounds]


def test_a_smaller_head_is_right_less_often():
    accepted = []
    for head in (12, 33, 40):
        made = [
            generate_speculative(REDUCED[head], prompt_of(seed), POLICIES["fixed"](gamma=4), DecodeConfig(max_new_tokens=30))
            for seed in range(10)
        ]
        accepted.append(sum(r.accepted for generation in made for r in generation.rounds))
    assert 0 < accepted[0] < accepted[1] < accepted[2]


def test_exact_length_for_every_budget_and_gamma():
    runtime = make_runtime(seed=3, noise=0.1, ends=())
    prompt = prompt_of(5)
    for budget in range(1, 21):
        for gamma in range(13):
            made = generate_speculative(runtime, prompt, POLICIES["fixed"](gamma=gamma), DecodeConfig(max_new_tokens=budget))
            assert (len(made.output_ids), made.finish) == (budget, "length")
            assert all(r.drafted <= gamma and r.emitted == r.accepted + 1 for r in made.rounds)


def test_output_ends_at_the_first_end_of_sequence():
    """Any token can be the end: then answers stop right behind its first place, wherever in a block that is."""
    runtime = make_runtime(seed=2, noise=0.1)
    seen_in_block = 0
    for seed in range(12):
        prompt = prompt_of(seed)
        runtime.pair.eos_ids = ()
        free = generate_autoregressive(runtime, prompt, DecodeConfig(max_new_tokens=30)).output_ids
        for end in set(free[3:20:4]):
            runtime.pair.eos_ids = (end,)
            made = generate_speculative(runtime, prompt, POLICIES["fixed"](gamma=6), DecodeConfig(max_new_tokens=30))
            assert made.output_ids == free[: free.index(end) + 1] and made.finish == "eos"
            last = made.rounds[-1]
            seen_in_block += last.emitted == last.accepted and last.stop == "eos"
    assert seen_in_block > 5


@pytest.mark.parametrize("head", [None, 33])
def test_same_ids_when_reading_a_token_is_not_free(monkeypatch, head):
    """On a device that runs ahead, length-only policies draft on past an end of sequence; rounds must not change."""
    runtime = make_runtime(seed=2, noise=0.1, head=head)
    decode, free = DecodeConfig(max_new_tokens=30), []
    for seed in range(20):
        free.append(generate_speculative(runtime, prompt_of(seed), POLICIES["fixed"](gamma=6), decode))
    monkeypatch.setattr(type(runtime), "reads_are_free", False)
    for seed, expected in enumerate(free):
        runtime.host_reads = 0
        made = generate_speculative(runtime, prompt_of(seed), POLICIES["fixed"](gamma=6), decode)
        assert made.output_ids == expected.output_ids
        assert [r.counts() for r in made.rounds] == [r.counts() for r in expected.rounds]
        assert runtime.host_reads == len(made.rounds)
    assert any(r.stop == "eos" and r.accepted < r.drafted < 6 for generation in free for r in generation.rounds)
    assert any(r.stop == "eos" for generation in free for r in generation.rounds)


@pytest.mark.parametrize("head", [None, 33])
def test_a_policy_that_watches_costs_one_more_read_per_drafted_token(monkeypatch, head):
    runtime = make_runtime(seed=2, noise=0.1, ends=(), head=head)
    monkeypatch.setattr(type(runtime), "reads_are_free", False)
    made = generate_speculative(
        runtime, prompt_of(1), POLICIES["hf_confidence"](threshold=0.0, gamma=4), DecodeConfig(max_new_tokens=20)
    )
    watched = sum(r.drafted for r in made.rounds)
    assert runtime.host_reads == len(made.rounds) + 2 * watched


def test_draft_equal_to_target_accepts_everything_but_the_last_rounds():
    runtime = make_runtime(seed=4, noise=0.0, ends=())
    for seed in range(10):
        made = generate_speculative(runtime, prompt_of(seed), POLICIES["fixed"](gamma=5), DecodeConfig(max_new_tokens=40))
        assert all(r.accepted == r.drafted for r in made.rounds)
        assert all(r.drafted == 5 for r in made.rounds[:-2])


def test_corner_rounds():
    """Gamma 0, gamma 1, all rejected, all accepted: emitted is accepted + 1 wherever the sequence goes on."""
    for noise, expected in ((0.0, 5), (2.0, 0)):
        runtime = eager_runtime(random_pair(seed=6, noise=noise, vocab_size=260))
        prompt = runtime.pair.tokenizer.encode("a corner")
        for gamma in (0, 1, 5):
            made = generate_speculative(runtime, prompt, POLICIES["fixed"](gamma=gamma), DecodeConfig(max_new_tokens=24))
            inner = [r for r in made.rounds if not r.cut]
            assert all(r.emitted == r.accepted + 1 for r in inner)
            assert all(r.drafted == gamma for r in inner)
            if gamma == 5:
                assert expected in {r.accepted for r in inner}


@pytest.mark.parametrize("noise", [0.0, 0.1, 2.0])
def test_feeds_and_caches_hold_exactly_the_missing_tokens(monkeypatch, noise):
    """After every round both caches hold a prefix of the committed text, short of the last token, and logits from the
    cache equal logits without one: no hole, no leftover of a rejected draft."""
    runtime = make_runtime(seed=7, noise=noise, ends=())
    gammas = torch.randint(0, 7, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    policy = POLICIES["fixed"]()
    policy.plan = lambda: gammas.pop()
    run_round, checked = loop.run_round, []

    def checked_round(turn):
        run_round(turn)
        committed, target, draft = turn.committed, runtime.target, runtime.draft
        assert target.length == target.cache.get_seq_length() == len(committed) - 1
        assert draft.length == draft.cache.get_seq_length() <= len(committed) - 1
        if turn.rounds[-1].drafted:
            full = turn.rounds[-1].accepted == turn.rounds[-1].drafted
            assert len(committed) - draft.length == (2 if full and turn.rounds[-1].emitted > turn.rounds[-1].accepted else 1)
        for model in (target, draft):
            checked.append(compare_with_no_cache(runtime, model, committed))

    monkeypatch.setattr(loop, "run_round", checked_round)
    generate_speculative(runtime, prompt_of(8), policy, DecodeConfig(max_new_tokens=60))
    assert len(checked) > 10 and max(checked) < 1e-4


def compare_with_no_cache(runtime, model, committed: list[int]) -> float:
    """Largest difference of the next logits with and without the cache; the cache is put back as it was."""
    length = model.length
    cached = model.forward(runtime.upload(committed[length:]), keep=1)
    model.crop(length)
    fresh = model.model(input_ids=torch.tensor([committed])).logits[0, -1:, : model.vocab_size]
    return float((cached - fresh).abs().max())


def test_prompt_that_fills_the_context_is_refused():
    runtime = eager_runtime(random_pair(seed=0, context=64))
    with pytest.raises(loop.UserError, match="64"):
        generate_autoregressive(runtime, list(range(4, 68)), DecodeConfig(max_new_tokens=5))
    with pytest.raises(loop.UserError, match="empty"):
        generate_autoregressive(runtime, [], DecodeConfig(max_new_tokens=5))


def test_the_context_bounds_the_answer():
    runtime = eager_runtime(random_pair(seed=0, noise=0.1, context=64))
    runtime.pair.eos_ids = ()
    made = generate_speculative(runtime, list(range(4, 64)), POLICIES["fixed"](gamma=8), DecodeConfig(max_new_tokens=50))
    assert len(made.output_ids) == 4


def test_a_prompt_of_one_token_works():
    runtime = make_runtime(seed=0, noise=0.1)
    made = generate_speculative(runtime, [5], POLICIES["fixed"](gamma=3), DecodeConfig(max_new_tokens=10))
    assert made.output_ids == transformers_greedy(runtime, [5], 10)


def test_excluded_tokens_are_drafted_but_not_verified():
    runtime = make_runtime(seed=2, noise=0.1, ends=())
    rounds = {}
    for stop_token in ("include", "exclude"):
        policy = POLICIES["hf_confidence"](threshold=0.5, gamma=8, stop_token=stop_token)
        made = generate_speculative(runtime, prompt_of(3), policy, DecodeConfig(max_new_tokens=40))
        assert made.output_ids == generate_autoregressive(runtime, prompt_of(3), DecodeConfig(max_new_tokens=40)).output_ids
        rounds[stop_token] = [r for r in made.rounds if r.stop == "policy"]
    assert rounds["include"] and all(r.draft_forwards == r.drafted for r in rounds["include"])
    assert rounds["exclude"] and all(r.draft_forwards == r.drafted + 1 for r in rounds["exclude"])
