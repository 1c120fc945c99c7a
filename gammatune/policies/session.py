"""A policy at work: when it starts afresh, whether what it returns makes sense, how long it takes, what its errors say.

The decoding loop, transformers' generate and the replay all talk to a policy by these rules.
"""

from operator import index
from sys import getrefcount
from time import perf_counter

from gammatune.errors import UserError
from gammatune.policies.base import Policy
from gammatune.records import Block, Round, Signals


class PolicyError(UserError):
    """A policy raised, or broke its contract. It ends that policy's arm, not the run."""


class PolicySession:
    """One policy and the answers that it goes through."""

    def __init__(self, policy: Policy):
        self.policy = policy
        self.ms = 0.0  # milliseconds spent in the policy so far
        self.question: int | None = None

    def restart(self) -> None:
        """A new pass over the questions: everything learned is forgotten. Raises PolicyError."""
        self.call("reset")
        self.question = None

    def start(self, question_id: int, turn: int) -> None:
        """A new answer: forget what was learned where the policy's `carry` says so. Raises PolicyError."""
        carry, same = self.policy.carry, question_id == self.question and turn > 0
        if carry == "turn" or (carry == "question" and not same):
            self.call("reset")
        self.question = question_id

    def plan(self) -> int:
        """Gamma of the next round, a whole number of 0 or more. Raises PolicyError."""
        return check_plan(self.policy, self.call("plan"))

    def state(self) -> dict:
        """The policy's own numbers, as logged with each round. Raises PolicyError."""
        return check_state(self.policy, self.call("state"))

    def open_block(self, room: int, ends: frozenset[int]) -> Block:
        """The next round's block, empty. room: tokens that may be drafted. Raises PolicyError."""
        keep = self.keep_drafting if self.policy.watches_draft else None
        return Block(self.plan(), room, ends, keep, exclude=self.policy.stop_token == "exclude")

    def keep_drafting(self, signals: Signals) -> bool:
        """Whether to draft on after the token with these signals. Raises PolicyError, also where the policy keeps them."""
        before = getrefcount(signals)
        going_on = self.call("keep_drafting", signals)
        if getrefcount(signals) > before:
            raise kept_signals(self.policy)
        return going_on

    def observe(self, finished: Round) -> None:
        """Let the policy learn. Raises PolicyError, also where the policy keeps the Round: it is reused and would change."""
        before = getrefcount(finished)
        self.call("observe", finished)
        if getrefcount(finished) > before:
            raise kept_round(self.policy)

    def call(self, method: str, *arguments):
        started = perf_counter()
        try:
            return getattr(self.policy, method)(*arguments)
        except Exception as error:
            raise policy_error(self.policy, method, error) from error
        finally:
            self.ms += (perf_counter() - started) * 1e3


def check_plan(policy: Policy, planned) -> int:
    """What plan() returned as a whole number; numpy's integers are such numbers. Raises PolicyError for anything else."""
    try:
        gamma = index(planned)
    except TypeError:
        gamma = -1
    if gamma < 0:
        raise PolicyError(
            f"Policy {type(policy).__name__}: plan() returned {planned!r}, but gamma must be a whole number of 0 or more."
        )
    return gamma


def check_state(policy: Policy, state) -> dict:
    """What state() returned, which must survive the turn log. Raises PolicyError for anything but a dict of numbers."""
    if not isinstance(state, dict):
        raise PolicyError(f"Policy {type(policy).__name__}: state() returned {state!r}, but it must be a dict of numbers.")
    for name, value in state.items():
        if not isinstance(value, int | float):
            raise PolicyError(
                f"Policy {type(policy).__name__}: state() returned {value!r} for {name}, but it must be a plain number: "
                "convert it with int() or float()."
            )
    return dict(state)


def policy_error(policy: Policy, method: str, error: Exception) -> PolicyError:
    """The sentence for an exception that a policy raised; one that the policy wrote for the user stays as it is."""
    if isinstance(error, UserError):
        return PolicyError(str(error))
    return PolicyError(f"Policy {type(policy).__name__}: {method}() raised {type(error).__name__}: {error}.")


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
