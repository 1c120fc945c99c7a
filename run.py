"""The main job: python run.py model_pair=vicuna-68m-7b policy=gammatune_plus

Composes a config, runs its arms, prints the table, writes tables and figures beside the run, and ends with one JSON line.
"""

import json
import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from gammatune.config import read_config, register_schemas
from gammatune.errors import UserError
from gammatune.messages import explain

register_schemas()
# Hydra then raises instead of printing, and `explain` turns the error into one sentence
os.environ.setdefault("HYDRA_FULL_ERROR", "1")


@hydra.main(version_base="1.3", config_path="configs", config_name="run")
def main(composed: DictConfig) -> None:
    config = read_config(composed)
    # Heavy imports only once the config is known to be good
    from gammatune.experiment.runner import Runner

    runner = Runner(config)
    path = runner.folder.path
    if config.plan:
        print(runner.describe_plan())
        return print_last_line(path, "planned", [])
    try:
        runner.run()
    except KeyboardInterrupt as error:
        raise UserError(f"Interrupted; complete answers are kept in {path}, and the same command continues from there.") from error
    report(path)


def report(path: Path) -> None:
    """Table, files, last line. Raises UserError when an arm failed, since a run is only good when every arm is."""
    from gammatune.report import figures, tables
    from gammatune.report.store import read_run

    run = read_run(path)
    print(tables.summary_table(run))
    written = tables.write_tables(run, path / "report" / "tables") + figures.draw_all(run, path / "report" / "figures")
    print("\n".join(["", *(str(file) for file in written if file.suffix in (".md", ".png"))]))
    failed = [f"{arm.label} ({arm.status})" for arm in run.arms if arm.status != "ok"]
    print_last_line(path, "failed" if failed else "ok", tables.arm_summaries(run))
    if failed:
        raise UserError(f"{', '.join(failed)} failed and has no speedup: see done.json in {path}.")


def print_last_line(path: Path, status: str, arms: list[dict]) -> None:
    print(json.dumps({"run_dir": str(path), "status": status, "arms": arms}), flush=True)


def guarded_main() -> int:
    """Exit code 0, 2 for what the user can mend (one sentence on stderr), 130 after an interrupt."""
    try:
        main()
    except KeyboardInterrupt:
        print("Interrupted before anything was decoded.", file=sys.stderr)
        return 130
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        print(f"gammatune: {sentence}", file=sys.stderr)
        return 130 if isinstance(error.__cause__, KeyboardInterrupt) else 2
    return 0


if __name__ == "__main__":
    sys.exit(guarded_main())
