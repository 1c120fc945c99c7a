"""Bytes counted from a shape are the bytes a built model takes, and a pair too large is refused with both numbers."""

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from gammatune.config import Checkpoint, PairConfig, Shape
from gammatune.errors import UserError
from gammatune.models import memory
from gammatune.models.memory import Need, cache_bytes, free_bytes, free_container_bytes, require_memory, weight_bytes
from gammatune.models.pairs import load_pair
from gammatune.models.tiny import llama_config, tiny_shape

LLAMA_7B = Shape(4096, 11008, 32, 32, 32, 32000)


@pytest.mark.parametrize(
    "shape",
    [
        tiny_shape(3),
        replace(tiny_shape(2), tie_word_embeddings=True),
        replace(tiny_shape(2), head_dim=32, num_key_value_heads=4),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_bytes_are_those_of_the_built_model(shape, dtype):
    model = LlamaForCausalLM(llama_config(shape)).to(dtype)
    assert weight_bytes(Need(shape, dtype)) == sum(p.numel() * p.element_size() for p in model.parameters())
    shared = sum(p.numel() * p.element_size() for p in model.model.parameters()) - model.model.embed_tokens.weight.nbytes
    assert weight_bytes(Need(shape, dtype, shared_embeddings=True)) == shared
    head = torch.nn.Linear(shape.hidden_size, 50, bias=False, dtype=dtype)
    assert weight_bytes(Need(shape, dtype, shared_embeddings=True, head=50)) == shared + head.weight.nbytes


def test_a_7b_model_has_its_published_size():
    assert weight_bytes(Need(LLAMA_7B, torch.float16)) == 2 * 6_738_415_616
    int8 = weight_bytes(Need(LLAMA_7B, torch.float16, "int8"))
    assert 6_738_415_616 < int8 < 1.1 * 6_738_415_616


def test_cache_bytes_are_those_of_a_filled_cache():
    shape = tiny_shape(2)
    model, cache = LlamaForCausalLM(llama_config(shape)), DynamicCache()
    with torch.inference_mode():
        model(torch.arange(37)[None], past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(Need(shape, torch.float32), 37) == held


def test_a_pair_that_does_not_fit_is_refused_with_both_numbers(monkeypatch):
    need = Need(LLAMA_7B, torch.float16)
    expected = 2 * 6_738_415_616 + cache_bytes(need, 2048)
    monkeypatch.setattr(memory, "free_bytes", lambda device: expected)
    require_memory("big", [need], torch.device("cpu"))
    monkeypatch.setattr(memory, "free_bytes", lambda device: expected - 1)
    with pytest.raises(UserError, match=f"big needs 13.6 GiB on cpu .{expected} bytes.*{expected - 1} bytes"):
        require_memory("big", [need], torch.device("cpu"))


def test_no_machine_holds_a_model_of_a_petabyte():
    shape = Shape(2**20, 2**20, 200, 8, 8, 32000)
    target, draft = Checkpoint(id="t", shape=shape), Checkpoint(id="d", shape=shape)
    config = PairConfig(name="huge", weights="random", target=target, draft=draft)
    with pytest.raises(UserError, match="The pair huge needs"):
        load_pair(config)


def test_free_memory_is_within_the_machine():
    total = memory.os.sysconf("SC_PHYS_PAGES") * memory.os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_bytes(torch.device("cpu")) <= total


def test_a_containers_limit_counts(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert free_container_bytes(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert free_container_bytes(tmp_path) == float("inf")
