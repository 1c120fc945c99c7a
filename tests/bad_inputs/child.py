"""A command in a child that is forked off this process: what is imported here need not be imported there again."""

import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bad_inputs.case import Outcome

LIMIT_S = 10.0


@dataclass(eq=False)
class Child:
    """A command at work in a folder of its own, as a shell would start it."""

    words: tuple[str, ...]
    folder: Path
    prepare: Callable[[], None] = lambda: None  # in the child, before the command: files, signals, other streams
    limit_s: float = LIMIT_S
    started: float = field(default_factory=time.perf_counter)
    outcome: Outcome | None = None

    def __post_init__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            self.work()

    @property
    def out(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.out")

    @property
    def err(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.err")

    def work(self) -> None:
        """Of the child, which never returns from here."""
        code = 1
        try:
            os.setsid()
            faulthandler.disable()  # of the tests: a crash is told by its signal
            os.chdir(self.folder)
            for number, path, how in ((0, os.devnull, os.O_RDONLY), (1, self.out, os.O_WRONLY), (2, self.err, os.O_WRONLY)):
                os.dup2(os.open(path, how | os.O_CREAT | os.O_TRUNC), number)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            sys.stderr = open_stream(2)
            self.prepare()
            code = run_as_process(self.words)
        except BaseException:
            traceback.print_exc()  # to whatever standard error is by now
        finally:
            os._exit(code)

    def poll(self) -> bool:
        """Whether it has ended; one that takes too long is killed, with all that it started."""
        if self.outcome is None:
            took = time.perf_counter() - self.started
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if not pid and took > self.limit_s:
                os.killpg(self.pid, signal.SIGKILL)
                pid, status = os.waitpid(self.pid, 0)
            if pid:
                texts = [path.read_text(encoding="utf-8", errors="replace") for path in (self.out, self.err)]
                self.outcome = Outcome(os.waitstatus_to_exitcode(status), *texts, took)
        return self.outcome is not None

    def wait(self) -> Outcome:
        while not self.poll():
            time.sleep(0.005)
        return self.outcome


def run_as_process(words: tuple[str, ...]) -> int:
    """The command with streams as Python opens them at its start, up to the last flush at its end."""
    from hydra.core.global_hydra import GlobalHydra

    from gammatune.__main__ import main

    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        stream = open_stream(number)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["gammatune"]
    GlobalHydra.instance().clear()
    code = main(list(words))
    try:
        sys.stdout.flush()
    except OSError:
        traceback.print_exc()
        code = 120  # as Python ends where this fails
    sys.stderr.flush()
    return code


def open_stream(number: int):
    """None where the shell closed it."""
    try:
        os.fstat(number)
    except OSError:
        return None
    how = {"mode": "w" if number else "r", "buffering": 1 if number == 2 else -1}
    return open(number, encoding="utf-8", closefd=False, **how)  # noqa: PTH123, SIM115
