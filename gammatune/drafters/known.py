"""An answer that is already known, proposed in the draft's place: the target checks a block at a time and stays the judge.

Recording needs the target's own answer, whoever wrote it down first. Where another run or a serving engine has it, the
target confirms many tokens per forward; where that text is not the target's own, the target's token takes its place.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from gammatune.drafters.base import Drafter
from gammatune.errors import UserError
from gammatune.records import Block, Proposal


@dataclass
class KnownText(Drafter):
    """Proposes the known token at each position of the answer, and nothing past its end."""

    answer: list[int] = field(default_factory=list)

    def begin(self, prompt: list[int], sampler) -> None:
        self.prompt_tokens = len(prompt)

    def propose(self, text: list[int], block: Block) -> Proposal:
        place, tokens = len(text) - self.prompt_tokens, []
        for token in self.answer[place : place + block.limit]:
            # another tokenizer's id cannot be the target's: 0 is as wrong, and can be fed
            tokens.append(token if 0 <= token < self.workplace.vocab_size else 0)
            if not block.add(tokens[-1]):
                break
        return Proposal(self.workplace.device.upload(tokens))


def read_known(path: Path) -> dict[tuple[int, int], list[int]]:
    """(question id, turn) -> ids, from JSON lines with question_id, turn and output_ids, such as any run's turns.jsonl.

    Raises UserError, naming the file, when it cannot be read.
    """
    known, number = {}, 0
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise OSError(0, "No regular file")  # a device such as /dev/zero never ends
        with path.open("rb") as lines:
            for line in lines:
                number += 1
                row = json.loads(line)
                key, ids = (row["question_id"], row["turn"]), row["output_ids"]
                if any(type(each) is not int for each in (*key, *ids)):
                    raise ValueError("something else than whole numbers")
                known[key] = ids
    except OSError as error:
        raise UserError(f"Cannot read the known answers {path} ({error.strerror}): check the path.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path} holds more than known answers ({type(error).__name__} in line {number}): give each line "
            "question_id, turn and output_ids."
        ) from error
    return known
