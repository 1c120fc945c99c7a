"""`gammatune prices`: the price list of a pair on this device and runtime, from rounds of the decoding loop itself.

A price is what a round takes with sampling, host reads and cache crops, not what a bare forward takes. Every block length is
asked for once per pass and context, in shuffled order, so a machine that slows down slows all of them.
"""

import os
import random
import tempfile
import time
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from gammatune.decoding.loop import Turn, prefill, read_marks, run_round, start_turn
from gammatune.errors import UserError
from gammatune.files import content_hash, write_json
from gammatune.machine import LoadWatch
from gammatune.policies.fixed import Autoregressive
from gammatune.policies.probe import Probe, WatchingProbe
from gammatune.policies.session import PolicySession
from gammatune.replay.fit_prices import Samples, fit_prices
from gammatune.replay.prices import SCHEMA, PriceList, prices_to_json
from gammatune.runs.provenance import describe_environment
from gammatune.runs.session import Session

SHOWN_BLOCKS = (1, 2, 6, 9, 17, 25)


@dataclass
class Plan:
    """What to measure: prompts of these lengths in tokens, block lengths up to gamma_max, this many passes over all.

    rounds: of each block length in a pass; more of them share its prefill.
    """

    contexts: tuple[int, ...] = (128, 512, 1024)
    gamma_max: int = 24
    repeats: int = 5
    rounds: int = 1

    def __post_init__(self):
        if not self.contexts or min(self.contexts) < 2:
            raise UserError(f"--contexts {','.join(map(str, self.contexts))} must hold lengths of 2 tokens or more.")
        if self.gamma_max < 1:
            raise UserError(f"--gamma-max {self.gamma_max} must be 1 or more.")
        if self.repeats < 1:
            raise UserError(f"--repeats {self.repeats} must be 1 or more.")

    @classmethod
    def brief(cls, context: int) -> "Plan":
        """For policies that decide by prices, before a run: seconds. context: tokens that the pair addresses.

        Longer blocks are priced by the line through these.
        """
        plans = (cls(contexts=(32, 160), gamma_max=most, repeats=1, rounds=2) for most in range(8, 0, -1))
        fitting = next((plan for plan in plans if plan.room + 2 <= context), None)
        if fitting is None:
            raise UserError(f"The pair addresses {context} tokens, too few to measure prices: give them with prices=FILE.")
        return fitting

    @property
    def room(self) -> int:
        """Tokens that a pass can emit at most, where every block is fully accepted."""
        return self.rounds * (sum(range(self.gamma_max + 1)) + self.gamma_max + 1)

    def fit(self, context: int) -> "Plan":
        """The same with prompts short enough for a pass to follow; too long ones become the longest that fits.

        Raises UserError where none does.
        """
        longest = context - self.room
        if longest < 2:
            raise UserError(
                f"--gamma-max {self.gamma_max} needs up to {self.room} tokens after a prompt, but the pair addresses "
                f"{context}: choose a smaller one."
            )
        return replace(self, contexts=tuple(sorted({min(length, longest) for length in self.contexts})))


