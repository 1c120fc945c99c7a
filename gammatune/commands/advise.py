"""The command `advise`: how many tokens a draft should propose, on a pair and this machine or on a stored table."""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from gammatune.commands.options import (
    add_prices,
    add_settings,
    choose_policies,
    find_prices,
    find_table,
    given_prices,
    key_of,
    policy_words,
    ratio,
)
from gammatune.compose import compose_config
from gammatune.config import Checkpoint, PairConfig, RunConfig, TasksConfig
from gammatune.errors import PLAIN_NAME, UserError, clip, one_line, printable, stopping_quietly
from gammatune.files import content_hash, hash_file, make_folder, write_json, write_text
from gammatune.machine import describe_sharing, name_cpu
from gammatune.process import loading
from gammatune.replay.prices import PRICES_FILE, PriceList, prices_to_json
from gammatune.replay.table import AcceptanceTable, read_table
from gammatune.report.advice import advice_json, advice_text
from gammatune.report.page import PAGE, write_advice_page
from gammatune.studies.advise import Models, PriceNote, advise, refuse_few
from gammatune.studies.drafters import Contender
from gammatune.tasks.questions import has_specbench, load_questions

QUESTIONS, TOKENS, MINUTES = 60, 64, 20.0
OUT = Path("results/advice")
ADVICE_FILE, TEXT_FILE = "advice.json", "advice.md"
NO_NAMES = ("embedded", "tiny-random")  # ids that no engine knows


@dataclass
class Subject:
    """What advice is asked about."""

    kind: str  # pair or table
    name: str
    folder: Path  # where the advice goes
    table: AcceptanceTable
    file: Path  # of the table
    curve: PriceList
    note: PriceNote
    models: Models
    beside: list[Contender]  # other drafters along the same answers
    warnings: list[str]  # sentences


def add_command(commands) -> None:
    parser = commands.add_parser("advise", help="how many tokens to draft, whether it pays, and the line for each engine")
    add_settings(parser, "model_pair=qwen2.5-coder-0.5b-1.5b tasks.path=prompts.jsonl")
    parser.add_argument("--table", type=Path, help="advice for a table that is stored or imported, without loading a pair")
    add_prices(parser)
    minutes = f"after which it goes on with the questions that it has, at least twelve (default: {MINUTES:g})"
    parser.add_argument("--minutes", type=ratio, metavar="N", help=minutes)
    parser.add_argument("--json", action="store_true", help="print the JSON alone")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of all advice (default: {OUT})")
    parser.set_defaults(command=print_advice)


def print_advice(options: argparse.Namespace) -> int:
    subject = take_table(options) if options.table else take_pair(options)
    policies = choose_policies(policy_words(options.settings), subject.table)
    advice = advise(subject.table, subject.curve, subject.note, policies, subject.models, subject.beside)
    advice.warnings += subject.warnings
    found = advice_json(advice, subject.kind, one_line(subject.name), str(subject.file))
    text = printable(advice_text(found))
    make_folder(subject.folder, "--out FOLDER")
    write_json(subject.folder / ADVICE_FILE, found)
    write_text(subject.folder / TEXT_FILE, f"{text}\n")
    page = write_advice_page(found, subject.file, subject.folder / PAGE)
    if not options.json:
        print(text)
        print(f"\n{printable(str(subject.folder / TEXT_FILE))}, {printable(str(page))}")
    print(json.dumps(found))
    return 0


def take_table(options: argparse.Namespace) -> Subject:
    """Raises UserError, also for what only a pair would read."""
    chosen = policy_words(options.settings)
    if other := [word for word in options.settings if word not in chosen]:
        raise UserError(f"{clip(other[0])} is not read with --table, which takes settings of policies alone: leave it out.")
    if options.minutes is not None:
        raise UserError("--minutes is not read with --table, where nothing is recorded: leave it out.")
    path = find_table(options.table)
    table, curve = read_table(path), find_prices(options, path)
    name = str(table.facts.get("pair") or path.parent.absolute().name)
    place = name if PLAIN_NAME.fullmatch(name) else "table"
    asked = {"table": hash_file(path), "prices": prices_to_json(curve), "policies": chosen}
    return Subject(
        kind="table",
        name=name,
        folder=options.out / f"{place}-{content_hash(asked)}",
        table=table,
        file=path,
        curve=curve,
        note=note_prices(options, curve, "the table's", name_cpu() if curve.facts.get("device") == "cpu" else None),
        models=Models(prices=tell_prices(options, path.with_name(PRICES_FILE))),
        beside=[],
        warnings=[],
    )


