"""Self-written prompt templates for the six kinds of task, filled from word lists and from the corpus."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from . import prompt_words as words

Messages = list[dict]


@dataclass
class Material:
    """Texts that the templates draw on; see :mod:`draft_training.corpus`."""

    documents: list[str]
    german: list[str]
    names: dict[str, list[str]]


def fill(template: str, rng: random.Random, names: dict[str, list[str]]) -> str:
    """Replace every ``{slot}``: ``{n2-40}`` is a number in that range, other slots name a word list."""

    def choose(match: re.Match) -> str:
        slot = match.group(1)
        numeric = re.fullmatch(r"n(\d+)-(\d+)", slot)
        if numeric:
            return str(rng.randint(int(numeric[1]), int(numeric[2])))
        return rng.choice(names.get(slot) or words.SLOTS[slot])

    return re.sub(r"\{([\w-]+)\}", choose, template)


def conversation(rng: random.Random, material: Material) -> list[str]:
    """Two user turns of an open-ended chat: writing, role play, reasoning, maths, code, science."""
    category = rng.choice(sorted(words.CHATS))
    first = fill(rng.choice(words.CHATS[category]), rng, material.names)
    return [
        first,
        fill(rng.choice(words.FOLLOW_UPS[category] + words.FOLLOW_UPS["any"]), rng, material.names),
    ]


def translation(rng: random.Random, material: Material) -> list[str]:
    """A German sentence to translate; the dictionary's own examples or a news-like template."""
    if rng.random() < 0.35:
        sentence = fill(rng.choice(words.GERMAN), rng, {})
    else:
        sentence = rng.choice(material.german)
        if len(sentence) < 70 and rng.random() < 0.5:
            sentence += " " + rng.choice(material.german[: len(material.german) // 2])
    if rng.random() < 0.5:
        sentence = re.sub(r"([,.;:!?])", r" \1", sentence)
    return [f"Translate German to English: {sentence.strip()}"]


def summarization(rng: random.Random, material: Material) -> list[str]:
    """A document to summarise."""
    return [f"Summarize: {rng.choice(material.documents)}"]


def question(rng: random.Random, material: Material) -> list[str]:
    """A short factual question, often typed carelessly in lower case."""
    text = fill(rng.choice(words.QUESTIONS), rng, material.names)
    return [text[0].upper() + (text[1:].lower() if rng.random() < 0.6 else text[1:]) + "?"]


def arithmetic(rng: random.Random, material: Material) -> list[str]:
    """A word problem with a consistent protagonist."""
    name, other = rng.sample(words.SLOTS["name"], 2)
    template = rng.choice(words.PROBLEMS).replace("{item}", rng.choice(words.SLOTS["item"]))
    return [fill(template.replace("{A}", name).replace("{B}", other), rng, material.names)]


def passages(rng: random.Random, material: Material) -> list[str]:
    """Three to five short passages followed by a question about one of them."""
    goal, parts = rng.randint(2200, 3600), []
    while sum(map(len, parts)) < goal:
        if rng.random() < 0.25:
            parts.append(" ".join(rng.sample(material.names["passage"], rng.randint(3, 6))))
        else:
            text = rng.choice(material.documents)
            sentences = re.split(r"(?<=[.!?]) ", text)
            start = rng.randrange(max(1, len(sentences) - 4))
            parts.append(" ".join(sentences[start : start + 8])[: rng.randint(500, 1100)])
    return ["\n".join(parts) + "\n\n" + _asked(rng.choice(parts), rng)]


def _asked(passage: str, rng: random.Random) -> str:
    """A question about a name or a content word of the passage."""
    capitals = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*", passage)
    content = [word for word in re.findall(r"[a-z]+", passage) if len(word) > 6] or ["subject"]
    subject = rng.choice(capitals) if capitals and rng.random() < 0.6 else " ".join(rng.sample(content * 2, 2))
    return rng.choice(words.PASSAGE_QUESTIONS).format(subject)


def article_request(rng: random.Random, material: Material) -> list[str]:
    """A request for a long text, whose sampled answer later serves as a document."""
    return [fill(rng.choice(words.ARTICLES), rng, material.names)]


KINDS = {
    "article": article_request,
    "chat": conversation,
    "translation": translation,
    "summarization": summarization,
    "qa": question,
    "math": arithmetic,
    "rag": passages,
}


def make(kind: str, count: int, seed: int | str, material: Material) -> list[list[str]]:
    """Return ``count`` distinct lists of user turns of one kind."""
    rng, found = random.Random(f"{kind}-{seed}"), {}
    for _ in range(20 * count):
        turns = KINDS[kind](rng, material)
        found.setdefault(turns[0], turns)
        if len(found) == count:
            break
    return list(found.values())
