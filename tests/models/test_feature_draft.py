"""A feature draft's module and its file: what it computes, what is stored, and for whom it is refused."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from runtimes.llamas import VOCAB, llama, odd_llama, qwen2
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from gammatune.errors import UserError
from gammatune.models.feature_draft import FILE, FORMAT, FeatureDraft, FeatureTap, hash_config, hash_vocabulary
from gammatune.models.int8 import quantise
from gammatune.models.tiny import ByteTokenizer

IDS = torch.arange(3, 30)
TOKENIZER = ByteTokenizer(VOCAB)


@dataclass
class Inputs:
    features: torch.Tensor  # [b, n, hidden]
    tokens: torch.Tensor  # [b, n]


def draw_inputs(batch: int = 2, length: int = 9) -> Inputs:
    generator = torch.Generator().manual_seed(length)
    features = torch.randn(batch, length, 64, generator=generator)
    return Inputs(features, torch.randint(VOCAB, (batch, length), generator=generator))


@pytest.fixture(params=[llama, qwen2], ids=["llama", "qwen2"])
def target(request):
    return request.param()


def test_pieces_through_a_cache_and_a_mask_of_ones_own_give_the_whole(target):
    draft, given = FeatureDraft.from_target(target, IDS), draw_inputs()
    whole, cache = draft(given.features, given.tokens), DynamicCache(config=draft.decoder.config)
    feeds = [(0, 4), (4, 5), (5, 9)]
    parts = [draft(given.features[:, a:b], given.tokens[:, a:b], cache=cache) for a, b in feeds]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    causal = torch.ones(2, 9, 9).tril().bool()
    torch.testing.assert_close(draft(given.features, given.tokens, mask=causal), whole)
    places = torch.arange(7, 16).expand(2, -1)
    moved = draft(given.features, given.tokens, positions=places, mask=causal)
    torch.testing.assert_close(moved, whole, msg="RoPE knows distances only", rtol=1e-3, atol=1e-3)


def test_it_starts_as_the_targets_last_layer_and_head(target):
    """Without the fused input: its layer on the target's residual stream is the target's own last step."""
    draft, tokens = FeatureDraft.from_target(target, IDS), draw_inputs().tokens
    tap, inputs = FeatureTap(target), []
    hook = target.model.layers[-1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    logits = target(tokens).logits
    tap.remove()
    hook.remove()
    features = draft.decoder(inputs_embeds=inputs[0]).last_hidden_state
    torch.testing.assert_close(features, tap.features)
    torch.testing.assert_close(draft.logits(features), logits[..., IDS])


def test_a_layer_in_int8_is_copied_as_the_numbers_it_stands_for():
    plain, held = FeatureDraft.from_target(qwen2()), FeatureDraft.from_target(quantise(qwen2()))
    for name, weight in held.decoder.state_dict().items():
        torch.testing.assert_close(weight, plain.decoder.state_dict()[name], rtol=0, atol=0.02)


def test_only_its_own_weights_are_trained_and_stored(target, tmp_path):
    draft, given = FeatureDraft.from_target(target, IDS), draw_inputs()
    draft.logits(draft(given.features, given.tokens)).sum().backward()
    assert all(parameter.grad is not None for parameter in draft.parameters())
    assert all(parameter.grad is None for parameter in target.parameters())
    stored = load_file(draft.save(tmp_path, TOKENIZER))
    assert {name.split(".")[0] for name in stored} == {"ids", "norm_embedding", "norm_feature", "fuse", "decoder"}
    assert sum(tensor.nbytes for tensor in stored.values()) < 2 * sum(p.numel() for p in draft.parameters()) + 8 * len(IDS)


@pytest.mark.parametrize("ids", [None, IDS], ids=["all tokens", "some tokens"])
def test_what_is_saved_is_what_is_loaded(target, tmp_path, ids):
    draft, given = FeatureDraft.from_target(target, ids), draw_inputs()
    draft.save(tmp_path, TOKENIZER, torch.float32)
    loaded = FeatureDraft.load(tmp_path, target, TOKENIZER)
    expected = draft.logits(draft(given.features, given.tokens))
    assert torch.equal(loaded.logits(loaded(given.features, given.tokens)), expected)
    assert expected.shape[-1] == (VOCAB if ids is None else len(IDS))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_as_a_model_of_the_targets_kind_it_gives_the_same_logits(target):
    draft, given = FeatureDraft.from_target(target, IDS), draw_inputs(batch=1)
    inputs = torch.nn.Embedding(9, 64)
    inputs.weight.data = draft.fuse_inputs(given.features, given.tokens)[0].detach()
    logits = draft.as_causal_lm(inputs)(torch.arange(9)[None]).logits
    torch.testing.assert_close(logits, draft.logits(draft(given.features, given.tokens)))


def change(folder: Path, about: dict | None = None, drop: str = "", **tensors) -> None:
    """Write the draft's file again with other tensors, or with other facts in its header."""
    path = folder / FILE
    content = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    known = {"format": FORMAT, "target_config": hash_config(llama().config), "target_vocabulary": hash_vocabulary(TOKENIZER)}
    save_file(content | tensors, path, known | (about or {}))


