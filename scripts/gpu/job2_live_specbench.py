"""The embedded pair on Spec-Bench, live on a GPU: python scripts/gpu/job2_live_specbench.py [--limit N | --all]

Autoregressive decoding, and from each of the paper's twelve starting gammas fixed gamma, GammaTune, GammaTune+ and
transformers' heuristic and confidence threshold: 61 arms, all interleaved, once in each runtime (`--runtimes compiled`
where time is short). Keeps logs, tables and acceptance table of each run.
The acceptance table of all questions takes `python -m gammatune record tasks=specbench`.
"""

import sys

from jobs import Job, make_parser, run_job
from live_runs import add_options, choose_pair, run_live

STARTS = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 24]
STARTING = "fixed,gammatune,gammatune_plus"


def work(job: Job) -> str:
    options = job.options
    limit = None if options.all else options.limit
    starts = [1, 3] if options.dry_run else STARTS
    policies = f"policy=[ar,{STARTING},hf_heuristic,hf_confidence]"
    made = run_live(job, [policies, f"starts={starts}".replace(" ", ""), *choose_pair(job, limit)])
    part = "all 480 questions" if options.all else f"{options.limit} questions of each task"
    return f"live runs of the embedded pair on Spec-Bench ({part}), {made}, every policy from every start"


def main(words: list[str]) -> int:
    parser = make_parser(__doc__, "live-specbench")
    add_options(parser, limit=5)
    parser.add_argument("--all", action="store_true", help="all 480 questions")
    return run_job(parser, work, words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
