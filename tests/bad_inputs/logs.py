"""Logs of engines that no engine wrote, or that do not belong together."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random

from bad_inputs.case import Case
from gammatune.policies.transformers_rules import HFHeuristic
from gammatune.studies.importers.rounds import LoggedTurn, Schedule, schedule_drafts

HUGE = 10**30
DIGITS = b'{"a": ' + b"9" * 5000 + b"}"
NUMBER, NUMBERS = r"no whole number from 0 to 2,147,483,647", r"no list of whole numbers from [01] to 32,767"
IDS = r"no list of whole numbers from 0 to 2,147,483,647"
ROUNDS = ("metrics", "speculative_decoding")
VLLM = {
    "choices": [{"index": 0}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 9},
    "metrics": {"speculative_decoding": {"per_step_accepted": [1, 0, 2, 1], "per_step_drafted": [3, 3, 3, 3]}},
}
MLX = {"prompt_tokens": 9, "from_draft": [True, True, False, True, False, False]}
POSITIONS = {"prompt_token_ids": [1, 2], "generated_token_ids": [1, 2, 3, 4, 5], "a": {"acc_len": [3, 2, 2, 1]}}
GOOD = {"vllm": VLLM, "mlx-lm": MLX, "positions": POSITIONS}
OUT = ("--out", "out/t.parquet")
#: beside a word for whole numbers, by kind
NO_NUMBERS = {"null": None, "text": "x", "negative": -1, "a fraction": 1.5, "nan": float("nan"), "huge": HUGE, "true": True}


def words(kind: str) -> tuple[str, ...]:
    return ("import", "log.jsonl", "--format", kind, *OUT, *(("--gamma", "3") if kind == "mlx-lm" else ()))


def bad_line(kind: str, name: str, says: str, *path: object, value: object) -> Case:
    """The second line has another value somewhere."""

    def prepare(folder: Path) -> None:
        line = deepcopy(GOOD[kind])
        place = line
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        (folder / "log.jsonl").write_text(json.dumps(GOOD[kind]) + "\n" + json.dumps(line) + "\n")

    return Case(f"{kind} {name}", words(kind), f"Line 2 of log.jsonl .*{says}", prepare)


def bad_file(kind: str, name: str, says: str, content: bytes) -> Case:
    return Case(f"{kind} {name}", words(kind), says, lambda folder: (folder / "log.jsonl").write_bytes(content))


def each_kind(name: str, says: str, content: Callable[[bytes], bytes]) -> list[Case]:
    """content: of the file, given a good line."""
    return [bad_file(kind, name, says, content(json.dumps(line).encode())) for kind, line in GOOD.items()]


def no_numbers(kind: str, says: str, *path: object) -> list[Case]:
    return [bad_line(kind, f"{path[-2:]} {name}", says, *path, value=value) for name, value in NO_NUMBERS.items()]


LINES = [
    *no_numbers("vllm", f"prompt_tokens is {NUMBER}", "usage", "prompt_tokens"),
    *no_numbers("vllm", f"completion_tokens is {NUMBER}", "usage", "completion_tokens"),
    *no_numbers("vllm", f"per_step_accepted is {NUMBERS}", *ROUNDS, "per_step_accepted", 1),
    *no_numbers("vllm", f"per_step_drafted is {NUMBERS}", *ROUNDS, "per_step_drafted", 1),
    *no_numbers("mlx-lm", f"prompt_tokens is {NUMBER}", "prompt_tokens"),
    *no_numbers("positions", f"prompt_token_ids is {IDS}", "prompt_token_ids", 0),
    *no_numbers("positions", f"generated_token_ids is {IDS}", "generated_token_ids", 0),
    *no_numbers("positions", f"a.acc_len is {NUMBERS}", "a", "acc_len", 0),
    bad_line("positions", "acc_len 0", f"a.acc_len is {NUMBERS}", "a", "acc_len", 0, value=0),
    bad_line("positions", "acc_len no list", f"a.acc_len is {NUMBERS}", "a", "acc_len", value={}),
    bad_line("positions", "no answer", "generated_token_ids is empty", "generated_token_ids", value=[]),
    bad_line("vllm", "more accepted than drafted", "does not fit", *ROUNDS, "per_step_accepted", 1, value=4),
    bad_line("vllm", "lists of two lengths", "does not fit per_step_drafted", *ROUNDS, "per_step_drafted", value=[3, 3, 3]),
    bad_line("vllm", "a block without end", NUMBERS, *ROUNDS, "per_step_drafted", 1, value=2**31 - 1),
    bad_line("vllm", "metrics no object", "metrics is no JSON object", "metrics", value=[1]),
    bad_line("vllm", "rounds no object", "speculative_decoding is no JSON object", *ROUNDS, value="x"),
    bad_line("vllm", "usage no object", "usage is no JSON object", "usage", value=3),
    bad_line("vllm", "choices no list", "choices is no list", "choices", value={"0": {}}),
    bad_line("mlx-lm", "numbers for flags", "from_draft is no list of true and false", "from_draft", value=[1, 0]),
    bad_line("mlx-lm", "no flags", "from_draft is no list of true and false", "from_draft", value=[]),
]
FILES = [
    bad_file(
        "mlx-lm",
        "a block of four",
        "log.jsonl contradicts the schedule fixed-3: round 1 of",
        b'{"from_draft": [true, true, true, true, true]}',
    ),
    *each_kind("empty", "The log log.jsonl is empty", lambda line: b""),
    *each_kind("blank lines", "The log log.jsonl is empty", lambda line: b"\n \n"),
    *each_kind("half a line", r"Line 2 of log.jsonl .*it is not JSON", lambda line: line + b"\n" + line[:-9]),
    *each_kind("a list", "Line 1 of log.jsonl .*no JSON object", lambda line: b"[1]"),
    *each_kind("null", "Line 1 of log.jsonl .*no JSON object", lambda line: b"null"),
    *each_kind("deep", "Line 1 of log.jsonl", lambda line: b"[" * 100_000),
    *each_kind("5000 digits", "Line 1 of log.jsonl", lambda line: DIGITS),
    *each_kind("latin", "Line 1 of log.jsonl .*it is not JSON", lambda line: b'{"a": "\xe9"}'),
    *each_kind("a key twice", "Line 1 of log.jsonl .*the key zz twice", lambda line: line[:-1] + b', "zz": 1, "zz": 2}'),
    *each_kind("another kind", "Line 1 of log.jsonl has no ", lambda line: b'{"text": "hello"}'),
    Case("a folder", words("vllm"), "log.jsonl is no regular file", lambda folder: (folder / "log.jsonl").mkdir()),
    Case("endless", ("import", "/dev/zero", "--format", "vllm", *OUT), "The log /dev/zero is no regular file"),
]


# Answer files of Spec-Bench


def answer(question: int, seed: int, rate: float = 0.6) -> dict:
    """A line of two turns by transformers' heuristic with wall times. rate: at which drafted tokens are right."""
    draw, schedule, turns = Random(f"{question}/{seed}/{rate}"), HFHeuristic(), []
    for _ in range(2):
        lengths = []
        for _ in range(draw.randrange(8, 20)):
            planned = next_plan(schedule, lengths)
            lengths.append(1 + next((i for i in range(planned) if draw.random() > rate), planned))
        turns.append(lengths)
    drafted = [schedule_drafts(LoggedTurn(1, "qa", 0, each), Schedule("x", schedule), "") for each in turns]
    choice = {
        "index": 0,
        "turns": [f"answer {question} {i}" for i in range(2)],
        "decoding_steps": [len(each) for each in turns],
    }
    choice |= {"new_tokens": [sum(each) for each in turns], "accept_lengths": sum(turns, [])}
    choice["wall_time"] = [0.03 * len(d) + 0.002 * sum(d) + draw.random() * 1e-4 for d in drafted]
    return {"question_id": question, "category": "qa", "model_id": "m-temp-0.0", "choices": [choice]}


