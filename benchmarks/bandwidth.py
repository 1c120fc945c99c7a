"""How fast is memory read here? python benchmarks/bandwidth.py [--copy-mib N] [--repeats N] [KEY=VALUE ...]

A buffer much larger than the caches is reduced by several operations in turn, and copied. Reading is the fastest
operation's median, since each of them only has to look at every byte; copying counts bytes read and bytes written. These
are the bandwidths that a decode step, which reads every weight once, is held against. The last line is one JSON object.
"""

import sys
from dataclasses import asdict, dataclass

import pandas as pd
import torch
from harness import Arm, make_parser, measure, print_report, run_benchmark

from gammatune.config import RunConfig
from gammatune.errors import UserError
from gammatune.models.devices import GIB, choose_device, free_bytes

COLUMNS = 2**12
COPY_MIB = (1024, 1, "MiB of the buffer that the bandwidth is measured with")


@dataclass(frozen=True)
class Bandwidth:
    """In GB/s (10^9 bytes)."""

    read_gbps: float
    copy_gbps: float
    read_by: str  # the operation that read fastest
    by_operation: dict[str, float]  # median of each


def make_arms(device: torch.device, mib: int) -> list[Arm]:
    """One per operation, on one buffer of `mib` MiB. Raises UserError where two such do not fit."""
    needed, free = 2 * mib * 2**20, free_bytes(device)
    if needed > free:
        raise UserError(
            f"--copy-mib {mib} takes {needed / GIB:.1f} GiB for two buffers, but {free / GIB:.1f} GiB are free: choose "
            "less, though more than the caches hold."
        )
    buffer = torch.ones(mib * 2**18 // COLUMNS, COLUMNS, device=device)  # 4 bytes each
    other, vector = torch.empty_like(buffer), torch.ones(COLUMNS, device=device)
    operations = {
        "sum": buffer.sum,
        "max": buffer.max,
        "matrix times vector": lambda: torch.mv(buffer, vector),
        "copy": lambda: other.copy_(buffer),
    }
    size = buffer.numel() * buffer.element_size() / 1e9

    def run(name: str) -> dict:
        operations[name]()
        return {}

    return [
        Arm({"operation": name, "gigabytes": size * (2 if name == "copy" else 1)}, lambda _, name=name: run(name))
        for name in operations
    ]


def find_bandwidth(measured: pd.DataFrame) -> Bandwidth:
    """From a row per call of the arms above."""
    calls = measured.groupby("operation", sort=False)
    speeds = (calls["gigabytes"].first() / calls["seconds"].median()).to_dict()
    fastest = max((name for name in speeds if name != "copy"), key=speeds.get)
    return Bandwidth(speeds[fastest], speeds["copy"], fastest, speeds)


def report(options, config: RunConfig) -> int:
    device = choose_device(config.runtime.device)
    found = find_bandwidth(measure(make_arms(device, options.copy_mib), range(options.repeats), device))
    table = pd.DataFrame(found.by_operation.items(), columns=["operation", "GB/s"])
    print_report([table], {**asdict(found), "mib": options.copy_mib}, device, digits=1)
    return 0


def build_parser():
    return make_parser(__doc__, {"copy_mib": COPY_MIB, "repeats": (15, 1, "timed calls of each operation")})


def main(words: list[str]) -> int:
    return run_benchmark(build_parser(), report, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
