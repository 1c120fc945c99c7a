"""The contract between the decoding loop and whatever decides gamma. Plain numbers only: no tensors, caches or clocks."""

from dataclasses import dataclass, fields
from typing import ClassVar

from gammatune.errors import UserError
from gammatune.records import Round, RoundPrices, Signals

CARRIES = ("turn", "question", "never")
STOP_TOKENS = ("include", "exclude")


@dataclass
class Policy:
    """Base of all policies. Fields are the settings that a config may set; what belongs to the rule itself is a ClassVar."""

    #: name in configs; a policy of your own that has none goes by its class's name
    name: ClassVar[str] = ""
    #: name in tables and figures; empty: the name
    title: ClassVar[str] = ""
    #: "#rrggbb" in figures; empty: one that no shipped policy has
    colour: ClassVar[str] = ""
    #: matplotlib's marker in figures; empty: a diamond
    marker: ClassVar[str] = ""
    #: whether it ever drafts
    drafts: ClassVar[bool] = True
    #: whether `keep_drafting` is asked after each drafted token
    watches_draft: ClassVar[bool] = False
    #: whether it is asked so with the token's id alone; a device may have to be waited for, but no signals are computed
    watches_tokens: ClassVar[bool] = False
    #: whether the round of `observe` holds ids, and outcomes of tokens that a draft model reads late
    reads_text: ClassVar[bool] = False
    #: whether `take_prices` must be told what rounds cost
    needs_prices: ClassVar[bool] = False
    #: whether `foresee` must be told what nobody knows while decoding: a policy for replay alone
    oracle: ClassVar[bool] = False
    #: whether gamma is only where the rule starts from
    adapts_gamma: ClassVar[bool] = False
    #: settings worth trying, by field: what is tuned on one half of the questions and reported on the other. Empty: nothing
    grid: ClassVar[dict[str, tuple]] = {}
    #: attributes that make up the state
    state_fields: ClassVar[tuple[str, ...]] = ()

    #: when the state goes back to its start: at each "turn", at each "question", or "never"
    carry: str = "turn"
    #: whether the token at which `keep_drafting` said no is still verified ("include") or dropped ("exclude")
    stop_token: str = "include"

    def __post_init__(self):
        require(self, "carry", self.carry in CARRIES, f"one of {', '.join(CARRIES)}")
        require(self, "stop_token", self.stop_token in STOP_TOKENS, f"one of {', '.join(STOP_TOKENS)}")
        self.reset()

    def reset(self) -> None:
        """Forget everything learned; called at the boundary that `carry` names."""

    def take_prices(self, prices: RoundPrices) -> None:
        """Told before the first answer when `needs_prices`, and the same for the whole run."""

    def begin(self, prompt_tokens: int) -> None:
        """An answer begins, after `reset` where that is due; the length of its prompt in tokens."""

    def foresee(self, matches: int) -> None:
        """Told before `plan` when `oracle`: how many of the next draft tokens pay for themselves."""

    def plan(self) -> int:
        """Gamma of the next round, >= 0; 0 is a plain target step."""
        raise NotImplementedError

    def keep_drafting(self, signal: Signals) -> bool:
        """Called after each draft token when `watches_draft` or `watches_tokens`; False ends the block."""
        return True

    def observe(self, finished: Round) -> None:
        """Learn from a verified round, which is valid during the call only: copy the numbers that are needed later."""

    def state(self) -> dict:
        """All that `plan` depends on, by attribute name (numbers only): logged with each round, enough to `restore`."""
        return {name: getattr(self, name) for name in self.state_fields}

    def restore(self, state: dict) -> None:
        """Continue from a logged state, as if the rounds before it had just been observed."""
        for name, value in state.items():
            setattr(self, name, value)


def settings_of(policy: Policy) -> dict:
    """Field by field, without what the policy has learned."""
    return {f.name: getattr(policy, f.name) for f in fields(policy)}


def with_settings(policy: Policy, **settings) -> Policy:
    """A fresh policy of the same rule and name, with these settings changed. Raises UserError for one out of range."""
    fresh = type(policy)(**settings_of(policy) | settings)
    fresh.name = policy.name
    return fresh


def require(policy: Policy, name: str, holds: bool, rule: str) -> None:
    """Refuse a setting in one sentence. Raises UserError."""
    if not holds:
        label = type(policy).__name__
        raise UserError(f"{label}.{name}={getattr(policy, name)} is out of range: it must be {rule}.")
