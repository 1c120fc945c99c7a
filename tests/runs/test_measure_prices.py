"""Measuring prices through the loop on the tiny pair, and the fit on known times; no test asks how fast anything was."""

import argparse
import json
import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from gammatune.commands import prices
from gammatune.commands.options import find_prices
from gammatune.drafters.features import Features
from gammatune.drafters.first_of import FirstOf
from gammatune.drafters.lookup import Lookup
from gammatune.drafters.model import DraftModel
from gammatune.drafters.suffix import Suffix
from gammatune.errors import UserError
from gammatune.models.feature_draft import FeatureDraft
from gammatune.models.pair import load_pair
from gammatune.replay.fit_prices import Samples, fit_line, fit_prices
from gammatune.replay.prices import FREE, PARTS, Drafting, Price, PriceList, from_ratio, read_prices
from gammatune.runs import measure_prices as cost_run
from gammatune.runs.measure_prices import Plan, PriceRun, Probe, WatchingProbe, prepare_place, show_prices, write_prices
from gammatune.runs.session import open_session
from gammatune.tasks.questions import Question

PLAN = Plan(contexts=(16, 48), gamma_max=6, repeats=2)


def open_run(config, plan):
    return PriceRun(open_session(config, endless=True), plan)


@pytest.fixture(scope="module")
def tiny(make_config):
    return open_run(make_config("model_pair=tiny-random"), PLAN)


@pytest.fixture(scope="module")
def curve(tiny):
    return tiny.run()


def known_samples(disturbed=()):
    """Times after a known rule, without noise; the rounds at `disturbed` took a hundred times as long."""
    samples = Samples()
    for index, (length, forwards, fed, watched) in enumerate(
        (length, forwards, fed, watched)
        for length in (100, 300, 500)
        for forwards in range(5)
        for fed in (1, 2)
        for watched in (False, True)
    ):
        draft = forwards * (8 + 0.01 * length + watched) + 0.5 * (forwards > 0) + 1.5 * (forwards > 0) * (fed == 2)
        times = {"draft_ms": draft, "verify_ms": 30 + 2 * forwards + 0.02 * length, "rest_ms": 0.25}
        times = {name: ms * (100 if index in disturbed else 1) for name, ms in times.items()}
        where = {"length": length, "context": length, "watched": watched, "forwards": forwards, "fed": fed}
        where["drafted"] = forwards
        samples.rounds.append(where | times)
    for length in (100, 300, 500):
        samples.prefills.append({"length": length, "models": "target", "ms": 3.0 * length})
        samples.prefills.append({"length": length, "models": "both", "ms": 7 + 4.0 * length})
    return samples


def close(price: Price, base: float, slope: float) -> bool:
    return (price.base, price.slope) == pytest.approx((base, slope), rel=0.03, abs=0.03)


@pytest.mark.parametrize("disturbed", ((), (7, 30, 55)))
def test_the_fit_finds_the_rule_of_the_times(disturbed):
    curve = fit_prices(known_samples(disturbed), {})
    assert close(curve.blind.step, 8, 0.01) and close(curve.watched.step, 9, 0.01)
    if not disturbed:
        assert close(curve.blind.start, 0.5, 0) and close(curve.blind.catch_up, 1.5, 0)
    assert [price.base for price in curve.verify] == pytest.approx([30, 32, 34, 36, 38], rel=0.03)
    assert [price.slope for price in curve.verify] == pytest.approx([0.02] * 5, rel=0.15)
    assert close(curve.rest, 0.25, 0)
    assert close(curve.prefill_target, 0, 3) and close(curve.prefill_both, 7, 4)


def test_one_prompt_length_shows_no_slope():
    samples = known_samples()
    samples.rounds = [r | {"context": r["context"] + i} for i, r in enumerate(samples.rounds) if r["length"] == 300]
    samples.prefills = [p for p in samples.prefills if p["length"] == 300]
    curve = fit_prices(samples, {})
    prices = (curve.blind.step, *curve.verify, curve.rest, curve.prefill_both)
    assert all(price.slope == 0 for price in prices)
    assert close(curve.blind.step, 11, 0) and close(curve.prefill_both, 1207, 0)


