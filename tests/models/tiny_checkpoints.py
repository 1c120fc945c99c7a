"""Real checkpoints, small enough to be written by a test: a tiny Llama and a byte-level tokenizer beside it."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
