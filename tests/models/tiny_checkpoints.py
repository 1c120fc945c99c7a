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


def write_gguf(path):
    """A tiny Qwen2 as one GGUF file; returns the model."""
    shape = tiny_shape(2, vocab_size=260, tie_word_embeddings=True, model_type="qwen2")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(shape))
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"])
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, shape.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if module != "lm_head":  # tied
            writer.add_tensor(f"{names.get_name(module)}.{kind}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
