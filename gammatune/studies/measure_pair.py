"""What advice needs of a pair on this machine, within minutes: prices, and a table of a few questions of each task.

results/advice/<pair>-<tasks>-<hash>/
    config.json, provenance.json, parts/, acceptance.parquet    as a recording leaves them
    partial.parquet    the questions so far, where the time was over before the last one
    prices.json
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from gammatune.config import RunConfig
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.suffix import Suffix
from gammatune.files import hold_folder, read_derived
from gammatune.replay.prices import PRICES_FILE, PriceList, read_prices
from gammatune.replay.table import AcceptanceTable, write_table
from gammatune.runs.acceptance import trace_question
from gammatune.runs.measure_prices import Plan, PriceRun, write_prices
from gammatune.runs.provenance import name_device
from gammatune.runs.session import DEPTH, Session, describe_forwards
from gammatune.studies.advise import LEAST_QUESTIONS, refuse_few
from gammatune.studies.drafters import Contender
from gammatune.studies.record import Recorder, take_answer

PLAN = Plan(contexts=(64, 320), gamma_max=12, repeats=2)  # longer blocks are priced by the line through these
PARTIAL_FILE = "partial.parquet"


@dataclass
class Measured:
    """A pair as advice sees it."""

    folder: Path
    table: AcceptanceTable
    file: Path  # of the table
    curve: PriceList
    beside: list[Contender]  # drafters that take no forwards, along the same answers
    device: str  # of this machine, as prices name it
    warnings: list[str]  # sentences


def measure_pair(config: RunConfig, out: Path, deadline: float, prices: PriceList | None) -> Measured:
    """Measure prices, unless they are given or were measured here before, then record until the deadline.

    deadline: on the clock of time.monotonic; after it, recording goes on to LEAST_QUESTIONS only. Complete questions and
    prices stay on disk whatever happens, and the same call takes them up. Raises UserError.
    """
    recorder = Recorder(config, out, DEPTH)
    session, folder = recorder.session, recorder.recording.folder
    asked = len(session.questions.questions)
    refuse_few(asked)
    if prices is None:
        with hold_folder(folder, "--out FOLDER"):
            prices = find_own_prices(session, folder / PRICES_FILE)
    table = recorder.gather(lambda done: done >= LEAST_QUESTIONS and time.monotonic() > deadline)
    done = len({turn.question_id for turn in table.turns})
    file = store_partial(folder, table, whole=done == asked) or recorder.recording.table
    beside = record_beside(session, table, prices) if config.drafter is None else []
    return Measured(folder, table, file, prices, beside, name_device(session.pair.device), describe_rest(session, done))


def find_own_prices(session: Session, file: Path) -> PriceList:
    """Those of an earlier call on this device, or measured and stored."""
    stored = read_derived(file, read_prices)
    if stored and stored.facts.get("provenance", {}).get("device") == name_device(session.pair.device):
        return stored
    print("Measuring prices.", file=sys.stderr)
    curve = PriceRun(session, PLAN).run()
    write_prices(curve, file)
    return curve


def record_beside(session: Session, table: AcceptanceTable, prices: PriceList) -> list[Contender]:
    """What drafters without forwards would propose along a table's answers: seconds, and no forward of the target."""
    answered = {(turn.question_id, turn.turn): take_answer(turn) for turn in table.turns}
    there, found = {turn.question_id for turn in table.turns}, []
    for drafter in (Lookup(), Suffix()):
        theirs = replace(session, engine=session.engine.with_drafter(drafter))
        turns = [
            turn
            for question in session.questions.questions
            if question.question_id in there
            for turn in trace_question(theirs, question, lambda q, index, _: answered[q.question_id, index], DEPTH)
        ]
        facts = table.facts | {"drafter": drafter.identity, **describe_forwards(drafter)}
        found.append(Contender.of(AcceptanceTable(turns, facts), prices))
    return found


def store_partial(folder: Path, table: AcceptanceTable, whole: bool) -> Path | None:
    """The file of a table that is not whole; what an earlier call left of one is removed."""
    file = folder / PARTIAL_FILE
    if whole:
        file.unlink(missing_ok=True)
        return None
    write_table(table, file)
    return file


def describe_rest(session: Session, done: int) -> list[str]:
    """What was not recorded."""
    found, asked = [], len(session.questions.questions)
    if session.overlong:
        found.append(f"{len(session.overlong)} questions are too long for the pair and were left out.")
    if done < asked:
        found.append(
            f"The time was over after {done} of {asked} questions; the same command with more --minutes goes on from there."
        )
    return found
