"""One answer, token by token: which tokens the draft proposed, which the target corrected or added."""

from html import escape

from gammatune.errors import UserError, printable
from gammatune.records import TurnLog
from gammatune.report.names import arm_names
from gammatune.runs.store import BASELINE, StoredArm, StoredRun

KINDS = {
    "accepted": "drafted and accepted",
    "corrected": "correction by the target",
    "bonus": "bonus token after a full acceptance",
    "target": "plain target step",
}
ANSI = {"accepted": "32", "corrected": "33;1", "bonus": "36", "target": "0"}
HTML = {"accepted": "background:#c9e4d6", "corrected": "background:#f6c89f", "bonus": "background:#bcd9f2", "target": ""}


def mark_tokens(turn: TurnLog) -> list[tuple[int, str]]:
    """(token id, kind) of every output token; kind is a key of KINDS.

    A round emits its accepted tokens and then, unless an accepted end of sequence cut it, one token of the target: the
    correction after a rejection, the bonus token after a full acceptance, a plain step if nothing was drafted.
    """
    kinds = []
    for r in turn.rounds:
        last = "target" if r.drafted == 0 else "bonus" if r.accepted == r.drafted else "corrected"
        kinds += ["accepted"] * r.accepted + [last] * (r.emitted - r.accepted)
    return list(zip(turn.output_ids, kinds, strict=True))


def choose_arm(run: StoredRun, label: str | None = None) -> StoredArm:
    """The arm of that label; without one a GammaTune arm if there is one, else any that drafts. Raises UserError."""
    if label is not None:
        return run.arm(label)
    drafting = [arm for arm in run.arms if arm.label != BASELINE]
    return min(drafting or run.arms, key=lambda arm: not arm.policy.startswith("gammatune"))


def choose_turns(arm: StoredArm, question: int | None = None) -> list[TurnLog]:
    """All turns of one question in the first repetition; without an id the first question. Raises UserError."""
    first = [turn for turn in arm.turns if turn.repetition == arm.turns[0].repetition]
    wanted = first[0].question_id if question is None else question
    turns = [turn for turn in first if turn.question_id == wanted]
    if not turns:
        known = list(dict.fromkeys(turn.question_id for turn in first))
        more = f" ... {known[-1]}" if len(known) > 5 else ""
        raise UserError(f"Question {wanted} is not in this run: choose one of {', '.join(map(str, known[:5]))}{more}.")
    return turns


def headline(run: StoredRun, arm: StoredArm, turn: TurnLog) -> str:
    drafted, accepted = (sum(getattr(r, name) for r in turn.rounds) for name in ("drafted", "accepted"))
    return (
        f"question {turn.question_id} ({turn.task}, turn {turn.turn + 1}), {arm_names(run.arms)[arm.label]}: "
        f"{len(turn.output_ids)} tokens in {len(turn.rounds)} rounds, {accepted} of {drafted} drafted tokens accepted"
    )


def piece(run: StoredRun, token: int) -> str:
    """Text of a token; the bare id where the run stored none."""
    return run.pieces.get(token, f"<{token}>")


def answer_text(run: StoredRun, turn: TurnLog, coloured: bool) -> str:
    """The answer for a terminal, with ANSI colours if `coloured`; control characters of the model's come as \\x1b."""
    colour = paint if coloured else lambda text, kind: text
    return "".join(colour(printable(piece(run, token)), kind) for token, kind in mark_tokens(turn))


def legend_text() -> str:
    """What the colours of a terminal mean."""
    return "  ".join(paint(meaning, kind) for kind, meaning in KINDS.items())


def paint(text: str, kind: str) -> str:
    return f"\033[{ANSI[kind]}m{text}\033[0m"


def answer_html(run: StoredRun, turn: TurnLog) -> str:
    """The answer as an HTML fragment with a legend; token boundaries show as gaps in the colour."""
    tokens = "".join(span(piece(run, token), kind) for token, kind in mark_tokens(turn))
    legend = " &nbsp; ".join(span(meaning, kind) for kind, meaning in KINDS.items())
    return (
        f'<p style="font-size:85%">{legend}</p><div style="white-space:pre-wrap;line-height:1.7;max-width:60em;'
        f'font-family:monospace">{tokens}</div>'
    )


def span(text: str, kind: str) -> str:
    style = f"{HTML[kind]};color:#111;border-radius:3px;padding:1px 0;margin-right:1px" if HTML[kind] else ""
    return f'<span style="{style}" title="{KINDS[kind]}">{escape(text)}</span>'
