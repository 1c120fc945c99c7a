"""A whole training on the tiny pair, in seconds: from prompts to a draft and its card, cut and continued, and refused."""

import dataclasses
import json
import os
import shutil
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_file

from gammatune.errors import UserError
from gammatune.models.feature_draft import FILE, FeatureDraft
from gammatune.tasks.questions import Question, QuestionSet
from gammatune.training import train
from gammatune.training.answering import Answering
from gammatune.training.chain import make_batch
from gammatune.training.job import Job, Source
from gammatune.training.overlaps import Overlaps
from gammatune.training.prompts import Writer
from gammatune.training.recipe import recipe_for
from gammatune.training.shards import Answers, Shard
from gammatune.training.teacher import Teacher
from gammatune.training.texts import Texts
from gammatune.training.train import Training, columns_of, measure_loss

RECIPE = recipe_for("tiny-random", tokens=800)
WORDS = ("train-draft", "model_pair=tiny-random", "--texts", "none")


def make_job(pair, folder, recipe=RECIPE, questions=None, answers=None):
    return Job(pair, recipe, Source(Texts(), None, questions), folder, answers or folder / "answers")


@pytest.fixture(scope="module")
def trained(pair, tmp_path_factory):
    """The folder of a training that ran through."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert make_job(pair, folder).run() == folder / "draft"
    return folder


def weights(folder):
    return load_file(folder / "draft" / FILE)


def test_a_trained_draft_loads_and_its_loss_has_fallen(pair, trained):
    draft = FeatureDraft.load(trained / "draft", pair.target, pair.tokenizer)
    assert len(draft.ids) == RECIPE.vocabulary and set(pair.eos_ids) <= set(draft.ids.tolist())
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert log[0]["done"] == 0 and log[-1]["done"] == 1 and len(log) == 1 + train.EVALUATIONS
    answers = Answers(sorted((trained / "answers").glob("train-*")))
    batch = make_batch([answers[row] for row in range(len(answers))], torch.device("cpu"))
    # Of the first own step, where the same places count for both
    columns, first = columns_of(draft), dataclasses.replace(RECIPE, steps_in_loss=1)
    before, after = (
        measure_loss(one, batch, columns, first, 1.0) for one in (FeatureDraft.from_target(pair.target, draft.ids), draft)
    )
    assert after.tokens < 0.8 * before.tokens and after.features < 0.8 * before.features
    assert log[-1]["accepted"] > log[0]["accepted"] + 0.5


def test_the_card_tells_what_was_measured(trained):
    card, log = (trained / "draft" / "README.md").read_text(), (trained / "log.jsonl").read_text().splitlines()
    provenance = json.loads((trained / "draft" / "provenance.json").read_text())
    assert provenance["evaluation"] == json.loads(log[-1]) and provenance["recipe"]["tokens"] == 800
    assert f"{provenance['evaluation']['accepted']:.4g}" in card and "| feature_weight" in card
    shards = [Shard(path) for path in (trained / "answers").glob("train-*")]
    assert f"{sum(shard.answer_tokens for shard in shards):,} |" in card and "compared with none" in card


def test_the_most_frequent_tokens_of_the_answers_are_proposed(pair, trained):
    counts = torch.zeros(260)
    for path in (trained / "answers").glob("train-*"):
        shard = Shard(path)
        for row in range(len(shard.sizes)):
            text = shard.text(row)
            counts += torch.bincount(text.ids[text.prompt :].long(), minlength=260)
    ids = weights(trained)["ids"].long()
    others = torch.tensor([i for i in range(260) if i not in ids.tolist()])
    ends = torch.isin(ids, torch.tensor(pair.eos_ids))
    assert counts[ids[~ends]].min() >= counts[others].max()


def stop_after(monkeypatch, owner, method, calls):
    """From now on the method raises in place of a call, as if its process had been killed there."""
    original, made = getattr(owner, method), []

    def called(self, *arguments):
        made.append(1)
        if len(made) > calls:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, called)


@pytest.mark.parametrize(("save_s", "steps"), [(0.0, 7), (1e9, 11)])
def test_a_training_that_was_killed_ends_with_the_same_bits(save_s, steps, pair, trained, tmp_path, monkeypatch):
    """save_s: a checkpoint after each step, or at evaluations alone, so that some steps are done twice."""
    folder = tmp_path / "run"
    shutil.copytree(trained / "answers", folder / "answers")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "SAVE_S", save_s)
        stop_after(patch, Training, "train_step", steps)
        make_job(pair, folder).run()
    assert not (folder / "draft").exists() and (folder / "checkpoint.pt").exists()
    make_job(pair, folder).run()
    expected, found = weights(trained), weights(folder)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
    lines = [(each / "log.jsonl").read_text().splitlines() for each in (trained, folder)]
    times = [[json.loads(line) | {"seconds": 0} for line in each] for each in lines]
    assert times[0] == times[1]


def test_answers_that_were_cut_go_on_with_the_same_bytes(pair, trained, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, Teacher, "answer_batch", 5)
        make_job(pair, folder).run()
    done = {path: path.stat().st_mtime_ns for path in (folder / "answers").glob("*.safetensors")}
    assert 0 < len(done) < len(list((trained / "answers").glob("*.safetensors")))
    assert make_job(pair, folder).run(deadline=0.0) is None, "no time is left"
    make_job(pair, folder).run()
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    for path in (trained / "answers").glob("*.safetensors"):
        ours, theirs = load_file(path), load_file(folder / "answers" / path.name)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_minutes_end_a_training_that_goes_on_later(pair, trained, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained / "answers", folder / "answers")
    clock = iter(range(10**6))
    with monkeypatch.context() as patch:
        patch.setattr(train.time, "monotonic", lambda: float(next(clock)))
        assert make_job(pair, folder).run(deadline=40.0) is None
    assert "The time is over at" in capsys.readouterr().err
    make_job(pair, folder).run()
    expected, found = weights(trained), weights(folder)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_answers_serve_another_training_of_the_same_target(pair, trained, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1.0, steps_in_loss=2)
    make_job(pair, tmp_path / "run", recipe, answers=trained / "answers").run()
    assert not (tmp_path / "run" / "answers").exists() and (tmp_path / "run" / "draft" / FILE).exists()


def test_a_planted_question_of_the_benchmark_is_dropped_and_counted(pair, tmp_path):
    """One that the first shard would ask, word for word, and one of which it would ask thirteen words."""
    found = []
    original = Overlaps.found

    class Watching(Overlaps):
        def found(self, turns):
            found.append(turns)
            return original(self, turns)

    answering = Answering(pair, RECIPE, Texts(), Watching(), tmp_path)
    answering.make_shard("train-00001", lambda new: None)
    exact = next(turns[0] for turns in found if turns[0].endswith("?") and len(turns[0].split()) < 10)
    longer = next(turns[0] for turns in found if len(turns[0].split()) > 16)
    planted = [exact.upper(), "Before " + " ".join(longer.split()[:15]) + " after"]
    questions = [Question(i, "qa", "qa", [turn]) for i, turn in enumerate(planted)]
    (tmp_path / "second").mkdir()
    Answering(pair, RECIPE, Texts(), Overlaps(questions), tmp_path / "second").make_shard("train-00001", lambda new: None)
    before, after = Shard(tmp_path / "train-00001.safetensors"), Shard(tmp_path / "second" / "train-00001.safetensors")
    assert (before.making.overlapping, after.making.overlapping) == (0, 2)

    def asked(shard):
        texts = (shard.text(row) for row in range(len(shard.sizes)))
        return [pair.tokenizer.decode(text.ids[: text.prompt].tolist()) for text in texts]

    for question in (exact, longer):
        assert any(question in prompt for prompt in asked(before)) and not any(question in prompt for prompt in asked(after))


def test_a_folder_of_another_training_is_refused(pair, trained):
    with pytest.raises(UserError, match=r"holds the training of another training, whose recipe.rate is 0.005 and not 0.01"):
        make_job(pair, trained, dataclasses.replace(RECIPE, rate=0.01)).run()
    with pytest.raises(UserError, match=r"the answers of another training, whose questions is None and not abc"):
        make_job(pair, trained, questions=QuestionSet([], "abc", [])).run()
    other = dataclasses.replace(pair, identity=pair.identity | {"seed": 9})
    with pytest.raises(UserError, match=r"whose target.seed is 0 and not 9: give what it was begun with, or choose another"):
        make_job(other, trained).run()


def test_what_is_damaged_is_refused_and_no_code_in_it_runs(pair, trained, tmp_path):
    folder, ran = tmp_path / "run", tmp_path / "RAN"
    shutil.copytree(trained, folder)
    torch.save({"draft": Touch(ran), "optimiser": {}, "state": {}}, folder / "checkpoint.pt")
    with pytest.raises(UserError, match=r"checkpoint.pt cannot be continued"):
        make_job(pair, folder).run()
    assert not ran.exists()
    shard = folder / "answers" / "train-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:99])
    with pytest.raises(UserError, match=r"train-00002.safetensors is damaged .*: delete that file and run"):
        make_job(pair, folder).run()
    shutil.copy(trained / "draft" / FILE, shard)
    with pytest.raises(UserError, match=r"train-00002.safetensors is damaged"):
        make_job(pair, folder).run()
    (folder / "about.json").write_text("{}")
    with pytest.raises(UserError, match=r"about.json is damaged"):
        make_job(pair, folder).run()


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_disk_that_is_too_small_is_told_before_any_answer(pair, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 0, 10**5))
    with pytest.raises(UserError, match=r"Answers of 800 more tokens take about .* GiB, but .* has 0.0 GiB free"):
        make_job(pair, tmp_path / "run").run()
    assert not list((tmp_path / "run" / "answers").glob("*.safetensors"))


def test_prompts_that_leave_no_room_are_told(pair, tmp_path):
    with pytest.raises(UserError, match="No prompt leaves room for 24 answer tokens within 26"):
        make_job(pair, tmp_path / "run", dataclasses.replace(RECIPE, text_tokens=26)).run()


def test_the_command_trains_and_prints_the_drafts_folder(call, pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPECBENCH_PATH", raising=False)
    code, out, err = call(*WORDS, "--tokens", 100, "--epochs", 1, "--steps-in-loss", 1, "--vocabulary", 300)
    folder = tmp_path / out.splitlines()[-1]
    assert code == 0 and folder.parent.name.startswith("tiny-random-") and "accepted per round" in err
    assert FeatureDraft.load(folder, pair.target, pair.tokenizer).ids is None, "the target has no 300 tokens"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--steps-in-loss", "9"), "steps_in_loss=9 of a training must be from 1 to 8"),
        (("--tokens", "none"), "none is no whole number from 1"),
        (("--rate", "2"), "rate=2.0 of a training must be from 1e-08 to 1.0"),
        (("--texts", "nowhere.json"), "nowhere.json cannot be read"),
        (("--specbench", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (("--out", "file"), "file is no folder"),
        (("model_pair=nobody",), "model_pair=nobody is not known: choose one of"),
        (("runtime=eager",), "The command train-draft does not read runtime"),
        (("tasks=qa",), "The command train-draft does not read tasks"),
        (
            ("model_pair.target.shape.model_type=qwen3", "model_pair.draft.shape.model_type=qwen3"),
            "is no Llama and no Qwen2",
        ),
    ],
)
def test_bad_calls_are_refused_in_one_sentence(words, sentence, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, _, err = call(*WORDS, *words)
    assert code == 2 and sentence in err and len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_a_recipe_is_that_of_the_pair_and_every_typo_is_seen():
    assert recipe_for("qwen2.5-coder-0.5b-1.5b").vocabulary == 16384 and recipe_for("any").vocabulary == 4096
    assert recipe_for("any", vocabulary=9, rate=None).vocabulary == 9
    with pytest.raises(UserError, match="align_last=20 must be at most align_first=10"):
        recipe_for("any", align_last=20)
    with pytest.raises(UserError, match="must give each of chat"):
        recipe_for("any", shares={"chat": 1.0})
    assert Writer(Texts(), False, (60, 120)).kinds.keys() == recipe_for("any").shares.keys()