def next_plan(policy: HFHeuristic, lengths: list[int]) -> int:
    """Tokens that the round after these plans."""
    schedule_drafts(LoggedTurn(1, "qa", 0, lengths), Schedule("x", policy), "")
    return policy.plan()


def alone(line: dict) -> dict:
    """The same answer by the target alone."""
    choice = deepcopy(line["choices"][0])
    choice["decoding_steps"], choice["accept_lengths"] = choice["new_tokens"], [1] * sum(choice["new_tokens"])
    choice["wall_time"] = [0.02 * tokens + 1e-5 * (tokens % 3) for tokens in choice["new_tokens"]]
    return line | {"choices": [choice]}


def other_draft(line: dict) -> dict:
    """The same answer, each round cut to one token or two: what a worse draft would have had accepted."""
    choice = deepcopy(line["choices"][0])
    steps = [[1] * tokens for tokens in choice["new_tokens"]]
    choice["decoding_steps"], choice["accept_lengths"] = [len(each) for each in steps], sum(steps, [])
    return line | {"choices": [choice]}


LOG = [answer(question, 0) for question in range(321, 341)]


def pair(name: str, says: str, option: str, second: list[dict], first: list[dict] = LOG, more=(), code: int = 2) -> Case:
    """Two logs, the second given with an option."""

    def prepare(folder: Path) -> None:
        for file, lines in (("log.jsonl", first), ("other.jsonl", second)):
            (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))

    return Case(name, ("import", "log.jsonl", option, "other.jsonl", *OUT, *more), says, prepare, code)


