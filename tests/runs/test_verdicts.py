"""An answer is the target's own, or a proven near-tie, or wrong; and a wrong one is found."""

import pytest
import torch
from comparing import statuses
from table_model import table_engine

from gammatune.config import DecodeConfig
from gammatune.decoding.exactness import NEAR_TIE_LOGITS, compare_answers
from gammatune.decoding.loop import generate_autoregressive
from gammatune.runs.store import read_run

PROMPT = [0, 7, 8, 9]


def corrupt_second_question(runner):
    """An action that changes one token of the fixed arm's second answer."""
    fixed, seen = runner.folder.cells[1].arm.policy, []

    def corrupt(made, policy):
        if policy is fixed:
            seen.append(made)
            if len(seen) == 2:
                made.output_ids[3] = 99 if made.output_ids[3] != 99 else 98

    return corrupt


def test_one_wrong_token_is_found_and_costs_the_arm_its_numbers(make_runner, on_answer, tmp_path):
    runner = make_runner(tmp_path)
    on_answer(corrupt_second_question(runner))
    runner.run()
    assert statuses(runner) == {"ar": "ok", "fixed-3": "wrong_output", "gammatune_plus-3": "ok", "hf_heuristic-5": "ok"}
    done = runner.folder.cells[1].read_done()
    assert done["exact"] is False
    (difference,) = done["differences"]
    assert (difference["question_id"], difference["turn"], difference["position"]) == (2, 0, 3)
    assert difference["margin"] > NEAR_TIE_LOGITS[torch.float32]
    assert read_run(runner.folder.path).left_out == [("fixed-3", "wrong_output")]


@pytest.fixture
def doctored():
    """doctored(gap) -> (engine, the target's answer, an answer whose 4th token lies `gap` logits under the best)."""

    def make(gap):
        engine = table_engine(ends=())
        answer = generate_autoregressive(engine, PROMPT, DecodeConfig(max_new_tokens=6)).output_ids
        logits, look_up = engine.target.look_up([*PROMPT, *answer[:3]]), engine.target.look_up
        other = next(token for token in range(40) if token not in answer)

        def leaning(prefix):
            found = look_up(prefix).clone()
            found[other] = logits[answer[3]] - gap
            return found

        engine.target.look_up = leaning
        return engine, answer, [*answer[:3], other, *answer[4:]]

    return make


@pytest.mark.parametrize(
    ("share_of_bound", "status"), [(0.0, "near_tie"), (0.9, "near_tie"), (1.2, "different"), (1000, "different")]
)
def test_a_difference_passes_only_within_the_rounding_of_the_logits(doctored, share_of_bound, status):
    gap = share_of_bound * NEAR_TIE_LOGITS[torch.float32]
    engine, answer, other = doctored(gap)
    verdict = compare_answers(engine, PROMPT, answer, other)
    assert (verdict.status, verdict.position) == (status, 3)
    assert verdict.margin == pytest.approx(gap, abs=1e-5)


def test_equal_answers_are_exact_and_a_shorter_one_is_never_a_tie(doctored):
    engine, answer, _ = doctored(0.0)
    assert compare_answers(engine, PROMPT, answer, list(answer)).status == "exact"
    assert compare_answers(engine, PROMPT, answer, answer[:-1]).status == "different"


def test_a_near_tie_is_counted_and_keeps_the_arm(make_runner, on_answer, monkeypatch, tmp_path):
    from gammatune.runs import verdicts

    runner = make_runner(tmp_path)
    on_answer(corrupt_second_question(runner))
    monkeypatch.setitem(verdicts.compare_answers.__globals__["NEAR_TIE_LOGITS"], torch.float32, 1e9)
    runner.run()
    done = runner.folder.cells[1].read_done()
    assert (done["status"], done["exact"], done["near_ties"]) == ("ok", True, 1)
