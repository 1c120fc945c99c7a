"""Real checkpoints, small enough to be written by a test: a tiny Llama and a byte-level tokenizer beside it."""

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gammatune.models.load import make_config
from gammatune.models.tiny import tiny_shape

SPECIAL = ["<unk>", "<s>", "</s>"]


def save_tokenizer(folder, extra=()):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet, *extra])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return len(vocab)


def save_llama(folder, vocab_size, seed=0, **settings):
    torch.manual_seed(seed)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
    }
    LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**sizes, **settings})).save_pretrained(folder)


def checkpoint_maker(parent):
    def make(name, extra=(), rows=None, **sizes):
        folder = parent / name
        tokens = save_tokenizer(folder, extra)
        save_llama(folder, rows or tokens, **sizes)
        return folder

    return make


def write_gguf(path, kind="qwen2", architecture=None, vocabulary="gpt2", kept=lambda name: True, more=None, **keys):
    """A tiny Qwen2, Qwen3 or Llama as one GGUF file; returns the model. A Llama's weights come out in another order.

    architecture: what the file claims to be. vocabulary: gpt2 (byte pairs), llama (pieces with scores), or None for none.
    kept: which tensors are written. more: tensors by the file's names. keys: more of them, with __ for a dot.
    """
    shape = tiny_shape(2, vocab_size=260, tie_word_embeddings=True, model_type=kind)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(shape))
    writer = gguf.GGUFWriter(path, architecture or kind)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    if vocabulary:
        write_vocabulary(writer, vocabulary)
    for name, value in keys.items():
        writer.add_key_value(name.replace("__", "."), value, gguf.GGUFValueType.get_type(value))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], shape.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        module, _, part = name.rpartition(".")
        if module != "lm_head" and kept(name):  # tied
            writer.add_tensor(f"{names.get_name(module)}.{part}", tensor.numpy())
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def write_vocabulary(writer, kind):
    """260 tokens, of which ab is put together."""
    writer.add_tokenizer_model(kind)
    writer.add_eos_token_id(2)
    writer.add_bos_token_id(1)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    if kind == "llama":
        tokens = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
        tokens[-4:] = ["\u2581", "a", "b", "ab"]  # bytes that no UTF-8 text has
        writer.add_token_list([*tokens, "\u2581ab"])
        writer.add_token_scores([-float(i) for i in range(260)])
        writer.add_token_types([2] + [3] * 2 + [6] * 252 + [1] * 5)
        return
    writer.add_token_list([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"])
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["a b"])
