"""A log of Spec-Bench's own harness as an acceptance table, so that other policies can be replayed on it."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gammatune.config import task_of
from gammatune.errors import UserError
from gammatune.policies import POLICIES, Policy
from gammatune.records import Round
from gammatune.replay.table import MATCH, MISMATCH, UNKNOWN, AcceptanceTable, AcceptanceTurn
from gammatune.studies.importers.answer_file import LoggedTurn, read_answers

MAX_NEW_TOKENS = 1024


@dataclass
class Schedule:
    """The rule that set the draft lengths of a log: a policy by its name in configs, and the token budget of a turn.

    As text: name and gamma, as an arm is labelled.
    """

    name: str
    policy: Policy
    max_new_tokens: int = MAX_NEW_TOKENS

    def __str__(self) -> str:
        gamma = getattr(self.policy, "gamma", None)
        return self.name if gamma is None else f"{self.name}-{gamma}"


def schedule_names() -> list[str]:
    """Policies whose draft lengths follow from the accepted lengths of the turn alone."""
    made = {name: policy() for name, policy in POLICIES.items() if name != "ar"}
    return [n for n, p in made.items() if not (p.watches_draft or p.oracle) and p.carry == "turn"]


def build_schedule(name: str, gamma: int | None = None, max_new_tokens: int = MAX_NEW_TOKENS) -> Schedule:
    """Raises UserError for an unknown policy, one whose draft lengths a log does not tell, or a gamma that it cannot have.

    Spec-Bench's SpS with transformers 4.37 (its main branch) is hf_heuristic with gamma 5, the default here.
    """
    choices = f"choose one of {', '.join(schedule_names())}"
    if name not in POLICIES:
        raise UserError(f"--schedule {name} is not known: {choices}.")
    if POLICIES[name].rule.watches_draft:
        raise UserError(f"--schedule {name} watches the draft, so a log does not tell its draft lengths: {choices}.")
    if name not in schedule_names():
        raise UserError(f"The draft lengths of --schedule {name} cannot be told from the rounds of a turn alone: {choices}.")
    if gamma is not None and not hasattr(POLICIES[name].rule, "gamma"):
        raise UserError(f"--schedule {name} has no gamma: leave --gamma out.")
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens} must be 1 or more.")
    return Schedule(name, POLICIES[name](**({} if gamma is None else {"gamma": gamma})), max_new_tokens)


def import_answers(path: Path, schedule: Schedule) -> AcceptanceTable:
    """What an answer file of a greedy run tells in each question's choices[0], its draft lengths made again by the schedule.

    Accepted tokens match; the token after a partly accepted round does not; the token after a fully accepted round is
    unknown, since the draft was not asked there. So is a turn's last token: where the round had room for it, the draft may
    have ended the sequence itself, which transformers does not count as accepted. Prompt lengths are not in the file: 0.
    Raises UserError for a file that cannot be read, is none of this format, or contradicts the schedule.
    """
    answers = read_answers(path)
    turns = [read_turn(logged, schedule, path) for logged in answers.turns]
    table = AcceptanceTable(turns)
    table.facts = {
        "source": path.name,
        "sha256": answers.sha256,
        "model_id": answers.model_id,
        "schedule": str(schedule),
        "settings": asdict(schedule.policy),
        "max_new_tokens": schedule.max_new_tokens,
        "rounds": sum(len(logged.lengths) for logged in answers.turns),
        "failed": answers.failed,
        "estimated match rate": estimate_match_rate(table),
    }
    return table


def estimate_match_rate(table: AcceptanceTable) -> float:
    """How often a known token matches whose predecessor matched too; how often any known one does where there is none.

    An unknown token stands behind a whole block of matches, and where the draft has just been right it is right more often
    than at the start of a block (0.72 against 0.59 on Spec-Bench's mt_bench log of Vicuna-7B/68M). Conditioning on the exact
    number of matches before it moves that estimate by 0.001, but has nothing to stand on in a log of one fixed gamma.
    Raises UserError where nothing is known.
    """
    after = np.concatenate([turn.match[1:] for turn in table.turns])
    before = np.concatenate([turn.match[:-1] for turn in table.turns])
    every = np.concatenate([turn.match for turn in table.turns])
    for sample in (after[before == MATCH], every):
        known = sample[sample != UNKNOWN]
        if len(known):
            return float((known == MATCH).mean())
    raise UserError("No position of this table has a known match, so no rate can be estimated: import a longer log.")


def read_turn(logged: LoggedTurn, schedule: Schedule, path: Path) -> AcceptanceTurn:
    match = rebuild_matches(logged, schedule, path)
    none = np.zeros(0, np.int8)
    return AcceptanceTurn(
        question_id=logged.question_id,
        category=logged.category,
        task=task_of(logged.category),
        turn=logged.turn,
        prompt_tokens=0,
        budget=schedule.max_new_tokens,
        finish="length" if len(match) == schedule.max_new_tokens else "eos",
        output_ids=none,
        match=match,
        signals=None,
        tail_steps=none,
        tail_ended=none.astype(bool),
        tails=None,
    )


def rebuild_matches(logged: LoggedTurn, schedule: Schedule, path: Path) -> np.ndarray:
    """[tokens] int8. Raises UserError where a round accepted more than was planned, or the turn is over its budget."""
    policy, match, budget = schedule.policy, [], schedule.max_new_tokens
    if sum(logged.lengths) > budget:
        raise UserError(
            f"{str(logged).capitalize()} in {path} has {sum(logged.lengths)} tokens, more than {budget}: give the "
            "token budget of that run with --max-new-tokens."
        )
    policy.reset()
    for number, emitted in enumerate(logged.lengths, start=1):
        planned, accepted, place = policy.plan(), emitted - 1, len(match)
        if accepted > planned:
            raise UserError(
                f"{path} contradicts the schedule {schedule}: round {number} of {logged} accepted {accepted} draft tokens, "
                f"more than the {planned} planned; name the schedule of that run with --schedule and --gamma."
            )
        drafted = min(planned, budget - place - 1)
        match += [MATCH] * accepted + [UNKNOWN if accepted == drafted else MISMATCH]
        stop = "length" if drafted == planned else "budget"
        policy.observe(Round(planned, drafted, accepted, emitted, drafted, stop, place))
    match[-1] = UNKNOWN
    return np.array(match, np.int8)
