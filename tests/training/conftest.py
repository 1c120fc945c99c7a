"""A tiny target, what it answered, and a draft that is to be trained."""

import pytest
import torch

from gammatune.models.feature_draft import FeatureDraft
from gammatune.models.pair import random_pair
from gammatune.training.teacher import Teacher

PROMPTS = ("hello you", "what is this thing, and where?", "a")


@pytest.fixture(scope="package")
def pair():
    return random_pair()


@pytest.fixture(scope="package")
def answered(pair):
    """Texts of different lengths, each with the target's own answer."""
    return Teacher(pair, 24).answer([pair.tokenizer.encode(prompt) for prompt in PROMPTS])


@pytest.fixture
def draft(pair):
    """A draft over every second token, its weights moved a little so that no part of it is plain."""
    torch.manual_seed(0)
    made = FeatureDraft.from_target(pair.target, torch.arange(1, 260, 2))
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.02 * torch.randn_like(weight)
    return made
