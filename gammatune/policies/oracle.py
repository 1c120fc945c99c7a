"""Draft exactly the tokens that the target will accept (the oracle of DISCO, Mamou et al. 2024, arXiv 2405.04304)."""

from dataclasses import dataclass
from typing import ClassVar

from gammatune.errors import UserError
from gammatune.policies.base import Policy


@dataclass
class Oracle(Policy):
    """Plans what `foresee` told: the number of draft tokens up to the first mismatch, the answer's last token left to the
    target, which gives it away with the same forward.

    None of its draft tokens is rejected, and where the draft's next token depends on the text alone, no rule needs fewer
    target forwards. So none is cheaper either where verifying k tokens costs a + b k and a draft step costs less than a.
    With prompt lookup a shorter block can lead to a better start. Only replay knows that number; plan raises UserError
    while nobody has told it.
    """

    name: ClassVar[str] = "oracle"
    title: ClassVar[str] = "oracle"
    colour: ClassVar[str] = "#7f1320"
    oracle: ClassVar[bool] = True

    def reset(self) -> None:
        self.matches: int | None = None

    def foresee(self, matches: int) -> None:
        self.matches = matches

    def plan(self) -> int:
        if self.matches is None:
            raise UserError("Policy oracle must know the target's answer beforehand: replay it over an acceptance table.")
        return self.matches
