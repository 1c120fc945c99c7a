"""Policies inside transformers' generate: its own greedy ids, its assisted decoding's rounds, its own distribution."""

import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    MambaConfig,
    MambaForCausalLM,
    MaxTimeCriteria,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StopStringCriteria,
    T5Config,
    T5ForConditionalGeneration,
    __version__,
)
from transformers.generation import BaseStreamer

from gammatune.config import DecodeConfig, TasksConfig
from gammatune.decoding.loop import build_engine, generate_speculative
from gammatune.decoding.sampling import ProcessedSampler
from gammatune.drafters.lookup import Lookup
from gammatune.errors import UserError
from gammatune.models.pair import load_pair, random_pair
from gammatune.policies import POLICIES
from gammatune.policies.session import PolicySession
from gammatune.runtimes.eager import CACHE, EagerModel
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import load_questions
from gammatune.transformers import speculate

ROOT = Path(__file__).parents[1]
LIVE = [name for name, option in POLICIES.items() if not option.rule.oracle]
VOCAB, DRAWS = 8, 400
WINDOWS_ROLL_BACK = Version(__version__) >= Version("5.18")


@cache
def make_pair(noise: float, ends: tuple[int, ...] = (9, 17)):
    """A tiny pair of forty tokens, two of which end an answer."""
    pair = random_pair(seed=1, noise=noise, vocab_size=40)
    pair.eos_ids = ends
    return pair


