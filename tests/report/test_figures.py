"""Figures show the numbers of the frames they are drawn from, come out the same twice, and no words lie on one another."""

from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from report.stored_study import RATIOS, draw_study_table, made_bounds, made_study, store_study
from stored import Recipe, change_done, store_run

from gammatune.policies import POLICIES
from gammatune.records import Round
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable
from gammatune.report import figures, style
from gammatune.report.names import policy_name, task_name
from gammatune.runs.store import read_run
from gammatune.studies.bounds import read_bounds
from gammatune.studies.headline import OVERALL, STARTS
from gammatune.studies.study import ADAPTIVE, SENSITIVITY, read_study

BASIC = {"speedup_by_task", "speedup_by_start", "gamma_over_rounds", "accepted_lengths"}
GRID = ("ar", "fixed-1", "fixed-4", "gammatune-1", "gammatune-4", "gammatune_plus-1", "gammatune_plus-4")
LANES = ("ar", "fixed", "gammatune_plus", "oracle")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(store_run(tmp_path_factory.mktemp("runs") / "demo", Recipe(questions=3, repetitions=1)))


@pytest.fixture(scope="module")
def study():
    return made_study()


@pytest.fixture(scope="module")
def bounded():
    return read_bounds(made_bounds()).starts


@pytest.fixture(scope="module")
def drawn(study, bounded):
    """Figures of a study and of bounds by name, laid out."""
    with matplotlib.rc_context(style.STYLE):
        found = {
            "headline": figures.draw_headline(study.headline),
            "ranking": figures.draw_ranking(study.ranking),
            "starts": figures.draw_starts(study.starts),
            "lengths": figures.draw_lengths(study.lengths),
            "sensitivity": figures.draw_sensitivity(study.sensitivity),
            "prices": figures.draw_prices(study.curve),
            "bounds": figures.draw_bounded_starts(bounded),
        }
        for figure in found.values():
            FigureCanvasAgg(figure).draw()
        yield found


def test_every_figure_of_a_run_is_written_twice_the_same_and_shows_something(run, tmp_path):
    first, second = (figures.draw_run(run, tmp_path / name) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert {file.stem for file in first} == BASIC
    assert {file.suffix for file in first} == {".png", ".svg"} and len(first) == 8
    for file in (tmp_path / "a").glob("*.png"):
        pixels = imread(file)[..., :3].reshape(-1, 3)
        assert len(pixels) > 500 * 250
        assert len(np.unique(pixels[::7].round(2), axis=0)) > 30


def test_bars_end_at_the_speedups_of_the_table_and_their_names_do_not_overlap(run):
    figure = figures.draw_speedup_by_task(run)
    bars = [bar.get_x() + bar.get_width() for bar in figure.axes[-1].patches]
    expected = figures.results_of(run, "overall").loc[[arm.label for arm in figures.sorted_arms(run)], "speedup"]
    assert bars == pytest.approx(expected.tolist())
    figure.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in figure.axes[0].get_yticklabels()), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in zip(boxes, boxes[1:], strict=False))


def test_starts_are_drawn_once_there_are_two(run, tmp_path):
    grid = read_run(store_run(tmp_path / "grid", Recipe(arms=GRID, tasks=("qa",), questions=2, repetitions=1)))
    figure = figures.draw_speedup_by_start(grid)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fixed", "GammaTune", "GammaTune+"]
    few = read_run(store_run(tmp_path / "few", Recipe(arms=("ar", "fixed-5", "gammatune-3"), questions=1, repetitions=1)))
    assert figures.draw_speedup_by_start(few) is None


def test_gamma_line_is_what_the_policy_planned(run):
    line = figures.draw_gamma_over_rounds(run).axes[0].patches[-1]
    turn = figures.typical_answer(run.arm("gammatune-3").turns)
    assert line.get_data().values.tolist() == [r.planned for r in turn.rounds]


def test_shares_of_accepted_lengths(run):
    shares = figures.accepted_shares(run.rounds, "fixed-5")
    assert shares.sum() == pytest.approx(1.0) and len(shares) == 6
    table, columns = figures.share_table([np.array([0.5, 0.5]), np.array([0.6, 0.39, 0.005, 0.003, 0.002])])
    assert columns == ["0", "1", "2+"]
    assert table == pytest.approx(np.array([[0.5, 0.5, 0.0], [0.6, 0.39, 0.01]]))


