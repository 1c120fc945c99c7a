"""Responses of a vLLM server that logs its rounds: `vllm serve ... --per-request-spec-decode-metrics detailed`.

One response of the completions or chat completions API per line, from greedy requests (temperature 0). Of
metrics.speculative_decoding, per_step_accepted and per_step_drafted are read, and of usage the token counts
(vllm-project/vllm, pull request 48915).
"""

from pathlib import Path

from gammatune.replay.table import AcceptanceTable
from gammatune.studies.importers.json_lines import LONGEST, json_object, read_log, whole_number, whole_numbers
from gammatune.studies.importers.rounds import LoggedTurn, build_table, find_matches, refuse_unmatched

HINT = "give responses of a server that runs with --per-request-spec-decode-metrics detailed, one per line"


def import_vllm(path: Path) -> AcceptanceTable:
    """Bounds, as of any log by rounds: after a fully accepted block the draft was not asked. So was the first token, which
    comes out of the prefill. Raises UserError for a line whose rounds do not make its tokens.
    """
    log = read_log(path, lambda line, number: read_response(line, number, path.stem), HINT)
    turns: list[LoggedTurn] = log.lines
    refuse_unmatched(turns, path)
    budget = max(turn.tokens for turn in turns)
    longest = max(max(turn.drafted) for turn in turns)
    matches = [find_matches(turn.lengths, turn.drafted) for turn in turns]
    return build_table(turns, matches, f"vLLM, up to {longest} tokens", budget, {**log.facts, "model_id": path.stem})


def read_response(response: dict, number: int, task: str) -> LoggedTurn:
    """Raises ValueError or KeyError where it is none."""
    if not isinstance(response["choices"], list):
        raise ValueError("choices is no list")
    if len(response["choices"]) != 1:
        raise ValueError(f"{len(response['choices'])} choices, but the rounds of one request tell one answer only")
    metrics = json_object(response.get("metrics") or {}, "metrics")
    rounds = json_object(metrics.get("speculative_decoding") or {}, "metrics.speculative_decoding")
    if rounds.get("per_step_drafted") is None:
        raise KeyError("metrics.speculative_decoding.per_step_drafted")
    accepted = whole_numbers(rounds["per_step_accepted"], "per_step_accepted", most=LONGEST)
    drafted = whole_numbers(rounds["per_step_drafted"], "per_step_drafted", most=LONGEST)
    usage = json_object(response["usage"], "usage")
    tokens = whole_number(usage["completion_tokens"], "completion_tokens")
    prompt_tokens = whole_number(usage["prompt_tokens"], "prompt_tokens")
    if len(accepted) != len(drafted) or any(a > d for a, d in zip(accepted, drafted, strict=True)):
        raise ValueError("per_step_accepted does not fit per_step_drafted")
    # the first token comes out of the prefill: a round of its own, for which nothing was drafted
    lengths, drafted = [1, *(count + 1 for count in accepted)], [0, *drafted]
    surplus = sum(lengths) - tokens
    if not 0 <= surplus < lengths[-1]:
        raise ValueError(f"{tokens} completion_tokens, but its {len(accepted)} rounds make {sum(lengths)}")
    lengths[-1] -= surplus  # the last round's tokens after the end of the answer
    return LoggedTurn(number, task, 0, lengths, drafted, prompt_tokens=prompt_tokens)
