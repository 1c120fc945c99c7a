"""Everything wrong that a user, a disk or a stranger can hand to a command: one module per kind, each with a `CASES` list.

Run in this process by tests/test_bad_inputs.py, and with random ones beside in processes of their own by scripts/torture.py.
"""

from bad_inputs import checkpoints, command_lines, logs, numbers, questions, run_folders, tables

ALL = {
    "command-line": command_lines.CASES,
    "numbers": numbers.CASES,
    "questions": questions.CASES,
    "table": tables.CASES,
    "log": logs.CASES,
    "run-folder": run_folders.CASES,
    "checkpoint": checkpoints.CASES,
}
