"""The device that a pair computes on: tokens there, tokens back, and a stopwatch that never waits for it."""

import time

import torch


class Device:
    """Moves tokens between host and device and marks moments: host time on a CPU, events on CUDA."""

    def __init__(self, device: torch.device):
        self.device = device
        self.on_cuda = device.type == "cuda"
        self.reads = 0  # device-to-host transfers, each of which waits for the device

    @property
    def reads_are_free(self) -> bool:
        """On a CPU nothing runs ahead of the host, so looking at a token costs nothing."""
        return not self.on_cuda

    def upload(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=self.device)

    def read(self, tensor: torch.Tensor) -> list:
        """The one way from device to host."""
        self.reads += 1
        return tensor.tolist()

    def mark(self):
        """A moment, for `between`."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def between(self, start, end) -> float:
        """Milliseconds between two marks; on CUDA valid once `synchronize` was called."""
        return start.elapsed_time(end) if self.on_cuda else (end - start) * 1e3

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
