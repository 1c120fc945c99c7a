"""One self-contained HTML file to look at: of a run, of an acceptance table, of an advice.

Everything is in the file: no network, no script from elsewhere, and without JavaScript nothing is missing. Whatever comes
from models, question files and labels is escaped by the templates, and control characters in it are shown as \\x1b.
"""

import hashlib
from base64 import b64encode
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gammatune.errors import printable
from gammatune.files import write_text
from gammatune.policies.session import PolicyError
from gammatune.replay.prices import PRICES_FILE, PriceList, read_prices
from gammatune.replay.table import TABLE_FILE, AcceptanceTable, read_table
from gammatune.report import notes, style
from gammatune.report.answers import KINDS, RUN_KINDS, TABLE_KINDS, Prompt, run_prompts, table_prompts
from gammatune.report.limits import explain_limits
from gammatune.report.names import arm_names, task_name
from gammatune.report.numbers import absent, interval, number
from gammatune.report.ranking import MOST_TASKS, Ranking, prices_of_rounds, rank_policies
from gammatune.report.results import results_table
from gammatune.runs.store import BASELINE, PIECES_FILE, StoredRun, Texts, read_run, read_texts
from gammatune.studies.headline import OVERALL
from gammatune.studies.replay_check import replay_sentence
from gammatune.studies.study import describe_table

PAGE, TABLE_PAGE = "report.html", "table.html"
LARGEST = 1_900_000  # bytes
TOKENS = 10_000  # of answers on a page, about
FEW_TOKENS = 2_000  # beside an advice
DASH = "–"  # for a number that there is not
OWN_PRICES = "medians of this run's own rounds"

#: (tokens of answers) -> the prompts that are shown, and how many there are
Choose = Callable[[int], tuple[list[Prompt], int]]


def write_page(run_folder: Path) -> Path:
    """report/report.html of a run. Raises UserError for damaged files."""
    return write_run_page(read_run(run_folder), Path(run_folder) / "report" / PAGE)


def write_run_page(run: StoredRun, out: Path, curve: PriceList | None = None) -> Path:
    """curve: for the ranking; without it the run's prices.json, else what its own rounds took. Raises UserError."""
    table = read_table(run.path / TABLE_FILE) if (run.path / TABLE_FILE).exists() else None
    texts, replay = find_texts(run.path / PIECES_FILE), replay_sentence(run)
    remarks = [*notes.list_notes(run, replay), explain_limits(run, results_table(run)), notes.SPEED_NOTE]
    try:
        ranking = rank_run(run, table, curve)
    except PolicyError as error:  # of somebody's own policy, which another run may have used
        ranking, remarks = None, [*remarks, f"No ranking by replay: {error}"]
    content = {
        "title": run.facts["pair"],
        "name": run.name,
        "facts": run_facts(run),
        "arms": arm_rows(run),
        "notes": [sentence for sentence in remarks if sentence],
        "by_task": task_matrix(run),
        "ranking": ranking,
        "kinds": {kind: KINDS[kind] for kind in RUN_KINDS},
        "named": bool(texts.pieces),
    }
    return render("run.html", out, content, lambda budget: run_prompts(run, texts, table, budget))


def write_table_page(table_path: Path, out: Path, curve: PriceList | None = None) -> Path:
    """curve: without it the prices.json beside the table, else no speeds are given. Raises UserError."""
    table, beside = read_table(table_path), table_path.with_name(PRICES_FILE)
    prices = "given"
    if curve is None and beside.exists():
        curve, prices = read_prices(beside), f"{PRICES_FILE} beside the table"
    texts = find_texts(table_path.with_name(PIECES_FILE))
    content = {
        "title": str(table.facts.get("pair", "unknown pair")),
        "name": table_path.resolve().parent.name,
        "facts": table_facts(table),
        "ranking": rank_policies(table, curve, price_words(prices, curve)) if curve and table.complete else None,
        "missing": why_unranked(table, curve),
        "kinds": {kind: KINDS[kind] for kind in TABLE_KINDS if kind != "unknown" or not table.complete},
        "named": bool(texts.pieces),
    }
    return render("table.html", out, content, lambda budget: table_prompts(table, texts, budget))


def write_advice_page(advice: dict, table_path: Path | None, out: Path) -> Path:
    """advice: as `gammatune advise` writes it. table_path: of the table it comes from, for some of its answers."""
    table = None if table_path is None else read_table(table_path)
    texts = Texts() if table_path is None else find_texts(table_path.with_name(PIECES_FILE))
    content = {
        "title": advice["source"]["name"],
        "name": "advice",
        "advice": advice,
        "kinds": {kind: KINDS[kind] for kind in TABLE_KINDS if table is None or kind != "unknown" or not table.complete},
        "named": table is None or bool(texts.pieces),
    }
    answers = (lambda budget: ([], 0)) if table is None else (lambda budget: table_prompts(table, texts, budget))
    return render("advice.html", out, content, answers, FEW_TOKENS)


def find_texts(file: Path) -> Texts:
    """Empty where nobody stored them, as older recordings did not. Raises UserError where they are damaged."""
    return read_texts(file) if file.exists() else Texts()


def render(template: str, out: Path, content: dict, choose: Choose, tokens: int = TOKENS) -> Path:
    """Write the page, with as many answers as the size allows."""
    page, shown = environment().get_template(template), tokens
    while True:
        prompts, total = choose(shown)
        text = page.render(content, prompts=prompts, total=total)
        if len(text.encode()) <= LARGEST or shown < 2:
            break
        shown //= 2
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    return out


