"""What a drafter would propose from each position of an answer, whichever policy asks.

In greedy decoding the committed text is the target's own whatever the policy does. So for each answer position as the start
of a block, the drafter's tokens up to the first wrong one, and what it reports along its own continuation after that one,
are all that any policy can meet. A draft model's next token depends on the text alone, so the blocks from two starts overlap
and are stored once (TextTrace); other drafters' proposals depend on where the block began (StartTrace).
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MATCH, MISMATCH, UNKNOWN = 1, 0, -1
NEVER = 1 << 30
UNTOLD = -1  # for an id that nobody knows


@dataclass
class SignalColumns:
    """The drafter's signals at n positions, float64, rounded to four decimals."""

    top1: np.ndarray  # [n], probability of the first choice
    entropy: np.ndarray  # [n], in nats
    margin: np.ndarray  # [n], top-1 minus top-2 probability

    def __len__(self) -> int:
        return len(self.top1)

    def as_arrays(self) -> tuple[array, array, array]:
        """The three columns as arrays whose items are plain floats, which a policy may see."""
        return tuple(array("d", values) for values in (self.top1, self.entropy, self.margin))

    @classmethod
    def join(cls, first: "SignalColumns", second: "SignalColumns") -> "SignalColumns":
        return cls(*(np.concatenate(pair) for pair in zip(vars(first).values(), vars(second).values(), strict=True)))


def as_ids(ids: np.ndarray) -> array | None:
    """Whose items are plain numbers, which a policy may see; None for no ids at all."""
    return array("l", ids.tolist()) if len(ids) else None


@dataclass
class Starts:
    """Every block that can begin in one answer, by its start. Depth i of the block from start p is its i-th token.

    Lists are indexed by answer position [n]. Signals and ids of depth i are at `head[p] + i` up to and including the first
    wrong token, and at `after[p] + i` from the next one on.
    """

    matches: list[int]  # drafted tokens in a row that the target accepts
    reach: list[int]  # tokens after which the drafter has no more to propose, NEVER where it always has
    ends: list[bool]  # whether the last of those ends the sequence
    known: list[int]  # depths with recorded signals
    depth: list[int] | None  # depths that are recorded at all; None where no block can leave them
    head: list[int]
    after: list[int]
    signals: tuple[array, array, array] | None  # top1, entropy, margin
    ids: array | None  # of the drafter's tokens, at the places of their signals; None where not recorded
    late: list[bool] | None  # whether a draft model that reads a token late would have proposed it; None without one
    proposer: list[int] | None = None  # who of several drafters proposes; None where there is one


@dataclass
class TextTrace:
    """One answer's trace by a drafter whose next token depends on the text alone."""

    match: np.ndarray  # [n], int8: whether the drafter's token is the answer's: MATCH, MISMATCH or UNKNOWN
    signals: SignalColumns | None  # [n], None where not recorded
    steps: np.ndarray  # [mismatches], int8: recorded steps of the drafter's own continuation after its wrong token
    ended: np.ndarray  # [mismatches], bool: whether the last of them (the wrong token itself for 0) ends the sequence
    continuations: SignalColumns | None  # [sum of steps], one continuation after another
    ids: np.ndarray | None = None  # [n + sum of steps], int32: its token at each position, then along the continuations

    def __len__(self) -> int:
        return len(self.match)

    @property
    def watched(self) -> bool:
        """Whether policies that watch signals can be replayed."""
        return self.signals is not None

    @property
    def unknown(self) -> int:
        """Positions of which nobody knows whether the drafter's token was right."""
        return int((self.match == UNKNOWN).sum())

    @property
    def head_ids(self) -> np.ndarray:
        """ids of the tokens proposed before anything wrong was: [n]."""
        return self.ids[: len(self)]

    def name_ids(self, answer: np.ndarray) -> np.ndarray:
        """ids; where they were not recorded, those of the answer [n] that are right, and UNTOLD. none where it has none."""
        if self.ids is not None or not len(answer):
            return self.ids if self.ids is not None else answer
        right = np.where(self.match == MATCH, answer, UNTOLD)
        return np.concatenate([right, np.full(int(self.steps.sum(dtype=int)), UNTOLD)])

    def starts(self, answer_ended: bool, answer: np.ndarray) -> Starts:
        """By start. answer_ended: whether the answer's last token ends the sequence, after which no block goes on.

        answer: its ids [n], or none.
        """
        n, places = len(self), np.arange(len(self))
        wrong = np.flatnonzero(self.match == MISMATCH)
        # the first mismatch at or after each place: an index into `wrong`, one past its end where there is none
        which = np.searchsorted(wrong, places)
        first_wrong = np.append(wrong, n)[which]
        matches = first_wrong - places
        end_there = np.full(len(wrong) + 1, NEVER)
        steps, offset = np.zeros(len(wrong) + 1, int), np.zeros(len(wrong) + 1, int)
        if len(self.steps):
            steps[:-1] = self.steps
            offset[:-1] = np.cumsum(self.steps, dtype=int) - self.steps
            end_there[:-1] = np.where(self.ended, steps[:-1] + 1, NEVER)
        # after the answer's last token: nothing is recorded there, and nothing is drafted after an end of sequence
        end_there[-1], steps[-1] = 0 if answer_ended else NEVER, -1
        joined = SignalColumns.join(self.signals, self.continuations) if self.watched else None
        return Starts(
            matches=matches.tolist(),
            reach=np.minimum(matches + end_there[which], NEVER).tolist(),
            ends=[True] * n,  # a model stops proposing for no other reason
            known=(matches + 1 + steps[which]).tolist(),
            depth=None,
            head=places.tolist(),
            after=(n + offset[which] - matches - 1).tolist(),
            signals=joined.as_arrays() if joined else None,
            ids=as_ids(self.name_ids(answer)),
            late=(self.match == MATCH).tolist(),
        )