@pytest.mark.parametrize("broken", ["facts", "ar"])
def test_without_speedups_only_the_other_figures_are_drawn(tmp_path, broken):
    facts = {"random_weights": True} if broken == "facts" else {}
    folder = store_run(tmp_path / "run", Recipe(questions=1, repetitions=1, facts=facts))
    if broken == "ar":
        change_done(folder, "ar", status="error")
    written = figures.draw_run(read_run(folder), tmp_path / "out")
    assert {file.stem for file in written} == {"gamma_over_rounds", "accepted_lengths"}


def test_a_baseline_alone_has_nothing_to_draw(tmp_path):
    run = read_run(store_run(tmp_path / "run", Recipe(arms=("ar",), questions=1, repetitions=1)))
    assert figures.draw_run(run, tmp_path / "out") == []


def shown_ticks(axis) -> list:
    """Labels inside the axis's limits."""
    low, high = sorted(axis.get_view_interval())
    return [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]


def words(figure) -> list:
    """Everything written on a figure."""
    found = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for axes in figure.axes:
        found += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        found += [*shown_ticks(axes.xaxis), *shown_ticks(axes.yaxis)]
        found += axes.get_legend().get_texts() if axes.get_legend() else []
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def test_no_words_lie_on_one_another(drawn):
    for name, figure in drawn.items():
        boxes = [(text.get_text(), text.get_window_extent()) for text in words(figure)]
        assert len(boxes) > 8
        assert not [(name, a, b) for (a, first), (b, second) in combinations(boxes, 2) if first.overlaps(second)]


def test_names_of_lines_that_end_together_move_apart(study):
    """All policies end at the same speed."""
    level = study.starts.assign(over_autoregressive=1.5 + 0.1 * (study.starts["start"] < 5))
    with matplotlib.rc_context(style.STYLE):
        figure = figures.draw_starts(level)
        FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 5
    assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))


def test_headline_shows_both_policies_per_task_and_the_claimed_band(drawn, study):
    axis = drawn["headline"].axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["MT-Bench", "Translation", "QA", "Math", "overall"]
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["the paper's claims", "GammaTune", "GammaTune+"]
    band = next(patch for patch in axis.patches if patch.get_label() == "the paper's claims").get_extents()
    band = band.transformed(axis.transData.inverted())
    assert (band.x0, band.x1) == (pytest.approx(1.10), pytest.approx(1.20))
    main = study.headline.query("metric == 'over_mean_fixed' and policy == 'gammatune'")
    assert np.allclose(axis.containers[0].lines[0].get_xdata(), main["value"])


def test_ranking_has_a_bar_per_policy_from_the_target_alone(drawn, study):
    axis = drawn["ranking"].axes[0]
    bars = next(c for c in axis.containers if hasattr(c, "patches"))
    assert np.allclose([bar.get_x() + bar.get_width() for bar in bars], study.ranking["over_autoregressive"])
    assert {bar.get_x() for bar in bars} == {1}
    assert [t.get_text() for t in axis.get_yticklabels()] == [policy_name(name) for name in study.ranking["policy"]]


def test_starts_draws_each_policy_over_all_starts(drawn, study):
    axis = drawn["starts"].axes[0]
    curves = [line for line in axis.lines if len(line.get_xdata()) == len(STARTS)]
    for policy, curve in zip(("fixed", *ADAPTIVE), curves, strict=True):
        rows = study.starts[study.starts["policy"] == policy]
        assert np.allclose(curve.get_ydata(), rows["over_autoregressive"])
    assert {text.get_text() for text in axis.texts} == {policy_name(name) for name in ("fixed", *ADAPTIVE)}


def test_lengths_has_a_line_for_each_task_and_names_its_best(drawn, study):
    axis = drawn["lengths"].axes[0]
    tasks = [task for task in study.lengths["task"].unique() if task != OVERALL]
    for task, curve in zip(tasks, [line for line in axis.lines if len(line.get_xdata()) == len(STARTS)], strict=True):
        rows = study.lengths[study.lengths["task"] == task].set_index("gamma")["over_autoregressive"]
        assert np.allclose(curve.get_ydata(), rows) and curve.get_label() == f"{task_name(task)}: {rows.idxmax()}"


