"""A live run and a replay of the same policy on the same answers give identical rounds."""

from functools import cache
from itertools import cycle, product

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gammatune.config import DecodeConfig, TasksConfig
from gammatune.decoding.loop import generate_autoregressive, generate_speculative
from gammatune.drafters.trace import Answered, trace_answer
from gammatune.models.pair import random_pair
from gammatune.policies import POLICIES
from gammatune.policies.base import settings_of
from gammatune.policies.oracle import Oracle
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable
from gammatune.runtimes.base import eager_runtime
from gammatune.studies.replay_check import same_round
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import load_questions

LIVE = [name for name, option in POLICIES.items() if not option.rule.oracle]
STARTS = [1, 2, 3, 5, 8, 12, 20]
BUDGETS = [1, 2, 7, 13, 24]
SEEDS = 30


class ScriptedOracle(Oracle):
    """The oracle where nobody foresees: it plans what its replay planned."""

    oracle = False

    def follow(self, planned: list[int]) -> None:
        self.script = iter(planned)

    def plan(self) -> int:
        return next(self.script)


def make_runtime(noise: float, head: int | None = None, ends: tuple[int, ...] = (9, 17)):
    """A tiny pair whose draft is the target with noise; two tokens of forty end the sequence, so that ends are common.

    head: tokens that the draft can say, None for all.
    """
    runtime = eager_runtime(random_pair(seed=1, noise=noise, vocab_size=40, vocabulary=head))
    runtime.pair.eos_ids = ends
    return runtime


DRAFTS = [(0.0, None), (0.1, None), (0.1, 33), (0.4, None), (0.0, 25), (2.0, None)]  # noise and head
RUNTIMES = {draft: make_runtime(*draft) for draft in DRAFTS}


@cache
def record_three(draft: tuple, seed: int, budget: int) -> tuple[list[list[int]], AcceptanceTable]:
    """Three prompts and their table, whose tails are as long as any block."""
    prompts = [prompt_of(seed + index, 3 + seed % 9) for index in range(3)]
    return prompts, record(RUNTIMES[draft], prompts, budget, gamma_max=42)


def every_choice(test):
    """Both stop tokens with every carry and every draft, besides what is drawn."""
    drafts = cycle(RUNTIMES)
    for number, (stop_token, carry) in enumerate(product(["include", "exclude"], ["turn", "question", "never"])):
        chosen = {"stop_token": stop_token, "carry": carry, "draft": next(drafts)}
        test = example(seed=number, gamma=STARTS[-1 - number], budget=24, **chosen)(test)
    return test


def prompt_of(seed: int, length: int) -> list[int]:
    return torch.randint(4, 40, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def record(runtime, prompts: list[list[int]], budget: int, gamma_max: int = 24) -> AcceptanceTable:
    """The table of the target's own answers; every two turns make a question."""
    turns = []
    for index, prompt in enumerate(prompts):
        made = generate_autoregressive(runtime, prompt, DecodeConfig(max_new_tokens=budget))
        answered = Answered(index // 2, "qa", "qa", index % 2, prompt, made.output_ids, budget, made.finish)
        turns.append(trace_answer(runtime, answered, gamma_max))
    return AcceptanceTable(turns, {"gamma_max": gamma_max})


def run_live(runtime, prompts: list[list[int]], policy, budget: int) -> list:
    """Rounds of every turn, the policy reset where its carry says, as the runner does it."""
    policy.reset()
    logs = []
    for index, prompt in enumerate(prompts):
        if policy.carry == "turn" or (policy.carry == "question" and index % 2 == 0):
            policy.reset()
        logs.append(generate_speculative(runtime, prompt, policy, DecodeConfig(max_new_tokens=budget)).rounds)
    return logs


def make_policy(name: str, gamma: int, **changes):
    known = settings_of(POLICIES[name]())
    wanted = {"gamma": max(gamma, known.get("gamma_min", 1)), **changes}
    return POLICIES[name](**{key: value for key, value in wanted.items() if key in known})


def assert_identical(live: list, replayed: list) -> None:
    assert [len(rounds) for rounds in live] == [len(rounds) for rounds in replayed]
    for rounds, predicted in zip(live, replayed, strict=True):
        for place, pair in enumerate(zip(rounds, predicted, strict=True)):
            assert same_round(*pair), (place, *pair)
            assert pair[0].draft_forwards == pair[1].draft_forwards


@pytest.mark.parametrize("name", LIVE)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, SEEDS),
    draft=st.sampled_from(DRAFTS),
    gamma=st.sampled_from(STARTS),
    budget=st.sampled_from(BUDGETS),
    stop_token=st.sampled_from(["include", "exclude"]),
    carry=st.sampled_from(["turn", "question", "never"]),
)
@every_choice
def test_every_policy_replays_as_it_ran(name, seed, draft, gamma, budget, stop_token, carry):
    runtime, (prompts, table) = RUNTIMES[draft], record_three(draft, seed, budget)
    carry = "turn" if name == "hf_confidence_online" else carry
    policy = make_policy(name, gamma, stop_token=stop_token, carry=carry)
    done = replay(prepare(table), policy, keep_rounds=True)
    assert_identical(run_live(runtime, prompts, policy, budget), done.logs)
    assert done.beyond == 0


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), draft=st.sampled_from(DRAFTS), budget=st.integers(1, 30))
def test_the_oracle_run_live_is_never_rejected(seed, draft, budget):
    runtime, prompt = RUNTIMES[draft], prompt_of(seed, 6)
    replayed = replay(prepare(record(runtime, [prompt], budget)), POLICIES["oracle"](), keep_rounds=True).logs
    oracle = ScriptedOracle()
    oracle.follow([r.planned for r in replayed[0]])
    live = run_live(runtime, [prompt], oracle, budget)
    assert_identical(live, replayed)
    assert all(r.accepted == r.drafted for r in live[0])


def test_a_block_longer_than_the_table_is_counted():
    """Behind gamma_max recorded steps the policy cannot be asked; the block goes on and the replay says so."""
    runtime = make_runtime(2.0, ends=())
    table = record(runtime, [prompt_of(1, 5)], 30, gamma_max=2)
    policy = POLICIES["hf_confidence"](gamma=12, threshold=0.0)
    done = replay(prepare(table), policy)
    assert 0 < done.beyond <= done.rounds
    assert done.drafted.max() == 12


@pytest.mark.embedded
def test_the_embedded_pair_replays_as_it_ran(embedded_pair):
    """Every policy on real prompts: counts, stop reasons and states of all rounds."""
    runtime, compared, budget = eager_runtime(embedded_pair), 0, 32
    questions = load_questions(TasksConfig(name="demo", limit=1)).questions[:3]
    build = [(q.turns[:1], []) for q in questions]
    prompts = [build_prompt(embedded_pair.chat_template, embedded_pair.tokenizer, *parts) for parts in build]
    walks = prepare(record(runtime, prompts, budget))
    for name in LIVE:
        policy = POLICIES[name]()
        live = run_live(runtime, prompts, policy, budget)
        assert_identical(live, replay(walks, policy, keep_rounds=True).logs)
        compared += sum(len(rounds) for rounds in live)
    assert compared > 20 * len(LIVE)
