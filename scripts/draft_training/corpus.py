"""Freely licensed text from Debian packages: English documents, German sentences, names from WordNet.

``fetch_packages`` downloads and unpacks the packages without installing them (it needs apt-get and dpkg,
no root). On a system without apt, unpack the same packages by hand into the same folder.
"""

from __future__ import annotations

import gzip
import html
import random
import re
import subprocess
from pathlib import Path

PACKAGES = {
    "anarchism": "An Anarchist FAQ, English essays (GFDL-1.1 or GPL-2+)",
    "debian-handbook": "The Debian Administrator's Handbook, English and German (GPL-2+ or CC-BY-SA-3.0)",
    "dict-foldoc": "Free On-line Dictionary of Computing (GFDL-1.1+)",
    "stellarium-data": "sky culture essays, English and German (GPL-2+, CC-BY-SA)",
    "trans-de-en": "Ding German-English dictionary, its example sentences (GPL-2+)",
    "wordnet-base": "WordNet 3.0 names and glosses (WordNet licence)",
}


def fetch_packages(folder: Path) -> None:
    """Download and unpack every package into ``folder``, once."""
    done = folder / ".complete"
    if done.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
    for archive in sorted(folder.glob("*.deb")):
        subprocess.run(["dpkg", "-x", archive, folder], check=True)
        archive.unlink()
    done.touch()


def _read(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix in {".gz", ".dz"} else data).decode("utf-8", "replace")


def _strip_markup(text: str) -> str:
    """Plain text of HTML or Markdown, one line per paragraph."""
    text = re.sub(r"(?s)<(script|style|pre)\b.*?</\1>", " ", text)
    text = re.sub(r"</?(p|h\d|div|li|br|td)\b[^>]*>", "\n\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"[*_`\\]|^[#> \t]+", "", text, flags=re.M)
    return "\n".join(" ".join(block.split()) for block in re.split(r"\n\s*\n", text))


def _prose(text: str, shortest: int = 60) -> list[str]:
    """Paragraphs that read like prose."""
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if len(line) >= shortest and line[-1] in ".!?\"'" and line[0].isalpha()]


def _files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def english_paragraphs(folder: Path) -> list[list[str]]:
    """Paragraphs of each English source document, in reading order."""
    patterns = (
        "usr/share/doc/anarchism/markdown/*.md.gz",
        "usr/share/doc/debian-handbook/html/en-US/*.html",
        "usr/share/stellarium/skycultures/*/description.en.utf8",
    )
    found = [path for pattern in patterns for path in _files(folder, pattern)]
    if not found:
        raise FileNotFoundError(f"no English documents under {folder}")
    return [_prose(_strip_markup(_read(path))) for path in found] + _dictionary(folder)


def _dictionary(folder: Path) -> list[list[str]]:
    """Foldoc's longer entries, each as one document of paragraphs."""
    text = _read(folder / "usr/share/dictd/foldoc.dict.dz")
    entries = re.split(r"\n(?=\S)", text)
    cleaned = (re.sub(r"[{}]|<[^>]*>|\(\d{4}-\d\d-\d\d\)|\[[^\]]*\]", "", entry) for entry in entries)
    documents = [_prose("\n".join(" ".join(p.split()) for p in re.split(r"\n\s*\n", e)), 80) for e in cleaned]
    return [document for document in documents if sum(map(len, document)) > 500]


def english_documents(folder: Path, rng: random.Random, shortest: int, longest: int) -> list[str]:
    """Non-overlapping runs of whole paragraphs, each of ``shortest`` to ``longest`` characters."""
    documents = []
    for paragraphs in english_paragraphs(folder):
        current, goal = "", rng.randint(shortest, longest)
        for paragraph in paragraphs:
            current = f"{current}\n{paragraph}".strip() if rng.random() < 0.3 else f"{current} {paragraph}".strip()
            if len(current) >= goal:
                documents.append(current[:longest])
                current, goal = "", rng.randint(shortest, longest)
        if len(current) >= shortest:
            documents.append(current)
    return documents


def german_sentences(folder: Path) -> list[str]:
    """German sentences: dictionary examples, handbook and sky cultures."""
    lines = _read(folder / "usr/share/trans/de-en").split("\n")
    parts = [part.strip() for line in lines if "::" in line for part in line.split("::")[0].split("|")]
    examples = {p for p in parts if re.fullmatch(r"[A-ZÄÖÜ][^{}/;\[\]]{18,220}[.!?]", p) and p.count(" ") > 3}
    patterns = (
        "usr/share/doc/debian-handbook/html/de-DE/*.html",
        "usr/share/stellarium/skycultures/*/*.de.utf8",
    )
    prose = {
        sentence
        for pattern in patterns
        for path in _files(folder, pattern)
        for paragraph in _prose(_strip_markup(_read(path)))
        for sentence in re.split(r"(?<=[.!?]) (?=[A-ZÄÖÜ])", paragraph)
        if 50 < len(sentence) < 320
    }
    return sorted(examples) + sorted(prose)


def wordnet_names(folder: Path) -> dict[str, list[str]]:
    """WordNet lemmas: ``person``, ``place``, ``event``, ``noun``; ``passage`` is a name with its gloss."""
    rules = {
        "person": r"\(\d{3,4}-\d{3,4}\)|\(born in \d{4}\)",
        "place": r"\b(city|town|river|lake|mountain|island|country|republic|capital|desert)\b",
        "event": r"\b(battle|war|treaty|revolution|festival)\b.*\d{3,4}",
    }
    names: dict[str, list[str]] = {key: [] for key in (*rules, "noun", "passage")}
    for line in _read(folder / "usr/share/wordnet/data.noun").split("\n"):
        if line.startswith(" ") or "|" not in line:
            continue
        fields, gloss = line.split(), line.split("|", 1)[1].strip()
        lemma = max(fields[4 : 4 + 2 * int(fields[3], 16) : 2], key=len).replace("_", " ")
        kind = next((key for key, rule in rules.items() if lemma[0].isupper() and re.search(rule, gloss)), None)
        if kind:
            names[kind].append(lemma)
            names["passage"].append(f"{lemma} is {gloss.split(';')[0]}.")
        elif lemma.islower() and lemma.isascii() and len(lemma) > 3:
            names["noun"].append(lemma)
    return names
