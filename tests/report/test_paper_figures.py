"""The figures of a study and of bounds: drawn from the frames they claim to show, no words on one another."""

from itertools import combinations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report.stored_study import RATIOS, draw_study_table, import_log, store_bounded_log, store_study

from gammatune.report import paper_figures, style
from gammatune.report.names import policy_name
from gammatune.studies import bounds, paper
from gammatune.studies.headline import STARTS


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return paper.read_study(store_study(tmp_path_factory.mktemp("reference") / "made"))


@pytest.fixture(scope="module")
def bounded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    return bounds.read_bounds(store_bounded_log(folder / "bounds", import_log(folder / "log.jsonl")))[0]["starts"]


@pytest.fixture
def figures(study, bounded):
    with matplotlib.rc_context(style.STYLE):
        drawn = {
            "headline": paper_figures.draw_headline(study),
            "ranking": paper_figures.draw_ranking(study.ranking),
            "starts": paper_figures.draw_starts(study.starts),
            "sensitivity": paper_figures.draw_sensitivity(study.sensitivity),
            "prices": paper_figures.draw_prices(study),
            "bounds": paper_figures.draw_bounded_starts(bounded),
        }
        for figure in drawn.values():
            FigureCanvasAgg(figure).draw()
        yield drawn


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


@pytest.mark.parametrize("name", ["headline", "ranking", "starts", "sensitivity", "prices", "bounds"])
def test_no_words_lie_on_one_another(figures, name):
    boxes = [(text.get_text(), text.get_window_extent()) for text in words(figures[name])]
    assert len(boxes) > 8
    on_another = [(a, b) for (a, first), (b, second) in combinations(boxes, 2) if first.overlaps(second)]
    assert not on_another


def test_names_of_lines_that_end_together_move_apart(study):
    """All policies end at the same speed."""
    level = study.starts.assign(over_autoregressive=1.5 + 0.1 * (study.starts["start"] < 5))
    with matplotlib.rc_context(style.STYLE):
        figure = paper_figures.draw_starts(level)
        FigureCanvasAgg(figure).draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 5
    assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))


def test_headline_shows_both_policies_per_task_and_the_claimed_band(figures, study):
    axis = figures["headline"].axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["MT-Bench", "Translation", "QA", "Math", "overall"]
    assert [t.get_text() for t in axis.get_legend().get_texts()] == ["the paper's claims", "GammaTune", "GammaTune+"]
    band = next(patch for patch in axis.patches if patch.get_label() == "the paper's claims").get_extents()
    band = band.transformed(axis.transData.inverted())
    assert (band.x0, band.x1) == (pytest.approx(1.10), pytest.approx(1.20))
    main = study.headline.query("metric == 'over_mean_fixed' and policy == 'gammatune'")
    assert np.allclose(axis.containers[0].lines[0].get_xdata(), main["value"])


def test_ranking_has_a_bar_per_policy_from_the_target_alone(figures, study):
    axis = figures["ranking"].axes[0]
    bars = next(c for c in axis.containers if hasattr(c, "patches"))
    assert np.allclose([bar.get_x() + bar.get_width() for bar in bars], study.ranking["over_autoregressive"])
    assert {bar.get_x() for bar in bars} == {1}
    assert [t.get_text() for t in axis.get_yticklabels()] == [policy_name(name) for name in study.ranking["policy"]]


def test_starts_draws_each_policy_over_all_starts(figures, study):
    axis = figures["starts"].axes[0]
    curves = [line for line in axis.lines if len(line.get_xdata()) == len(STARTS)]
    for policy, curve in zip(("fixed", *paper.ADAPTIVE), curves, strict=True):
        rows = study.starts[study.starts["policy"] == policy]
        assert np.allclose(curve.get_ydata(), rows["over_autoregressive"])
    assert {text.get_text() for text in axis.texts} == {policy_name(name) for name in ("fixed", *paper.ADAPTIVE)}


def test_sensitivity_has_a_panel_per_setting_and_marks_the_default(figures, study):
    axes = figures["sensitivity"].axes
    assert [axis.get_title() for axis in axes] == list(paper.SENSITIVITY)
    dots = [line.get_xdata().tolist() for axis in axes for line in axis.lines if line.get_marker() == "o"]
    assert dots == [[0.3], [0.3], [2], [2], [1], [1], [10], [10], [], [0.4]]


def test_prices_are_those_of_the_curve(figures, study):
    lines = {line.get_label(): line.get_ydata() for line in figures["prices"].axes[0].lines}
    assert lines["target, k tokens at once, context 128"][4] == pytest.approx(study.curve.verify[4].at(128))
    assert lines["draft, k steps, context 1024"][4] == pytest.approx(5 * study.curve.blind.step.at(1024))


def test_bounds_are_bands_around_the_estimate(figures, bounded):
    axes = figures["bounds"].axes
    assert [axis.get_title() for axis in axes] == [f"T_target / T_draft = {ratio:g}" for ratio in RATIOS]
    rows = bounded[(bounded["ratio"] == RATIOS[0]) & (bounded["policy"] == "fixed")]
    edges = pd.DataFrame(axes[0].collections[0].get_paths()[0].vertices, columns=["x", "y"])
    at_three = edges.loc[edges["x"] == 3, "y"]
    expected = rows[rows["start"] == 3].iloc[0]
    assert (at_three.min(), at_three.max()) == (pytest.approx(expected["lower"]), pytest.approx(expected["upper"]))
    assert np.allclose(axes[0].lines[0].get_ydata(), rows["mean"])


def test_figures_without_intervals_are_drawn_too(tmp_path):
    few = paper.read_study(store_study(tmp_path / "few", draw_study_table(questions=1)))
    written = paper_figures.draw_study(few, tmp_path / "figures")
    assert len(written) == 10 and all(file.stat().st_size > 5000 for file in written)
