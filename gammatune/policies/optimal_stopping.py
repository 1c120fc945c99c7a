"""Draft on while the next token is worth its price: optimal stopping by acceptance chances that this answer teaches. Ours.

Nothing is trained and nothing tuned. Before each draft token, the first included, one more is drafted where for some j

    S_k * (a_(k+1) + a_(k+1) a + ... + a_(k+1) a^(j-1)) > rate * (R(k+j) - R(k))

or k = 0 and PROBE rounds have passed without drafting. Where each token costs as much as the one before, or more, j = 1 says
it all; the others look past a step in the prices, as where a target takes 3 to 16 tokens in one time.

    R(k)  what a round costs that drafts k tokens: the start of a block, k draft steps, a target forward over k + 1 tokens
    rate  this answer's own: (PRIOR_TOKENS + tokens so far) / (PRIOR_TOKENS * price of a plain round + prices so far)
    S_k   chance that all k drafted tokens are accepted: the product of p_i = sigmoid(logit(top-1 of token i) + b_p + m_i)
    a_k   chance that a token which nobody has seen yet is accepted: sigmoid(b_a + m_k); a where the memory knows nothing
    m     what the memory knows: w_2 * memory of the last 2 ids + w_4 * memory of the last 4, drafted ids included; 0 if new

`rate` turns a price into the tokens that the same time yields elsewhere, as in optimal stopping for a rate of reward.

After a round each drafted token up to the first rejected one is a sample: one Newton step each of b_p and b_a from their
normal priors (the curvature of all samples so far is kept), and the memory of the ids before it moves half of the way to +1,
accepted, or to -1. It also learns from tokens that the draft never proposed and reads late, after a full acceptance or
rounds without drafting: its logits there say whether it would have been right.

Blind, without the draft's signals, a_i stands for p_i. With the memory off, m = 0.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import exp, log
from typing import ClassVar

from gammatune.policies.base import Signals, require
from gammatune.policies.priced import Priced
from gammatune.records import Round

LEAST_TOP1, MOST_TOP1 = 0.005, 0.995  # beyond, a probability says little more
FIRST_ACCEPTANCE = 0.4  # prior mean of the chance that an unseen token is accepted
PRIOR_PRECISION = 4.0  # of both intercepts: normal with standard deviation 0.5
PRIOR_TOKENS = 20  # weight of the first rate
PROBE = 16  # rounds without drafting after which one token is tried
WEIGHT_OF_TWO, WEIGHT_OF_FOUR = 1.0, 1.5  # of what the memory holds after the last 2 and the last 4 ids
MEMORY_STEP = 0.5
MOST_TOKENS = 128


def logit(p: float) -> float:
    return log(p / (1.0 - p))


@dataclass
class OptimalStopping(Priced):
    """gamma: most tokens in a block. signals: whether the draft's top-1 is read; without, only which tokens it drafts.
    memory: whether to learn what happened in each context of the answer.

    carry: the intercepts and the rate go on to the next answer as the means of its priors; the memory is each answer's own.
    """

    name: ClassVar[str] = "optimal_stopping"
    title: ClassVar[str] = "optimal stopping"
    colour: ClassVar[str] = "#c2185b"
    marker: ClassVar[str] = "*"
    watches_draft: ClassVar[bool] = True
    reads_text: ClassVar[bool] = True
    state_fields: ClassVar[tuple[str, ...]] = (
        *("b_p", "precision_p", "b_a", "precision_a", "pace", "tokens", "spent", "skipped"),
    )

    gamma: int = 16
    signals: bool = True
    memory: bool = True

    def __post_init__(self):
        require(self, "gamma", 0 <= self.gamma <= MOST_TOKENS, f"between 0 and {MOST_TOKENS}")
        self.watches_draft, self.watches_tokens = self.signals, not self.signals
        self.reads_text = self.memory
        super().__post_init__()

    @property
    def longest(self) -> int:
        return self.gamma

    def reset(self) -> None:
        self.b_p, self.b_a = 0.0, logit(FIRST_ACCEPTANCE)
        self.tokens, self.spent = 0, 0.0
        self.begin(0)

    def begin(self, prompt_tokens: int) -> None:
        # the first answer's prior is the price of a plain round, a later one's what the answer before has shown
        self.pace = 1.0 / self.rate() if self.tokens else self.price(0, prompt_tokens)
        self.tokens, self.spent, self.skipped = 0, 0.0, 0
        self.precision_p = self.precision_a = PRIOR_PRECISION
        self.context = prompt_tokens
        prices = [self.price(drafted, prompt_tokens) for drafted in range(self.gamma + 1)]
        extra = [more - less for less, more in pairwise(prices)]
        self.cheapest = list(accumulate(reversed(extra), min))[::-1]  # of the next token and those after it
        self.ids: list[int] = []  # of the answer so far
        self.after_two: dict[tuple[int, ...], float] = {}  # last ids -> between -1 (rejected) and 1 (accepted)
        self.after_four: dict[tuple[int, ...], float] = {}
        self.samples: list[tuple[float, float]] = []

    def rate(self) -> float:
        """Tokens per unit of price."""
        return (PRIOR_TOKENS + self.tokens) / (PRIOR_TOKENS * self.pace + self.spent)

    def plan(self) -> int:
        self.samples = []  # of each drafted token: the logit of its top-1, and m
        self.following = self.ids[-4:]  # the next draft token comes after these
        self.chance = 1.0  # that all drafted tokens are accepted
        self.rate_now = self.rate()
        return self.gamma if self.pays() or (self.skipped >= PROBE and self.gamma > 0) else 0

    def pays(self) -> bool:
        """Whether more draft tokens are worth their price; notes what the memory knows of the next one."""
        drafted = len(self.samples)
        if drafted >= self.gamma:
            return False
        self.known = self.recall() if self.memory else 0.0
        following = self.chance / (1.0 + exp(-self.b_a - self.known))
        return self.is_worth(drafted, following, 1.0 / (1.0 + exp(-self.b_a)))

    def is_worth(self, drafted: int, chance: float, unseen: float) -> bool:
        """Whether more than so many drafted tokens are worth their price at this round's rate.

        chance: that all of them and the next one are accepted. unseen: that each one after it is, once those before it are.
        """
        gain, so_far = 0.0, self.price(drafted, self.context)
        for longer in range(drafted, self.gamma):
            if chance <= self.rate_now * self.cheapest[longer]:  # what is missing cannot be made up any more
                return False
            gain += chance
            if gain > self.rate_now * (self.price(longer + 1, self.context) - so_far):
                return True
            chance *= unseen
        return False

    def recall(self) -> float:
        """m of the next draft token."""
        ids = self.following
        return WEIGHT_OF_TWO * self.after_two.get(tuple(ids[-2:]), 0.0) + WEIGHT_OF_FOUR * self.after_four.get(
            tuple(ids[-4:]), 0.0
        )

    def keep_drafting(self, signal: Signals) -> bool:
        known = self.known
        if self.signals:
            top1 = signal.top1
            seen = logit(LEAST_TOP1 if top1 < LEAST_TOP1 else MOST_TOP1 if top1 > MOST_TOP1 else top1)
            self.chance /= 1.0 + exp(-seen - self.b_p - known)
        else:
            seen = 0.0
            self.chance /= 1.0 + exp(-self.b_a - known)
        self.samples.append((seen, known))
        self.following.append(signal.token)
        return self.pays()

    def observe(self, finished: Round) -> None:
        accepted, place = finished.accepted, len(self.ids)
        if self.memory:
            for late, right in enumerate(finished.caught_up, place - len(finished.caught_up)):
                self.remember(late, right)
            self.ids.extend(finished.tokens)
        for index, (seen, known) in enumerate(self.samples[: min(accepted + 1, finished.drafted)]):
            self.learn(seen, known, index < accepted)
            if self.memory:
                self.remember(place + index, index < accepted)
        self.tokens += finished.emitted
        self.spent += self.price(min(finished.drafted, self.gamma), finished.context)
        self.skipped = 0 if finished.drafted else self.skipped + 1
        self.context = finished.context + finished.emitted

    def learn(self, seen: float, known: float, accepted: bool) -> None:
        """One Newton step of each intercept: the gradient of the newest sample over the curvature of all."""
        expected = 1.0 / (1.0 + exp(-self.b_a - known))
        self.precision_a += expected * (1.0 - expected)
        self.b_a += (accepted - expected) / self.precision_a
        if self.signals:
            expected = 1.0 / (1.0 + exp(-seen - self.b_p - known))
            self.precision_p += expected * (1.0 - expected)
            self.b_p += (accepted - expected) / self.precision_p

    def remember(self, place: int, right: bool) -> None:
        """Whether the draft's token was right at a place of the answer that has ids before it."""
        ids, target = self.ids, 1.0 if right else -1.0
        if place >= 2:
            key = (ids[place - 2], ids[place - 1])
            held = self.after_two.get(key, 0.0)
            self.after_two[key] = held + MEMORY_STEP * (target - held)
        if place >= 4:
            key = tuple(ids[place - 4 : place])
            held = self.after_four.get(key, 0.0)
            self.after_four[key] = held + MEMORY_STEP * (target - held)
