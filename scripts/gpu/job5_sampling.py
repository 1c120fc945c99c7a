"""Sampling on a GPU: python scripts/gpu/job5_sampling.py [--limit N] [--temperature T] [--minutes M]

Several policies with decode=sample on a stratified part of Spec-Bench, once in each runtime. Sampled answers differ from
arm to arm, so what is compared is tokens per second and acceptance, not text. Batches larger than 1 do not exist in
gammatune, and none are run here.
"""

import sys

from jobs import Job, make_parser, run_job
from live_runs import add_options, choose_pair, run_live

POLICIES = "ar,fixed,gammatune,gammatune_plus,svip,hf_confidence"


def work(job: Job) -> str:
    options = job.options
    decode = ["decode=sample", f"decode.temperature={options.temperature:g}", f"policy=[{POLICIES}]"]
    made = run_live(job, [*decode, *choose_pair(job, options.limit)])
    part = f"{options.limit} questions of each Spec-Bench task"
    return f"live runs with sampling at temperature {options.temperature:g}, {part}, {made}"


def main(words: list[str]) -> int:
    parser = make_parser(__doc__, "live-sampling")
    add_options(parser, limit=10)
    parser.add_argument("--temperature", type=float, default=1.0)
    return run_job(parser, work, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
