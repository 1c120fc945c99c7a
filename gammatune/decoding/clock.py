"""Stopwatch for rounds: host time on a CPU, device events on CUDA, so that timing a round never waits for the device."""

import time

import torch


class Clock:
    """Marks in time and the milliseconds between them; on CUDA `between` is valid once `synchronize` was called."""

    def __init__(self, device: torch.device):
        self.on_cuda = device.type == "cuda"
        self.device = device

    def mark(self):
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start, end) -> float:
        return start.elapsed_time(end) if self.on_cuda else (end - start) * 1e3

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.device)
