"""Policies inside transformers' generate: its verification and ours, two independent loops, give the same rounds."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import DynamicCache, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from gammatune import transformers as integration
from gammatune.config import DecodeConfig, TasksConfig
from gammatune.decoding.loop import generate_speculative
from gammatune.errors import UserError
from gammatune.models.pair import load_pair, random_pair
from gammatune.policies import POLICIES
from gammatune.runtimes.base import eager_runtime
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import load_questions
from gammatune.transformers import speculate
from gammatune.transformers_candidates import PolicyCandidates

ROOT = Path(__file__).parents[2]
LIVE = [name for name, option in POLICIES.items() if not option.rule.oracle]
STARTS = [1, 2, 3, 5, 8, 16]
VOCAB, DRAWS = 8, 1000


@cache
def make_runtime(noise: float, ends: tuple[int, ...] = (9, 17)):
    """A tiny pair of forty tokens, two of which end an answer."""
    runtime = eager_runtime(random_pair(seed=1, noise=noise, vocab_size=40))
    runtime.pair.eos_ids = ends
    return runtime


def prompt_of(seed: int, length: int = 12) -> list[int]:
    return torch.randint(4, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def generate(runtime, prompt: list[int], spec=None, **options) -> list[int]:
    """New ids of target.generate, greedy, under a policy or on its own."""
    ends = list(runtime.pair.eos_ids) or None
    options = {"do_sample": False, "eos_token_id": ends, "pad_token_id": 2, "max_new_tokens": 30} | options
    output = runtime.pair.target.generate(torch.tensor([prompt]), custom_generate=spec, **options)
    return output[0, len(prompt) :].tolist()


def make_policy(name: str, gamma: int, **others):
    fields = POLICIES[name].rule.__dataclass_fields__
    return POLICIES[name](**({"gamma": gamma} if "gamma" in fields else {}), **others)


def facts(rounds) -> list[tuple]:
    return [(*r.counts(), r.forwards) for r in rounds]


@pytest.mark.parametrize("name", LIVE)
@settings(max_examples=5, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    gamma=st.sampled_from(STARTS),
    budget=st.integers(1, 30),
    noise=st.sampled_from([0.0, 0.1, 2.0]),
    stop_token=st.sampled_from(["include", "exclude"]),
)
def test_rounds_equal_those_of_our_own_loop(name, seed, gamma, budget, noise, stop_token):
    runtime, prompt = make_runtime(noise), prompt_of(seed)
    ours, theirs = (make_policy(name, gamma, stop_token=stop_token) for _ in range(2))
    spec = speculate(runtime.pair.draft, theirs)
    ids = generate(runtime, prompt, spec, max_new_tokens=budget)
    made = generate_speculative(runtime, prompt, ours, DecodeConfig(max_new_tokens=budget))
    assert ids == made.output_ids == generate(runtime, prompt, max_new_tokens=budget)
    assert facts(spec.rounds) == facts(made.rounds)
    assert theirs.state() == ours.state()


def test_an_accepted_end_of_sequence_counts():
    """transformers reports one match less there; gammatune's GammaTune would then shrink without cause."""
    runtime, full = make_runtime(0.0), 0
    for seed in range(12):
        spec = speculate(runtime.pair.draft, "fixed", gamma=4)
        ids = generate(runtime, prompt_of(seed), spec)
        last = spec.rounds[-1]
        assert sum(r.emitted for r in spec.rounds) == len(ids)
        if last.stop == "eos":
            assert last.accepted == last.drafted == last.emitted
            full += 1
    assert full > 3


