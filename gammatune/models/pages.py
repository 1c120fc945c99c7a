"""Memory that weights leave behind: pages of a mapped file until all of it is let go, and free places inside the heap."""

import ctypes
import mmap
from pathlib import Path

import torch

MAPS = Path("/proc/self/maps")
DONT_NEED = 4  # MADV_DONTNEED of Linux


def drop_pages(weight: torch.Tensor) -> None:
    """Let go of the pages under a weight that nobody reads again; no effect unless it is part of a mapped file on Linux.

    What was read from the file can be read from it again, so even a wrong promise would cost time only.
    """
    start = -(-weight.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (weight.data_ptr() + weight.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if start < end and is_mapped(start, end):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONT_NEED)


def trim_heap() -> None:
    """Give free pages inside the heap back to the system; no effect without the GNU C library.

    That keeps what is freed, up to 32 MB a piece, for allocations to come, and one in use above it holds it all.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def is_mapped(start: int, end: int) -> bool:
    """Whether these addresses lie in one private mapping of a file."""
    for line in MAPS.read_text().splitlines() if MAPS.exists() else ():
        addresses, rights, _, _, inode = line.split()[:5]
        first, last = (int(address, 16) for address in addresses.split("-"))
        if first <= start and end <= last:
            return inode != "0" and rights.endswith("p")
    return False
