"""Rounds and signals made by hand."""

from gammatune.policies import Signals
from gammatune.records import Round


def finished(planned: int, accepted: int, drafted: int | None = None, stop: str = "length") -> Round:
    drafted = planned if drafted is None else drafted
    tokens = tuple(range(accepted + 1))
    return Round(planned, drafted, accepted, accepted + 1, drafted, stop, 10, tokens=tokens)


def signal(top1: float = 0.5, chosen: float | None = None, entropy: float = 1.0, index: int = 0) -> Signals:
    return Signals(index=index, top1=top1, entropy=entropy, margin=0.1, chosen=top1 if chosen is None else chosen)


def draft_block(policy, signals: list[Signals]) -> int:
    """Tokens drafted where the draft gives `signals`, as the decoding loop counts them."""
    planned = policy.plan()
    for seen in signals[:planned]:
        if not policy.keep_drafting(seen):
            return seen.index + (policy.stop_token == "include")
    return min(planned, len(signals))


def play(policy, rounds: int, matches: int) -> list[int]:
    """Plans while the target would accept `matches` tokens of any block, and every token is sure."""
    plans = []
    for _ in range(rounds):
        plans.append(policy.plan())
        policy.observe(finished(plans[-1], min(matches, plans[-1])))
    return plans
