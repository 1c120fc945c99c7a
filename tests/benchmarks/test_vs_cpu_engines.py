"""Our arms beside engines: real arms over a tiny GGUF pair, what is compared with what, and what needs no engine."""

from dataclasses import replace

import engines
import numpy as np
import pandas as pd
import pytest
from engines import Engine, Job, Offer, Way, Weights
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, quants
from harness import Decoder, Speeds
from models.tiny_checkpoints import write_gguf

from gammatune.compose import compose_config
from gammatune.models.pair import load_pair
from gammatune.models.sources import locate
from gammatune.policies import POLICIES

SMALL = ("--questions", 3, "--tokens", 10, "--gammas", "1,3", "runtime=eager", "runtime.dtype=fp32")
OURS = {("adaptive", "gammatune"), ("autoregressive", "gammatune"), ("fixed_1", "gammatune"), ("fixed_3", "gammatune")}
ABSENT = Engine("Absent", "absent-package", "absent_module", lambda job: Offer())


@pytest.fixture
def benchmark(load_benchmark):
    return load_benchmark("vs_cpu_engines")


@pytest.fixture
def gguf_words(tmp_path, monkeypatch):
    """A pair whose two models are one tiny GGUF file."""
    monkeypatch.setenv("GAMMATUNE_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf")
    paths = [f"model_pair.{role}.path={tmp_path / 'tiny.gguf'}" for role in ("target", "draft")]
    words = ["model_pair=qwen2.5-coder-0.5b-1.5b", "model_pair.target.ends=[]", "model_pair.chat_template=plain"]
    return [*words, "model_pair.draft.cpu_quantization=null", *paths]


@pytest.fixture
def decoding_twice(benchmark, gguf_words, monkeypatch):
    """The engines are one that is absent, and our own eager decoder; the place of a token that this one gets wrong."""
    wrong = []

    def load(job: Job) -> Offer:
        pair = load_pair(compose_config(gguf_words).model_pair, "cpu", "fp32")
        decoder, alone, fixed = Decoder(pair, "eager"), POLICIES["ar"](), POLICIES["fixed"](gamma=3)

        def answer(prompt, policy, places=()):
            ids = decoder.answer(prompt, policy, job.tokens).output_ids
            return [(token + 1) % 250 if place in places else token for place, token in enumerate(ids)]

        ways = [
            Way("autoregressive", (32.0,), lambda prompt: answer(prompt, alone)),
            Way("fixed_3", (32.0, 32.0), lambda prompt: answer(prompt, fixed, wrong)),
        ]
        return Offer(ways, ["Its draft is its target."])

    monkeypatch.setattr(benchmark, "ENGINES", (ABSENT, Engine("Eager", "torch", "torch", load)))
    return wrong


def test_every_arm_has_its_speed_and_what_it_is_compared_with(benchmark, call, gguf_words, decoding_twice):
    ended = call(benchmark, *SMALL, *gguf_words)
    result = ended.result
    rows = {(row["decoding"], row["by"]): row for row in result["rows"]}
    assert ended.code == 0
    assert rows.keys() == OURS | {("autoregressive", "Eager"), ("fixed_3", "Eager")}
    for (kind, by), row in rows.items():
        assert row["weights"] == ("32 bits" if kind == "autoregressive" else "32 + 32 bits")
        assert row["tokens_per_second"] > 0
        for name, given in {"speedup": kind != "autoregressive", "ours": by == "Eager"}.items():
            assert (row[name] is not None) == given
            assert not given or 0 < row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        assert row["differs_at"] is None
        assert row["equal"] == (None if (kind, by) == ("autoregressive", "gammatune") else 3)
    over = result["ours_over"]["Eager"]
    assert over.keys() == {"autoregressive", "best_fixed", "best"}, "it has no adaptive arm"
    assert over["best_fixed"]["theirs"] == "fixed_3" and over["best_fixed"]["ours"] in ("fixed_1", "fixed_3")
    assert all(0 < found["low"] <= found["median"] <= found["high"] for found in over.values())
    assert "Absent is not installed: run `pip install absent-package` to compare with it." in ended.out
    assert result["notes"][0] == "Its draft is its target." and result["engines"].keys() == {"Eager"}


