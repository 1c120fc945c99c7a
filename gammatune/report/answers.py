"""Answers for a page: which of them are shown, and what is known of each of their tokens."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gammatune.records import Round, TurnLog
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn
from gammatune.report.names import arm_names, task_name
from gammatune.report.numbers import absent
from gammatune.report.show import mark_tokens
from gammatune.runs.store import BASELINE, StoredArm, StoredRun, Texts
from gammatune.traces import MATCH, UNKNOWN

LONGEST = 400  # tokens of an answer that are shown
ARMS = 4  # of a question, side by side
QUESTION = 300  # characters of a question that are shown
KINDS = {
    "accepted": "drafted and accepted",
    "corrected": "the target's token in place of a rejected one",
    "bonus": "bonus token of the target after a full acceptance",
    "target": "plain step of the target",
    "match": "the drafter would propose it",
    "mismatch": "the drafter would propose another token",
    "unknown": "not known",
}
RUN_KINDS, TABLE_KINDS = list(KINDS)[:4], list(KINDS)[4:]


@dataclass
class Token:
    """One token of an answer."""

    text: str
    kind: str  # a key of KINDS
    note: str  # kind and probability in words
    instead: str = ""  # what the drafter had proposed and the target rejected


@dataclass
class Group:
    """Tokens between two borders: a round, or of a table the matches up to a mismatch."""

    note: str
    tokens: list[Token]


@dataclass
class Answer:
    """One arm's answer to one prompt."""

    arm: str  # label
    name: str
    summary: str
    groups: list[Group]
    left_out: int  # tokens after the last that is shown
    bars: "Bars | None" = None


@dataclass
class Bars:
    """Gamma over rounds as paths of an SVG, ten units wide a round and six high a token."""

    width: int
    height: int
    top: int  # tokens at the upper edge
    drafted: str
    accepted: str
    planned: str


@dataclass
class Prompt:
    """One prompt with its answers."""

    task: str
    question: int
    turn: int
    text: str  # its beginning; empty where nobody stored it
    answers: list[Answer]

    @property
    def names_rejected(self) -> bool:
        """Whether it is known of any token what the drafter had proposed instead."""
        return any(token.instead for answer in self.answers for group in answer.groups for token in group.tokens)

    @property
    def title(self) -> str:
        return f"{task_name(self.task)}, question {self.question}" + (f", turn {self.turn + 1}" if self.turn else "")


@dataclass
class Beside:
    """What a table knows of the drafter at one answer's positions."""

    turn: AcceptanceTurn

    def __post_init__(self):
        self.starts = self.turn.starts()

    def find(self, start: int, depth: int) -> tuple[float | None, int | None]:
        """Of the drafter's token at this depth of the block from `start`: probability and id, None where not recorded."""
        starts = self.starts
        if start >= len(starts.matches) or depth > starts.matches[start] or depth >= starts.known[start]:
            return None, None
        at = starts.head[start] + depth
        probability = None if starts.signals is None else starts.signals[0][at]
        token = None if starts.ids is None or starts.ids[at] < 0 else starts.ids[at]
        return probability, token


@dataclass
class Reader:
    """Turns ids into what a page shows."""

    texts: Texts

    def text(self, token: int) -> str:
        return self.texts.pieces.get(token, f"‹{token}›")

    def question(self, number: int, turn: int) -> str:
        turns = self.texts.questions.get(number, [])
        text = turns[turn] if turn < len(turns) else ""
        return text if len(text) <= QUESTION else f"{text[: QUESTION - 1]}…"


def run_prompts(run: StoredRun, texts: Texts, table: AcceptanceTable | None, budget: int) -> tuple[list[Prompt], int]:
    """Answers of the first repetition, about `budget` tokens of them, and how many prompts there are in all."""
    reader, names = Reader(texts), arm_names(run.arms)
    first = run.arms[0].turns[0].repetition
    turns = {
        arm.label: {(t.task, t.question_id, t.turn): t for t in arm.turns if t.repetition == first} for arm in pick_arms(run)
    }
    known = {(t.task, t.question_id, t.turn): Beside(t) for t in table.turns} if table else {}
    sizes = {}
    for found in turns.values():
        for key, turn in found.items():
            sizes[key] = sizes.get(key, 0) + min(len(turn.output_ids), LONGEST)
    prompts = []
    for key in pick_evenly(sizes, budget):
        answers = [
            show_turn(reader, label, names[label], found[key], known.get(key))
            for label, found in turns.items()
            if key in found
        ]
        prompts.append(Prompt(*key, reader.question(*key[1:]), answers))
    return prompts, len(sizes)


def pick_arms(run: StoredRun) -> list[StoredArm]:
    """GammaTune's first, then one arm of each other policy, fixed lengths last; the target alone where nothing drafted."""
    drafting = [arm for arm in run.arms if arm.label != BASELINE]
    ranked = sorted(drafting, key=lambda arm: (arm.policy == "fixed", not arm.policy.startswith("gammatune")))
    chosen: dict[str, StoredArm] = {}
    for arm in ranked:
        chosen.setdefault(arm.policy, arm)
    fixed = [chosen["fixed"]] if "fixed" in chosen else []
    others = [arm for policy, arm in chosen.items() if policy != "fixed"][: ARMS - len(fixed)]
    return [*others, *fixed] or run.arms[:1]


