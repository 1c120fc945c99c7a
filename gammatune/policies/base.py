"""The contract between the decoding loop and whatever decides gamma. Plain numbers only: no tensors, caches or clocks."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

from gammatune.errors import UserError
from gammatune.records import Round
from gammatune.records import Signals as DraftSignal

CARRIES = ("turn", "question", "never")
STOP_TOKENS = ("include", "exclude")


@dataclass
class Policy:
    """Base of all policies; fields are the settings that a config may set.

    carry: when the state goes back to its start: at each "turn", at each "question", or "never".
    stop_token: whether the token at which `keep_drafting` said no is still verified ("include") or dropped ("exclude").
    watches_draft: whether `keep_drafting` is asked. needs_foresight: whether `foresee` must be told what nobody knows while
    decoding, which makes it a policy for replay alone. gamma_is_start: whether gamma is only where the rule starts from.
    kept: attributes that make up the state.
    """

    drafts: ClassVar[bool] = True
    watches_draft: ClassVar[bool] = False
    needs_foresight: ClassVar[bool] = False
    gamma_is_start: ClassVar[bool] = False
    kept: ClassVar[tuple[str, ...]] = ()

    carry: str = "turn"
    stop_token: str = field(default="include")

    def __post_init__(self):
        require(self, "carry", self.carry in CARRIES, f"one of {', '.join(CARRIES)}")
        require(self, "stop_token", self.stop_token in STOP_TOKENS, f"one of {', '.join(STOP_TOKENS)}")
        self.reset()

    def reset(self) -> None:
        """Forget everything learned; called at the boundary that `carry` names."""

    def foresee(self, matches: int) -> None:
        """Told before `plan` when `needs_foresight`: how many of the next draft tokens pay for themselves."""

    def plan(self) -> int:
        """Gamma of the next round, >= 0; 0 is a plain target step."""
        raise NotImplementedError

    def keep_drafting(self, signal: DraftSignal) -> bool:
        """Called after each draft token when `watches_draft`; False ends the block."""
        return True

    def observe(self, finished: Round) -> None:
        """Learn from a verified round, which is valid during the call only: copy the numbers that are needed later."""

    def state(self) -> dict:
        """All that `plan` depends on, by attribute name (numbers only): logged with each round, enough to `restore`."""
        return {name: getattr(self, name) for name in self.kept}

    def restore(self, state: dict) -> None:
        """Continue from a logged state, as if the rounds before it had just been observed."""
        for name, value in state.items():
            setattr(self, name, value)


def settings_of(policy: Policy) -> dict:
    """Field by field, without what the policy has learned."""
    return {f.name: getattr(policy, f.name) for f in fields(policy)}


def require(policy: Policy, name: str, holds: bool, rule: str) -> None:
    """Refuse a setting in one sentence. Raises UserError."""
    if not holds:
        label = type(policy).__name__
        raise UserError(f"{label}.{name}={getattr(policy, name)} is out of range: it must be {rule}.")
