"""What two runs of the same thing must have in common."""

from gammatune.runs.store import read_log


def logged(runner) -> dict:
    """Per arm, in file order, everything that does not depend on the clock."""
    return {
        cell.arm.label: [
            (
                t.repetition,
                t.question_id,
                t.turn,
                t.prompt_tokens,
                t.finish,
                t.output_ids,
                t.policy_after,
                [r.counts() for r in t.rounds],
            )
            for t in (line.turn for line in read_log(cell.turns_file))
        ]
        for cell in runner.folder.cells
    }


def statuses(runner) -> dict:
    return {cell.arm.label: cell.read_done()["status"] for cell in runner.folder.cells}
