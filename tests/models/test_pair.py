"""Loading a pair from disk: what comes out, and one sentence for everything that cannot work."""

import json
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from gammatune.config import Checkpoint, PairConfig
from gammatune.errors import UserError
from gammatune.models import load
from gammatune.models.pair import load_pair


def refusal(config, device="cpu", dtype=None):
    with pytest.raises(UserError) as caught:
        load_pair(config, device, dtype)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def two(make_checkpoint, make_pair_config):
    target = make_checkpoint("target")
    draft = make_checkpoint("draft", seed=1, num_hidden_layers=1, max_position_embeddings=64)
    return target, draft, make_pair_config(target, draft)


@pytest.fixture
def no_weights_read(monkeypatch):
    """Fails the test when a refusal comes only after weights were read."""
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were read before the refusal"))


def test_a_pair_from_disk_is_ready_to_decode(two):
    pair = load_pair(two[2])
    assert (pair.context, pair.vocab_size, pair.eos_ids, pair.chat_template) == (64, 259, (2,), "tokenizer")
    assert pair.dtype == pair.target.dtype == torch.float32
    assert pair.target.config._attn_implementation == pair.draft.config._attn_implementation == "sdpa"
    for model in (pair.target, pair.draft):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
    assert not pair.random_weights
    assert pair.tokenizer.decode(pair.tokenizer.encode("hé\n")) == "hé\n"


def test_a_target_alone_needs_no_draft(two, make_pair_config):
    pair = load_pair(replace(two[2], draft=Checkpoint(path="/nonexistent", vocabulary=9)), with_draft=False)
    assert (pair.draft, pair.draft_ids, pair.context, pair.vocab_size) == (None, None, 128, 259)
    assert pair.identity == {"target": load_pair(two[2]).identity["target"]}


def test_dtype_is_the_configs_for_a_cpu_unless_given(two):
    assert load_pair(replace(two[2], cpu_dtype="bf16")).dtype == torch.bfloat16
    assert load_pair(two[2], dtype="fp16").draft.dtype == torch.float16
    assert "dtype=int4" in refusal(two[2], dtype="int4")


def test_what_training_leaves_in_a_config_does_no_harm(two):
    edit(two[0], use_cache=False, output_hidden_states=True)
    assert load_pair(two[2]).vocab_size == 259


def test_several_end_tokens_are_kept(two):
    path = two[0] / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, 7]}))
    assert load_pair(two[2]).eos_ids == (2, 7)


def test_identity_follows_the_weights_and_not_the_place(two, make_checkpoint, make_pair_config, tmp_path):
    target, draft, config = two
    identity = load_pair(config).identity
    moved = (tmp_path / "elsewhere").mkdir() or target.rename(tmp_path / "elsewhere" / "target")
    assert load_pair(make_pair_config(moved, draft)).identity == identity
    other = make_checkpoint("other/draft", seed=2, num_hidden_layers=1, max_position_embeddings=64)
    changed = load_pair(make_pair_config(moved, other)).identity
    assert changed["target"] == identity["target"]
    assert changed["draft"] != identity["draft"]
    (moved / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert load_pair(make_pair_config(moved, draft)).identity["target"] != identity["target"]


def test_padded_embeddings_are_cut_to_the_common_rows(two, make_checkpoint, make_pair_config):
    padded = make_checkpoint("padded", rows=320)
    pair = load_pair(make_pair_config(padded, two[1]))
    assert pair.target.lm_head.weight.shape[0] == 320
    assert pair.vocab_size == 259


@pytest.mark.usefixtures("no_weights_read")
def test_different_tokenizers_are_refused_also_at_equal_size(two, make_checkpoint, make_pair_config):
    one, other = make_checkpoint("one", extra=["hello"]), make_checkpoint("other", extra=["world"])
    message = refusal(make_pair_config(one, other))
    assert "different tokenizers" in message
    assert "'hello' to the target only" in message
    assert "different tokenizers" in refusal(make_pair_config(one, two[1]))


@pytest.mark.usefixtures("no_weights_read")
def test_a_head_without_a_row_for_each_token_is_refused(two, make_checkpoint, make_pair_config):
    short = make_checkpoint("short", rows=200)
    assert "only 200 output rows" in refusal(make_pair_config(two[0], short))


def test_a_token_that_no_head_can_produce_does_not_matter(two, make_checkpoint, make_pair_config):
    odd = make_checkpoint("odd", extra=["<pad>"], rows=259)
    assert load_pair(make_pair_config(two[0], odd)).vocab_size == 259


@pytest.mark.usefixtures("no_weights_read")
@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is damaged"),
        (lambda folder: edit(folder, model_type="bert", architectures=["BertModel"]), "is a BertModel, which cannot decode"),
        (lambda folder: edit(folder, architectures=["LlamaForSequenceClassification"]), "which cannot decode"),
        (lambda folder: edit(folder, model_type=None, architectures=None), "is not a model's settings"),
        (lambda folder: edit(folder, model_type="bert", architectures=None), "is a bert, which cannot decode"),
        (lambda folder: edit(folder, hidden_size="wide"), "is not a model's settings"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be read"),
    ],
)
def test_an_unusable_folder_is_refused_before_weights(two, break_it, words):
    break_it(two[1])
    message = refusal(two[2])
    assert words in message
    assert "draft" in message


