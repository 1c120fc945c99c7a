"""What a log with unknown matches still tells: bounds and an estimate, at assumed cost ratios.

The derived numbers are stored, not the log: a folder with starts.csv, headline.csv and source.json.
"""

import json
from pathlib import Path

import pandas as pd
from pandas.api.types import is_numeric_dtype

from gammatune.errors import UserError
from gammatune.policies import Policy
from gammatune.replay.prices import CostCurve, from_ratio
from gammatune.replay.simulate import fill_unknown
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable
from gammatune.report.names import policy_name
from gammatune.report.tables import number, to_latex, to_markdown, write
from gammatune.studies.headline import FILLS, METRICS, STARTS, Speeds, replay_all

FILES = ("starts.csv", "headline.csv", "source.json")
ENDS = ("lower", "mean", "upper")
FACTS = {"source": str, "model_id": str, "schedule": str, "turns": int, "tokens": int, "unknown": float, "rate": float}
REMAKE = "make it again with `python -m gammatune bounds`"
KEYS = {"starts": ["ratio", "policy", "start"], "headline": ["ratio", "policy", "metric"]}


def bounded_speeds(table: AcceptanceTable, curve: CostCurve, policies: dict[str, Policy], rate: float) -> dict:
    """Speeds of each fill: lower, every unknown position a mismatch; mean, FILLS seeded fills in which it is a match at this
    rate; upper, every one a match.
    """
    filled = {"lower": [fill_unknown(table, 0.0)], "upper": [fill_unknown(table, 1.0)]}
    filled["mean"] = [fill_unknown(table, rate, seed) for seed in range(FILLS)]
    return {end: [replay_all(build_bench(each, curve), policies) for each in filled[end]] for end in ENDS}


def bound(speeds: dict[str, list[Speeds]], read) -> dict[str, float]:
    """read(Speeds) -> number, at each end; the mean over the fills."""
    return {end: sum(read(each) for each in found) / len(found) for end, found in speeds.items()}


def bounded_numbers(speeds: dict[str, list[Speeds]]) -> dict:
    """{policy: {metric: {lower, mean, upper}}}. A ratio of two policies need not grow with the matches."""
    names = speeds["lower"][0].by_policy
    return {name: {metric: bound(speeds, over_questions(name, metric)) for metric in METRICS} for name in names}


def over_questions(policy: str, metric: str):
    return lambda speeds: speeds.ratio(policy, metric)


def derive_bounds(table: AcceptanceTable, ratios: list[float], policies: dict[str, Policy], rate: float) -> dict:
    """{"starts", "headline": frame}: speed over the target alone by start, and the headline's metrics, with bounds."""
    starts, headline = [], []
    for ratio in ratios:
        speeds = bounded_speeds(table, from_ratio(ratio), policies, rate)
        for policy in ("fixed", *(name for name in policies if name != "fixed")):
            many = len(speeds["lower"][0].by_policy[policy]) > 1
            for place, start in enumerate(STARTS if many else ()):
                starts.append((ratio, policy, start, *bound(speeds, over_alone(policy, place)).values()))
            for metric in METRICS:
                headline.append((ratio, policy, metric, *bound(speeds, over_questions(policy, metric)).values()))
    return {
        "starts": pd.DataFrame(starts, columns=[*KEYS["starts"], *ENDS]),
        "headline": pd.DataFrame(headline, columns=[*KEYS["headline"], *ENDS]),
    }


def over_alone(policy: str, place: int):
    return lambda speeds: float(speeds.by_policy[policy][place].mean() / speeds.by_policy["ar"][0].mean())


def store_bounds(frames: dict, source: dict, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in frames.items():
        frame.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    write(folder / "source.json", json.dumps(source, indent=1) + "\n")


def read_bounds(folder: Path) -> tuple[dict, dict]:
    """(frames, source). Raises UserError for missing or damaged files."""
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        frames = {name: pd.read_csv(folder / f"{name}.csv") for name in KEYS}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} has no readable bounds ({error}): {REMAKE}.") from error
    damages = [find_damage(frame, KEYS[name], f"{name}.csv") for name, frame in frames.items()]
    if damage := next(filter(None, damages), None) or find_missing_fact(source):
        raise UserError(f"{folder} is damaged ({damage}): {REMAKE}.")
    return frames, source


def find_damage(frame: pd.DataFrame, keys: list[str], file: str) -> str | None:
    """What keeps a frame from being shown, in words: every combination of its keys must have one row of numbers."""
    if list(frame.columns) != [*keys, *ENDS]:
        return f"{file} has other columns"
    if frame.empty or frame.duplicated(keys).any() or len(frame) != frame[keys].nunique().prod():
        return f"{file} has rows too many or too few"
    if frame.isna().any(axis=None) or not all(is_numeric_dtype(frame[name]) for name in ("ratio", *ENDS)):
        return f"{file} has cells that are no numbers"
    return None


def find_missing_fact(source) -> str | None:
    known = source if isinstance(source, dict) else {}
    missing = [name for name, kind in FACTS.items() if not isinstance(known.get(name), kind)]
    return f"source.json has no usable {missing[0]}" if missing else None


def write_bounds(folder: Path, out: Path) -> list[Path]:
    """starts and headline as .md, .tex and .csv."""
    frames, source = read_bounds(folder)
    out.mkdir(parents=True, exist_ok=True)
    caption = describe_source(source)
    written = []
    for name, frame in frames.items():
        view = bounds_view(frame, KEYS[name])
        written.append(write(out / f"{name}.csv", frame.to_csv(index=False)))
        written.append(write(out / f"{name}.md", to_markdown(view, caption)))
        written.append(write(out / f"{name}.tex", to_latex(view, caption, f"tab:bounds-{name}")))
    return written


def bounds_view(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Cost ratio and policy as rows; starts or metrics as columns; "lower / estimate / upper" in a cell."""
    cells = [" / ".join(number(row[end]) for end in ENDS) for _, row in frame.iterrows()]
    order = list(dict.fromkeys(frame[keys[2]]))
    wide = frame.assign(cell=cells).pivot(index=keys[:2], columns=keys[2], values="cell")[order].reset_index()
    wide["policy"] = wide["policy"].map(policy_name)
    wide["ratio"] = wide["ratio"].map("{:g}".format)
    return wide.rename(columns=lambda name: str(name).replace("_", " ")).rename(columns={"ratio": "T_target / T_draft"})


def describe_source(source: dict) -> str:
    return (
        f"Source: {source['source']} ({source['model_id']}), {source['turns']} turns, {source['tokens']:,} tokens, drafted "
        f"by {source['schedule']}. Each cell: the {source['unknown']:.1%} unknown positions as mismatches / as matches at "
        f"the estimated rate {source['rate']:.2f} / all as matches. A ratio of two policies may fall as matches grow. "
        "Verification is taken as flat."
    )