@dataclass
class StartTrace:
    """One answer's trace by a drafter whose proposals depend on where the block begins."""

    right: np.ndarray  # [n], int16: proposed tokens in a row that the target accepts
    proposed: np.ndarray  # [n], int16: tokens that the drafter proposes there, as far as recorded
    ended: np.ndarray  # [n], bool: whether the last proposed token ends the sequence
    more: np.ndarray  # [n], bool: whether recording stopped before the drafter did
    signals: SignalColumns | None  # [sum of proposed], one start after another; None for a drafter without signals
    ids: np.ndarray | None = None  # [sum of proposed], int32: the proposed tokens
    proposer: np.ndarray | None = None  # [n], int8: who of several drafters proposes there; None where there is one
    late: np.ndarray | None = None  # [n], bool: whether a draft model among them would propose the answer's token there

    def __len__(self) -> int:
        return len(self.right)

    @property
    def watched(self) -> bool:
        return self.signals is not None

    @property
    def unknown(self) -> int:
        return 0

    @property
    def head_ids(self) -> np.ndarray:
        """ids, which end soon after the first wrong token."""
        return self.ids

    @property
    def match(self) -> np.ndarray:
        """[n], int8: whether a block from here would begin with the answer's own token."""
        return (self.right > 0).astype(np.int8)

    def name_ids(self, answer: np.ndarray) -> np.ndarray:
        """As of TextTrace."""
        if self.ids is not None or not len(answer):
            return self.ids if self.ids is not None else answer
        parts = [
            [*answer[place : place + right], *[UNTOLD] * (proposed - right)]
            for place, (right, proposed) in enumerate(zip(self.right.tolist(), self.proposed.tolist(), strict=True))
        ]
        return np.array([token for part in parts for token in part], np.int32)

    def starts(self, answer_ended: bool, answer: np.ndarray) -> Starts:
        """By start; answer_ended plays no part, since each start has its own end."""
        proposed = self.proposed.astype(int)
        head = np.cumsum(proposed) - proposed
        return Starts(
            matches=self.right.tolist(),
            reach=np.where(self.more, NEVER, proposed).tolist(),
            ends=self.ended.tolist(),
            known=proposed.tolist(),
            depth=np.where(self.more, proposed, NEVER).tolist() if self.more.any() else None,
            head=head.tolist(),
            after=head.tolist(),
            signals=self.signals.as_arrays() if self.watched else None,
            ids=as_ids(self.name_ids(answer)),
            late=None if self.late is None else self.late.tolist(),
            proposer=None if self.proposer is None else self.proposer.tolist(),
        )


Trace = TextTrace | StartTrace


def take_first(members: Sequence[Starts]) -> StartTrace:
    """The trace of several drafters of which the first that has something to propose does. members: each alone, one answer.

    Without signals where one of them has none. What a text trace knows of a block is known here, too.
    """
    known = np.array([starts.known for starts in members])  # [m, n]
    proposer = (known > 0).argmax(axis=0)  # [n]

    def choose(name: str) -> np.ndarray:
        """[n]: the field of whoever proposes there."""
        return np.array([getattr(starts, name) for starts in members])[proposer, np.arange(len(proposer))]

    proposed, matches, reach = choose("known"), choose("matches"), choose("reach")
    depth = np.arange(proposed.sum()) - np.repeat(np.cumsum(proposed) - proposed, proposed)  # of each token in its block
    head, after, last_right = (np.repeat(choose(name), proposed) for name in ("head", "after", "matches"))
    places, by_whom = depth + np.where(depth <= last_right, head, after), np.repeat(proposer, proposed)

    def gather(columns: Sequence[Sequence]) -> np.ndarray:
        """Of each token its value in the column of its proposer."""
        found = np.zeros(len(places), np.asarray(columns[0]).dtype)
        for member, column in enumerate(columns):
            found[by_whom == member] = np.asarray(column, found.dtype)[places[by_whom == member]]
        return found

    watched = all(starts.signals is not None for starts in members)
    named = all(starts.ids is not None or not any(starts.known) for starts in members)
    late = [starts.late for starts in members if starts.late is not None]
    return StartTrace(
        right=matches.astype(np.int16),
        proposed=proposed.astype(np.int16),
        ended=choose("ends") & (reach < NEVER),
        more=reach >= NEVER,
        signals=SignalColumns(*map(gather, zip(*(starts.signals for starts in members), strict=True))) if watched else None,
        ids=gather([starts.ids or () for starts in members]).astype(np.int32) if named else None,
        proposer=proposer.astype(np.int8),
        late=np.array(late[0], bool) if late else None,
    )
