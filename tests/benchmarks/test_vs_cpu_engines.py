"""Our arms beside engines: real arms on a tiny GGUF pair, what is compared with what, and what no engine is needed for."""

import sys
from dataclasses import replace

import engines
import numpy as np
import pandas as pd
import pytest
from engines import Engine, Offer, Way
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from harness import Decoder, Speeds
from models.tiny_checkpoints import write_gguf

from gammatune.models.pair import load_pair
from gammatune.policies import POLICIES

KINDS = ["adaptive", "autoregressive", "fixed_1", "fixed_3"]


@pytest.fixture
def benchmark(load_benchmark):
    return load_benchmark("vs_cpu_engines")


@pytest.fixture
def gguf_pair(tmp_path):
    """Words for a pair whose two models are one tiny GGUF file."""
    write_gguf(tmp_path / "tiny.gguf")
    paths = [f"model_pair.{role}.path={tmp_path / 'tiny.gguf'}" for role in ("target", "draft")]
    return ["model_pair=qwen2.5-coder-0.5b-1.5b", "model_pair.target.ends=[]", "model_pair.chat_template=plain", *paths]


def load_eager(job, gamma: int = 0, wrong: int | None = None) -> Offer:
    """Another real decoder of the job's file: the eager runtime in fp32, at one length; `wrong` corrupts that token."""
    from gammatune.compose import compose_config

    words = [f"model_pair.{role}.path={job.target.path}" for role in ("target", "draft")]
    config = compose_config(["model_pair=qwen2.5-coder-0.5b-1.5b", "model_pair.target.ends=[]", *words])
    decoder = Decoder(load_pair(config.model_pair, "cpu", "fp32"), "eager")

    def answer(prompt, policy, at=None):
        ids = decoder.answer(prompt, policy, job.tokens).output_ids
        return [(token + 1) % 256 if place == at else token for place, token in enumerate(ids)]

    return Offer(
        [
            Way("autoregressive", (32.0,), lambda prompt: answer(prompt, POLICIES["ar"]())),
            Way("fixed_3", (32.0, 32.0), lambda prompt: answer(prompt, POLICIES["fixed"](gamma=3), wrong)),
        ],
        ["Its draft is the target."],
    )


def use(monkeypatch, benchmark, *found: Engine) -> None:
    monkeypatch.setattr(benchmark, "ENGINES", found)
