"""A live run and a replay of the same policy on the same answers give identical rounds, whatever the drafter."""

import random
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay.recording import facts_of, record, run_live
from scripted import Scripted, ScriptedWatching, scripted_policies
from shipped import LENGTH_ONLY, LIVE, adapt_policy, make_policy
from table_model import TableModel, draw_prompt, table_engine

from gammatune.config import TasksConfig
from gammatune.decoding.loop import build_engine
from gammatune.drafters.base import Drafter
from gammatune.drafters.first_of import FirstOf
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.model import DraftModel
from gammatune.drafters.suffix import Suffix
from gammatune.policies.oracle import Oracle
from gammatune.records import Block, Proposal, Signals
from gammatune.replay.simulate import prepare, replay
from gammatune.studies.replay_check import same_round
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import load_questions

BUDGETS = (1, 2, 7, 13, 30)


@dataclass
class Diviner(Drafter):
    """Reports signals like a model and proposes from where its block began like a lookup: no shipped drafter does both."""

    name: ClassVar[str] = "diviner"
    signals: ClassVar[bool] = True

    def propose(self, text: list[int], block: Block) -> Proposal:
        dice, target, tokens = random.Random(hash(tuple(text))), TableModel(), []
        for index in range(dice.randrange(9)):
            right = dice.random() < 0.8
            tokens.append(int(target.look_up(text + tokens).argmax()) if right else dice.randrange(40))
            top1, entropy, margin = (dice.random() for _ in range(3))
            if not block.add(tokens[-1], Signals.rounded(index, top1, entropy, margin, chosen=top1)):
                break
        return Proposal(self.workplace.device.upload(tokens[: block.drafted]))


ENGINES = {
    "equal draft": lambda: table_engine(agreement=1.0),
    "good draft": lambda: table_engine(agreement=0.8),
    "bad draft": lambda: table_engine(agreement=0.2),
    "draft with 33 of 40 tokens": lambda: table_engine(agreement=0.9, head=33),
    "lookup": lambda: table_engine(Lookup(), memory=2, vocab_size=12, ends=(9,)),
    "short lookup": lambda: table_engine(Lookup(longest=1), memory=1, ends=(9,)),
    "diviner": lambda: table_engine(Diviner()),
    "suffix": lambda: table_engine(Suffix(), memory=2, vocab_size=12, ends=(9,)),
    "suffix, then model": lambda: table_engine(FirstOf([Suffix(max_tree_depth=4), DraftModel()]), memory=3, **SMALL),
    "sure suffix, then model": lambda: table_engine(FirstOf([Suffix(min_token_prob=0.9), DraftModel()]), memory=2, **SMALL),
    "lookup, then model": lambda: table_engine(FirstOf([Lookup(shortest=2), DraftModel()]), memory=2, **SMALL),
    "lookup, then suffix": lambda: table_engine(FirstOf([Lookup(shortest=3), Suffix()]), memory=2, **SMALL),
    "suffix, then diviner": lambda: table_engine(FirstOf([Suffix(max_tree_depth=3), Diviner()]), memory=1, ends=(9,)),
}
SMALL = {"vocab_size": 12, "ends": (9,)}
WATCHED = [kind for kind in ENGINES if "lookup" not in kind]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """recorded(kind, seed, budget) -> (engine, three prompts, their table, read back from its file)."""
    path = tmp_path_factory.mktemp("live") / "acceptance.parquet"

    @cache
    def make(kind: str, seed: int, budget: int):
        engine = ENGINES[kind]()
        prompts = [draw_prompt(seed + index, 1 + seed % 9, engine.pair.vocab_size) for index in range(3)]
        return engine, prompts, record(engine, prompts, budget, 42, path)

    return make


def assert_replays(recorded_parts, policy, budget: int) -> list:
    """The logs of both, which are equal."""
    engine, prompts, table = recorded_parts
    done = replay(prepare(table), policy, keep_rounds=True)
    live = run_live(engine, prompts, policy, budget)
    assert facts_of(live) == facts_of(done.logs)
    assert done.beyond == 0
    fast = replay(prepare(table), policy)
    for name in ("context", "drafted", "accepted", "forwards"):
        assert getattr(fast, name).tolist() == [getattr(r, name) for rounds in live for r in rounds]
    return live


@settings(max_examples=250, deadline=None)
@given(data=st.data(), kind=st.sampled_from(list(ENGINES)), seed=st.integers(0, 20), budget=st.sampled_from(BUDGETS))
def test_whatever_a_policy_does_replays_as_it_ran(recorded, data, kind, seed, budget):
    policy = data.draw(scripted_policies(watching=None if kind in WATCHED else False))
    assert_replays(recorded(kind, seed, budget), policy, budget)


