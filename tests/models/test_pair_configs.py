"""Every shipped pair is a complete, valid PairConfig, and says how to run it."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from gammatune.config import Checkpoint, PairConfig
from gammatune.models.load import Demand, count_weights, make_config
from gammatune.models.sources import DRAFT_FOLDER

FOLDER = Path(__file__).parents[2] / "gammatune" / "configs" / "model_pair"
PAIRS = sorted(FOLDER.glob("*.yaml"))

# Published parameter counts, target and draft, in millions.
SIZES = {
    "vicuna-68m-7b": (6738, 68),
    "vicuna-68m-13b": (13016, 68),
    "vicuna-68m-33b": (32529, 68),
    "vicuna-160m-13b": (13016, 162),
    "llama-68m-llama-2-7b": (6738, 68),
    "llama-3.2-1b-3.1-8b": (8030, 1236),
    "llama-3.1-8b-70b": (70554, 8030),
    "qwen2.5-coder-0.5b-1.5b": (1777, 630),  # with an LM head of their own, as their files have it
}


def read(path):
    settings = OmegaConf.load(path)
    settings.pop("defaults")
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PairConfig), settings))


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_a_shipped_pair_is_complete(path):
    config = read(path)
    assert config.name == path.stem
    assert path.read_text().startswith(f"# @package model_pair\n# python run.py model_pair={path.stem}\n")
    assert OmegaConf.load(path).defaults == ["schema/pair@_here_", "_self_"]


@pytest.mark.parametrize("name", SIZES)
def test_a_shape_has_the_published_number_of_parameters(name):
    config = read(FOLDER / f"{name}.yaml")
    counts = [
        count_weights(Demand(make_config(role.shape), Checkpoint(), torch.float16)) / 2e6
        for role in (config.target, config.draft)
    ]
    assert counts == pytest.approx(SIZES[name], rel=0.005)


def test_all_pairs_are_covered():
    assert {path.stem for path in PAIRS} == {*SIZES, "smollm2-draft-135m", "tiny-random"}


def test_the_shipped_drafts_shape_is_the_one_in_its_config():
    shape = vars(read(FOLDER / "smollm2-draft-135m.yaml").draft.shape) | {"head_dim": 64}
    config = json.loads((DRAFT_FOLDER / "config.json").read_text())
    assert {key: config[key] for key in shape} == shape


def test_a_pair_of_ones_own_needs_no_shapes_and_for_drafters_without_a_model_no_draft():
    settings = {"name": "own", "target": {"id": "somebody/model"}}
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PairConfig), settings))
    assert config.draft == Checkpoint() and config.target.shape is None
