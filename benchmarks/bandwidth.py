"""How fast is memory read here? python benchmarks/bandwidth.py [--copy-mib N] [--repeats N] [KEY=VALUE ...]

A buffer much larger than the caches is reduced by several operations in turn, and copied. Reading is the fastest
operation's median, since each of them only has to look at every byte; copying counts bytes read and bytes written. These
are the bandwidths that a decode step, which reads every weight once, is held against. The last line is one JSON object.
"""

import sys
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
import torch
from gammatune.decoding.clock import Clock
from harness import describe_machine, make_parser, print_machine, print_result, print_table, rotate, run_benchmark, time_call

from gammatune.config import RunConfig
from gammatune.errors import UserError
from gammatune.models.devices import GIB, choose_device, free_bytes

COLUMNS = 2**12
COPY_MIB = (1024, 1, "MiB of the buffer that the bandwidth is measured with")


@dataclass(frozen=True)
class Bandwidth:
    """In GB/s (10^9 bytes). read_by: the operation that read fastest. by_operation: median of each."""

    read_gbps: float
    copy_gbps: float
    read_by: str
    by_operation: dict[str, float]


def measure_bandwidth(device: torch.device, mib: int = 1024, repeats: int = 15) -> Bandwidth:
    """Read and copy a buffer of `mib` MiB, all threads, operations interleaved. Raises UserError where two do not fit."""
    require_room(device, mib)
    buffer = torch.ones(mib * 2**18 // COLUMNS, COLUMNS, device=device)  # 4 bytes each
    other, vector = torch.empty_like(buffer), torch.ones(COLUMNS, device=device)
    size = buffer.numel() * buffer.element_size()
    operations = {
        "sum": (buffer.sum, size),
        "max": (buffer.max, size),
        "matrix times vector": (lambda: torch.mv(buffer, vector), size),
        "copy": (lambda: other.copy_(buffer), 2 * size),
    }
    seconds = time_operations({name: work for name, (work, _) in operations.items()}, Clock(device), repeats)
    speeds = {name: moved / np.median(seconds[name]) / 1e9 for name, (_, moved) in operations.items()}
    reading = {name: speed for name, speed in speeds.items() if name != "copy"}
    fastest = max(reading, key=reading.get)
    return Bandwidth(reading[fastest], speeds["copy"], fastest, speeds)


def require_room(device: torch.device, mib: int) -> None:
    needed, free = 2 * mib * 2**20, free_bytes(device)
    if needed > free:
        raise UserError(
            f"--copy-mib {mib} takes {needed / GIB:.1f} GiB for two buffers, but {free / GIB:.1f} GiB are free: choose "
            "less, though more than the caches hold."
        )


def time_operations(operations: dict, clock: Clock, repeats: int) -> dict[str, list[float]]:
    """Seconds of every call but each operation's first."""
    for work in operations.values():
        time_call(clock, work)
    seconds = {name: [] for name in operations}
    for repeat in range(repeats):
        for name in rotate(list(operations), repeat):
            seconds[name].append(time_call(clock, operations[name])[1])
    return seconds


def report(options, config: RunConfig) -> int:
    device = choose_device(config.runtime.device)
    machine, found = describe_machine(device), measure_bandwidth(device, options.copy_mib, options.repeats)
    print_machine(machine)
    frame = pd.DataFrame(found.by_operation.items(), columns=["operation", "GB/s"])
    print_table(frame, 1)
    print_result({**asdict(found), "mib": options.copy_mib, **machine})
    return 0


def main(words: list[str]) -> int:
    numbers = {"copy_mib": COPY_MIB, "repeats": (15, 1, "timed calls of each operation")}
    return run_benchmark(make_parser(__doc__, numbers, dtypes=False), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
