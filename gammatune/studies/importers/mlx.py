"""Answers of mlx-lm with a draft model: its `from_draft` of each token (ml-explore/mlx-lm, GenerationResponse).

JSON lines with from_draft (a list of booleans, one per token of the answer) and prompt_tokens, written from a greedy run.
"""

from pathlib import Path

from gammatune.errors import UserError
from gammatune.policies.fixed import Fixed
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.importers.json_lines import read_log, whole_number
from gammatune.studies.importers.rounds import (
    LoggedTurn,
    Schedule,
    build_table,
    find_matches,
    refuse_unmatched,
    schedule_drafts,
)

HINT = "give JSON lines with from_draft and prompt_tokens, as docs/logs.md shows"


def import_mlx(path: Path, gamma: int | None) -> AcceptanceTable:
    """gamma: num_draft_tokens of the run, which the log does not hold. Bounds, as of any log by rounds.

    Raises UserError for a missing gamma, and for a log that contradicts it.
    """
    if gamma is None:
        raise UserError("A log of mlx-lm does not tell its draft length: give num_draft_tokens of that run as --gamma.")
    log = read_log(path, lambda line, number: read_answer(line, number, path.stem), HINT)
    turns: list[LoggedTurn] = log.lines
    refuse_unmatched(turns, path)
    budget = max(turn.tokens for turn in turns)
    schedule = Schedule("fixed", Fixed(gamma=gamma), budget)
    matches = [find_matches(turn.lengths, schedule_drafts(turn, schedule, path)) for turn in turns]
    return build_table(turns, matches, str(schedule), budget, {**log.facts, "model_id": path.stem})


def read_answer(line: dict, number: int, task: str) -> LoggedTurn:
    """A round is the drafted tokens up to and including the next one of the target. Raises ValueError and KeyError."""
    flags = line["from_draft"]
    if not isinstance(flags, list) or not flags or not all(isinstance(flag, bool) for flag in flags):
        raise ValueError("from_draft is no list of true and false")
    lengths, open_round = [], 0
    for flag in flags:
        open_round += 1
        if not flag:
            lengths.append(open_round)
            open_round = 0
    if open_round:  # the answer ended within a block
        lengths.append(open_round)
    return LoggedTurn(number, task, 0, lengths, prompt_tokens=whole_number(line.get("prompt_tokens", 0), "prompt_tokens"))