def with_choice(line: dict, **changes) -> dict:
    return line | {"choices": [line["choices"][0] | changes]}


PLAIN = [alone(line) for line in LOG]
ONE_GAMMA = [with_choice(line, decoding_steps=[8, 9], new_tokens=[16, 18], accept_lengths=[2] * 17) for line in LOG]
NO_TIMES = [with_choice(line, wall_time=None) for line in LOG]
PAIRS = [
    pair("plain good", "", "--plain", PLAIN, code=0),
    pair(
        "plain without times",
        "log of the target alone has no wall time",
        "--plain",
        [with_choice(line, wall_time=None) for line in PLAIN],
    ),
    pair("log without times", "The log has no wall time .* use --cost-ratio", "--plain", PLAIN, NO_TIMES),
    pair("plain drafts", "log of the target alone has rounds of several tokens", "--plain", LOG),
    pair(
        "plain all alike",
        "target alone have equally many tokens",
        "--plain",
        [with_choice(line, decoding_steps=[9, 9], new_tokens=[9, 9], accept_lengths=[1] * 18) for line in PLAIN],
    ),
    pair(
        "one gamma",
        "in one proportion, as those of one fixed gamma",
        "--plain",
        PLAIN,
        ONE_GAMMA,
        ("--schedule", "fixed", "--gamma", "3"),
    ),
    pair("plain empty", "answer file other.jsonl is empty", "--plain", []),
    *(
        pair(
            f"{name} of {which}",
            "Line 3 of .*wall_time must be from 0",
            "--plain",
            *((PLAIN, swap) if which == "log" else (swap,)),
        )
        for name, seconds in (("nan", float("nan")), ("inf", float("inf")), ("negative", -1.0), ("1e300", 1e300))
        for which, lines in (("plain", PLAIN), ("log", LOG))
        for swap in [[*lines[:2], with_choice(lines[2], wall_time=[seconds, 1.0]), *lines[3:]]]
    ),
    pair("second good", "", "--second", LOG, code=0),
    pair(
        "second of other questions",
        "other.jsonl answers no question as the first",
        "--second",
        [answer(question, 0) for question in range(400, 420)],
    ),
    pair(
        "second of another target",
        "other.jsonl answers no question as the first",
        "--second",
        [with_choice(line, turns=["something else", "and more"]) for line in LOG],
    ),
    pair(
        "second of another draft",
        r"other.jsonl contradicts log.jsonl at .* positions that both tell: give two logs of one",
        "--second",
        [other_draft(line) for line in LOG],
    ),
    pair("second of another kind", "Line 1 of other.jsonl is no answer .*question_id", "--second", [POSITIONS]),
]


def answers(name: str, says: str, content: bytes) -> Case:
    return Case(name, ("import", "log.jsonl", *OUT), says, lambda folder: (folder / "log.jsonl").write_bytes(content))


LINE = json.dumps(LOG[0]).encode()
ANSWERS = [
    answers("answers empty", "log.jsonl is empty", b""),
    answers("answers a key twice", "Line 1 of log.jsonl .*the key choices twice", LINE[:-1] + b', "choices": []}'),
    answers("answers a list", "Line 1 of log.jsonl .*no JSON object", b"[1]"),
    answers("answers no JSON", "Line 2 of log.jsonl .*it is not JSON", LINE + b"\n{"),
    answers("answers deep", "Line 1 of log.jsonl", b"[" * 100_000),
    answers("answers 5000 digits", "Line 1 of log.jsonl", DIGITS),
]

CASES = LINES + FILES + PAIRS + ANSWERS
