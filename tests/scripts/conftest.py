"""Scripts are called inside this process; checkpoints for them are those of tests/models."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SCRIPTS = TESTS.parent / "scripts"
sys.path[:0] = [str(SCRIPTS), str(TESTS / "models")]


@pytest.fixture(scope="session")
def target(tmp_path_factory):
    """A tiny target with a tokenizer of 260 tokens that has a chat template."""
    from tiny_checkpoints import save_llama, save_tokenizer
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("target")
    size = save_tokenizer(folder, extra=["<odd>"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    tokenizer.save_pretrained(folder)
    save_llama(folder, size, max_position_embeddings=8192, initializer_range=0.2)
    return folder
