"""Tables by position: how many tokens a draft started at each position of an answer would emit.

JSON lines with prompt_token_ids, generated_token_ids and, for each drafter, acc_len: per start, accepted tokens and the
target's own one after them (SpecDecode-Bench/simulator, data/). Starts stand by themselves, since a feature draft sees the
target's features of the token it starts after; so policies that plan a length are replayed exactly.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gammatune.errors import UserError
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn
from gammatune.studies.importers.json_lines import LONGEST, LogFile, read_log, whole_numbers
from gammatune.traces import StartTrace

HINT = "give JSON lines with prompt_token_ids, generated_token_ids and acc_len lists of drafters"
SLACK = 2  # answer tokens that a list may lack at its front: the first one comes out of the prefill


@dataclass
class Request:
    """One line."""

    number: int  # of the line
    prompt_tokens: int
    output_ids: list[int]
    emitted: dict[str, list[int]]  # acc_len by drafter

    def right(self, drafter: str) -> np.ndarray | None:
        """Accepted tokens of a block from each answer position [n], int16; None where the list does not fit the answer.

        The lists end where the answer ends. A start that they lack is taken as one at which nothing is accepted.
        """
        lengths, tokens = self.emitted[drafter], len(self.output_ids)
        missing = tokens - len(lengths)
        if not 0 <= missing <= SLACK:
            return None
        right = np.concatenate([np.zeros(missing, np.int16), np.array(lengths, np.int16) - 1])
        left = tokens - np.arange(tokens)  # tokens from each start to the end
        return right if (right <= left).all() else None


def import_positions(paths: list[Path], drafter: str | None = None) -> AcceptanceTable:
    """One table of all files, each a task under its own name. drafter: key of its acc_len; None where there is only one.

    Requests whose list does not fit their answer are left out and counted. Raises UserError where nothing is left.
    """
    logs = [read_log(path, read_request, HINT) for path in paths]
    name = choose_drafter(logs, drafter)
    longest = max(max(request.emitted[name], default=1) for log in logs for request in log.lines) - 1
    budget = max(len(request.output_ids) for log in logs for request in log.lines)
    turns, dropped = [], {}
    for log in logs:
        rows = {request.number: request.right(name) for request in log.lines}
        dropped[log.path.name] = sum(right is None for right in rows.values())
        for request in log.lines:
            if (right := rows[request.number]) is not None:
                turns.append(make_start_turn(request, log.path.stem, len(turns) + 1, right, longest, budget))
    if not turns:
        raise UserError(f"No list of {name} in {paths[0]} fits the answer beside it: {HINT}.")
    facts = {"source": ", ".join(log.path.name for log in logs), "sha256": {log.path.name: log.sha256 for log in logs}}
    facts |= {"drafter": {"name": name}, "gamma_max": longest, "max_new_tokens": budget, "dropped": dropped}
    return AcceptanceTable(turns, facts)


def read_request(line: dict, number: int) -> Request:
    """Raises ValueError or KeyError where it is none."""
    lists = {key: value["acc_len"] for key, value in line.items() if isinstance(value, dict) and "acc_len" in value}
    if not lists:
        raise KeyError("drafter with acc_len")
    ids = whole_numbers(line["generated_token_ids"], "generated_token_ids")
    if not ids:
        raise ValueError("generated_token_ids is empty")
    emitted = {key: whole_numbers(found, f"{key}.acc_len", 1, LONGEST) for key, found in lists.items()}
    return Request(number, len(whole_numbers(line["prompt_token_ids"], "prompt_token_ids")), ids, emitted)


def choose_drafter(logs: list[LogFile], drafter: str | None) -> str:
    known = set.intersection(*(set(request.emitted) for log in logs for request in log.lines))
    if drafter in known or (drafter is None and len(known) == 1):
        return drafter or known.pop()
    asked = f"--drafter {drafter} is not in every line" if drafter else "The file has acc_len of several drafters"
    raise UserError(f"{asked}: choose one of {', '.join(sorted(known))} with --drafter.")


def make_start_turn(request: Request, task: str, number: int, right, longest: int, budget: int) -> AcceptanceTurn:
    n = len(right)
    proposed = np.full(n, longest, np.int16)  # a chain always has a next token; beyond the longest nothing is recorded
    return AcceptanceTurn(
        question_id=number,
        category=task,
        task=task,
        turn=0,
        prompt_tokens=request.prompt_tokens,
        budget=budget,
        finish="length" if n == budget else "eos",
        output_ids=np.array(request.output_ids, np.int32),
        trace=StartTrace(right, proposed, ended=np.zeros(n, bool), more=np.ones(n, bool), signals=None),
    )
