"""Pages of a mapped file go back to the system and keep what they hold; all other memory stays as it is."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gammatune.models.pages import MAPS, drop_pages, trim_heap

if not MAPS.exists():
    pytest.skip("only on Linux", allow_module_level=True)


def resident_bytes(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def test_the_pages_of_a_mapped_weight_are_let_go_and_read_again(tmp_path):
    save_file({"a": torch.arange(4_000_000.0), "b": torch.ones(1000)}, tmp_path / "x.safetensors")
    held = load_file(tmp_path / "x.safetensors")
    assert held["a"].sum() > 0
    before = resident_bytes("RssFile")
    drop_pages(held["a"])
    assert before - resident_bytes("RssFile") > 0.9 * held["a"].nbytes
    assert torch.equal(held["a"], torch.arange(4_000_000.0)) and held["b"].sum() == 1000


def test_other_memory_keeps_what_it_holds():
    weight = torch.arange(1_000_000)
    drop_pages(weight)
    drop_pages(torch.ones(3))
    assert torch.equal(weight, torch.arange(1_000_000))


def test_free_places_inside_the_heap_are_given_back():
    blocks = [np.ones(12_500) for _ in range(2000)]  # of 100 KB: too small for mappings of their own
    total, before = sum(block.nbytes for block in blocks), resident_bytes("RssAnon")
    del blocks[:-1]  # the last one holds what is below it
    trim_heap()
    assert before - resident_bytes("RssAnon") > 0.8 * total and blocks[0].sum() == 12_500