@pytest.mark.skipif(bool(find_spec("sentencepiece")), reason="sentencepiece is installed here, so nothing is to be refused")
def test_a_sentencepiece_tokenizer_without_its_reader_is_refused(two):
    (two[0] / "tokenizer.json").rename(two[0] / "tokenizer.model")
    assert "pip install sentencepiece protobuf" in refusal(two[2])


def edit(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


SHARDS = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}


def only_an_index(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (truncate, "truncated or corrupt"),
        (
            lambda folder: (folder / "model.safetensors").write_text("version 1 of a pointer\nsize 9\n"),
            "truncated or corrupt",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "truncated or corrupt"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (lambda folder: only_an_index(folder, SHARDS), "lacks 2 of 2 weight files"),
        (lambda folder: only_an_index(folder, {}), "is no index of weight files"),
        (lambda folder: edit(folder, intermediate_size=96), "do not fit their config.json"),
        (lambda folder: edit(folder, num_hidden_layers=3), "lack 9 tensors"),
    ],
)
def test_damaged_weights_are_refused(two, break_it, words):
    break_it(two[0])
    assert words in refusal(two[2])


def test_old_style_weights_load_and_their_damage_shows(two):
    target = two[0]
    pair = load_pair(two[2])
    torch.save(pair.target.state_dict(), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    again = load_pair(two[2])
    assert torch.equal(again.target.lm_head.weight, pair.target.lm_head.weight)
    path = target / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    assert "truncated or corrupt" in refusal(two[2])


def test_code_in_a_checkpoint_is_not_run(two, tmp_path, monkeypatch):
    """Neither a pickle that would run something, nor a tokenizer of its own, whatever is answered when asked."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    target, ran = two[0], tmp_path / "RAN"
    settings = json.loads((target / "tokenizer_config.json").read_text())
    own = settings | {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    kind = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Own"}}
    (target / "tokenizer_config.json").write_text(json.dumps(own))
    (target / "own.py").write_text(f"open({str(ran)!r}, 'w')\n\nclass Own:\n    pass\n")
    words = f"wants to run its own code (own.Own in {target}), which gammatune never does"
    assert f"The tokenizer of target {target} {words}" in refusal(two[2])
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    (target / "model.safetensors").unlink()
    torch.save({"lm_head.weight": Touch(ran)}, target / "pytorch_model.bin")
    assert "pytorch_model.bin is a pickle that holds more than tensors, which could run code" in refusal(two[2])
    edit(target, **kind)
    assert f"The model of target {target} wants to run its own code (own.Config, own.Own in" in refusal(two[2])
    edit(target, model_type="llama", auto_map=kind["auto_map"])  # where transformers has its own, that one is taken
    assert "is a pickle" in refusal(two[2])
    assert not ran.exists()


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


@pytest.mark.usefixtures("no_weights_read")
def test_a_missing_folder_and_a_missing_device_are_refused(two):
    config = two[2]
    assert "is no folder" in refusal(replace(config, target=Checkpoint(id="t", path="/nonexistent")))
    assert "The pair has no draft: set model_pair.draft.id" in refusal(replace(config, draft=Checkpoint()))
    assert "is not known" in refusal(config, device="gpu")
    assert "is not supported" in refusal(config, device="meta")
    assert "torch sees" in refusal(config, device="cuda:99")


def test_wrong_words_in_the_config_are_refused():
    with pytest.raises(UserError, match=r"model_pair.source=hubb is not known"):
        PairConfig(name="x", source="hubb")
