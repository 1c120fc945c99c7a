"""Prompts of seven kinds, filled from this project's own templates and word lists (templates.toml) and from texts."""

import random
import re
import tomllib
from pathlib import Path

from .texts import Texts

DATA = tomllib.loads((Path(__file__).parent / "templates.toml").read_text("utf-8"))


def read_lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


SLOTS = {name: [" ".join(part.split()) for part in text.split("|")] for name, text in DATA["slots"].items()}
TEMPLATES, CHATS, FOLLOW_UPS = (
    {name: read_lines(text) for name, text in DATA[section].items()} for section in ("templates", "chats", "follow_ups")
)


def fill(template: str, rng: random.Random, names: dict[str, list[str]]) -> str:
    """Replace every {slot}: {n2-40} is a number in that range, other slots name a word list."""

    def choose(match: re.Match) -> str:
        slot = match.group(1)
        if numbers := re.fullmatch(r"n(\d+)-(\d+)", slot):
            return str(rng.randint(int(numbers[1]), int(numbers[2])))
        return rng.choice(names.get(slot) or SLOTS[slot])

    return re.sub(r"\{([\w-]+)\}", choose, template)


def ask_article(rng: random.Random, texts: Texts) -> list[str]:
    """A request for a long text, whose sampled answer later serves as a document."""
    return [fill(rng.choice(TEMPLATES["articles"]), rng, texts.names)]


def ask_chat(rng: random.Random, texts: Texts) -> list[str]:
    """Two turns of an open-ended chat: writing, role play, reasoning, maths, code, science."""
    category = rng.choice(sorted(CHATS))
    follow_ups = FOLLOW_UPS[category] + FOLLOW_UPS["any"]
    return [fill(rng.choice(turn), rng, texts.names) for turn in (CHATS[category], follow_ups)]


def ask_translation(rng: random.Random, texts: Texts) -> list[str]:
    """A German sentence: one of the dictionary's own or a news-like template, half of them with loose punctuation."""
    if rng.random() < 0.35:
        sentence = fill(rng.choice(TEMPLATES["german"]), rng, {})
    else:
        sentence = rng.choice(texts.german)
        if len(sentence) < 70 and rng.random() < 0.5:
            sentence += " " + rng.choice(texts.german[: max(1, len(texts.german) // 2)])
    if rng.random() < 0.5:
        sentence = re.sub(r"([,.;:!?])", r" \1", sentence)
    return [f"Translate German to English: {sentence.strip()}"]


def ask_summary(rng: random.Random, texts: Texts) -> list[str]:
    return [f"Summarize: {rng.choice(texts.documents)}"]


def ask_question(rng: random.Random, texts: Texts) -> list[str]:
    """A short factual question, often typed carelessly in lower case."""
    text = fill(rng.choice(TEMPLATES["questions"]), rng, texts.names)
    return [text[0].upper() + (text[1:].lower() if rng.random() < 0.6 else text[1:]) + "?"]


def ask_problem(rng: random.Random, texts: Texts) -> list[str]:
    """A word problem in which each name and the counted things stay the same."""
    name, other = rng.sample(SLOTS["name"], 2)
    template = rng.choice(TEMPLATES["problems"]).replace("{item}", rng.choice(SLOTS["item"]))
    return [fill(template.replace("{A}", name).replace("{B}", other), rng, texts.names)]


def ask_about_passages(rng: random.Random, texts: Texts) -> list[str]:
    """Several short passages, then a question about a name or a content word of one of them."""
    goal, parts = rng.randint(2200, 3600), []
    while sum(map(len, parts)) < goal:
        if rng.random() < 0.25:
            parts.append(" ".join(rng.choices(texts.names["passage"], k=rng.randint(3, 6))))
        else:
            sentences = re.split(r"(?<=[.!?]) ", rng.choice(texts.documents))
            start = rng.randrange(max(1, len(sentences) - 4))
            parts.append(" ".join(sentences[start : start + 8])[: rng.randint(500, 1100)])
    passage = rng.choice(parts)
    capitals = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*", passage)
    content = [word for word in re.findall(r"[a-z]+", passage) if len(word) > 6] or ["subject"]
    subject = rng.choice(capitals) if capitals and rng.random() < 0.6 else " ".join(rng.sample(content * 2, 2))
    return ["\n".join(parts) + "\n\n" + rng.choice(TEMPLATES["passage_questions"]).format(subject)]


KINDS = {
    "article": ask_article,
    "chat": ask_chat,
    "translation": ask_translation,
    "summarization": ask_summary,
    "qa": ask_question,
    "math": ask_problem,
    "rag": ask_about_passages,
}


def make_prompts(kind: str, count: int, seed: str, texts: Texts) -> list[list[str]]:
    """`count` lists of user turns whose first turns differ; fewer where the texts do not hold that many."""
    rng, found = random.Random(f"{kind}-{seed}"), {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        turns = KINDS[kind](rng, texts)
        found.setdefault(turns[0], turns)
    return list(found.values())