def test_no_price_falls_with_the_context_or_below_nothing():
    frame = pd.DataFrame({"length": [10, 20, 30], "context": [10, 20, 30], "size": 1, "ms": [5.0, 4.0, 3.0]})
    falling = fit_line(frame, "ms")
    assert falling.slope == pytest.approx(0, abs=1e-6) and 3 < falling.base < 5
    frame["ms"] = [1.0, 4.0, 9.0]
    assert fit_line(frame, "ms").base == pytest.approx(0, abs=1e-6)


def test_a_pass_meets_every_block_length_once_and_whole(tiny):
    samples = Samples()
    for gammas in ([3, 0, 6, 1, 5, 2, 4], [0, 1, 2, 3, 4, 5, 6]):
        tiny.measure_pass(16, WatchingProbe(gammas=gammas), samples)
    assert [r["forwards"] for r in samples.rounds] == [3, 0, 6, 1, 5, 2, 4, 0, 1, 2, 3, 4, 5, 6]
    assert samples.rounds[0]["context"] == 16 and samples.rounds[0]["fed"] == 1
    assert samples.rounds[2]["fed"] >= 2
    assert [(p["length"], p["models"]) for p in samples.prefills] == [(16, "target"), (16, "both")] * 2


def test_all_contexts_and_both_ways_of_drafting_get_the_same_number_of_each_block(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(tiny, "measure_pass", lambda context, probe, _: seen.append((context, probe)))
    monkeypatch.setattr(cost_run, "fit_prices", lambda samples, facts: None)
    tiny.run()
    passes = seen[1:]  # the first one warms up
    counts = Counter((context, probe.watches_draft, gamma) for context, probe in passes for gamma in probe.gammas)
    assert set(counts) == {(c, w, g) for c in (16, 48) for w in (False, True) for g in range(7)}
    assert set(counts.values()) == {PLAN.repeats}
    assert len({tuple(probe.gammas) for _, probe in passes}) > 1


def test_a_measured_curve_prices_every_block(curve):
    assert len(curve.verify) == PLAN.gamma_max + 1
    assert all(price.at(48) > 0 and price.samples == 8 for price in curve.verify)
    for drafting in (curve.blind, curve.watched):
        assert drafting.step.at(48) > 0 and drafting.step.samples == 24
    assert curve.rest.samples == 56 and curve.prefill_target.samples == 8 and curve.prefill_both.samples == 8
    assert curve.prefill_both.at(48) > 0 and curve.ratio(16) > 0


def test_the_file_says_what_was_measured_and_where(curve, tmp_path):
    path = tmp_path / "new" / "prices.json"
    prepare_place(path)
    write_prices(curve, path)
    stored = json.loads(path.read_text())
    assert stored["schema"] == 2 and stored["pair"] == "tiny-random" and stored["contexts"] == [16, 48]
    assert stored["runtime"]["name"] in ("eager", "compiled") and stored["provenance"]["packages"]["torch"]
    assert set(stored["prices"]) == set(PARTS)
    assert read_prices(path).verify == curve.verify
    assert [file.name for file in path.parent.iterdir()] == ["prices.json"]


def test_the_table_names_what_the_curve_holds(curve):
    table = show_prices(curve)
    assert "T_target(6)" in table and "T_target(9)" not in table and "context 48" in table
    assert f"{curve.blind.step.at(16):.3f}".rstrip("0") in table


def test_the_default_file_follows_the_settings_and_not_the_moment(make_config, tmp_path):
    paths = {
        open_run(make_config("model_pair=tiny-random", "runtime=eager", *more), PLAN).default_path(tmp_path)
        for more in ((), (), ("decode=sample",))
    }
    assert len(paths) == 2


def test_prompts_that_leave_no_room_become_the_longest_that_do():
    assert Plan((128, 4096, 8192), 24, 1).fit(2048).contexts == (128, 2048 - 325)


@pytest.mark.parametrize(
    ("make", "words"),
    (
        (lambda: Plan(contexts=()), "2 tokens or more"),
        (lambda: Plan(contexts=(128, 1)), "--contexts 128,1 .*2 tokens or more"),
        (lambda: Plan(gamma_max=0), "--gamma-max 0 must be 1"),
        (lambda: Plan(repeats=0), "--repeats 0 must be 1"),
        (lambda: Plan(gamma_max=60).fit(512), "needs up to 1891 tokens.*addresses 512"),
        (lambda: prices.read_lengths("128;512"), "--contexts 128;512 cannot be read"),
        (lambda: prices.read_lengths(""), "cannot be read"),
    ),
)
def test_wrong_settings_get_one_sentence(make, words):
    with pytest.raises(UserError, match=words):
        make()


def impossible(curve: PriceList) -> PriceList:
    """The same with draft steps dearer than any target step."""
    return replace(curve, blind=Drafting(Price(9.0)), verify=[Price(2.0)])


def run_command(out, *more):
    parser = argparse.ArgumentParser()
    prices.add_command(parser.add_subparsers())
    words = ["prices", "model_pair=tiny-random", "--contexts", "16", "--gamma-max", "3", "--repeats", "1", "--out", str(out)]
    options = parser.parse_args([*words, *more])
    return options.command(options)


def test_prices_by_which_no_draft_could_pay_are_refused_unless_asked_for(curve, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PriceRun, "run", lambda run: run.load.note() or impossible(curve))
    out = tmp_path / "prices.json"
    with pytest.raises(UserError) as refused:
        run_command(out)
    told = str(refused.value)
    assert told.startswith("Nothing was written: a draft step takes 9 ms and a target step 2 ms at context 16, so no draft")
    assert re.search(r"median load \d+\.\d on \d+ cores.*--keep-implausible\.$", told) and not out.exists()
    assert run_command(out, "--keep-implausible") == 0 and read_prices(out).verify == [Price(2.0)]
    capsys.readouterr()
    assert find_prices(argparse.Namespace(cost_ratio=None, prices=out), tmp_path / "x").verify == [Price(2.0)]
    assert capsys.readouterr().err.startswith(
        f"Remark: in {out} a draft step takes 9 ms and a target step 2 ms at context 16"
    )


def test_the_usual_prices_pass(curve):
    assert not replace(impossible(curve), verify=[Price(9.0)]).find_implausible()
    assert not from_ratio(1.0).find_implausible()


@pytest.mark.parametrize(("load", "told"), [(7.0, "The machine was shared (median load 7.0 on 2 cores): "), (2.9, "")])
def test_a_shared_machine_is_told_and_stored(tiny, monkeypatch, tmp_path, capsys, load, told):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(PriceList, "find_implausible", lambda curve: "")
    assert run_command(tmp_path / "prices.json") == 0
    printed = capsys.readouterr().err
    assert (f"{told}prices may be too high." in printed) if told else "shared" not in printed
    assert read_prices(tmp_path / "prices.json").facts["provenance"]["median_load"] == load


def test_the_command_writes_its_file_and_prints_the_table(tmp_path, capsys):
    out = tmp_path / "prices.json"
    assert run_command(out, "--keep-implausible") == 0  # on a busy machine a tiny draft may seem dearer than its target
    printed = capsys.readouterr().out
    assert "T_draft" in printed and printed.splitlines()[-1] == str(out)
    assert len(read_prices(out).verify) == 4


@pytest.fixture(scope="module")
def with_lookup(make_config):
    config = make_config("model_pair=tiny-random")
    config.drafter = Lookup()
    return open_run(config, Plan(contexts=(16,), gamma_max=4, repeats=1))


def test_a_drafter_that_is_no_model_has_prices_of_verification_for_every_length(with_lookup, tmp_path):
    """What it drafts is a known text then, so that there is a block of every length; drafting costs no forwards."""
    curve = with_lookup.run()
    assert len(curve.verify) == 5 and all(price.base > 0 and price.samples == 2 for price in curve.verify)
    assert curve.blind.step == curve.watched.step == curve.blind.catch_up == FREE
    assert curve.facts["drafter"] == Lookup().identity and curve.facts["forwards_per_token"] == 0
    path = tmp_path / "prices.json"
    write_prices(curve, path)
    assert read_prices(path).verify == curve.verify


def test_a_list_has_the_prices_of_its_draft_model(make_config):
    """The model makes every block, in every length; the first in the list would take some of them."""
    config = make_config("model_pair=tiny-random")
    config.drafter = FirstOf([Suffix(), DraftModel()])
    measured, samples = open_run(config, Plan(contexts=(16,), gamma_max=4, repeats=1)), Samples()
    measured.measure_pass(16, WatchingProbe(gammas=[3, 0, 4, 1, 2]), samples)
    assert [r["forwards"] for r in samples.rounds] == [3, 0, 4, 1, 2]
    assert measured.probes == (Probe, WatchingProbe) and measured.facts["forwards_by_proposer"] == [0, 1]


def test_suffix_decoding_has_prices_of_verification_alone(make_config):
    """It has signals, but what it costs does not depend on who watches."""
    config = make_config("model_pair=tiny-random")
    config.drafter = Suffix()
    measured = open_run(config, Plan(contexts=(16,), gamma_max=2, repeats=1))
    assert measured.probes == (Probe, Probe) and measured.run().watched.step == FREE


def test_its_rounds_have_every_length(with_lookup):
    samples = Samples()
    with_lookup.measure_pass(16, Probe(gammas=[3, 0, 4, 1, 2]), samples)
    assert [r["drafted"] for r in samples.rounds] == [3, 0, 4, 1, 2]
    assert {r["forwards"] for r in samples.rounds} == {r["fed"] for r in samples.rounds} == {0}


def test_a_feature_draft_has_prices_of_its_own_steps(make_config, tmp_path):
    """Its blocks have every length, and its first step reads all that was accepted."""
    config = make_config("model_pair=tiny-random", "runtime=eager")
    pair = load_pair(config.model_pair)
    FeatureDraft.from_target(pair.target).save(tmp_path, pair.tokenizer)
    config.drafter = Features(path=str(tmp_path))
    run = open_run(config, Plan(contexts=(16,), gamma_max=3, repeats=1))
    curve = run.run()
    assert curve.facts["forwards_per_token"] == 1 and curve.facts["rereads"] is True
    assert curve.facts["drafter"] == config.drafter.identity and "weights_sha256" in config.drafter.identity
    assert curve.blind.step.base > 0 and curve.watched.step.base > 0
    samples = Samples()
    run.measure_pass(16, Probe(gammas=[3, 0, 2, 1]), samples)
    assert [r["drafted"] for r in samples.rounds] == [r["forwards"] for r in samples.rounds] == [3, 0, 2, 1]
    emitted = np.diff([r["context"] for r in samples.rounds])
    # the round without a block leaves its token waiting; the first round finds the prompt's last entry
    assert [r["fed"] for r in samples.rounds] == [1, emitted[0], emitted[0] + emitted[1], emitted[2]]


def test_prompts_are_the_questions_over_again(tiny):
    questions = [Question(1, "qa", "qa", ["ab", "c"])]
    ids = cost_run.repeat_text(tiny.session.pair.tokenizer, questions, 13)
    once = tiny.session.pair.tokenizer.encode("ab c")
    assert ids == (once * 13)[:13] and len(once) < 13
    assert len(tiny.text) == 48


def test_an_unusable_place_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        prepare_place(tmp_path / "file" / "prices.json")
    with pytest.raises(UserError, match="is a folder: name a file with --out"):
        prepare_place(tmp_path)
