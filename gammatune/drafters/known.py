"""Answers that are already known, proposed in the draft's place: the target checks a block at a time and stays the judge.

Recording needs the target's own answer, whoever wrote it down first. Where another run or a serving engine has it, the
target confirms many tokens per forward; where that text is not the target's own, the target's token takes its place.
"""

import json
from pathlib import Path

import torch

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import Generation, generate_speculative
from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.runtimes.base import PairRuntime

BLOCK = 24


class KnownText:
    """Stands where a draft model stands: its next token is the known one. Batch size 1."""

    ids = None  # its rows are the target's own ids

    def __init__(self, vocab_size: int, prompt_tokens: int, ids: list[int]):
        self.vocab_size = vocab_size
        self.prompt_tokens = prompt_tokens
        self.text = [token if 0 <= token < vocab_size else 0 for token in ids]  # another tokenizer's ids are wrong, no more
        self.reset()

    def reset(self) -> None:
        self.length = 0

    def forward(self, tokens: torch.Tensor, keep: int) -> torch.Tensor:
        """Take in tokens [n]; logits [1, V] that name the known token after them, or token 0 past the end of the text."""
        self.length += tokens.shape[0]
        place = self.length - self.prompt_tokens
        logits = torch.zeros(1, self.vocab_size, device=tokens.device)
        logits[0, self.text[place] if 0 <= place < len(self.text) else 0] = 1.0
        return logits

    def crop(self, length: int) -> None:
        self.length = min(self.length, length)


def confirm_answer(runtime: PairRuntime, prompt_ids: list[int], known: list[int], decode: DecodeConfig) -> Generation:
    """The target's own greedy answer, in few forwards as far as `known` is that answer; gamma adapts where it is not."""
    reader = KnownText(runtime.pair.vocab_size, len(prompt_ids), known)
    policy = POLICIES["gammatune"](gamma=BLOCK, gamma_max=BLOCK, clip_expand="gamma_max")
    return generate_speculative(PairRuntime(runtime.pair, runtime.target, reader), prompt_ids, policy, decode)


def read_known(path: Path) -> dict[tuple[int, int], list[int]]:
    """(question id, turn) -> ids, from JSON lines with question_id, turn and output_ids, such as any run's turns.jsonl.

    Raises UserError, naming the file, when it cannot be read.
    """
    known = {}
    try:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            known[int(row["question_id"]), int(row["turn"])] = [int(token) for token in row["output_ids"]]
    except OSError as error:
        raise UserError(f"Cannot read the known answers {path} ({error.strerror}): check the path.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds more than known answers ({type(error).__name__} behind {len(known)} good lines): give each line "
            "question_id, turn and output_ids."
        ) from error
    return known
