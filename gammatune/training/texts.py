"""Freely licensed text from Debian packages: English documents, German sentences, names from WordNet.

The packages are downloaded and unpacked, not installed, which needs apt-get and dpkg but no root. Where there is no apt,
unpack the same packages by hand into the same folder, or bring a texts.json that was made elsewhere.
"""

import gzip
import html
import json
import random
import re
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gammatune.errors import UserError
from gammatune.files import hash_file, parse_object, read_text, write_text
from gammatune.machine import cache_dir

PACKAGES = ("anarchism", "debian-handbook", "trans-de-en", "wordnet-base")
DOCUMENTS = ("usr/share/doc/anarchism/markdown/*.md.gz", "usr/share/doc/debian-handbook/html/en-US/*.html")
SENTENCES, NOUNS = "usr/share/trans/de-en", "usr/share/wordnet/data.noun"
NAMES = {
    "person": r"\(\d{3,4}-\d{3,4}\)|\(born in \d{4}\)",
    "place": r"\b(city|town|river|lake|mountain|island|country|republic|capital|desert)\b",
    "event": r"\b(battle|war|treaty|revolution|festival)\b.*\d{3,4}",
}


FILE = "texts.json"
NO_TEXTS = "none"


@dataclass
class Texts:
    """What prompts draw on beside our own templates; all of it may be empty."""

    documents: list[str] = field(default_factory=list)  # a few paragraphs each
    german: list[str] = field(default_factory=list)  # sentences
    names: dict[str, list[str]] = field(default_factory=dict)  # person, place, event, noun; passage: a name with what it is


def find_texts(named: str | None) -> tuple[Texts, str | None]:
    """Texts for training prompts, and the sha256 of their file.

    named: a file; NO_TEXTS for our own templates alone, without a file; None for those of the packages, made once in the
    cache folder. Raises UserError.
    """
    if named == NO_TEXTS:
        return Texts(), None
    path, remedy = Path(named or ""), "give --texts FILE or --texts none"
    if named is None:
        folder = cache_dir() / "texts"
        make_texts(folder)
        path, remedy = folder / FILE, "delete it and run the same command again"
    return load_texts(path, remedy), hash_file(path)


def make_texts(folder: Path) -> None:
    """FILE in a folder, of packages that are fetched into it; nothing where it is there. Raises UserError."""
    if not (folder / FILE).exists():
        fetch_packages(folder / "packages")
        write_text(folder / FILE, json.dumps(asdict(read_texts(folder / "packages"))) + "\n")


def load_texts(path: Path, remedy: str) -> Texts:
    """What make_texts left. Raises UserError where it is missing or damaged; remedy: what to do then."""
    content = parse_object(read_text(path, remedy), path, remedy)
    missing = Texts.__annotations__.keys() - content.keys()
    if missing:
        raise UserError(f"{path} is damaged (it has no {min(missing)}): {remedy}.")
    texts = Texts(**{name: content[name] for name in Texts.__annotations__})
    parts = [texts.documents, texts.german, *(texts.names.values() if isinstance(texts.names, dict) else [None])]
    if not all(isinstance(part, list) and all(isinstance(text, str) and text.strip() for text in part) for part in parts):
        raise UserError(f"{path} is damaged (it holds something else than lists of texts): {remedy}.")
    return texts


def fetch_packages(folder: Path) -> None:
    """Download and unpack every package into `folder`. Raises UserError where that fails."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
        for archive in folder.glob("*.deb"):
            subprocess.run(["dpkg", "-x", archive, folder], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"The packages {', '.join(PACKAGES)} could not be fetched ({error}): unpack them by hand into {folder}, bring a "
            f"{FILE} that was made elsewhere, or do without (train-draft: --texts none)."
        ) from error


def read_texts(folder: Path, most: int = 4000) -> Texts:
    """The texts of unpacked packages, `most` documents. Raises OSError where a word list is missing."""
    rng = random.Random(7)
    sources = [path for pattern in DOCUMENTS for path in sorted(folder.glob(pattern))]
    documents = [document for path in sources for document in cut_documents(find_prose(read(path)), rng)]
    return Texts(
        rng.sample(documents, min(len(documents), most)), read_german(folder / SENTENCES), read_names(folder / NOUNS)
    )


def read(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")


def find_prose(text: str) -> list[str]:
    """Paragraphs of HTML or Markdown that read like prose, without markup."""
    text = re.sub(r"(?s)<(script|style|pre)\b.*?</\1>", " ", text)
    text = re.sub(r"</?(p|h\d|div|li|br|td)\b[^>]*>", "\n\n", text)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)  # links and images keep their words
    text = re.sub(r"[*_`\\]|^[#> \t]+", "", text, flags=re.M)
    paragraphs = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [words for words in paragraphs if len(words) >= 60 and words[-1] in ".!?\"'" and words[0].isalpha()]


def cut_documents(paragraphs: list[str], rng: random.Random) -> list[str]:
    """Runs of whole paragraphs of 1,800 to 3,600 characters."""
    documents, current, goal = [], "", rng.randint(1800, 3600)
    for paragraph in paragraphs:
        current = f"{current}\n{paragraph}".strip() if rng.random() < 0.3 else f"{current} {paragraph}".strip()
        if len(current) >= goal:
            documents.append(current[:3600])
            current, goal = "", rng.randint(1800, 3600)
    return documents


def read_german(path: Path) -> list[str]:
    """Example sentences of a dictionary whose lines are `German | German :: English | English`."""
    parts = {part.strip() for line in read(path).split("\n") for part in line.split("::")[0].split("|") if "::" in line}
    return sorted(part for part in parts if re.fullmatch(r"[A-ZÄÖÜ](\S* ){4}[^{}/;\[\]]{4,200}[.!?]", part))


def read_names(path: Path) -> dict[str, list[str]]:
    """Lemmas by kind, from lines such as `05302307 08 n 02 heart 0 ticker 0 ... | the hollow muscular organ; ...`."""
    names = {kind: [] for kind in (*NAMES, "noun", "passage")}
    for line in read(path).split("\n"):
        if line.startswith(" ") or "|" not in line:  # the licence at the top is indented
            continue
        fields, gloss = line.split(), line.split("|", 1)[1].strip()
        lemma = max(fields[4 : 4 + 2 * int(fields[3], 16) : 2], key=len).replace("_", " ")
        kind = next((kind for kind, rule in NAMES.items() if lemma[0].isupper() and re.search(rule, gloss)), None)
        if kind:
            names[kind].append(lemma)
            names["passage"].append(f"{lemma} is {gloss.split(';')[0]}.")
        elif lemma.islower() and lemma.isascii() and len(lemma) > 3:
            names["noun"].append(lemma)
    return names