def test_sensitivity_has_a_panel_per_setting_and_marks_the_default(drawn):
    axes = drawn["sensitivity"].axes
    assert [axis.get_title() for axis in axes] == list(SENSITIVITY)
    dots = [line.get_xdata().tolist() for axis in axes for line in axis.lines if line.get_marker() == "o"]
    assert dots == [[0.3], [0.3], [2], [2], [1], [1], [10], [10], [], [0.4]]


def test_prices_are_those_of_the_curve(drawn, study):
    lines = {line.get_label(): line.get_ydata() for line in drawn["prices"].axes[0].lines}
    assert lines["target, k tokens at once, context 128"][4] == pytest.approx(study.curve.verify[4].at(128))
    assert lines["draft, k steps, context 1024"][4] == pytest.approx(5 * study.curve.blind.step.at(1024))


def test_bounds_are_bands_around_the_estimate(drawn, bounded):
    axes = drawn["bounds"].axes
    assert [axis.get_title() for axis in axes] == [f"T_target / T_draft = {ratio:g}" for ratio in RATIOS]
    rows = bounded[(bounded["ratio"] == RATIOS[0]) & (bounded["policy"] == "fixed")]
    edges = pd.DataFrame(axes[0].collections[0].get_paths()[0].vertices, columns=["x", "y"])
    at_three = edges.loc[edges["x"] == 3, "y"]
    expected = rows[rows["start"] == 3].iloc[0]
    assert (at_three.min(), at_three.max()) == (pytest.approx(expected["lower"]), pytest.approx(expected["upper"]))
    assert np.allclose(axes[0].lines[0].get_ydata(), rows["mean"])


def test_figures_without_intervals_are_drawn_too(tmp_path):
    few = read_study(store_study(tmp_path / "few", draw_study_table(questions=1)))
    written = figures.draw_study(few, tmp_path / "figures")
    assert len(written) == 12 and all(file.stat().st_size > 5000 for file in written)


@pytest.fixture(scope="module")
def turn():
    return draw_study_table().turns[0]


@pytest.fixture(scope="module")
def lanes(turn):
    turns = prepare(AcceptanceTable([turn]))
    return {name: replay(turns, POLICIES[name](), keep_rounds=True).logs[0] for name in LANES}


def spans(collection) -> list[tuple[float, float]]:
    """(from, to) along x of each box that has a width."""
    boxes = [path.get_extents() for path in collection.get_paths()]
    return [(box.x0, box.x1) for box in boxes if box.width > 0]


def test_each_lane_covers_the_answer_once_and_the_first_tokens_are_in_view(lanes, turn):
    axis = figures.draw_lanes(lanes, tokens=10_000).axes[0]
    assert len(axis.collections) == 2 * len(LANES)
    for lane in range(len(LANES)):
        covered = sorted(spans(axis.collections[2 * lane]) + spans(axis.collections[2 * lane + 1]))
        assert covered[0][0] == 0 and covered[-1][1] == turn.tokens
        assert all(end == start for (_, end), (start, _) in zip(covered, covered[1:], strict=False))
    assert axis.get_xlim() == (0, turn.tokens)
    assert figures.draw_lanes(lanes, tokens=7).axes[0].get_xlim() == (0, 7)


def test_one_lane_by_hand():
    """Four drafted, one accepted, one from the target; then two of two, cut by the end."""
    rounds = [Round(4, 4, 1, 2, 4, "length", 10), Round(2, 2, 2, 2, 2, "eos", 12)]
    axis = figures.draw_lanes({"made": rounds}).axes[0]
    accepted, target = axis.collections
    assert (spans(accepted), spans(target)) == ([(0, 1), (2, 4)], [(1, 2)])
    bars = [(bar.get_x(), bar.get_height()) for bar in axis.patches if bar.get_height()]
    assert bars == [(1, pytest.approx(0.5))]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["made\n2 rounds, 3 rejected"]


def test_depths_share_one_scale_and_stay_in_their_lane(lanes):
    axis = figures.draw_lanes(lanes).axes[0]
    rejected = {name: [r.drafted - r.accepted for r in rounds] for name, rounds in lanes.items()}
    deepest = max(max(each) for each in rejected.values())
    expected = [count / deepest * 0.5 for each in rejected.values() for count in each]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx(expected)
    assert not any(rejected["oracle"]) and not any(rejected["ar"])
    assert all(bar.get_y() + bar.get_height() < int(bar.get_y()) + 1 for bar in axis.patches)
