"""The model card, written from the run's own records."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from .corpus import PACKAGES
from .ranking import count_tokens, cover, describe_counts
from .teacher import load_samples

TEMPLATE = Path(__file__).parent / "card_template.md"


def table(header: list[str], rows: list[list]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def task_table(summary: dict) -> str:
    """Mean tokens per round and agreement of every task, the pooled row last."""
    names = sorted(summary["tasks"], key=lambda name: (name == "overall", name))
    rows = [summary["tasks"][name] for name in names]
    cells = [
        [name, f"{r['mean_emitted']:.3f}", f"{r['agreement']:.1%}", r["tokens"], r["rounds"]]
        for name, r in zip(names, rows, strict=True)
    ]
    return table(["task", "mean tokens per round", "agreement", "tokens", "rounds"], cells)


def reliability_table(evaluation: dict) -> str:
    """Mean top-1 probability against match rate per tenth, on both sets."""
    parts = {name: {row["from"]: row for row in evaluation[name]["reliability"]} for name in ("specbench", "dev")}
    rows = []
    for low in sorted(set(parts["specbench"]) | set(parts["dev"])):
        cells = [f"{low:.1f} to {low + 0.1:.1f}"]
        for part in parts.values():
            row = part.get(low)
            cells += [row["tokens"], f"{row['mean_top1']:.3f}", f"{row['match_rate']:.3f}"] if row else ["", "", ""]
        rows.append(cells)
    names = ["tokens", "mean top-1", "match rate"]
    return table(["top-1", *(f"SpecBench {n}" for n in names), *(f"held-out {n}" for n in names)], rows)


def data_counts(shards: Path) -> tuple[Counter, str]:
    """Totals over the training shards and a table per kind of prompt."""
    kinds: dict[str, Counter] = {}
    for path in sorted(shards.glob("train-*.json")):
        kinds.setdefault(path.stem.split("-")[-1], Counter()).update(json.loads(path.read_text()))
    total = sum(kinds.values(), Counter())
    names = ["prompts", "new_tokens", "prompt_tokens"]
    rows = [[kind, *(counts[n] for n in names)] for kind, counts in [*sorted(kinds.items()), ("total", total)]]
    return total, table(["kind", "prompts", "answer tokens", "prompt tokens"], rows)


def count_shards(shards: Path, split: str, vocab_size: int) -> np.ndarray:
    """How often each id (V,) occurs in the prompts and answers of a split's shards."""
    paths = sorted(shards.glob(f"{split}-*.pt"))
    return count_tokens((sample.ids for path in paths for sample in load_samples(path)), vocab_size)


def describe_ranking(shards: Path, output: Path) -> str:
    """What the ranking in ``output`` was counted from, and how much of the held-out shards it covers."""
    ranking = np.load(output / "token_ranking.npy")
    train, dev = (count_shards(shards, split, len(ranking)) for split in ("train", "dev"))
    held_out = ", ".join(f"{share:.2%}" for share in cover(ranking, dev).values())
    return f"{describe_counts(ranking, train)} Of the {dev.sum():,} held-out tokens, not counted: {held_out}."


def write_card(work: Path, run: Path, output: Path, machine: str) -> None:
    """Write ``README.md`` beside the shipped weights."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    recipe = json.loads((run / "recipe.json").read_text())
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])
    total, data = data_counts(work / "shards")
    # What the records cannot tell, such as an interruption, may be written by hand into remarks.json.
    notes = run / "remarks.json"
    remarks = json.loads(notes.read_text()) if notes.exists() else {}
    size = (output / "model.safetensors").stat().st_size
    values = {
        **{key: recipe[key] for key in ("prompt_weight", "frequent", "copy_every", "rate", "step_tokens")},
        "optimiser": {"adamw": "AdamW", "muon": "Muon"}[recipe["optimiser"]],
        "layers": len(recipe["shape"]["sources"]),
        "hidden": recipe["shape"]["hidden"],
        "mlp": recipe["shape"]["intermediate"],
        "sources_layers": ", ".join(map(str, recipe["shape"]["sources"])),
        "hard": recipe["hard"],
        "soft": 1 - recipe["hard"],
        "parameters": size / 2e6,
        "size": size / 1e6,
        "specbench": task_table(evaluation["specbench"]),
        "dev": task_table(evaluation["dev"]),
        "dev_samples": evaluation["dev"]["tasks"]["overall"]["samples"],
        "temperature": evaluation["temperature"],
        "reliability": reliability_table(evaluation),
        "sources": "\n".join(f"- `{name}`: {text}" for name, text in PACKAGES.items()),
        "data": data,
        "ranking": describe_ranking(work / "shards", output),
        "dropped": total["dropped"],
        "prompts": total["prompts"] + total["dropped"],
        "tokens": last["tokens"] / 1e6,
        "minutes": last["minutes"],
        "machine": machine,
        "remark": remarks.get("data", ""),
        "history": remarks.get("history", ""),
    }
    temporary = output / "README.md.tmp"
    temporary.write_text(TEMPLATE.read_text().format(**values))
    temporary.rename(output / "README.md")
