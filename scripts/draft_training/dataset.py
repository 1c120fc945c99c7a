"""The plan of teacher shards, their production by parallel workers and the SpecBench overlap check."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from . import corpus, prompts
from .fast_llama import FastLlama
from .specbench import answer_text, chat_ids
from .teacher import Sample, Settings, generate, load_samples, save_samples

NGRAM = 13
ARTICLE = Settings(max_new=640, temperature=1.0)
DEV = {"chat": 24, "translation": 60, "summarization": 32, "qa": 48, "math": 40, "rag": 32}
ROUND = {"chat": 160, "math": 160, "qa": 160, "translation": 240, "summarization": 96, "rag": 72}


@dataclass(frozen=True)
class Shard:
    """One file of teacher samples: a kind of prompt, how many prompts, and a seed."""

    kind: str
    count: int
    seed: int
    split: str = "train"

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed:03d}-{self.kind}.pt"


def plan(rounds: int) -> list[Shard]:
    """Articles first because later shards quote them, then the dev set, then ``rounds`` of every kind."""
    articles = [Shard("article", 128, seed) for seed in range(2)]
    dev = [Shard(kind, count, 0, "dev") for kind, count in DEV.items()]
    return articles + dev + [Shard(kind, n, seed + 1) for seed in range(rounds) for kind, n in ROUND.items()]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def ngrams(text: str) -> set[tuple[str, ...]]:
    """All word 13-grams of a text."""
    parts = _words(text)
    return {tuple(parts[i : i + NGRAM]) for i in range(len(parts) - NGRAM + 1)}


class OverlapFilter:
    """Drops prompts that repeat a SpecBench turn exactly or share any word 13-gram with one."""

    def __init__(self, specbench: Path | None):
        self.exact, self.grams = set(), set()
        lines = specbench.read_text().splitlines() if specbench and specbench.exists() else []
        for turn in (turn for line in lines for turn in json.loads(line)["turns"]):
            self.exact.add(" ".join(_words(turn)))
            self.grams |= ngrams(turn)

    def clean(self, turns: list[str]) -> bool:
        """Whether no turn overlaps."""
        return not any(" ".join(_words(t)) in self.exact or self.grams & ngrams(t) for t in turns)


def load_material(folder: Path, shards: Path, tokenizer, split: str) -> prompts.Material:
    """Corpus texts plus the target's own sampled articles; every twentieth text belongs to the dev split."""
    rng = random.Random(7)
    texts = corpus.english_documents(folder, rng, 1800, 3600)
    texts = rng.sample(texts, min(len(texts), 1200))
    written = [answer_text(tokenizer, s) for p in sorted(shards.glob("train-*-article.pt")) for s in load_samples(p)]
    german = corpus.german_sentences(folder)
    written = [text for text in written if len(text) > 1200]

    def take(items: list[str]) -> list[str]:
        return [item for i, item in enumerate(items) if (i % 20 == 0) == (split == "dev")]

    # Self-written articles are repeated until they make up half of the documents: they resemble news.
    own = take(written)
    documents = take(texts) + own * (len(take(texts)) // max(1, len(own)))
    return prompts.Material(documents, take(german), corpus.wordnet_names(folder))


def _answer(model: FastLlama, tokenizer, chats: list[list[str]], shard: Shard) -> list[Sample]:
    """Teacher answers to the first turns and, where a chat has two, to the second turns as well."""
    first = [[{"role": "user", "content": turns[0]}] for turns in chats]
    settings = replace(ARTICLE if shard.kind == "article" else Settings(), seed=shard.seed)
    samples = generate(model, [chat_ids(tokenizer, m) for m in first], settings, shard.name)
    pairs = [(m, turns, s) for m, turns, s in zip(first, chats, samples, strict=True) if len(turns) > 1]
    second = [
        [
            *m,
            {"role": "assistant", "content": answer_text(tokenizer, s)},
            {"role": "user", "content": turns[1]},
        ]
        for m, turns, s in pairs
    ]
    samples += generate(model, [chat_ids(tokenizer, m) for m in second], settings, f"{shard.name}, turn 2")
    for sample in samples:
        sample.kind = shard.kind
    return samples


@dataclass
class Maker:
    """Produces shards; ``worker`` of ``workers`` takes every ``workers``-th shard of the plan."""

    model: FastLlama
    tokenizer: object
    packages: Path
    shards: Path
    overlap: OverlapFilter
    worker: int = 0
    workers: int = 1

    def run(self, shards: list[Shard]) -> None:
        """Write all of this worker's shards that do not exist yet."""
        materials: dict[str, prompts.Material] = {}
        for shard in tqdm(shards[self.worker :: self.workers], desc="shards"):
            path = self.shards / shard.name
            if path.exists():
                continue
            if shard.kind == "article" or shard.split not in materials:
                materials[shard.split] = load_material(self.packages, self.shards, self.tokenizer, shard.split)
            self._make(shard, materials[shard.split], path)
            if shard.kind == "article":
                materials.clear()

    def _make(self, shard: Shard, material: prompts.Material, path: Path) -> None:
        chats = prompts.make(shard.kind, shard.count, f"{shard.split}{shard.seed}", material)
        kept = [turns for turns in chats if self.overlap.clean(turns)]
        samples = _answer(self.model, self.tokenizer, kept, shard)
        save_samples(path, samples)
        new = sum(len(s.ids) - s.prompt_len for s in samples)
        count = {"prompts": len(kept), "dropped": len(chats) - len(kept), "new_tokens": new}
        count["prompt_tokens"] = sum(s.prompt_len for s in samples)
        path.with_suffix(".json").write_text(json.dumps(count))
