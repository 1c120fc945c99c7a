"""runtime=auto: the fastest candidate wins, a compiled runtime that is not exact never does, and the reason says why."""

import os
import time
from dataclasses import replace

import pytest
import torch
from llamas import VOCAB

from gammatune.models.int8 import quantise
from gammatune.models.pair import random_pair
from gammatune.runtimes import choose
from gammatune.runtimes.base import Models, build_model, build_models
from gammatune.runtimes.choose import Candidate, choose_runtime
from gammatune.runtimes.native_library import NoLibraryError, find_compiler


@pytest.fixture
def needs_compiler():
    try:
        find_compiler()
    except NoLibraryError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def pair():
    return random_pair(seed=1, noise=0.3, vocab_size=VOCAB)


class TimedModel:
    """Nothing but a duration: milliseconds per token fed."""

    def __init__(self, ms: float):
        self.ms, self.length, self.calls = ms, 0, 0

    def reset(self):
        self.length = 0

    def crop(self, length):
        self.length = min(self.length, length)

    def forward(self, tokens, keep):
        self.calls += 1
        self.length += len(tokens)
        time.sleep(self.ms * (len(tokens) if len(tokens) <= choose.BLOCK + 1 else 0) / 1e3)  # prompts are free
        return torch.zeros(keep, VOCAB)


def timed(target: float, draft: float | None = None) -> Candidate:
    return Candidate(Models(TimedModel(target), None if draft is None else TimedModel(draft), "eager"), 1)


def test_steps_blocks_and_the_draft_are_timed_and_the_hopeless_given_up(pair):
    """The draft decides between the first two: five of its steps are in each round."""
    dear_draft, good, hopeless = timed(1.0, 4.0), timed(1.5, 0.5), timed(30.0, 0.5)
    candidates = [dear_draft, good, hopeless]
    choose.measure(candidates, pair, time.perf_counter() + 10)
    assert min(candidates, key=choose.rank) is good
    assert 1.5 <= good.step < 4 and good.verify >= 9 and 0.5 <= good.draft < 2
    assert hopeless.cost == float("inf") and hopeless.step >= 30 and hopeless.models.target.calls == 1
    # Both of the others ran a first burst; the one that is far dearer was not timed again
    assert dear_draft.models.target.calls < 10 and good.models.target.calls < 10


def test_no_burst_begins_after_the_deadline_but_one_is_always_run(pair):
    candidates = [timed(0.1), timed(0.1)]
    choose.measure(candidates, pair, time.perf_counter() - 1)
    assert candidates[0].step < float("inf") and candidates[1].models.target.calls == 0


def test_auto_takes_compiled_where_it_is_exact_and_leaves_it_ready(pair, needs_compiler):
    """No form of a tiny model is slower than transformers' own."""
    started = time.perf_counter()
    choice = choose_runtime(pair)
    assert time.perf_counter() - started < 30  # under 1 where the cores are idle
    assert choice.models.runtime == "compiled" and choice.reason.startswith("compiled on ")
    assert "one target step" in choice.reason and "eager" in choice.reason
    assert choice.threads == torch.get_num_threads() == choice.models.target.threads == choice.models.draft.threads
    assert choice.models.target.length == choice.models.draft.length == 0


@pytest.mark.parametrize("threads", [1, 2])
def test_a_given_number_of_threads_is_kept_and_a_pair_may_lack_its_draft(pair, threads):
    choice = choose_runtime(replace(pair, draft=None), threads=threads, seconds=0)
    assert choice.threads == torch.get_num_threads() == threads and choice.models.draft is None


@pytest.mark.parametrize(("role", "factor"), [("target", -1.0), ("draft", 1.5), ("draft", float("nan"))])
def test_a_compiled_runtime_that_deviates_is_not_chosen(pair, role, factor, monkeypatch, needs_compiler):
    """Another choice of token; the same choice from other logits, which sampling and signals would see; no number at all."""

    def build_wrong(pair, runtime):
        models = build_models(pair, runtime)
        if runtime == "compiled":
            getattr(models, role).lm_head.panels.mul_(factor)
        return models

    monkeypatch.setattr(choose, "build_models", build_wrong)
    choice = choose_runtime(pair, threads=1)
    assert choice.models.runtime == "eager"
    assert f"compiled was not chosen (its {role} chooses tokens" in choice.reason


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", [lambda model: model, quantise])
def test_rounding_is_no_deviation(pair, dtype, form, needs_compiler):
    pair = replace(pair, target=form(pair.target.to(dtype)), draft=form(pair.draft.to(dtype)), dtype=dtype)
    compiled, eager = (Candidate(build_models(pair, name), 1) for name in ("compiled", "eager"))
    assert choose.find_deviation(compiled, eager, pair) is None


