"""Word lists and templates of :mod:`draft_training.prompts`, read from ``templates.toml``."""

from __future__ import annotations

import tomllib
from pathlib import Path

_DATA = tomllib.loads((Path(__file__).parent / "templates.toml").read_text("utf-8"))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines() if line.strip()]


SLOTS = {name: [" ".join(part.split()) for part in text.split("|")] for name, text in _DATA["slots"].items()}
CHATS = {name: _lines(text) for name, text in _DATA["chats"].items()}
FOLLOW_UPS = {name: _lines(text) for name, text in _DATA["follow_ups"].items()}
ARTICLES = _lines(_DATA["templates"]["articles"])
QUESTIONS = _lines(_DATA["templates"]["questions"])
PASSAGE_QUESTIONS = _lines(_DATA["templates"]["passage_questions"])
PROBLEMS = _lines(_DATA["templates"]["problems"])
GERMAN = _lines(_DATA["templates"]["german"])
