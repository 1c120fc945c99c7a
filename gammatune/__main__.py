"""Where every process starts: `python -m gammatune COMMAND`, `gammatune COMMAND` and run.py; see gammatune.cli."""

import signal
import sys

from gammatune.process import INTERRUPTED, hold_streams, loading


def main(words: list[str] | None = None) -> int:
    """Run one command; returns its exit code. words: the command and its arguments; None: those of this process."""
    try:
        hold_streams()
        with loading():
            from gammatune import cli
        code = cli.main(sys.argv[1:] if words is None else words)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt
    except KeyboardInterrupt:  # in a line above: whatever the command was doing has been told already
        code = INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(main())
