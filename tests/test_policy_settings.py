"""No setting of a policy is decoration: each changes the rounds of some text, or is known to have nothing to act on."""

import random
from dataclasses import fields

import pytest
from other_settings import OTHER_SETTINGS

from gammatune.policies import POLICIES, DraftSignal
from gammatune.rounds import Round

LONGEST, ROUNDS_PER_TURN = 24, 30
# One text per turn: how many of the draft's next tokens the target would accept, and how unsure the draft can be
TEXTS = (((0, 0, 1), 0.2), ((LONGEST,), 0.8), ((LONGEST, LONGEST, 8), 0.8), ((0, 2, 5, LONGEST), 0.2))


def simulate(policy) -> list[tuple]:
    """Rounds over a few turns of two questions, with the reset rule of the runner."""
    chance, rounds = random.Random(0), []
    for turn, (matches, lowest) in enumerate(TEXTS):
        if policy.carry == "turn" or (policy.carry == "question" and turn % 2 == 0):
            policy.reset()
        for _ in range(ROUNDS_PER_TURN):
            matching, budget = chance.choice(matches), chance.choice((2, 99, 99, 99))
            top = [chance.uniform(lowest, 1.0) for _ in range(LONGEST)]
            finished = run_round(policy, matching, budget, top)
            policy.observe(finished)
            rounds.append(finished.counts())
    return rounds


def run_round(policy, matching, budget, top) -> Round:
    planned, stop = policy.plan(), "length"
    drafted = min(planned, budget, LONGEST)
    if drafted < planned:
        stop = "budget"
    for index in range(drafted if policy.watches_draft else 0):
        if not policy.keep_drafting(DraftSignal(index, top[index], 1.0, 0.1, top[index])):
            drafted, stop = index + (policy.stop_token == "include"), "policy"
            break
    accepted = min(matching, drafted)
    return Round(planned, drafted, accepted, accepted + 1, drafted, stop, 0)


def acts_on(name: str, key: str) -> bool:
    """carry needs a state to carry, stop_token a policy that stops in mid-block."""
    return {"carry": bool(POLICIES[name].kept), "stop_token": POLICIES[name].watches_draft}.get(key, True)


@pytest.mark.parametrize(("name", "key"), [(name, f.name) for name, policy in POLICIES.items() for f in fields(policy)])
def test_each_setting_changes_a_round_or_has_nothing_to_act_on(name, key):
    policy = POLICIES[name]
    default = getattr(policy(), key)
    values = ("question", "never") if key == "carry" else ("planned" if default == "drafted" else OTHER_SETTINGS[key],)
    plain = simulate(policy())
    for value in values:
        assert value != default
        assert (simulate(policy(**{key: value})) != plain) == acts_on(name, key)


def test_the_simulation_repeats():
    assert simulate(POLICIES["gammatune_plus"]()) == simulate(POLICIES["gammatune_plus"]())
