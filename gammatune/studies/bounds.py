"""What a log with unknown matches still tells: bounds and an estimate, at assumed cost ratios.

The derived numbers are stored, not the log: a folder with starts.csv, headline.csv and source.json.
"""

import hashlib
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from gammatune.errors import UserError, one_line
from gammatune.files import read_json, read_text, write_json, write_text
from gammatune.policies import Policy
from gammatune.replay.prices import PriceList
from gammatune.replay.simulate import fill_unknown
from gammatune.replay.speeds import build_bench
from gammatune.replay.table import AcceptanceTable
from gammatune.studies.headline import FILLS, STARTS, Speeds, replay_all
from gammatune.traces import MATCH, UNKNOWN

FILES = ("starts.csv", "headline.csv", "source.json")
ENDS = ("lower", "mean", "upper")
FACTS = {"source": str, "model_id": str, "schedule": str, "turns": int, "tokens": int, "unknown": float, "rate": float}
KEYS = {"starts": ["ratio", "policy", "start"], "headline": ["ratio", "policy", "metric"]}
REMAKE = "make it again with `gammatune bounds`"


@dataclass(eq=False)
class Bounds:
    """Derived numbers of one log; in each frame the columns lower, mean and upper hold them (ENDS)."""

    #: speed over the target alone, by cost ratio, policy and starting gamma
    starts: pd.DataFrame
    #: the headline's metrics, by cost ratio, policy and metric
    headline: pd.DataFrame
    #: where the log comes from and how much of it is known (FACTS)
    source: dict


def estimate_match_rate(table: AcceptanceTable) -> float:
    """How often a known token matches whose predecessor matched too; how often any known one does where there is none.

    An unknown token comes after a whole block of matches, and where the draft has just been right it is right more often
    than at the start of a block (0.72 against 0.59 on Spec-Bench's mt_bench log of Vicuna-7B/68M). Conditioning on the exact
    number of matches before it moves that estimate by 0.001, and a log of one fixed gamma has no samples for it.
    Raises UserError where nothing is known.
    """
    after = np.concatenate([turn.match[1:] for turn in table.turns])
    before = np.concatenate([turn.match[:-1] for turn in table.turns])
    every = np.concatenate([turn.match for turn in table.turns])
    for sample in (after[before == MATCH], every):
        known = sample[sample != UNKNOWN]
        if len(known):
            return float((known == MATCH).mean())
    raise UserError("No position of this table has a known match, so no rate can be estimated: import a longer log.")


def count_unknown(table: AcceptanceTable) -> float:
    """Share of positions whose match is unknown."""
    return table.unknown / table.tokens


def bounded_speeds(table: AcceptanceTable, curve: PriceList, policies: dict[str, Policy]) -> dict[str, list[Speeds]]:
    """Speeds of each fill: lower, every unknown position a mismatch; mean, FILLS seeded fills in which it is a match at the
    estimated rate; upper, every one a match.
    """
    rate = estimate_match_rate(table)
    filled = {"lower": [fill_unknown(table, 0.0)], "upper": [fill_unknown(table, 1.0)]}
    filled["mean"] = [fill_unknown(table, rate, seed) for seed in range(FILLS)]
    return {end: [replay_all(build_bench(each, curve), policies) for each in filled[end]] for end in ENDS}


def bound(speeds: dict[str, list[Speeds]], read, *which) -> dict[str, float]:
    """read(Speeds, *which) -> number, at each end; the mean over the fills."""
    return {end: sum(read(each, *which) for each in found) / len(found) for end, found in speeds.items()}


def bounded_numbers(speeds: dict[str, list[Speeds]]) -> dict:
    """{policy: {metric: {lower, mean, upper}}}. A ratio of two policies need not grow with the matches."""
    one = speeds["lower"][0]
    return {name: {metric: bound(speeds, Speeds.ratio, name, metric) for metric in one.metrics} for name in one.by_policy}


def derive_bounds(table: AcceptanceTable, curves: list[PriceList], policies: dict[str, Policy]) -> Bounds:
    """At each price list, which rows call by its T_target / T_draft. Raises UserError where no match is known."""
    starts, headline = [], []
    for curve in curves:
        ratio, speeds = round(float(curve.ratio()), 2), bounded_speeds(table, curve, policies)
        for policy in ("fixed", *(name for name in policies if name != "fixed")):
            has_starts = len(speeds["lower"][0].by_policy[policy]) > 1
            for place, start in enumerate(STARTS if has_starts else ()):
                starts.append((ratio, policy, start, *bound(speeds, over_alone, policy, place).values()))
            for metric in speeds["lower"][0].metrics:
                headline.append((ratio, policy, metric, *bound(speeds, Speeds.ratio, policy, metric).values()))
    counts = {"turns": len(table.turns), "tokens": table.tokens}
    counts |= {"unknown": count_unknown(table), "rate": estimate_match_rate(table)}
    return Bounds(
        starts=pd.DataFrame(starts, columns=[*KEYS["starts"], *ENDS]),
        headline=pd.DataFrame(headline, columns=[*KEYS["headline"], *ENDS]),
        source=table.facts | counts,
    )


def over_alone(speeds: Speeds, policy: str, place: int) -> float:
    """From STARTS[place]."""
    return float(speeds.by_policy[policy][place].mean() / speeds.by_policy["ar"][0].mean())


def store_bounds(bounds: Bounds, folder: Path) -> None:
    """The frames, and last source.json with the SHA-256 of each."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {f"{name}.csv": getattr(bounds, name).to_csv(index=False, float_format="%.6g") for name in KEYS}
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / "source.json", bounds.source | {"sha256 of": {name: checksum(text) for name, text in texts.items()}})


def checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_bounds(folder: Path) -> Bounds:
    """Raises UserError for missing, damaged or changed files. Folders of the first schema have no checksums."""
    source = read_json(folder / "source.json", REMAKE, bare=True)
    del source["schema"]
    sums = source.pop("sha256 of", None)
    for fact, kind in FACTS.items():
        if not isinstance(source.get(fact), kind) or isinstance(source[fact], bool):
            raise UserError(f"{folder / 'source.json'} is damaged (it has no usable {fact}): {REMAKE}.")
    source |= {fact: one_line(source[fact]) for fact, kind in FACTS.items() if kind is str}
    frames = {name: read_frame(folder / f"{name}.csv", name, sums) for name in KEYS}
    return Bounds(**frames, source=source)


def read_frame(file: Path, name: str, sums: dict | None) -> pd.DataFrame:
    """Raises UserError."""
    text = read_text(file, REMAKE)
    if sums is not None and (not isinstance(sums, dict) or sums.get(file.name) != checksum(text)):
        raise UserError(f"{file} is damaged or was changed (its checksum does not fit): {REMAKE}.")
    try:
        frame = pd.read_csv(StringIO(text))
        check_frame(frame, name)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is damaged ({' '.join(str(error).split())}): {REMAKE}.") from error
    return frame


def check_frame(frame: pd.DataFrame, name: str) -> None:
    """Raises ValueError or KeyError where a frame cannot be shown: each combination of its keys must have one row."""
    keys, numbers = frame[KEYS[name]], frame[list(ENDS)].astype(float)
    whole = len(frame) == keys.nunique().prod() > 0 and not keys.duplicated().any()
    if not whole or not np.isfinite(numbers).all(axis=None) or not np.isfinite(keys["ratio"].astype(float)).all():
        raise ValueError("it lacks rows or numbers, or has some twice")
