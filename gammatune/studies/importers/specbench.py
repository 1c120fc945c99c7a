"""A log of Spec-Bench's own harness as an acceptance table, so that other policies can be replayed on it.

Format (hemingkx/Spec-Bench, evaluation/eval.py): one JSON object per question, whose choices[0] has one item per turn in
`turns` (text), `decoding_steps` (rounds), `new_tokens` and `wall_time` (s), and in `accept_lengths` the emitted tokens of
every round, those of all turns in one list. gammatune.commands.export_answers writes the same format.
"""

import hashlib
import re
from bisect import bisect_right
from collections import Counter
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from gammatune.config import MT_BENCH_CATEGORIES, TASKS
from gammatune.errors import UserError, one_line
from gammatune.records import MOST
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.importers.json_lines import parse_line
from gammatune.studies.importers.rounds import (
    LoggedTurn,
    Schedule,
    SecondLog,
    build_table,
    find_matches,
    join_second,
    refuse_unmatched,
    schedule_drafts,
)

LONGEST_S = 10**7  # of a turn
CONTRADICTED = 0.05  # at most, of the positions that two logs of one pair tell; 12 of 55,831 in Spec-Bench's own
FAILED = "ERROR"  # Spec-Bench's text of a turn whose generation broke off
SAMPLED = re.compile(r"temp-(?!0*\.?0*$)[\d.]+$")
ONLY_CHAINS = "only logs whose rounds emit exactly the answer can be imported"
FROM_SPECBENCH = "give an answer file that Spec-Bench's evaluation wrote"
# Ten questions of each mt_bench category, then eighty of each other task
FIRST_IDS = [*range(81, 161, 10), *range(161, 561, 80)]
LAST_ID = 560


@strict
@dataclass
class Choice:
    """choices[0] of a line, types checked. A default of None stands for a missing field and is refused as well."""

    #: answers, one per turn
    turns: list[str] = None
    #: rounds, one per turn
    decoding_steps: list[int] = None
    #: answer tokens, one per turn
    new_tokens: list[int] = None
    #: emitted tokens of each round of all turns
    accept_lengths: list[int] = None
    #: seconds, one per turn
    wall_time: list[float] | None = None

    def validate_counts(self):
        if not len(self.turns) == len(self.decoding_steps) == len(self.new_tokens) > 0 or not self.accept_lengths:
            raise ValueError("turns, decoding_steps and new_tokens are of different lengths or empty")
        if self.wall_time is not None and len(self.wall_time) != len(self.turns):
            raise ValueError("turns and wall_time are of different lengths")
        if self.wall_time is not None and not all(0 <= seconds <= LONGEST_S for seconds in self.wall_time):
            raise ValueError(f"wall_time must be from 0 to {LONGEST_S:,} seconds")
        if min(*self.decoding_steps, *self.new_tokens, *self.accept_lengths) < 1:
            raise ValueError("decoding_steps, new_tokens and accept_lengths must be 1 or more")


@strict
@dataclass
class Line:
    """One answered question of a log, types checked likewise."""

    question_id: int = None
    #: None where Spec-Bench does not write it; the id tells it then
    category: str | None = None
    #: ends in temp- and the temperature
    model_id: str = ""
    #: the only one of `choices` that is read
    choice: Choice | None = None


@dataclass
class AnswerFile:
    """An answer file, read and checked."""

    path: Path
    sha256: str
    model_id: str
    turns: list[LoggedTurn]  # without those whose generation broke off
    failed: list[str]  # those
    source: str = ""  # where it comes from, in words; empty: its name

    @property
    def facts(self) -> dict:
        return {"source": self.source or self.path.name, "sha256": self.sha256, "model_id": self.model_id}


