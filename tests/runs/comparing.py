"""What two runs of the same thing must have in common."""


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
            for _, t in cell.read_turns()
        ]
        for cell in runner.folder.cells
    }


def statuses(runner) -> dict:
    return {cell.arm.label: cell.read_done()["status"] for cell in runner.folder.cells}
