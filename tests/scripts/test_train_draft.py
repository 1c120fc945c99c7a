"""The embedded draft's recipe, from texts to a draft that loads: tiny, but every step of it."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import train_draft
from datasets import Dataset, Features
from draft_training import measure, prompts, teacher, texts
from draft_training.student import start_draft
from draft_training.train import Recipe, make_copying, read_sample, stream_rows
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

SIZES = (
    "--scale 0.02 --rounds 1 --answer-tokens 8 --sources 1 --intermediate 48 --rate 0.01 --tokens 40000 --step-tokens 1000"
)
QUESTIONS = [
    {"question_id": 1, "category": "qa", "turns": ["Why does ice float?"]},
    {"question_id": 2, "category": "writing", "turns": ["A poem.", "Shorter."]},
]
TEXTS = {
    "documents": [f"The {noun} stood by the river. Nobody knew who had built it." for noun in ("tower", "mill", "bridge")],
    "german": ["Der Hund ist alt.", "Das Haus steht am Fluss.", "Wir gehen heute nach Hause."],
    "names": {"person": ["Ada"], "place": ["Rome"], "event": [], "noun": ["lamp"], "passage": ["Rome is a city."]},
}


@pytest.fixture(scope="module")
def words(tmp_path_factory, target):
    """The command line over a work folder in which the teacher has already answered."""
    folder = tmp_path_factory.mktemp("train")
    (folder / "work").mkdir()
    (folder / "work" / "texts.json").write_text(json.dumps(TEXTS))
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    places = {
        "target": target,
        "work": folder / "work",
        "output": folder / "shipped",
        "specbench": folder / "questions.jsonl",
    }
    words = [*(word for name, path in places.items() for word in (f"--{name}", str(path))), *SIZES.split()]
    assert train_draft.main([*words, "--steps", "texts", "teacher"]) == 0
    return words


@pytest.fixture(scope="module")
def trained(words):
    """The work folder after all steps, and the draft shipped."""
    assert train_draft.main(words) == 0
    assert train_draft.main([*words, "--steps", "ship"]) == 0
    return Path(words[words.index("--work") + 1])


def load(folder, target):
    whole = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    return whole, train_draft.load_draft(folder, whole)


def test_the_shipped_draft_loads_and_beats_the_one_it_started_as(trained, target):
    whole, draft = load(trained.parent / "shipped", target)
    samples = teacher.load_samples(trained / "shards", "train-*")
    before, after = (measure.compare_tokens(one, samples)["matched"].mean() for one in (start_draft(whole, [1], 48), draft))
    assert draft.config.num_hidden_layers == 1 and draft.config.intermediate_size == 48
    assert after > before + 0.05
    assert {path.name for path in (trained.parent / "shipped").iterdir()} == set(train_draft.DRAFT_FILES)


def test_the_evaluation_is_that_of_the_shipped_weights(trained, words, target, capsys):
    found = json.loads((trained / "run" / "evaluation.json").read_text())
    assert set(found["specbench"]["tasks"]) == {"overall", "qa", "mt_bench"} and 0.7 <= found["temperature"] <= 1.4
    assert found["specbench"]["tasks"]["mt_bench"]["samples"] == 2, "a sample per turn"
    assert set(found["dev"]["tasks"]) == {"overall", *teacher.HELD_OUT}
    assert sum(row["tokens"] for row in found["dev"]["reliability"]) == found["dev"]["tasks"]["overall"]["tokens"]
    capsys.readouterr()
    assert train_draft.main([*words, "--steps", "measure"]) == 0
    assert measure.describe(found["specbench"]) in capsys.readouterr().out


def test_the_ranking_counts_training_samples_alone(trained):
    counted = np.concatenate([row["ids"] for row in teacher.load_samples(trained / "shards", "train-*")])
    ranking = np.load(trained / "run" / "token_ranking.npy")
    counts = np.bincount(counted, minlength=260)
    assert len(ranking) == 260 and (np.diff(counts[ranking]) <= 0).all()


def test_a_finished_work_folder_is_left_alone(trained, words):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}
    assert train_draft.main([*words, "--steps", "texts", "teacher", "train"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file()}


def test_a_killed_training_ends_with_the_same_weights(trained, words):
    killed = trained / "killed"
    command = [sys.executable, train_draft.__file__, *words, "--steps", "train", "--run", "killed", "--save-every", "3"]
    environment = os.environ | {"PYTHONPATH": str(train_draft.ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while not (killed / "log.jsonl").exists() and child.poll() is None:
            time.sleep(0.01)
        child.kill()
    assert not (killed / "model.safetensors").exists()
    assert train_draft.main([*words, "--steps", "train", "--run", "killed", "--save-every", "3"]) == 0
    lines = [(run / "log.jsonl").read_text().splitlines() for run in (trained / "run", killed)]
    ends = [{**json.loads(line[-1]), "seconds": 0} for line in lines]
    assert ends[0] == ends[1] and ends[0]["tokens"] >= 40000
    expected, found = (load_file(run / "model.safetensors") for run in (trained / "run", killed))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_shard_that_was_cut_is_made_again_and_no_other(words, trained, tmp_path):
    shards = trained / "shards"
    paths = {path: path.stat().st_mtime_ns for path in shards.glob("train-001-*/*.arrow")}
    (shards / "train-001-qa").rename(shards / ".train-001-qa.partial")
    assert train_draft.main([*words, "--steps", "teacher"]) == 0
    changed = [path.parent.name for path, changed in paths.items() if path.stat().st_mtime_ns != changed]
    assert changed == ["train-001-qa"] and not list(shards.glob(".*"))


@pytest.mark.parametrize("step", ["teacher", "train", "ranking", "ship", "measure"])
def test_a_step_without_the_one_before_is_refused(step, target, tmp_path, capsys):
    places = ["--target", str(target), "--work", str(tmp_path / "work"), "--output", str(tmp_path / "out")]
    assert train_draft.main([*places, "--steps", step]) == 2
    ended = capsys.readouterr()
    assert "first." in ended.err or "needs --specbench FILE" in ended.err
    assert "Traceback" not in ended.err


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_what_a_step_finds_damaged_is_refused_and_no_code_in_it_runs(trained, words, tmp_path, capsys):
    ran, work = tmp_path / "RAN", tmp_path / "work"
    shutil.copytree(trained, work)
    words = [*words, "--work", str(work)]

    def refusal(*extra):
        capsys.readouterr()
        assert train_draft.main([*words, *extra]) == 2
        return capsys.readouterr().err

    (work / "other").mkdir()
    torch.save({"draft": Touch(ran), "optimiser": {}, "state": {}}, work / "other" / "checkpoint.pt")
    assert "checkpoint.pt cannot be continued" in refusal("--steps", "train", "--run", "other")
    assert not ran.exists()
    (work / "run" / "recipe.json").write_text("[]")
    assert "recipe.json is damaged (no JSON object)" in refusal("--steps", "evaluate")
    shard = next(work.glob("shards/train-001-qa/*.arrow"))
    shard.write_bytes(shard.read_bytes()[:99])
    assert "train-001-qa holds no samples" in refusal("--steps", "ranking")
    shutil.rmtree(work / "shards")
    (work / "texts.json").write_text("{}")
    assert "texts.json is damaged (it has no documents)" in refusal("--steps", "teacher")
    assert "is no folder" in refusal("--steps", "ranking", "--target", str(tmp_path / "none"))
    assert "The device tpu is not known" in refusal("--steps", "ranking", "--device", "tpu")


def test_answers_and_labels_are_those_of_the_model_alone(target):
    """Batched and padded, each row gets what it would get by itself; a sampled token is among the most likely."""
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    one = teacher.Teacher(model, AutoTokenizer.from_pretrained(target))
    rows = [[5, 9, 200, 31], [17] * 23, [40, 41, 42, 43, 44, 45, 46]]
    together, alone = one.answer(rows, 12), [one.answer([row], 12)[0] for row in rows]
    assert together == alone
    for row, (top_ids, top_p) in zip(rows, one.label(rows), strict=True):
        shares = model(torch.tensor([row])).logits[0, :-1].softmax(-1).topk(teacher.TOP)
        assert top_ids.reshape(-1, teacher.TOP).tolist() == shares.indices.tolist()
        np.testing.assert_allclose(top_p, shares.values.detach().flatten(), rtol=1e-4)
    torch.manual_seed(0)
    sampled = one.answer(rows, 12, sample=True)[1]
    tops = one.label([rows[1] + sampled])[0][0].reshape(-1, teacher.TOP)[len(rows[1]) - 1 :]
    assert all(token in top for token, top in zip(sampled, tops, strict=True)) and sampled != together[1]


def test_a_batch_keeps_to_its_budget_and_an_epoch_has_every_row():
    sizes = [random.Random(0).randint(5, 90) for _ in range(50)]
    groups = teacher.group_rows(sizes, 200)
    assert sorted(sum(groups, [])) == list(range(50))
    assert all(len(group) == 1 or len(group) * max(sizes[row] for row in group) <= 200 for group in groups)
    stream, seen = stream_rows(sizes, Recipe(step_tokens=300)), []
    while len(seen) < 100:
        seen += next(stream)
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50)) and seen[:50] != seen[50:]


def test_weights_are_those_of_the_recipe():
    top_p = np.full((29, teacher.TOP), 0.05, np.float16)
    row = {"ids": np.arange(30), "top_ids": np.arange(29 * teacher.TOP), "top_p": top_p.flatten(), "prompt": 25}
    answer, article = (read_sample({**row, "kind": kind}, Recipe()) for kind in ("qa", "article"))
    assert answer.shares.sum(1).tolist() == pytest.approx([0.0] * 20 + [0.25] * 4 + [1.0] * 5)
    assert answer.shares[-1].tolist() == pytest.approx([0.5 + 0.5 / 8] + [0.5 / 8] * 7)
    torch.testing.assert_close(article.shares, answer.shares / 2)
    copying = make_copying([answer], 6, random.Random(1))
    assert copying.ids[-6:].tolist() == copying.ids[:6].tolist()
    assert copying.shares.sum(1).nonzero().flatten().tolist() == [14, 15, 16], "from the third repeated token on"


def test_rounds_are_counted_as_decoding_would():
    matched = np.array([1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1], bool)
    assert measure.count_rounds(matched, 2) == 5 and measure.count_rounds(matched, 5) == 4
    assert measure.count_rounds(np.zeros(4, bool)) == 4


def test_prompts_that_overlap_with_questions_are_dropped(tmp_path):
    turn = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    (tmp_path / "q.jsonl").write_text(json.dumps({"question_id": 1, "category": "qa", "turns": [turn, "Why?"]}))
    overlaps = teacher.Overlaps(tmp_path / "q.jsonl")
    assert overlaps.found(["why"]) and overlaps.found(["Zero, " + turn.upper()]) and overlaps.found(["other", turn])
    assert not overlaps.found([turn.replace("seven", "7")]) and not overlaps.found(["Why not?"])


def test_every_kind_of_prompt_is_filled():
    found = texts.Texts(**TEXTS)
    for kind in prompts.KINDS:
        made = prompts.make_prompts(kind, 3, "seed", found)
        assert made == prompts.make_prompts(kind, 3, "seed", found)
        assert len({turns[0] for turns in made}) == 3
        assert all(len(turns) == (2 if kind == "chat" else 1) and "{" not in "".join(turns) for turns in made)


def test_packages_become_texts(tmp_path):
    files = {
        "usr/share/doc/anarchism/markdown/a.md.gz": "# Title\n\n"
        + "A [link](u) begins *this* long paragraph of prose. " * 90,
        "usr/share/trans/de-en": "Er ist ein sehr alter Hund. | kurz :: He is a very old dog. | short\nHund :: dog",
        "usr/share/wordnet/data.noun": "  1 licence\n"
        "1 15 n 01 Rome 0 001 @ 1 n 0000 | capital and largest city of Italy; on the Tiber\n"
        "2 06 n 02 lamp 0 standing_lamp 0 000 | a light",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    found = texts.read_texts(tmp_path)
    assert len(found.documents) == 1 and found.documents[0].startswith("A link begins this long paragraph")
    assert found.german == ["Er ist ein sehr alter Hund."]
    assert found.names["place"] == ["Rome"] and found.names["noun"] == ["standing lamp"]
    assert found.names["passage"] == ["Rome is capital and largest city of Italy."]


def test_samples_come_back_as_they_were_stored(tmp_path):
    row = {"kind": "qa", "prompt": 1, "size": 2, "ids": [3, 70_000], "top_ids": list(range(8)), "top_p": [0.125] * 8}
    stored = Dataset.from_list([row], features=Features(teacher.COLUMNS))
    teacher.store_samples(stored, tmp_path / "train-001-qa")
    (found,) = teacher.load_samples(tmp_path, "train-*")
    assert {name: np.array(found[name]).tolist() for name in row} == row
