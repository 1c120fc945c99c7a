"""The numbers of a study against sums made by hand from single rounds, and what cannot be studied."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report.stored_study import draw_study_table, made_folder, made_log, made_study, store_study

from gammatune.errors import UserError
from gammatune.policies import POLICIES
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable, read_table
from gammatune.report import notes, views
from gammatune.report.tables import write_tables
from gammatune.studies.headline import CLAIMS, OVERALL, STARTS
from gammatune.studies.study import PRICES_FILE, TABLE_FILE, read_study


@pytest.fixture(scope="module")
def study():
    return made_study()


@pytest.fixture(scope="module")
def table():
    return read_table(made_folder() / TABLE_FILE)


def milliseconds(rounds, prompt_tokens: int, watched: bool) -> float:
    """One turn at the prices of stored_study.make_curve, added up round by round."""
    drafts = any(r.forwards for r in rounds)
    total, full_before = 6 + 0.7 * prompt_tokens if drafts else 5 + 0.5 * prompt_tokens, False
    for r in rounds:
        total += 20 + r.drafted + 0.004 * r.context + 0.125
        total += r.forwards * ((2.2 if watched else 2.0) + 0.001 * r.context)
        total += (0.5 + 0.25 * full_before) if r.forwards else 0
        full_before = r.accepted == r.forwards
    return total


def mean_speed(table: AcceptanceTable, policy, task: str | None = None) -> float:
    """Tokens/s, the mean over questions."""
    tokens, spent = {}, {}
    for turn, rounds in zip(table.turns, replay(prepare(table), policy, keep_rounds=True).logs, strict=True):
        if task in (None, turn.task):
            key = turn.task, turn.question_id
            tokens[key] = tokens.get(key, 0) + turn.tokens
            spent[key] = spent.get(key, 0) + milliseconds(rounds, turn.prompt_tokens, policy.watches_draft)
    return float(np.mean([1000 * tokens[key] / spent[key] for key in tokens]))


def mean_over_starts(table: AcceptanceTable, name: str, task: str | None = None) -> float:
    return float(np.mean([mean_speed(table, POLICIES[name](gamma=start), task) for start in STARTS]))


def read_csv(study, name: str, tmp_path) -> pd.DataFrame:
    write_tables(tmp_path, views.study_tables(study), "caption")
    return pd.read_csv(tmp_path / f"{name}.csv")


@pytest.mark.parametrize("name", CLAIMS)
def test_the_headline_by_hand(study, table, tmp_path, name):
    stored = read_csv(study, "headline", tmp_path).set_index(["policy", "metric"])["value"]
    fixed = [mean_speed(table, POLICIES["fixed"](gamma=start)) for start in STARTS]
    speed = mean_over_starts(table, name)
    assert stored[name, "over_mean_fixed"] == pytest.approx(speed / np.mean(fixed))
    assert stored[name, "over_best_fixed"] == pytest.approx(speed / max(fixed))
    assert stored[name, "over_autoregressive"] == pytest.approx(speed / mean_speed(table, POLICIES["ar"]()))
    assert stored[name, "over_oracle"] == pytest.approx(speed / mean_speed(table, POLICIES["oracle"]()))


def test_a_task_by_hand(study, table, tmp_path):
    stored = read_csv(study, "headline_by_task", tmp_path).set_index(["task", "policy", "metric"])["value"]
    assert set(stored.index.get_level_values("task")) == {turn.task for turn in table.turns} | {OVERALL}
    expected = mean_over_starts(table, "gammatune", "qa") / mean_over_starts(table, "fixed", "qa")
    assert stored["qa", "gammatune", "over_mean_fixed"] == pytest.approx(expected)


def test_the_ranking_holds_every_policy_and_fixed_gamma_fastest_first(study):
    ranking = study.ranking
    assert set(ranking["policy"]) == set(POLICIES) - {"fixed"} | {f"fixed {gamma}" for gamma in STARTS}
    assert ranking["over_autoregressive"].is_monotonic_decreasing
    assert ranking["policy"][0] == "oracle"


def test_regret_is_what_is_missing_to_the_oracle(study, table, tmp_path):
    ranking = read_csv(study, "ranking", tmp_path).set_index("policy")
    assert np.allclose(ranking["regret"], 1 - ranking["over_oracle"])
    assert ranking["regret"].drop("oracle").min() > 0 and ranking["regret"]["oracle"] == 0
    expected = 1 - mean_speed(table, POLICIES["svip"]()) / mean_speed(table, POLICIES["oracle"]())
    assert ranking["regret"]["svip"] == pytest.approx(expected)


def test_counts_of_the_ranking_by_hand(study, table):
    row = study.ranking.set_index("policy").loc["p_min"]
    rounds = sum(replay(prepare(table), POLICIES["p_min"](), keep_rounds=True).logs, [])
    drafted, accepted = sum(r.drafted for r in rounds), sum(r.accepted for r in rounds)
    forwards = sum(r.forwards for r in rounds)
    assert row["rounds"] == len(rounds) and forwards > drafted
    assert row["mean_accepted_tokens"] == pytest.approx(table.tokens / len(rounds))
    assert row["acceptance_rate"] == pytest.approx(accepted / drafted)
    assert row["drafted_per_round"] == pytest.approx(drafted / len(rounds))
    assert row["wasted_forwards"] == pytest.approx(1 - accepted / forwards)


def test_tuned_fixed_is_the_best_gamma_of_the_tuning_half(study):
    rows = study.ranking.set_index("policy").drop(columns=["over_tuned_fixed_low", "over_tuned_fixed_high"])
    fixed, tuning = study.speeds.by_policy["fixed"], study.speeds.tuning
    best = STARTS[int(np.argmax([row[tuning].mean() for row in fixed]))]
    assert rows.loc["tuned_fixed"].to_dict() == rows.loc[f"fixed {best}"].to_dict()
    assert rows.loc["tuned_fixed", "over_tuned_fixed"] == 1


def test_policies_at_their_best_by_hand(study, table, tmp_path):
    """Settings chosen on every second question of a task, speeds of the others."""
    stored = read_csv(study, "tuned", tmp_path).set_index("policy")
    assert (
        set(stored.index) == set(POLICIES) - {"tuned_fixed"} and stored["tuned_over_autoregressive"].is_monotonic_decreasing
    )
    tasks = {}
    for turn in table.turns:
        tasks.setdefault(turn.task, {})[turn.question_id] = None
    tuning = {(task, question) for task, questions in tasks.items() for question in list(questions)[1::2]}
    halves = [
        AcceptanceTable([t for t in table.turns if ((t.task, t.question_id) in tuning) == half]) for half in (True, False)
    ]
    grid = [{}, *({"threshold": value} for value in POLICIES["svip"].rule.grid["threshold"])]
    chosen = max(grid, key=lambda point: mean_speed(halves[0], POLICIES["svip"](**point)))
    gamma = max(
        POLICIES["fixed"].rule.grid["gamma"], key=lambda value: mean_speed(halves[0], POLICIES["fixed"](gamma=value))
    )
    speed, alone = mean_speed(halves[1], POLICIES["svip"](**chosen)), mean_speed(halves[1], POLICIES["ar"]())
    row = stored.loc["svip"].fillna("")
    assert row["settings"] == ", ".join(f"{field}={value}" for field, value in chosen.items())
    assert row["tuned_over_autoregressive"] == pytest.approx(speed / alone)
    assert row["default_over_autoregressive"] == pytest.approx(mean_speed(halves[1], POLICIES["svip"]()) / alone)
    assert row["tuned_over_tuned_fixed"] == pytest.approx(speed / mean_speed(halves[1], POLICIES["fixed"](gamma=gamma)))


def test_a_table_of_one_question_per_task_has_no_tuned_settings(tmp_path):
    study = read_study(store_study(tmp_path / "lonely", draw_study_table(questions=1)))
    assert study.tuned is None and "tuned" not in views.study_tables(study)
    assert "no other half to report" in notes.describe_study(study)


def test_starts_by_hand(study, table, tmp_path):
    stored = read_csv(study, "starts", tmp_path).set_index(["policy", "start"])["over_autoregressive"]
    alone = mean_speed(table, POLICIES["ar"]())
    for name in ("fixed", "gammatune_plus"):
        assert stored[name, 12] == pytest.approx(mean_speed(table, POLICIES[name](gamma=12)) / alone)


@pytest.mark.parametrize("task", ["qa", OVERALL])
def test_lengths_by_hand(study, table, tmp_path, task):
    stored = read_csv(study, "lengths", tmp_path).query("task == @task").set_index("gamma")
    part = None if task == OVERALL else task
    turns = [turn for turn in table.turns if task in (turn.task, OVERALL)]
    alone = mean_speed(table, POLICIES["ar"](), part)
    for gamma in (1, 5, 24):
        assert stored.loc[gamma, "over_autoregressive"] == pytest.approx(
            mean_speed(table, POLICIES["fixed"](gamma=gamma), part) / alone
        )
    of_turn = replay(prepare(table), POLICIES["fixed"](gamma=5), keep_rounds=True).logs
    rounds = sum(len(log) for log, turn in zip(of_turn, table.turns, strict=True) if task in (turn.task, OVERALL))
    assert stored.loc[5, "mean_accepted_tokens"] == pytest.approx(sum(turn.tokens for turn in turns) / rounds)
    matches = np.concatenate([turn.match for turn in turns])
    assert np.allclose(stored["agreement"], (matches == 1).mean()) and stored["questions"].nunique() == 1
    assert stored.index[stored["best"]].tolist() == [stored["over_autoregressive"].idxmax()]


def test_sensitivity_at_the_default_is_the_rankings_speed(study):
    ranking = study.ranking.set_index("policy")["over_autoregressive"]
    defaults = study.sensitivity[study.sensitivity["default"]]
    assert not defaults.duplicated(["policy", "field"]).any()
    assert len(defaults) == len(study.sensitivity[["policy", "field"]].drop_duplicates()) == 9
    assert np.allclose(defaults["over_autoregressive"], ranking[defaults["policy"]])


def test_sensitivity_by_hand(study, table, tmp_path):
    stored = read_csv(study, "sensitivity", tmp_path).set_index(["policy", "field", "value"])["over_autoregressive"]
    alone = mean_speed(table, POLICIES["ar"]())
    for name, field, value in (("gammatune", "delta", 4), ("gammatune_plus", "tau", 0.8)):
        assert stored[name, field, value] == pytest.approx(mean_speed(table, POLICIES[name](**{field: value})) / alone)


def test_facts_are_those_of_the_table(study, table):
    assert (study.facts["questions"], study.facts["turns"], study.facts["tokens"]) == (24, 30, table.tokens)
    assert study.facts["agreement"] == pytest.approx(sum(int(turn.match.sum()) for turn in table.turns) / table.tokens)
    assert "Pair made, 24 questions" in notes.describe_study(study) and "Test CPU" in notes.describe_study(study)


def test_claims_stand_beside_the_two_policies_that_the_paper_claims_them_for(study):
    view = views.headline_view(study.headline).set_index("policy")["paper's claim"]
    assert view[view != ""].to_dict() == {"GammaTune": "1.15 ± 0.05", "GammaTune+": "1.16 ± 0.03"}


def test_views_show_the_numbers_with_their_intervals(study):
    overall = study.headline[study.headline["task"] == OVERALL].set_index(["policy", "metric"])
    value, low, high = overall.loc[("gammatune", "over_mean_fixed"), ["value", "low", "high"]]
    assert low < value < high
    text = f"{value:.2f} [{low:.2f}, {high:.2f}]"
    assert views.headline_view(study.headline).set_index("policy").loc["GammaTune", "over mean fixed"] == text
    assert views.by_task_view(study.headline).set_index("policy").loc["GammaTune", OVERALL] == text
    assert views.starts_view(study.starts)["start"].tolist() == list(STARTS)
    assert (views.sensitivity_view(study.sensitivity)["default"] == "default").sum() == 9


def test_one_question_per_task_gives_numbers_without_intervals(tmp_path):
    few = read_study(store_study(tmp_path / "few", draw_study_table(questions=1)))
    assert few.ranking["over_autoregressive_low"].isna().all()
    for shown in views.study_tables(few).values():
        cells = shown.view.astype(str).to_numpy().ravel()
        assert not any(cell.endswith(" -") or "nan" in cell for cell in cells)


def strip_signals(table: AcceptanceTable) -> AcceptanceTable:
    bare = {"signals": None, "continuations": None, "steps": np.zeros(0, np.int8), "ended": np.zeros(0, bool)}
    return AcceptanceTable([replace(turn, trace=replace(turn.trace, **bare)) for turn in table.turns], table.facts)


def test_a_table_that_cannot_be_replayed_for_all_policies_is_refused(tmp_path):
    for name, unfit in (("bare", strip_signals(draw_study_table())), ("log", made_log())):
        with pytest.raises(UserError, match=rf"{name}.*gammatune bounds"):
            read_study(store_study(tmp_path / name, unfit))


@pytest.mark.parametrize("file", [TABLE_FILE, PRICES_FILE])
@pytest.mark.parametrize("kept", [None, 90])
def test_missing_and_cut_files_are_named(tmp_path, file, kept):
    broken = store_study(tmp_path / "broken", draw_study_table(questions=1)) / file
    content = broken.read_bytes()
    broken.unlink()
    if kept:
        broken.write_bytes(content[:kept])
    with pytest.raises(UserError, match=str(broken)):
        read_study(broken.parent)
