"""The model card of a trained feature draft, written from what was measured while it was made."""

from dataclasses import asdict, dataclass

from tabulate import tabulate

from gammatune.training.overlaps import WORDS
from gammatune.training.recipe import KINDS, Recipe
from gammatune.training.shards import Answers

HOUR = 3600.0


@dataclass(frozen=True)
class Made:
    """What a card tells."""

    pair: str
    recipe: Recipe
    log: list[dict]  # a line per evaluation
    train: Answers
    held_out: Answers
    seconds: float  # of stage 3
    environment: dict  # of provenance
    questions: str | None  # sha256 of the benchmark's file that prompts were compared with

    @property
    def last(self) -> dict:
        """The figures of the finished draft."""
        return self.log[-1]


def write_card(made: Made) -> str:
    """Markdown."""
    return "\n\n".join([introduce(made), show_figures(made), show_data(made), show_recipe(made)]) + "\n"


def introduce(made: Made) -> str:
    target, where = made.environment["pair"].get("target"), made.environment
    name = target.get("name") or target.get("id") if isinstance(target, dict) else None
    return (
        f"# A feature draft for the target of {made.pair}\n\n"
        f"One decoder layer that predicts the next feature of {name or 'the target'} from its last one and the token just "
        "emitted (EAGLE-1's idea, arXiv 2401.15077), trained by `gammatune train-draft`. It borrows the target's embedding, "
        f"final norm and LM head and proposes {made.recipe.vocabulary:,} tokens. It belongs to this one target and greedy "
        f"decoding.\n\nMade with gammatune {where['gammatune']} ({where['git'] or 'no checkout'}) on {where['device']}, "
        f"{where['threads']} CPU threads: {made.train.making.seconds / HOUR:.2f} hours for the target's answers, "
        f"{made.seconds / HOUR:.2f} hours of training. More in provenance.json."
    )


def show_figures(made: Made) -> str:
    last, chats = made.last, made.held_out.making.chats
    rows = [
        {"part": f"{line['done']:.0%}", **{f"step {i}": part for i, part in enumerate(line["agreement"], 1)},
         "accepted per round": line["accepted"]}
        for line in made.log
    ]  # fmt: skip
    kinds = [{"kind": kind, "accepted per round": accepted} for kind, accepted in last["by_kind"].items()]
    return (
        f"## Held-out figures\n\nOn {last['answer_tokens']:,} answer tokens to {chats} conversations of our own that no "
        "training saw, whose first turns come from templates and texts of their own. "
        "Agreement per own step: how often a block's token is the target's where all before it "
        "were. Accepted per round: drafted tokens, without the target's own, at gamma "
        f"{last['gamma']} in greedy decoding. {last['covered']:.2%} of the tokens are among those that it can propose."
        f"\n\n{table(rows)}\n\n{table(kinds)}\n\nThese prompts are of the same six kinds as the training's, so they "
        "overstate what other prompts reach."
    )


def show_data(made: Made) -> str:
    train, making = made.train, made.train.making
    rows = []
    for number, kind in enumerate(KINDS):
        here = train.kinds == number
        if here.any():
            prompts, answers = train.prompts[here].sum(), (train.sizes - train.prompts)[here].sum()
            rows.append(
                {"kind": kind, "turns": int(here.sum()), "prompt tokens": int(prompts), "answer tokens": int(answers)}
            )
    total = {name: sum(row[name] for row in rows) for name in ("turns", "prompt tokens", "answer tokens")}
    against = (
        f"{making.overlapping} of {making.chats} conversations were dropped because they equal a turn of the benchmark's "
        f"question file (sha256 {made.questions[:12]}) or share {WORDS} words in a row with one."
        if made.questions
        else "No benchmark's questions were at hand, so prompts were compared with none."
    )
    return (
        "## Data\n\nEvery answer is the target's own greedy one, at most "
        f"{made.recipe.answer_tokens} tokens. Prompts are filled from templates and word lists written for this project. "
        f"{against} {making.long} turns were dropped for their length.\n\n{table([*rows, {'kind': 'total', **total}])}"
    )


def show_recipe(made: Made) -> str:
    settings = [{"setting": name, "value": str(value)} for name, value in asdict(made.recipe).items()]
    return f"## Recipe\n\nWhat each means is told in docs/training.md.\n\n{table(settings)}"


def table(rows: list[dict]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g", intfmt=",")
