"""Figures exist, show something, and come out the same twice."""

import numpy as np
import pytest
from matplotlib.image import imread
from stored import Recipe, change_done, store_run

from gammatune.report import figures
from gammatune.runs.store import read_run

BASIC = {"speedup_by_task", "speedup_by_start", "gamma_over_rounds", "accepted_lengths"}
GRID = ("ar", "fixed-1", "fixed-4", "gammatune-1", "gammatune-4", "gammatune_plus-1", "gammatune_plus-4")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_run(store_run(tmp_path_factory.mktemp("runs") / "demo", Recipe(questions=3, repetitions=1)))


def test_every_figure_is_written_twice_and_shows_something(run, tmp_path):
    written = figures.draw_all(run, tmp_path)
    assert {file.stem for file in written} == BASIC
    assert {file.suffix for file in written} == {".png", ".svg"} and len(written) == 8
    for file in tmp_path.glob("*.png"):
        pixels = imread(file)[..., :3].reshape(-1, 3)
        assert len(pixels) > 500 * 250
        assert len(np.unique(pixels.round(2), axis=0)) > 30


def test_drawing_twice_gives_the_same_bytes(run, tmp_path):
    first, second = (figures.draw_all(run, tmp_path / name) for name in ("a", "b"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_bars_end_at_the_speedups_of_the_table(run):
    figure = figures.draw_speedup_by_task(run)
    overall = figure.axes[-1]
    drawn = [bar.get_x() + bar.get_width() for bar in overall.patches]
    expected = figures.results_of(run, "overall").loc[[arm.label for arm in figures.sorted_arms(run)], "speedup"]
    assert drawn == pytest.approx(expected.tolist())


def test_starts_are_drawn_once_there_are_two(tmp_path):
    run = read_run(store_run(tmp_path / "grid", Recipe(arms=GRID, tasks=("qa",), questions=2, repetitions=1)))
    figure = figures.draw_speedup_by_start(run)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["fixed", "GammaTune", "GammaTune+"]


def test_one_start_per_policy_draws_no_curve(tmp_path):
    run = read_run(store_run(tmp_path / "few", Recipe(arms=("ar", "fixed-5", "gammatune-3"), questions=1, repetitions=1)))
    assert figures.draw_speedup_by_start(run) is None


def test_gamma_line_is_what_the_policy_planned(run):
    figure = figures.draw_gamma_over_rounds(run)
    arm = run.arm("gammatune-3")
    turn = figures.typical_answer(arm.turns)
    line = figure.axes[0].patches[-1]
    assert line.get_data().values.tolist() == [r.planned for r in turn.rounds]


def test_shares_of_accepted_lengths_sum_to_one(run):
    shares = figures.accepted_shares(run.rounds, "fixed-5")
    assert shares.sum() == pytest.approx(1.0) and len(shares) == 6


def test_rare_lengths_share_the_last_column():
    table, columns = figures.share_table([np.array([0.5, 0.5]), np.array([0.6, 0.39, 0.005, 0.003, 0.002])])
    assert columns == ["0", "1", "2+"]
    assert table == pytest.approx(np.array([[0.5, 0.5, 0.0], [0.6, 0.39, 0.01]]))


def test_names_beside_the_bars_do_not_overlap(run):
    figure = figures.draw_speedup_by_task(run)
    figure.draw_without_rendering()
    boxes = sorted((t.get_window_extent() for t in figure.axes[0].get_yticklabels()), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize("broken", ["facts", "ar"])
def test_without_speedups_only_the_other_figures_are_drawn(tmp_path, broken):
    facts = {"random_weights": True} if broken == "facts" else {}
    folder = store_run(tmp_path / "run", Recipe(questions=1, repetitions=1, facts=facts))
    if broken == "ar":
        change_done(folder, "ar", status="error")
    written = figures.draw_all(read_run(folder), tmp_path / "out")
    assert {file.stem for file in written} == {"gamma_over_rounds", "accepted_lengths"}


def test_a_baseline_alone_has_nothing_to_draw(tmp_path):
    run = read_run(store_run(tmp_path / "run", Recipe(arms=("ar",), questions=1, repetitions=1)))
    assert figures.draw_all(run, tmp_path / "out") == []
