"""Bytes counted on the meta device are the bytes a model takes, and a pair too large is refused with both numbers."""

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from gammatune.config import Checkpoint, PairConfig, Shape
from gammatune.errors import UserError
from gammatune.models import load
from gammatune.models.devices import free_bytes, free_container_bytes
from gammatune.models.load import Demand, check_memory, count_cache, count_weights, make_config
from gammatune.models.pair import load_pair
from gammatune.models.tiny import tiny_shape

LLAMA_7B = Shape(4096, 11008, 32, 32, 32, 32000)


@pytest.mark.parametrize(
    "shape",
    [
        tiny_shape(3),
        tiny_shape(2, tie_word_embeddings=True),
        tiny_shape(2, head_dim=32),
        tiny_shape(2, model_type="qwen2"),
        tiny_shape(2, model_type="qwen3", head_dim=32),
    ],
    ids=str,
)
def test_weights_and_cache_are_those_of_the_built_model(shape):
    config, dtype = make_config(shape), torch.bfloat16
    model, cache = AutoModelForCausalLM.from_config(config, dtype=dtype), DynamicCache()
    assert model.config.model_type == shape.model_type
    assert count_weights(Demand(config, Checkpoint(), dtype)) == sum(p.nbytes for p in model.parameters())
    shared = sum(p.nbytes for p in model.model.parameters()) - model.model.embed_tokens.weight.nbytes
    assert count_weights(Demand(config, Checkpoint(borrows_tables=True), dtype)) == shared
    head = torch.nn.Linear(shape.hidden_size, 50, bias=False, dtype=dtype)
    reduced = Checkpoint(borrows_tables=True, vocabulary=50)
    assert count_weights(Demand(config, reduced, dtype)) == shared + head.weight.nbytes
    with torch.inference_mode():
        model(torch.arange(37)[None], past_key_values=cache, use_cache=True)
    assert count_cache(config, dtype, 37) == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def test_a_7b_model_has_its_published_size():
    config = make_config(LLAMA_7B)
    assert count_weights(Demand(config, Checkpoint(), torch.float16)) == 2 * 6_738_415_616
    int8 = count_weights(Demand(config, Checkpoint(quantization="int8"), torch.float16))
    assert 6_738_415_616 < int8 < 1.1 * 6_738_415_616


def test_a_pair_that_does_not_fit_is_refused_with_both_numbers(monkeypatch):
    demand = Demand(make_config(LLAMA_7B), Checkpoint(), torch.float16)
    expected = 2 * 6_738_415_616 + count_cache(demand.config, torch.float16, 2048)
    monkeypatch.setattr(load, "free_bytes", lambda device: expected)
    check_memory("big", [demand], torch.device("cpu"))
    monkeypatch.setattr(load, "free_bytes", lambda device: expected - 1)
    with pytest.raises(UserError, match=f"big needs 13.6 GiB on cpu .{expected} bytes.*{expected - 1} bytes"):
        check_memory("big", [demand], torch.device("cpu"))


def test_no_machine_holds_a_model_of_a_petabyte():
    huge = Checkpoint(shape=Shape(2**20, 2**20, 100, 8, 8, 32000))
    for fields in ({"weights": "random"}, {"source": "tiny-random"}):
        with pytest.raises(UserError, match="The pair huge needs"):
            load_pair(PairConfig(name="huge", target=huge, draft=huge, **fields))


def test_free_memory_is_within_the_machine():
    assert 0 < free_bytes(torch.device("cpu")) <= psutil.virtual_memory().total


def test_a_containers_limit_counts(tmp_path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert free_container_bytes(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert free_container_bytes(tmp_path) == float("inf")
