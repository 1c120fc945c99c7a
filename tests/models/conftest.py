"""Checkpoints and pair configs that the tests of this folder share."""

import pytest
from tiny_checkpoints import checkpoint_maker

from gammatune.config import Checkpoint, PairConfig


@pytest.fixture
def make_checkpoint(tmp_path):
    """make_checkpoint(name, extra=(), rows=None, **sizes) -> folder of a complete checkpoint."""
    return checkpoint_maker(tmp_path)


@pytest.fixture
def make_pair_config():
    """make_pair_config(target_folder, draft_folder, **fields) -> PairConfig that loads both from disk."""

    def make(target, draft, **fields):
        target, draft = Checkpoint(path=str(target)), Checkpoint(path=str(draft))
        return PairConfig(name="test", target=target, draft=draft, **fields)

    return make
