"""The online threshold beside transformers' own code: its update rule fed with the same rounds, and its whole generate."""

import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made import signal
from sklearn.metrics import roc_curve
from transformers.generation import candidate_generator
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import build_engine, generate_speculative
from gammatune.models.pair import random_pair
from gammatune.policies import POLICIES
from gammatune.policies.session import PolicySession
from gammatune.records import Round

PROBABILITIES = st.integers(1, 10_000).map(lambda parts: parts / 10_000)


def transformers_rule(threshold: float) -> AssistedCandidateGenerator:
    """transformers' object with what its update rule reads, but without models."""
    rule = AssistedCandidateGenerator.__new__(AssistedCandidateGenerator)
    settings = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": threshold}
    rule.assistant_generation_config = SimpleNamespace(**settings)
    rule.generation_config = SimpleNamespace(**settings)
    rule.num_assistant_tokens, rule.probs, rule.matches = 20, [], []
    return rule


@st.composite
def blocks(draw):
    """(probabilities of what the draft would propose, accepted, whether the last drafted token ends the sequence)."""
    proposed = draw(st.lists(PROBABILITIES, min_size=20, max_size=20))
    return proposed, draw(st.integers(0, 20)), draw(st.booleans())


@settings(max_examples=150, deadline=None)
@given(rounds=st.lists(blocks(), min_size=1, max_size=25), start=PROBABILITIES, room=st.integers(0, 20))
def test_every_threshold_is_transformers_own(rounds, start, room):
    """`room` limits the last block as a token budget does."""
    policy, rule = POLICIES["hf_confidence_online"](threshold=start), transformers_rule(start)
    for number, (proposed, accepted, ends) in enumerate(rounds):
        allowed = min(policy.plan(), room if number == len(rounds) - 1 else 20)
        drafted = next((i + 1 for i in range(allowed) if not policy.keep_drafting(signal(proposed[i], index=i))), allowed)
        accepted = min(accepted, drafted)
        ended = ends and 0 < drafted == accepted
        emitted = accepted + (not ended)
        rule.probs.extend(proposed[:drafted])
        rule.update_candidate_strategy(None, torch.zeros(1, drafted + 1, 1), emitted - 1)
        policy.observe(Round(20, drafted, accepted, emitted, drafted, "length", 10))
        assert policy.threshold_now == rule.generation_config.assistant_confidence_threshold
        assert (policy.probabilities, policy.matches) == (rule.probs, rule.matches)


def test_worked_example():
    """Accepted .9 .8 .7 .6, rejected .5 .65: costs of thresholds .9, .7, .65, .6, .5 are 2.25, .75, 1.25, .5, 1."""
    policy = POLICIES["hf_confidence_online"]()
    for block, accepted in (((0.9, 0.8, 0.5, 0.3), 2), ((0.7, 0.6, 0.65), 2)):
        for index, probability in enumerate(block):
            policy.keep_drafting(signal(probability, index=index))
        assert policy.threshold_now == 0.4
        policy.observe(Round(20, len(block), accepted, accepted + 1, len(block), "policy", 10))
    assert (policy.threshold_now, len(policy.matches)) == (0.6, 6)
    assert not policy.keep_drafting(signal(0.59)) and policy.keep_drafting(signal(0.6))
    policy.reset()
    assert policy.keep_drafting(signal(0.4))


def test_rounds_are_those_of_transformers_generate(monkeypatch):
    """Whole answers of a tiny pair, drafted by transformers' generate and by our loop with this policy.

    transformers gets a padded prompt: without padding, 5.23 feeds the draft the whole text again in every round, on top of
    what its cache holds, and the draft's probabilities are not its own any more.
    """
    seen, original = [], AssistedCandidateGenerator.update_candidate_strategy

    def watch(self, input_ids, scores, num_matches):
        original(self, input_ids, scores, num_matches)
        seen.append((scores.shape[1] - 1, int(num_matches), self.generation_config.assistant_confidence_threshold))

    monkeypatch.setattr(candidate_generator.AssistedCandidateGenerator, "update_candidate_strategy", watch)
    pair, start = replace(random_pair(seed=1, noise=0.1, vocab_size=40), eos_ids=()), 0.05
    engine, draft, adapted = build_engine(pair), pair.draft, 0
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.num_assistant_tokens = 20
    draft.generation_config.assistant_confidence_threshold = start
    for seed in range(6):
        prompt = torch.randint(4, 40, (12,), generator=torch.Generator().manual_seed(seed))
        seen.clear()
        output = pair.target.generate(
            torch.cat([torch.tensor([2]), prompt])[None],
            attention_mask=torch.tensor([[0] + [1] * 12]),
            assistant_model=draft,
            max_new_tokens=60,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=2,
        )
        policy = POLICIES["hf_confidence_online"](threshold=start)
        made = generate_speculative(engine, prompt.tolist(), PolicySession(policy), DecodeConfig(max_new_tokens=60))
        assert made.output_ids == output[0, 13:].tolist()
        ours = [(r.drafted, r.emitted - 1) for r in made.rounds]
        assert ours == [(drafted, matches) for drafted, matches, _ in seen]
        for left, right in zip(made.rounds[1:], seen, strict=False):
            assert math.isclose(left.state["threshold_now"], right[2], abs_tol=1e-4)
        adapted += len({r.state["threshold_now"] for r in made.rounds}) > 1
    assert adapted > 3


@settings(max_examples=200, deadline=None)
@given(samples=st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=2, max_size=60))
def test_the_chosen_point_is_the_least_of_scikit_learns_curve(samples):
    """Few distinct probabilities, so that ties and straight lines are common."""
    probabilities, matches = [p / 30 for p, _ in samples], [int(match) for _, match in samples]
    assume(0 < sum(matches) < len(matches))
    policy = POLICIES["hf_confidence_online"]()
    for probability, match in zip(probabilities, matches, strict=True):
        policy.add_sample(probability, bool(match))
    false_rate, true_rate, thresholds = roc_curve(matches, probabilities)
    assert policy.choose_threshold() == thresholds[(false_rate + 3 * (1 - true_rate)).argmin()]
