"""Where a result comes from: machine, packages, commit, command. Best effort; never fails a run."""

import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from gammatune import __version__
from gammatune.machine import name_cpu
from gammatune.runs.monitor import open_gpu

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "hydra-core", "datasets", "safetensors", "gguf", "accelerate")


def describe_environment(device: torch.device, identity: dict) -> dict:
    """Plain JSON: taken before the first forward. identity: of the pair's weights."""
    return {
        "gammatune": __version__,
        "git": describe_commit(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": name_device(device),
        "cpu": name_cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "cuda": torch.version.cuda,
        "gpu": describe_gpu(device),
        "packages": {name: find_version(name) for name in PACKAGES},
        "pair": identity,
    }


def name_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else name_cpu()


def describe_gpu(device: torch.device) -> dict | None:
    """Clocks, power limit and driver where NVML is installed (the [gpu] extra)."""
    opened = open_gpu(gpu_uuid(device))
    if opened is None:
        return None if device.type == "cpu" else {"error": "NVML does not know this GPU, or is not installed"}
    nvml, handle = opened
    return {
        "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "sm_clock_max_mhz": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "power_limit_w": nvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000,
        "temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
        "driver": str(nvml.nvmlSystemGetDriverVersion()),
    }


def gpu_uuid(device: torch.device) -> str:
    """Of the device as NVML names it; empty on a CPU."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""


def describe_commit() -> str | None:
    """Commit of the source tree, with "+changes" where it has uncommitted ones; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        commit = run_git(root, "rev-parse", "HEAD")
        changed = run_git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changed else "")


def run_git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def find_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def measure_peaks(device: torch.device) -> dict:
    """Highest memory of this process so far, in MiB."""
    device_peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    host_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_host_mib": round(host_peak, 1), "peak_device_mib": device_peak}