def read_answers(path: Path, source: str | None = None) -> AnswerFile:
    """source: where it comes from, in words. Raises UserError for a file that cannot be read or is none of this format."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"The answer file {path} is no regular file: {FROM_SPECBENCH}.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The answer file {path} cannot be read ({error.strerror}): check the path.") from error
    lines = [read_line(text, f"Line {n} of {path}") for n, text in enumerate(content.splitlines(), 1) if text.strip()]
    if not lines:
        raise UserError(f"The answer file {path} is empty: {FROM_SPECBENCH}.")
    question, times = Counter(line.question_id for line in lines).most_common(1)[0]
    if times > 1:
        raise UserError(f"{path} answers question {question} twice: keep one of the two lines.")
    logged = [turn for line in lines for turn in split_turns(line, path)]
    whole, failed = [turn for turn in logged if not turn.failed], [str(turn) for turn in logged if turn.failed]
    return AnswerFile(path, hashlib.sha256(content).hexdigest(), lines[0].model_id, whole, failed, source or "")


@dataclass
class Drafted:
    """A log of drafted answers with the number of tokens drafted in each round of each turn, as its schedule sets them."""

    file: AnswerFile
    schedule: Schedule
    drafts: list[list[int]]


def read_drafted(path: Path, schedule: Schedule, source: str | None = None) -> Drafted:
    """Raises UserError for a file that cannot be read, is none of this format, or contradicts the schedule."""
    file = read_answers(path, source)
    refuse_unmatched(file.turns, path)
    return Drafted(file, schedule, [schedule_drafts(turn, schedule, path) for turn in file.turns])


def import_answers(log: Drafted, second: AnswerFile | None = None, most: int = 20) -> AcceptanceTable:
    """What a log of a greedy run tells of each question's choices[0]; see `find_matches`. Prompt lengths are not in it: 0.

    second: a log of the same pair and questions of which only accepted lengths are known, and most: its longest block; see
    `SecondLog`. Raises UserError where the two do not belong together.
    """
    file, budget = log.file, log.schedule.max_new_tokens
    matches = [find_matches(turn.lengths, drafted) for turn, drafted in zip(file.turns, log.drafts, strict=True)]
    joined = join_second(file.turns, matches, SecondLog(second.turns, second.path.name, most)) if second else None
    if joined and joined.contradictions > CONTRADICTED * joined.compared:
        raise UserError(
            f"{second.path} contradicts {file.path} at {joined.contradictions:,} of the {joined.compared:,} positions that "
            "both tell: give two logs of one pair, and the schedule of the first with --schedule and --gamma."
        )
    facts = {**file.facts, "settings": asdict(log.schedule.policy), "failed": file.failed}
    if joined:
        rounds = sum(len(turn.lengths) for turn in second.turns)
        facts["second"] = {**second.facts, "rounds": rounds, "most": most, **asdict(joined)}
    return build_table(file.turns, matches, str(log.schedule), budget, facts)


def read_line(text: bytes, where: str) -> Line:
    """One JSON object with what import needs of it. Raises UserError where a field is missing or of another type."""
    try:
        stored = parse_line(text)
        line = take_fields(Line, stored)
        line.choice = take_fields(Choice, stored["choices"][0])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be used ({error}): {FROM_SPECBENCH}.") from error
    except StrictDataclassError as error:
        # Its last line says what is wrong, after the kind of error
        raise UserError(f"{where} is no answer ({str(error).split('Error: ')[-1]}): {FROM_SPECBENCH}.") from error
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise UserError(f"{where} has no choices: {FROM_SPECBENCH}.") from error
    if not abs(line.question_id) <= MOST:
        raise UserError(f"{where} has a question_id out of range: {FROM_SPECBENCH}.")
    line.category, line.model_id = one_line(line.category or category_of(line.question_id) or ""), one_line(line.model_id)
    if not line.category:
        raise UserError(f"{where} has no category, and its question_id is none of Spec-Bench's: write the category into it.")
    if SAMPLED.search(line.model_id):
        raise UserError(f"{where} is a sampled answer ({line.model_id}): give the file of a run at temperature 0.")
    return line


def take_fields(kind: type, stored: dict):
    """The fields that are used; a log has more."""
    known = {f.name for f in fields(kind)}
    return kind(**{name: value for name, value in stored.items() if name in known})


def category_of(question_id: int) -> str | None:
    """The category that Spec-Bench's question file gives to that id; None for an id that it does not have."""
    if not FIRST_IDS[0] <= question_id <= LAST_ID:
        return None
    return (MT_BENCH_CATEGORIES + TASKS[1:])[bisect_right(FIRST_IDS, question_id) - 1]


def split_turns(line: Line, path: Path) -> list[LoggedTurn]:
    """Cut accept_lengths at the turns. Raises UserError where the rounds of a turn do not emit its tokens."""
    choice, lengths, found = line.choice, iter(line.choice.accept_lengths), []
    if sum(choice.decoding_steps) != len(choice.accept_lengths):
        raise UserError(
            f"Question {line.question_id} in {path} has {len(choice.accept_lengths)} accept_lengths for "
            f"{sum(choice.decoding_steps)} decoding_steps: {ONLY_CHAINS}."
        )
    for turn, rounds in enumerate(choice.decoding_steps):
        failed, wanted = choice.turns[turn] == FAILED, choice.new_tokens[turn]
        logged = LoggedTurn(line.question_id, line.category, turn, list(islice(lengths, rounds)), failed=failed)
        logged.text = choice.turns[turn]
        logged.seconds = choice.wall_time[turn] if choice.wall_time else None
        if not failed and logged.tokens != wanted:
            raise UserError(
                f"{str(logged).capitalize()} in {path} does not add up ({wanted} new tokens, but its {rounds} rounds emit "
                f"{logged.tokens}): {ONLY_CHAINS}."
            )
        found.append(logged)
    return found
