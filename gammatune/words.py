"""Command-line words before Hydra reads them: each is one that it can read, and a choice of a group is one that there is."""

import re
import shlex
from collections.abc import Iterable, Sequence
from itertools import islice

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, ValueType
from hydra.errors import HydraException

from gammatune.errors import UserError, clip, list_options

#: longer than any path that a system takes, and what a parser of our own making reads in a moment
LONGEST = 8192
MOST_JOBS = 10_000  # of a sweep
#: groups that no command can do without
NEEDED = ("model_pair", "tasks", "policy", "decode", "runtime")
KEY = re.compile(r"[+~]{0,2}[\w./@-]+", re.ASCII)
#: what Hydra reads as a list, a dict, several values, a quoted text, a function or another setting
SYNTAX = re.compile(r"""[\[\]{},'"]|\$\{|^\s*\w+\(""")


def readable(word: str) -> str:
    """The word, with a value of plain text in quotes where Hydra asks for them, such as results='/srv/josé/x'.

    Raises UserError, with the quoted form, for a word that cannot be read.
    """
    if len(word) > LONGEST:
        raise UserError(f"The argument {clip(word)} has more than {LONGEST:,} characters: shorten it.")
    key, _, value = word.partition("=")
    try:
        parse(word)
        if KEY.fullmatch(key):
            return word
    except HydraException:
        pass
    except (ValueError, RecursionError) as error:
        raise UserError(f"The argument {clip(word)} cannot be read: it has too many digits or brackets.") from error
    if not KEY.fullmatch(key) or "=" not in word:
        raise UserError(f"The argument {clip(word) or '(empty)'} cannot be read: write KEY=VALUE.")
    quoted = f"{key}={quote(value)}"
    if SYNTAX.search(value):
        raise UserError(
            f"The argument {clip(word)} cannot be read: write a list as {key}=[A,B], several values of a sweep as "
            f"{key}=A,B, and text with such characters in quotes, {clip(for_shell(quoted), 200)}."
        )
    return quoted


def parse(word: str) -> Override:
    """As Hydra reads it. Raises HydraException, ValueError (more digits than Python reads), RecursionError (brackets)."""
    return OverridesParser.create().parse_override(word)


def quote(text: str) -> str:
    """As Hydra reads text: only a quote, and backslashes in front of one, are special within quotes."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def for_shell(word: str) -> str:
    """As it is typed into a shell."""
    return shlex.quote(word) if re.search(r'["$`\\!]', word) else f'"{word}"'


def check_choices(words: Iterable[str], groups: Sequence[str], several: Sequence[str], own_folder: bool) -> None:
    """Raises UserError for GROUP=VALUE where VALUE is no choice of the group.

    several: groups of which a run may have more than one. own_folder: there may be choices that only Hydra knows.
    """
    for word in words:
        override = parse(word)
        group = override.key_or_group
        if group not in groups or override.is_delete() and override.value() is None:
            continue
        for value in list_values(override, word):
            if value is None and group not in NEEDED:
                continue
            names = value if isinstance(value, list) and group in several else [value]
            if not names and group not in NEEDED:
                raise UserError(f"{group}=[] names none: list at least one of {', '.join(list_options(group))}.")
            for place, name in enumerate(names):
                check_name(group, name, word, own_folder)
                if name in names[:place]:
                    raise UserError(f"{group} names {name} twice: list each once.")


def check_name(group: str, name: object, word: str, own_folder: bool) -> None:
    options = list_options(group)
    if isinstance(name, str) and (name in options or own_folder and ".." not in name):
        return
    if isinstance(name, list) and name:
        raise UserError(f"{group} is one of its choices, not several: choose one of {', '.join(options)}.")
    shown = f"{group}={name}" if isinstance(name, str) else word
    raise UserError(f"{clip(shown)} is not known: choose one of {', '.join(options)}.")


def list_values(override: Override, word: str) -> list:
    """All values that a word gives its key: one, or those of a sweep. Raises UserError where they cannot be listed."""
    if not override.is_sweep_override():
        return [override.value()]
    if override.value_type is ValueType.INTERVAL_SWEEP or override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        raise UserError(f"{clip(word)} lists no values: write KEY=VALUE,VALUE or KEY=range(START,STOP,STEP).")
    values = list(islice(override.sweep_iterator(), MOST_JOBS + 1))
    if not 0 < len(values) <= MOST_JOBS:
        many = "no values" if not values else f"more than {MOST_JOBS:,} values"
        raise UserError(f"{clip(word)} lists {many}: write KEY=VALUE,VALUE or KEY=range(START,STOP,STEP).")
    return [value.text if isinstance(value, QuotedString) else value for value in values]


def refuse_sweep(words: Iterable[str], multirun: bool) -> None:
    """Raises UserError for several values in one run, and for more jobs than anybody waits for."""
    jobs = 1
    for word in words:
        override = parse(word)
        if override.is_sweep_override() and not multirun:
            raise UserError(
                f"{clip(word)} gives several values to one run: add --multirun for a run each, or write a list as [A,B]."
            )
        jobs *= len(list_values(override, word))
    if jobs > MOST_JOBS:
        raise UserError(f"These settings make {jobs:,} runs: at most {MOST_JOBS:,} go into one sweep.")
