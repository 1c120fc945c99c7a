"""Words that a command cannot take."""

from bad_inputs.case import SMALL, Case, write_questions

CASES = [
    Case("unknown policy", ("run", "policy=gamatune"), "policy=gamatune is not known: choose one of .*gammatune"),
    Case("negative start", (*SMALL, "starts=[-1]"), "starts", write_questions),
]
