"""A log of Spec-Bench's own harness as an acceptance table, so that other policies can be replayed on it.

Format (hemingkx/Spec-Bench, evaluation/eval.py): one JSON object per question, whose choices[0] has one item per turn in
`turns` (text), `decoding_steps` (rounds), `new_tokens` and `wall_time` (s), and in `accept_lengths` the emitted tokens of
every round, those of all turns in one list. gammatune.commands.export_answers writes the same format.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections import Counter
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from gammatune.config import MT_BENCH_CATEGORIES, TASKS, task_of
from gammatune.errors import UserError, one_line
from gammatune.policies import POLICIES, Policy
from gammatune.records import MOST, Round
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn
from gammatune.studies.bounds import estimate_match_rate
from gammatune.traces import MATCH, MISMATCH, UNKNOWN, TextTrace

MAX_NEW_TOKENS = 1024
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

    def validate_counts(self):
        if not len(self.turns) == len(self.decoding_steps) == len(self.new_tokens) > 0 or not self.accept_lengths:
            raise ValueError("turns, decoding_steps and new_tokens are of different lengths or empty")
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
class LoggedTurn:
    """One turn of a log."""

    question_id: int
    category: str
    #: from 0
    turn: int
    #: emitted tokens per round; their sum is the answer's length
    lengths: list[int]
    #: whether generation broke off; nothing else counts then
    failed: bool

    def __str__(self) -> str:
        return f"turn {self.turn + 1} of question {self.question_id}"


@dataclass
class Schedule:
    """The rule that set the draft lengths of a log. As text: name and gamma, as an arm is labelled."""

    #: of the policy, as configs call it
    name: str
    policy: Policy
    #: token budget of a turn
    max_new_tokens: int = MAX_NEW_TOKENS

    def __str__(self) -> str:
        gamma = getattr(self.policy, "gamma", None)
        return self.name if gamma is None else f"{self.name}-{gamma}"


def import_answers(path: Path, schedule: Schedule) -> AcceptanceTable:
    """What a log of a greedy run tells in each question's choices[0], its draft lengths made again by the schedule.

    Accepted tokens match; the token after a partly accepted round does not; the token after a fully accepted round is
    unknown, since the draft was not asked there. So is a turn's last token: within the round's budget the draft may have
    ended the sequence itself, which transformers does not count as accepted. Prompt lengths are not in the file: 0.
    Raises UserError for a file that cannot be read, is none of this format, or contradicts the schedule.
    """
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
    whole = [turn for turn in logged if not turn.failed]
    if all(length == 1 for turn in whole for length in turn.lengths):
        raise UserError(f"No round of {path} accepted a draft token: give the file of a run with a draft model.")
    table = AcceptanceTable([make_turn(turn, schedule, path) for turn in whole])
    table.facts = {
        "source": path.name,
        "sha256": hashlib.sha256(content).hexdigest(),
        "model_id": lines[0].model_id,
        "schedule": str(schedule),
        "settings": asdict(schedule.policy),
        "max_new_tokens": schedule.max_new_tokens,
        "rounds": sum(len(turn.lengths) for turn in whole),
        "failed": [str(turn) for turn in logged if turn.failed],
        "estimated match rate": estimate_match_rate(table),
    }
    return table


def read_line(text: bytes, where: str) -> Line:
    """One JSON object with what import needs of it. Raises UserError where a field is missing or of another type."""
    try:
        stored = json.loads(text)
        line = take_fields(Line, stored)
        line.choice = take_fields(Choice, stored["choices"][0])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {FROM_SPECBENCH}.") from error
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
        logged = LoggedTurn(line.question_id, line.category, turn, list(islice(lengths, rounds)), failed)
        if not failed and sum(logged.lengths) != wanted:
            raise UserError(
                f"{str(logged).capitalize()} in {path} does not add up ({wanted} new tokens, but its {rounds} rounds emit "
                f"{sum(logged.lengths)}): {ONLY_CHAINS}."
            )
        found.append(logged)
    return found


def schedule_names() -> list[str]:
    """Policies whose draft lengths follow from the accepted lengths of the turn alone."""
    made = {name: policy() for name, policy in POLICIES.items() if name != "ar"}
    return [n for n, p in made.items() if not (p.watches_draft or p.oracle) and p.carry == "turn"]


def build_schedule(name: str, gamma: int | None = None, max_new_tokens: int = MAX_NEW_TOKENS) -> Schedule:
    """Raises UserError for an unknown policy, one whose draft lengths a log does not tell, or a gamma that it cannot have.

    Spec-Bench's SpS with transformers 4.37 (its main branch) is hf_heuristic with gamma 5, the default here.
    """
    choices = f"choose one of {', '.join(schedule_names())}"
    if name not in POLICIES:
        raise UserError(f"--schedule {name} is not known: {choices}.")
    if POLICIES[name].rule.watches_draft:
        raise UserError(f"--schedule {name} watches the draft, so a log does not tell its draft lengths: {choices}.")
    if name not in schedule_names():
        raise UserError(f"The draft lengths of --schedule {name} cannot be told from the rounds of a turn alone: {choices}.")
    if gamma is not None and not hasattr(POLICIES[name].rule, "gamma"):
        raise UserError(f"--schedule {name} has no gamma: leave --gamma out.")
    if not 1 <= max_new_tokens <= MOST:
        raise UserError(f"--max-new-tokens {max_new_tokens} must lie between 1 and {MOST}.")
    return Schedule(name, POLICIES[name](**({} if gamma is None else {"gamma": gamma})), max_new_tokens)


def make_turn(logged: LoggedTurn, schedule: Schedule, path: Path) -> AcceptanceTurn:
    match = rebuild_matches(logged, schedule, path)
    none = np.zeros(0, np.int8)
    return AcceptanceTurn(
        question_id=logged.question_id,
        category=logged.category,
        task=task_of(logged.category),
        turn=logged.turn,
        prompt_tokens=0,
        budget=schedule.max_new_tokens,
        finish="length" if len(match) == schedule.max_new_tokens else "eos",
        output_ids=none,
        trace=TextTrace(match, signals=None, steps=none.astype(np.int8), ended=none.astype(bool), continuations=None),
    )


def rebuild_matches(logged: LoggedTurn, schedule: Schedule, path: Path) -> np.ndarray:
    """[tokens] int8. Raises UserError where a round accepted more than was planned, or the turn is over its budget."""
    policy, match, budget = schedule.policy, [], schedule.max_new_tokens
    if sum(logged.lengths) > budget:
        raise UserError(
            f"{str(logged).capitalize()} in {path} has {sum(logged.lengths)} tokens, more than {budget}: give the "
            "token budget of that run with --max-new-tokens."
        )
    policy.reset()
    for number, emitted in enumerate(logged.lengths, start=1):
        planned, accepted, place = policy.plan(), emitted - 1, len(match)
        if accepted > planned:
            raise UserError(
                f"{path} contradicts the schedule {schedule}: round {number} of {logged} accepted {accepted} draft tokens, "
                f"more than the {planned} planned; name the schedule of that run with --schedule and --gamma."
            )
        drafted = min(planned, budget - place - 1)
        match += [MATCH] * accepted + [UNKNOWN if accepted == drafted else MISMATCH]
        stop = "length" if drafted == planned else "budget"
        policy.observe(Round(planned, drafted, accepted, emitted, drafted, stop, place))
    match[-1] = UNKNOWN
    return np.array(match, np.int8)
