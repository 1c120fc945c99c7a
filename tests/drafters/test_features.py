"""Feature drafts on tiny pairs: what they propose, live as in replay, and answers that stay the target's own."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from replay.recording import facts_of, record, run_live
from scipy import stats
from shipped import make_policy
from table_model import draw_prompt

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import Engine, build_engine, generate_autoregressive, generate_speculative
from gammatune.decoding.sampling import Sampler
from gammatune.drafters import features
from gammatune.drafters.features import Features
from gammatune.errors import UserError
from gammatune.models.feature_draft import FILE, FeatureDraft, FeatureTap
from gammatune.models.pair import Pair, random_pair
from gammatune.models.tiny import TinySettings, build_tiny_models, tiny_shape
from gammatune.policies.session import PolicySession
from gammatune.replay.simulate import prepare, replay
from gammatune.runtimes.native import refusal
from gammatune.traces import StartTrace
from gammatune.transformers import speculate

IDS = torch.arange(3, 38)  # two ends of answers among them
PROMPTS = [
    draw_prompt(seed, 1 + 3 * seed) for seed in range(4)
]  # the first has one token, which leaves nothing to draft from
POLICIES = ["fixed", "gammatune", "gammatune_plus", "optimal_stopping_blind", "adaedl"]


def make_pair(kind: str) -> Pair:
    pair = replace(random_pair(seed=1, noise=0.4, vocab_size=40), eos_ids=(9, 17), draft=None)
    return pair if kind == "llama" else replace(pair, target=make_qwen2())


def make_qwen2() -> torch.nn.Module:
    """As the pair's Llama, with biases on queries, keys and values."""
    shapes = [tiny_shape(layers, 40, model_type="qwen2") for layers in (3, 1)]
    target = build_tiny_models(*shapes, TinySettings(seed=1))["target"]
    for name, bias in target.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias, std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return target.eval().requires_grad_(False)


def train(draft: FeatureDraft, target: torch.nn.Module, steps: int = 120) -> None:
    """On the target's features and its own next tokens; enough that a block's first tokens are often right."""
    texts = torch.randint(4, 40, (8, 40), generator=torch.Generator().manual_seed(7))
    tap = FeatureTap(target)
    wanted = target(texts).logits.argmax(dim=-1)[:, 1:] - int(IDS[0])  # rows of the head
    tap.remove()
    optimiser = torch.optim.Adam(draft.parameters(), lr=3e-3)
    for _ in range(steps):
        logits = draft.logits(draft(tap.features[:, :-1], texts[:, 1:]))
        known = (wanted >= 0) & (wanted < len(IDS))
        torch.nn.functional.cross_entropy(logits[known], wanted[known]).backward()
        optimiser.step()
        optimiser.zero_grad()


@pytest.fixture(scope="module")
def make_engine(tmp_path_factory):
    """make_engine(kind, runtime) -> Engine with a draft that was trained a little."""

    @cache
    def made(kind: str):
        pair, folder = make_pair(kind), tmp_path_factory.mktemp(kind)
        draft = FeatureDraft.from_target(pair.target, IDS)
        train(draft, pair.target)
        draft.save(folder, pair.tokenizer, torch.float32)
        return pair, folder

    @cache
    def engine(kind: str, runtime: str) -> Engine:
        pair, folder = made(kind)
        if runtime == "compiled" and (reason := refusal(pair.target)):
            pytest.skip(reason)
        return build_engine(pair, runtime, Features(path=str(folder)))

    return engine


EVERY = pytest.mark.parametrize("runtime", ["eager", "compiled"])
KINDS = pytest.mark.parametrize("kind", ["llama", "qwen2"])