def test_what_an_engine_answers_otherwise_is_counted_and_no_failure(benchmark, call, gguf_words, decoding_twice):
    decoding_twice.append(4)
    ended = call(benchmark, *SMALL, *gguf_words)
    found = {(row["decoding"], row["by"]): (row["equal"], row["differs_at"]) for row in ended.result["rows"]}
    assert ended.code == 0
    assert found["fixed_3", "Eager"] == (0, 4) and found["fixed_3", "gammatune"] == (3, None)


def test_a_wrong_answer_of_ours_is_named_and_ends_with_1(benchmark, call, gguf_words, decoding_twice, corrupt):
    corrupt(1)
    ended = call(benchmark, *SMALL, *gguf_words)
    assert ended.code == 1
    assert "Wrong answer of fixed_1 to question 1, from token 3 on." in ended.out
    assert "Wrong answer of fixed_3" not in ended.out


def test_a_final_end_of_sequence_is_no_difference(benchmark):
    labels = {"decoding": "autoregressive", "weights": "4 bits"}
    answers = {"gammatune": [(5, 6, 2), (5, 6, 7), (5, 6, 2)], "Engine": [(5, 6), (5, 9, 7), (5, 6, 7)]}
    rows = [
        {**labels, "by": by, "input": place, "ids": ids} for by, found in answers.items() for place, ids in enumerate(found)
    ]
    (found,) = benchmark.compare(pd.DataFrame(rows), ends=(2,)).items()
    assert found == (("autoregressive", "Engine", "4 bits"), benchmark.Agreement(equal=1, differs_at=1.5))


def test_each_side_brings_its_fastest_arm(benchmark):
    speeds = {
        ("autoregressive", "gammatune", "8 bits"): 6,
        ("fixed_3", "gammatune", "8 + 8 bits"): 12,
        ("fixed_5", "gammatune", "8 + 8 bits"): 9,
        ("autoregressive", "Engine", "5 bits"): 8,
        ("fixed_3", "Engine", "5 + 5 bits"): 2,
        ("fixed_5", "Engine", "5 + 5 bits"): 3,
    }
    rows = [
        {**dict(zip(benchmark.LABELS, key, strict=True)), "input": q, "repeat": 0, "seconds": 1.0, "ids": (0,) * speed}
        for key, speed in speeds.items()
        for q in range(2)
    ]
    found = benchmark.summarise(Speeds(pd.DataFrame(rows), benchmark.LABELS))["Engine"]
    assert {name: (each["median"], each["ours"], each["theirs"]) for name, each in found.items()} == {
        "autoregressive": (0.75, "autoregressive", "autoregressive"),
        "best_fixed": (4.0, "fixed_3", "fixed_5"),
        "best": (1.5, "fixed_3", "autoregressive"),
    }


