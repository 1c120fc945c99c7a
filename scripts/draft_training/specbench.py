"""SpecBench: its questions, and the target's own greedy answers to them."""

from __future__ import annotations

import json
from pathlib import Path

from .fast_llama import FastLlama
from .teacher import Sample, Settings, generate

MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}


def load_questions(path: Path) -> list[dict]:
    """Read SpecBench's questions, with ``task`` naming one of its six tasks."""
    questions = [json.loads(line) for line in path.read_text().splitlines()]
    for question in questions:
        question["task"] = "mt_bench" if question["category"] in MT_BENCH else question["category"]
    return questions


def chat_ids(tokenizer, messages: list[dict]) -> list[int]:
    """Token ids of a chat that ends where the assistant answers."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_text(tokenizer, sample: Sample) -> str:
    """The generated part of a sample as text, without special tokens."""
    return tokenizer.decode(sample.ids[sample.prompt_len :].tolist(), skip_special_tokens=True)


def specbench_outputs(model: FastLlama, tokenizer, questions: list[dict]) -> list[Sample]:
    """The target's greedy answers to all turns; the second turn sees the target's own first answer."""
    first = [[{"role": "user", "content": q["turns"][0]}] for q in questions]
    samples = generate(model, [chat_ids(tokenizer, m) for m in first], Settings(), "turn 1")
    second, kinds = [], [q["task"] for q in questions]
    for question, messages, sample in zip(questions, first, samples, strict=True):
        if len(question["turns"]) > 1:
            reply = {"role": "assistant", "content": answer_text(tokenizer, sample)}
            second.append([*messages, reply, {"role": "user", "content": question["turns"][1]}])
            kinds.append(question["task"])
    samples += generate(model, [chat_ids(tokenizer, m) for m in second], Settings(), "turn 2")
    for sample, kind in zip(samples, kinds, strict=True):
        sample.kind = kind
    return samples
