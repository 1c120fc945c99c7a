"""The commands `report` and `paper-tables`: tables and figures from stored files. No model is loaded."""

import argparse
import sys
from pathlib import Path

from gammatune.commands.options import add_prices, find_prices
from gammatune.errors import UserError, printable
from gammatune.report import figures, notes, views
from gammatune.report.page import PAGE, TABLE_PAGE, write_run_page, write_table_page
from gammatune.report.tables import write_tables
from gammatune.runs.store import MAKE_A_RUN, StoredRun, find_runs, read_run
from gammatune.studies.bounds import FILES, read_bounds
from gammatune.studies.replay_check import replay_sentence
from gammatune.studies.study import PRICES_FILE, TABLE_FILE, read_study


def add_command(commands) -> None:
    parser = commands.add_parser("report", help="print the table of one run, write its tables, figures and page")
    stored = "a folder under results/runs or results/reference, or an acceptance table, of which a page is written"
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help=stored)
    parser.add_argument("--out", type=Path, help=f"where tables/, figures/ and {PAGE} go (default: RUN_DIR/report)")
    add_prices(parser, "for the page's ranking; default: prices.json there, else the times of the run's own rounds")
    parser.set_defaults(command=report_run)
    parser = commands.add_parser("paper-tables", help="rebuild results/tables and results/figures from all that is stored")
    own_tables = f"your own acceptance tables with a {PRICES_FILE} beside"
    for option, place, text in (
        ("--reference", "results/reference", "what ships with the project"),
        ("--runs", "results/runs", "your own runs"),
        ("--acceptance", "results/acceptance", own_tables),
        ("--out", "results", "where tables/ and figures/ go"),
    ):
        parser.add_argument(option, type=Path, default=Path(place), help=text)
    parser.set_defaults(command=rebuild_all)


def report_run(options: argparse.Namespace) -> int:
    curve = find_prices(options, options.run) if options.prices or options.cost_ratio else None
    if (table := find_lone_table(options.run)) is not None:
        page = write_table_page(table, (options.out or table.with_name("report")) / TABLE_PAGE, curve)
        print(printable(f"Page: {page}"))
        return 0
    run, out = read_run(options.run), options.out or options.run / "report"
    written = write_run(run, out / "tables", out / "figures")
    page = write_run_page(run, out / PAGE, curve)
    print(notes.summary_table(run, replay_sentence(run)))
    print(f"\n{len(written)} files written to {printable(str(out))}")
    print(printable(f"Page: {page}"))
    return 0


def find_lone_table(path: Path) -> Path | None:
    """The table that a path names by itself or by its folder; None for a run, which may have one too."""
    try:
        if path.is_file():
            return path
        return path / TABLE_FILE if (path / TABLE_FILE).exists() and not (path / "run.json").exists() else None
    except OSError:  # a name that is too long: reading it says so
        return None


def write_run(run: StoredRun, tables: Path, pictures: Path) -> list[Path]:
    """All tables and figures of one run into these two folders; returns the files."""
    caption = notes.describe_run(run, replay_sentence(run))
    return write_tables(tables, views.run_tables(run), caption) + figures.draw_run(run, pictures)


def rebuild_all(options: argparse.Namespace) -> int:
    """Every finished run, study and bounded log under its own name. What is damaged is named, the others are still written;
    exit code 2 then.
    """
    jobs = [(name, rebuild_run, folder) for name, folder in name_runs(options.reference, options.runs).items()]
    for root in (options.reference, options.acceptance):
        jobs += [(f.name, rebuild_study, f) for f in find_folders(root, TABLE_FILE, PRICES_FILE)]
        jobs += [(f.name, rebuild_bounds, f) for f in find_folders(root, *FILES)]
    if not jobs:
        raise UserError(f"No run found under {options.reference} or {options.runs}: {MAKE_A_RUN}.")
    code = 0
    for name, rebuild, folder in jobs:
        try:
            done = rebuild(folder, options.out / "tables" / name, options.out / "figures" / name)
            print(printable(f"{name}: {done}"))
        except UserError as error:
            print(printable(str(error)), file=sys.stderr)
            code = 2
    return code


def name_runs(reference: Path, runs: Path) -> dict[str, Path]:
    """Run folders by the name that their tables get; an own run of the same name as a reference run becomes NAME-own."""
    named = {folder.name: folder for folder in find_runs(reference)}
    return named | {f"{f.name}-own" if f.name in named else f.name: f for f in find_runs(runs)}


def find_folders(root: Path, *files: str) -> list[Path]:
    """Folders directly under root that hold all of these files and are no runs."""
    folders = sorted(file.parent for file in Path(root).glob(f"*/{files[0]}"))
    return [f for f in folders if all((f / name).exists() for name in files) and not (f / "run.json").exists()]


def rebuild_run(folder: Path, tables: Path, pictures: Path) -> str:
    """Returns what was written or why nothing was, in words; so do the next two."""
    run = read_run(folder)
    if run.facts.get("random_weights"):
        return "skipped, its weights are random and its speeds mean nothing"
    if any(reason == "unfinished" for _, reason in run.left_out):
        return f"skipped, not finished ({run.left_out_sentence()})"
    written = write_run(run, tables, pictures)
    return f"{len(written)} files" + (f" ({run.left_out_sentence()})" if run.left_out else "")


def rebuild_study(folder: Path, tables: Path, pictures: Path) -> str:
    study = read_study(folder)
    written = write_tables(tables, views.study_tables(study), notes.describe_study(study))
    written += figures.draw_study(study, pictures)
    return f"{len(written)} files, replayed {study.facts['tokens']:,} tokens"


def rebuild_bounds(folder: Path, tables: Path, pictures: Path) -> str:
    bounds = read_bounds(folder)
    written = write_tables(tables, views.bounds_tables(bounds), notes.describe_bounds(bounds.source), label="bounds-")
    written += figures.draw_bounds(bounds.starts, pictures)
    return f"{len(written)} files, bounds"
