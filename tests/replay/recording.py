"""Tables of tables: answers of a table model, traced, and written and read back through a file."""

from pathlib import Path

import numpy as np

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import Engine, generate_autoregressive, generate_speculative
from gammatune.policies.session import PolicySession
from gammatune.records import Round
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, read_table, write_table


def record(engine: Engine, prompts: list[list[int]], budget: int, depth: int, path: Path) -> AcceptanceTable:
    """The target's own answers with the drafter's trace; every two turns make a question."""
    turns = []
    for index, prompt in enumerate(prompts):
        made = generate_autoregressive(engine, prompt, DecodeConfig(max_new_tokens=budget))
        turns.append(
            AcceptanceTurn(
                question_id=index // 2,
                category="qa",
                task="qa",
                turn=index % 2,
                prompt_tokens=len(prompt),
                budget=budget,
                finish=made.finish,
                output_ids=np.array(made.output_ids, np.int32),
                trace=engine.trace(prompt, made.output_ids, budget, depth),
            )
        )
    facts = {"gamma_max": depth, "forwards_per_token": engine.drafter.forwards_per_token}
    write_table(AcceptanceTable(turns, facts), path)
    return read_table(path)


def run_live(engine: Engine, prompts: list[list[int]], policy, budget: int) -> list[list[Round]]:
    """Rounds of every turn, the session started as the runner does it."""
    session, logs = PolicySession(policy), []
    session.restart()
    for index, prompt in enumerate(prompts):
        session.start(index // 2, index % 2)
        logs.append(generate_speculative(engine, prompt, session, DecodeConfig(max_new_tokens=budget)).rounds)
    return logs


def facts_of(logs: list[list[Round]]) -> list[list[tuple]]:
    """Everything but the clock."""
    return [[(*r.counts(), r.forwards, r.nodes, r.row) for r in rounds] for rounds in logs]
