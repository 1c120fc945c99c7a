"""The target as teacher: its answers to the prompts, and its most likely tokens at every position.

Samples are kept as `datasets` folders, one per shard, with a row per sample:
kind; prompt, the tokens of its prompt; size, its tokens n in all; ids [n]; and, flat, top_ids and top_p [(n - 1) * TOP],
the target's most likely next tokens after each position and their probabilities over the whole vocabulary.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets, disable_progress_bars, load_from_disk
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from gammatune.config import TasksConfig
from gammatune.errors import UserError
from gammatune.models.load import first_line
from gammatune.tasks.prompts import answer_text, build_prompt
from gammatune.tasks.questions import Question, load_questions

from .prompts import make_prompts
from .texts import Texts

TOP = 8
COLUMNS = {"kind": Value("string"), "prompt": Value("int32"), "size": Value("int32"), "ids": List(Value("int32"))}
COLUMNS |= {"top_ids": List(Value("int32")), "top_p": List(Value("float16"))}
OVERLAP = 13  # words in a row that no prompt shares with a Spec-Bench turn
ARTICLES = 256
HELD_OUT = {"chat": 24, "translation": 60, "summarization": 32, "qa": 48, "math": 40, "rag": 32}
ROUND = {"chat": 160, "math": 160, "qa": 160, "translation": 240, "summarization": 96, "rag": 72}
disable_progress_bars()


@dataclass
class Teacher:
    """The target, and how much it answers at a time."""

    model: PreTrainedModel
    tokenizer: object
    answer_tokens: int = 256  # longest answer
    cached_tokens: int = 72_000  # cache positions of a batch, padding included

    @torch.inference_mode()
    def answer(self, prompts: list[list[int]], longest: int, sample: bool = False) -> list[list[int]]:
        """New tokens for each prompt, greedy or sampled among the TOP most likely; the end token is the last of them."""
        end, answers = self.tokenizer.eos_token_id, [[] for _ in prompts]
        settings = {"do_sample": True, "temperature": 1.0, "top_k": TOP} if sample else {"do_sample": False}
        settings = GenerationConfig(max_new_tokens=longest, eos_token_id=end, pad_token_id=end, **settings)
        for rows in group_rows([len(prompt) + longest for prompt in prompts], self.cached_tokens):
            ids, mask = self.pad([prompts[row] for row in rows], left=True)
            made = self.model.generate(ids, attention_mask=mask, generation_config=settings)[:, ids.shape[1] :].tolist()
            for row, new in zip(rows, made, strict=True):
                answers[row] = new[: new.index(end) + 1] if end in new else new
        return answers

    @torch.inference_mode()
    def label(self, texts: list[list[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per text of n tokens: most likely next tokens and their probabilities, each [(n - 1) * TOP]."""
        labels = [None] * len(texts)
        for rows in group_rows([len(text) for text in texts], self.cached_tokens // 4):
            # Nothing looks to its right, so padding there needs no mask
            hidden = self.model.model(self.pad([texts[row] for row in rows])[0]).last_hidden_state
            for row, states in zip(rows, hidden, strict=True):
                parts = states[: len(texts[row]) - 1].split(512)
                found = [self.model.lm_head(part).float().softmax(-1).topk(TOP) for part in parts]
                tops = [torch.cat([getattr(part, name) for part in found]).flatten() for name in ("indices", "values")]
                labels[row] = tuple(top.cpu().numpy() for top in tops)
        return labels

    def pad(self, rows: list[list[int]], left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and attention mask [B, longest]."""
        sides = {"padding_side": "left" if left else "right", "batch_first": True}
        tensors = [torch.tensor(row) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(tensors, padding_value=self.tokenizer.eos_token_id, **sides)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tensors], **sides)
        return ids.to(self.model.device), mask.to(self.model.device)

    def make_samples(self, chats: list[list[str]], kinds: list[str], sample: bool = False) -> Dataset:
        """Answers to the first turns and, where a chat has two, to the second after the target's own first answer.

        Sampled ones, which serve as documents, are longer.
        """
        longest = self.answer_tokens * 5 // 2 if sample else self.answer_tokens
        first = [build_prompt("tokenizer", self.tokenizer, turns[:1], []) for turns in chats]
        answers = self.answer(first, longest, sample)
        long = [row for row, turns in enumerate(chats) if len(turns) > 1]
        said = {row: answer_text(self.tokenizer, answers[row]) for row in long}
        second = [build_prompt("tokenizer", self.tokenizer, chats[row][:2], [said[row]]) for row in long]
        prompts, kinds = first + second, kinds + [kinds[row] for row in long]
        answers += self.answer(second, longest, sample)
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        top_ids, top_p = zip(*self.label(texts), strict=True)
        columns = [kinds, [len(prompt) for prompt in prompts], [len(text) for text in texts], texts, top_ids, top_p]
        return Dataset.from_dict(dict(zip(COLUMNS, columns, strict=True)), features=Features(COLUMNS))


def group_rows(sizes: list[int], budget: int) -> list[list[int]]:
    """Rows of similar size, the largest first; no group takes more than the budget when padded, but for single rows."""
    order, groups = sorted(range(len(sizes)), key=lambda row: -sizes[row]), []
    while order:
        rows = max(1, budget // sizes[order[0]])
        groups.append(order[:rows])
        order = order[rows:]
    return groups


@dataclass(frozen=True)
class Shard:
    """Samples that are made in one go."""

    kind: str
    count: int  # prompts
    seed: int
    split: str = "train"  # or dev, the held-out one

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed:03d}-{self.kind}"


def plan_shards(rounds: int, scale: float = 1.0) -> list[Shard]:
    """Articles first because later prompts quote them, then the held-out set, then `rounds` of every kind."""
    shards = [Shard("article", ARTICLES, 0)] + [Shard(kind, count, 0, "dev") for kind, count in HELD_OUT.items()]
    shards += [Shard(kind, count, seed) for seed in range(1, rounds + 1) for kind, count in ROUND.items()]
    return [Shard(shard.kind, max(1, round(scale * shard.count)), shard.seed, shard.split) for shard in shards]


def make_shards(teacher: Teacher, shards: list[Shard], folder: Path, texts: Texts, questions: Path | None) -> None:
    """Every shard that does not exist yet; each appears whole or not at all."""
    overlaps, shares = Overlaps(questions), {}
    for shard in tqdm(shards, desc="shards", disable=None):
        path = folder / shard.name
        if path.exists():
            continue
        if shard.kind != "article" and shard.split not in shares:
            shares[shard.split] = share_texts(texts, read_articles(teacher, folder), shard.split)
        chats = make_prompts(shard.kind, shard.count, f"{shard.split}{shard.seed}", shares.get(shard.split, texts))
        kept = [turns for turns in chats if not overlaps.found(turns)]
        torch.manual_seed(shard.seed)
        samples = teacher.make_samples(kept, [shard.kind] * len(kept), sample=shard.kind == "article")
        store_samples(samples, path)
        new = sum(samples["size"]) - sum(samples["prompt"])
        tqdm.write(f"{shard.name}: {len(chats)} prompts, {len(chats) - len(kept)} dropped, {new} answer tokens")


def store_samples(samples: Dataset, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    samples.save_to_disk(partial)
    partial.rename(path)


def load_samples(folder: Path, pattern: str) -> Dataset | None:
    """All shards that the pattern names, as numpy; None where there are none. Raises UserError for one that is damaged."""
    paths = sorted(folder.glob(pattern))
    return concatenate_datasets([load_shard(path) for path in paths]).with_format("numpy") if paths else None


def load_shard(path: Path) -> Dataset:
    try:
        shard = load_from_disk(path)
    except Exception as error:  # of arrow and datasets, each with its own
        raise UserError(
            f"{path} holds no samples ({first_line(error)}): rename it and run the step teacher again."
        ) from error
    if shard.features != Features(COLUMNS):
        raise UserError(f"{path} holds something else than samples: rename it and run the step teacher again.")
    return shard


def read_questions(path: Path) -> list[Question]:
    """A question file of any content. Raises UserError for one that is malformed."""
    return load_questions(TasksConfig(name="specbench", source="specbench", path=str(path), checksum=None)).questions


def read_articles(teacher: Teacher, folder: Path) -> list[str]:
    rows = load_samples(folder, "train-*-article")
    return [answer_text(teacher.tokenizer, row["ids"][row["prompt"] :].tolist()) for row in rows or []]


def share_texts(texts: Texts, articles: list[str], split: str) -> Texts:
    """The split's part: every twentieth text is held out. Articles, which resemble news, become half of the documents."""

    def take(items: list[str]) -> list[str]:
        return [item for i, item in enumerate(items) if (i % 20 == 0) == (split == "dev")]

    documents, own = take(texts.documents), take([article for article in articles if len(article) > 1200])
    return Texts(documents + own * (len(documents) // max(1, len(own))), take(texts.german), texts.names)


class Overlaps:
    """Prompts that equal a turn of a question file, or share OVERLAP words in a row with one."""

    def __init__(self, questions: Path | None):
        asked = read_questions(questions) if questions else []
        self.turns = [split_words(turn) for question in asked for turn in question.turns]
        self.whole = {tuple(turn) for turn in self.turns}
        self.runs = {run for turn in self.turns for run in word_runs(turn)}

    def found(self, turns: list[str]) -> bool:
        return any(tuple(words) in self.whole or self.runs & word_runs(words) for words in map(split_words, turns))


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def word_runs(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + OVERLAP]) for i in range(len(words) - OVERLAP + 1)}
