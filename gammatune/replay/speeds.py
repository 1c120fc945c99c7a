"""From policies to speeds: a table and a price list give every question's modelled tokens per second under any policy."""

import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import compress

import numpy as np
from tqdm import tqdm

from gammatune.machine import available_cores
from gammatune.policies import Policy
from gammatune.policies.base import settings_of
from gammatune.replay.prices import PriceList, hand_prices, price
from gammatune.replay.simulate import Replay, ReplayTurn, prepare, replay
from gammatune.replay.table import AcceptanceTable

FEW = 40  # policies that are replayed here rather than by other processes ...
MUCH = 500_000  # ... unless the tokens that all of them replay together are more


@dataclass(eq=False)
class Priced:
    """What one policy comes to on a bench: what is left of its rounds once they are priced."""

    speeds: np.ndarray  # modelled tokens per second of each question [questions], all its turns together
    rounds: np.ndarray  # of each turn [turns]
    drafted: int  # tokens, like the next two, in all rounds together
    accepted: int
    forwards: int
    beyond: int  # rounds that drafted past what the table holds


@dataclass
class Bench:
    """Turns of a table, grouped by question. task, question_id, tuning: [questions]; question_of: [turns], index of a turn's
    question; tokens: [questions]. tuning marks the half of each task's questions that settings may be chosen on.
    """

    turns: list[ReplayTurn]
    curve: PriceList
    task: np.ndarray
    question_id: np.ndarray
    question_of: np.ndarray
    tokens: np.ndarray
    tuning: np.ndarray
    #: what was measured, by policy: tables, rankings and tuning ask for the same ones. Other prices are another bench
    known: dict[tuple, Priced] = field(default_factory=dict, init=False, repr=False)

    def speeds(self, policy: Policy) -> np.ndarray:
        """Modelled tokens per second of each question [questions], all its turns together."""
        return self.measure(policy).speeds

    def measure(self, policy: Policy) -> Priced:
        """Replayed once for policies of one rule with equal settings, whatever their names."""
        key = key_of(policy)
        if key not in self.known:
            self.known[key] = self.replay_and_price(policy)
        return self.known[key]

    def replay_and_price(self, policy: Policy) -> Priced:
        done = self.replay(policy)
        return Priced(
            speeds=self.speeds_of(done, policy.watches_draft),
            rounds=done.sum_by_turn(np.ones(done.rounds)),
            drafted=int(done.drafted.sum()),
            accepted=int(done.accepted.sum()),
            forwards=int(done.forwards.sum()),
            beyond=done.beyond,
        )

    def part(self, which: np.ndarray) -> "Bench":
        """Some of the questions by themselves. which: [questions], bool."""
        held, place = which[self.question_of], np.cumsum(which) - 1
        return Bench(
            turns=list(compress(self.turns, held)),
            curve=self.curve,
            task=self.task[which],
            question_id=self.question_id[which],
            question_of=place[self.question_of[held]],
            tokens=self.tokens[which],
            tuning=self.tuning[which],
        )

    def replay(self, policy: Policy) -> Replay:
        """Every round; a policy that asks for prices is told those of the bench."""
        hand_prices(policy, self.curve, self.turns[0].forwards_per_token)
        return replay(self.turns, policy)

    def speeds_of(self, done: Replay, watched: bool) -> np.ndarray:
        milliseconds = price(done, self.turns, self.curve, watched)
        return 1000 * self.tokens / np.bincount(self.question_of, milliseconds, minlength=len(self.tokens))


def build_bench(table: AcceptanceTable, curve: PriceList) -> Bench:
    """Raises UserError for a table with unknown positions."""
    keys = list(dict.fromkeys((turn.task, turn.question_id) for turn in table.turns))
    place = {key: index for index, key in enumerate(keys)}
    question_of = np.array([place[turn.task, turn.question_id] for turn in table.turns])
    task = np.array([key[0] for key in keys])
    return Bench(
        turns=prepare(table),
        curve=curve,
        task=task,
        question_id=np.array([key[1] for key in keys]),
        question_of=question_of,
        tokens=np.bincount(question_of, [turn.tokens for turn in table.turns]),
        tuning=split_questions(task),
    )


def split_questions(task: np.ndarray) -> np.ndarray:
    """True for every second question of each task, in the table's order: the tuning split."""
    order = np.zeros(len(task), dtype=int)
    for name in np.unique(task):
        order[task == name] = np.arange((task == name).sum())
    return order % 2 == 1


def key_of(policy: Policy) -> tuple:
    """Equal for policies that decide alike: what a rule learns is forgotten before a replay."""
    return type(policy), repr(settings_of(policy))


def measure_speeds(bench: Bench, policies: list[Policy], workers: int | None = None) -> np.ndarray:
    """[policies, questions]; over several processes when there is much to replay."""
    workers = workers or available_cores()
    new = {key_of(policy): policy for policy in policies if key_of(policy) not in bench.known}
    if workers > 1 and (len(new) >= FEW or len(new) * bench.tokens.sum() >= MUCH):
        with ProcessPoolExecutor(workers, initializer=hold_bench, initargs=(bench,)) as pool:
            done = pool.map(measure_in_worker, new.values(), chunksize=max(1, len(new) // (32 * workers)))
            bench.known.update(zip(new, show(done, len(new)), strict=True))
    else:
        for policy in show(new.values(), len(new)):
            bench.measure(policy)
    return np.array([bench.speeds(policy) for policy in policies]).reshape(len(policies), len(bench.tokens))


def show(items: Iterable, total: int) -> Iterable:
    return tqdm(items, total=total, desc="replaying", unit="policy", disable=None if total >= FEW else True, file=sys.stderr)


HELD: list[Bench] = []


def hold_bench(bench: Bench) -> None:
    HELD[:] = [bench]


def measure_in_worker(policy: Policy) -> Priced:
    return HELD[0].replay_and_price(policy)
