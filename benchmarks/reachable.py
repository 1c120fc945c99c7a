"""What no rule can reach: python benchmarks/reachable.py TABLE --prices FILE (or --cost-ratio C).

The oracle knows which tokens will be accepted; a rule has the draft's signals and what happened before. How far is the
oracle out of any rule's reach? Boosted trees learn the chance that a drafted token is accepted, on all questions but
those that they are asked about: once the token is there, from its signals, those of the two tokens before and the
answer's history; before it is there, from the same without its own signals. They are told more than a live rule can
know: the outcome at every earlier position, drafted or not. The stopping rule of `optimal_stopping` over their chances,
at the table's prices, is the bound printed here, without and with what the answer's own repeated contexts tell. Behind
a wrong token, where the draft follows a text of its own, the chances of the answer's positions stand: what is drafted
there is lost whatever they are.

The last line is one JSON object.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier

from gammatune.commands.options import add_prices, add_table, find_prices, find_table
from gammatune.errors import UserError, exit_code_of
from gammatune.policies import POLICIES, Policy
from gammatune.policies.optimal_stopping import MEMORY_STEP, OptimalStopping
from gammatune.records import Round, RoundPrices, Signals
from gammatune.replay.speeds import Bench, build_bench
from gammatune.replay.table import AcceptanceTable, AcceptanceTurn, read_table
from gammatune.studies.bootstrap import stratified_ratio_interval

FOLDS = 4
SIGNALS = ("top1", "entropy", "margin")
CONTEXTS = (2, 4)  # ids before a position that the memory keys on


@dataclass
class Chances:
    """Of one answer's positions, that the draft's token there is the target's."""

    seen: np.ndarray  # [n], once the draft has made it
    unseen: np.ndarray  # [n], before that


@dataclass
class Informed(Policy):
    """`optimal_stopping` with chances that are looked up. Answers come in the order of `answers`."""

    name: ClassVar[str] = "informed"
    watches_draft: ClassVar[bool] = True
    needs_prices: ClassVar[bool] = True

    gamma: int = 16
    answers: list[Chances] = field(default_factory=list)

    def __post_init__(self):
        self.rule = OptimalStopping(gamma=self.gamma)  # which keeps this answer's rate of tokens per price
        super().__post_init__()

    def reset(self) -> None:
        self.answer = -1

    def take_prices(self, prices: RoundPrices) -> None:
        self.rule.take_prices(prices)

    def begin(self, prompt_tokens: int) -> None:
        self.rule.reset()
        self.rule.begin(prompt_tokens)
        self.answer, self.place = self.answer + 1, 0
        chances = self.answers[self.answer]
        self.seen, self.unseen = chances.seen.tolist(), chances.unseen.tolist()

    def plan(self) -> int:
        self.made, self.chance, self.rule.rate_now = 0, 1.0, self.rule.rate()
        return self.gamma if self.pays() else 0

    def pays(self) -> bool:
        at = self.place + self.made
        if self.made >= self.gamma or at >= len(self.unseen):
            return False
        return self.rule.is_worth(self.made, self.chance * self.unseen[at], self.unseen[at])

    def keep_drafting(self, signal: Signals) -> bool:
        self.chance *= self.seen[self.place + self.made]
        self.made += 1
        return self.pays()

    def observe(self, finished: Round) -> None:
        rule = self.rule
        rule.tokens += finished.emitted
        rule.spent += rule.price(finished.drafted, finished.context)
        rule.context = finished.context + finished.emitted
        self.place += finished.emitted


def describe_positions(turn: AcceptanceTurn, memory: bool) -> np.ndarray:
    """Features of each position [n, features], those that the token's own signals give last."""
    match = turn.match.astype(float)
    n = len(match)
    before = [shift(match, lag) for lag in (1, 2, 3, 4)]
    columns = [*before, smooth(match, 0.3), smooth(match, 0.05), np.arange(n, dtype=float)]
    signals = [getattr(turn.trace.signals, name) for name in SIGNALS]
    columns += [shift(values, lag) for values in signals for lag in (1, 2)]
    if memory:
        columns += [value for size in CONTEXTS for value in recall(turn.output_ids, match, size)]
    return np.column_stack([*columns, *signals])


def shift(values: np.ndarray, lag: int) -> np.ndarray:
    """[n], the value `lag` positions before; NaN where there is none."""
    return np.concatenate([np.full(min(lag, len(values)), np.nan), values[: max(0, len(values) - lag)]])