def write_q5(path, source):
    """The file's matrices in Q5_0, which OpenVINO does not read."""
    reader, writer = GGUFReader(source), GGUFWriter(path, "qwen2")
    writer.add_context_length(512)
    writer.add_token_list(["a", "b"])
    for tensor in reader.tensors:
        matrix = tensor.data.ndim > 1
        kind = GGMLQuantizationType.Q5_0 if matrix else GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, quants.quantize(tensor.data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Weights(path, frozenset({GGMLQuantizationType.Q5_0, GGMLQuantizationType.F32}), count=1, size=1)


def test_tensors_that_openvino_cannot_read_become_others_of_nearly_the_same_numbers(tmp_path):
    write_gguf(tmp_path / "tiny.gguf")
    given, notes = write_q5(tmp_path / "q5.gguf", tmp_path / "tiny.gguf"), []
    made = engines.make_readable(given, tmp_path / "q8.gguf", notes)
    old, new = GGUFReader(given.path), GGUFReader(made.path)
    assert made.kinds == {GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32} <= engines.READABLE
    assert notes == ["OpenVINO GenAI does not read the draft's Q5_0 tensors, so they were made Q8_0 for it."]
    fields = [{f.name: f.contents() for f in r.fields.values() if not f.name.startswith("GGUF.")} for r in (old, new)]
    assert fields[0] == fields[1] and fields[0]["tokenizer.ggml.tokens"] == ["a", "b"]
    assert [tensor.name for tensor in old.tensors] == [tensor.name for tensor in new.tensors]
    for before, after in zip(old.tensors, new.tensors, strict=True):
        wide = [quants.dequantize(t.data, GGMLQuantizationType(t.tensor_type)) for t in (before, after)]
        step = np.abs(wide[0]).max() / 127 if before.data.ndim > 1 else 0
        assert wide[0].shape == wide[1].shape and np.abs(wide[0] - wide[1]).max() <= step
    assert engines.make_readable(made, tmp_path / "again.gguf", notes) is made and len(notes) == 1


def test_bits_of_a_weight_count_scales_and_every_tensor(gguf_words, tmp_path):
    kinds = [GGMLQuantizationType.Q8_0, GGMLQuantizationType.F16]
    found = engines.count_weights(tmp_path, kinds, [34 * 10, 320])
    assert (found.count, found.size, found.bits) == (640, 980, (8.5 + 16) / 2)
    checkpoint = compose_config(gguf_words).model_pair.target
    found = engines.weigh(locate("target", checkpoint, "wheels"))
    assert (found.path, found.kinds, found.bits) == (tmp_path / "tiny.gguf", {GGMLQuantizationType.F32}, 32.0)


def test_a_target_that_openvino_cannot_open_is_a_sentence(tmp_path):
    """Installed or not: it is one more reason to have no arms."""
    (tmp_path / "empty.gguf").write_bytes(b"")
    nothing = Weights(tmp_path / "empty.gguf", frozenset(), count=0, size=0)
    offer = engines.load_openvino(Job(nothing, nothing, (0,), (1,), 4, 16, 1, str.split))
    assert offer.ways == []
    assert len(offer.notes) == 1 and offer.notes[0].startswith("OpenVINO GenAI refuses the target (")


def test_without_any_engine_one_sentence_says_what_to_install(benchmark, call, monkeypatch):
    monkeypatch.setattr(benchmark, "ENGINES", (ABSENT, replace(ABSENT, title="Other")))
    ended = call(benchmark)
    assert (ended.code, ended.out) == (2, "")
    assert (
        ended.err == "Of the engines to compare with (Absent, Other) none is installed: run `pip install absent-package`.\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--gammas", "0,3"), "--gammas 0,3 must be different whole numbers of 1 or more"),
        (("--gammas", "3,3"), "--gammas 3,3 must be different whole numbers of 1 or more"),
        (("--gammas", "a"), "--gammas a must be different whole numbers of 1 or more"),
        (("--questions", 1), "--questions 1 must be 2 or more."),
        (("runtime.device=cuda",), "runtime.device=cuda is not compared here"),
        ((), "The engines read GGUF files, and the pair tiny-random is none"),
    ],
)
def test_bad_input_is_one_sentence(benchmark, call, decoding_twice, words, sentence):
    ended = call(benchmark, *words)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith(sentence)
    assert ended.err.count("\n") == 1


def test_a_target_that_llama_cpp_cannot_open_is_a_sentence(tmp_path):
    pytest.importorskip("xllamacpp")
    nothing = Weights(tmp_path / "nothing.gguf", frozenset(), 1, 1)
    offer = engines.load_llama_cpp(Job(nothing, nothing, (0,), (1,), 4, 16, 1, str.split))
    assert not offer.ways and len(offer.notes) == 1 and offer.notes[0].startswith("llama.cpp refuses the target (")