@torch.inference_mode()
def propose_from_scratch(engine: Engine, text: list[int], count: int) -> list[int]:
    """What follows a text by the definition: features of a forward of its own, one sequence that grows, and no cache."""
    draft, target, tokens = engine.drafter.draft, engine.pair.target, torch.tensor([text])
    tap = FeatureTap(target)
    target(tokens)
    tap.remove()
    given, proposed = tap.features[:, :-1], []
    for _ in range(count):
        predicted = draft(given, tokens[:, 1:])[:, -1:]
        proposed.append(int(IDS[draft.logits(predicted)[0, -1].argmax()]))
        given, tokens = torch.cat([given, predicted], 1), torch.cat([tokens, torch.tensor([proposed[-1:]])], 1)
    return proposed


@EVERY
@KINDS
def test_proposals_are_those_of_the_definition(make_engine, kind, runtime):
    """Along an answer: after features of its own at every depth, and after the target's where a block was accepted."""
    engine, prompt = make_engine(kind, runtime), PROMPTS[3]
    answer = generate_autoregressive(engine, prompt, DecodeConfig(max_new_tokens=12)).output_ids
    trace = engine.trace(prompt, answer, 40, 6)
    ids, starts = trace.ids.tolist(), np.cumsum(trace.proposed) - trace.proposed
    assert type(trace) is StartTrace and trace.proposed.min() >= 1 and trace.proposed.max() == 6
    for place, (start, count) in enumerate(zip(starts, trace.proposed, strict=True)):
        assert ids[start : start + count] == propose_from_scratch(engine, [*prompt, *answer[:place]], count)


@pytest.mark.parametrize(("budget", "depth"), [(30, 6), (4, 9), (1, 3), (2, 1)])
def test_starts_side_by_side_are_those_one_after_another(make_engine, monkeypatch, budget, depth):
    """In several forwards where the buffer is smaller than the answer; a prompt of one token, too."""
    engine = make_engine("llama", "eager")
    for prompt in PROMPTS[:3]:
        answer = generate_autoregressive(engine, prompt, DecodeConfig(max_new_tokens=budget)).output_ids
        monkeypatch.setattr(features, "MOST", 7)
        beside = engine.trace(prompt, answer, budget, depth)
        monkeypatch.setattr(engine.drafter.model, "takes_masks", False, raising=False)
        single = engine.trace(prompt, answer, budget, depth)
        monkeypatch.undo()
        for name in ("right", "proposed", "ended", "more", "ids"):
            assert getattr(beside, name).tolist() == getattr(single, name).tolist()
        for column, other in zip(vars(beside.signals).values(), vars(single.signals).values(), strict=True):
            assert column == pytest.approx(other, abs=2e-4)


@EVERY
@KINDS
def test_a_live_run_is_its_replay(make_engine, kind, runtime, tmp_path):
    engine = make_engine(kind, runtime)
    table = record(engine, PROMPTS, 24, 12, tmp_path / "acceptance.parquet")
    accepted = stops = 0
    for name in POLICIES:
        policy = make_policy(name)
        live = run_live(engine, PROMPTS, policy, 24)
        assert facts_of(live) == facts_of(replay(prepare(table), policy, keep_rounds=True).logs)
        accepted += sum(r.accepted > 1 for rounds in live for r in rounds)
        stops += sum(r.stop in ("eos", "policy", "budget") for rounds in live for r in rounds)
        assert live[0][0].stop == "drafter", "a prompt of one token has no feature yet"
    assert accepted > 5 and stops > 5


@EVERY
@KINDS
def test_greedy_answers_are_the_targets_own(make_engine, kind, runtime):
    engine, decode = make_engine(kind, runtime), DecodeConfig(max_new_tokens=20)
    for prompt in PROMPTS[1:]:
        alone = generate_autoregressive(engine, prompt, decode).output_ids
        for gamma in (1, 6):
            session = PolicySession(make_policy("fixed", gamma=gamma))
            assert generate_speculative(engine, prompt, session, decode).output_ids == alone


def test_a_block_reads_the_targets_features_of_what_was_accepted(make_engine):
    """After whatever rounds, the cache holds as many entries as the text has features, none of them predicted."""
    engine, seen = make_engine("llama", "compiled"), []

    class Watching(Features):
        def commit(self, text):
            super().commit(text)
            seen.append((len(text), self.known + len(self.waiting), self.model.length))

    drafter = Watching(path=engine.drafter.path)
    watched = build_engine(engine.pair, "compiled", drafter)
    generate_speculative(watched, PROMPTS[2], PolicySession(make_policy("gammatune")), DecodeConfig(max_new_tokens=30))
    assert len(seen) > 5
    assert all(entries == length - 1 and cached <= entries for length, entries, cached in seen)


