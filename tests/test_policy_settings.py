"""No setting of a policy is decoration: each changes the rounds of some text, or is known to have nothing to act on."""

import random
from dataclasses import fields

import pytest
from other_settings import ONLY_ONE, OTHER_SETTINGS, RULES, other_values

from gammatune.errors import UserError
from gammatune.policies import POLICIES, Signals
from gammatune.records import Round

LONGEST, NATS = 24, 4.0
ROUNDS_PER_TURN, ROUNDS_OF_SLOW_RULES = 30, {"vllm_estimator": 250, "ik_autotune": 250}
# One text per turn: how many of the draft's next tokens the target would accept, and how unsure the draft can be
TEXTS = (
    *(((0, 0, 1), 0.2), ((LONGEST,), 0.8), ((LONGEST, LONGEST, 8), 0.8)),
    *(((0, 2, 5, LONGEST), 0.2), ((LONGEST,), 0.8), ((0,), 0.2)),
)
SETTINGS = [(name, f.name) for name in RULES for f in fields(POLICIES[name].rule)]


def simulate(policy) -> list[tuple]:
    """Rounds over a few turns of two questions, with the reset rule of the runner."""
    chance, rounds = random.Random(0), []
    for turn, (matches, lowest) in enumerate(TEXTS):
        if policy.carry == "turn" or (policy.carry == "question" and turn % 2 == 0):
            policy.reset()
        for _ in range(ROUNDS_OF_SLOW_RULES.get(policy.name, ROUNDS_PER_TURN)):
            matching, budget = chance.choice(matches), chance.choice((2, 99, 99, 99))
            top = [chance.uniform(lowest, 1.0) for _ in range(LONGEST)]
            finished = run_round(policy, matching, budget, top)
            policy.observe(finished)
            rounds.append(finished.counts())
    return rounds


def run_round(policy, matching, budget, top) -> Round:
    policy.foresee(matching)
    planned, stop = policy.plan(), "length"
    drafted = min(planned, budget, LONGEST)
    if drafted < planned:
        stop = "budget"
    for index in range(drafted if policy.watches_draft or policy.watches_tokens else 0):
        entropy = NATS * (1 - top[index])
        if not policy.keep_drafting(Signals(index, top[index], entropy, top[index] ** 2, top[index])):
            drafted, stop = index + (policy.stop_token == "include"), "policy"
            break
    accepted = min(matching, drafted)
    tokens = tuple(place % 3 for place in range(accepted + 1))
    return Round(planned, drafted, accepted, accepted + 1, drafted, stop, 0, tokens=tokens)


def acts_on(name: str, key: str) -> bool:
    """carry needs a state to carry, stop_token a policy that stops in mid-block."""
    needs = {"carry": bool(POLICIES[name]().state()), "stop_token": POLICIES[name].rule.watches_draft}
    return needs.get(key, True)


@pytest.mark.parametrize(("name", "key"), [setting for setting in SETTINGS if setting not in ONLY_ONE])
def test_each_setting_changes_a_round_or_has_nothing_to_act_on(name, key):
    plain, values = simulate(POLICIES[name]()), other_values(name, key)
    assert values
    for value in values:
        assert (simulate(POLICIES[name](**{key: value})) != plain) == acts_on(name, key)


@pytest.mark.parametrize(("name", "key"), sorted(ONLY_ONE))
def test_a_setting_with_one_value_refuses_the_others(name, key):
    for value in OTHER_SETTINGS[key]:
        with pytest.raises(UserError, match=rf"\.{key}={value} is out of range: it must be "):
            POLICIES[name](**{key: value})


@pytest.mark.parametrize("name", RULES)
def test_the_simulation_repeats(name):
    policy = POLICIES[name]()
    first = simulate(policy)
    policy.reset()
    assert simulate(policy) == first == simulate(POLICIES[name]())