def test_the_draft_is_fed_each_token_once():
    """The prompt but its last token, then at most the two tokens that its cache lacks: no text is fed again."""
    runtime, fed = make_runtime(0.1, ends=()), []
    hook = runtime.pair.draft.register_forward_pre_hook(
        lambda model, args, kwargs: fed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    spec = speculate(runtime.pair.draft, "gammatune", gamma=3)
    generate(runtime, prompt_of(2), spec)
    hook.remove()
    expected, lacking = [11], 1
    for r in spec.rounds:
        expected += [lacking, *[1] * (r.drafted - 1)][: r.drafted]
        lacking = 2 if 0 < r.drafted == r.accepted else 1
    assert fed == expected and 2 in fed


def test_a_policy_forgets_as_its_carry_says():
    runtime = make_runtime(0.1)
    for carry, same in (("turn", True), ("never", False), ("question", False)):
        spec = speculate(runtime.pair.draft, "gammatune", carry=carry)
        generate(runtime, prompt_of(4), spec)
        first, after = spec.rounds, spec.policy.state()
        generate(runtime, prompt_of(4), spec)
        assert (spec.rounds[0].state == first[0].state) is same
        assert (spec.rounds[0].state == after) is not same


def test_padding_is_hidden_from_the_draft():
    runtime, prompt = make_runtime(0.1), prompt_of(6)
    spec = speculate(runtime.pair.draft, "gammatune_plus", tau=0.1)
    ids = generate(runtime, prompt, spec)
    mask = torch.tensor([[0, 0, 0] + [1] * len(prompt)])
    padded = speculate(runtime.pair.draft, "gammatune_plus", tau=0.1)
    assert generate(runtime, [2, 2, 2, *prompt], padded, attention_mask=mask) == ids
    assert facts(padded.rounds) == facts(spec.rounds)


@pytest.mark.parametrize("prompt", [[5], [7, 8, 9]], ids=["one token", "ends with an end of sequence"])
@pytest.mark.parametrize("name", ["ar", "fixed"])
def test_short_and_odd_prompts(prompt, name):
    runtime = make_runtime(0.1)
    assert generate(runtime, prompt, speculate(runtime.pair.draft, name)) == generate(runtime, prompt)


def test_logits_processors_act_on_both_models():
    """With a penalty greedy answers are still the target's own, and a draft equal to the target is still always right."""
    options = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "max_new_tokens": 40}
    for noise in (0.0, 0.4):
        runtime = make_runtime(noise, ends=())
        spec = speculate(runtime.pair.draft, "fixed", gamma=4)
        ids = generate(runtime, prompt_of(3), spec, **options)
        assert ids == generate(runtime, prompt_of(3), **options) != generate(runtime, prompt_of(3), max_new_tokens=40)
        rejected = sum(r.drafted - r.accepted for r in spec.rounds)
        assert (rejected == 0) is (noise == 0.0)


