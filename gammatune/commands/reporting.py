"""Verbs over stored runs: tables, figures, answers. No model is loaded here."""

import argparse
import os
import sys
from pathlib import Path

from gammatune.errors import UserError
from gammatune.report import figures, paper_figures, tables
from gammatune.report import show as answer
from gammatune.runs.store import MAKE_A_RUN, find_runs, read_run
from gammatune.studies import bounds, paper
from gammatune.studies.bounds import FILES
from gammatune.studies.paper import COST_FILE, TABLE_FILE


def add_verbs(verbs) -> None:
    report = verbs.add_parser("report", help="print the table of one run, write its tables and figures")
    report.add_argument("run", type=Path, metavar="RUN_DIR", help="a folder under results/runs or results/reference")
    report.add_argument("--out", type=Path, help="where tables/ and figures/ go (default: RUN_DIR/report)")
    report.set_defaults(verb=write_report)
    rebuild = verbs.add_parser("paper-tables", help="rebuild results/tables and results/figures from all that is stored")
    rebuild.add_argument("--reference", type=Path, default=Path("results/reference"), help="what ships with the project")
    rebuild.add_argument("--runs", type=Path, default=Path("results/runs"), help="your own runs")
    rebuild.add_argument(
        "--acceptance",
        type=Path,
        default=Path("results/acceptance"),
        help="your own acceptance tables with a cost.json beside",
    )
    rebuild.add_argument("--out", type=Path, default=Path("results"), help="where tables/ and figures/ go")
    rebuild.set_defaults(verb=write_paper_tables)
    show = verbs.add_parser("show", help="print one answer, coloured by accepted, corrected and bonus tokens")
    show.add_argument("run", type=Path, metavar="RUN_DIR")
    show.add_argument("--question", type=int, metavar="ID", help="question id (default: the first)")
    show.add_argument("--arm", metavar="LABEL", help="for example gammatune-3 (default: the first GammaTune arm)")
    show.set_defaults(verb=show_answer)


def write_report(options: argparse.Namespace) -> int:
    run = read_run(options.run)
    out = options.out or options.run / "report"
    written = tables.write_tables(run, out / "tables") + figures.draw_all(run, out / "figures")
    print(tables.summary_table(run))
    print(f"\n{len(written)} files written to {out}")
    return 0


def write_paper_tables(options: argparse.Namespace) -> int:
    """Every finished run, study and bounded log under its own name. What is damaged is named, the others are still written;
    exit code 2 then.
    """
    jobs = [(name, rebuild_run, folder) for name, folder in named_folders(options.reference, options.runs).items()]
    for root in (options.reference, options.acceptance):
        jobs += [(f.name, rebuild_study, f) for f in find_folders(root, TABLE_FILE, COST_FILE)]
        jobs += [(f.name, rebuild_bounds, f) for f in find_folders(root, *FILES)]
    if not jobs:
        raise UserError(f"No run found under {options.reference} or {options.runs}: {MAKE_A_RUN}.")
    code = 0
    for name, rebuild, folder in jobs:
        try:
            print(rebuild(folder, name, options.out))
        except UserError as error:
            print(error, file=sys.stderr)
            code = 2
    return code


def named_folders(reference: Path, runs: Path) -> dict[str, Path]:
    """Run folders by the name that their tables get; an own run of the same name as a reference run becomes NAME-own."""
    named = {folder.name: folder for folder in find_runs(reference)}
    own = {f"{f.name}-own" if f.name in named else f.name: f for f in find_runs(runs)}
    return named | own


def find_folders(root: Path, *files: str) -> list[Path]:
    """Folders directly under root that hold all of these files and are no runs."""
    folders = sorted(file.parent for file in Path(root).glob(f"*/{files[0]}"))
    return [f for f in folders if all((f / name).exists() for name in files) and not (f / "run.json").exists()]


def rebuild_study(folder: Path, name: str, out: Path) -> str:
    """Replay a stored table with its stored prices; returns the line that says what was written."""
    study = paper.read_study(folder)
    written = paper.write_study(study, out / "tables" / name) + paper_figures.draw_study(study, out / "figures" / name)
    return f"{name}: {len(written)} files, replayed {study.facts['tokens']:,} tokens"


def rebuild_bounds(folder: Path, name: str, out: Path) -> str:
    written = bounds.write_bounds(folder, out / "tables" / name)
    written += paper_figures.draw_bounds(bounds.read_bounds(folder)[0]["starts"], out / "figures" / name)
    return f"{name}: {len(written)} files, bounds"


def rebuild_run(folder: Path, name: str, out: Path) -> str:
    """Write the tables and figures of one run; returns the line that says so."""
    run = read_run(folder)
    if run.facts.get("random_weights"):
        return f"{name}: skipped, its weights are random and its speeds mean nothing"
    if any(reason == "unfinished" for _, reason in run.left_out):
        return f"{name}: skipped, not finished ({run.left_out_sentence()})"
    written = tables.write_tables(run, out / "tables" / name) + figures.draw_all(run, out / "figures" / name)
    return f"{name}: {len(written)} files" + (f" ({run.left_out_sentence()})" if run.left_out else "")


def show_answer(options: argparse.Namespace) -> int:
    run = read_run(options.run)
    arm = answer.choose_arm(run, options.arm)
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for turn in answer.choose_turns(arm, options.question):
        print(f"{answer.headline(run, arm, turn)}\n\n{answer.answer_text(run, turn, coloured)}\n")
    if coloured:
        print(answer.legend_text(coloured))
    return 0
