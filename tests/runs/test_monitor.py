"""The machine is sampled by a child that sleeps, and the child never outlives its parent."""

import json
import os
import subprocess
import sys
import time
import types

import torch

from gammatune.runs import monitor, provenance


def wait_for(holds, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def test_samples_while_the_block_runs_and_no_longer(tmp_path):
    file = tmp_path / "machine.jsonl"
    with monitor.watch_machine(file, period_s=0.05):
        assert wait_for(lambda: file.exists() and len(file.read_text().splitlines()) >= 3)
    before = file.read_text()
    first = json.loads(before.splitlines()[0])
    assert first["load"] >= 0 and abs(first["time"] - time.time()) < 60
    time.sleep(0.3)
    assert file.read_text() == before


def test_a_killed_parent_takes_its_monitor_along(tmp_path):
    file = tmp_path / "machine.jsonl"
    code = (
        "import sys, time, pathlib; from gammatune.runs.monitor import watch_machine\n"
        "with watch_machine(pathlib.Path(sys.argv[1]), 0.05): time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(file)])
    assert wait_for(lambda: file.exists() and file.stat().st_size > 0)
    parent.kill()
    parent.wait()
    size = [0]

    def quiet() -> bool:
        size.append(file.stat().st_size)
        time.sleep(0.3)
        return size[-1] == file.stat().st_size

    assert wait_for(quiet)


def test_an_unwritable_file_does_not_disturb(tmp_path):
    with monitor.watch_machine(tmp_path / "no" / "folder" / "machine.jsonl", period_s=0.05):
        assert os.getpid()


def test_a_gpu_is_found_by_its_uuid_and_a_cpu_asks_for_none(monkeypatch):
    """torch counts the GPUs that CUDA_VISIBLE_DEVICES leaves, NVML counts all: an index names two of them."""
    nvml = types.SimpleNamespace(nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: f"handle of {uuid}")
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert monitor.open_gpu("GPU-1f3a") == (nvml, "handle of GPU-1f3a")
    assert monitor.open_gpu("") is None
    assert provenance.gpu_uuid(torch.device("cpu")) == ""
    properties = types.SimpleNamespace(uuid="1f3a")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert provenance.gpu_uuid(torch.device("cuda", 1)) == "GPU-1f3a"
