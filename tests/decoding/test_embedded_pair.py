"""The real pair: its speculative answers are transformers' own greedy answers."""

import pytest
import torch
from shipped import make_policy

from gammatune.config import DecodeConfig, TasksConfig
from gammatune.decoding.loop import build_engine, generate_speculative
from gammatune.drafters.lookup import Lookup
from gammatune.policies.session import PolicySession
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import load_questions

pytestmark = pytest.mark.embedded
ARMS = [("gammatune_plus", {"gamma": 4, "tau": 0.2}), ("fixed", {"gamma": 5}), ("gammatune", {"gamma": 2})]


def check_answers(pair, questions: int, tokens: int = 16, drafter=None) -> float:
    """Compare the first turns of demo questions; the acceptance rate."""
    engine, drafted, accepted = build_engine(pair, drafter=drafter), 0, 0
    for index, question in enumerate(load_questions(TasksConfig(name="demo", limit=2)).questions[:questions]):
        prompt = build_prompt(pair.chat_template, pair.tokenizer, question.turns[:1], [])
        output = pair.target.generate(torch.tensor([prompt]), max_new_tokens=tokens, do_sample=False)
        name, chosen = ARMS[index % len(ARMS) if drafter is None else 1]
        session, decode = PolicySession(make_policy(name, **chosen)), DecodeConfig(max_new_tokens=tokens)
        made = generate_speculative(engine, prompt, session, decode)
        assert made.output_ids == output[0, len(prompt) :].tolist()
        drafted += sum(r.drafted for r in made.rounds)
        accepted += sum(r.accepted for r in made.rounds)
    return accepted / drafted


def test_answers_equal_transformers_greedy(embedded_pair):
    assert check_answers(embedded_pair, 2, tokens=8) > 0.1, (
        "a trained draft agrees with its target far more often than by chance"
    )


@pytest.mark.slow
def test_so_they_do_on_every_task(embedded_pair):
    assert check_answers(embedded_pair, 12) > 0.1


@pytest.mark.slow
def test_so_they_do_with_a_lookup(embedded_pair):
    check_answers(embedded_pair, 6, drafter=Lookup())
