"""A policy at work: when it starts afresh, whether what it returns makes sense, how long it takes, what its errors say.

The decoding loop, transformers' generate and the replay all talk to a policy by these rules.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from operator import index
from sys import getrefcount
from time import perf_counter

from gammatune.errors import UserError
from gammatune.policies.base import Policy
from gammatune.records import Block, Round, RoundPrices, Signals

LARGEST_GAMMA = 2**31 - 1  # what any table of a run can hold


class PolicyError(UserError):
    """A policy raised, or broke its contract. It ends that policy's arm, not the run."""


class PolicySession:
    """One policy and the answers that it goes through.

    Whatever the policy does wrong comes out as PolicyError, SystemExit included; only an interrupt passes.
    """

    def __init__(self, policy: Policy):
        self.policy = policy
        self.ms = 0.0  # milliseconds spent in the policy so far
        self.question: int | None = None

    @property
    def drafts(self) -> bool:
        return bool(self.call("drafts"))

    @property
    def watches_draft(self) -> bool:
        return bool(self.call("watches_draft"))

    @property
    def reads_text(self) -> bool:
        return bool(self.call("reads_text"))

    @property
    def needs_prices(self) -> bool:
        return bool(self.call("needs_prices"))

    def take_prices(self, prices: RoundPrices) -> None:
        """Raises PolicyError."""
        self.call("take_prices", prices)

    def restart(self) -> None:
        """A new pass over the questions: everything learned is forgotten. Raises PolicyError."""
        self.call("reset")
        self.question = None

    def start(self, question_id: int, turn: int) -> None:
        """A new answer: forget what was learned where the policy's `carry` says so. Raises PolicyError."""
        carry, same = self.call("carry"), question_id == self.question and turn > 0
        if carry == "turn" or (carry == "question" and not same):
            self.call("reset")
        self.question = question_id

    def begin(self, prompt_tokens: int) -> None:
        """The answer's prompt is known. Raises PolicyError."""
        self.call("begin", prompt_tokens)

    def plan(self) -> int:
        """Gamma of the next round, a whole number of 0 or more. Raises PolicyError."""
        return check_plan(self.policy, self.call("plan"))

    def state(self) -> dict:
        """The policy's own numbers, as logged with each round. Raises PolicyError."""
        return check_state(self.policy, self.call("state"))

    def restore(self, state: dict) -> None:
        """Go on from a logged state. Raises PolicyError."""
        self.call("restore", state)

    def open_block(self, room: int, ends: frozenset[int]) -> Block:
        """The next round's block, empty. room: tokens that may be drafted. Raises PolicyError."""
        watched, planned = self.watches_draft, self.plan()
        alone = not watched and bool(self.call("watches_tokens"))
        if planned and not self.drafts:  # the drafter has not been told of the text
            raise PolicyError(
                f"Policy {type(self.policy).__name__}: plan() returned {planned}, but a policy whose drafts is False must "
                "return 0."
            )
        return Block(
            planned,
            room,
            ends,
            keep=self.keep_drafting if watched or alone else None,
            exclude=self.call("stop_token") == "exclude",
            tokens_alone=alone,
            catches_up=self.reads_text,
        )

    def keep_drafting(self, signals: Signals) -> bool:
        """Whether to draft on after the token with these signals. Raises PolicyError, also where the policy keeps them."""
        before = getrefcount(signals)
        going_on = self.call("keep_drafting", signals)
        if getrefcount(signals) > before:
            raise kept_signals(self.policy)
        return going_on if going_on is True else check_going_on(self.policy, going_on)

    def observe(self, finished: Round, tokens: Sequence[int] = (), caught_up: tuple[bool, ...] = ()) -> None:
        """Let the policy learn from a copy: the log holds the true numbers whatever the policy does to it.

        tokens, caught_up: as in Round, for a policy that reads the text. Raises PolicyError, also where the policy keeps the
        round: a replay reuses it, and it would change.
        """
        shown = replace(finished, tokens=tuple(tokens), caught_up=caught_up) if self.reads_text else replace(finished)
        before = getrefcount(shown)
        self.call("observe", shown)
        if getrefcount(shown) > before:
            raise kept_round(self.policy)

    def call(self, name: str, *arguments):
        """What a method returns, or a setting of the policy that may be a property. Raises PolicyError."""
        started = perf_counter()
        try:
            found = getattr(self.policy, name)
            return found(*arguments) if callable(found) else found
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise policy_error(self.policy, name, error) from error
        finally:
            self.ms += (perf_counter() - started) * 1e3


def check_plan(policy: Policy, planned) -> int:
    """What plan() returned as a whole number; those of numpy and torch are such numbers. Raises PolicyError."""
    try:
        gamma = index(planned)
    except Exception:  # __index__ may be the user's own
        gamma = -1
    if not 0 <= gamma <= LARGEST_GAMMA:
        raise PolicyError(
            f"Policy {type(policy).__name__}: plan() returned {show(planned)}, but gamma must be a whole number of 0 or "
            "more" + (f", up to {LARGEST_GAMMA}." if gamma > 0 else ".")
        )
    return gamma


def check_going_on(policy: Policy, answer) -> bool:
    """What keep_drafting() returned as a bool; those of numpy and torch are such. Raises PolicyError for anything else."""
    try:
        plain = to_plain(answer)
    except Exception:
        plain = None
    if not isinstance(plain, bool):
        raise PolicyError(
            f"Policy {type(policy).__name__}: keep_drafting() returned {show(answer)}, but it must be True or False."
        )
    return plain


def check_state(policy: Policy, state) -> dict:
    """What state() returned as plain numbers, which must survive the turn log. Raises PolicyError for anything else."""
    if not isinstance(state, dict):
        raise PolicyError(
            f"Policy {type(policy).__name__}: state() returned {show(state)}, but it must be a dict of numbers."
        )
    numbers = {}
    for name, value in state.items():
        try:
            number = to_plain(value)
            if not isinstance(name, str) or not isinstance(number, int | float) or not math.isfinite(number):
                raise ValueError
        except Exception:
            raise PolicyError(
                f"Policy {type(policy).__name__}: state() returned {show(value)} for {show(name)}, but it must be "
                "a finite number under a name that is text."
            ) from None
        numbers[name] = number
    return numbers


def to_plain(value):
    """A scalar of numpy or torch as Python's own; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def show(value) -> str:
    """A value in a sentence: one line, never long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # __repr__ may be the user's own, and a number may have too many digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 80 else f"{text[:79]}…"


def policy_error(policy: Policy, name: str, error: BaseException) -> PolicyError:
    """The sentence for an exception that a policy raised; one that the policy wrote for the user stays as it is."""
    if isinstance(error, UserError):
        return PolicyError(str(error))
    call = f"{name}()" if callable(getattr(type(policy), name, None)) else name
    return PolicyError(f"Policy {type(policy).__name__}: {call} raised {describe_error(error)}.")


def describe_error(error: BaseException) -> str:
    """Its type and what it says, in one line without an end."""
    try:
        words = " ".join(str(error).split())[:500].rstrip(".")
    except Exception:  # __str__ may be the user's own
        words = ""
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def kept_round(policy: Policy) -> PolicyError:
    return PolicyError(
        f"Policy {type(policy).__name__}: observe() kept the Round, which is valid during the call only: copy the numbers "
        "that you need."
    )


def kept_signals(policy: Policy) -> PolicyError:
    return PolicyError(
        f"Policy {type(policy).__name__}: keep_drafting() kept the Signals, which are valid during the call only: copy the "
        "numbers that you need."
    )