@pytest.fixture
def sliding_draft():
    shape = {
        "vocab_size": 40,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    config = MistralConfig(**shape, num_hidden_layers=2, sliding_window=6, max_position_embeddings=128)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MistralForCausalLM(config).eval()


@pytest.mark.skipif(integration.installed_version() < (5, 18), reason="refused there")
def test_a_draft_with_a_sliding_window_rolls_back(sliding_draft):
    """Also as its own target, where only a cache that was rolled back right agrees with itself in every token."""
    runtime = make_runtime(0.1, ends=())
    spec = speculate(sliding_draft, "fixed", gamma=5)
    assert generate(runtime, prompt_of(1), spec) == generate(runtime, prompt_of(1))
    assert sum(r.drafted - r.accepted for r in spec.rounds) > 20
    output = sliding_draft.generate(torch.tensor([prompt_of(1)]), custom_generate=spec, do_sample=False, max_new_tokens=40)
    assert all(r.accepted == r.drafted for r in spec.rounds) and output.shape[1] == 52


def test_a_sliding_window_is_refused_where_it_cannot_roll_back(sliding_draft, monkeypatch):
    runtime = make_runtime(0.1)
    monkeypatch.setattr(integration.transformers, "__version__", "5.17.0")
    with pytest.raises(UserError, match="sliding window, which transformers 5.17.0 cannot roll back"):
        generate(runtime, prompt_of(1), speculate(sliding_draft, "fixed"))
    assert generate(runtime, prompt_of(1), speculate(runtime.pair.draft, "fixed")) == generate(runtime, prompt_of(1))


def test_a_draft_with_a_short_context_stops_drafting():
    runtime = make_runtime(0.1, ends=())
    draft = random_pair(seed=1, noise=0.1, vocab_size=40, context=20).draft
    spec = speculate(draft, "fixed", gamma=3)
    assert generate(runtime, prompt_of(1), spec) == generate(runtime, prompt_of(1))
    assert {r.drafted for r in spec.rounds if r.context >= 19} == {0} != {r.drafted for r in spec.rounds}


def test_generate_returns_its_usual_record():
    runtime = make_runtime(0.1, ends=())
    options = {"return_dict_in_generate": True, "output_scores": True, "max_new_tokens": 9, "pad_token_id": 2}
    spec = speculate(runtime.pair.draft, "fixed", gamma=3)
    output = runtime.pair.target.generate(torch.tensor([prompt_of(0)]), custom_generate=spec, do_sample=False, **options)
    assert len(output.scores) == 9 and output.sequences.shape == (1, 21)


def sampled_p_value() -> float:
    """Chi-square of the first two of three sampled tokens against the target's exact table; rare cells pooled."""
    pair, prompt = random_pair(seed=5, noise=0.6, vocab_size=VOCAB, context=64), [5, 6, 7]
    expected = exact_pairs(pair.target, prompt) * DRAWS
    spec = speculate(pair.draft, "gammatune_plus", gamma=2, tau=0.3)
    options = {
        "do_sample": True,
        "temperature": 0.8,
        "top_k": 5,
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
    """Probability [V * V] of the first two tokens under the target alone, at temperature 0.8 among the best five."""

    def following(ids):
        logits = target(torch.tensor([ids])).logits[0, -1].double() / 0.8
        return logits.masked_fill(logits < logits.topk(5).values[-1], float("-inf")).softmax(dim=-1)

    first = following(prompt)
    return torch.cat([first[token] * following([*prompt, token]) for token in range(VOCAB)]).numpy()


def test_sampled_output_has_the_targets_distribution():
    assert sampled_p_value() > 1e-3


def test_scores_that_tokens_were_not_drawn_from_are_noticed(monkeypatch):
    """Negative control: a draft that hands over its scores but draws from flatter ones."""
    draw = PolicyCandidates.draw
    monkeypatch.setattr(PolicyCandidates, "draw", lambda self, scores: draw(self, scores / 4))
    assert sampled_p_value() < 1e-6


@pytest.mark.parametrize(
    ("policy", "options", "sentence"),
    [
        ("gamatune", {}, "no policy 'gamatune': choose ar, fixed"),
        (None, {}, "no policy None"),
        ("fixed", {"gama": 3}, "Policy fixed has no field 'gama': it has carry, stop_token, gamma"),
        ("fixed", {"gamma": "3"}, "fixed.gamma='3' is not usable: it must be a whole number"),
        ("fixed", {"gamma": 2.5}, "a whole number"),
        ("fixed", {"gamma": True}, "a whole number"),
        ("fixed", {"gamma": -1}, "0 or more"),
        ("ucb", {"arms": [1, "2"]}, "a list of whole numbers"),
        ("oracle", {}, "must know the answer beforehand: choose ar, fixed"),
        (POLICIES["fixed"](), {"gamma": 3}, "go with a policy's name"),
    ],
)
def test_a_policy_that_there_is_not_is_refused(policy, options, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        speculate(make_runtime(0.1).pair.draft, policy, **options)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 2}, "num_beams"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences"),
        ({"prompt_lookup_num_tokens": 3}, "leave out one of both"),
        ({"assistant_ensemble_weight": 0.5}, "assistant_ensemble_weight"),
        ({"attention_mask": torch.zeros(1, 12, dtype=torch.long)}, "hides the whole prompt"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_a_way_of_decoding_that_does_not_fit_is_refused(options, sentence):
    runtime = make_runtime(0.1)
    with pytest.raises(UserError, match=sentence):
        generate(runtime, prompt_of(0), speculate(runtime.pair.draft, "fixed"), **options)


def test_inputs_and_models_that_do_not_fit_are_refused():
    pair = make_runtime(0.1).pair
    target, spec, prompt = pair.target, speculate(pair.draft, "fixed"), torch.tensor([prompt_of(0)])
    with pytest.raises(UserError, match="2 prompts"):
        target.generate(prompt.repeat(2, 1), custom_generate=spec, max_new_tokens=4)
    with pytest.raises(UserError, match="inputs_embeds"):
        target.generate(inputs_embeds=target.get_input_embeddings()(prompt), custom_generate=spec, max_new_tokens=4)
    filled = DynamicCache(config=target.config)
    target(prompt[:, :5], past_key_values=filled)
    with pytest.raises(UserError, match="past_key_values"):
        target.generate(prompt, past_key_values=filled, custom_generate=spec, max_new_tokens=4)
    with pytest.raises(UserError, match="40 entries and the draft's 48"):
        target.generate(prompt, custom_generate=speculate(random_pair(vocab_size=48).draft, "fixed"))
    with pytest.raises(UserError, match="head has 9 rows for 40 tokens"):
        target.generate(prompt, custom_generate=speculate(random_pair(vocab_size=40, vocabulary=9).draft, "fixed"))


@pytest.mark.parametrize(
    ("version", "fits"), [("5.16.1", False), ("5.17.0", True), ("5.23.4", True), ("5.24.0.dev0", False)]
)
def test_only_versions_that_were_checked_are_taken(monkeypatch, version, fits):
    monkeypatch.setattr(integration.transformers, "__version__", version)
    if fits:
        integration.require_version()
    else:
        with pytest.raises(UserError, match=f"transformers {version} is installed.*5.17 to 5.23"):
            integration.require_version()


def test_the_example_in_the_docs_runs(tmp_path, capsys):
    """Its two checkpoints stand for any pair: here tiny ones on disk."""
    text = (ROOT / "docs/transformers.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    pair = random_pair(noise=0.1)
    words = Tokenizer(
        models.WordLevel({word: i + 4 for i, word in enumerate(["Why", "does", "ice", "float", "?"])}, unk_token="?")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    for name, model in (("SmolLM2-1.7B-Instruct", pair.target), ("SmolLM2-135M-Instruct", pair.draft)):
        model.save_pretrained(tmp_path / name)
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / name)
        assert name in example
    names = {}
    exec(example.replace("HuggingFaceTB", str(tmp_path)), names)
    inputs, ids = names["inputs"], names["ids"]
    assert ids.tolist() == pair.target.generate(**inputs, do_sample=False, max_new_tokens=128).tolist()
    assert str(names["spec"].rounds[0].drafted) in capsys.readouterr().out


@pytest.mark.embedded
def test_the_real_pair_gives_the_same_rounds_in_both_loops(embedded_pair, make_config):
    """With a whole head: transformers verifies the ids that the draft's rows stand for."""
    pair, accepted = load_pair(make_config("model_pair.draft.vocabulary=null").model_pair), 0
    runtime = eager_runtime(pair)
    for question in load_questions(TasksConfig(name="demo", limit=1)).questions[:4]:
        prompt = build_prompt(pair.chat_template, pair.tokenizer, question.turns[:1], [])
        spec = speculate(pair.draft, "gammatune_plus", gamma=4, tau=0.2)
        ids = generate(runtime, prompt, spec, max_new_tokens=16)
        made = generate_speculative(
            runtime, prompt, POLICIES["gammatune_plus"](gamma=4, tau=0.2), DecodeConfig(max_new_tokens=16)
        )
        assert ids == made.output_ids == generate(runtime, prompt, max_new_tokens=16)
        assert facts(spec.rounds) == facts(made.rounds)
        accepted += sum(r.accepted for r in spec.rounds)
    assert accepted > 4
