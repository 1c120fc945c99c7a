"""What rounds cost: a price list, measured or assumed, and a replay's rounds priced with it. No torch here.

A measured list (`gammatune prices`) is in milliseconds of one pair, device and runtime. The list of an assumed cost
ratio is in units of one draft step. A price is what a live run would be expected to take, never a measured time.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from gammatune.errors import UserError
from gammatune.files import read_json
from gammatune.policies import Policy
from gammatune.policies.session import PolicySession
from gammatune.records import RoundPrices
from gammatune.replay.simulate import Replay, ReplayTurn

SCHEMA = 2
PRICES_FILE = "prices.json"  # beside a table
LAST_BLOCKS = 8
LONGEST = 128  # tokens of the longest block that a policy is told the price of
LARGEST = 1e9  # ms, twelve days
REMAKE = "give a file made by `gammatune prices`, or measure it again"


@dataclass(frozen=True)
class Price:
    """base + slope * context, in ms. low, high: quartiles of the samples around that line, in ms."""

    base: float
    slope: float = 0.0
    low: float = 0.0
    high: float = 0.0
    samples: int = 0

    def at(self, context):
        """Of a context or an array of them; the same shape."""
        return self.base + self.slope * context


FREE = Price(0.0)


@dataclass
class Drafting:
    """What a block of n draft steps costs: n * step, start once, and catch_up where its first step feeds several tokens.

    It feeds two after a round in which everything drafted was accepted, since the draft has not read the last of those
    tokens, and more after rounds in which it drafted nothing, another drafter's among them; a feature draft reads all that
    was accepted anew. All cost the same.
    """

    step: Price
    start: Price = FREE
    catch_up: Price = FREE


@dataclass
class PriceList:
    """A price list. blind and watched: drafting without and with the draft's signals read for each token.

    verify[k - 1]: one target forward over k tokens, judged. rest: what a round takes beside drafting, verification and the
    policy's own time. prefill, by prompt tokens: of the target alone, and of both models. facts: where the prices come from.
    """

    blind: Drafting
    watched: Drafting
    verify: list[Price]
    rest: Price = FREE
    prefill_target: Price = FREE
    prefill_both: Price = FREE
    facts: dict = field(default_factory=dict)

    def drafting(self, watched: bool) -> Drafting:
        return self.watched if watched else self.blind

    def verify_price(self, tokens: int) -> Price:
        """Of one target forward over this many tokens, 1 or more.

        Beyond the last measured one: the straight line through the last eight (fewer where fewer were measured).
        """
        if tokens <= len(self.verify):
            return self.verify[tokens - 1]
        return Price(*(float(values[tokens - 1]) for values in self.verify_lines(tokens)))

    def verify_lines(self, largest: int) -> tuple[np.ndarray, np.ndarray]:
        """Bases and slopes of all blocks of 1 to at least `largest` tokens, extrapolated as `verify_price` says."""
        lines = [np.array([getattr(price, name) for price in self.verify]) for name in ("base", "slope")]
        return tuple(extend(values, largest) for values in lines)

    def by_drafted(self, watched: bool, forwards_per_token: int = 1) -> RoundPrices:
        """Rounds of 0 to LONGEST drafted tokens, as a policy is told of them; prefill and catching up are left out.

        watched: whether the policy reads the draft's signals. forwards_per_token: 0 for a drafter that is no model.
        """
        drafting, count = self.drafting(watched), np.arange(LONGEST + 1)
        lines = []
        for name, verify in zip(("base", "slope"), self.verify_lines(LONGEST + 1), strict=True):
            step, start, rest = (getattr(part, name) for part in (drafting.step, drafting.start, self.rest))
            drafted = count * step + (count > 0) * start
            lines.append(tuple((forwards_per_token * drafted + verify[: LONGEST + 1] + rest).tolist()))
        return RoundPrices(*lines)

    def find_implausible(self) -> str:
        """Where a draft step costs more than a plain target step, in words; empty where it nowhere does.

        Judged at the measured contexts. Such a draft can never pay, so something else must have disturbed the measurement.
        """
        for context in self.facts.get("contexts", [0]):
            draft, target = self.blind.step.at(context), self.verify[0].at(context)
            if draft > target:
                return f"a draft step takes {draft:.3g} ms and a target step {target:.3g} ms at context {context}"
        return ""

    def with_draft_price(self, factor: float) -> "PriceList":
        """The same with a draft that costs `factor` times as much, its share of the prefill included."""
        blind, watched = (
            Drafting(*(scale(getattr(drafting, name), factor) for name in ("step", "start", "catch_up")))
            for drafting in (self.blind, self.watched)
        )
        alone, both = self.prefill_target, self.prefill_both
        sums = ((alone.base, both.base), (alone.slope, both.slope))
        prefill = Price(*(max(0.0, target + factor * (total - target)) for target, total in sums))
        return replace(self, blind=blind, watched=watched, prefill_both=prefill)

    def ratio(self, context: int = 0) -> float:
        """c = T_target(1) / T_draft; infinite where drafting takes no forwards."""
        with np.errstate(divide="ignore"):
            return np.divide(self.verify[0].at(context), self.blind.step.at(context))


def scale(price: Price, factor: float) -> Price:
    return Price(price.base * factor, price.slope * factor, price.low * factor, price.high * factor, price.samples)


def hand_prices(policy: Policy, curve: PriceList, forwards_per_token: int = 1) -> None:
    """Tell a policy that asks for them what rounds cost, before its first answer. Raises PolicyError."""
    session = PolicySession(policy)
    if session.needs_prices:
        session.take_prices(curve.by_drafted(session.watches_draft, forwards_per_token))


def extend(values: np.ndarray, size: int) -> np.ndarray:
    """[n] to [max(n, size)], along the least-squares line through the last values, and never below 0."""
    if size <= len(values):
        return values
    known = min(len(values), LAST_BLOCKS)
    places = np.arange(len(values) - known, len(values))
    line = np.polyfit(places, values[-known:], deg=min(1, known - 1))
    return np.concatenate([values, np.maximum(np.polyval(line, np.arange(len(values), size)), 0.0)])


def from_ratio(c: float) -> PriceList:
    """T_draft = 1 and T_target(k) = c for every k: the cost model of the speculative decoding papers.

    Prices are in draft steps; nothing else costs. c = T_target / T_draft, as in GammaTune (Leviathan et al. write its
    reciprocal). Raises UserError where c is not a number above 0.
    """
    if not 0 < c < float("inf"):
        raise UserError(f"The cost ratio {c} is out of range: T_target / T_draft must be a number above 0.")
    step = Drafting(step=Price(1.0))
    return PriceList(step, step, [Price(float(c))], facts={"ratio": c})


def price(replay: Replay, prompts, curve: PriceList, watched: bool, drafts: bool | None = None) -> np.ndarray:
    """What each turn of a replay costs [turns], in the curve's unit.

    prompts: the turns of the replay, or their prompt tokens [turns]. watched: the policy's watches_draft. drafts: whether
    the draft reads the prompt too, which it does for every policy but "ar"; None: whether the replay drafted at all.
    The policy's own time is not in the price.
    """
    drafting, context = curve.drafting(watched), replay.context
    bases, slopes = curve.verify_lines(int(replay.drafted.max(initial=0)) + 1)
    rounds = replay.forwards * drafting.step.at(context) + bases[replay.drafted] + slopes[replay.drafted] * context
    rounds += curve.rest.at(context)
    drafted = replay.forwards > 0
    rounds += drafted * drafting.start.at(context)
    rounds += (count_fed(replay, bool(curve.facts.get("rereads"))) > 1) * drafting.catch_up.at(context)
    reads_prompt = bool(drafted.any()) if drafts is None else drafts
    prefill = curve.prefill_both if reads_prompt else curve.prefill_target
    return replay.sum_by_turn(rounds) + prefill.at(prompt_lengths(prompts))


def count_fed(replay: Replay, rereads: bool = False) -> np.ndarray:
    """Tokens [rounds] that the first draft step of each round is fed, 0 in rounds without one.

    The draft's cache holds what it was fed of the text: all that was committed before its last block and, of that block,
    what was accepted but for the last token that it proposed. rereads: nothing of that block, as of a feature draft.
    """
    steps = np.flatnonzero(replay.forwards)
    turn = np.searchsorted(replay.turn_ends, steps, side="right")
    first = np.concatenate([[0], replay.turn_ends])[turn]  # each turn's first round
    kept = 0 if rereads else np.minimum(replay.forwards - 1, replay.accepted)
    held = replay.context + kept  # tokens in the cache after a round with steps
    before = np.concatenate([[0], steps[:-1]])
    same_turn = np.concatenate([[False], turn[1:] == turn[:-1]])[: len(steps)]
    cached = np.where(same_turn, held[before[: len(steps)]], replay.context[first] - 1)
    fed = np.zeros_like(replay.context)
    fed[steps] = replay.context[steps] - cached
    return fed


def prompt_lengths(prompts) -> np.ndarray:
    return np.array([p.prompt_tokens if isinstance(p, ReplayTurn) else p for p in prompts])


PARTS = ("blind", "watched", "verify", "rest", "prefill_target", "prefill_both")


def prices_to_json(curve: PriceList) -> dict:
    """Plain JSON: the facts, then the prices, which `read_prices` reads back."""
    prices = {name: part for name, part in asdict(curve).items() if name in PARTS}
    return {"schema": SCHEMA, **curve.facts, "prices": prices}


def read_prices(path: Path) -> PriceList:
    """Raises UserError for a missing, damaged, changed or newer file, and for one that holds no prices."""
    content = read_json(path, REMAKE, known=SCHEMA)
    del content["schema"]
    try:
        curve = prices_from_json(content.pop("prices"))
        if not isinstance(content.get("provenance", {}), dict):
            raise ValueError("the provenance is no object")
    except KeyError as error:
        raise UserError(f"{path} is no price file or is damaged ({error} is missing): {REMAKE}.") from error
    except ValueError as error:
        raise UserError(f"{path} is no price file or is damaged ({error}): {REMAKE}.") from error
    except (TypeError, AttributeError) as error:
        raise UserError(f"{path} is no price file or is damaged (something else for a price): {REMAKE}.") from error
    curve.facts = content
    return curve


def prices_from_json(prices: dict) -> PriceList:
    """Raises ValueError, KeyError, TypeError or AttributeError where something is missing or cannot be a price."""
    draftings = [Drafting(**{k: read_price(v) for k, v in prices[name].items()}) for name in ("blind", "watched")]
    verify = [read_price(stored) for stored in prices["verify"]]
    if not verify or not all(each.base + each.slope > 0 for each in verify):
        raise ValueError("verification must cost something")
    return PriceList(*draftings, verify, *(read_price(prices[name]) for name in PARTS[3:]))


def read_price(stored: dict) -> Price:
    """Neither base nor slope is negative, as in `fit_robustly`: nothing costs less than nothing, nor less after more."""
    found = Price(**stored)
    numbers = (found.base, found.slope, found.low, found.high)
    if not all(type(number) in (int, float) and abs(number) < LARGEST for number in numbers):  # false for NaN
        raise ValueError("a price is no number of milliseconds")
    if found.base < 0 or found.slope < 0 or found.low > found.high:
        raise ValueError("a price is negative")
    if type(found.samples) is not int or found.samples < 0:
        raise ValueError("a number of samples is none")
    return found
