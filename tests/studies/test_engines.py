"""Every line that is to be pasted is what its engine reads: JSON, YAML, Python or words of a shell."""

import ast
import json
import shlex

import pytest
import yaml
from report.stored_study import make_curve
from shipped import make_policy

from gammatune.files import write_json
from gammatune.replay.prices import prices_to_json
from gammatune.studies.engines import Models, load_engines, write_line

ENGINES = {engine.name: engine for engine in load_engines()}
OURS = ENGINES["transformers with gammatune"]
AWKWARD = Models('/models/a b\'s "target"', "o'draft: {x}", "/m/a b.gguf", "d'.gguf")
SETTINGS = {"fixed": {"gamma": 7}, "p_min": {"gamma": 9, "p_min": 0.4}, "hf_heuristic": {"gamma": 3}}
SETTINGS |= {"hf_confidence": {"gamma": 8, "threshold": 0.6}}
ABLE = [(engine.name, choice.policy) for engine in ENGINES.values() for choice in engine.choices if choice.policy != "*"]


def words_of(name: str, policy: str, models: Models = AWKWARD) -> list[str]:
    """A shell's words."""
    return shlex.split(write_line(ENGINES[name], make_policy(policy, **SETTINGS[policy]), models).text)


def test_the_engines_are_those_that_the_advice_names():
    assert list(ENGINES) == [
        "vLLM",
        "SGLang",
        "llama.cpp",
        "ik_llama.cpp",
        "TensorRT-LLM",
        "mlx-lm",
        "OpenVINO GenAI",
        "transformers",
        "transformers with gammatune",
    ]
    assert all(engine.version and engine.form in ("shell", "python", "yaml") for engine in ENGINES.values())


@pytest.mark.parametrize(("name", "policy"), ABLE)
def test_a_line_can_be_read_whatever_the_models_are_called(name, policy):
    line = write_line(ENGINES[name], make_policy(policy, **SETTINGS[policy]), AWKWARD)
    plain = write_line(ENGINES[name], None, AWKWARD)
    for text in (line.text, plain.text):
        read = {"shell": shlex.split, "python": ast.parse, "yaml": yaml.safe_load}[ENGINES[name].form](text)
        assert read
    assert plain.settings == {} and line.settings
    assert {value for value in line.settings.values() if value in SETTINGS[policy].values()} == set(
        SETTINGS[policy].values()
    )


def test_vllm_is_given_json():
    words = words_of("vLLM", "fixed")
    assert words[:3] == ["vllm", "serve", AWKWARD.target] and words[3] == "--speculative-config"
    assert json.loads(words[4]) == {"method": "draft_model", "model": AWKWARD.draft, "num_speculative_tokens": 7}


def test_tensorrt_llm_is_given_yaml():
    line = write_line(ENGINES["TensorRT-LLM"], make_policy("fixed", gamma=7), AWKWARD)
    config = {"decoding_type": "DraftTarget", "max_draft_len": 7, "speculative_model": AWKWARD.draft}
    assert yaml.safe_load(line.text) == {"speculative_config": config}
    assert yaml.safe_load(write_line(ENGINES["TensorRT-LLM"], None, AWKWARD).text) == {"speculative_config": None}


def test_sglang_is_given_one_token_more_than_steps():
    words = words_of("SGLang", "fixed")
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given["--speculative-num-steps"] == "7" and given["--speculative-num-draft-tokens"] == "8"
    assert given["--speculative-draft-model-path"] == AWKWARD.draft and given["--speculative-algorithm"] == "STANDALONE"


@pytest.mark.parametrize(
    ("name", "flags"),
    [("llama.cpp", "--spec-draft-n-max --spec-draft-p-min"), ("ik_llama.cpp", "--draft-max --draft-p-min")],
)
def test_llama_cpp_is_given_files_and_both_settings(name, flags):
    most, least = flags.split()
    words = words_of(name, "p_min")
    assert words[:5] == ["llama-server", "-m", AWKWARD.target_file, "-md", AWKWARD.draft_file]
    assert words[words.index(most) + 1] == "9" and words[words.index(least) + 1] == "0.4"
    fixed = words_of(name, "fixed")
    assert fixed[fixed.index(most) + 1] == "7" and fixed[fixed.index(least) + 1] == "0"


def test_transformers_settings_are_those_of_its_generation_config():
    """Its defaults would stop at a confidence of 0.4 and start from 20: each line sets all three."""
    from transformers import GenerationConfig

    for policy, settings in SETTINGS.items():
        if ("transformers", policy) in ABLE:
            line = write_line(ENGINES["transformers"], make_policy(policy, **settings), Models())
            assert len(line.settings) == 3 and all(hasattr(GenerationConfig(), key) for key in line.settings)
            assert all(f"assistant.generation_config.{key} = " in line.text for key in line.settings)


def test_our_own_line_makes_the_policy():
    from gammatune.transformers import speculate

    line = write_line(OURS, make_policy("gammatune_plus", tau=0.3, eta=0.5), Models())
    call = ast.parse(line.text.removeprefix("target.generate(**inputs, custom_generate=").removesuffix(")")).body[0].value
    settings = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    made = speculate(draft=object(), **settings).policy
    assert (made.name, made.tau, made.eta) == ("gammatune_plus", 0.3, 0.5)


def test_our_own_line_names_the_prices_that_a_policy_decides_by(tmp_path):
    from gammatune.transformers import speculate

    write_json(tmp_path / "it's prices.json", prices_to_json(make_curve()))
    for given in ({"prices": str(tmp_path / "it's prices.json")}, {"cost_ratio": 12.0}):
        line = write_line(OURS, make_policy("optimal_stopping"), Models(prices=given))
        call = (
            ast.parse(line.text.removeprefix("target.generate(**inputs, custom_generate=").removesuffix(")")).body[0].value
        )
        settings = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
        assert settings == {"policy": "optimal_stopping", **given}
        assert speculate(draft=object(), **settings).policy.name == "optimal_stopping"
    assert "prices" not in write_line(OURS, make_policy("gammatune"), Models(prices=given)).text


def test_a_policy_that_an_engine_cannot_run_has_no_line():
    with pytest.raises(KeyError, match="vLLM cannot run p_min"):
        write_line(ENGINES["vLLM"], make_policy("p_min"), Models())
