"""What a process needs before anything heavy is imported: streams that hold, and a quiet Ctrl-C. Imports nothing of ours."""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED = 130  # exit code after Ctrl-C, as shells count it
STDOUT = "standard output"  # file name in the errors of `Output`


class Output(io.TextIOWrapper):
    """Standard output whose errors name it: a full disk under it, or a reader that left, is no trouble with our files."""

    def write(self, text: str) -> int:
        with naming_stdout():
            return super().write(text)

    def flush(self) -> None:
        with naming_stdout():
            super().flush()


@contextmanager
def naming_stdout() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = STDOUT
        raise


class Messages(io.TextIOWrapper):
    """Standard error. Where it cannot be written there is nobody to tell, and the work goes on."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def hold_streams() -> None:
    """Make the three standard streams usable, whatever the shell closed, redirected or set as their encoding."""
    # A closed one would be given to the first file we open, and what libraries print would land in it
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(free)
    for name, kind, number in (("stdout", Output, 1), ("stderr", Messages, 2)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, kind(io.FileIO(number, "w", closefd=False), encoding="utf-8", errors="backslashreplace"))
        elif stream is getattr(sys, f"__{name}__"):  # else somebody captures it
            how = {"encoding": stream.encoding, "line_buffering": stream.line_buffering}
            setattr(sys, name, kind(stream.detach(), errors="backslashreplace", **how))
    logging.raiseExceptions = False  # a handler would print what `Output` raises, in pages; its last flush raises again
    if sys.stdin is None:
        sys.stdin = open(0)  # noqa: PTH123, SIM115  for the life of the process


@contextmanager
def loading() -> Iterator[None]:
    """Ctrl-C ends the process at once while libraries are imported.

    Not every import passes an interrupt on, some as another error, some in pages of text; and nothing is written yet.
    """
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def leave(*_) -> None:
    with suppress(OSError):
        os.write(2, b"gammatune: Interrupted before anything was written.\n")
    os._exit(INTERRUPTED)