def test_a_context_longer_than_one_call(make_engine):
    """Prompts of 300 tokens: the layer's inputs lie in a buffer of 256."""
    engine, eager = make_engine("llama", "compiled"), make_engine("llama", "eager")
    prompt, decode = draw_prompt(5, 300), DecodeConfig(max_new_tokens=12)
    answers = [generate_autoregressive(each, prompt, decode).output_ids for each in (engine, eager)]
    traces = [each.trace(prompt, answers[0], 12, 6) for each in (engine, eager)]
    assert traces[0].ids.tolist() == traces[1].ids.tolist()
    assert np.abs(traces[0].signals.top1 - traces[1].signals.top1).max() < 1e-3


def test_sampled_answers_have_the_targets_distribution(tmp_path):
    """Chi-square of two sampled tokens against the target's own probabilities."""
    pair, prompt, draws = replace(random_pair(seed=2, vocab_size=6), eos_ids=(), draft=None), [4, 5, 4, 5], 400
    FeatureDraft.from_target(pair.target, torch.tensor([0, 2, 3, 5])).save(tmp_path, pair.tokenizer, torch.float32)
    engine, decode = (
        build_engine(pair, drafter=Features(path=str(tmp_path))),
        DecodeConfig(max_new_tokens=2, temperature=3.0),
    )

    def after(prefix: list[int]) -> np.ndarray:
        logits = pair.target(torch.tensor([prefix])).logits[0, -1:]
        return Sampler(decode, pair.device).distribution(logits)[0].double().numpy()

    expected = draws * np.stack([after(prompt)[token] * after([*prompt, token]) for token in range(6)]).flatten()
    observed, session, accepted = np.zeros(36), PolicySession(make_policy("fixed", gamma=1)), 0
    for seed in range(draws):
        made = generate_speculative(engine, prompt, session, decode, seed)
        observed[made.output_ids[0] * 6 + made.output_ids[1]] += 1
        accepted += made.rounds[0].accepted
    common = expected >= 5
    counts = [np.append(each[common], each[~common].sum()) for each in (observed, expected)]
    keep = counts[1] > 0
    assert common.sum() > 5 and 0.1 < accepted / draws < 0.9
    assert stats.chisquare(counts[0][keep], counts[1][keep] * counts[0][keep].sum() / counts[1][keep].sum()).pvalue > 1e-3


def test_bits_of_the_targets_logits_do_not_change(make_engine):
    """The target of a run with a feature draft, and one that keeps nothing."""
    for runtime in ("eager", "compiled"):
        kept, plain = (
            make_engine("llama", runtime).target,
            build_engine(make_pair("llama"), runtime, drafter=NoDrafts()).target,
        )
        text = torch.tensor(draw_prompt(3, 40))
        for model in (kept, plain):
            model.reset()
        for feed in text.split((30, 1, 9)):
            assert torch.equal(kept.forward(feed, len(feed)), plain.forward(feed, len(feed)))
            assert kept.features.shape == (len(feed), 64) and plain.features is None


class NoDrafts(Features):
    """Only so that no draft is built."""

    reads_features = False

    def __post_init__(self):
        pass

    def load(self, pair):
        pass

    def attach(self, workplace):
        self.workplace = workplace


def test_missing_and_unset_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="drafter.path is not set"):
        Features()
    for path in (str(tmp_path), "~nobody-here/x", "x" * 5000):
        with pytest.raises(UserError, match=f"holds no {FILE}"):
            Features(path=path)


def test_generate_of_transformers_refuses_it(make_engine):
    with pytest.raises(UserError, match="hands no hidden states on"):
        speculate(policy="fixed", drafter=make_engine("llama", "eager").drafter)