class PriceRun:
    """Probe a pair that is loaded, and fit its prices."""

    def __init__(self, session: Session, plan: Plan):
        self.session, config = session, session.config
        self.plan = plan.fit(self.session.pair.context)
        self.seed, self.load = config.seed, LoadWatch()
        self.text = repeat_text(self.session.pair.tokenizer, self.session.questions.questions, max(self.plan.contexts))
        self.decode = replace(config.decode, max_new_tokens=self.plan.room)
        # without an end of sequence no block is cut short, and every block length is met as often as planned
        self.engine = replace(self.session.engine, ends=frozenset()).filling_blocks(self.text * 2)
        self.facts = {
            **self.session.table_facts(self.plan.gamma_max),
            "runtime": {"name": self.session.engine.runtime, "threads": torch.get_num_threads()},
            "contexts": list(self.plan.contexts),
            "repeats": self.plan.repeats,
            "unit": "ms",
            "provenance": describe_environment(self.session.pair.device, self.session.pair.identity),
        }

    @property
    def probes(self) -> tuple[type[Probe], ...]:
        """A drafter that is no model has no watched price of its own: what it does is the same."""
        return (Probe, WatchingProbe) if self.engine.drafter.signals else (Probe, Probe)

    def run(self) -> PriceList:
        samples = Samples()
        self.warm_up()
        jobs = [(context, policy) for context in self.plan.contexts for policy in self.probes]
        with tqdm(total=self.plan.repeats * len(jobs), unit="turn", disable=None) as bar:
            for repeat in range(self.plan.repeats):
                order = random.Random(f"{self.seed}/{repeat}")
                for context, policy in order.sample(jobs, len(jobs)):
                    self.load.note()
                    self.measure_pass(context, policy(gammas=self.shuffle_gammas(order)), samples)
                    bar.update()
        self.load.note()
        self.facts["provenance"]["median_load"] = self.load.median
        return fit_prices(samples, self.facts)

    def warm_up(self) -> None:
        """One pass, unlogged: first calls pay for allocations and kernel choices."""
        self.session.warm_up(self.plan.gamma_max, watched=True)
        order = random.Random(self.seed)
        self.measure_pass(min(self.plan.contexts), self.probes[-1](gammas=self.shuffle_gammas(order)), Samples())

    def shuffle_gammas(self, order: random.Random) -> list[int]:
        gammas = [*range(self.plan.gamma_max + 1)] * self.plan.rounds
        return order.sample(gammas, len(gammas))

    def measure_pass(self, context: int, probe: Probe, samples: Samples) -> None:
        """One round of every block length after a prompt of `context` tokens, and a prefill without the draft."""
        prompt = self.text[:context]
        for models, policy in (("target", Autoregressive()), ("both", probe)):
            turn = start_turn(self.engine, prompt, PolicySession(policy), self.decode, self.seed)
            samples.prefills.append({"length": context, "models": models, "ms": time_prefill(turn)})
        rounds = [measure_round(turn) for _ in probe.gammas]
        turn.device.synchronize()
        read_marks(turn)
        for measured, finished in zip(rounds, turn.rounds, strict=True):
            times = (finished.draft_ms, finished.verify_ms, finished.policy_ms)
            measured |= {"length": context, "watched": probe.watches_draft, "context": finished.context}
            measured |= {
                "forwards": finished.forwards,
                "drafted": finished.drafted,
                "draft_ms": times[0],
                "verify_ms": times[1],
            }
            measured["rest_ms"] = measured.pop("wall_ms") - sum(times)
        samples.rounds += rounds

    def default_path(self, folder: Path) -> Path:
        """Named by everything but the moment: pair, device, runtime, plan."""
        facts = {name: fact for name, fact in self.facts.items() if name != "provenance"}
        device = self.facts["provenance"]["device"]
        return folder / f"{self.facts['pair']}-{content_hash({'schema': SCHEMA, 'machine': device, **facts})}.json"


def repeat_text(tokenizer, questions: list, length: int) -> list[int]:
    """Token ids of the questions one after another, repeated until there are `length`."""
    ids = tokenizer.encode(" ".join(chain.from_iterable(question.turns for question in questions)))
    return (ids * (length // len(ids) + 1))[:length]


def time_prefill(turn: Turn) -> float:
    """Milliseconds, as `generate_speculative` times it."""
    turn.device.synchronize()
    started = time.perf_counter()
    prefill(turn)
    turn.device.synchronize()
    return (time.perf_counter() - started) * 1e3


def measure_round(turn: Turn) -> dict:
    """One round by the host's clock; fed: tokens that the first draft step takes. A round ends with the host informed."""
    fed = turn.drafter.unread(turn.text)
    started = time.perf_counter()
    run_round(turn)
    return {"fed": fed, "wall_ms": (time.perf_counter() - started) * 1e3}


def show_prices(curve: PriceList) -> str:
    """A small table in ms: T_draft, T_target(k), what a round adds, and c = T_target(1) / T_draft, by context."""
    contexts = np.array(curve.facts["contexts"])
    blocks = [k for k in SHOWN_BLOCKS if k <= len(curve.verify)]
    rows = {
        "T_draft": curve.blind.step.at(contexts),
        "T_draft, watched": curve.watched.step.at(contexts),
        **{f"T_target({k})": curve.verify[k - 1].at(contexts) for k in blocks},
        "rest of a round": curve.rest.at(contexts),
        "prefill, target": curve.prefill_target.at(contexts),
        "prefill, both": curve.prefill_both.at(contexts),
        "c = T_target(1) / T_draft": curve.ratio(contexts),
    }
    table = pd.DataFrame(rows, index=[f"context {context}" for context in contexts]).T
    return table.round(3).to_markdown()


def refuse_implausible(curve: PriceList, load: float) -> None:
    """Raises UserError for prices by which no draft could ever pay. load: while they were measured."""
    if strange := curve.find_implausible():
        raise UserError(
            f"Nothing was written: {strange}, so no draft could pay (median load {load:.1f} on {os.cpu_count()} cores): "
            "measure again on a quiet machine, or write them all the same with --keep-implausible."
        )


def prepare_place(path: Path) -> None:
    """Make sure that the file can be written, before minutes of measuring. Raises UserError and OSError."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file with --out, such as {path / 'prices.json'}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent):
        pass


def write_prices(curve: PriceList, path: Path) -> None:
    """Atomically."""
    write_json(path, prices_to_json(curve))