@cache
def environment() -> Environment:
    found = Environment(
        loader=PackageLoader("gammatune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=show_controls,
    )
    found.filters |= {"number": partial(number, instead=DASH), "task": task_name}
    found.globals |= {
        "scale": Scale,
        "colour": style.colour,
        "absent": absent,
        "interval": partial(interval, form="{:.2f} to {:.2f}", instead=DASH),
    }
    for name in ("css", "js"):
        source = found.loader.get_source(found, f"page.{name}")[0]
        found.globals[name] = Markup(source)  # our own files, whose hashes are all that the page's policy lets run
        found.globals[f"{name}_hash"] = b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return found


def show_controls(value):
    """What a template prints: control characters and marks that turn the writing round as \\x1b."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


class Scale:
    """Places of speeds along a line of 0 to 100, with 1 always on it."""

    def __init__(self, values: list[float | None]):
        known = [value for value in values if not absent(value)] + [1.0]
        self.low, high = min(known), max(known)
        self.span = (high - self.low) or 1.0

    def __call__(self, value: float) -> float:
        return round(2 + 96 * (value - self.low) / self.span, 1)


def run_facts(run: StoredRun) -> dict[str, str]:
    runtime, provenance, tasks = run.facts["runtime"], run.arms[0].provenance, run.facts["tasks"]
    return {
        "tasks": str(tasks.get("name", "unknown")),
        "questions": f"{run.questions[['task', 'question_id']].drop_duplicates().shape[0]:,}",
        "repetitions": str(run.questions["repetition"].nunique()),
        "device": provenance.get("device", "unknown"),
        "runtime": f"{runtime.get('name', 'unknown')}, {runtime.get('dtype', 'unknown')}",
        "gammatune": str(provenance.get("gammatune", "unknown")),
        "begun": str(provenance.get("time", "unknown"))[:16].replace("T", " "),
    }


def arm_rows(run: StoredRun) -> list[dict]:
    """The headline: one row per arm over all questions, in the run's order."""
    overall = results_table(run)
    overall = overall[overall["task"] == OVERALL].set_index("label")
    names = arm_names(run.arms)
    return [
        {"label": arm.label, "name": names[arm.label], "policy": arm.policy, "exact": notes.exactness(arm)}
        | overall.loc[arm.label, ["speedup", "speedup_low", "speedup_high"]].astype(float).to_dict()
        | overall.loc[arm.label, ["mean_accepted_tokens", "acceptance_rate", "tokens_per_second"]].astype(float).to_dict()
        for arm in run.arms
    ]


def task_matrix(run: StoredRun) -> dict | None:
    """Measured speedup by task and arm; None without speedups. best_fixed: by task, the label of the fastest fixed arm."""
    results = results_table(run)
    tasks = list(dict.fromkeys(results["task"]))
    if not run.has_baseline or len(tasks) < 3:  # one task is what the headline says
        return None
    shown = [task for task in tasks if task != OVERALL][:MOST_TASKS]
    names = arm_names(run.arms)
    arms = [arm for arm in run.arms if arm.label != BASELINE]
    wide = results.pivot(index="label", columns="task", values="speedup")
    fixed = [arm.label for arm in arms if arm.policy == "fixed"]
    return {
        "tasks": shown,
        "more": len(tasks) - 1 - len(shown),
        "rows": [
            {"name": names[arm.label], "label": arm.label, "speeds": wide.loc[arm.label, shown].tolist()} for arm in arms
        ],
        "best_fixed": [wide.loc[fixed, task].idxmax() if fixed else None for task in shown],
        "best": [wide.loc[[arm.label for arm in arms], task].idxmax() if arms else None for task in shown],
    }


def rank_run(run: StoredRun, table: AcceptanceTable | None, curve: PriceList | None) -> Ranking | None:
    """None where nothing can be replayed or priced, or the weights are random and no speed means anything.

    Raises PolicyError.
    """
    if table is None or not table.complete or run.facts.get("random_weights"):
        return None
    prices, own = "given", run.path / PRICES_FILE
    if curve is None and own.exists():
        curve, prices = read_prices(own), f"{PRICES_FILE} of this run"
    if curve is None:
        curve, prices = prices_of_rounds(run), OWN_PRICES
    return rank_policies(table, curve, price_words(prices, curve)) if curve else None


def price_words(source: str, curve: PriceList | None) -> str:
    if curve is None:
        return ""
    device = curve.facts.get("provenance", {}).get("device")
    where = f", measured on {device}" if device else ""
    ratio = float(curve.ratio(512))
    costs = "drafting takes no forward" if ratio == float("inf") else f"a target step costs {ratio:.1f} draft steps"
    return f"{source}{where}; {costs}"


def table_facts(table: AcceptanceTable) -> dict[str, str]:
    facts = describe_table(table)
    tasks, decode, drafter = (facts.get(name) for name in ("tasks", "decode", "drafter"))
    found = {
        "tasks": tasks.get("name") if isinstance(tasks, dict) else None,
        "questions": f"{facts['questions']:,}",
        "turns": f"{facts['turns']:,}",
        "tokens": f"{facts['tokens']:,}",
        "first choice right": f"{facts['agreement']:.0%}",
        "unknown positions": f"{table.unknown:,}" if table.unknown else None,
        "drafter": drafter.get("name") if isinstance(drafter, dict) else None,
        "draft signals": "recorded" if table.watched else "not recorded",
        "decoding": decode.get("name") if isinstance(decode, dict) else None,
        "runtime": ", ".join(str(facts[name]) for name in ("runtime", "dtype", "device") if facts.get(name)) or None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def why_unranked(table: AcceptanceTable, curve: PriceList | None) -> str:
    if not table.complete:
        return "No ranking: the match of some positions is unknown, of which gammatune headline gives bounds."
    if curve is None:
        return "No ranking: there are no prices. Give --prices FILE, made by gammatune prices, or --cost-ratio C."
    return ""
