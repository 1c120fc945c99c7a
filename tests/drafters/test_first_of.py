"""A list of drafters: who proposes, that all follow the text, and what is recorded of them together."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pytest
from table_model import draw_prompt, own_answer, table_engine

from gammatune.config import DecodeConfig
from gammatune.decoding.loop import generate_speculative
from gammatune.decoding.sampling import GreedySampler
from gammatune.drafters.base import Drafter, refuse_watching
from gammatune.drafters.first_of import FirstOf
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.model import DraftModel
from gammatune.drafters.suffix import Suffix
from gammatune.errors import UserError
from gammatune.policies.fixed import Fixed
from gammatune.policies.session import PolicySession
from gammatune.records import Block, Proposal, Signals

SMALL = {"memory": 2, "vocab_size": 12, "ends": (9,)}


@dataclass
class Told(Drafter):
    """Proposes what it is told, and notes what it is told of the text."""

    name: ClassVar[str] = "told"
    signals: ClassVar[bool] = True
    proposals: list[list[int]] = field(default_factory=list)

    def begin(self, prompt, sampler) -> None:
        self.heard = [list(prompt)]

    def propose(self, text, block) -> Proposal:
        tokens = self.proposals.pop(0)
        for index, token in enumerate(tokens):
            if not block.add(token, Signals(index, 0.5, 1.0, 0.1, 0.5)):
                break
        return Proposal(self.workplace.device.upload(tokens[: block.drafted]))

    def commit(self, text) -> None:
        self.heard.append(list(text))


def propose(members: list[Drafter], **block) -> tuple[list[int], int]:
    """The tokens, and who proposed them."""
    engine = table_engine(FirstOf(members))
    engine.drafter.begin([1, 2], None)
    proposal = engine.drafter.propose([1, 2], Block(4, 9, **block))
    return proposal.tokens.tolist(), proposal.proposer


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([[3, 4], [5]], ([3, 4], 0)),
        ([[], [5]], ([5], 1)),
        ([[], [], [6, 7]], ([6, 7], 2)),
        ([[], []], ([], 0)),
        ([[5]], ([5], 0)),
    ],
)
def test_the_first_that_proposes_makes_the_block(told, expected):
    assert propose([Told(proposals=[tokens]) for tokens in told]) == expected


def test_one_whose_only_token_was_dropped_has_proposed():
    """The policy's stop ends the block: the next drafter is not asked."""
    members = [Told(proposals=[[]]), Told(proposals=[[3]]), Told(proposals=[[4]])]
    assert propose(members, keep=lambda signals: False, exclude=True) == ([], 1)
    assert members[2].proposals == [[4]]


def test_all_follow_the_text():
    members = [Told(proposals=[[5], [], [5]] * 9), Told(proposals=[[6]] * 9), DraftModel()]
    engine = table_engine(FirstOf(members), ends=())
    made = generate_speculative(engine, [4, 5], PolicySession(Fixed(gamma=3)), DecodeConfig(max_new_tokens=8))
    text = [4, 5, *made.output_ids]
    ends = np.cumsum([2, *(r.emitted for r in made.rounds)])
    assert members[0].heard == members[1].heard == [text[:end] for end in ends]
    assert {r.proposer for r in made.rounds} == {0, 1}
    assert members[2].model.text == [4], "it has read the prompt, and waits for what else it is asked"


LISTS = {
    "suffix, model": lambda: [Suffix(max_tree_depth=4), DraftModel()],
    "lookup, model": lambda: [Lookup(shortest=2), DraftModel()],
    "lookup, suffix": lambda: [Lookup(shortest=3), Suffix()],
    "lookup, suffix, model": lambda: [Lookup(shortest=3), Suffix(max_tree_depth=3), DraftModel()],
    "model, suffix": lambda: [DraftModel(), Suffix()],
}


