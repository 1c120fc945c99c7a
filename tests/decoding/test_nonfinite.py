"""Logits that are no numbers end what asked for them, with the model and the place: never an answer of made-up tokens."""

import json
import re
from dataclasses import replace

import pytest
import torch
from models.tiny_checkpoints import checkpoint_maker
from safetensors.torch import load_file, save_file
from scripted import Scripted, ScriptedWatching
from table_model import TableModel, draw_prompt, table_engine
from transformers import LlamaForCausalLM

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import generate_autoregressive, generate_speculative
from gammatune.models.pair import random_pair
from gammatune.policies.session import PolicySession
from gammatune.runtimes.base import Models
from gammatune.runtimes.choose import Candidate, find_deviation
from gammatune.runtimes.finite import NonFiniteError
from gammatune.transformers import speculate

PLACE, PROMPT = 7, draw_prompt(3)
SPOILS = {
    "one NaN": lambda logits: logits.index_fill(0, torch.tensor([5]), torch.nan),
    "NaN beside infinity": lambda logits: logits.index_fill(0, torch.tensor([5]), torch.nan).index_fill(
        0, torch.tensor([2]), torch.inf
    ),
    "infinity": lambda logits: logits.index_fill(0, torch.tensor([39]), torch.inf),
    "no token": lambda logits: torch.full_like(logits, -torch.inf),
}


class Spoilt(TableModel):
    """Logits of one answer position are spoilt; those of the draft after any text of that length."""

    def look_up(self, prefix):
        logits = super().look_up(prefix)
        return self.spoil(logits) if len(prefix) == len(PROMPT) + PLACE else logits


def spoilt_engine(role: str, spoil):
    engine = table_engine(agreement=1.0, ends=())
    model = engine.target if role == "target" else engine.drafter.workplace.model
    model.__class__, model.spoil = Spoilt, spoil
    return engine


def message(role: str, dtype="fp32", place=PLACE) -> str:
    return rf"^The {role}'s logits \({dtype}\) are NaN or infinite at position {place} of the answer; "


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("policy", [Scripted, ScriptedWatching])
@pytest.mark.parametrize("role", ["target", "draft"])
def test_the_model_and_the_place_are_named(role, policy, spoil, temperature):
    engine, decode = spoilt_engine(role, SPOILS[spoil]), DecodeConfig(max_new_tokens=12, temperature=temperature)
    for plans in ([2], [12], *([[0], [1]] if role == "target" else [])):  # elsewhere the draft is not asked at that place
        with pytest.raises(NonFiniteError, match=message(role)):
            generate_speculative(engine, PROMPT, PolicySession(policy(plans=plans, keeps=[True])), decode)
    if role == "target":
        with pytest.raises(NonFiniteError, match=message("target")):
            generate_autoregressive(engine, PROMPT, decode)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_token_without_probability_is_no_error(temperature):
    """Heads are padded with -inf, and top-k leaves it: a row needs one finite number."""
    engine = spoilt_engine("target", lambda logits: logits.index_fill(0, torch.tensor([0, 39]), -torch.inf))
    decode = DecodeConfig(max_new_tokens=12, temperature=temperature, top_k=2)
    assert len(generate_speculative(engine, PROMPT, PolicySession(Scripted()), decode).output_ids) == 12


