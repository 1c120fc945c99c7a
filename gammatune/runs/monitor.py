"""Clocks and load while a run works, sampled by a child process so that the timed one is left alone.

Run as a file, it imports nothing of this package: python monitor.py FILE PERIOD_S PARENT_PID GPU appends a JSON line per
sample until its parent is gone or ends it. GPU: the UUID of the device that decodes, empty on a CPU. The file is optional:
a line that was cut short, damaged or changed is left out when it is read, as its checksum tells.
"""

import json
import os
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

PERIOD_S = 2.0
#: what a sample may hold, and the largest plausible value
LARGEST = {"time": 1e11, "load": 1e6, "cpu_mhz": 1e6, "sm_mhz": 1e6, "sm_max_mhz": 1e6, "gpu_c": 1e3}
LONGEST_LINE = 1000  # bytes


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


def to_line(taken: dict) -> str:
    """A sample as a JSON line that carries the CRC-32 of its other fields."""
    return json.dumps(taken | {"crc": checksum(taken)}) + "\n"


def checksum(taken: dict) -> int:
    return zlib.crc32(json.dumps(taken, sort_keys=True).encode())


def read_samples(file: Path) -> list[dict]:
    """The sound lines of a file; none where it is missing or no file. Lines of older runs have no checksum."""
    if not file.is_file():
        return []
    with file.open("rb") as lines:
        return [found for line in lines if (found := read_sample(line)) is not None]


def read_sample(line: bytes) -> dict | None:
    try:
        taken = json.loads(line) if len(line) <= LONGEST_LINE else None
    except (ValueError, RecursionError):  # two lines in one, or half of one: the sampler is killed at the end of a run
        return None
    if not isinstance(taken, dict) or taken.pop("crc", None) not in (None, checksum(taken)):
        return None
    known = {name: value for name, value in taken.items() if value is not None}  # clocks may be unknown
    plausible = all(type(value) in (int, float) and 0 <= value <= LARGEST.get(name, -1) for name, value in known.items())
    return taken if plausible and {"time", "load"} <= known.keys() else None


def main(file: str, period_s: str, parent: str, uuid: str) -> None:
    gpu = open_gpu(uuid)
    with Path(file).open("a", buffering=1) as log:
        while os.getppid() == int(parent):
            log.write(to_line(sample(gpu)))
            time.sleep(float(period_s))


if __name__ == "__main__":
    main(*sys.argv[1:])
