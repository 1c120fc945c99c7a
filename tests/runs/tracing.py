"""What tests of recordings share: tables compared, traces counted."""

from replay.made_tables import contents

from gammatune.decoding.loop import Engine
from gammatune.replay.table import read_table


class Traced(list):
    """Prompts as a draft model is traced along their answers; Ctrl-C at the one with the number `stop_at`, from 0."""

    stop_at: int | None = None


def count_traces(monkeypatch, stop_at: int | None = None) -> Traced:
    traced, original = Traced(), Engine.trace
    traced.stop_at = stop_at

    def watched(engine, prompt, answer, budget, depth):
        if engine.drafter.needs_draft_model:
            if len(traced) == traced.stop_at:
                raise KeyboardInterrupt
            traced.append(prompt)
        return original(engine, prompt, answer, budget, depth)

    monkeypatch.setattr(Engine, "trace", watched)
    return traced


def same(first, second) -> bool:
    """Whether two tables, by path, hold the same."""
    first, second = read_table(first), read_table(second)
    return contents(first) == contents(second) and first.facts == second.facts