def prompt_of(seed: int, length: int = 12) -> list[int]:
    return torch.randint(4, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generate(pair, prompt: list[int], spec=None, **options):
    """New ids of target.generate, greedy, under a policy or on its own; generate's own record where that is asked for."""
    ends = list(pair.eos_ids) or None
    options = {"do_sample": False, "eos_token_id": ends, "pad_token_id": 2, "max_new_tokens": 30} | options
    output = pair.target.generate(torch.tensor([prompt]), custom_generate=spec, **options)
    return output if options.get("return_dict_in_generate") else output[0, len(prompt) :].tolist()


def make_policy(name: str, gamma: int, **others):
    fields = POLICIES[name].rule.__dataclass_fields__
    return POLICIES[name](**({"gamma": gamma} if "gamma" in fields else {}), **others)


def facts(rounds) -> list[tuple]:
    return [(*r.counts(), r.forwards) for r in rounds]


@pytest.mark.parametrize("name", LIVE)
@settings(max_examples=3, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gamma=st.sampled_from([1, 2, 3, 5, 8, 16]),
    budget=st.integers(1, 30),
    noise=st.sampled_from([0.0, 0.1, 2.0]),
    stop_token=st.sampled_from(["include", "exclude"]),
)
def test_ids_are_greedys_and_rounds_those_of_our_own_loop(name, seed, gamma, budget, noise, stop_token):
    pair, prompt = make_pair(noise), prompt_of(seed)
    ours, theirs = (make_policy(name, gamma, stop_token=stop_token) for _ in range(2))
    spec = speculate(pair.draft, theirs)
    ids = generate(pair, prompt, spec, max_new_tokens=budget)
    made = generate_speculative(build_engine(pair), prompt, PolicySession(ours), DecodeConfig(max_new_tokens=budget))
    assert ids == made.output_ids == generate(pair, prompt, max_new_tokens=budget)
    assert facts(spec.rounds) == facts(made.rounds)
    assert theirs.state() == ours.state()
    assert all(r.verify_ms > 0 and (r.draft_ms > 0 or not r.planned) for r in spec.rounds)


def watch_target(pair, prompt: list[int], **options) -> tuple[list[int], list[tuple[int, int]]]:
    """New ids, and of each verification how many tokens were committed before it and drafted in it."""
    seen = []

    def record(model, args, inputs):
        cached, fed = inputs[CACHE].get_seq_length(), inputs["input_ids"].shape[1]
        context = max(cached + 1, len(prompt))
        if cached + fed >= context:  # not the prompt without its last token
            seen.append((context, cached + fed - context))

    hook = pair.target.register_forward_pre_hook(record, with_kwargs=True)
    # transformers hides what looks like padding from its draft, unless it may as well be an end of sequence
    ids = generate(pair, prompt, pad_token_id=9, **options)
    hook.remove()
    return ids, seen


@pytest.mark.parametrize("gamma", [1, 3, 6])
def test_rounds_are_those_of_transformers_assisted_decoding(gamma):
    """The independent referee: another loop and another verification, the same blocks at the same places."""
    pair, accepted, ended = make_pair(0.1), 0, 0
    pair.draft.generation_config.update(
        num_assistant_tokens=gamma, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    for seed in range(8):
        spec = speculate(pair.draft, "fixed", gamma=gamma)
        ours = watch_target(pair, prompt_of(seed), spec=spec)
        assert ours == watch_target(pair, prompt_of(seed), assistant_model=pair.draft)
        assert ours[1] == [(r.context, r.drafted) for r in spec.rounds]
        accepted += sum(r.accepted for r in spec.rounds)
        ended += ours[0][-1] in pair.eos_ids
    assert accepted > 8 and ended > 0


class Recorder(StoppingCriteria):
    """Stops at the n-th new token of a kind, and keeps what it was asked about: each call counts."""

    def __init__(self, kind: int, times: int):
        self.kind, self.times, self.asked = kind, times, []

    def __call__(self, input_ids, scores, **options):
        self.asked.append(input_ids[0].tolist())
        self.times -= input_ids[0, -1].item() % 4 == self.kind
        return torch.full((1,), self.times <= 0)


@pytest.mark.parametrize("name", LIVE)
def test_stopping_criteria_are_asked_after_each_token(name):
    """Also in the middle of accepted tokens: the answer is cut there, and neither the record nor a cache goes on."""
    pair, cut = make_pair(0.1, ends=()), 0
    for seed in range(4):
        ours, theirs = (Recorder(seed % 4, times=3) for _ in range(2))
        spec = speculate(pair.draft, make_policy(name, 4))
        options = {"return_dict_in_generate": True}
        output = generate(pair, prompt_of(seed), spec, stopping_criteria=[ours], **options)
        expected = generate(pair, prompt_of(seed), stopping_criteria=[theirs], **options)
        assert output.sequences.tolist() == expected.sequences.tolist()
        assert ours.asked == theirs.asked
        assert sum(r.emitted for r in spec.rounds) == output.sequences.shape[1] - 12
        assert getattr(output, CACHE).get_seq_length() == getattr(expected, CACHE).get_seq_length()
        last = spec.rounds[-1]
        cut += last.accepted == last.emitted
    assert cut or name == "ar"


def make_words() -> PreTrainedTokenizerFast:
    """w9 to w39 are their own ids; what stop strings are tried with, and the words of the example, come before."""
    known = {"abcdef": 3, "Why": 4, "does": 5, "ice": 6, "float": 7, "?": 8} | {f"w{i}": i for i in range(9, 40)}
    words = Tokenizer(models.WordLevel(known, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_stop_strings_and_time_end_an_answer():
    pair, tokenizer = make_pair(0.1, ends=()), make_words()
    full, spec = generate(pair, prompt_of(0)), speculate(pair.draft, "fixed", gamma=5)
    for place in (1, 3, 4, 5, 6, 7, 8):
        word = f"w{full[place]}" if place % 2 else f"w{full[place - 1]} w{full[place]}"
        criteria = [StopStringCriteria(tokenizer, [word])]
        ids = generate(pair, prompt_of(0), spec, stopping_criteria=criteria)
        assert ids == generate(pair, prompt_of(0), stopping_criteria=criteria) == full[: place + 1]
    assert len(generate(pair, prompt_of(0), spec, stopping_criteria=[MaxTimeCriteria(0.0)])) == 1


def test_the_draft_is_fed_each_token_once():
    """The prompt but its last token, then at most the two tokens that its cache lacks: no text is fed again."""
    pair, fed = make_pair(0.1, ends=()), []
    hook = pair.draft.register_forward_pre_hook(
        lambda model, args, inputs: fed.append(inputs["input_ids"].shape[1]), with_kwargs=True
    )
    spec = speculate(pair.draft, "gammatune", gamma=3)
    generate(pair, prompt_of(2), spec)
    hook.remove()
    expected, lacking = [11], 1
    for r in spec.rounds:
        expected += [lacking, *[1] * (r.drafted - 1)][: r.drafted]
        lacking = 2 if 0 < r.drafted == r.accepted else 1
    assert fed == expected and 2 in fed


def test_a_policy_forgets_as_its_carry_says():
    pair = make_pair(0.1)
    for carry, same in (("turn", True), ("never", False), ("question", False)):
        spec = speculate(pair.draft, "gammatune", carry=carry)
        generate(pair, prompt_of(4), spec)
        first, after = spec.rounds, spec.policy.state()
        generate(pair, prompt_of(4), spec)
        assert (spec.rounds[0].state == first[0].state) is same
        assert (spec.rounds[0].state == after) is not same


def test_padding_is_hidden_from_the_models_but_not_from_processors():
    pair, prompt, options = make_pair(0.1), prompt_of(6), {"repetition_penalty": 1.5}
    mask = torch.tensor([[0, 0, 0] + [1] * len(prompt)])
    for pad in (2, 9):  # a penalty on the pad token 9, which would end the answer, is felt
        spec, padded = (speculate(pair.draft, "gammatune_plus", tau=0.1) for _ in range(2))
        ids = generate(pair, [pad] * 3 + prompt, padded, attention_mask=mask, **options)
        assert ids == generate(pair, [pad] * 3 + prompt, attention_mask=mask, **options)
    pair = make_pair(0.1, ends=())  # to the end of the budget, which padding does not use up
    ids = generate(pair, prompt, spec)
    assert generate(pair, [2, 2, 2, *prompt], padded, attention_mask=mask) == ids
    assert facts(padded.rounds) == facts(spec.rounds)


@pytest.mark.parametrize("prompt", [[5], [7, 8, 9]], ids=["one token", "ends with an end of sequence"])
@pytest.mark.parametrize("name", ["ar", "fixed"])
def test_short_and_odd_prompts(prompt, name):
    pair = make_pair(0.1)
    assert generate(pair, prompt, speculate(pair.draft, name)) == generate(pair, prompt)


class Mixing(LogitsProcessor):
    """A user's own: moves scores by all that came before, and writes in place."""

    def __call__(self, input_ids, scores):
        scores[:, (input_ids.sum() * 7 + input_ids.shape[1]) % scores.shape[1]] += 3.0
        return scores


PROCESSED = {
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[11], [20, 21]],
    "min_new_tokens": 9,
    "max_new_tokens": 40,
}


def test_logits_processors_act_on_each_row_of_both_models():
    """Greedy answers are still the target's own, and a draft equal to the target is still always right."""
    for noise in (0.0, 0.4):
        pair = make_pair(noise)
        for seed in range(4):
            options = {**PROCESSED, "logits_processor": [Mixing()]}
            spec = speculate(pair.draft, "fixed", gamma=4)
            ids = generate(pair, prompt_of(seed), spec, **options)
            assert ids == generate(pair, prompt_of(seed), **options) != generate(pair, prompt_of(seed), max_new_tokens=40)
            rejected = sum(r.drafted - r.accepted for r in spec.rounds)
            assert (rejected == 0) is (noise == 0.0)


def test_processors_leave_the_logits_that_policies_watch():
    logits, ids = torch.zeros(2, 40), torch.tensor([prompt_of(0)])
    sampler = ProcessedSampler(LogitsProcessorList([Mixing()]), False, ids, hidden=0)
    assert sampler.distribution(logits, prompt_of(0), [torch.tensor([5])]).shape == (2,)
    assert not logits.any() and sampler.scores.any(dim=1).all()


def test_rows_after_the_wrong_tokens_are_noticed(monkeypatch):
    """Negative control: processors that see the committed tokens only, not the drafted ones."""
    shown = ProcessedSampler.distribution
    monkeypatch.setattr(
        ProcessedSampler, "distribution", lambda self, logits, text, drafted: shown(self, logits, text[: -len(logits)], [])
    )
    pair = make_pair(0.4)
    ids = [generate(pair, prompt_of(seed), speculate(pair.draft, "fixed", gamma=4), **PROCESSED) for seed in range(4)]
    assert ids != [generate(pair, prompt_of(seed), **PROCESSED) for seed in range(4)]


@pytest.fixture
def sliding_draft():
    config = MistralConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=2,
        sliding_window=6,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MistralForCausalLM(config).eval()


def test_windows_roll_back(sliding_draft):
    """As a draft, and as its own target, where only caches that were rolled back right agree in every token."""
    pair = make_pair(0.1, ends=())
    spec = speculate(sliding_draft, "fixed", gamma=5)
    if not WINDOWS_ROLL_BACK:
        with pytest.raises(UserError, match="sliding windows can from transformers 5.18 on"):
            generate(pair, prompt_of(1), spec)
        return
    assert generate(pair, prompt_of(1), spec) == generate(pair, prompt_of(1))
    assert sum(r.drafted - r.accepted for r in spec.rounds) > 20
    itself = SimpleNamespace(target=sliding_draft, eos_ids=())
    assert generate(itself, prompt_of(1), spec) == generate(itself, prompt_of(1))
    assert all(r.accepted == r.drafted for r in spec.rounds)
    assert generate(itself, prompt_of(1), speculate(pair.draft, "fixed", gamma=5)) == generate(itself, prompt_of(1))


def test_a_draft_with_a_short_context_stops_drafting():
    pair = make_pair(0.1, ends=())
    draft = random_pair(seed=1, noise=0.1, vocab_size=40, context=20).draft
    longest = []
    hook = draft.register_forward_pre_hook(
        lambda model, args, inputs: longest.append(inputs[CACHE].get_seq_length() + inputs["input_ids"].shape[1]),
        with_kwargs=True,
    )
    for length in (12, 20, 25):
        spec = speculate(draft, "fixed", gamma=3)
        assert generate(pair, prompt_of(1, length), spec) == generate(pair, prompt_of(1, length))
        assert {r.drafted for r in spec.rounds if r.context > 20} == {0}
    hook.remove()
    assert max(longest) == 20


def test_generate_returns_its_usual_record():
    pair = make_pair(0.1, ends=())
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "repetition_penalty": 1.3}
    spec = speculate(pair.draft, "fixed", gamma=3)
    output, expected = (generate(pair, prompt_of(0), each, max_new_tokens=9, **options) for each in (spec, None))
    assert type(output) is type(expected)
    assert output.sequences.tolist() == expected.sequences.tolist()
    for ours, theirs in ((output.scores, expected.scores), (output.logits, expected.logits)):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert getattr(output, CACHE).get_seq_length() == getattr(expected, CACHE).get_seq_length() == 20
    output.sequences += 0  # an ordinary tensor


def test_a_drafter_without_a_model_works_inside_generate():
    pair, prompt, accepted = make_pair(0.1, ends=()), prompt_of(3, 6) * 4, 0
    for name in ("fixed", "gammatune", "ucb"):
        spec = speculate(drafter=Lookup(), policy=make_policy(name, 3))
        options = {"max_new_tokens": 60, "repetition_penalty": 1.05}
        assert generate(pair, prompt, spec, **options) == generate(pair, prompt, **options)
        accepted += sum(r.accepted for r in spec.rounds)
        assert {r.forwards for r in spec.rounds} == {0}
    assert accepted > 10
    with pytest.raises(UserError, match="drafter=lookup has none"):
        speculate(drafter=Lookup(), policy="svip")
    for draft, drafter in ((pair.draft, Lookup()), (None, None)):
        with pytest.raises(UserError, match="either a draft model, or a drafter"):
            speculate(draft, "fixed", drafter=drafter)


class Heard(BaseStreamer):
    def __init__(self):
        self.ids, self.ended = [], 0

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        self.ended += 1


def test_a_streamer_gets_every_token_once():
    pair, ours, theirs = make_pair(0.1), Heard(), Heard()
    spec = speculate(pair.draft, "fixed", streamer=ours)
    for each, streamer in ((spec, ours), (None, theirs)):
        generate(pair, prompt_of(5), each, streamer=streamer, stopping_criteria=[Recorder(2, times=3)])
    assert vars(ours) == vars(theirs)


def sampled_p_value() -> float:
    """Chi-square of the first two of three sampled tokens against the target's exact table; rare cells pooled."""
    pair, prompt = random_pair(seed=5, noise=0.6, vocab_size=VOCAB, context=64), [5, 6, 7]
    expected = exact_pairs(pair.target, prompt) * DRAWS
    spec = speculate(pair.draft, "gammatune_plus", gamma=2, tau=0.3)
    options = {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 5,
        "repetition_penalty": 1.5,
        "max_new_tokens": 3,
        "eos_token_id": None,
        "pad_token_id": 2,
    }
    observed, drafted = np.zeros((VOCAB, VOCAB)), set()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        for _ in range(DRAWS):
            output = pair.target.generate(torch.tensor([prompt]), custom_generate=spec, **options)
            observed[tuple(output[0, 3:5].tolist())] += 1
            drafted |= {(r.drafted, r.accepted) for r in spec.rounds}
    assert {(2, 0), (2, 1), (2, 2)} <= drafted
    observed = observed.flatten()
    assert observed[expected == 0].sum() == 0
    common = expected >= 5
    pooled = [np.append(cells[common], cells[~common].sum()) for cells in (observed, expected)]
    return stats.chisquare(pooled[0], pooled[1] * DRAWS / pooled[1].sum()).pvalue


def exact_pairs(target, prompt: list[int]) -> np.ndarray:
    """Probability [V * V] of the first two tokens under the target alone: penalty 1.5, temperature 0.8, best five."""

    def following(ids):
        logits = target(torch.tensor([ids])).logits[0, -1].double()
        seen = torch.tensor(sorted(set(ids)))
        logits[seen] = torch.where(logits[seen] < 0, logits[seen] * 1.5, logits[seen] / 1.5)
        logits = logits / 0.8
        return logits.masked_fill(logits < logits.topk(5).values[-1], float("-inf")).softmax(dim=-1)

    first = following(prompt)
    return torch.cat([first[token] * following([*prompt, token]) for token in range(VOCAB)]).numpy()


def test_sampled_output_has_the_targets_distribution():
    assert sampled_p_value() > 1e-3


def test_distributions_that_tokens_were_not_drawn_from_are_noticed(monkeypatch):
    """Negative control: draws from flatter distributions than those that verification is told."""
    made = ProcessedSampler.__init__

    def flattened(self, *arguments):
        made(self, *arguments)
        self.draw = lambda weights: self.plain.draw(weights.sqrt() if len(weights) == 1 else weights)

    monkeypatch.setattr(ProcessedSampler, "__init__", flattened)
    assert sampled_p_value() < 1e-6


@pytest.mark.parametrize(
    ("policy", "options", "sentence"),
    [
        ("gamatune", {}, "no policy 'gamatune': choose ar, fixed"),
        (None, {}, "no policy None"),
        ("fixed", {"gama": 3}, "fixed has no setting gama: choose one of carry, stop_token, gamma"),
        ("fixed", {"gamma": "x"}, "fixed.gamma is wrong: Value 'x'"),
        ("fixed", {"gamma": 2.5}, "could not be converted to Integer"),
        ("fixed", {"gamma": True}, "could not be converted to Integer"),
        ("fixed", {"gamma": -1}, "0 or more"),
        ("ucb", {"arms": [1, "b"]}, "ucb.arms[1] is wrong"),
        ("oracle", {}, "must know the answer beforehand: choose ar, fixed"),
        (POLICIES["fixed"](), {"gamma": 3}, "go with a policy's name"),
    ],
)
def test_a_policy_that_there_is_not_is_refused(policy, options, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        speculate(make_pair(0.1).draft, policy, **options)


def test_a_hook_that_there_is_not_is_named(monkeypatch):
    monkeypatch.setattr(GenerationMixin, "generate", lambda self: None)
    with pytest.raises(UserError, match="has no custom_generate"):
        speculate(make_pair(0.1).draft, "fixed")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 2}, "asks for beam_search"),
        ({"num_return_sequences": 2, "do_sample": True}, "2 sequences"),
        ({"prompt_lookup_num_tokens": 3}, "leave out one of both"),
        ({"guidance_scale": 2.0}, "cannot take a rejected token back"),
        ({"return_dict_in_generate": True, "output_attentions": True}, "not collected"),
        ({"attention_mask": torch.tensor([[1] * 11 + [0]])}, "the attention mask hides its last token"),
        ({"cache_implementation": "static"}, "with a StaticCache cannot take tokens back"),
        ({"position_ids": torch.arange(3, 15)[None]}, "count from 0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_way_of_decoding_that_does_not_fit_is_refused(options, sentence):
    pair = make_pair(0.1)
    with pytest.raises(UserError, match=sentence):
        generate(pair, prompt_of(0), speculate(pair.draft, "fixed"), **options)


def test_inputs_and_models_that_do_not_fit_are_refused():
    pair = make_pair(0.1)
    target, spec, prompt = pair.target, speculate(pair.draft, "fixed"), torch.tensor([prompt_of(0)])
    with pytest.raises(UserError, match="2 sequences"):
        target.generate(prompt.repeat(2, 1), custom_generate=spec, max_new_tokens=4)
    with pytest.raises(UserError, match="leave out inputs_embeds"):
        target.generate(inputs_embeds=target.get_input_embeddings()(prompt), custom_generate=spec, max_new_tokens=4)
    filled = EagerModel(target, 40)
    filled.forward(prompt[0, :5], keep=1)
    with pytest.raises(UserError, match="already holds text"):
        target.generate(prompt, **{CACHE: filled.cache}, custom_generate=spec, max_new_tokens=4)
    for draft, sentence in (
        (random_pair(vocab_size=48).draft, "has 40 tokens and the draft's 48"),
        (random_pair(vocab_size=40, vocabulary=9).draft, "has 40 tokens and the draft's 9"),
        (MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=8, num_hidden_layers=1)), "cannot take tokens back"),
        (T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=8, num_layers=1)), "cannot take tokens back"),
    ):
        with pytest.raises(UserError, match=sentence):
            target.generate(prompt, custom_generate=speculate(draft, "fixed"), max_new_tokens=4)