def take_pair(options: argparse.Namespace) -> Subject:
    """Measure and record, or take what earlier calls left. Raises UserError."""
    started = time.monotonic()
    config = compose_pair(options.settings)
    given = given_prices(options)
    # Heavy imports only once the config is known to be good
    with loading():
        from gammatune.studies.measure_pair import measure_pair

    minutes = MINUTES if options.minutes is None else options.minutes
    with stopping_quietly():
        found = measure_pair(config, options.out, started + 60 * minutes, given)
    return Subject(
        kind="pair",
        name=config.model_pair.name,
        folder=found.folder,
        table=found.table,
        file=found.file,
        curve=found.curve,
        note=note_prices(options, found.curve, "measured here", found.device),
        models=replace(name_models(config.model_pair), prices=tell_prices(options, found.folder / PRICES_FILE)),
        beside=found.beside,
        warnings=found.warnings,
    )


def compose_pair(settings: list[str]) -> RunConfig:
    """The pair's config with this command's defaults: few questions of each task and short answers. Raises UserError."""
    keys = [key_of(word) for word in settings]
    added = [word for word in default_words(keys) if key_of(word) not in keys]
    config = compose_config([*added, *settings])
    questions = load_questions(config.tasks).questions
    if config.tasks.limit is None:
        config.tasks = sample_tasks(config.tasks, len({question.task for question in questions}))
        questions = load_questions(config.tasks).questions
    refuse_few(len(questions))
    return config


def default_words(keys: list[str]) -> list[str]:
    """What holds where the user sets nothing else."""
    tasks = "specbench" if "tasks.path" in keys or has_specbench() else "demo"
    words = [f"tasks={tasks}", "tasks.overlong=skip", f"decode.max_new_tokens={TOKENS}", "policy=[ar]"]
    return [*words, "tasks.checksum=null", "tasks.name=prompts"] if "tasks.path" in keys else words


def sample_tasks(tasks: TasksConfig, groups: int) -> TasksConfig:
    """About QUESTIONS of them, equal shares of each task and category."""
    seed = 0 if tasks.seed is None else tasks.seed
    return replace(tasks, limit=math.ceil(QUESTIONS / groups), seed=seed)


def note_prices(options: argparse.Namespace, curve: PriceList, otherwise: str, here: str | None) -> PriceNote:
    """here: what this machine would measure with, None where nobody knows."""
    if options.cost_ratio is not None:
        assumed = (
            f"T_target / T_draft = {options.cost_ratio:g} is assumed, with every block verified at the price of one token."
        )
        return PriceNote("assumed ratio", None, (assumed,))
    provenance = curve.facts.get("provenance", {})
    machine = provenance.get("device")
    machine = one_line(machine) if isinstance(machine, str) else None
    warnings = []
    if machine and here and machine != here:
        warnings.append(f"The prices were measured on {machine}, this machine is {here}: the advice is for the former.")
    load = provenance.get("median_load")
    if shared := describe_sharing(load if isinstance(load, int | float) else None, provenance.get("cores")):
        warnings.append(f"The machine was shared while the prices were measured ({shared}), so they may be too high.")
    if strange := curve.find_implausible():
        warnings.append(f"By these prices {strange}, so no draft can pay.")
    return PriceNote(f"file {options.prices}" if options.prices else otherwise, machine, tuple(warnings))


def tell_prices(options: argparse.Namespace, otherwise: Path) -> dict:
    """As `gammatune.transformers.speculate` takes them."""
    if options.cost_ratio is not None:
        return {"cost_ratio": options.cost_ratio}
    return {"prices": str(options.prices or otherwise)}


def name_models(pair: PairConfig) -> Models:
    """As engines would be told of them; placeholders for what only this project has."""
    none = Models()
    if pair.made_up:
        return none
    return Models(
        target=repository(pair.target) or none.target,
        draft=repository(pair.draft) or none.draft,
        target_file=gguf_file(pair.target) or none.target_file,
        draft_file=gguf_file(pair.draft) or none.draft_file,
    )


def repository(checkpoint: Checkpoint) -> str | None:
    """A folder, or a hub repository, by its name without the ending of one that holds GGUF files."""
    known = checkpoint.id if checkpoint.id not in NO_NAMES else None
    return checkpoint.path or (known and known.removesuffix("-GGUF"))


def gguf_file(checkpoint: Checkpoint) -> str | None:
    if checkpoint.path and checkpoint.path.endswith(".gguf"):
        return checkpoint.path
    return checkpoint.gguf.file if checkpoint.gguf and not checkpoint.path else None
