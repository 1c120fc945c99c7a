"""A seeded stored run on disk, written through the real records: what a finished run leaves behind, without a model."""

import hashlib
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from gammatune.files import write_json
from gammatune.policies.base import Policy, Signals
from gammatune.policies.fixed import Autoregressive, Fixed
from gammatune.policies.gammatune import GammaTune, GammaTunePlus
from gammatune.records import Round, TurnLog

EOS = 0
TASK_ODDS = {"mt_bench": 0.62, "translation": 0.45, "math_reasoning": 0.74, "qa": 0.55, "summarization": 0.66, "rag": 0.6}
CLASSES = {"ar": Autoregressive, "fixed": Fixed, "gammatune": GammaTune, "gammatune_plus": GammaTunePlus}
DEFAULT_ARMS = ("ar", "fixed-2", "fixed-5", "gammatune-3", "gammatune_plus-3")


@dataclass
class Recipe:
    """What to store. tokens: length of each answer before its end of sequence. slow: factor on all times, by repetition."""

    arms: tuple[str, ...] = DEFAULT_ARMS
    tasks: tuple[str, ...] = ("mt_bench", "translation", "math_reasoning")
    questions: int = 6
    repetitions: int = 2
    tokens: tuple[int, int] = (30, 90)
    seed: int = 7
    slow: tuple[float, ...] = (1.0, 1.0, 1.0)
    facts: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)


def store_run(folder: Path, recipe: Recipe | None = None) -> Path:
    """Write run.json, pieces.json and one cell per arm; returns the folder."""
    recipe = recipe or Recipe()
    folder.mkdir(parents=True, exist_ok=True)
    arms = [describe_arm(label) for label in recipe.arms]
    facts = {
        "run": folder.name,
        "name": folder.name,
        "pair": "smollm2-draft-135m",
        "random_weights": False,
        "tasks": {"name": "synthetic", "source": "demo", "checksum": "0" * 64},
        "decode": {"temperature": 0.0},
        "runtime": {"name": "eager", "device": "cpu", "dtype": "fp32"},
        "seed": recipe.seed,
        "arms": arms,
    }
    write_json(folder / "run.json", facts | recipe.facts)
    turns = {arm["label"]: make_turns(arm, recipe) for arm in arms}
    pieces = {token: piece(token) for logs in turns.values() for log in logs for token in log.output_ids}
    write_json(folder / "pieces.json", {"pieces": pieces})
    for arm in arms:
        store_cell(folder / arm["cell"], turns[arm["label"]], recipe.provenance)
    return folder


def describe_arm(label: str) -> dict:
    policy, _, gamma = label.partition("-")
    settings = {"gamma": int(gamma)} if gamma else {}
    return {"label": label, "policy": policy, "gamma": settings.get("gamma"), "settings": settings, "cell": f"cell-{label}"}


def store_cell(cell: Path, turns: list[TurnLog], provenance: dict | None = None, **done) -> None:
    """A finished cell; keywords replace fields of done.json."""
    cell.mkdir(exist_ok=True)
    write_json(cell / "config.json", {})
    stamp = {
        "device": "Test CPU",
        "gammatune": "0.1.0",
        "packages": {"torch": "2.13.0"},
        "git": "0123456789abcdef+changes",
        "time": "2025-01-01T00:00:00Z",
    }
    write_json(cell / "provenance.json", stamp | (provenance or {}))
    lines = "".join(turn.to_json() + "\n" for turn in turns)
    (cell / "turns.jsonl").write_text(lines)
    record = {
        "status": "ok",
        "exact": True,
        "near_ties": 0,
        "turns": len(turns),
        "rounds": sum(len(t.rounds) for t in turns),
        "tokens": sum(len(t.output_ids) for t in turns),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        "error": None,
        "peak_host_mib": 1.0,
        "peak_device_mib": None,
    }
    write_json(cell / "done.json", record | done)


def change_done(run: Path, label: str, **fields) -> None:
    """Replace fields of one arm's done.json."""
    change_json(run / f"cell-{label}" / "done.json", **fields)


def change_json(file: Path, **fields) -> None:
    """Replace fields of a file of a run; its checksum is as it should be."""
    write_json(file, {key: value for key, value in json.loads(file.read_text()).items() if key != "checksum"} | fields)


def piece(token: int) -> str:
    words = ("the", "draft", "target", "token", "<b>", "guess", "round", "of", "a", "long", "answer", "with\nlines")
    return "</s>" if token == EOS else " " + words[token % len(words)]


def make_turns(arm: dict, recipe: Recipe) -> list[TurnLog]:
    """All turns of one arm; answers and draft hits depend on the question alone, so every arm gives the same text."""
    policy = CLASSES[arm["policy"]](**arm["settings"])
    return [
        make_turn(policy, task, (repetition, 100 * place + number, turn), recipe)
        for repetition in range(recipe.repetitions)
        for place, task in enumerate(recipe.tasks)
        for number in range(recipe.questions)
        for turn in range(2 if task == "mt_bench" else 1)
    ]


def make_turn(policy: Policy, task: str, key: tuple[int, int, int], recipe: Recipe) -> TurnLog:
    repetition, question, turn = key
    text = random.Random(f"{recipe.seed} {question} {turn}")
    ids = [text.randrange(1, 60) for _ in range(text.randint(*recipe.tokens))] + [EOS]
    odds = min(0.95, max(0.05, text.gauss(TASK_ODDS[task], 0.08)))
    hits = [text.random() < odds for _ in ids]
    clock = random.Random(f"{recipe.seed} {question} {turn} {type(policy).__name__} {repetition}")
    policy.reset()
    prompt = 40 + question % 17
    rounds = make_rounds(policy, hits, clock, recipe.slow[repetition], prompt)
    prefill = recipe.slow[repetition] * clock.gauss(20, 1)
    wall = prefill + 1.03 * sum(r.draft_ms + r.verify_ms + r.policy_ms for r in rounds)
    return TurnLog(question, task, task, turn, prompt, ids, "eos", prefill, wall, rounds, repetition)


def make_rounds(policy: Policy, hits: list[bool], clock: random.Random, slow: float, prompt: int) -> list[Round]:
    """Play a policy against known draft hits until all tokens are emitted."""
    rounds, done = [], 0
    while done < len(hits):
        left = hits[done:]
        planned = policy.plan()
        drafted = draft_length(policy, planned, left)
        accepted = next((i for i in range(drafted) if not left[i]), drafted)
        stop = "eos" if drafted == len(left) else "length" if drafted == planned else "policy"
        times = {
            "draft_ms": slow * drafted * clock.gauss(2.2, 0.1),
            "verify_ms": slow * clock.gauss(21 + 0.5 * drafted, 0.5),
            "policy_ms": 0.01 * bool(planned),
        }
        finished = Round(
            planned,
            drafted,
            accepted,
            min(accepted + 1, len(left)),
            drafted,
            stop,
            prompt + done,
            **times,
            state=policy.state(),
        )
        policy.observe(finished)
        rounds.append(finished)
        done += finished.emitted
    return rounds


def draft_length(policy: Policy, planned: int, hits: list[bool]) -> int:
    """Tokens drafted: a draft that will be wrong doubts itself, and a policy that watches stops there (included)."""
    reach = min(planned, len(hits))
    if not policy.watches_draft:
        return reach
    signals = [Signals(i, 0.8 if hits[i] else 0.3, 1.0, 0.2, 0.8) for i in range(reach)]
    return next((signal.index + 1 for signal in signals if not policy.keep_drafting(signal)), reach)