@pytest.fixture(params=["held in both forms", "too large for that"])
def size(request, monkeypatch):
    if request.param == "too large for that":
        monkeypatch.setattr(choose, "BOTH_FORMS", 0)
        monkeypatch.setattr(choose, "find_deviation", lambda *_: pytest.fail("both forms at once"))
    return request.param


@pytest.mark.parametrize("without_draft", [False, True])
def test_a_chosen_compiled_form_leaves_the_weights_to_nobody(pair, size, without_draft, needs_compiler):
    pair = replace(pair, draft=None) if without_draft else pair
    choice, tokens = choose_runtime(pair, threads=1, release=True), torch.arange(4, 30)
    assert choice.models.runtime == "compiled" and pair.target.lm_head.weight.dim() == 4
    expected = build_models(random_pair(seed=1, noise=0.3, vocab_size=VOCAB), "compiled")
    assert torch.equal(choice.models.target.forward(tokens, 9), expected.target.forward(tokens, 9))
    if not without_draft:
        assert torch.equal(choice.models.draft.forward(tokens, 9), expected.draft.forward(tokens, 9))


@pytest.mark.parametrize("role", ["target", "draft"])
def test_a_large_pair_whose_compiled_form_deviates_gets_its_weights_back(pair, role, monkeypatch, needs_compiler):
    def build_wrong(pair, role_built, runtime, release=False):
        model = build_model(pair, role_built, runtime, release)
        if runtime == "compiled" and role_built == role:
            model.final_norm *= -1
        return model

    monkeypatch.setattr(choose, "build_model", build_wrong)
    monkeypatch.setattr(choose, "BOTH_FORMS", 0)
    choice, tokens = choose_runtime(pair, threads=1, release=True), torch.arange(4, 30)
    assert choice.models.runtime == "eager" and f"compiled was not chosen (its {role} chooses tokens" in choice.reason
    expected = build_models(random_pair(seed=1, noise=0.3, vocab_size=VOCAB), "eager")
    for got, wanted in ((choice.models.target, expected.target), (choice.models.draft, expected.draft)):
        assert torch.equal(got.forward(tokens, 9), wanted.forward(tokens, 9))


def test_what_is_refused_runs_eager_and_says_why(pair):
    half = replace(pair, target=pair.target.half(), draft=pair.draft.half(), dtype=torch.float16)
    choice = choose_runtime(half, threads=1, seconds=0)
    assert choice.models.runtime == "eager" and choice.reason.endswith(
        "compiled was not chosen (target: weights in float16 on cpu have no C++ step; "
        "draft: weights in float16 on cpu have no C++ step)"
    )


def test_on_cuda_nothing_is_timed(pair, monkeypatch):
    monkeypatch.setattr(choose, "measure", lambda *_: pytest.fail("timed on CUDA"))
    choice = choose_runtime(replace(pair, device=torch.device("cuda")))
    why = "its weights are on cpu, not on one CUDA device"
    assert choice.reason == f"eager, since compiled is refused (target: {why}; draft: {why})"


def test_threads_go_up_to_the_cores_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert choose.thread_counts(None) == [6, 4, 2, 1] and choose.thread_counts(3) == [3]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5})
    assert choose.thread_counts(None) == [1]
    monkeypatch.delattr(os, "sched_getaffinity")
    assert choose.available_cores() == os.cpu_count()


@pytest.mark.slow
@pytest.mark.embedded
def test_the_embedded_pair_is_chosen_for_in_a_few_seconds(embedded_pair, needs_compiler):
    started = time.perf_counter()
    choice = choose_runtime(embedded_pair)
    assert choice.models.runtime == "compiled" and time.perf_counter() - started < 60  # 5 where the cores are idle