def test_a_trace_is_refused_at_the_place_and_after_it():
    engine = spoilt_engine("draft", SPOILS["one NaN"])
    answer = generate_autoregressive(engine, PROMPT, DecodeConfig(max_new_tokens=12)).output_ids
    with pytest.raises(NonFiniteError, match=message("draft")):
        engine.trace(PROMPT, answer, 12, 4)
    answer = [*answer[:4], (answer[4] + 1) % 40, answer[5]]  # from there the draft's own continuation reaches the place
    with pytest.raises(NonFiniteError, match=message("draft", place=4)):
        engine.trace(PROMPT, answer, 12, 4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints: a sound one, one whose LM head leaves the range of fp16 and one with a NaN among its weights."""
    parent = tmp_path_factory.mktemp("checkpoints")
    make, sizes = checkpoint_maker(parent), {"max_position_embeddings": 256, "hidden_size": 64, "intermediate_size": 64}
    found = {name: make(name, **sizes) for name in ("sound", "large", "damaged")}
    for name, spoil in (("large", lambda w: w * 1e7), ("damaged", lambda w: w.index_fill(1, torch.tensor([3]), torch.nan))):
        file = found[name] / "model.safetensors"
        weights = load_file(file)
        weights["lm_head.weight"] = spoil(weights["lm_head.weight"])
        save_file(weights, file, metadata={"format": "pt"})
    return found


@pytest.fixture
def words(folders, question_file):
    """words(target, draft) -> overrides of a small run of these checkpoints."""

    def choose(target, draft, *more):
        pair = ("model_pair=vicuna-68m-7b", "model_pair.chat_template=plain", "policy=fixed", "policy.fixed.gamma=3")
        pair += (f"model_pair.target.path={folders[target]}", f"model_pair.draft.path={folders[draft]}")
        return (
            *pair,
            "tasks=specbench",
            f"tasks.path={question_file}",
            "tasks.checksum=null",
            "decode.max_new_tokens=6",
            *more,
        )

    return choose


FP16 = r"Question 9, turn 1 of 1: The target's logits \(fp16\) .* position 0 .* bf16 or fp32 \(runtime.dtype=bf16\)\."


@pytest.mark.parametrize(
    ("target", "more", "says"),
    [
        ("large", ("runtime=eager", "runtime.dtype=fp16"), FP16),
        ("large", ("runtime=auto", "runtime.dtype=fp16"), FP16),
        ("damaged", ("runtime=eager",), r"The target's logits \(fp32\) .*weights are damaged"),
        ("damaged", ("runtime=compiled",), r"The target's logits \(fp32\) .*weights are damaged"),
        ("damaged", ("runtime=compiled", "runtime.dtype=bf16"), r"The target's logits \(bf16\) .*weights are damaged"),
    ],
    ids=str,
)
def test_a_run_whose_target_computes_nonsense_ends_in_one_sentence(call_run, words, target, more, says):
    ended = call_run(*words(target, "sound", *more))
    assert ended.code == 2 and re.search(says, ended.err.splitlines()[-1]), ended.err
    assert ended.last_line["status"] == "failed"


def test_two_runtimes_that_compute_the_same_nonsense_are_not_taken_for_equal():
    engine = spoilt_engine("target", SPOILS["one NaN"])
    engine.target.look_up = lambda prefix: torch.full((40,), torch.nan)
    both = Candidate(Models(engine.target, None, "compiled"), 1), Candidate(Models(engine.target, None, "eager"), 1)
    pair = replace(random_pair(), vocab_size=40)  # what is judged; the runtimes say the same of any text
    assert find_deviation(*both, pair).startswith("its target chooses tokens nan below eager's best logit")


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_what_leaves_the_range_of_fp16_is_no_error_elsewhere(call_run, words, dtype):
    ended = call_run(*words("large", "large", f"runtime.dtype={dtype}", "runtime=eager"))
    assert ended.code == 0 and ended.last_line["status"] == "ok"


def test_a_draft_that_computes_nonsense_fails_the_arms_that_use_it(call_run, words, tmp_path):
    ended = call_run(*words("sound", "damaged", "runtime=eager", "results=out"))
    assert ended.code == 2 and "1 arm left out: fixed-3 (error)" in ended.err
    assert "fixed-3 failed. Question 9, turn 1 of 1: The draft's logits (fp32) are NaN" in ended.err
    assert "no acceptance table is left. Question 9, turn 1 of 1: The draft's logits" in ended.err
    assert [arm["policy"] for arm in ended.last_line["arms"] if arm["exact"]] == ["ar"]
    cells = {file.parent.name.split("-")[0]: json.loads(file.read_text()) for file in (tmp_path / "cwd").rglob("done.json")}
    assert cells["fixed"]["error"].startswith("Question 9") and cells["ar"]["status"] == "ok"


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("command", [("record", "--out", "tables"), ("prices", "--contexts", "8", "--out", "prices.json")])
def test_recording_and_prices_end_in_the_same_sentence(call, words, monkeypatch, tmp_path, command, role):
    monkeypatch.chdir(tmp_path)
    chosen = words("damaged", "sound") if role == "target" else words("sound", "damaged")
    more = ("--gamma-max", "4", "--repeats", "1") if command[0] == "prices" else ()
    code, _, told = call(*command, *more, *(word for word in chosen if "policy" not in word), "runtime=eager")
    assert code == 2 and f"The {role}'s logits (fp32) are NaN" in told.splitlines()[-1]
    assert not list(tmp_path.rglob("*.parquet")) and not (tmp_path / "prices.json").exists()


@pytest.mark.parametrize("role", ["target", "draft"])
@pytest.mark.parametrize("sample", [False, True])
def test_generate_raises_the_same_sentence(folders, role, sample):
    models = {name: LlamaForCausalLM.from_pretrained(folders[name]).eval() for name in ("sound", "damaged")}
    target, draft = (models["damaged"], models["sound"]) if role == "target" else (models["sound"], models["damaged"])
    with pytest.raises(NonFiniteError, match=f"^The {role}'s logits"):
        target.generate(
            torch.tensor([[5, 6, 7]]), max_new_tokens=8, do_sample=sample, custom_generate=speculate(draft, "fixed", gamma=3)
        )
