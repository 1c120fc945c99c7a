"""The real pair: its speculative answers are transformers' own greedy answers."""

import pytest
import torch

from gammatune.config import DecodeConfig, TasksConfig
from gammatune.decoding.loop import generate_speculative
from gammatune.policies import POLICIES
from gammatune.runtimes.base import eager_runtime
from gammatune.tasks.prompts import build_prompt
from gammatune.tasks.questions import load_questions

pytestmark = pytest.mark.embedded
NEW_TOKENS = 16
ARMS = [POLICIES["gammatune_plus"](gamma=4, tau=0.2), POLICIES["fixed"](gamma=5), POLICIES["gammatune"](gamma=2)]


@pytest.fixture(scope="module")
def answers(embedded_pair):
    """(prompt, transformers' greedy ids) of the first turns of twelve demo questions, two of each task."""
    pair, made = embedded_pair, []
    for question in load_questions(TasksConfig(name="demo", limit=2)).questions:
        prompt = build_prompt(pair.chat_template, pair.tokenizer, question.turns[:1], [])
        output = pair.target.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
        made.append((prompt, output[0, len(prompt) :].tolist()))
    return made


def test_answers_equal_transformers_greedy(embedded_pair, answers):
    assert len(answers) == 12
    runtime, drafted, accepted = eager_runtime(embedded_pair), 0, 0
    for index, (prompt, expected) in enumerate(answers):
        policy = ARMS[index % len(ARMS)]
        policy.reset()
        made = generate_speculative(runtime, prompt, policy, DecodeConfig(max_new_tokens=NEW_TOKENS))
        assert made.output_ids == expected
        drafted += sum(r.drafted for r in made.rounds)
        accepted += sum(r.accepted for r in made.rounds)
    assert accepted / drafted > 0.1, "a trained draft agrees with its target far more often than by chance"