def cut_short(folder: Path) -> None:
    path = folder / FILE
    path.write_bytes(path.read_bytes()[:-100])


REFUSED = {
    "missing": (lambda folder: (folder / FILE).unlink(), "There is no feature_draft.safetensors"),
    "truncated": (cut_short, "truncated or corrupt"),
    "text": (lambda folder: (folder / FILE).write_text("version https://git-lfs"), "truncated or corrupt"),
    "another file": (lambda folder: change(folder, {"format": "x"}), "no feature draft of this gammatune"),
    "tensor missing": (lambda folder: change(folder, drop="fuse.weight"), "not those of this draft"),
    "tensor of another shape": (lambda folder: change(folder, **{"fuse.weight": torch.zeros(2, 2)}), "not those of this"),
    "tensor too many": (lambda folder: change(folder, more=torch.zeros(2)), "not those of this draft"),
    "NaN": (lambda folder: change(folder, **{"fuse.weight": torch.full((64, 128), torch.nan)}), "NaN or infinite"),
    "ids beyond": (lambda folder: change(folder, ids=torch.tensor([1, 40], dtype=torch.int32)), "no rising list"),
    "ids unordered": (lambda folder: change(folder, ids=torch.tensor([4, 1], dtype=torch.int32)), "no rising list"),
    "ids none": (lambda folder: change(folder, ids=torch.zeros(0, dtype=torch.int32)), "no rising list"),
    "ids fractions": (lambda folder: change(folder, ids=torch.tensor([1.5, 2.5])), "no rising list"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_file_that_cannot_be_used_is_refused_in_one_sentence(tmp_path, fault):
    damage, says = REFUSED[fault]
    FeatureDraft.from_target(llama(), IDS).save(tmp_path, TOKENIZER)
    damage(tmp_path)
    with pytest.raises(UserError, match=says) as refused:
        FeatureDraft.load(tmp_path, llama(), TOKENIZER)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_another_target_is_refused_and_the_same_in_another_dtype_is_not(tmp_path):
    FeatureDraft.from_target(llama(), IDS).save(tmp_path, TOKENIZER)
    for other in (qwen2(), llama(kv_heads=4), odd_llama()):
        with pytest.raises(UserError, match="target of other sizes or of another kind"):
            FeatureDraft.load(tmp_path, other, TOKENIZER)
    with pytest.raises(UserError, match="another tokenizer"):
        FeatureDraft.load(tmp_path, llama(), ByteTokenizer(VOCAB - 1))
    assert FeatureDraft.load(tmp_path, llama().bfloat16(), TOKENIZER).dtype is torch.bfloat16