def smooth(match: np.ndarray, weight: float) -> np.ndarray:
    """[n], exponential mean of the outcomes before each position."""
    means, mean = np.empty(len(match)), 0.5
    for place, outcome in enumerate(match):
        means[place] = mean
        mean += weight * (outcome - mean)
    return means


def recall(ids: np.ndarray, match: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """[n] and [n]: what happened after the same last `size` ids of the answer (-1 to 1, NaN where new), and how often."""
    held: dict[tuple[int, ...], tuple[float, int]] = {}
    values, counts = np.full(len(match), np.nan), np.zeros(len(match))
    for place in range(size, len(match)):
        key = tuple(ids[place - size : place].tolist())
        value, count = held.get(key, (0.0, 0))
        if count:
            values[place], counts[place] = value, count
        held[key] = value + MEMORY_STEP * (2 * match[place] - 1 - value), count + 1
    return values, counts


def predict(table: AcceptanceTable, memory: bool) -> list[Chances]:
    """Chances of every turn, by trees that were fitted on the other questions."""
    features = [describe_positions(turn, memory) for turn in table.turns]
    outcomes = [turn.match == 1 for turn in table.turns]
    numbers = {key: place for place, key in enumerate(dict.fromkeys((t.task, t.question_id) for t in table.turns))}
    fold = np.array([numbers[turn.task, turn.question_id] % FOLDS for turn in table.turns])
    found: list[Chances | None] = [None] * len(table.turns)
    for held_out in range(FOLDS):
        others = np.flatnonzero(fold != held_out)
        known, right = (np.concatenate([values[turn] for turn in others]) for values in (features, outcomes))
        seen, unseen = fit(known, right), fit(known[:, : -len(SIGNALS)], right)
        for turn in np.flatnonzero(fold == held_out):
            rows = features[turn]
            found[turn] = Chances(chance(seen, rows), chance(unseen, rows[:, : -len(SIGNALS)]))
    return found


def fit(features: np.ndarray, right: np.ndarray) -> HistGradientBoostingClassifier:
    # binning fails on a column of NaN alone, as the memory's is where no context comes again; a constant splits nothing
    features = np.where(np.isnan(features).all(axis=0), 0.0, features)
    trees = HistGradientBoostingClassifier(max_iter=150, learning_rate=0.06, max_leaf_nodes=31, random_state=0)
    return trees.fit(features, right)


def chance(trees: HistGradientBoostingClassifier, features: np.ndarray) -> np.ndarray:
    """[n], that the token is right: 1 or 0 where the trees were fitted on that outcome alone."""
    if len(trees.classes_) == 1:
        return np.full(len(features), float(trees.classes_[0]))
    return trees.predict_proba(features)[:, 1]


def compare(bench: Bench, table: AcceptanceTable) -> pd.DataFrame:
    """A row for each rule: speed over the target alone, share of the oracle's, with 95 % intervals."""
    rules = {name: POLICIES[name]() for name in ("gammatune_plus", "optimal_stopping_no_memory", "optimal_stopping")}
    rules |= {
        "bound: signals and history": Informed(carry="never", answers=predict(table, memory=False)),
        "bound: repeated contexts too": Informed(carry="never", answers=predict(table, memory=True)),
    }
    alone, oracle = (bench.speeds(POLICIES[name]()) for name in ("ar", "oracle"))
    rows = []
    for name, rule in (rules | {"oracle": POLICIES["oracle"]()}).items():
        speeds = bench.speeds(rule)
        row = {"rule": name}
        for column, reference in (("over_autoregressive", alone), ("over_oracle", oracle)):
            low, high = interval(bench, speeds, reference)
            row |= {column: speeds.mean() / reference.mean(), f"{column}_low": low, f"{column}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def interval(bench: Bench, speeds: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    pair = np.stack([speeds, reference])
    return stratified_ratio_interval([pair[:, bench.task == task] for task in np.unique(bench.task)])


def report(options: argparse.Namespace) -> None:
    path = find_table(options.table)
    table = read_table(path)
    if not (table.watched and table.complete):
        raise UserError(f"{path} lacks draft signals or matches: give a table that `gammatune record` has made.")
    if len({(turn.task, turn.question_id) for turn in table.turns}) < 2:
        raise UserError(f"{path} holds one question, and chances are learned on others: give a table of at least two.")
    frame = compare(build_bench(table, find_prices(options, path)), table)
    print(frame.round(3).to_markdown(index=False), end="\n\n")
    print(json.dumps({"table": path.parent.name, "rows": frame.to_dict("records")}))


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Share of the oracle's speed that signals and history could reach.")
    add_table(parser)
    add_prices(parser)
    try:
        report(parser.parse_args(words))
    except Exception as error:
        return exit_code_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
