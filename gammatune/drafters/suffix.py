"""Suffix decoding: propose along the most frequent continuation of the longest end of the text that occurred before.

After SuffixDecoding (Oliaro et al., arXiv 2411.04975) and its released code, Arctic Inference, which vLLM runs as
`method: suffix`. Theirs: counts of every context of the text, the bound on a context's tokens, proposals that are longer
after longer matches, the least probability of a whole proposal, the names of the settings and vLLM's defaults. Other here:

- one text alone, prompt and answer, without the answers of earlier requests;
- one chain after the longest match; theirs scores all lengths of a match, or proposes a tree;
- `max_tree_depth` bounds a context and the token after it, and the context moves along; theirs, match and proposal together;
- probabilities are shares of what followed; theirs count the text's own end, after which nothing has come yet, as well.

An automaton takes the place of the tree. Proposals depend on where the block starts: a longer text may match elsewhere.
"""

from dataclasses import dataclass
from math import log
from typing import ClassVar

from gammatune.drafters.base import Drafter
from gammatune.errors import UserError
from gammatune.records import Block, Proposal, Signals
from gammatune.traces import Trace

MOST = 1024  # of any setting
ROUNDING = 1e-6  # of a product that should be a whole number


@dataclass
class Suffix(Drafter):
    """Draft-model-free: costs no forward. Its signals are shares of past continuations of the context."""

    name: ClassVar[str] = "suffix"
    title: ClassVar[str] = "suffix decoding"
    signals: ClassVar[bool] = True

    max_tree_depth: int = 24  # most tokens of a context and what follows it
    max_spec_factor: float = 1.0  # tokens that may be proposed for each one of the match
    max_spec_offset: float = 0.0  # and beside them; below 0, short matches propose nothing
    min_token_prob: float = 0.1  # least product of the shares of all proposed tokens

    def __post_init__(self):
        ranges = {
            "max_tree_depth": (2 <= self.max_tree_depth <= MOST, f"a whole number from 2 to {MOST}"),
            "max_spec_factor": (0 <= self.max_spec_factor <= MOST, f"between 0 and {MOST}"),
            "max_spec_offset": (-MOST <= self.max_spec_offset <= MOST, f"between -{MOST} and {MOST}"),
            "min_token_prob": (0 <= self.min_token_prob <= 1, "between 0 and 1"),
        }
        for key, (holds, rule) in ranges.items():
            if not holds:
                raise UserError(f"drafter.suffix.{key}={getattr(self, key)} is out of range: it must be {rule}.")

    def begin(self, prompt: list[int], sampler) -> None:
        self.automaton = SuffixAutomaton(self.max_tree_depth)
        self.commit(prompt)

    def commit(self, text: list[int]) -> None:
        """Only committed text is indexed, so there is nothing to roll back."""
        for token in text[self.automaton.tokens :]:
            self.automaton.append(token)

    def propose(self, text: list[int], block: Block) -> Proposal:
        context, tokens, chance = self.automaton.match(), [], 1.0
        most = int(context.length * self.max_spec_factor + self.max_spec_offset + ROUNDING)
        while context.length and len(tokens) < most:
            counts = self.automaton.count_following(context)
            token = max(counts, key=counts.__getitem__)  # of equals the one that came first
            chance *= counts[token] / sum(counts.values())
            if chance < self.min_token_prob:
                break
            tokens.append(token)
            if not block.add(token, measure_shares(len(tokens) - 1, counts.values()) if block.watched else None):
                break
            context = self.automaton.advance(context, token)
        return Proposal(self.workplace.device.upload(tokens[: block.drafted]))

    def trace(self, prompt: list[int], answer: list[int], budget: int, depth: int) -> Trace:
        """All that is proposed, whatever the depth: it costs no forward, and the settings bound it."""
        return super().trace(prompt, answer, budget, depth=budget)


def measure_shares(index: int, counts) -> Signals:
    """Signals of the most frequent of several continuations. counts: how often each came.

    `chosen` is that share when sampling, too: of a proposal that is certain the drawn token's probability would be 1.
    """
    total, (first, *others) = sum(counts), sorted(counts, reverse=True)
    entropy = log(total) - sum(count * log(count) for count in counts) / total
    top1, second = first / total, (others[0] if others else 0) / total
    return Signals.rounded(index, top1, max(0.0, entropy), top1 - second, top1)


