"""Work in a forked process that dies, or whose disk is full, at a chosen write to a folder.

Python's audit events come before each operation; an opened file gets half a line first, as if the end had come in mid-write.
"""

import errno
import hashlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np

from gammatune import cli
from gammatune.errors import UserError, explain
from gammatune.files import read_json
from gammatune.records import TurnLog
from gammatune.replay.table import read_table
from gammatune.runs.store import read_log

OPERATIONS = ("os.rename", "os.mkdir", "os.truncate", "os.remove", "os.rmdir", "shutil.rmtree")
FREEING = OPERATIONS[3:]  # a full disk lets these through
HALF = b'{"schema":2,"question_id":'
ENDED_WELL, TOLD, DEFECT = 0, 2, 3
LONGEST_S = 300  # that a child works; the slowest machine seen needs a tenth


def in_child(work: Callable[[], None]) -> int:
    """Do the work in a forked process: its exit code, or minus the signal that ended it. See `wait_for`."""
    return wait_for(fork(work))


def wait_for(child: int) -> int:
    """The exit code of a process, or minus the signal that ended it; one that hangs is ended by SIGABRT."""
    started = time.monotonic()
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() - started > LONGEST_S:
            os.kill(child, signal.SIGABRT)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def fork(work: Callable[[], None]) -> int:
    """The id of a process that does the work in silence."""
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1), os.dup2(null, 2)
        code = DEFECT
        try:
            work()
            code = ENDED_WELL
        except BaseException as error:
            code = TOLD if explain(error) else DEFECT
        finally:
            os._exit(code)
    return child


def start_command(words: list[str], errors: Path, folder: Path, begun: str) -> int:
    """The process id of `gammatune WORDS` in a forked process that has begun and is held still in the middle of its work;
    what it says on stderr goes to a file.

    It stops itself at a write below the folder, the first one after which a file of the pattern `begun` holds something:
    so it cannot end before a signal reaches it, however fast it is and however slow this process.
    """
    child = os.fork()
    if child == 0:
        stop_once(folder, begun)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # whatever the shell of the tests ignores
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        with errors.open("w") as sys.stderr, open(os.devnull, "w") as sys.stdout:  # noqa: PTH123
            code = DEFECT
            try:
                code = cli.main(words)
            except SystemExit as ended:  # Hydra's main job
                code = ended.code
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status), "ended before it began"
    return child


def stop_once(folder: Path, begun: str) -> None:
    stopped = False

    def stop(event: str, path: str) -> None:
        nonlocal stopped
        if not stopped and any(file.stat().st_size for file in folder.glob(begun)):
            stopped = True
            os.kill(os.getpid(), signal.SIGSTOP)

    on_write(folder, stop)


def signal_and_wait(child: int, number: int) -> int:
    """The exit code of a process that was held still, or minus the signal that ended it."""
    os.kill(child, number)
    os.kill(child, signal.SIGCONT)
    return wait_for(child)


def kill(path: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(path: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def on_write(folder: Path, action: Callable[[str, str], None]) -> None:
    """From now on and to the end of this process: action(event, path) before each write below a folder."""
    inside = False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal inside
        if inside or not (event in OPERATIONS or event == "open" and writes(arguments)):
            return
        path = os.fspath(arguments[0])
        # shutil.rmtree names what it removes by file descriptors; the tree itself is named whole
        if isinstance(path, str) and (path.startswith(str(folder)) or event in FREEING and not path.startswith("/")):
            inside = True
            try:
                action(event, path)
            finally:
                inside = False

    sys.addaudithook(hook)


def writes(opened: tuple) -> bool:
    return isinstance(opened[0], str | os.PathLike) and bool(opened[2] & (os.O_WRONLY | os.O_RDWR))


def count_writes(work: Callable[[], None], folder: Path) -> list[str]:
    """The events of undisturbed work, in order."""
    reader, writer = os.pipe()

    def counted() -> None:
        on_write(folder, lambda event, path: os.write(writer, f"{event} {path}\n".encode()))
        work()

    assert in_child(counted) == ENDED_WELL
    os.close(writer)
    with os.fdopen(reader) as events:
        return events.read().splitlines()


def disturbed(work: Callable[[], None], folder: Path, place: int, end: Callable[[str], None]) -> int:
    """Work whose write number `place` comes to an `end`, with all that follow where that is a full disk; see in_child."""
    seen = 0

    def action(event: str, path: str) -> None:
        nonlocal seen
        seen += 1
        if seen <= place or (end is fill_disk and event in FREEING):
            return
        if event == "open" and seen == place + 1:
            with Path(path).open("ab") as file:
                file.write(HALF)
        end(path)

    def doomed() -> None:
        on_write(folder, action)
        work()

    return in_child(doomed)


def samplers(folder: Path) -> list[bytes]:
    """Processes that still sample the machine into this folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # ended meanwhile
            line = file.read_bytes()
            found += [line] if b"monitor.py" in line and str(folder).encode() in line else []
    return found


def stored(folder: Path) -> dict[str, object]:
    """By file, everything in the folder of a run or a recording that does not depend on the clock or on how often it was
    started; the sampler's file and the lock left out.
    """
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: read(file) for name, file in sorted(files.items()) if file.name not in ("machine.jsonl", "lock")}


def read(file: Path) -> object:
    """Of a damaged file, the sentence that says so."""
    try:
        return read_whole(file)
    except UserError as error:
        return str(error)


def read_whole(file: Path) -> object:
    if file.name == "turns.jsonl":
        return [facts_of(logged.turn) for logged in read_log(file)]
    if file.suffix == ".parquet":
        table = read_table(file)
        return table.facts, [repr(plain(turn)) for turn in table.turns]
    content = read_json(file, "make it again")
    if file.name == "done.json":
        log = hashlib.sha256((file.parent / "turns.jsonl").read_bytes()).hexdigest()
        content["sha256"] = "of the log" if content["sha256"] == log else "of another log"
    return sorted(content) if file.name == "provenance.json" else content | {"peak_host_mib": None}


def facts_of(turn: TurnLog) -> tuple:
    return (
        (turn.repetition, turn.question_id, turn.turn, turn.prompt_tokens, turn.finish),
        turn.output_ids,
        [r.counts() for r in turn.rounds],
        turn.policy_after,
    )


def plain(value) -> object:
    if is_dataclass(value):
        return {name: plain(each) for name, each in vars(value).items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def differences(found: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """Files that only one side has, or whose content differs."""
    return [name for name in sorted(found.keys() | wanted.keys()) if found.get(name) != wanted.get(name)]
