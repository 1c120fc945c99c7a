"""Settings of decode.* and tasks.* at and beyond their edges."""

from collections.abc import Iterator
from random import Random

from bad_inputs.case import SMALL, Case, write_questions

HUGE = "9" * 40
MOST = 2**31 - 1  # of any whole number but a seed
SAMPLE = (*SMALL, "decode=sample", "decode.max_new_tokens=4")
REFUSED = {
    "decode.max_new_tokens=0": "decode.max_new_tokens=0 .* must be 1 or more",
    "decode.max_new_tokens=-1": "decode.max_new_tokens=-1 ",
    "decode.max_new_tokens=1e20": "decode.max_new_tokens is wrong: .*Integer",
    "decode.max_new_tokens=nan": "decode.max_new_tokens is wrong",
    f"decode.max_new_tokens={HUGE}": "decode.max_new_tokens=9+ is out of range",
    f"decode.top_k={HUGE}": "decode.top_k=9+ is out of range",
    f"tasks.limit={HUGE}": "tasks.limit=9+ is out of range",
    "decode.max_new_tokens=null": "decode.max_new_tokens is wrong",
    "decode.temperature=-1": "decode.temperature=-1.0 .* 0 .greedy., or between 1e-30 and 1e.30",
    "decode.temperature=1e-45": "decode.temperature=1e-45 .* between 1e-30 and",
    "decode.temperature=1e-300": "decode.temperature=1e-300 .* between 1e-30 and",
    "decode.temperature=1e300": "decode.temperature=1e.300 .* and 1e.30",
    "decode.temperature=inf": "decode.temperature=inf",
    "decode.temperature=nan": "decode.temperature=nan",
    "decode.top_p=0": "decode.top_p=0.0 .* between 1e-30",
    "decode.top_p=1e-300": "decode.top_p=1e-300 .* between 1e-30, which fp32 can tell from 0, and 1",
    "decode.top_p=1.0000001": "decode.top_p=1.0000001 ",
    "decode.top_p=nan": "decode.top_p=nan",
    "decode.top_k=-1": "decode.top_k=-1 .* 0 .off. or more",
    "decode.top_k=1.5": "decode.top_k is wrong",
    "tasks.limit=0": "tasks.limit=0 must be 1 or more",
    "tasks.limit=-3": "tasks.limit=-3 must be 1 or more",
    "tasks.limit=1.5": "tasks.limit is wrong",
    "tasks.seed=1": "tasks.seed=1 .* changes nothing without tasks.limit",
    "tasks.overlong=maybe": "tasks.overlong=maybe is not known: choose one of refuse, skip",
    "tasks.include=[qa,poems]": "tasks.include names poems",
    "tasks.include=[math]": "tasks.include names math, but the question file has none",
    "tasks.checksum=abc": "tasks.checksum=abc must be",
}
# These are right: an answer comes, and it is the target's own
USABLE = (
    "decode.max_new_tokens=1",
    f"decode.max_new_tokens={MOST} tasks.include=[qa] policy.fixed.gamma=40",
    "decode.temperature=1e-6",
    "decode.temperature=1e30",
    "decode.top_p=1e-9",
    f"decode.top_k={MOST}",
    "decode.top_k=1",
    f"tasks.limit={MOST} tasks.seed=-{HUGE} seed={HUGE}",
)

CASES = [Case(word, (*SMALL, word), says, write_questions) for word, says in REFUSED.items()]
CASES += [
    Case(words[:60], (*(SAMPLE if "top" in words or "temp" in words else SMALL), *words.split()), "", write_questions, 0)
    for words in USABLE
]


def fuzz(random: Random, count: int) -> Iterator[Case]:
    keys = ("decode.max_new_tokens", "decode.temperature", "decode.top_p", "decode.top_k", "tasks.limit", "tasks.seed")
    values = (
        "0",
        "-0.0",
        "1",
        "2",
        "-1",
        "1e-40",
        "1e-7",
        "0.999",
        "1e9",
        "inf",
        "-inf",
        "nan",
        "null",
        "true",
        "[1]",
        HUGE,
    )
    for number in range(count):
        chosen = {random.choice(keys): random.choice(values) for _ in range(random.randint(1, 3))}
        words = tuple(f"{key}={value}" for key, value in chosen.items())
        yield Case(f"numbers {number}: {' '.join(words)}", (*SAMPLE, *words), "", write_questions, (0, 2))
