"""`gammatune record`: the target's own answers to a task set, and the acceptance table of the drafter beside them."""

import sys
import time
from pathlib import Path

from gammatune.config import RunConfig
from gammatune.decoding.loop import Generation, generate_autoregressive, generate_speculative
from gammatune.drafters.known import KnownText
from gammatune.errors import UserError, printable
from gammatune.files import content_hash, hold_folder, read_derived, read_json, write_json
from gammatune.machine import LoadWatch
from gammatune.policies.gammatune import GammaTune
from gammatune.policies.session import PolicySession
from gammatune.records import SCHEMA
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, read_table
from gammatune.runs.acceptance import Recording, Stop
from gammatune.runs.earlier import Earlier
from gammatune.runs.provenance import describe_environment
from gammatune.runs.session import open_session
from gammatune.runs.store import PIECES_FILE
from gammatune.runs.texts import has_texts, name_ids, write_texts
from gammatune.tasks.questions import Question

CONFIRMED = 24  # known tokens that the target checks in one forward, at most


class Recorder:
    """Answer every question with the target alone, then trace the drafter along the answers.

    known: (question id, turn) -> ids of answers that are perhaps the target's own; it checks them in blocks.
    earlier: a table of the same work on other questions of the same file; what both have is taken over.
    answers: a table of the same target with another drafter; its answers are taken as they are, without a forward.
    """

    def __init__(
        self,
        config: RunConfig,
        out: Path,
        depth: int,
        known: dict | None = None,
        earlier: Earlier | None = None,
        answers: Earlier | None = None,
    ):
        if not config.decode.greedy:
            raise UserError("An acceptance table exists for greedy decoding only: set decode=greedy.")
        if not 1 <= depth <= 120:
            raise UserError(f"--gamma-max {depth} must lie between 1 and 120.")
        self.known = known or {}
        self.earlier = earlier
        self.answer_seconds = self.seconds = 0.0
        self.load = LoadWatch()
        self.session = open_session(config)
        facts = self.session.table_facts(depth)
        self.held = earlier.select(self.session, facts) if earlier else {}
        self.answers = answers
        self.answered = answers.select(self.session, facts) if answers else {}
        name = f"{self.session.pair.name}-{config.tasks.name}-{content_hash({'schema': SCHEMA, **facts})}"
        self.recording = Recording(out / name, facts)

    def run(self) -> Path:
        """Record what is missing; returns the table's path. Complete questions stay on disk whatever happens."""
        self.gather()
        return self.recording.table

    def gather(self, stop: Stop | None = None) -> AcceptanceTable:
        """The same, and the table itself. stop: ends it earlier, see `Recording.complete`."""
        started = time.perf_counter()
        with hold_folder(self.recording.folder, "--out FOLDER"):
            if self.recording.finished():
                table = read_table(self.recording.table)
            else:
                self.stamp()
                table = self.recording.complete(self.session, self.answer, self.held, stop)
            if self.recording.table.exists():
                self.leave_texts(table)
        self.seconds = time.perf_counter() - started
        return table

    def leave_texts(self, table: AcceptanceTable) -> None:
        file = self.recording.folder / PIECES_FILE
        if not has_texts(file):
            ids, questions = name_ids(table), self.session.questions.questions
            write_texts(file, self.session.pair.tokenizer, ids, questions)

    def stamp(self) -> None:
        """Provenance of this call, on disk before the first forward."""
        write_json(self.recording.folder / "config.json", self.recording.facts)
        path = self.recording.folder / "provenance.json"
        there = read_derived(path, read_sessions) or []
        here = describe_environment(self.session.pair.device, self.session.pair.identity)
        here |= {"known_answers": len(self.known)}
        if self.earlier:
            here |= {"extended": self.earlier.describe(self.held)}
            taken = f"{len(self.held)} of {len(self.session.questions.questions)} questions"
            print(printable(f"{taken} are taken over from {self.earlier.path}."), file=sys.stderr)
        if self.answers:
            here |= {"answers": self.answers.describe(self.answered)}
            taken = f"{len(self.answered)} of {len(self.session.questions.questions)} questions"
            print(printable(f"Answers to {taken} are those of {self.answers.path}."), file=sys.stderr)
        write_json(path, {"sessions": [*there, here]})

    def answer(self, question: Question, turn: int, prompt: list[int]) -> Generation:
        if question.question_id in self.answered:
            return take_answer(self.answered[question.question_id][turn])
        started = time.perf_counter()
        known = self.known.get((question.question_id, turn))
        made = self.confirm(prompt, known) if known else self.decode(prompt)
        self.answer_seconds += time.perf_counter() - started
        self.load.note()
        return made

    def decode(self, prompt: list[int]) -> Generation:
        return generate_autoregressive(self.session.engine, prompt, self.session.config.decode)

    def confirm(self, prompt: list[int], known: list[int]) -> Generation:
        """The target's own answer in few forwards, as far as `known` is that answer; gamma adapts where it is not."""
        engine = self.session.engine.with_drafter(KnownText(answer=known))
        policy = GammaTune(gamma=CONFIRMED, gamma_max=CONFIRMED, clip_expand="gamma_max")
        return generate_speculative(engine, prompt, PolicySession(policy), self.session.config.decode)

    def describe_times(self) -> str:
        """What this call spent on the target's answers and on the drafter beside them."""
        if not self.answer_seconds:
            return "No answer of the target was left to make."
        traced = self.seconds - self.answer_seconds
        warning = self.load.warning("these times")
        return (
            f"Answers of the target {self.answer_seconds:.1f} s, the drafter beside them {traced:.1f} s: "
            f"{self.seconds / self.answer_seconds:.2f} times the answers alone." + (f" {warning}" if warning else "")
        )


def take_answer(turn: AcceptanceTurn) -> Generation:
    """An answer that an earlier table holds; its time is unknown and its rounds were never run."""
    return Generation(turn.output_ids.tolist(), turn.finish, prefill_ms=0, wall_ms=0, rounds=[])


def read_sessions(file: Path) -> list:
    """Of a recording's provenance. Raises UserError."""
    sessions = read_json(file, "run the same command again").get("sessions")
    if not isinstance(sessions, list):
        raise UserError(f"{file} is damaged (no sessions): run the same command again.")
    return sessions
