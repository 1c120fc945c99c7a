"""The main job: python run.py model_pair=vicuna-68m-7b policy=gammatune_plus, or the same words after `gammatune run`.

Composes a config, runs its arms, prints the table, writes tables and figures beside the run, and ends with one JSON line.
"""

import json
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from gammatune.compose import read_config, read_words, refuse_foresight
from gammatune.errors import CONFIGS, UserError, exit_code_of, stopping_quietly

SPEAKER = "gammatune: "


class JobError(Exception):
    """One job of a sweep failed and has said why; Hydra names the job and goes on with the next."""


def main(words: list[str] | None = None) -> int:
    """Run key=value words and Hydra's own options. Exit code 0, 2 for what the user can correct, 130 after an interrupt."""
    try:
        # Hydra reads sys.argv itself, and starts from there again for each job of a sweep
        sys.argv[1:] = read_words(sys.argv[1:] if words is None else words)
        # It then raises instead of printing, so that each error becomes one sentence
        os.environ.setdefault("HYDRA_FULL_ERROR", "1")
        compose_and_run()
    except JobError:
        return 2
    except (Exception, KeyboardInterrupt) as error:
        return exit_code_of(error, SPEAKER)
    return 0


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="run")
def compose_and_run(composed: DictConfig) -> None:
    try:
        run_job(composed)
    except Exception as error:
        code = exit_code_of(error, SPEAKER)
        # Raised through Hydra, an error costs a second message; only a sweep needs it, to go on with its next job
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            raise JobError from error
        sys.exit(code)


def run_job(composed: DictConfig) -> None:
    config = read_config(composed)
    refuse_foresight(config)
    # Heavy imports only once the config is known to be good
    from gammatune.runs.runner import Runner

    runner = Runner(config)
    path = runner.folder.path
    if config.plan:
        print(runner.describe_plan())
        print_last_line(path, "planned", [])
        return
    try:
        with stopping_quietly():
            runner.run()
    except KeyboardInterrupt as error:
        error.args = (f"Interrupted; complete answers are kept in {path}, and the same command continues from there.",)
        raise
    report(path)


def report(path: Path) -> None:
    """Table, files, last line. Raises UserError when an arm failed, since a run is only good when every arm is."""
    from gammatune.commands.report import write_run
    from gammatune.report import notes
    from gammatune.report.limits import explain_limits
    from gammatune.report.results import results_table
    from gammatune.runs.store import read_run
    from gammatune.studies.replay_check import replay_sentence

    try:
        run = read_run(path)
    except UserError:
        print_last_line(path, "failed", [])
        raise
    print(notes.summary_table(run, replay_sentence(run)))
    if limits := explain_limits(run, results_table(run)):
        print(f"\n{limits}")
    written = write_run(run, path / "report" / "tables", path / "report" / "figures")
    print("\n".join(["", *(str(file) for file in written if file.suffix in (".md", ".png"))]))
    print(f"\nNext, an answer coloured by accepted, corrected and bonus tokens: gammatune show {path}\n")
    failed = [describe_failure(*arm) for arm in run.left_out]
    print_last_line(path, "failed" if failed else "ok", notes.arm_summaries(run) + failed)
    if run.left_out:
        raise UserError(
            f"{run.left_out_sentence()}: done.json in their folders under {path} says why, and the same "
            "command tries again those that ended in an error."
        )


def describe_failure(label: str, reason: str) -> dict:
    """A failed arm in the last line: no numbers."""
    numbers = dict.fromkeys(("speedup", "mean_accepted_tokens", "acceptance_rate"))
    return {"policy": label, **numbers, "exact": False if reason == "wrong_output" else None}


def print_last_line(path: Path, status: str, arms: list[dict]) -> None:
    print(json.dumps({"run_dir": str(path), "status": status, "arms": arms}), flush=True)
