"""Each rule against hand-computed rounds."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import finished, signal
from other_settings import RULES

from gammatune.errors import UserError
from gammatune.policies import POLICIES


def test_gammatune_worked_example():
    """Start 3: A=3 -> gamma 5, mean 3; A=2 -> mean 2.7, gamma 3; A=3 -> gamma 5, mean 2.7."""
    policy = POLICIES["gammatune"](gamma=3)
    seen = []
    for accepted in (3, 2, 3):
        policy.observe(finished(policy.plan(), accepted))
        seen.append((policy.plan(), policy.mean))
    assert seen == [(5, 3.0), (3, pytest.approx(2.7)), (5, pytest.approx(2.7))]


def test_gammatune_clips_the_mean_and_not_the_growth():
    policy = POLICIES["gammatune"](gamma=12, gamma_max=10)
    policy.observe(finished(12, 12))
    assert policy.plan() == 14
    policy.observe(finished(14, 13))
    assert (policy.mean, policy.plan()) == (10, 10)
    for _ in range(60):
        policy.observe(finished(policy.plan(), 0))
    assert (policy.mean, policy.plan()) == (1, 1)


def test_gammatune_clip_expand_caps_growth():
    policy = POLICIES["gammatune"](gamma=9, clip_expand="gamma_max")
    policy.observe(finished(9, 9))
    assert policy.plan() == 10


@pytest.mark.parametrize("full, expected", [("planned", 3), ("drafted", 4)])
def test_gammatune_plus_full_acceptance_of_a_shortened_block(full, expected):
    policy = POLICIES["gammatune_plus"](gamma=3, full=full)
    policy.observe(finished(3, 2, drafted=2, stop="policy"))
    assert policy.plan() == expected


def test_gammatune_plus_stops_under_tau_only():
    policy = POLICIES["gammatune_plus"](tau=0.4)
    assert policy.keep_drafting(signal(0.4)) and not policy.keep_drafting(signal(0.399))


def test_ignore_cut_learns_nothing_from_cut_rounds():
    for ignore, gamma in ((True, 3), (False, 5)):
        policy = POLICIES["gammatune"](gamma=3, ignore_cut=ignore, full="drafted")
        policy.observe(finished(3, 3, stop="budget"))
        assert policy.plan() == gamma


def test_hf_heuristic_climbs_by_two_and_falls_by_one_never_under_one():
    policy = POLICIES["hf_heuristic"](gamma=2)
    plans = []
    for share in (1, 0, 0, 0, 0, 1):
        policy.observe(finished(policy.plan(), policy.plan() if share else 0))
        plans.append(policy.plan())
    assert plans == [4, 3, 2, 1, 1, 3]


def test_hf_heuristic_has_no_upper_bound():
    policy = POLICIES["hf_heuristic"]()
    for _ in range(50):
        policy.observe(finished(policy.plan(), policy.plan()))
    assert policy.plan() == 105


def test_hf_confidence_reads_the_drafted_tokens_own_probability():
    policy = POLICIES["hf_confidence"]()
    assert policy.plan() == 20
    assert not policy.keep_drafting(signal(top1=0.9, chosen=0.39)) and policy.keep_drafting(signal(top1=0.1, chosen=0.4))
    assert POLICIES["hf_confidence"](threshold=0.0).keep_drafting(signal(0.0))


@pytest.mark.parametrize(
    "name, wrong",
    [
        ("fixed", {"gamma": -1}),
        ("gammatune", {"gamma": 0}),
        ("gammatune", {"eta": 1.1}),
        ("gammatune", {"eta": -0.1}),
        ("gammatune", {"delta": -1}),
        ("gammatune", {"gamma_min": 0}),
        ("gammatune", {"gamma_min": 5, "gamma_max": 4}),
        ("gammatune", {"full": "some"}),
        ("gammatune", {"clip_expand": "all"}),
        ("gammatune_plus", {"tau": 1.5}),
        ("hf_heuristic", {"gamma": 0}),
        ("hf_confidence", {"threshold": 2.0}),
        ("hf_confidence_online", {"threshold": 0.0}),
        ("hf_confidence_online", {"carry": "question"}),
        ("hf_confidence_online", {"carry": "day"}),
        ("svip", {"factor": 0.0}),
        ("svip", {"threshold": -0.1}),
        ("svip_paper", {"gamma": -1}),
        ("adaedl", {"gamma": 0}),
        ("adaedl", {"factor": -1.0}),
        ("adaedl", {"threshold": 1.1}),
        ("adaedl", {"alpha": 1.1}),
        ("adaedl", {"beta1": -0.1}),
        ("adaedl", {"beta2": 2.0}),
        ("adaedl", {"epsilon": -0.01}),
        ("p_min", {"p_min": 75.0}),
        ("cumulative", {"threshold": 1.1}),
        ("cumulative", {"gamma_min": 0}),
        ("sglang_walk", {"gamma": -1}),
        ("sglang_walk", {"steps": []}),
        ("sglang_walk", {"steps": [3, -1]}),
        ("sglang_walk", {"ema_alpha": 1.5}),
        ("sglang_walk", {"update_interval": 0}),
        ("sglang_walk", {"warmup_rounds": -1}),
        ("sglang_walk", {"up_hysteresis": float("nan")}),
        ("sglang_walk", {"down_hysteresis": float("-inf")}),
        ("ucb", {"arms": []}),
        ("ucb", {"arms": [-1, 2]}),
        ("ucb", {"arms": [1, 1]}),
        ("ucb", {"reward": "speed"}),
        ("ucb", {"cost_ratio": 0.0}),
        ("ucb", {"radius": "wide"}),
        ("ucb", {"risk": 0.0}),
        ("ucb", {"warmup_rounds": -1}),
        ("tuned_fixed", {"gamma": -1}),
        ("llama_2023", {"gamma": -1}),
        ("llama_2023", {"gamma_min": 0}),
        ("llama_2023", {"gamma_min": 31}),
        ("llama_2023", {"delta": -1}),
        ("llama_2023", {"ratio": float("inf")}),
        ("llama_in_a_row", {"gamma": -1}),
        ("llama_in_a_row", {"gamma_min": 0}),
        ("llama_in_a_row", {"gamma_min": 17}),
        ("llama_in_a_row", {"times": 0}),
        ("llama_in_a_row", {"bias": -1}),
        ("vllm_estimator", {"gamma": 0}),
        ("vllm_estimator", {"gamma": 129}),
        ("vllm_estimator", {"feature": "entropy"}),
        ("vllm_estimator", {"refit_interval": 0}),
        ("vllm_estimator", {"warmup_refits": -1}),
        ("vllm_estimator", {"min_observations": 0}),
        ("vllm_estimator", {"cost_ratio": 0.0}),
        ("ik_autotune", {"gamma": 0}),
        ("ik_autotune", {"gamma": 129}),
        ("ik_autotune", {"p_min": 0.96}),
        ("ik_autotune", {"epsilon": 1.1}),
        ("ik_autotune", {"seed": -1}),
        ("optimal_stopping", {"gamma": 129}),
        ("optimal_stopping", {"gamma": -1}),
        ("optimal_stopping_blind", {"cost_ratio": 0.0}),
        ("oracle", {"carry": "day"}),
        ("fixed", {"carry": "day"}),
        ("gammatune_plus", {"stop_token": "maybe"}),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, wrong):
    with pytest.raises(UserError, match=f"{list(wrong)[-1]}|gamma_max"):
        POLICIES[name](**wrong)


def test_gamma_is_a_start_where_the_rule_moves_it():
    """Elsewhere it is the number itself, or a ceiling."""
    adapting = {name for name, option in POLICIES.items() if option.rule.adapts_gamma}
    assert adapting == {
        *("gammatune", "gammatune_plus", "hf_heuristic", "sglang_walk"),
        *("llama_2023", "llama_2023_blind", "llama_in_a_row"),
    }
    assert all("gamma_now" in POLICIES[name].rule.state_fields for name in adapting)


def play(policy, shares: list[float]) -> None:
    """Observe one round per share: that share of the planned tokens accepted; blocks and signals are made from it too."""
    for share in shares:
        policy.foresee(round(10 * share))
        planned = policy.plan()
        assert isinstance(planned, int) and planned >= 0
        accepted = round(share * planned)
        for index in range(planned if policy.watches_draft or policy.watches_tokens else 0):
            policy.keep_drafting(signal(top1=share if index < accepted else share / 2, entropy=1 - share, index=index))
        policy.observe(finished(planned, accepted))


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=20)
@given(before=st.lists(st.floats(0, 1), max_size=40), after=st.lists(st.floats(0, 1), max_size=20))
def test_a_state_is_all_that_the_next_rounds_need_and_reset_forgets(name, before, after):
    """From a logged state a fresh policy goes on as the old one; after reset it is a new one. Plans are never negative."""
    policy, fresh = POLICIES[name](), POLICIES[name]()
    start = policy.state()
    play(policy, before)
    assert all(type(value) in (int, float) for value in policy.state().values())
    fresh.restore(json.loads(json.dumps(policy.state())))
    assert fresh.state() == policy.state()
    for one in (policy, fresh):
        one.begin(10)  # runs are interrupted between answers
    if name != "hf_confidence_online":  # goes on from its samples, which end with the answer: its state is the next round's
        play(policy, after)
        play(fresh, after)
    for one in (policy, fresh):
        one.foresee(3)
    assert (fresh.plan(), fresh.state()) == (policy.plan(), policy.state())
    policy.reset()
    assert policy.state() == start
    play(policy, after)
    again = POLICIES[name]()
    play(again, after)
    assert policy.state() == again.state()
