"""Clocks and load while a run works, sampled by a child process so that the timed one is left alone.

Run as a file, it imports nothing of this package: python monitor.py FILE PERIOD_S PARENT_PID GPU appends a JSON line per
sample until its parent is gone or ends it. GPU: the UUID of the device that decodes, empty on a CPU.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

PERIOD_S = 2.0


@contextmanager
def watch_machine(file: Path, period_s: float = PERIOD_S, gpu: str = ""):
    """Sample into `file` while the block runs; a machine that cannot be sampled is no reason to stop a run.

    gpu: UUID of the device that decodes (`gpu_uuid`), empty on a CPU.
    """
    command = [sys.executable, __file__, str(file), str(period_s), str(os.getpid()), gpu]
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        yield
        return
    try:
        yield
    finally:
        child.kill()
        child.wait()


def sample(gpu) -> dict:
    """time: seconds since 1970. load: runnable processes over the last minute. cpu_mhz: mean over cores."""
    return {"time": round(time.time(), 1), "load": os.getloadavg()[0], "cpu_mhz": read_cpu_mhz(), **read_gpu(gpu)}


def read_cpu_mhz() -> float | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
    return round(sum(clocks) / len(clocks), 1) if clocks else None


def open_gpu(uuid: str):
    """(NVML, handle of that GPU), or None without a UUID, the [gpu] extra, a driver or such a GPU.

    By UUID, since torch counts the devices that CUDA_VISIBLE_DEVICES leaves and NVML counts all.
    """
    if not uuid:
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except Exception:  # NVML has its own errors, and none of them matters here
        return None


def read_gpu(gpu) -> dict:
    if gpu is None:
        return {}
    nvml, handle = gpu
    return {
        "sm_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "sm_max_mhz": nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM),
        "gpu_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
    }


def main(file: str, period_s: str, parent: str, uuid: str) -> None:
    gpu = open_gpu(uuid)
    with Path(file).open("a", buffering=1) as log:
        while os.getppid() == int(parent):
            log.write(json.dumps(sample(gpu)) + "\n")
            time.sleep(float(period_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