def test_what_is_compared_is_not_trivial(recorded):
    """The engines above meet every reason to stop, accepted and rejected ends included."""
    stops = set()
    for kind, seed in product(ENGINES, range(8)):
        rule = ScriptedWatching(plans=[9, 2], keeps=[True] * 6 + [False]) if kind in WATCHED else Scripted(plans=[9])
        for rounds in assert_replays(recorded(kind, seed, 30), rule, 30):
            stops |= {(r.stop, r.accepted == r.drafted) for r in rounds}
    assert stops >= set(product(("length", "policy", "eos", "budget", "drafter"), (True, False)))


def test_each_member_of_a_list_makes_blocks_that_are_told_apart(recorded):
    """In the rounds that the equality above compares, forwards included."""
    for kind in [kind for kind in ENGINES if "then" in kind]:
        made = set()
        for seed in range(4):
            for rounds in assert_replays(recorded(kind, seed, 30), make_policy("fixed", gamma=4), 30):
                made |= {(r.proposer, r.forwards > 0) for r in rounds if r.drafted}
        assert made == {(0, False), (1, "model" in kind)}, kind


@pytest.mark.parametrize("name", LIVE)
def test_every_shipped_policy_replays_as_it_ran(recorded, name):
    kinds = ["good draft", "bad draft", "suffix", "suffix, then model"]
    kinds += ["lookup", "lookup, then model"] if name in LENGTH_ONLY else []
    carries = ("turn", "question", "never")
    for number, (kind, stop_token) in enumerate(product(kinds, ("include", "exclude"))):
        policy = adapt_policy(name, gamma=(2, 7, 12)[number % 3], stop_token=stop_token, carry=carries[number % 3])
        assert_replays(recorded(kind, number, 30), policy, 30)


class ToldOracle(Oracle):
    """The oracle where nobody foresees: it plans what its replay planned."""

    oracle = False
    told: list[int]

    def reset(self) -> None:
        self.matches = None

    def plan(self) -> int:
        return self.told.pop(0)


@pytest.mark.parametrize("kind", ["good draft", "lookup", "diviner"])
def test_the_oracle_run_live_is_never_rejected(recorded, kind):
    for seed, budget in product(range(5), BUDGETS):
        engine, prompts, table = recorded(kind, seed, budget)
        replayed = replay(prepare(table), make_policy("oracle"), keep_rounds=True).logs
        oracle = ToldOracle()
        oracle.told = [r.planned for rounds in replayed for r in rounds]
        live = run_live(engine, prompts, oracle, budget)
        assert facts_of(live) == facts_of(replayed)
        assert all(r.accepted == r.drafted for rounds in live for r in rounds)


@pytest.mark.parametrize("kind", ["bad draft", "diviner"])
def test_a_block_longer_than_the_table_is_counted(tmp_path, kind):
    """After the recorded steps the policy cannot be asked; the block goes on and the replay says so."""
    engine = ENGINES[kind]()
    table = record(engine, [draw_prompt(seed) for seed in range(4)], 30, 2, tmp_path / "acceptance.parquet")
    done = replay(prepare(table), ScriptedWatching(plans=[12]))
    assert 0 < done.beyond <= done.rounds
    assert done.drafted.max() == 12


@pytest.mark.embedded
@pytest.mark.slow
def test_the_embedded_pair_replays_as_it_ran(embedded_pair, tmp_path):
    """Real prompts: counts, stop reasons and states of all rounds."""
    engine, compared, budget = build_engine(embedded_pair), 0, 32
    questions = load_questions(TasksConfig(name="demo", limit=1)).questions[:3]
    template, tokenizer = embedded_pair.chat_template, embedded_pair.tokenizer
    prompts = [build_prompt(template, tokenizer, question.turns[:1], []) for question in questions]
    turns = prepare(record(engine, prompts, budget, 24, tmp_path / "acceptance.parquet"))
    for name in ("fixed", "gammatune_plus", "adaedl"):
        policy = make_policy(name)
        live, replayed = run_live(engine, prompts, policy, budget), replay(turns, policy, keep_rounds=True).logs
        for rounds, predicted in zip(live, replayed, strict=True):
            assert all(same_round(*pair) for pair in zip(rounds, predicted, strict=True))
            compared += len(rounds)
    assert compared > 60