@pytest.mark.parametrize("page", ["README.md", "docs/transformers.md"])
def test_the_example_runs_as_printed(page, tmp_path, capsys):
    """Its two checkpoints stand for any pair: here tiny ones on disk."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    example = next(example for example in examples if "speculate" in example)
    pair = random_pair(noise=0.1)
    for name, model in (("SmolLM2-1.7B-Instruct", pair.target), ("SmolLM2-135M-Instruct", pair.draft)):
        model.save_pretrained(tmp_path / name)
        make_words().save_pretrained(tmp_path / name)
        assert name in example
    names = {}
    exec(example.replace("HuggingFaceTB", str(tmp_path)), names)
    inputs, ids = names["inputs"], names["ids"]
    assert ids.tolist() == pair.target.generate(**inputs, do_sample=False, max_new_tokens=128).tolist()
    assert str(names["spec"].rounds[0].drafted) in capsys.readouterr().out


@pytest.mark.embedded
def test_the_real_pair_gives_the_same_rounds_in_both_loops(make_config):
    pair, accepted = load_pair(make_config("model_pair.draft.vocabulary=null").model_pair), 0
    engine = build_engine(pair)
    for question in load_questions(TasksConfig(name="demo", limit=1)).questions[:4]:
        prompt = build_prompt(pair.chat_template, pair.tokenizer, question.turns[:1], [])
        session = PolicySession(POLICIES["gammatune_plus"](gamma=4, tau=0.2))
        made = generate_speculative(engine, prompt, session, DecodeConfig(max_new_tokens=16))
        spec = speculate(pair.draft, "gammatune_plus", gamma=4, tau=0.2)
        ids = generate(pair, prompt, spec, max_new_tokens=16)
        assert ids == made.output_ids == generate(pair, prompt, max_new_tokens=16)
        assert facts(spec.rounds) == facts(made.rounds)
        accepted += sum(r.accepted for r in spec.rounds)
    assert accepted > 4
