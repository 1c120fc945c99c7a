"""What is recorded of a drafter along an answer: two ways of tracing a draft model, one for all others."""

from dataclasses import replace

import numpy as np
import pytest
from replay.made_tables import contents, wrap
from table_model import draw_prompt, own_answer, table_engine

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import build_engine, generate_autoregressive
from gammatune.drafters import model as draft_model
from gammatune.drafters.lookup import Lookup
from gammatune.models.pair import random_pair
from gammatune.replay.table import AcceptanceTable
from gammatune.traces import MATCH, MISMATCH, StartTrace, TextTrace

BUDGET = 40


@pytest.fixture(scope="module", params=[(0.1, None), (0.4, 33), (2.0, None)], ids=str)
def llamas(request):
    """Two small Llamas as transformers runs them. Two tokens of forty end an answer."""
    noise, head = request.param
    return build_engine(replace(random_pair(seed=1, noise=noise, vocab_size=40, vocabulary=head), eos_ids=(9, 17)))


def plain(trace) -> dict:
    return contents(AcceptanceTable([wrap(trace)]))[0]["trace"]


@pytest.mark.parametrize(("budget", "depth"), [(BUDGET, 24), (BUDGET, 3), (5, 24), (1, 24), (2, 1)])
def test_masked_and_stepwise_traces_are_the_same(llamas, monkeypatch, budget, depth):
    """All continuations side by side in one cache, and one token after another: matches, steps, ends and signals."""
    monkeypatch.setattr(draft_model, "CHUNK", 7)
    draft = llamas.drafter.workplace.model
    for seed in range(4):
        prompt = draw_prompt(seed, 1 + 3 * seed)
        answer = generate_autoregressive(llamas, prompt, DecodeConfig(max_new_tokens=budget)).output_ids
        monkeypatch.setattr(draft, "takes_masks", True, raising=False)
        masked = llamas.trace(prompt, answer, budget, depth)
        monkeypatch.setattr(draft, "takes_masks", False, raising=False)
        stepwise = llamas.trace(prompt, answer, budget, depth)
        for name in ("match", "steps", "ended"):
            assert getattr(masked, name).tolist() == getattr(stepwise, name).tolist()
        for name in ("signals", "continuations"):
            for column, other in zip(
                vars(getattr(masked, name)).values(), vars(getattr(stepwise, name)).values(), strict=True
            ):
                assert column == pytest.approx(other, abs=2e-4)
        assert len(masked.steps) == (masked.match == MISMATCH).sum() and masked.steps.max(initial=0) <= depth


def test_a_trace_is_what_the_drafts_own_table_says():
    """Every number by hand from the draft's own table: one prefix after another, the ends included."""
    engine = table_engine(agreement=0.6)
    draft = engine.drafter.workplace.model
    for seed in range(12):
        prompt = draw_prompt(seed)
        answer = own_answer(engine, prompt, 12)
        trace = engine.trace(prompt, answer, 12, depth=5)
        steps, ended, entropies = [], [], []
        for place, token in enumerate(answer):
            text = [*prompt, *answer[:place]]
            choice = int(draft.look_up(text).argmax())
            assert trace.match[place] == (choice == token)
            if choice == token:
                continue
            count = 0
            text.append(choice)
            while text[-1] not in engine.ends and count < min(5, 12 - 2 - place):
                probs = draft.look_up(text).double().softmax(0)
                entropies.append(float(-(probs * probs.log()).sum()))
                text.append(int(probs.argmax()))
                count += 1
            steps.append(count)
            ended.append(text[-1] in engine.ends)
        assert (trace.steps.tolist(), trace.ended.tolist()) == (steps, ended)
        assert trace.continuations.entropy == pytest.approx(entropies, abs=1e-4)
        assert type(trace) is TextTrace


def test_a_draft_that_agrees_has_no_continuations():
    engine = table_engine(agreement=1.0)
    trace = engine.trace(draw_prompt(1), own_answer(engine, draw_prompt(1), 20), 20, 24)
    assert set(trace.match.tolist()) == {MATCH} and len(trace.steps) == len(trace.continuations) == 0


def test_a_lookup_is_traced_start_by_start():
    """From the answer 3 1 2 4 to the prompt 1 2 3 1 2: nothing, then what followed the matching end of the text."""
    engine = table_engine(Lookup(), ends=(4,))
    prompt, answer = [1, 2, 3, 1, 2], [3, 1, 2, 4]
    trace = engine.trace(prompt, answer, budget=20, depth=24)
    # at 0: 1 2 occurred before 3 1 2, all of which is right. at 1, after 3: 3 1 2 3; 2 3 -> 1 2 3. at 2: 3 1 -> 2 3 1
    # at 3: 3 1 2 -> 3 1 2, all wrong
    assert trace.right.tolist() == [3, 2, 1, 0]
    assert trace.proposed.tolist() == [3, 3, 3, 3]
    assert not trace.ended.any() and not trace.more.any() and trace.signals is None
    assert type(trace) is StartTrace and trace.match.tolist() == [1, 1, 1, 0]


def test_a_lookup_that_proposes_an_end_and_one_that_meets_the_budget():
    engine = table_engine(Lookup(), ends=(4,))
    trace = engine.trace([1, 2, 4, 1, 2], [4], budget=3, depth=24)
    assert (trace.right.tolist(), trace.proposed.tolist(), trace.ended.tolist()) == ([1], [1], [True])
    trace = engine.trace([1, 2, 3, 5, 6, 1, 2], [3, 5, 6], budget=3, depth=24)
    assert trace.proposed.tolist() == [2, 1, 0], "the last token that the budget allows is left to the target"


def test_what_was_decoded_before_does_not_change_a_trace():
    """A trace equals the one of a new engine, whatever was decoded before."""
    used, prompt = table_engine(), draw_prompt(4)
    answer = own_answer(used, prompt, 20)
    first = plain(used.trace(prompt, answer, 20, 24))
    generate_autoregressive(used, draw_prompt(5), DecodeConfig(max_new_tokens=9))
    used.trace(draw_prompt(6), own_answer(used, draw_prompt(6), 9), 9, 24)
    assert plain(used.trace(prompt, answer, 20, 24)) == first == plain(table_engine().trace(prompt, answer, 20, 24))
    assert np.isfinite(np.array(first["signals"]["entropy"])).all()