@pytest.mark.parametrize("depth", [24, 3])
@pytest.mark.parametrize("kind", LISTS)
def test_a_trace_is_what_they_propose_together_from_each_position(kind, depth):
    """Composed of the members' own traces, and start by start with the list itself, which runs the model at each of them."""
    who, watched = set(), "lookup" not in kind
    for seed in range(6):
        engine = table_engine(FirstOf(LISTS[kind]()), agreement=0.7, **SMALL)
        prompt = draw_prompt(seed, 9, vocab_size=12)
        answer = own_answer(engine, prompt, 30)
        composed = engine.trace(prompt, answer, 30, depth)
        engine.drafter.begin(prompt, GreedySampler())
        tried = Drafter.trace(engine.drafter, prompt, answer, 30, depth)
        assert composed.watched == watched
        for place in range(len(answer)):
            mine, theirs = (tokens_at(trace, place, watched) for trace in (composed, tried))
            shared = min(len(theirs), depth)
            assert mine[:shared] == theirs[:shared]
            assert bool(mine) == bool(theirs) or place == 29, "there is no room for a token at the last position"
            assert min(composed.right[place], len(theirs)) == tried.right[place]
            if mine and theirs:
                who.add(int(composed.proposer[place]))
        late = composed.late
        if "model" in kind:
            alone = table_engine(agreement=0.7, **SMALL).trace(prompt, answer, 30, depth)
            assert late.tolist() == (alone.match == 1).tolist()
        else:
            assert late is None
    assert who == ({0} if kind == "model, suffix" else set(range(len(LISTS[kind]()))))


def tokens_at(trace, place: int, watched: bool) -> list[tuple]:
    """Tokens proposed from a start, each with its signals."""
    end = int(trace.proposed[: place + 1].sum())
    start = end - int(trace.proposed[place])
    ids = trace.ids[start:end].tolist()
    if not watched:
        return ids
    signals = (trace.signals.top1, trace.signals.entropy, trace.signals.margin)
    return list(zip(ids, *(column[start:end].tolist() for column in signals), strict=True))


def test_the_model_runs_once_along_an_answer():
    """As many forwards as of the model alone, however often another proposes."""
    fed = {}
    for name, drafter in {"alone": DraftModel(), "list": FirstOf([Suffix(), DraftModel()])}.items():
        engine = table_engine(drafter, **SMALL)
        prompt = draw_prompt(3, vocab_size=12)
        answer, model, calls = own_answer(engine, prompt, 30), engine.drafter.workplace.model, []
        forward = model.forward
        model.forward = lambda *args, calls=calls, forward=forward, **more: calls.append(1) or forward(*args, **more)
        engine.trace(prompt, answer, 30, 24)
        fed[name] = len(calls)
    assert fed["alone"] == fed["list"] > 30


def test_a_list_says_what_it_is_made_of():
    drafter = FirstOf([Lookup(longest=5), DraftModel()])
    assert drafter.name == "[lookup,model]"
    assert drafter.identity == {
        "name": "[lookup,model]",
        "members": [{"name": "lookup", "longest": 5, "shortest": 1}, {"name": "model"}],
    }
    assert (drafter.signals, drafter.needs_draft_model) == (False, True)
    assert FirstOf([Suffix(), DraftModel()]).signals and not FirstOf([Lookup(), Suffix()]).needs_draft_model


def test_a_list_without_drafters_is_refused():
    with pytest.raises(
        UserError, match=r"^A list of drafters holds none: name one or more, such as drafter=\[suffix,model\]"
    ):
        FirstOf([])


def test_who_has_no_signals_is_named():
    with pytest.raises(UserError) as refused:
        refuse_watching(FirstOf([Lookup(), Suffix()]), "svip")
    assert str(refused.value) == (
        "policy=svip stops by the draft's signals, and drafter=[lookup,suffix] has none from lookup: choose a policy that "
        "plans lengths only, such as fixed or gammatune, or drafter=model."
    )
