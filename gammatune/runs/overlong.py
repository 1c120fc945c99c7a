"""Questions that a pair's context cannot hold, found before the first forward.

What is counted does not depend on any answer, so it is the same for every policy: a turn's prompt with empty earlier
answers, and max_new_tokens for each of these. A question fits where every turn leaves one token for its answer.
"""

from dataclasses import dataclass

from gammatune.config import RunConfig
from gammatune.errors import UserError
from gammatune.models.pair import Pair
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import Question

NAMED = 5  # questions that a sentence names at most


@dataclass(frozen=True)
class Need:
    """What a question asks of the context."""

    question_id: int
    tokens: int  # before its last answer, or before that of a longer earlier turn


def count_needs(pair: Pair, questions: list[Question], answer: int) -> list[Need]:
    """answer: tokens that each earlier answer may have.

    Of a turn that is longer than the context would be in the tokenizer's longest tokens, only so much is read.
    """
    most = pair.context * max(map(len, pair.tokenizer.get_vocab()))  # characters
    needs = []
    for question in questions:
        turns = [turn[:most] for turn in question.turns]
        prompts = (
            build_prompt(pair.chat_template, pair.tokenizer, turns[: earlier + 1], [""] * earlier)
            for earlier in range(len(turns))
        )
        needs.append(Need(question.question_id, max(len(ids) + i * answer for i, ids in enumerate(prompts))))
    return needs


def find_overlong(needs: list[Need], pair: Pair, config: RunConfig) -> list[int]:
    """Ids of the questions to leave out. Raises UserError where tasks.overlong forbids it, or where none would be left."""
    found = [need for need in needs if need.tokens >= pair.context]
    if not found or (config.tasks.overlong == "skip" and len(found) < len(needs)):
        return [need.question_id for need in found]
    shown = ", ".join(f"{need.question_id} ({need.tokens:,} tokens)" for need in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    remedy = "choose other tasks or another pair"
    if len(found) < len(needs):
        remedy = f"set tasks.overlong=skip to leave them out, or {remedy}"
    raise UserError(
        f"{len(found)} of {len(needs)} questions do not fit the {pair.context:,} tokens that {pair.name} can address, with "
        f"{config.decode.max_new_tokens} for each earlier answer and one for the answer itself: {shown}{more}; {remedy}."
    )
