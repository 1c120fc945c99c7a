"""Prompts of six kinds, filled from this project's own templates and word lists (templates.toml) and from texts.

Deterministic by seed. The held-out prompts have templates (every eighth of a list) and texts (every twentieth) of their own,
so that what a draft reaches on them is not what it has learned by heart. Follow-ups of a chat are the same for both.
"""

import random
import re
import tomllib
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

from gammatune.training.texts import Texts

DATA = tomllib.loads((Path(__file__).parent / "templates.toml").read_text("utf-8"))
EVERY_TEMPLATE, EVERY_TEXT = 8, 20  # of these many, one is held out


def read_lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


SLOTS = {name: [" ".join(part.split()) for part in text.split("|")] for name, text in DATA["slots"].items()}
TEMPLATES, CHATS, FOLLOW_UPS = (
    {name: read_lines(text) for name, text in DATA[section].items()} for section in ("templates", "chats", "follow_ups")
)


@dataclass(frozen=True)
class Chat:
    """What a user asks."""

    kind: str  # one of recipe.KINDS
    turns: list[str]


class Writer:
    """Writes prompts, from the templates and texts of training or from those that are held out."""

    def __init__(self, texts: Texts, held_out: bool, document: tuple[int, int]):
        self.held_out, self.document = held_out, document
        self.documents, self.german = (self.share(part, EVERY_TEXT) for part in (texts.documents, texts.german))
        self.names = {name: words for name, words in texts.names.items() if words}
        self.kinds = {
            "chat": self.ask_chat,
            "translation": self.ask_translation,
            "summarization": self.ask_summary,
            "qa": self.ask_question,
            "math": self.ask_problem,
            "rag": self.ask_about_passages,
        }

    def write(self, kinds: list[str], seed: str) -> list[Chat]:
        """A chat for each of `kinds`, all with different first turns; fewer where there are not so many."""
        rng, found = random.Random(seed), {}
        for kind in kinds:
            for _ in range(20):
                turns = self.kinds[kind](rng)
                if turns[0] not in found:
                    found[turns[0]] = Chat(kind, turns)
                    break
        return list(found.values())

    def share(self, items: list[str], every: int) -> list[str]:
        """The part of a list that is this writer's: the last of each `every`, or all others; a short list serves both."""
        if len(items) < every:
            return items
        return [item for i, item in enumerate(items) if (i % every == every - 1) == self.held_out]

    def choose(self, rng: random.Random, templates: list[str]) -> str:
        return rng.choice(self.share(templates, EVERY_TEMPLATE))

    def fill(self, template: str, rng: random.Random) -> str:
        """Replace every {slot}, also those of a word that was put in: {n2-40} is a number, other slots name a word list."""

        def put(match: re.Match) -> str:
            slot = match.group(1)
            if numbers := re.fullmatch(r"n(\d+)-(\d+)", slot):
                return str(rng.randint(int(numbers[1]), int(numbers[2])))
            return self.fill(rng.choice(self.names.get(slot) or SLOTS[slot]), rng)

        return re.sub(r"\{([\w-]+)\}", put, template)

    def ask_chat(self, rng: random.Random) -> list[str]:
        """One or two turns of an open-ended chat: writing, role play, reasoning, maths, code, science."""
        category = rng.choice(sorted(CHATS))
        turns = [self.choose(rng, CHATS[category]), rng.choice(FOLLOW_UPS[category] + FOLLOW_UPS["any"])]
        return [self.fill(turn, rng) for turn in turns[: rng.choice((1, 2, 2))]]

    def ask_translation(self, rng: random.Random) -> list[str]:
        """A German sentence: a dictionary's own or a news-like template, half of them with loose punctuation."""
        if not self.german or rng.random() < 0.4:
            sentence = self.fill(self.choose(rng, TEMPLATES["german"]), rng)
        else:
            sentence = " ".join(rng.choices(self.german, k=rng.choice((1, 1, 2))))
        if rng.random() < 0.5:
            sentence = re.sub(r"([,.;:!?])", r" \1", sentence)
        return [f"Translate German to English: {sentence.strip()}"]

    def ask_summary(self, rng: random.Random) -> list[str]:
        return [f"Summarize: {self.find_document(rng)}"]

    def ask_question(self, rng: random.Random) -> list[str]:
        """A short factual question, often typed carelessly in lower case."""
        text = self.fill(self.choose(rng, TEMPLATES["questions"]), rng)
        return [text[0].upper() + (text[1:].lower() if rng.random() < 0.6 else text[1:]) + "?"]

    def ask_problem(self, rng: random.Random) -> list[str]:
        return [
            self.tell(self.choose(rng, TEMPLATES["problems"]), rng, *rng.sample(SLOTS["name"], 2), rng.choice(SLOTS["item"]))
        ]

    def ask_about_passages(self, rng: random.Random) -> list[str]:
        """Several short passages, then a question about a name or a content word of one of them."""
        goal, parts = rng.randint(*self.document), []
        while sum(map(len, parts)) < goal:
            if rng.random() < 0.25:
                parts.append(" ".join(rng.choices(self.names.get("passage", SLOTS["passage"]), k=rng.randint(2, 5))))
            else:
                sentences = re.split(r"(?<=[.!?]) ", self.find_document(rng))
                start = rng.randrange(max(1, len(sentences) - 4))
                parts.append(" ".join(sentences[start : start + 8])[: rng.randint(300, 900)])
        passage = rng.choice(parts)
        capitals = re.findall(r"(?<=[a-z,] )[A-Z][a-z]+(?: [A-Z][a-z]+)*", passage)
        content = [word for word in re.findall(r"[a-z]+", passage) if len(word) > 6] or ["subject"]
        subject = rng.choice(capitals) if capitals and rng.random() < 0.6 else " ".join(rng.sample(content * 2, 2))
        return ["\n".join(parts) + "\n\n" + self.choose(rng, TEMPLATES["passage_questions"]).format(subject)]

    def find_document(self, rng: random.Random) -> str:
        """One of the texts, or one made of sentence templates: a news report or an entry of an encyclopedia."""
        goal = rng.randint(*self.document)
        if self.documents and rng.random() < 0.5:
            return cut_at_sentence(rng.choice(self.documents), goal)
        form = rng.choice(("news", "entry"))
        names = [*rng.sample(SLOTS["name"], 2), rng.choice(SLOTS["item"]), rng.choice(SLOTS["town"])]
        said = [self.tell(self.choose(rng, TEMPLATES[f"{form}_openings"]), rng, *names)]
        lines = self.share(TEMPLATES[f"{form}_sentences"], EVERY_TEMPLATE)
        for line in cycle(rng.sample(lines, len(lines))):
            if sum(map(len, said)) >= goal:
                break
            said.append(self.tell(line, rng, *names))
        return "".join(sentence + rng.choice((" ", " ", " ", "\n")) for sentence in said).strip()

    def tell(self, template: str, rng: random.Random, name: str, other: str, item: str, town: str = "") -> str:
        """A template filled so that its people {A} and {B}, its {item} and its town {T} stay the same all through."""
        for slot, word in (("A", name), ("B", other), ("item", item), ("T", town)):
            template = template.replace(f"{{{slot}}}", word)
        return self.fill(template, rng)


def cut_at_sentence(text: str, most: int) -> str:
    """The beginning of a text, up to the last end of a sentence within `most` characters."""
    if len(text) <= most:
        return text
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)", text[:most])]
    return text[: ends[-1] if ends else most]


def mix_kinds(shares: dict[str, float], count: int, rng: random.Random) -> list[str]:
    """`count` kinds, each as often as its share says, as near as whole numbers come, in random order."""
    whole = sum(shares.values())
    exact = {kind: count * share / whole for kind, share in shares.items()}
    counts = {kind: int(number) for kind, number in exact.items()}
    for kind in sorted(exact, key=lambda kind: counts[kind] - exact[kind])[: count - sum(counts.values())]:
        counts[kind] += 1
    kinds = [kind for kind, number in counts.items() for _ in range(number)]
    return rng.sample(kinds, len(kinds))