def pick_evenly(sizes: dict[tuple, int], budget: int) -> list[tuple]:
    """Keys (task, question, turn) in their order, the tasks taking turns until `budget` is used up; at least one."""
    met: Counter[str] = Counter()
    rank = {}
    for key in sizes:
        rank[key] = met[key[0]]
        met[key[0]] += 1
    chosen, used = set(), 0
    for key in sorted(sizes, key=rank.get):  # the n-th keys of all tasks before any next one
        if chosen and used + sizes[key] > budget:
            break
        chosen.add(key)
        used += sizes[key]
    return [key for key in sizes if key in chosen]


def show_turn(reader: Reader, label: str, name: str, turn: TurnLog, beside: Beside | None) -> Answer:
    if beside and beside.turn.output_ids.tolist() != turn.output_ids:  # a near-tie led elsewhere
        beside = None
    kinds, groups, place = mark_tokens(turn), [], 0
    for number, r in enumerate(turn.rounds, start=1):
        if place + r.emitted > LONGEST and groups:
            break
        tokens = [
            show_token(reader, *kinds[place + depth], beside.find(place, depth) if beside else (None, None))
            for depth in range(r.emitted)
        ]
        groups.append(Group(describe_round(number, r, tokens), tokens))
        place += r.emitted
    drafted, accepted = (sum(getattr(r, name) for r in turn.rounds) for name in ("drafted", "accepted"))
    summary = f"{count(len(turn.output_ids), 'token')} in {count(len(turn.rounds), 'round')}"
    summary += f", {accepted} of {drafted} drafted accepted" if drafted else ""
    bars = draw_bars(turn.rounds[: len(groups)]) if drafted else None
    return Answer(label, name, summary, groups, len(turn.output_ids) - place, bars)


def show_token(reader: Reader, token: int, kind: str, found: tuple[float | None, int | None]) -> Token:
    probability, proposed = found
    instead = reader.text(proposed) if kind == "corrected" and proposed is not None else ""
    if kind in ("corrected", "mismatch") and proposed is not None:
        drafter = f"draft: {quote(reader.text(proposed))}"
    else:
        drafter = "draft"
    sure = "" if absent(probability) else f" {probability:.2f}"
    return Token(reader.text(token), kind, f"{kind}, {drafter}{sure}" if sure or proposed is not None else kind, instead)


def describe_round(number: int, r: Round, tokens: list[Token]) -> str:
    if not r.planned and not r.drafted:
        return f"Round {number}: plain step"
    proposed = tokens if r.accepted < r.drafted else tokens[: r.accepted]
    notes = [token.note.removeprefix(f"{token.kind}, ").removeprefix("draft").strip(": ") for token in proposed]
    sure = [note for token, note in zip(proposed, notes, strict=True) if note != token.kind]
    return f"Round {number}: gamma {r.planned}, drafted {r.drafted}, accepted {r.accepted}" + (
        f"; draft {' · '.join(sure)}" if sure else ""
    )


def draw_bars(rounds: list[Round]) -> Bars:
    drafted, accepted = [r.drafted for r in rounds], [r.accepted for r in rounds]
    top = max(4, *(min(r.planned, 2 * r.drafted + 4) for r in rounds), *drafted)
    height, planned = 6 * top, [min(r.planned, top) for r in rounds]
    steps = "".join(f"V{height - 6 * value}h10" for value in planned)
    return Bars(
        width=10 * len(rounds),
        height=height,
        top=top,
        drafted=stack(zip(accepted, drafted, strict=True), height),
        accepted=stack(((0, value) for value in accepted), height),
        planned=f"M0 {height - 6 * planned[0]}{steps}",
    )


def stack(spans: Iterable[tuple[int, int]], height: int) -> str:
    """A rectangle per round from one count of tokens to another."""
    return "".join(
        f"M{10 * place + 1} {height - 6 * low}v{-6 * (high - low)}h8v{6 * (high - low)}z"
        for place, (low, high) in enumerate(spans)
        if high > low
    )


def table_prompts(table: AcceptanceTable, texts: Texts, budget: int) -> tuple[list[Prompt], int]:
    """Answers of a table, each token with what the drafter would propose for it, and how many prompts there are in all."""
    reader = Reader(texts)
    turns = {(turn.task, turn.question_id, turn.turn): turn for turn in table.turns}
    sizes = {key: min(turn.tokens, LONGEST) for key, turn in turns.items()}
    chosen = pick_evenly(sizes, budget)
    return [Prompt(*key, reader.question(*key[1:]), [show_table_turn(reader, turns[key])]) for key in chosen], len(sizes)


def show_table_turn(reader: Reader, turn: AcceptanceTurn) -> Answer:
    shown, beside = min(turn.tokens, LONGEST), Beside(turn) if not turn.trace.unknown else None
    ids, match, tokens = turn.output_ids.tolist(), turn.match.tolist(), []
    for place in range(shown):
        kind = {MATCH: "match", UNKNOWN: "unknown"}.get(match[place], "mismatch")
        token = show_token(reader, ids[place] if ids else -1, kind, beside.find(place, 0) if beside else (None, None))
        tokens.append(token if ids else Token("▪", kind, token.note))
    groups: list[Group] = []
    for token in tokens:
        if not groups or groups[-1].tokens[-1].kind != "match":
            groups.append(Group("", []))
        groups[-1].tokens.append(token)
    for group in groups:
        matches = sum(token.kind == "match" for token in group.tokens)
        ending = group.tokens[-1]
        end = "" if ending.kind == "match" else f", then {ending.note}"
        group.note = f"{count(matches, 'match', 'matches')} in a row{end}"
    share = sum(value == MATCH for value in match)
    return Answer("", "", f"{share} of {count(turn.tokens, 'token')} match", groups, turn.tokens - shown)


def count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or f'{one}s'}"


def quote(text: str) -> str:
    return f"“{text}”"
