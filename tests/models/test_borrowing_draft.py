"""A draft without tables, which borrows its target's embedding and LM head; and the shipped pair, which has one."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from gammatune.config import Checkpoint, PairConfig, TasksConfig
from gammatune.errors import UserError
from gammatune.models.load import check_int8, load_borrowing_draft, read_config
from gammatune.models.pair import load_pair
from gammatune.models.sources import locate
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import load_questions


def save_draft(folder, **sizes):
    """A draft as it is shipped: config, layers and final norm in bf16, no embeddings and no head."""
    torch.manual_seed(7)
    base = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
    draft = LlamaForCausalLM(LlamaConfig(**{**base, **sizes}))
    folder.mkdir(parents=True)
    draft.config.save_pretrained(folder)
    layers = {
        name: tensor.bfloat16()
        for name, tensor in draft.model.state_dict(prefix="model.").items()
        if "embed_tokens" not in name
    }
    save_file(layers, folder / "model.safetensors", metadata={"format": "pt"})
    return draft


@pytest.fixture
def target(make_checkpoint):
    return LlamaForCausalLM.from_pretrained(make_checkpoint("target", tie_word_embeddings=True))


def load_draft(target, folder):
    files = locate("draft", Checkpoint(path=str(folder), borrows_tables=True), "hub")
    return load_borrowing_draft(files, read_config(files), target)


def test_the_draft_borrows_the_targets_tables_and_computes_as_trained(target, tmp_path):
    trained = save_draft(tmp_path / "draft")
    draft = load_draft(target, tmp_path / "draft")
    for mine, theirs in ((draft.get_input_embeddings(), target.get_input_embeddings()), (draft.lm_head, target.lm_head)):
        assert mine.weight.data_ptr() == theirs.weight.data_ptr()
    assert draft.dtype == target.dtype
    assert draft.config.vocab_size == target.config.vocab_size
    trained = trained.bfloat16().float()
    trained.set_input_embeddings(target.get_input_embeddings())
    trained.set_output_embeddings(target.get_output_embeddings())
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        torch.testing.assert_close(draft(ids).logits, trained(ids).logits)


def drop_a_tensor(weights):
    del weights["model.layers.0.mlp.up_proj.weight"]


def add_a_tensor(weights):
    weights["lm_head.weight"] = torch.zeros(259, 32)


def reshape_a_tensor(weights):
    weights["model.norm.weight"] = torch.zeros(16)


@pytest.mark.parametrize(
    ("change", "named"),
    [(drop_a_tensor, "layers.0.mlp.up_proj.weight"), (add_a_tensor, "lm_head.weight"), (reshape_a_tensor, "norm.weight")],
)
def test_draft_weights_that_do_not_match_are_refused(target, tmp_path, change, named):
    save_draft(tmp_path / "draft")
    path = tmp_path / "draft" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(UserError, match=f"do not match their config.json .*{named}"):
        load_draft(target, tmp_path / "draft")


def test_a_draft_of_another_size_or_without_weights_is_refused(target, tmp_path):
    save_draft(tmp_path / "wide", hidden_size=64)
    with pytest.raises(UserError, match="hidden size 64 but borrows embeddings of size 32"):
        load_draft(target, tmp_path / "wide")
    save_draft(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        load_draft(target, tmp_path / "bare")


def test_a_pair_from_a_local_target_and_a_borrowing_draft(make_checkpoint, tmp_path):
    save_draft(tmp_path / "draft")
    target = Checkpoint(path=str(make_checkpoint("target", tie_word_embeddings=True)))
    draft = Checkpoint(path=str(tmp_path / "draft"), borrows_tables=True)
    config = PairConfig(name="local", cpu_dtype="bf16", target=target, draft=draft)
    pair = load_pair(config)
    assert pair.draft.lm_head.weight.data_ptr() == pair.target.lm_head.weight.data_ptr()
    assert pair.vocab_size == 259
    assert not any(p.requires_grad for p in pair.draft.parameters())
    int8 = replace(draft, quantization="int8")
    pair = load_pair(replace(config, draft=int8))
    assert pair.draft.lm_head.weight.dtype == torch.int8 and pair.target.lm_head.weight.dtype == torch.bfloat16
    assert pair.draft.model.embed_tokens is pair.target.model.embed_tokens
    with pytest.raises(UserError, match="borrowed tables is not quantised on a GPU"):
        check_int8(int8, "draft", torch.device("cuda"))


@pytest.mark.embedded
def test_the_real_target_answers(embedded_pair):
    pair = embedded_pair
    assert (pair.vocab_size, pair.eos_ids, pair.context, len(pair.draft_ids)) == (49152, (2,), 8192, 2048)
    sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert pair.identity["target"] == {"id": "HuggingFaceTB/SmolLM2-135M-Instruct", "gguf_sha256": sha256}
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = pair.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([pair.tokenizer.encode(prompt, add_special_tokens=False)])
    with torch.inference_mode():
        text = pair.target.generate(ids, max_new_tokens=6, do_sample=False)
    assert "Paris" in pair.tokenizer.decode(text[0, ids.shape[1] :])


@pytest.mark.embedded
def test_the_shipped_draft_often_agrees_with_the_target(embedded_pair):
    pair, agreed = embedded_pair, []
    for question in load_questions(TasksConfig(name="demo", include=["qa", "translation"], limit=2)).questions:
        ids = torch.tensor([build_prompt("tokenizer", pair.tokenizer, question.turns[:1], [])])
        with torch.inference_mode():
            text = pair.target.generate(ids, max_new_tokens=8, do_sample=False)
            drafted = pair.draft_ids[pair.draft(text).logits[0, ids.shape[1] - 1 : -1].argmax(-1)]
        agreed.append((drafted == text[0, ids.shape[1] :]).float())
    assert torch.cat(agreed).mean() > 0.2
