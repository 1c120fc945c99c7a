"""The main job: python run.py model_pair=vicuna-68m-7b policy=gammatune_plus, or the same words after `gammatune run`.

Composes a config, runs its arms, prints the table, writes tables and figures beside the run, and ends with one JSON line.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from gammatune.commands.options import add_settings
from gammatune.compose import read_config, read_words, refuse_foresight
from gammatune.errors import CONFIGS, UserError, clip, exit_code_of, plain_name, stopping_quietly
from gammatune.process import loading
from gammatune.words import refuse_sweep

SPEAKER, FOLDER_CHOICE = "gammatune: ", "results=FOLDER"
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
#: Hydra's options that this command takes, with what argparse needs to know of each
HYDRA_OPTIONS = {
    ("--help", "-h"): {"action": "store_true", "help": "list the choices of every group and the config"},
    ("--hydra-help",): {"action": "store_true", "help": "Hydra's own help"},
    ("--multirun", "-m"): {"action": "store_true", "help": "a run for each of several values, such as seed=1,2"},
    ("--run", "-r"): {"action": "store_true", "help": "one run, the default"},
    ("--cfg", "-c"): {"choices": ("job", "hydra", "all"), "help": "print the config instead of running it"},
    ("--resolve",): {"action": "store_true", "help": "with --cfg: references replaced by their values"},
    ("--info", "-i"): {"nargs": "?", "const": "all", "choices": INFO, "help": "print what Hydra composes from"},
    ("--config-dir", "-cd"): {"metavar": "FOLDER", "help": "more configs, such as experiments of your own"},
    ("--config-name", "-cn"): {"metavar": "NAME", "help": "a main config of that folder, instead of run"},
    ("--config-path", "-cp"): {"help": argparse.SUPPRESS},
    ("--experimental-rerun",): {"help": argparse.SUPPRESS},
}
MODES = ("help", "hydra_help", "multirun", "run", "cfg", "info")


class JobError(Exception):
    """One job of a sweep failed and has said why; Hydra names the job and goes on with the next."""


def add_command(commands) -> None:
    parser = commands.add_parser(
        "run", add_help=False, help="the main job: decode questions with a pair, all policies beside each other"
    )
    add_settings(parser, "model_pair=tiny-random policy=[fixed,gammatune]")
    for names, how in HYDRA_OPTIONS.items():
        parser.add_argument(*names, **how)
    parser.set_defaults(command=compose_and_run, folder_choice=FOLDER_CHOICE)


def compose_and_run(options: argparse.Namespace) -> int:
    """Hand the words to Hydra, which composes the config and calls the job, or prints what an option asks for."""
    refuse_options(options)
    words = read_words(options.settings, own_folder=options.config_dir is not None)
    refuse_sweep(words, options.multirun)
    # Hydra reads sys.argv itself, and starts from there again for each job of a sweep
    sys.argv[1:] = [*hydra_words(options), *words]
    # It then raises instead of printing, so that each error becomes one sentence
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        hydra_job()
    except JobError as error:
        raise UserError("A run of the sweep failed, as told above; the others were done.") from error
    except SystemExit as ended:  # of one job, and of Hydra's help
        return ended.code or 0
    return 0


def refuse_options(options: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, and for those that would read what is none of ours."""
    if options.experimental_rerun is not None:
        raise UserError("--experimental-rerun reads a pickle, which can run anything: give the same words again instead.")
    if options.config_path is not None:
        raise UserError("--config-path would replace every config of gammatune: add yours with --config-dir FOLDER.")
    modes = [mode for mode in MODES if getattr(options, mode)]
    if len(modes) > 1:
        raise UserError(f"Only one of {', '.join(f'--{mode}'.replace('_', '-') for mode in modes)} can be asked for.")
    if options.resolve and options.cfg is None:
        raise UserError("--resolve belongs to --cfg: add --cfg job.")
    own = options.config_dir
    if own is not None:
        refuse_folder(Path(own))
    if options.config_name is not None:
        name = plain_name(options.config_name.removesuffix(".yaml"), "--config-name")
        if not any((Path(folder) / f"{name}.yaml").is_file() for folder in (CONFIGS, own or CONFIGS)):
            raise UserError(f"--config-name {name}: there is no {name}.yaml in {own or CONFIGS}, see --config-dir FOLDER.")


def refuse_folder(folder: Path) -> None:
    """Raises UserError for what is no folder of configs, or holds one that is no text."""
    if not folder.is_dir():
        raise UserError(f"--config-dir {clip(str(folder))} is no folder: name one that holds configs.")
    for file in (*folder.glob("*.yaml"), *folder.glob("*/*.yaml")):
        try:
            file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file} cannot be read ({error}): correct it, or take it out of --config-dir.") from error


def hydra_words(options: argparse.Namespace) -> list[str]:
    """The options as Hydra's own parser takes them, in front of the settings."""
    words = []
    for names in HYDRA_OPTIONS:
        value = getattr(options, names[0].removeprefix("--").replace("-", "_"))
        if value is not None and value is not False:
            words.append(names[0] if value is True else f"{names[0]}={value}")
    return words


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="run")
def hydra_job(composed: DictConfig) -> None:
    try:
        run_job(composed)
    except Exception as error:
        code = exit_code_of(error, SPEAKER, FOLDER_CHOICE)
        # Raised through Hydra, an error costs a second message; only a sweep needs it, to go on with its next job
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            sys.exit(code)
        if code:
            raise JobError from error


def run_job(composed: DictConfig) -> None:
    config = read_config(composed)
    refuse_foresight(config)
    # Heavy imports only once the config is known to be good
    with loading():
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
    from gammatune.report.page import PAGE, write_run_page
    from gammatune.report.results import results_table
    from gammatune.runs.store import read_run
    from gammatune.studies.replay_check import replay_sentence

    try:
        run = read_run(path)
    except UserError:
        print_last_line(path, "failed", [])
        raise
    # First the files: whoever reads our output may leave
    written = write_run(run, path / "report" / "tables", path / "report" / "figures")
    page = failure = None
    try:
        page = write_run_page(run, path / "report" / PAGE)
    except Exception as error:  # raised below: a page that cannot be made must not cost the run's numbers
        failure = error
    print(notes.summary_table(run, replay_sentence(run)))
    if limits := explain_limits(run, results_table(run)):
        print(f"\n{limits}")
    print("\n".join(["", *(str(file) for file in written if file.suffix in (".md", ".png"))]))
    if page is not None:
        print(f"\nA page to look at: {page}")
    print(f"\nNext, an answer coloured by accepted, corrected and bonus tokens: gammatune show {path}\n")
    failed = [describe_failure(*arm) for arm in run.left_out]
    print_last_line(path, "failed" if failed else "ok", notes.arm_summaries(run) + failed)
    if failure is not None:
        raise failure
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