@dataclass(slots=True)
class Context:
    """An end of the text, or of the text and a proposal, that occurs in the text."""

    state: int  # of the automaton
    length: int  # tokens


class SuffixAutomaton:
    """All contexts of a growing text, and how often each of up to `depth` tokens occurs.

    The online construction of Blumer et al. 1985 ("The smallest automaton recognizing the subwords of a text"): amortised
    O(1) steps per token. State 0 is the empty context. A state stands for contexts that end at the same places of the text;
    its link, for their longest end that also ends elsewhere. A new token adds one to the counts of all states that hold an
    end of the text of up to `depth` tokens: at most `depth` steps, however long the text.
    """

    def __init__(self, depth: int):
        self.depth = depth
        self.tokens = 0  # of the text
        self.following: list[dict[int, int]] = [{}]  # by state: token -> state, in the order of their first occurrence
        self.links = [0]  # the empty context has none
        self.lengths = [0]  # tokens of the longest context in each state
        self.counts = [0]  # places where a state's contexts end; kept where one of them has up to `depth` tokens
        self.whole = 0  # state of the whole text
        self.end = Context(0, 0)  # the text's last `depth` tokens, all where it has fewer

    def append(self, token: int) -> None:
        self.extend(token)
        self.end = self.follow(self.end, token, self.depth)
        state = self.end.state
        while state:
            self.counts[state] += 1
            state = self.links[state]

    def extend(self, token: int) -> None:
        """Give the text's new ends their states."""
        self.tokens += 1
        new, before = self.add_state({}, 0, self.tokens, 0), self.whole
        self.whole = new
        while token not in self.following[before]:
            self.following[before][token] = new
            if not before:
                return
            before = self.links[before]
        self.links[new] = self.find_exact(before, token)

    def find_exact(self, before: int, token: int) -> int:
        """State of the longest context of `before` and the token, split off where a longer context shares it so far."""
        shared, length = self.following[before][token], self.lengths[before] + 1
        if self.lengths[shared] == length:
            return shared
        exact = self.add_state(dict(self.following[shared]), self.links[shared], length, self.counts[shared])
        self.links[shared] = exact
        while self.following[before].get(token) == shared:
            self.following[before][token] = exact
            before = self.links[before]
        return exact

    def add_state(self, following: dict[int, int], link: int, length: int, count: int) -> int:
        self.following.append(following)
        self.links.append(link)
        self.lengths.append(length)
        self.counts.append(count)
        return len(self.links) - 1

    def match(self) -> Context:
        """The longest end of the text, shorter than `depth`, that something has followed; of no tokens without one."""
        return self.shorten(self.cut(self.end, self.depth - 1))

    def advance(self, context: Context, token: int) -> Context:
        """The same for the text and a proposal, of which the context is that end, after one more proposed token."""
        return self.shorten(self.follow(context, token, self.depth - 1))

    def count_following(self, context: Context) -> dict[int, int]:
        """How often each token has followed a context that is shorter than `depth`, in the order in which they first did."""
        return {token: self.counts[state] for token, state in self.following[context.state].items()}

    def follow(self, context: Context, token: int, most: int) -> Context:
        """A context and a token that has followed it; of more than `most` tokens the last ones."""
        context = self.cut(context, context.length)  # its state may have been split since
        longer = Context(self.following[context.state][token], context.length + 1)
        return self.cut(longer, most)

    def cut(self, context: Context, most: int) -> Context:
        """The last `most` tokens of a context that has at most one more."""
        length, link = min(context.length, most), self.links[context.state]
        return Context(link if self.lengths[link] >= length else context.state, length)

    def shorten(self, context: Context) -> Context:
        """The longest end of a context that something has followed: all of it, unless it occurs at the text's end alone."""
        if context.state != self.whole:
            return context
        link = self.links[context.state]
        return Context(link, self.lengths[link])
