"""Every number that README and docs publish stands in docs/numbers.md, beside the command that made it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "docs/findings.md", "docs/speed.md"]
# What no measurement made: code, links, versions, papers, names of models, lengths and settings
NOT_MEASURED = (
    r"```.*?```",
    r"`[^`]*`",
    r"\]\([^)]*\)",
    r"arXiv [\d.]+(, arXiv [\d.]+)*",
    r"(?:Python|torch|transformers|Llama|Qwen|schema|version)[ -]\d[\w.]*(?:(?:,| or| and| to) \d[\w.]*)*",
    r"(?:gamma|top-|Gamma) ?\d+",
    r"95 % intervals?",
    r"[A-Za-z][\w.]*-[\w.-]*\d[\w.-]*",
)
UNITS = "s|ms|min|minutes|tokens/s|GB/s|GiB|rounds|tokens|questions"
MEASURED = re.compile(rf"(?<![\w.])\d[\d,]*\.\d+|(?<![\w.])\d[\d,]*(?= (?:{UNITS})\b)|\d+(?= %)")


def measured_numbers(text: str) -> list[str]:
    for pattern in NOT_MEASURED:
        text = re.sub(pattern, " ", text, flags=re.S)
    return MEASURED.findall(text)


def known_numbers() -> set[str]:
    return set(re.findall(r"\d[\d,]*(?:\.\d+)?", (ROOT / "docs" / "numbers.md").read_text()))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_quotes_only_numbers_with_a_command(page):
    strangers = [number for number in measured_numbers((ROOT / page).read_text()) if number not in known_numbers()]
    assert not strangers, f"{page} publishes {strangers}: add each to docs/numbers.md with its command, or leave it out"


def test_a_number_without_a_command_is_found():
    page = "GammaTune is 1.234 times faster and 17 % better in 5 s, gamma 3 with `tau=0.4`"
    assert measured_numbers(page) == ["1.234", "17", "5"]


def test_every_row_names_its_command():
    rows = [line for line in (ROOT / "docs" / "numbers.md").read_text().splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not re.match(r"\| (?:what|---)", row)]
    assert rows and all(row.count("|") == 5 and "`" in row.split("|")[2] for row in rows)
