"""Round and TurnLog: the record that every decoder writes and everything downstream reads.

A turn is one prompt and its answer. Its answer is made in rounds: the draft proposes `drafted` tokens (the policy
`planned` some number), the target verifies them in one forward pass, `accepted` of them stand, and one more token
comes from the target itself (the correction after a rejection, the bonus token after a full acceptance).
Autoregressive decoding is the same record with `planned = drafted = accepted = 0`.
"""

import json
from dataclasses import asdict, dataclass, field, fields

from gammatune.errors import UserError

SCHEMA = 1

STOP_REASONS = ("length", "policy", "eos", "budget")


@dataclass
class Round:
    """One draft block and its verification.

    planned: gamma that the policy asked for. drafted: tokens sent to the target, up to and including a drafted end of
    sequence. accepted: drafted tokens that stand (bonus excluded). emitted: accepted + 1, or accepted where an accepted
    end of sequence leaves no bonus. draft_forwards: draft forward passes spent (a token dropped by a policy costs one).
    stop: why drafting ended: planned length reached, the policy's word, the draft proposed the end of the sequence, or
    no more tokens were allowed. context: committed tokens before the round. Times in milliseconds. state: the
    policy's own numbers when it planned this round.
    """

    planned: int
    drafted: int
    accepted: int
    emitted: int
    draft_forwards: int
    stop: str
    context: int
    draft_ms: float = 0.0
    verify_ms: float = 0.0
    policy_ms: float = 0.0
    state: dict = field(default_factory=dict)

    @property
    def cut(self) -> bool:
        """Whether the end of the sequence or the token budget, not the policy, decided how many tokens were drafted."""
        return self.stop in ("eos", "budget")

    def counts(self) -> tuple:
        """Everything that does not depend on the clock, for comparing two runs of the same policy."""
        state = tuple(sorted(self.state.items()))
        return self.planned, self.drafted, self.accepted, self.emitted, self.stop, self.context, state


def refuse_newer(schema: int, where, remedy: str = "update gammatune to read it", known: int = SCHEMA) -> None:
    """Raises UserError, naming the file or line `where`, when its schema number is above the highest that we know."""
    if schema > known:
        raise UserError(
            f"{where} was written by a newer gammatune (schema {schema}, this one reads up to {known}): {remedy}."
        )


ROUND_FIELDS = tuple(f.name for f in fields(Round))


@dataclass
class TurnLog:
    """One answered prompt: who, what came out, how long it took, and every round.

    finish: "eos" or "length". wall_ms: the whole turn with prefill, without tokenisation. prefill_ms: the part before
    the first round (both models where a draft is used). output_ids: generated ids, a final end of sequence included.
    policy_after: the policy's state after the last round, from which an interrupted run goes on.
    """

    question_id: int
    category: str
    task: str
    turn: int
    prompt_tokens: int
    output_ids: list[int]
    finish: str
    prefill_ms: float
    wall_ms: float
    rounds: list[Round]
    repetition: int = 0
    policy_after: dict = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON line; rounds are stored as columns (`planned: [..], drafted: [..], ...`)."""
        record = {name: value for name, value in asdict(self).items() if name != "rounds"}
        columns = {name: [getattr(r, name) for r in self.rounds] for name in ROUND_FIELDS}
        return json.dumps({"schema": SCHEMA, **record, "rounds": columns}, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str, where: str = "the turn log") -> "TurnLog":
        """Inverse of to_json. Raises UserError, naming `where`, for a newer schema or a malformed line."""
        try:
            record = json.loads(line)
            schema = record.pop("schema")
            refuse_newer(schema, where)
            columns = record.pop("rounds")
            rows = zip(*(columns[name] for name in ROUND_FIELDS), strict=True)
            return cls(**record, rounds=[Round(*row) for row in rows])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where} is damaged ({type(error).__name__}): delete that run's folder, or run it again to "
                "continue from its last complete turn."
            ) from error
