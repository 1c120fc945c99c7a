"""A policy that does anything a policy may do, and tells all that it was shown."""

from dataclasses import dataclass, field
from typing import ClassVar

from hypothesis import strategies as st

from gammatune.policies import Policy
from gammatune.policies.base import CARRIES, STOP_TOKENS
from gammatune.records import Round, Signals


@dataclass
class Scripted(Policy):
    """Plans by a list, over and over. Its state depends on every number of every round and signal that it gets."""

    state_fields: ClassVar[tuple[str, ...]] = ("step", "asked", "seen")

    plans: list[int] = field(default_factory=lambda: [3])
    keeps: list[bool] = field(default_factory=lambda: [True])

    def reset(self) -> None:
        self.step = self.asked = 0
        self.seen = 0.0

    def plan(self) -> int:
        return self.plans[self.step % len(self.plans)]

    def keep_drafting(self, signals: Signals) -> bool:
        self.asked += 1
        self.note(signals.index, signals.top1, signals.entropy, signals.margin, signals.chosen)
        return self.keeps[self.asked % len(self.keeps)]

    def observe(self, finished: Round) -> None:
        self.step += 1 + finished.accepted  # so that a round seen wrong changes the plans that follow
        numbers = (finished.planned, finished.drafted, finished.accepted, finished.emitted, finished.forwards)
        self.note(*numbers, finished.context, finished.nodes, len(finished.stop), len(finished.state))

    def note(self, *numbers: float) -> None:
        for place, number in enumerate(numbers, 2):
            self.seen = self.seen / 2 + number / place


@dataclass
class ScriptedWatching(Scripted):
    """The same, and stops blocks by another list."""

    watches_draft: ClassVar[bool] = True


GAMMAS = st.one_of(st.integers(0, 8), st.sampled_from([0, 40]))


def scripted_policies(watching: bool | None = None):
    """Strategy. watching: True, False, or None for either."""
    kinds = [Scripted, ScriptedWatching] if watching is None else [ScriptedWatching if watching else Scripted]
    return st.sampled_from(kinds).flatmap(
        lambda kind: st.builds(
            kind,
            carry=st.sampled_from(CARRIES),
            stop_token=st.sampled_from(STOP_TOKENS),
            plans=st.lists(GAMMAS, min_size=1, max_size=7),
            keeps=st.lists(st.sampled_from([True, True, True, False]), min_size=1, max_size=11),
        )
    )
