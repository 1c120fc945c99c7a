import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from gammatune.config import CHAT_TEMPLATES
from gammatune.errors import UserError
from gammatune.models.tiny import ByteTokenizer
from gammatune.tasks import prompts
from gammatune.tasks.prompts import WRITERS, answer_text, build_prompt, prompt_text

ONE = (["Why does ice float?"], [])
TWO = (["Name a river.", "And\na lake?"], ["The Loire."])
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)
STORED = {
    "vicuna": (
        f"{SYSTEM} USER: Why does ice float? ASSISTANT:",
        f"{SYSTEM} USER: Name a river. ASSISTANT: The Loire.</s>USER: And\na lake? ASSISTANT:",
    ),
    "llama-2": (
        "[INST] Why does ice float? [/INST]",
        "[INST] Name a river. [/INST] The Loire. </s><s>[INST] And\na lake? [/INST]",
    ),
    "plain": ("Why does ice float?\n", "Name a river.\nThe Loire.\nAnd\na lake?\n"),
    "tokenizer": (
        "<s><|user|>Why does ice float?\n<|assistant|>",
        "<s><|user|>Name a river.\n<|assistant|>The Loire.</s>\n<|user|>And\na lake?\n<|assistant|>",
    ),
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LETTERS = "aZ9 é世🙂\n\t\x00\u2028<|>[]"
DATED = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}"


@pytest.fixture(scope="module")
def tokenizer():
    """A Llama-like tokenizer over bytes: <s> is 0 and put first, </s> is 1."""
    pieces = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE)


@pytest.mark.parametrize("template", STORED)
@pytest.mark.parametrize("which", [0, 1])
def test_prompts_equal_the_stored_strings(tokenizer, template, which):
    ids = build_prompt(template, tokenizer, *(ONE, TWO)[which])
    bos = "" if template == "tokenizer" else "<s>"
    assert tokenizer.decode(ids) == bos + STORED[template][which]
    assert ids[0] == 0 and ids[1] != 0


def test_separators_become_special_tokens_between_turns(tokenizer):
    assert [i for i in build_prompt("vicuna", tokenizer, *TWO) if i < 2] == [0, 1]
    assert [i for i in build_prompt("llama-2", tokenizer, *TWO) if i < 2] == [0, 1, 0]


def test_every_template_of_a_pair_is_known():
    assert set(CHAT_TEMPLATES) == {"tokenizer", *WRITERS} == set(STORED)


def test_the_byte_tokenizer_takes_plain_prompts():
    tokenizer = ByteTokenizer()
    ids = build_prompt("plain", tokenizer, *TWO)
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == STORED["plain"][1]


def test_a_template_that_prints_the_date_gives_the_same_prompt_every_day(tokenizer):
    dated = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, chat_template=DATED)
    assert tokenizer.decode(build_prompt("tokenizer", dated, *ONE)) == "26 Jul 2024"


@given(st.text(LETTERS))
def test_answers_lose_special_tokens_and_outer_white_space_only(text):
    tokenizer = ByteTokenizer()
    ids = [*tokenizer.encode(f" {text}\n"), tokenizer.eos_token_id]
    assert answer_text(tokenizer, ids) == text.strip()


def test_answers_of_a_transformers_tokenizer_lose_special_tokens(tokenizer):
    assert answer_text(tokenizer, tokenizer.encode(" The Loire, já.\n") + [1]) == "The Loire, já."


@given(st.lists(st.text(LETTERS, min_size=1), min_size=1, max_size=4), st.sampled_from(sorted(WRITERS)))
def test_an_earlier_turn_is_a_prefix_up_to_its_answer(turns, template):
    answers = ["yes"] * (len(turns) - 1)
    for n in range(1, len(turns)):
        assert prompt_text(template, turns, answers).startswith(prompt_text(template, turns[:n], answers[: n - 1]))


def test_unknown_and_missing_templates_are_refused():
    with pytest.raises(UserError, match="alpaca is not known: choose one of tokenizer, vicuna, llama-2, plain"):
        build_prompt("alpaca", ByteTokenizer(), *ONE)
    with pytest.raises(UserError, match="set model_pair.chat_template to vicuna"):
        build_prompt("tokenizer", ByteTokenizer(), *ONE)


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end_is_ended(tokenizer, monkeypatch):
    monkeypatch.setattr(prompts, "TEMPLATE_S", 0.1)
    endless = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, chat_template=ENDLESS)
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(UserError, match=r"cannot be rendered .TimeoutError: it takes more than 0.1 s.: set model_pair"):
        build_prompt("tokenizer", endless, *ONE)
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_prompts_are_made_in_other_threads_too(tokenizer):
    """Signals, and so the limit, belong to the main one."""
    with ThreadPoolExecutor(1) as threads:
        made = threads.submit(build_prompt, "tokenizer", tokenizer, *ONE).result()
    assert made == build_prompt("tokenizer", tokenizer, *ONE)
